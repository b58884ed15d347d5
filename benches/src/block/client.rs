//! A driver that keeps a device busy at a fixed depth.

use super::content::{BLOCK, Expected};
use crate::memory::Random;
use driver::blk::{BlkQueue, Outcome};
use driver::bus::Interrupt;
use driver::dirty::DirtySet;
use driver::memory::DmaMemory;
use driver::queue::SplitQueue;
use driver::vhost_user::{Frontend, QueueEvents, SharedMemory};
use spec::blk::BlkFeatures;
use spec::features::Features;
use std::time::{Duration, Instant};

/// Requests in flight.
pub const DEPTH: u32 = 32;
const QUEUE_SIZE: u16 = 128;
/// Pages that data is read into: many, so that marks are spread as a guest spreads them.
const PAGES: u32 = 1 << 14;
const MEMORY: u64 = 128 << 20;
const AREA_AT: u64 = 1 << 20;
const DATA_AT: u64 = 64 << 20;
/// After so many requests the log is harvested, where it is on.
const HARVEST_EVERY: u32 = 4096;
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a round does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Random reads, every byte compared with what it must be.
    Read,
    /// Random writes. The flush that follows them is not in the time.
    Write,
}

/// One started queue of a device.
#[derive(Debug)]
pub struct Client {
    frontend: Frontend,
    queue: BlkQueue,
    events: QueueEvents,
    data: DmaMemory,
    random: Random,
    /// What the last round found in the log.
    dirty: DirtySet,
    /// Pages that the last round had the device write data to.
    touched: DirtySet,
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Client {
    /// Starts one queue.
    ///
    /// # Errors
    /// A sentence of what failed.
    pub fn new(mut frontend: Frontend) -> Result<Self, String> {
        let blk = BlkFeatures::FLUSH | BlkFeatures::BLK_SIZE | BlkFeatures::SEG_MAX;
        let wanted = Features::RING_EVENT_IDX | Features::RING_INDIRECT_DESC;
        let needed = Features::VERSION_1 | Features::from_bits_retain(blk.bits());
        let features = frontend.negotiate(wanted, needed).map_err(told)?;
        let memory = SharedMemory::new(0, MEMORY).map_err(told)?;
        frontend.share(&[&memory]).map_err(told)?;
        let part = |at, len| memory.window().slice(at, len).map_err(told);
        let ring = part(4096, SplitQueue::bytes_needed(QUEUE_SIZE))?;
        let ring = SplitQueue::new(ring, QUEUE_SIZE, features).map_err(told)?;
        let events = frontend.start_queue(0, ring.setup(0), 0).map_err(told)?;
        let area = part(AREA_AT, BlkQueue::area_needed(QUEUE_SIZE))?;
        let data = part(DATA_AT, u64::from(PAGES) * 4096)?;
        // Present, so that no round pays for the first touch.
        for page in 0..PAGES {
            data.write(u64::from(page) * 4096, &[1; BLOCK])
                .map_err(told)?;
        }
        let pages = MEMORY / 4096;
        Ok(Self {
            frontend,
            queue: BlkQueue::new(ring, area),
            events,
            data,
            random: Random(1),
            dirty: DirtySet::new(pages),
            touched: DirtySet::new(pages),
        })
    }

    /// Switches the dirty log.
    ///
    /// # Errors
    /// A sentence of what failed.
    pub fn log(&mut self, on: bool) -> Result<(), String> {
        if on {
            self.frontend.start_log().map_err(told)
        } else {
            self.frontend.stop_log().map_err(told)
        }
    }

    /// Pages that the last round's reads were stored in.
    pub fn touched(&self) -> u64 {
        self.touched.count()
    }

    /// How many of them were not in the log.
    pub fn unlogged(&self) -> u64 {
        self.touched.difference(&self.dirty).count()
    }

    /// Does `requests` requests, [`DEPTH`] at a time, and a flush; returns the time without the
    /// flush.
    ///
    /// # Errors
    /// A sentence of what failed, or was read wrong.
    pub fn round(
        &mut self,
        work: Work,
        requests: u32,
        expected: &mut Expected,
    ) -> Result<Duration, String> {
        self.dirty.clear();
        self.touched.clear();
        let began = Instant::now();
        let (mut sent, mut done) = (0, 0);
        while sent < DEPTH.min(requests) {
            self.send(work, sent, expected)?;
            sent += 1;
        }
        self.publish()?;
        while done < requests {
            let before = done;
            while let Some((slot, block, page)) = self.reap(&mut done)? {
                if work == Work::Read {
                    self.check(block, page, expected)?;
                }
                if sent < requests {
                    self.send(work, slot, expected)?;
                    sent += 1;
                }
            }
            if done == before {
                self.sleep()?;
                continue;
            }
            self.publish()?;
            if self.frontend.is_logging() && before / HARVEST_EVERY != done / HARVEST_EVERY {
                self.frontend.harvest_log(&mut self.dirty).map_err(told)?;
            }
        }
        let time = began.elapsed();
        self.flush()?;
        if self.frontend.is_logging() {
            self.frontend.harvest_log(&mut self.dirty).map_err(told)?;
        }
        Ok(time)
    }

    /// Submits a request in slot `slot`, at a block that no other slot uses.
    fn send(&mut self, work: Work, slot: u32, expected: &mut Expected) -> Result<(), String> {
        let random = self.random.next().unwrap_or_default();
        let [low, high] =
            [random, random >> 32].map(|half| u32::try_from(half & 0xffff_ffff).unwrap_or(0));
        let block = low % (expected.blocks() / DEPTH) * DEPTH + slot;
        let page = high % (PAGES / DEPTH) * DEPTH + slot;
        let offset = u64::from(page) * 4096;
        let buffer = [(self.data.iova() + offset, 4096)];
        let token = u64::from(block) << 32 | u64::from(page);
        let sector = u64::from(block) * 8;
        match work {
            Work::Read => self.queue.read(sector, &buffer, token).map_err(told),
            Work::Write => {
                let mut data = [0; BLOCK];
                expected.write(block, &mut data);
                self.data.write(offset, &data).map_err(told)?;
                self.queue.write(sector, &buffer, token).map_err(told)
            }
        }
    }

    /// The next request that is done: its slot, block and page.
    fn reap(&mut self, done: &mut u32) -> Result<Option<(u32, u32, u32)>, String> {
        let Some(completion) = self.queue.complete().map_err(told)? else {
            return Ok(None);
        };
        if completion.outcome != Outcome::Ok {
            return Err(format!("a request failed: {completion:?}"));
        }
        *done += 1;
        let [block, page] = [completion.token >> 32, completion.token & 0xffff_ffff]
            .map(|half| u32::try_from(half).unwrap_or(0));
        Ok(Some((block % DEPTH, block, page)))
    }

    fn check(&mut self, block: u32, page: u32, expected: &Expected) -> Result<(), String> {
        let mut data = [0; BLOCK];
        let offset = u64::from(page) * 4096;
        self.data.read(offset, &mut data).map_err(told)?;
        self.touched.insert((self.data.iova() + offset) / 4096);
        if expected.holds(block, &data) {
            Ok(())
        } else {
            Err(format!("block {block} was read wrong"))
        }
    }

    fn publish(&mut self) -> Result<(), String> {
        if self.queue.publish().map_err(told)? {
            self.events.kick().map_err(told)?;
        }
        Ok(())
    }

    fn sleep(&mut self) -> Result<(), String> {
        let ring = self.queue.ring_mut();
        if !ring.enable_interrupts().map_err(told)? && !self.events.wait(TIMEOUT) {
            return Err(format!("the device did nothing for {TIMEOUT:?}"));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        self.queue.flush(u64::MAX).map_err(told)?;
        self.publish()?;
        loop {
            match self.queue.complete().map_err(told)? {
                Some(completion) if completion.outcome == Outcome::Ok => return Ok(()),
                Some(completion) => return Err(format!("the flush failed: {completion:?}")),
                None => self.sleep()?,
            }
        }
    }
}
