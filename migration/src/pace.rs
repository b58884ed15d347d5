//! Keeping to a bandwidth: a token bucket over a clock.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// What may come at once, as time at the full rate.
const BURST: Duration = Duration::from_millis(50);
/// The longest wait before whoever waits looks again whether it still should.
const NAP: Duration = Duration::from_millis(20);

/// What time it is, and waiting.
pub trait Clock: Debug + Send + Sync {
    /// Since a beginning that is the clock's own.
    fn now(&self) -> Duration;
    /// Waits so long.
    fn sleep(&self, time: Duration);
}

/// The system's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Most bytes per second, and the clock that says what a second is.
#[derive(Clone, Copy, Debug)]
pub struct Bandwidth<'a> {
    /// Bytes per second, at least 1.
    pub rate: u64,
    /// The clock.
    pub clock: &'a dyn Clock,
}

/// A bucket that fills at the given rate and holds what may come at once. It may be overdrawn: what
/// has been sent has been sent, and is waited for afterwards.
#[derive(Debug)]
pub(crate) struct Bucket<'a> {
    bandwidth: Bandwidth<'a>,
    /// Bytes, below 0 when overdrawn.
    level: f64,
    filled: Duration,
}

impl<'a> Bucket<'a> {
    pub(crate) fn new(bandwidth: Bandwidth<'a>) -> Self {
        Self {
            bandwidth,
            level: 0.0,
            filled: bandwidth.clock.now(),
        }
    }

    /// Takes out what was sent and waits until the bucket is no longer overdrawn; ends early with
    /// false when `go_on` says so.
    pub(crate) fn spend(&mut self, bytes: u64, go_on: impl Fn() -> bool) -> bool {
        self.fill();
        self.level -= float(bytes);
        while self.level < 0.0 {
            if !go_on() {
                return false;
            }
            let missing = Duration::try_from_secs_f64(-self.level / self.rate());
            // Never nothing: what is missing may be less than the clock can tell.
            let nap = missing.unwrap_or(NAP).clamp(Duration::from_micros(50), NAP);
            self.bandwidth.clock.sleep(nap);
            self.fill();
        }
        true
    }

    fn rate(&self) -> f64 {
        float(self.bandwidth.rate.max(1))
    }

    fn fill(&mut self) {
        let now = self.bandwidth.clock.now();
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.filled = now;
        let most = self.rate() * BURST.as_secs_f64();
        self.level = (self.level + passed * self.rate()).min(most);
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a limit on what is sent in seconds; far below 2^53"
)]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Fake(Mutex<Duration>);

    impl Clock for Fake {
        fn now(&self) -> Duration {
            *self.0.lock().unwrap()
        }
        fn sleep(&self, time: Duration) {
            *self.0.lock().unwrap() += time;
        }
    }

    fn close(got: Duration, seconds: f64) {
        let got = got.as_secs_f64();
        assert!((got - seconds).abs() < 0.001, "{got} s, not {seconds} s");
    }

    #[test]
    fn what_is_sent_takes_its_time() {
        let clock = Fake::default();
        let mut bucket = Bucket::new(Bandwidth {
            rate: 1000,
            clock: &clock,
        });
        assert!(bucket.spend(500, || true));
        close(clock.now(), 0.5);
        for _ in 0..100 {
            assert!(bucket.spend(10, || true));
        }
        close(clock.now(), 1.5);
        // An hour of nothing is worth one burst, not an hour.
        clock.sleep(Duration::from_secs(3600));
        assert!(bucket.spend(1050, || true));
        close(clock.now(), 3602.5);
    }

    #[test]
    fn whoever_waits_can_be_told_not_to() {
        let clock = Fake::default();
        let mut bucket = Bucket::new(Bandwidth {
            rate: 1,
            clock: &clock,
        });
        let limit = Duration::from_secs(2);
        assert!(!bucket.spend(u64::MAX, || clock.now() < limit));
        assert!(clock.now() < limit + NAP);
    }
}
