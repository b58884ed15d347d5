//! Checkpoints of a running guest, and who runs it when one side is gone.
//!
//! Two sides, a primary that runs the guest and a secondary that holds its last whole checkpoint,
//! speak QEMU's COLO protocol ([`message`], [`order`]). What it carries is Xen's stream: the initial
//! copy, then for every checkpoint one epoch, its memory between SEND and SIZE as QEMU has it and
//! its device state counted by SIZE.
//!
//! Without more these are *periodic checkpoints*: one is made when a timer or a caller says so. With a
//! [comparison](compare) of the outputs of both sides one is also made when they differ.

mod aside;
pub mod checker;
pub mod compare;
mod control;
mod error;
pub mod failover;
mod guest;
pub mod link;
pub mod message;
pub mod order;
mod primary;
mod secondary;

pub use compare::{Comparison, Digest, Output, Reporter, Witness};
pub use control::Control;
pub use error::CheckpointError;
pub use failover::{Begun, Failover, FailoverError};
pub use guest::{Protected, Standby};
pub use link::{Completed, HangUp, Line, Switch};
pub use message::{Kind, Message, Side};
pub use order::{ProtocolError, Step};
pub use primary::{EpochReport, Primary, Survived};
pub use secondary::{Kept, Secondary};
