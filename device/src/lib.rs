//! An emulated virtio-pci function that knows every page it writes.

#![deny(unsafe_code)]

pub mod dma;
pub mod engine;
pub mod function;
pub mod pci;
pub mod queue;
pub mod status;
pub mod tracker;
pub mod transport;
pub mod virtio;
