//! What is judged, and how a case gets a fresh one.

mod emulated;
mod remote;
mod slow;
mod vhost_user;

pub use emulated::{Emulated, Medium, Seams};
pub use remote::{Address, Remote};

use crate::cases::Reach;
use crate::harness::{Absent, LIMIT, Stop};
use driver::bus::Bus;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// Which of a target's faces a case needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// As it comes.
    #[default]
    Plain,
    /// It does not offer SUSPEND.
    NoSuspend,
    /// It sets DEVICE_NEEDS_RESET instead of suspending.
    SuspendFails,
    /// It sets DEVICE_NEEDS_RESET instead of resuming.
    ResumeFails,
    /// It takes its time to suspend.
    SuspendDelayed,
    /// It raises `gra_power`.
    Coarse,
    /// It marks whole bytes.
    ByteMarking,
    /// It has the PASID capability, disabled.
    PasidDisabled,
    /// It has the PASID capability, enabled; its DMA carries [`DMA_PASID`].
    PasidEnabled,
    /// It has no tracker.
    NoTracker,
    /// It has administration queues and owns no other function.
    Admin,
    /// It has administration queues and owns other functions, as PCI's virtual functions.
    Owner,
    /// As [`Variant::Owner`], and its members take their time over everything.
    SlowMembers,
    /// As [`Variant::Owner`], and it holds 16 records of written pages only.
    FewRecords,
    /// As [`Variant::Owner`], with the opcodes of RESOURCE_OBJ_MODIFY and QUERY as they stand in the
    /// standard's table, where it comes with those of the prose.
    TableOpcodes,
}

/// The PASID of the DMA of a [`Variant::PasidEnabled`] function.
pub const DMA_PASID: u32 = 0x5_4321;

/// One fresh function: powered on, nobody has touched it.
pub struct Subject {
    /// The way to it.
    pub bus: Arc<dyn Bus>,
    /// Makes the device change its configuration by itself.
    pub change_config: Option<Box<dyn Fn()>>,
    /// The functions that it owns, from number 1 on, as their own drivers reach them; none where
    /// nobody but the target's driver does.
    pub members: Vec<Subject>,
    /// How long it may take for anything that it must do: [`crate::harness::LIMIT`], or less where
    /// it is known to be quick.
    pub limit: Duration,
}

impl Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject")
            .field("bus", &self.bus)
            .finish_non_exhaustive()
    }
}

/// Something that can be judged.
pub trait Target: Send + Sync + Debug {
    /// What it is called in reports.
    fn name(&self) -> String;
    /// Makes a function.
    ///
    /// # Errors
    /// [`Stop::NotApplicable`] if the target has no such variant, or the bus's error.
    fn fresh(&self, want: Variant) -> Result<Subject, Stop>;
    /// Whether the target is said to have this. If it lacks it nevertheless, that is a failure.
    fn claims(&self, what: Absent) -> bool;
    /// How long it may take for anything that it must do.
    fn limit(&self) -> Duration {
        LIMIT
    }
    /// What of it can be reached.
    fn reach(&self) -> Reach {
        Reach::Function
    }
    /// Whether its medium may be written.
    fn may_write(&self) -> bool {
        true
    }
    /// Makes it usable again after it died or hung.
    ///
    /// # Errors
    /// Why that cannot be done.
    fn revive(&self) -> Result<(), String> {
        Ok(())
    }
}
