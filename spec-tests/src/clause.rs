//! The registry: every clause in scope, its authority, and why it may have no case.

use serde::Deserialize;
use std::collections::BTreeMap;

/// The registry as data. Ids are frozen: a new sentence takes a free one, none is used twice.
const REGISTRY: &str = include_str!("../clauses.json");

/// Who is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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

/// Which part of the suite a clause belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Area {
    Status,
    Reset,
    Init,
    Features,
    Suspend,
    QueueState,
    Tracker,
    Pci,
    CommonCfg,
    Notify,
    Ring,
}

/// Why a clause has no case. The list is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoCase {
    /// It binds drivers; this suite judges devices.
    BindsDrivers,
    /// It permits: nothing that a device does breaks it.
    Permits,
    /// It defines or describes, and clauses with cases rest on it.
    Defines,
    /// It speaks of a facility that no target of this suite has yet.
    FacilityAbsent,
    /// Nothing that a driver can do shows whether it was kept.
    NotObservable,
    /// The text that it would come from is not known.
    TextUnknown,
}

/// One statement.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clause {
    /// The id in names and reports: that of `virtio-facilities.md`, or where it has none that of
    /// the statement inventory of VIRTIO 1.4.
    pub id: String,
    /// Ids of the statements of VIRTIO 1.4 that it covers.
    #[serde(default)]
    pub statements: Vec<String>,
    /// Which part of the suite.
    pub area: Area,
    /// Who is bound.
    pub role: Role,
    /// How strongly. For anything but VIRTIO 1.4 and quoted drafts the word is the project's.
    pub level: Level,
    /// With what authority.
    pub provenance: Provenance,
    /// Where it stands: the section of VIRTIO 1.4, or the draft, or the project's reference.
    pub section: String,
    /// What it says, in our words.
    pub text: String,
    /// Features without which it has no meaning.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Why it has no case.
    #[serde(default)]
    pub no_case: Option<NoCase>,
}

impl Clause {
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
}

/// Why the registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The data is not what [`Clause`] describes.
    #[error("clauses.json: {0}")]
    Data(#[from] serde_json::Error),
    /// Two clauses have one id.
    #[error("clauses.json: the id {0} stands twice")]
    Twice(String),
}

impl Registry {
    /// Reads the registry that was built in.
    ///
    /// # Errors
    /// [`RegistryError`] if the data is wrong.
    pub fn load() -> Result<Self, RegistryError> {
        let list: Vec<Clause> = serde_json::from_str(REGISTRY)?;
        let mut clauses = BTreeMap::new();
        for clause in list {
            let id = clause.id.clone();
            if clauses.insert(id.clone(), clause).is_some() {
                return Err(RegistryError::Twice(id));
            }
        }
        Ok(Self { clauses })
    }

    /// The clause of this id.
    pub fn get(&self, id: &str) -> Option<&Clause> {
        self.clauses.get(id)
    }

    /// Every clause, in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = &Clause> {
        self.clauses.values()
    }
}
