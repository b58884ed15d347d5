//! An emulated virtio-pci function that knows every page it writes.

#![deny(unsafe_code)]

mod admin;
pub mod blk;
pub mod dma;
pub mod engine;
pub mod function;
mod mapping;
pub mod pci;
mod pool;
pub mod queue;
pub mod rng;
pub mod serve;
pub mod status;
pub mod tracker;
pub mod transport;
pub mod virtio;
