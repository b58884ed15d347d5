//! An emulated virtio-pci function that knows every page it writes.

#![deny(unsafe_code)]

pub mod blk;
pub mod dma;
pub mod engine;
mod pool;
pub mod queue;
pub mod rng;
pub mod pci;
pub mod queue;
pub mod status;
pub mod tracker;
pub mod transport;
pub mod virtio;
