//! The registry: every clause in scope, its authority, and why it may have no case.

pub mod compare;
pub mod coverage;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

macro_rules! groups {
    ($($name:literal)*) => {
        [$(($name, include_str!(concat!("../../clauses/", $name, ".json")))),*]
    };
}

/// The registry as data: one file for each group, one line for each clause.
const GROUPS: [(&str, &str); 18] = groups! {
    "status" "init" "queue" "suspend" "split" "packed" "admin" "objects" "parts"
    "pci" "common" "notify" "blk" "zoned" "rng" "state" "tracker" "recording"
};

/// Who is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The device.
    Device,
    /// The driver.
    Driver,
    /// Nobody: a definition or a description.
    Neither,
}

/// How strongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Required.
    Must,
    /// Forbidden.
    MustNot,
    /// Recommended.
    Should,
    /// Recommended against.
    ShouldNot,
    /// Permitted.
    May,
    /// A statement of fact that everything else rests on.
    Fact,
}

impl Level {
    /// The word in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Must => "MUST",
            Self::MustNot => "MUST NOT",
            Self::Should => "SHOULD",
            Self::ShouldNot => "SHOULD NOT",
            Self::May => "MAY",
            Self::Fact => "fact",
        }
    }
}

/// With what authority. A rule of the project is never presented as text of OASIS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provenance {
    /// Text of VIRTIO 1.4, paraphrased.
    #[serde(rename = "virtio-1.4")]
    Virtio14,
    /// Known through quotations of a draft of 2023 that was not merged.
    #[serde(rename = "draft-2023-quoted")]
    DraftQuoted,
    /// Rebuilt from a draft's relatives; its wording, level and numbers are the project's.
    #[serde(rename = "draft-2023-reconstructed")]
    DraftReconstructed,
    /// A rule of this project.
    Project,
}

impl Provenance {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Virtio14 => "virtio-1.4",
            Self::DraftQuoted => "draft-2023-quoted",
            Self::DraftReconstructed => "draft-2023-reconstructed",
            Self::Project => "project",
        }
    }
}

/// Why a clause has no case. The list is closed, and each code but the first two needs an argument
/// of its own (`why`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoCase {
    /// It permits: nothing that its addressee does breaks it.
    Permits,
    /// It defines or describes, and clauses with cases rest on it.
    Defines,
    /// It speaks of a facility that no target of this suite can have.
    FacilityAbsent,
    /// Nothing that the other side can do shows whether it was kept.
    NotObservable,
    /// The text that it would come from is not known.
    TextUnknown,
}

impl NoCase {
    /// Every code.
    pub const ALL: [Self; 5] = [
        Self::Permits,
        Self::Defines,
        Self::FacilityAbsent,
        Self::NotObservable,
        Self::TextUnknown,
    ];

    /// The code in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Permits => "permits",
            Self::Defines => "defines",
            Self::FacilityAbsent => "facility-absent",
            Self::NotObservable => "not-observable",
            Self::TextUnknown => "text-unknown",
        }
    }
}

/// One statement.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clause {
    /// The id in names and reports: that of the statement inventory of VIRTIO 1.4, or that of
    /// `virtio-facilities.md` for what is not in the standard. Frozen: a new sentence takes a free
    /// one, none is used twice.
    pub id: String,
    /// The short id that `virtio-facilities.md` has for the same sentence. Cases, globs and
    /// `--explain` take either.
    #[serde(default)]
    pub short: Option<String>,
    /// Which file of `clauses/` it stands in; the cases for it are in the modules of that group.
    #[serde(skip)]
    pub group: &'static str,
    /// Who is bound.
    pub role: Role,
    /// How strongly. For anything but VIRTIO 1.4 and quoted drafts the word is the project's.
    pub level: Level,
    /// With what authority.
    pub provenance: Provenance,
    /// Where it stands: the section of VIRTIO 1.4, or the draft, or the project's reference.
    pub section: String,
    /// The first 12 digits of the SHA-256 of its sentence in VIRTIO 1.4; none for other texts.
    #[serde(default)]
    pub hash: Option<String>,
    /// What it says, in our words; for a prohibition, what is prohibited.
    pub text: String,
    /// Features without which it has no meaning, as [`crate::constants::feature::NAMES`] has them,
    /// or `tracker` or `recording`.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Why it has no case.
    #[serde(default)]
    pub no_case: Option<NoCase>,
    /// The argument for that.
    #[serde(default)]
    pub why: Option<String>,
}

/// Statements that are still without a case or a rule, by who is bound. Each number must be exact,
/// so that it can only be lowered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// Statements that bind the device, or nobody, without a case.
    pub device: usize,
    /// Statements that bind the driver, without a rule of `tidemark judge`.
    pub driver: usize,
    /// MUSTs of VIRTIO 1.4 that bind the device, with a case and without a mutant that breaks them.
    pub mutants: usize,
}

/// One file of `clauses/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    pending: Pending,
    clauses: Vec<Clause>,
}

impl Clause {
    /// Whether a device that does not do it is at fault.
    pub fn binds_device(&self) -> bool {
        self.role == Role::Device && matches!(self.level, Level::Must | Level::MustNot)
    }

    /// Whether `name` is its id or its short id.
    pub fn is(&self, name: &str) -> bool {
        self.id == name || self.short.as_deref() == Some(name)
    }

    /// The shorter of its names.
    pub fn name(&self) -> &str {
        self.short.as_deref().unwrap_or(&self.id)
    }

    /// The authority and the place, as a report names them.
    pub fn source(&self) -> String {
        match self.provenance {
            Provenance::Virtio14 => format!("VIRTIO 1.4, \"{}\"", self.section),
            Provenance::DraftQuoted => format!("draft 2023, quoted ({})", self.section),
            Provenance::DraftReconstructed => {
                format!(
                    "draft 2023 as reconstructed by this project ({})",
                    self.section
                )
            }
            Provenance::Project => format!("rule of this project ({})", self.section),
        }
    }
}

/// The clauses by id.
#[derive(Debug)]
pub struct Registry {
    clauses: BTreeMap<String, Clause>,
    shorts: BTreeMap<String, String>,
    pending: BTreeMap<&'static str, Pending>,
}

/// Why the registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The data is not what [`Clause`] describes.
    #[error("clauses/{file}.json: {source}")]
    Data {
        /// Which file.
        file: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Two clauses have one id.
    #[error("clauses/: the id {0} stands twice")]
    Twice(String),
}

impl Registry {
    /// Reads the registry that was built in.
    ///
    /// # Errors
    /// [`RegistryError`] if the data is wrong.
    pub fn load() -> Result<Self, RegistryError> {
        let mut this = Self {
            clauses: BTreeMap::new(),
            shorts: BTreeMap::new(),
            pending: BTreeMap::new(),
        };
        for (group, text) in GROUPS {
            let file: File = serde_json::from_str(text).map_err(|source| RegistryError::Data {
                file: group,
                source,
            })?;
            this.pending.insert(group, file.pending);
            for mut clause in file.clauses {
                clause.group = group;
                let id = clause.id.clone();
                if let Some(short) = clause.short.clone()
                    && this.shorts.insert(short.clone(), id.clone()).is_some()
                {
                    return Err(RegistryError::Twice(short));
                }
                if this.clauses.insert(id.clone(), clause).is_some() {
                    return Err(RegistryError::Twice(id));
                }
            }
        }
        if let Some(both) = this.shorts.keys().find(|id| this.clauses.contains_key(*id)) {
            return Err(RegistryError::Twice(both.clone()));
        }
        Ok(this)
    }

    /// The clause of this id or short id.
    pub fn get(&self, name: &str) -> Option<&Clause> {
        let id = self.shorts.get(name).map_or(name, String::as_str);
        self.clauses.get(id)
    }

    /// Every clause, in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = &Clause> {
        self.clauses.values()
    }

    /// The groups, in the order of the standard, and what is pending in each by its own account.
    pub fn groups(&self) -> impl Iterator<Item = (&'static str, Pending)> {
        GROUPS.iter().map(|(group, _)| {
            let pending = self.pending.get(group).copied();
            (*group, pending.unwrap_or_default())
        })
    }

    /// A hash of ids and sentences: reports with the same one speak of the same clauses.
    pub fn hash(&self) -> String {
        let mut all = Sha256::new();
        for clause in self.iter() {
            let sentence = clause.hash.as_ref().unwrap_or(&clause.text);
            all.update(format!("{}\t{sentence}\n", clause.id));
        }
        short_hash(&all.finalize())
    }
}

/// The first 12 digits of a sentence's SHA-256.
pub fn sentence_hash(sentence: &str) -> String {
    short_hash(&Sha256::digest(sentence))
}

fn short_hash(digest: &[u8]) -> String {
    let mut text = String::new();
    for byte in digest.iter().take(6) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
