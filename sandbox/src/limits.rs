//! How many descriptors a process may hold.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;

/// What a process needs besides its clients: standard streams, log, signals, disk, listeners.
const OWN: u64 = 128;
/// What one device and its client may hold: 64 queues with three events each, an interrupt vector for
/// each, 509 regions of memory, rings, and a message's own.
const DEVICE: u64 = 1024;

/// Descriptors for so many devices, each with its client.
pub fn descriptors(devices: usize) -> u64 {
    OWN.saturating_add(DEVICE.saturating_mul(count(devices)))
}

/// Descriptors of a mediator: a client, the device behind it, and during a move the next one.
pub fn mediator_descriptors() -> u64 {
    descriptors(3)
}

/// Descriptors of an agent: its devices, and connections, which each may ask a guest's process.
pub fn agent_descriptors(devices: usize, connections: usize) -> u64 {
    descriptors(devices).saturating_add(count(connections).saturating_mul(2))
}

fn count(things: usize) -> u64 {
    u64::try_from(things).unwrap_or(u64::MAX)
}

/// Sets the most descriptors to `most`, for good, or to what was the most if that is less.
pub(crate) fn lower_descriptors(most: u64) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile).maximum;
    let limit = Some(limit.map_or(most, |limit| limit.min(most)));
    let limits = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(Resource::Nofile, limits)?;
    Ok(())
}
