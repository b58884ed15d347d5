//! The side that drives a virtio-pci function.
//!
//! Everything here acts through a [`bus::Bus`], so the same code runs over an emulated function in
//! this process, a vfio-user socket or a real device behind VFIO.

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
