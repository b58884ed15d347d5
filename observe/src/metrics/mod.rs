//! Metrics for Prometheus, on a Unix socket: `GET /metrics` in the text format 0.0.4.
//!
//! Nothing is counted for the sake of this: every figure is one that the device keeps anyhow, and is
//! read when somebody asks. Whoever asks may be slow or hostile: one caller is served at a time, on
//! a thread of its own, with no lock of the device held while anything is read or written.

mod doors;
mod families;
mod mediator;
mod process;
mod server;
#[cfg(test)]
mod strict;
#[cfg(test)]
mod tests;

pub use doors::{FunctionSource, VhostUserSource};
pub use families::{Families, Kind};
pub use mediator::MediatorSource;
pub use process::Process;
pub use server::{MetricsError, MetricsServer, MetricsSocket};

/// Somebody who has figures to tell.
pub trait Source: Send {
    /// Adds them as they are now.
    fn collect(&self, families: &mut Families);
}
