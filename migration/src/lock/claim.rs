//! Who asks for a lock, who has it, and what proves it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// A manager that wants to lock a set: a UUID v7, so that the older of two is the smaller one, and a
/// name for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The claimant's.
    pub id: Uuid,
    /// Counts up when everything was released to come again.
    pub attempt: u32,
}

/// Who has a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// The claimant.
    pub claimant: Claimant,
    /// Since when, by the remote's clock; written as milliseconds of the epoch.
    #[serde(with = "millis")]
    pub since: SystemTime,
}

/// A time as milliseconds since the epoch: what a person can compare, and JSON can hold exactly.
mod millis {
    use super::{Deserialize, Duration, SystemTime};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        let millis = since.unwrap_or_default().as_millis();
        to.serialize_u64(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let millis = u64::deserialize(from)?;
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis));
        time.ok_or_else(|| serde::de::Error::custom("a time beyond what this system can tell"))
    }
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Of this lock alone, a UUID v7.
    pub id: Uuid,
    /// How often the device had been reset when the lock was given.
    pub generation: u64,
}
