//! What a pair needs of its guest, on either side.

use crate::error::GuestError;
use crate::guest::{DeviceRecord, Guest};
use driver::dirty::DirtySet;
use driver::memory::DmaMemory;

/// A guest whose output is held until a secondary knows of what it came from.
///
/// While it is held, [`Guest::save`] puts the output since the last checkpoint into the devices'
/// states, and [`Guest::pause`] lets whatever waits in a device for its output come to an end: the
/// guest sees nothing of that before it runs again.
pub trait Protected: Guest {
    /// Holds output from now on; what is held already stays held.
    fn hold(&mut self) -> Result<(), GuestError>;
    /// Whether the guest is told anything at once when it goes on that is true only when the last
    /// checkpoint is whole. If not, it goes on as soon as everything has been set aside. Only while
    /// paused.
    fn owes(&self) -> bool;
    /// The last checkpoint is whole: makes true what the guest is told at once when it goes on, such
    /// as that its writes are durable. Only while paused.
    fn make_true(&mut self) -> Result<(), GuestError>;
    /// Lets the output go that the last [`Guest::save`] told of. The guest may run.
    fn release(&mut self) -> Result<(), GuestError>;
    /// Lets everything go, and holds nothing any more: there is no secondary.
    fn let_out(&mut self) -> Result<(), GuestError>;
}

/// The place where a guest's last whole checkpoint is kept.
pub trait Standby {
    /// Makes room for the guest that `description` describes. Untrusted. What was there is gone.
    fn prepare(&mut self, description: &[u8]) -> Result<(), GuestError>;
    /// The memory that is to be that of the last whole checkpoint. Empty before
    /// [`prepare`](Standby::prepare).
    fn memory(&self) -> Vec<DmaMemory>;
    /// As much memory again, of which nobody else knows, if the guest runs here between
    /// checkpoints; none if nothing does.
    fn cache(&self) -> Result<Option<DmaMemory>, GuestError>;
    /// Stops whatever runs here, and adds the pages that were written here since the last
    /// [`load`](Standby::load) to `own`. Nothing writes the memory when it returns.
    fn stop(&mut self, own: &mut DirtySet) -> Result<(), GuestError>;
    /// The memory is that of a checkpoint; takes the devices' states, untrusted, and the output
    /// among them.
    fn load(&mut self, records: &[DeviceRecord]) -> Result<(), GuestError>;
    /// The primary has been told; what is not urgent can be done now.
    fn settle(&mut self) -> Result<(), GuestError>;
    /// Runs the guest from the last checkpoint, which the memory holds: the output that the
    /// primary may not have let go any more goes out first.
    fn take_over(&mut self) -> Result<(), GuestError>;
}
