//! An emulated virtio-pci function that knows every page it writes.

#![deny(unsafe_code)]

pub mod dma;
pub mod engine;
pub mod queue;
pub mod tracker;
pub mod virtio;
