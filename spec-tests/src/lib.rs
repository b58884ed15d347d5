//! Judges a virtio-pci function, clause by clause.
//!
//! [`clause`] is the registry: what is demanded, by whom, and with what authority. [`cases`] holds
//! what is done to find out. A case acts through `driver::bus::Bus` alone; its constants
//! ([`constants`]), its capability walk and its rings ([`harness`]) are typed again from the text,
//! so that an error in `spec` or `driver` cannot hide an error of the device.
//!
//! A pass needs evidence: a case first shows that the situation of which the clause speaks arose.
//! If it did not, the verdict is inconclusive, which counts as a failure.

#![forbid(unsafe_code)]

pub mod cases;
pub mod clause;
pub mod constants;
pub mod harness;
pub mod run;
pub mod target;
