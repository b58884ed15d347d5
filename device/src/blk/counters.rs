//! What a block device has done, for people and for metrics.

use super::request::Op;
use crossbeam_utils::CachePadded;
use spec::blk::status;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a block device has done since it was opened. Requests are counted when they complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlkStats {
    /// Reads that succeeded.
    pub reads: u64,
    /// Writes, DISCARDs and WRITE_ZEROES that succeeded.
    pub writes: u64,
    /// FLUSHes that succeeded.
    pub flushes: u64,
    /// Requests of any kind answered with another status than OK.
    pub errors: u64,
    /// Bytes that reads gave to the driver.
    pub bytes_read: u64,
    /// Bytes that writes took from the driver. DISCARD and WRITE_ZEROES carry none.
    pub bytes_written: u64,
}

/// How many requests of one kind were answered in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestCount {
    /// `read`, `write`, `flush`, `discard`, `write_zeroes`, `get_id`; `refused` is a request that
    /// was not carried out, of whatever kind.
    pub kind: &'static str,
    /// `ok`, `ioerr`, `unsupp`: the status byte's names in VIRTIO 1.4, "Block Device / Device
    /// Operation".
    pub result: &'static str,
    /// How many.
    pub count: u64,
}

/// What one request queue does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueActivity {
    /// Requests popped and not answered yet; those still in the available ring are not among them.
    pub in_flight: u64,
    /// Requests answered since the device was opened.
    pub answered: u64,
}

const KINDS: [&str; 7] = [
    "read",
    "write",
    "flush",
    "discard",
    "write_zeroes",
    "get_id",
    "refused",
];
const RESULTS: [&str; 3] = ["ok", "ioerr", "unsupp"];

const READ: usize = 0;
const WRITE: usize = 1;
const FLUSH: usize = 2;
const DISCARD: usize = 3;
const WRITE_ZEROES: usize = 4;

/// One add for each request, and one for the bytes of those that carry some.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// By kind, then result.
    requests: [[AtomicU64; RESULTS.len()]; KINDS.len()],
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Counters {
    pub(super) fn count(&self, op: &Op, status: u8) {
        let kind = match op {
            Op::Read(_) => READ,
            Op::Write(_) => WRITE,
            Op::Flush => FLUSH,
            Op::Discard(_) => DISCARD,
            Op::WriteZeroes(_) => WRITE_ZEROES,
            Op::GetId => 5,
            Op::Refuse(_) => 6,
        };
        let result = match status {
            status::OK => 0,
            status::UNSUPP => 2,
            _ => 1,
        };
        self.requests[kind][result].fetch_add(1, Relaxed);
        match op {
            Op::Read(extent) if status == status::OK => {
                self.bytes_read.fetch_add(extent.len, Relaxed);
            }
            Op::Write(extent) if status == status::OK => {
                self.bytes_written.fetch_add(extent.len, Relaxed);
            }
            _ => {}
        }
    }

    pub(super) fn stats(&self) -> BlkStats {
        let ok = |kind: usize| self.requests[kind][0].load(Relaxed);
        let failed = |results: &[AtomicU64; RESULTS.len()]| {
            let failed = results.iter().skip(1);
            failed.map(|count| count.load(Relaxed)).sum::<u64>()
        };
        BlkStats {
            reads: ok(READ),
            writes: ok(WRITE) + ok(DISCARD) + ok(WRITE_ZEROES),
            flushes: ok(FLUSH),
            errors: self.requests.iter().map(failed).sum(),
            bytes_read: self.bytes_read.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
        }
    }

    pub(super) fn requests(&self) -> Vec<RequestCount> {
        let mut counts = Vec::with_capacity(KINDS.len() * RESULTS.len());
        for (kind, results) in KINDS.iter().zip(&self.requests) {
            for (result, count) in RESULTS.iter().zip(results) {
                let count = count.load(Relaxed);
                counts.push(RequestCount {
                    kind,
                    result,
                    count,
                });
            }
        }
        counts
    }
}

/// What each queue does: told once for each batch of requests, by the one worker that has the queue.
#[derive(Debug)]
pub(super) struct Activities(Box<[CachePadded<Activity>]>);

#[derive(Debug, Default)]
pub(super) struct Activity {
    in_flight: AtomicU64,
    answered: AtomicU64,
}

impl Activities {
    pub(super) fn new(queues: u16) -> Self {
        Self((0..queues).map(|_| CachePadded::default()).collect())
    }

    pub(super) fn queue(&self, index: u16) -> Option<&Activity> {
        self.0.get(usize::from(index)).map(|padded| &**padded)
    }

    pub(super) fn all(&self) -> Vec<QueueActivity> {
        let shown = |activity: &CachePadded<Activity>| QueueActivity {
            in_flight: activity.in_flight.load(Relaxed),
            answered: activity.answered.load(Relaxed),
        };
        self.0.iter().map(shown).collect()
    }
}

impl Activity {
    pub(super) fn in_flight(&self, requests: usize) {
        self.in_flight.store(to_u64(requests), Relaxed);
    }

    pub(super) fn answered(&self, requests: usize) {
        self.answered.fetch_add(to_u64(requests), Relaxed);
    }
}

/// `usize` is never wider than 64 bits where Linux runs.
fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
