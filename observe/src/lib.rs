//! What people and their tools see of a device that runs: metrics for Prometheus, and a live view.

#![forbid(unsafe_code)]

pub mod metrics;
pub mod watch;
