//! Seats: small numbers that the threads of this process have while they live, no two the same.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

/// Seats there are: more than the queues and control threads of a function.
pub(super) const SEATS: usize = u32::BITS as usize;

/// Bit n: seat n is taken.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// Stands for none: not asked for yet, or there was none, or it was given back.
const NONE: usize = usize::MAX;

thread_local! {
    /// The seat of this thread. Apart from what gives it back, because this costs one load to read.
    static MINE: Cell<usize> = const { Cell::new(NONE) };
    static HELD: Held = Held::take();
}

/// Gives the seat back when its thread ends.
struct Held(Option<usize>);

impl Held {
    fn take() -> Self {
        let lowest_free = |taken: u32| Some(taken | taken.checked_add(1)?);
        // What the thread that had the seat before did with it has happened.
        let before = TAKEN.fetch_update(Ordering::Acquire, Ordering::Relaxed, lowest_free);
        Self(
            before
                .ok()
                .and_then(|taken| usize::try_from(taken.trailing_ones()).ok()),
        )
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Whatever else this thread does while it ends, it does without.
        MINE.set(NONE);
        if let Some(seat) = self.0 {
            TAKEN.fetch_and(!(1 << seat), Ordering::Release);
        }
    }
}

/// The seat of this thread, or a number above all seats before [`ask`].
#[inline(always)]
pub(super) fn mine() -> usize {
    MINE.get()
}

/// A seat for this thread, if there is one: who finds none goes without for good, and shares.
#[cold]
pub(super) fn ask() -> Option<usize> {
    let seat = HELD.try_with(|held| held.0).ok().flatten()?;
    MINE.set(seat);
    Some(seat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Barrier;
    use std::thread;

    #[test]
    fn threads_that_live_at_once_have_seats_of_their_own() {
        const THREADS: usize = SEATS + 8;
        let met = Barrier::new(THREADS);
        let seats: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        let seat = ask();
                        assert_eq!(seat, ask(), "it stays");
                        assert_eq!(mine(), seat.unwrap_or(NONE));
                        met.wait();
                        seat
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let taken: Vec<_> = seats.iter().flatten().collect();
        let distinct: BTreeSet<_> = taken.iter().collect();
        assert_eq!(distinct.len(), taken.len());
        assert!(taken.len() < THREADS, "some go without");
    }
}
