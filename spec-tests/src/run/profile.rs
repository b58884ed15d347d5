//! What a target is said to be: then nothing that it lacks is passed over in silence.

use crate::constants::feature;
use crate::harness::Absent;
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// A profile, as its TOML file has it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What the target is called in reports.
    pub name: String,
    /// The features that it is said to offer, by name or as "bit N", all of them.
    pub features: Vec<String>,
    /// It has a dirty pages tracker.
    #[serde(default)]
    pub tracker: bool,
    /// It has MSI-X.
    #[serde(default)]
    pub msix: bool,
    /// Queues that it has at least.
    #[serde(default)]
    pub queues: u16,
    /// It has device configuration that a driver may write.
    #[serde(default)]
    pub writable_config: bool,
    /// What is known to be wrong with it.
    #[serde(default, rename = "waiver")]
    pub waivers: Vec<Waiver>,
}

/// A failure that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiver {
    /// The clause's id, in either form.
    pub clause: String,
    /// The case; all of the clause if there is none.
    #[serde(default)]
    pub case: Option<String>,
    /// Why it is let pass, with a link where there is one.
    pub reason: String,
    /// The last day on which it is, as YYYY-MM-DD.
    pub until: String,
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is not TOML, or has other keys.
    #[error("the profile cannot be read: {0}")]
    Toml(#[from] toml::de::Error),
    /// A feature has no such name.
    #[error(
        "the profile claims {0}, which is no feature: expected a name such as EVENT_IDX, or \"bit 29\""
    )]
    Feature(String),
    /// A date is none.
    #[error("the waiver of {clause} ends on '{until}': expected YYYY-MM-DD")]
    Date {
        /// The clause.
        clause: String,
        /// What stands there.
        until: String,
    },
    /// The target offers what the profile does not know.
    #[error("the target offers {0}, which its profile does not claim: add it to `features`")]
    Unclaimed(String),
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// [`ProfileError`] if it is none.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let this: Self = toml::from_str(text)?;
        this.bits()?;
        for waiver in &this.waivers {
            let shape = waiver.until.bytes().enumerate().all(|(at, byte)| match at {
                4 | 7 => byte == b'-',
                _ => byte.is_ascii_digit(),
            });
            if !shape || waiver.until.len() != 10 {
                return Err(ProfileError::Date {
                    clause: waiver.clause.clone(),
                    until: waiver.until.clone(),
                });
            }
        }
        Ok(this)
    }

    /// The features that are claimed.
    ///
    /// # Errors
    /// [`ProfileError::Feature`].
    pub fn bits(&self) -> Result<u64, ProfileError> {
        let mut bits = 0;
        for name in &self.features {
            let bit = feature::by_name(name);
            bits |= bit.ok_or_else(|| ProfileError::Feature(name.clone()))?;
        }
        Ok(bits)
    }

    /// Whether the target is said to have this.
    pub fn claims(&self, what: Absent) -> bool {
        match what {
            Absent::Features(wanted) => self.bits().is_ok_and(|bits| bits & wanted == wanted),
            Absent::Tracker => self.tracker,
            Absent::Queues(count) => self.queues >= count,
            Absent::WritableConfig => self.writable_config,
            Absent::Msix => self.msix,
            Absent::Variant(_)
            | Absent::ConfigChange
            | Absent::Function
            | Absent::Permission
            | Absent::Header
            | Absent::DeviceType(_)
            | Absent::Capability(_)
            | Absent::Part(_)
            | Absent::Members(_)
            | Absent::Command(_)
            | Absent::Status(_)
            | Absent::Own(_)
            | Absent::FunctionReset => false,
        }
    }
}

/// Today, as YYYY-MM-DD in UTC.
pub fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    date(since.map_or(0, |since| since.as_secs() / 86_400))
}

/// The date of a day that is counted from 1970-01-01 on.
fn date(days: u64) -> String {
    // Years begin in March here, so that the leap day comes last; eras have 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (20_788, "2026-12-01"),
        ] {
            assert_eq!(date(days), expected);
        }
    }

    #[test]
    fn the_book_s_profile_is_one() {
        let text = include_str!("../../../docs/profiles/example.toml");
        let profile = Profile::parse(text).unwrap();
        let registry = crate::clause::Registry::load().unwrap();
        let [waiver] = &profile.waivers[..] else {
            panic!("{:?}", profile.waivers);
        };
        let clause = registry.get(&waiver.clause).unwrap();
        let case = crate::cases::all().find(|case| Some(case.name) == waiver.case.as_deref());
        assert!(case.unwrap().clauses.iter().any(|name| clause.is(name)));
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        let good = "name = 'x'\nfeatures = ['VERSION_1', 'bit 9']\n";
        let profile = Profile::parse(good).unwrap();
        assert!(profile.claims(Absent::Features(1 << 32 | 1 << 9)));
        assert!(!profile.claims(Absent::Features(1 << 29)));
        assert!(matches!(
            Profile::parse("name = 1"),
            Err(ProfileError::Toml(_))
        ));
        let unknown = Profile::parse("name = 'x'\nfeatures = ['NO']\n");
        assert!(matches!(unknown, Err(ProfileError::Feature(name)) if name == "NO"));
        let date = format!("{good}[[waiver]]\nclause = 'ST-5'\nreason = 'x'\nuntil = 'soon'\n");
        assert!(matches!(
            Profile::parse(&date),
            Err(ProfileError::Date { .. })
        ));
    }
}
