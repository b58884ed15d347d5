//! Every request: submitted once, completed once, over the move.

use crate::error::VmError;
use crate::guest::Shape;
use crate::guest::journal::{Event, Journal, read};
use serde::Serialize;
use std::path::Path;

/// What the journals say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RequestVerdict {
    /// Requests submitted, on either side.
    pub submitted: u64,
    /// Of those, completed at least once.
    pub completed: u64,
    /// Submitted by the source and completed at the destination.
    pub moved: u64,
    /// Submitted and never completed.
    pub lost: u64,
    /// Completed or submitted more than once, or completed and never submitted.
    pub doubled: u64,
    /// Completed with an error of the device.
    pub failed: u64,
    /// Reads that did not return what was written last.
    pub corrupt: u64,
    /// Reads that were checked.
    pub reads: u64,
}

impl RequestVerdict {
    /// Whether every request was carried out exactly once, and right.
    pub fn clean(&self) -> bool {
        self.lost + self.doubled + self.failed + self.corrupt == 0 && self.submitted > 0
    }
}

/// The last acknowledged write of every block of every device: sequence numbers, 0 for none.
#[derive(Clone, Debug, Default)]
pub struct LastWrites(pub Vec<Vec<u32>>);

#[derive(Clone, Copy, Default)]
struct Seen {
    submitted: u8,
    completed: u8,
    by_source: bool,
    write: bool,
}

/// Reads the journals of the given sides, in the order in which they ran the guest.
///
/// # Errors
/// [`VmError::File`] if a journal is missing or none.
pub fn judge_requests(
    shape: &Shape,
    folder: &Path,
    sides: &[&str],
) -> Result<(RequestVerdict, LastWrites), VmError> {
    let mut verdict = RequestVerdict::default();
    let blocks = usize::try_from(shape.blocks).unwrap_or(usize::MAX);
    let mut last = LastWrites(vec![vec![0; blocks]; usize::from(shape.devices)]);
    let queues = u64::from(shape.queues);
    for vcpu in 0..u64::from(shape.devices) * queues {
        let disk = usize::try_from(vcpu / queues).unwrap_or(usize::MAX);
        let mut seen: Vec<Seen> = Vec::new();
        for (turn, side) in sides.iter().enumerate() {
            read(&Journal::path(folder, side, vcpu), |entry| {
                let Ok(index) = usize::try_from(entry.id) else {
                    verdict.doubled += 1;
                    return;
                };
                // Ids count from 0: one far beyond the number of lines is no id.
                if index > seen.len() {
                    verdict.lost += 1;
                    return;
                }
                if index == seen.len() {
                    seen.push(Seen::default());
                }
                let Some(request) = seen.get_mut(index) else {
                    return;
                };
                match entry.event {
                    Event::ReadSubmitted | Event::WriteSubmitted => {
                        request.submitted = request.submitted.saturating_add(1);
                        request.by_source = turn == 0;
                        request.write = entry.event == Event::WriteSubmitted;
                        return;
                    }
                    Event::Completed => {}
                    Event::Failed => verdict.failed += 1,
                    Event::Corrupt => verdict.corrupt += 1,
                }
                request.completed = request.completed.saturating_add(1);
                verdict.moved += u64::from(turn > 0 && request.by_source);
                verdict.reads += u64::from(!request.write);
                let block = usize::try_from(entry.block).unwrap_or(usize::MAX);
                let slot = last.0.get_mut(disk).and_then(|disk| disk.get_mut(block));
                if let (Some(slot), true, Event::Completed) = (slot, request.write, entry.event) {
                    *slot = entry.sequence;
                }
            })?;
        }
        for request in &seen {
            verdict.submitted += u64::from(request.submitted > 0);
            verdict.completed += u64::from(request.completed > 0);
            verdict.lost += u64::from(request.submitted > 0 && request.completed == 0);
            let once = request.submitted == 1 && request.completed <= 1;
            verdict.doubled += u64::from(!once);
        }
    }
    Ok((verdict, last))
}
