//! How a case ends.

use driver::bus::BusError;
use driver::memory::MemoryError;

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
}

/// A clause that was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which clause; none if the way to the function or the function itself broke.
    pub clause: Option<&'static str>,
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
    /// The target lacks something. Counts as a failure if the target's profile claims it.
    NotApplicable(Absent),
}

/// A case's result; a pass carries what is worth recording, such as which of two readings was seen.
pub type Judged = Result<String, Stop>;

impl From<BusError> for Stop {
    fn from(error: BusError) -> Self {
        Self::Fail(Failure {
            clause: None,
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

/// The outcome that a clause demands.
///
/// # Errors
/// [`Stop::Fail`] if `kept` is false.
pub fn demand(
    clause: &'static str,
    kept: bool,
    wants: &str,
    saw: impl FnOnce() -> String,
) -> Result<(), Stop> {
    if kept {
        return Ok(());
    }
    Err(Stop::Fail(Failure {
        clause: Some(clause),
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
