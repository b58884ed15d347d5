//! How a case ends.

use crate::constants::feature;
use driver::bus::BusError;
use driver::memory::MemoryError;
use std::cell::RefCell;
use std::fmt;

thread_local! {
    /// What the case that this thread carries out has found as it should be. A case has a thread
    /// of its own (`run::Attempt`).
    static KEPT: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// What was found as clauses want it since the last call, for the report of a pass.
pub fn kept() -> Vec<String> {
    KEPT.take()
}

/// Something that a target may not have, without which a clause says nothing about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// These feature bits are not all offered.
    Features(u64),
    /// There is no dirty pages tracker.
    Tracker,
    /// The target cannot be made in this variant.
    Variant(crate::target::Variant),
    /// The target cannot be made to change its configuration.
    ConfigChange,
    /// There are fewer queues than this.
    Queues(u16),
    /// No device configuration, or none with a field that a driver may write.
    WritableConfig,
    /// No MSI-X capability.
    Msix,
    /// There is no PCI function, but rings only.
    Function,
    /// Its medium may not be written.
    Permission,
    /// Its requests have no part that the device reads.
    Header,
    /// It is a device of another type than this virtio device id.
    DeviceType(u16),
    /// No virtio capability of this type.
    Capability(u8),
    /// It owns fewer functions than this.
    Members(u16),
    /// It does not report this administration command as supported.
    Command(u16),
    /// It reports no device part of this type.
    Part(u16),
    /// No function level reset by its configuration space.
    FunctionReset,
    /// No command ends in this administration status, try as one may.
    Status(u16),
    /// Something of its own that the case acts on, by name.
    Own(&'static str),
}

impl Absent {
    /// A host-managed disk is driven with ZONED or not at all.
    pub const UNZONED: Self = Self::Own("way to be driven without ZONED");
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Features(bits) => write!(f, "feature {}", feature::names(*bits).join(" and ")),
            Self::Tracker => f.write_str("dirty pages tracker"),
            Self::Variant(variant) => write!(f, "way to be made {variant:?}"),
            Self::ConfigChange => f.write_str("way to be made to change its configuration"),
            Self::Queues(count) => write!(f, "{count} queues"),
            Self::WritableConfig => f.write_str("device configuration that a driver may write"),
            Self::Msix => f.write_str("MSI-X"),
            Self::Function => f.write_str("PCI function: it is rings only"),
            Self::Header => f.write_str("requests with a header"),
            Self::DeviceType(id) => write!(f, "device of virtio type {id}"),
            Self::Capability(kind) => write!(f, "virtio capability with cfg_type {kind}"),
            Self::Members(count) => write!(f, "{count} functions that it owns"),
            Self::Command(opcode) => write!(f, "administration command {opcode:#06x}"),
            Self::Part(kind) => write!(f, "device part {kind:#x}"),
            Self::FunctionReset => f.write_str("function level reset by configuration space"),
            Self::Status(status) => write!(f, "answer with administration status {status}"),
            Self::Own(what) => f.write_str(what),
            Self::Permission => f.write_str("permission to be written to (--allow-write)"),
        }
    }
}

/// A clause that was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which clauses; none if the way to the function or the function itself broke.
    pub clauses: Vec<&'static str>,
    /// What was seen.
    pub saw: String,
    /// What the clause wants to be seen.
    pub wants: String,
}

/// Why a case ends before its end.
#[derive(Clone, Debug)]
pub enum Stop {
    /// A clause was broken.
    Fail(Failure),
    /// The situation that the clause speaks of did not arise. Counts as a failure.
    Inconclusive(String),
    /// The target died or hung. Counts as a failure of every clause of the case.
    Lost(String),
    /// The target lacks something. Counts as a failure if the target's profile claims it.
    NotApplicable(Absent),
}

/// A case's result; a pass carries what is worth recording, such as which of two readings was seen.
pub type Judged = Result<String, Stop>;

impl From<BusError> for Stop {
    fn from(error: BusError) -> Self {
        if matches!(error, BusError::Unreachable { .. }) {
            return Self::Lost(error.to_string());
        }
        Self::Fail(Failure {
            clauses: Vec::new(),
            saw: error.to_string(),
            wants: "every access to be carried out".to_owned(),
        })
    }
}

impl From<MemoryError> for Stop {
    fn from(error: MemoryError) -> Self {
        Self::Inconclusive(format!("the case left its memory: {error}"))
    }
}

/// One clause, or several that demand the same outcome.
pub trait Clauses {
    /// Their ids.
    fn ids(self) -> Vec<&'static str>;
}

impl Clauses for &'static str {
    fn ids(self) -> Vec<&'static str> {
        vec![self]
    }
}

impl<const N: usize> Clauses for [&'static str; N] {
    fn ids(self) -> Vec<&'static str> {
        self.to_vec()
    }
}

impl Clauses for &[&'static str] {
    fn ids(self) -> Vec<&'static str> {
        self.to_vec()
    }
}

/// The outcome that clauses demand.
///
/// # Errors
/// [`Stop::Fail`] if `kept` is false.
pub fn demand(
    clauses: impl Clauses,
    kept: bool,
    wants: &str,
    saw: impl FnOnce() -> String,
) -> Result<(), Stop> {
    if kept {
        KEPT.with_borrow_mut(|all| {
            if all.last().is_none_or(|last| last != wants) {
                all.push(wants.to_owned());
            }
        });
        return Ok(());
    }
    Err(Stop::Fail(Failure {
        clauses: clauses.ids(),
        saw: saw(),
        wants: wants.to_owned(),
    }))
}

/// The situation that a clause speaks of.
///
/// # Errors
/// [`Stop::Inconclusive`] if it did not arise.
pub fn arose(situation: bool, what: impl FnOnce() -> String) -> Result<(), Stop> {
    if situation {
        Ok(())
    } else {
        Err(Stop::Inconclusive(what()))
    }
}
