//! An emulated virtio-pci function that knows every page it writes.
//!
//! [`function::PciFunction`] is the whole: it takes register accesses as calls, guest memory as files
//! ([`dma::Dma::map`]) and a sink for its interrupts. [`blk`] and [`rng`] are what it can be;
//! [`virtio::VirtioDevice`] is what something else has to implement. [`serve`] has front doors for those who
//! are not in this process. What a driver does to a device's life is [`status`], one pure function; where
//! writes are marked is [`tracker`].
//!
//! ```
//! use device::function::{FunctionConfig, PciFunction};
//! use device::rng::RngDevice;
//!
//! let function = PciFunction::new(FunctionConfig::default(), RngDevice::seeded(1));
//! let mut vendor = [0; 2];
//! function.config_read(0, &mut vendor);
//! assert_eq!(u16::from_le_bytes(vendor), 0x1af4);
//! ```

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
