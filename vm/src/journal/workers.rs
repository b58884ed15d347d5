//! The requests: as many threads as there shall be requests in flight, one request each at a time.

use super::arena::{Pool, pages};
use super::ledger::Ledger;
use super::report::Report;
use super::sector::{SECTOR_BYTES, Stamp};
use super::{Disk, Options, Shape};
use crate::error::VmError;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Everything that the threads share.
struct Shared<'a> {
    disk: &'a dyn Disk,
    options: &'a Options,
    shape: Shape,
    ledger: &'a Mutex<Ledger>,
    pool: Pool<'a>,
    stop: &'a AtomicBool,
    progress: &'a (dyn Fn(u64) + Sync),
    began: Instant,
    /// Requests that somebody has taken on.
    begun: AtomicU64,
    in_flight: AtomicU64,
    max_in_flight: AtomicU64,
    requests: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    failed: AtomicU64,
    longest: Mutex<Duration>,
}

/// Works until the bound is reached or `stop` is set; returns when every request is answered.
pub(super) fn work(
    disk: &dyn Disk,
    options: &Options,
    shape: Shape,
    ledger: &Mutex<Ledger>,
    stop: &AtomicBool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Report, VmError> {
    let needed = options.depth * shape.block.next_multiple_of(4096);
    let wanted = usize::try_from(options.arena)
        .map_err(|_| VmError::shape("bytes of the arena", "less than that", options.arena))?;
    if wanted != 0 && wanted < needed {
        let expected = format!("at least {needed}, for the requests in flight");
        return Err(VmError::shape("bytes of the arena", expected, wanted));
    }
    let mut arena = pages(wanted.max(needed));
    let shared = Shared {
        disk,
        options,
        shape,
        ledger,
        pool: Pool::new(&mut arena, shape.block, options.seed),
        stop,
        progress,
        began: Instant::now(),
        begun: AtomicU64::new(0),
        in_flight: AtomicU64::new(0),
        max_in_flight: AtomicU64::new(0),
        requests: AtomicU64::new(0),
        reads: AtomicU64::new(0),
        writes: AtomicU64::new(0),
        flushes: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        longest: Mutex::new(Duration::ZERO),
    };
    thread::scope(|scope| {
        for _ in 0..options.depth {
            scope.spawn(|| shared.worker());
        }
    });
    let longest = *shared
        .longest
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    Ok(Report {
        requests: shared.requests.into_inner(),
        reads: shared.reads.into_inner(),
        writes: shared.writes.into_inner(),
        flushes: shared.flushes.into_inner(),
        max_in_flight: shared.max_in_flight.into_inner(),
        longest_ms: longest.as_secs_f64() * 1e3,
        seconds: shared.began.elapsed().as_secs_f64(),
        failed: shared.failed.into_inner(),
        ..Report::default()
    })
}

impl Shared<'_> {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker(&self) {
        let mut page = pages(self.shape.block);
        let own = page.as_mut_bytes().get_mut(..self.shape.block);
        let own = own.unwrap_or_default();
        while let Some(number) = self.next() {
            let every = self.options.flush_every;
            let random = self.ledger().random() % 100;
            if every != 0 && number % every == every - 1 {
                self.request(&self.flushes, || self.disk.flush());
            } else if random < u64::from(self.options.writes_percent) {
                self.write(own);
            } else {
                self.read();
            }
            let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
            let every = self.options.progress;
            if every != 0 && requests.is_multiple_of(every) {
                (self.progress)(requests);
            }
        }
    }

    /// The number of the next request, if there shall be one.
    fn next(&self) -> Option<u64> {
        let late = |time| self.began.elapsed() >= time;
        if self.stop.load(Ordering::Relaxed) || self.options.time.is_some_and(late) {
            return None;
        }
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        match self.options.requests {
            Some(most) if number >= most => None,
            _ => Some(number),
        }
    }

    /// Claims and judgement belong to the ledger; between the two nobody holds it.
    fn write(&self, data: &mut [u8]) {
        let Some((at, sequence)) = self.ledger().begin_write() else {
            return;
        };
        let sectors = self.shape.block / SECTOR_BYTES;
        let first = (at * sectors) as u64;
        for (sector, bytes) in (first..).zip(data.chunks_exact_mut(SECTOR_BYTES)) {
            Stamp {
                seed: self.options.seed,
                sector,
                sequence,
            }
            .fill(bytes);
        }
        let offset = (at * self.shape.block) as u64;
        let done = self.request(&self.writes, || self.disk.write(offset, data));
        self.ledger().end_write(at, done);
    }

    fn read(&self) {
        // There are as many buffers as threads, at least.
        let Some(buffer) = self.pool.take() else {
            return;
        };
        let claimed = self.ledger().begin_read();
        if let Some(at) = claimed {
            let offset = (at * self.shape.block) as u64;
            let done = self.request(&self.reads, || self.disk.read(offset, buffer));
            self.ledger().end_read(at, done.then_some(&*buffer));
        }
        self.pool.give(buffer);
    }

    /// One request, counted; whether it succeeded.
    fn request(&self, kind: &AtomicU64, request: impl FnOnce() -> io::Result<()>) -> bool {
        let begin = Instant::now();
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.max_in_flight.fetch_max(now, Ordering::Relaxed);
        let result = request();
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let took = begin.elapsed();
        let mut longest = self.longest.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = took.max(*longest);
        drop(longest);
        kind.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(()) => true,
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "a request failed");
                false
            }
        }
    }
}
