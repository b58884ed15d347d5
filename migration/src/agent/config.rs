//! What a device of an agent is configured to do.

use crate::names::{Batch, Change, ConflictSet, TrackedRange};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// Most ranges of one device.
pub const RANGES_MAX: usize = 1024;
/// Highest end of a range. A bitmap begins at address 0, so that this bounds what one takes.
pub const END_MAX: u64 = 1 << 40;
/// Most names of those who may migrate one device.
pub const MANAGERS_MAX: usize = 64;
/// Longest name of a manager or a device, in octets.
pub const NAME_MAX: usize = 128;

/// One layer of a device's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// What of its writes is tracked; nothing without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
    /// Whether it is suspended.
    #[serde(default)]
    pub suspended: bool,
    /// Who may migrate it, by their names; everyone that reaches the agent, if nobody is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub managers: Vec<String>,
}

/// How the pages that a device writes are tracked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracking {
    /// Addresses of octets as the device knows them; none empty, no two overlap.
    pub ranges: Vec<Range<u64>>,
    /// The page size to track with, in octets: a power of two from 4 KiB to 1 GiB. The device may take a
    /// larger one.
    pub granularity: u64,
    /// The PASID whose writes are tracked; those without one, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pasid: Option<u32>,
    /// What the device leaves for each page.
    #[serde(default)]
    pub mode: Mode,
}

/// What a device leaves for a page that it wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A bit, which is harvested by words.
    #[default]
    Bitmap,
    /// At least a bit and at most its octet, which is harvested by octets.
    Bytes,
}

/// What a device can be configured to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abilities {
    /// It has a tracker.
    pub tracking: bool,
    /// Its tracker knows PASIDs.
    pub pasid: bool,
    /// It can be suspended.
    pub suspend: bool,
}

/// Why a configuration cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The device lacks what it takes.
    #[error("the device has no {0}; choose a configuration without, or another device")]
    Lacks(&'static str),
    /// There is too much of something.
    #[error("{got} {what}; at most {max} expected")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many came.
        got: usize,
        /// The most.
        max: usize,
    },
    /// Tracking of nothing.
    #[error("no range to track; name at least one, or leave `tracking` out")]
    NoRange,
    /// A range is empty, two overlap, or the PASID is too wide.
    #[error("{0}")]
    Range(String),
    /// A range ends too high.
    #[error(
        "a range ends at {0:#x}; expected {END_MAX:#x} at most, since bitmaps begin at address 0"
    )]
    Far(u64),
    /// No page size.
    #[error("granularity {0}; expected a power of two from 4096 to 1073741824")]
    Granularity(u64),
    /// A name that none can have.
    #[error("a manager's name has {0} octets; expected 1 to {NAME_MAX}")]
    Name(usize),
}

impl DeviceConfig {
    /// Whether a device with these abilities can be configured so.
    ///
    /// # Errors
    /// [`Unfit`]: the first reason why not.
    pub fn check(&self, device: &str, abilities: Abilities) -> Result<(), Unfit> {
        if self.suspended && !abilities.suspend {
            return Err(Unfit::Lacks("SUSPEND"));
        }
        at_most("managers", self.managers.len(), MANAGERS_MAX)?;
        let odd = |name: &&String| name.is_empty() || name.len() > NAME_MAX;
        if let Some(name) = self.managers.iter().find(odd) {
            return Err(Unfit::Name(name.len()));
        }
        let Some(tracking) = &self.tracking else {
            return Ok(());
        };
        if !abilities.tracking {
            return Err(Unfit::Lacks("dirty page tracker"));
        }
        if tracking.pasid.is_some() && !abilities.pasid {
            return Err(Unfit::Lacks("PASID"));
        }
        tracking.check(device)
    }

    /// Whether this manager may migrate the device.
    pub fn admits(&self, who: &str) -> bool {
        self.managers.is_empty() || self.managers.iter().any(|name| name == who)
    }
}

impl Tracking {
    fn check(&self, device: &str) -> Result<(), Unfit> {
        let size = self.granularity;
        if !size.is_power_of_two() || !(1 << 12..=1 << 30).contains(&size) {
            return Err(Unfit::Granularity(size));
        }
        if self.ranges.is_empty() {
            return Err(Unfit::NoRange);
        }
        at_most("ranges", self.ranges.len(), RANGES_MAX)?;
        if let Some(range) = self.ranges.iter().find(|range| range.end > END_MAX) {
            return Err(Unfit::Far(range.end));
        }
        let device = Arc::from(device);
        let mut changes = Vec::with_capacity(self.ranges.len());
        for range in &self.ranges {
            let key = TrackedRange::new(&device, self.pasid, range);
            changes.push(Change::Create(
                key.map_err(|error| Unfit::Range(error.to_string()))?,
            ));
        }
        let conflicts = ConflictSet::default().judge(&Batch::new(changes));
        match conflicts.first() {
            None => Ok(()),
            Some(conflict) => Err(Unfit::Range(format!(
                "{}: another of these ranges overlaps it",
                conflict.key()
            ))),
        }
    }
}

fn at_most(what: &'static str, got: usize, max: usize) -> Result<(), Unfit> {
    if got > max {
        return Err(Unfit::TooMany { what, got, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Abilities = Abilities {
        tracking: true,
        pasid: true,
        suspend: true,
    };

    fn tracking(ranges: &[Range<u64>]) -> DeviceConfig {
        DeviceConfig {
            tracking: Some(Tracking {
                ranges: ranges.to_vec(),
                granularity: 4096,
                pasid: None,
                mode: Mode::Bitmap,
            }),
            ..DeviceConfig::default()
        }
    }

    #[test]
    fn what_a_device_cannot_do_is_refused_with_the_reason() {
        let whole = tracking(&[0..1 << 30, 1 << 32..1 << 33]);
        assert_eq!(whole.check("disk0", ALL), Ok(()));
        let lacking = Abilities {
            tracking: false,
            ..ALL
        };
        assert!(matches!(
            whole.check("disk0", lacking),
            Err(Unfit::Lacks(_))
        ));
        let overlapping = tracking(&[0..1 << 30, 4096..8192]).check("disk0", ALL);
        assert!(
            matches!(&overlapping, Err(Unfit::Range(why)) if why.contains("overlaps")),
            "{overlapping:?}"
        );
        let empty = Range { start: 8, end: 8 };
        assert!(tracking(&[empty]).check("disk0", ALL).is_err());
        assert_eq!(tracking(&[]).check("disk0", ALL), Err(Unfit::NoRange));
        let far = tracking(std::slice::from_ref(&(0..END_MAX + 1)));
        assert_eq!(far.check("disk0", ALL), Err(Unfit::Far(END_MAX + 1)));
        let mut odd = whole.clone();
        odd.tracking.as_mut().unwrap().granularity = 5000;
        assert_eq!(odd.check("disk0", ALL), Err(Unfit::Granularity(5000)));
        let mut wide = whole;
        wide.tracking.as_mut().unwrap().pasid = Some(1 << 20);
        assert!(matches!(wide.check("disk0", ALL), Err(Unfit::Range(_))));
        let suspended = DeviceConfig {
            suspended: true,
            ..DeviceConfig::default()
        };
        let lacking = Abilities {
            suspend: false,
            ..ALL
        };
        assert_eq!(
            suspended.check("disk0", lacking),
            Err(Unfit::Lacks("SUSPEND"))
        );
    }

    #[test]
    fn only_named_managers_may_migrate() {
        let mut config = DeviceConfig::default();
        assert!(config.admits("anyone"));
        config.managers.push("fleet".into());
        assert!(config.admits("fleet") && !config.admits("anyone"));
    }
}
