//! Moving a guest: what a guest must offer, the stream it travels in, and pre-copy.
//!
//! Nothing here knows what a device is: memory, device states and dirty sources come from the
//! [`Guest`] that moves, and go to the [`Incoming`] that it becomes.

#![forbid(unsafe_code)]

pub mod agent;
mod cancel;
pub mod checkpoint;
mod error;
pub mod faults;
mod guest;
pub mod lock;
pub mod names;
pub mod observe;
pub mod pace;
pub mod policy;
pub mod precopy;
pub mod receive;
pub mod report;
pub mod store;
pub mod stream;
pub mod tls;
pub mod transport;
mod zero;

pub use cancel::Cancel;
pub use error::{GuestError, MigrationError};
pub use guest::{DeviceRecord, Guest, Incoming, NamedSource, Paused};
