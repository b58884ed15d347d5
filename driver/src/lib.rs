//! The side that drives a virtio-pci function.
//!
//! Everything here acts through a [`bus::Bus`], so the same code runs over an emulated function in
//! this process, a vfio-user socket or a real device behind VFIO. [`Transport`] finds and starts a
//! device, [`queue`] and [`blk`] talk to it, [`mod@suspend`] stops it, [`state`] and [`parts`] take its state
//! along. Who knows which pages it wrote is a [`dirty::DirtySource`], and reports into a set of pages:
//!
//! ```
//! use driver::dirty::DirtySet;
//!
//! let mut dirty = DirtySet::new(1024);
//! dirty.insert_bytes(0x1ff0, 0x20); // across a border
//! assert_eq!(dirty.iter().collect::<Vec<_>>(), [1, 2]);
//! ```

#![deny(unsafe_code)]

pub mod admin;
pub mod blk;
pub mod bus;
pub mod dirty;
pub mod error;
pub mod memory;
pub mod parts;
pub mod queue;
pub mod sriov;
pub mod state;
pub mod suspend;
pub mod transport;
pub mod vhost_user;

pub use error::DriverError;
pub use transport::Transport;

#[cfg(test)]
mod testing;
