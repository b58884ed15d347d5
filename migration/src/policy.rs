//! When pre-copy sends another round, when it stops the guest, and what becomes of a guest that
//! dirties memory faster than it can be sent.
//!
//! A [`Policy`] is asked twice for each round, as Xen asks its own: when the round has been sent,
//! and when it is known what the guest has dirtied meanwhile. The bulk round is round 1.

use std::fmt::Debug;
use std::time::Duration;

const PAGE_BYTES: f64 = 4096.0;

/// What a policy is told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Rounds sent, the bulk round included.
    pub rounds: u32,
    /// Pages of 4 KiB that the last of them sent.
    pub sent: u64,
    /// Pages dirtied since: those that a stop would have to send, at least. `None` when a round
    /// has been sent and nobody has been asked yet.
    pub dirty: Option<u64>,
    /// What the connection has taken, in bytes per second, measured over the last round that was
    /// long enough to measure.
    pub bandwidth: Option<f64>,
    /// How much the guest is throttled, in percent; 0 is full speed.
    pub throttle: u8,
}

impl Seen {
    /// How long the guest would stand still if it were stopped now: what is dirty, at the measured
    /// bandwidth. `None` as long as either is unknown.
    pub fn downtime(&self) -> Option<Duration> {
        let (dirty, bandwidth) = (self.dirty?, self.bandwidth?);
        Duration::try_from_secs_f64(pages(dirty) / bandwidth).ok()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an estimate; numbers of pages are far below 2^52"
)]
fn pages(count: u64) -> f64 {
    count as f64 * PAGE_BYTES
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    Continue,
    /// Stop the guest, send what is left, hand it over.
    Stop,
    /// Another round, with the guest slowed down by so many percent, 1 to 99.
    Throttle(u8),
    /// Give up: the guest stays, and this is why.
    GiveUp(String),
}

/// Decides how pre-copy goes on.
pub trait Policy: Debug + Send + Sync {
    /// Asked after each round, and again after each report of what became dirty meanwhile.
    fn decide(&self, seen: &Seen) -> Decision;
}

/// Xen's default: stop when fewer than 50 pages are dirty, or after 5 rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenDefault;

impl XenDefault {
    /// Fewer dirty pages than this stop the guest.
    pub const DIRTY: u64 = 50;
    /// So many rounds stop it whatever is dirty.
    pub const ROUNDS: u32 = 5;
}

impl Policy for XenDefault {
    fn decide(&self, seen: &Seen) -> Decision {
        let few = seen.dirty.is_some_and(|dirty| dirty < Self::DIRTY);
        if few || seen.rounds >= Self::ROUNDS {
            Decision::Stop
        } else {
            Decision::Continue
        }
    }
}

/// Limits on rounds and on what a round sends; nothing is measured. The guest is stopped whatever
/// it does, so this always comes to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// Rounds before the guest may be stopped, the bulk round included.
    pub min_rounds: u32,
    /// Rounds after which the guest is stopped whatever it dirties, the bulk round included.
    pub max_rounds: u32,
    /// The guest is stopped once a round found at most this many dirty pages of 4 KiB.
    pub stop_pages: u64,
}

impl Rounds {
    /// Limits for a memory of `pages` pages: at least three rounds after the bulk, at most seven,
    /// and a stop when 1/128 of the memory or less is dirty.
    pub fn for_memory(pages: u64) -> Self {
        Self {
            min_rounds: 4,
            max_rounds: 8,
            stop_pages: pages / 128,
        }
    }
}

impl Policy for Rounds {
    fn decide(&self, seen: &Seen) -> Decision {
        let few = seen.rounds >= self.min_rounds && seen.sent <= self.stop_pages;
        // What became dirty during the bulk round says nothing yet.
        if seen.dirty.is_none() && seen.rounds > 1 && (few || seen.rounds >= self.max_rounds) {
            Decision::Stop
        } else {
            Decision::Continue
        }
    }
}

/// What becomes of a guest that does not converge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unconverged {
    /// It gets so many more rounds at its full speed.
    Extend(u32),
    /// It is slowed down, by another step each round: 20 percent, then 10 more, up to 99.
    Throttle,
    /// It stays at its source, at once.
    Stop,
}

/// Stops the guest as soon as it would stand still for no longer than a limit, by the bandwidth that
/// was measured. A guest that never comes to that is not stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DowntimeLimit {
    /// The limit.
    pub limit: Duration,
    /// Rounds before the guest may be stopped, the bulk round included.
    pub min_rounds: u32,
    /// Rounds, the bulk round included, after which the guest counts as one that does not converge.
    pub max_rounds: u32,
    /// What becomes of it then.
    pub then: Unconverged,
}

impl DowntimeLimit {
    const FIRST_STEP: u8 = 20;
    const STEP: u8 = 10;
    /// A guest that does nothing at all would not be a running one.
    const SLOWEST: u8 = 99;

    fn give_up(&self, seen: &Seen) -> Decision {
        let estimate = seen.downtime().map_or_else(
            || "could not be estimated".to_owned(),
            |time| format!("would be {:.1} ms", time.as_secs_f64() * 1e3),
        );
        let throttled = match seen.throttle {
            0 => String::new(),
            percent => format!(", throttled by {percent} %"),
        };
        Decision::GiveUp(format!(
            "after {} rounds{throttled} the downtime {estimate} and may be {:.1} ms; allow more \
             downtime, bandwidth or rounds, or throttle the guest",
            seen.rounds,
            self.limit.as_secs_f64() * 1e3
        ))
    }
}

impl Policy for DowntimeLimit {
    fn decide(&self, seen: &Seen) -> Decision {
        if seen.dirty.is_none() {
            return Decision::Continue;
        }
        let fits = seen.downtime().is_some_and(|time| time <= self.limit) || seen.dirty == Some(0);
        if fits && seen.rounds >= self.min_rounds {
            return Decision::Stop;
        }
        // Waiting for the least number of rounds is no failure to converge.
        if fits || seen.rounds < self.max_rounds {
            return Decision::Continue;
        }
        match self.then {
            Unconverged::Extend(more) if seen.rounds < self.max_rounds.saturating_add(more) => {
                Decision::Continue
            }
            Unconverged::Throttle if seen.throttle == 0 => Decision::Throttle(Self::FIRST_STEP),
            Unconverged::Throttle if seen.throttle < Self::SLOWEST => {
                let next = seen.throttle.saturating_add(Self::STEP);
                Decision::Throttle(next.min(Self::SLOWEST))
            }
            _ => self.give_up(seen),
        }
    }
}

#[cfg(test)]
mod tests;
