//! What a run found, and the forms in which it is told.

mod html;
mod human;
mod junit;
pub mod matrix;
mod reference;
mod tap;

pub use human::{coverage_line, explain, list};
pub use reference::reference;

use crate::cases::Case;
use crate::clause::{Clause, Level, Registry, Role};
use crate::constants::{feature, pci, reg};
use crate::harness::{Bench, Stop};
use crate::run::profile::Waiver;
use crate::run::{Attempt, Finding, Options, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a clause fared, as reports have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As demanded.
    Pass,
    /// Otherwise.
    Fail,
    /// The situation did not arise. Counts as a failure.
    Inconclusive,
    /// It could not be tried on this target.
    Skip,
    /// The target has not what the clause is about.
    NotApplicable,
    /// A failure that is known, until a day.
    Waived,
    /// A known failure that is gone: its waiver must go. Counts as a failure.
    UnexpectedPass,
    /// Nothing that the other side did showed it. For drivers.
    NotExercised,
}

impl Outcome {
    /// Every outcome, in the order of summaries.
    pub const ALL: [Self; 8] = [
        Self::Pass,
        Self::Fail,
        Self::Inconclusive,
        Self::UnexpectedPass,
        Self::Waived,
        Self::Skip,
        Self::NotApplicable,
        Self::NotExercised,
    ];

    /// The word in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
            Self::Skip => "skip",
            Self::NotApplicable => "not-applicable",
            Self::Waived => "waived",
            Self::UnexpectedPass => "unexpected-pass",
            Self::NotExercised => "not-exercised",
        }
    }

    /// Whether it counts as a failure.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Fail | Self::Inconclusive | Self::UnexpectedPass)
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pass => Self::Pass,
            Verdict::Fail => Self::Fail,
            Verdict::Skip => Self::Skip,
            Verdict::NotApplicable => Self::NotApplicable,
            Verdict::Inconclusive => Self::Inconclusive,
        }
    }
}

/// One clause in one case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The clause's id.
    pub clause: String,
    /// Its short id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short: Option<String>,
    /// Its group.
    pub group: String,
    /// Who is bound.
    pub role: Role,
    /// How strongly.
    pub level: Level,
    /// With what authority, and where it stands.
    pub source: String,
    /// What it says, in our words.
    pub says: String,
    /// What was carried out.
    pub case: String,
    /// How it fared.
    pub outcome: Outcome,
    /// Why, where the outcome alone does not say it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// What was done.
    #[serde(default)]
    pub did: Vec<String>,
    /// What was seen.
    #[serde(default)]
    pub saw: Vec<String>,
    /// What the clause wants to be seen.
    #[serde(default)]
    pub wants: Vec<String>,
    /// Milliseconds that the case took.
    pub milliseconds: u64,
    /// The waiver that speaks of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiver: Option<Waiver>,
}

impl Entry {
    /// An entry for what was found; `attempt` is what was carried out, if anything was.
    pub fn new(clause: &Clause, case: &Case, attempt: Option<&Attempt>, finding: Finding) -> Self {
        let took = attempt.map_or(0, |attempt| attempt.took.as_millis());
        Self {
            clause: clause.id.clone(),
            short: clause.short.clone(),
            group: clause.group.to_owned(),
            role: clause.role,
            level: clause.level,
            source: clause.source(),
            says: clause.text.clone(),
            case: case.name.to_owned(),
            outcome: finding.verdict.into(),
            note: finding.note,
            did: attempt.map_or_else(Vec::new, |attempt| attempt.steps().to_vec()),
            saw: finding.saw,
            wants: finding.wants,
            milliseconds: u64::try_from(took).unwrap_or(u64::MAX),
            waiver: None,
        }
    }

    /// All of it, for people.
    pub fn at_length(&self) -> String {
        human::at_length(self)
    }

    /// The shorter name of its clause.
    pub fn name(&self) -> &str {
        self.short.as_deref().unwrap_or(&self.clause)
    }
}

/// Who was judged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The target as it was named.
    pub target: String,
    /// PCI vendor and device id, hexadecimal.
    pub pci: String,
    /// PCI subsystem vendor and device id, hexadecimal.
    pub subsystem: String,
    /// PCI revision id.
    pub revision: u8,
    /// Virtio device id; 0 if the PCI id tells none.
    pub virtio: u16,
    /// The features offered, by name.
    pub features: Vec<String>,
    /// Queues.
    pub queues: u64,
}

impl Identity {
    /// Reads it from a function.
    ///
    /// # Errors
    /// The bus's.
    pub fn read(bench: &Bench) -> Result<Self, Stop> {
        let revision = bench.config_word(pci::REVISION)?.to_le_bytes()[0];
        let vendor = bench.config_word(pci::SUBSYSTEM - 2)?;
        Ok(Self {
            target: String::new(),
            pci: format!("{:04x}:{:04x}", bench.caps.vendor, bench.caps.device),
            subsystem: format!("{vendor:04x}:{:04x}", bench.config_word(pci::SUBSYSTEM)?),
            revision,
            virtio: bench.caps.virtio_id().unwrap_or(0),
            features: feature::names(bench.offered()?),
            queues: bench.get(reg::NUM_QUEUES)?,
        })
    }
}

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the suite.
    pub suite: String,
    /// Hash of the clauses: runs with the same one judged by the same text.
    pub clauses: String,
    /// Who was judged.
    pub identity: Identity,
    /// The profile's name, if there was one.
    pub profile: Option<String>,
    /// Features that the profile claims and the target does not offer: each is a failure.
    pub not_offered: Vec<String>,
    /// Seed of everything random.
    pub seed: u64,
    /// What was found.
    pub entries: Vec<Entry>,
}

impl Report {
    /// An empty report.
    pub fn new(registry: &Registry, identity: Identity, options: &Options) -> Self {
        Self {
            suite: env!("CARGO_PKG_VERSION").to_owned(),
            clauses: registry.hash(),
            identity,
            profile: options.profile.as_ref().map(|profile| profile.name.clone()),
            not_offered: Vec::new(),
            seed: options.seed,
            entries: Vec::new(),
        }
    }

    /// Adds an entry.
    pub fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// How often each outcome was found.
    pub fn totals(&self) -> BTreeMap<Outcome, usize> {
        let mut totals = BTreeMap::new();
        for entry in &self.entries {
            *totals.entry(entry.outcome).or_default() += 1;
        }
        totals
    }

    /// How much of it counts as a failure.
    pub fn failures(&self) -> usize {
        let failed = |entry: &&Entry| entry.outcome.is_failure();
        self.entries.iter().filter(failed).count() + self.not_offered.len()
    }

    /// Entries that fail here and did not in `old`, which is an earlier report.
    pub fn regressions<'a>(&'a self, old: &Self) -> Vec<&'a Entry> {
        let before: BTreeMap<_, _> = old
            .entries
            .iter()
            .map(|entry| ((&entry.clause, &entry.case), entry.outcome))
            .collect();
        let worse = |entry: &&Entry| {
            let was = before.get(&(&entry.clause, &entry.case));
            entry.outcome.is_failure() && was.is_some_and(|was| !was.is_failure())
        };
        self.entries.iter().filter(worse).collect()
    }

    /// The report in a format.
    ///
    /// # Errors
    /// [`FormatError`] if it cannot be written so.
    pub fn write(&self, format: Format) -> Result<String, FormatError> {
        Ok(match format {
            Format::Human => human::report(self),
            Format::Json => serde_json::to_string_pretty(self)? + "\n",
            Format::Junit => junit::report(self)?,
            Format::Html => html::report(self),
            Format::Tap => tap::report(self),
        })
    }
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people at a terminal.
    Human,
    /// For machines, and for `--baseline`.
    Json,
    /// For continuous integration.
    Junit,
    /// One page with nothing outside it.
    Html,
    /// TAP 13.
    Tap,
}

/// Why a report cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Not as JSON.
    #[error("the report cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Not as JUnit's XML.
    #[error("the report cannot be written as JUnit: {0}")]
    Junit(#[from] quick_junit::SerializeError),
}

#[cfg(test)]
mod tests;
