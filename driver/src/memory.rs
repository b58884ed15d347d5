//! Memory that a driver shares with its device.

use std::fmt::Debug;

/// Told of every store a driver makes into guest memory, after the store has been made.
///
/// An emulated guest's CPU is its driver and its workload: this is its dirty log.
pub trait WriteLog: Send + Sync + Debug {
    /// `len` bytes at `iova` have been stored.
    fn wrote(&self, iova: u64, len: u64);
}

/// A window of memory that both the driver and the device reach.
#[derive(Clone, Debug)]
pub struct DmaMemory {}
