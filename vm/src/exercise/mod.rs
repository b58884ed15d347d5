//! What `tidemark probe`, `suspend`, `queue-state` and `track` do with a device, whichever bus it is
//! on. Everything but the probe is for block devices, and takes the device over: nobody else may be
//! driving it.

mod handshake;
mod harvester;
mod load;
mod pages;
mod probe;
mod rig;
mod suspend;
#[cfg(test)]
mod tests;
mod track;

pub use handshake::Handshake;
pub use probe::{Capability, Probe, Tracker, names, probe};
pub use rig::Account;
pub use suspend::{Comeback, QueueReport, SuspendReport, Suspension, suspensions};
pub use track::{Moment, RoundReport, RoundStart, TrackOptions, TrackReport, Watcher, track};
