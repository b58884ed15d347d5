//! Who asks for a lock, who has it, and what proves it.

use std::fmt;
use std::time::SystemTime;
use uuid::Uuid;

/// A manager that wants to lock a set: a UUID v7, so that the older of two is the smaller one, and a
/// name for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// Orders claimants: the smaller one goes first.
    pub id: Uuid,
    /// Told to whoever finds the lock taken.
    pub who: String,
}

impl Claimant {
    /// One that is younger than all before it.
    pub fn new(who: impl Into<String>) -> Self {
        Self {
            id: Uuid::now_v7(),
            who: who.into(),
        }
    }
}

/// One attempt of a claimant to lock. Made by the asker, so that it can be taken back even when the
/// answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The claimant's.
    pub id: Uuid,
    /// Counts up when everything was released to come again.
    pub attempt: u32,
}

/// Who has a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The claimant.
    pub claimant: Claimant,
    /// Since when, by the remote's clock.
    pub since: SystemTime,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.since.duration_since(SystemTime::UNIX_EPOCH);
        let Claimant { id, who } = &self.claimant;
        write!(
            f,
            "{who} ({id}) since {:.3} s of the epoch",
            since.unwrap_or_default().as_secs_f64()
        )
    }
}

/// Proves to a remote that its lock is still the one that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Of this lock alone, a UUID v7.
    pub id: Uuid,
    /// How often the device had been reset when the lock was given.
    pub generation: u64,
}
