//! The requests of a round: reads into random pages, and writes from pages of their own.

use super::harvester::Harvester;
use super::pages::Pages;
use super::rig::Rig;
use super::suspend::{BIG, Comeback, Suspension, cycle};
use super::track::{Moment, RoundReport, TrackOptions, Watcher};
use crate::error::VmError;
use crate::guest::Walk;
use crate::guest::block::splitmix;
use driver::blk::Completion;
use driver::dirty::DirtySet;
use std::collections::HashMap;
use std::sync::mpsc::Sender;
use std::time::Instant;

/// Pages that belong together: a read goes into one such group, and only one read at a time.
const GROUP: u64 = BIG;
const SECTORS: u64 = 8;
/// How often a random group is looked for before the queue counts as full enough.
const TRIES: u32 = 32;

#[derive(Clone, Copy, Debug)]
struct Pending {
    write: bool,
    /// First page, counted from the start of the memory.
    page: u64,
    pages: u64,
    sector: u64,
}

#[derive(Debug)]
pub(super) struct Load<'a> {
    pages: &'a Pages,
    journal: Option<u64>,
    writes_percent: u8,
    /// Sectors that reads, and as many behind them that writes go to.
    reach: u64,
    random: u64,
    /// Over the groups.
    walk: Walk,
    round: u32,
    busy: Vec<bool>,
    pending: HashMap<u64, Pending>,
    written: DirtySet,
    requests: u64,
    reads: u64,
    bytes_read: u64,
    bytes_written: u64,
    wrong: u64,
    suspensions: Vec<Suspension>,
}

impl<'a> Load<'a> {
    /// Requests for a disk of `capacity` sectors.
    pub(super) fn new(
        pages: &'a Pages,
        options: &TrackOptions,
        capacity: u64,
    ) -> Result<Self, VmError> {
        let groups = pages.frames() / GROUP;
        if groups < 4 {
            let expected = format!("at least {}", 4 * GROUP);
            return Err(VmError::shape("pages", expected, pages.frames()));
        }
        let reach = match options.writes_percent {
            0 => capacity,
            _ => capacity / 2,
        };
        if reach < GROUP * SECTORS {
            let expected = format!("at least {}", 2 * GROUP * SECTORS);
            return Err(VmError::shape("sectors of the disk", expected, capacity));
        }
        Ok(Self {
            pages,
            journal: options.journal,
            writes_percent: options.writes_percent,
            reach,
            random: splitmix(options.seed),
            walk: Walk::new(options.pattern, groups, 0, options.seed)?,
            round: 0,
            busy: vec![false; usize::try_from(groups).unwrap_or(0)],
            pending: HashMap::new(),
            written: DirtySet::new(pages.count()),
            requests: 0,
            reads: 0,
            bytes_read: 0,
            bytes_written: 0,
            wrong: 0,
            suspensions: Vec::new(),
        })
    }

    /// Forgets the last round.
    pub(super) fn begin(&mut self, round: u32) {
        self.round = round;
        self.written.clear();
        (self.requests, self.reads, self.wrong) = (0, 0, 0);
        (self.bytes_read, self.bytes_written) = (0, 0);
        self.suspensions.clear();
    }

    /// The pages that reads have gone to in this round, counted from the first.
    pub(super) fn written(&self) -> &DirtySet {
        &self.written
    }

    /// What the round was.
    pub(super) fn report(&self, round: u32, seconds: f64) -> RoundReport {
        RoundReport {
            round,
            requests: self.requests,
            reads: self.reads,
            bytes_read: self.bytes_read,
            bytes_written: self.bytes_written,
            written: self.written.count(),
            harvested: 0,
            lost: 0,
            falsely_dirty: 0,
            harvests: 0,
            harvests_in_flight: 0,
            largest_harvest: 0,
            wrong: self.wrong,
            suspensions: self.suspensions.clone(),
            seconds,
        }
    }

    fn next(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        splitmix(self.random) % below.max(1)
    }

    /// How many pages of a group, from its first, are used in this round; the others are left
    /// alone, so that marks of pages next to those that are written show. On average it is half.
    fn used(&self, group: u64) -> u64 {
        splitmix(splitmix(group) ^ u64::from(self.round)) % (GROUP + 1)
    }

    /// Runs the round's requests. Tells `due` whenever a harvest is.
    pub(super) fn run(
        &mut self,
        rig: &mut Rig,
        harvester: &Harvester,
        options: &TrackOptions,
        due: &Sender<u64>,
        watcher: &mut dyn Watcher,
    ) -> Result<f64, VmError> {
        let begin = Instant::now();
        // The suspensions are spread over the round.
        let count = options.suspensions.len() as u64;
        let every = options.requests / (count + 1);
        let mut suspensions = options.suspensions.iter();
        let (mut completed, mut harvested) = (0, 0);
        while self.requests < options.requests || rig.in_flight() != 0 {
            self.fill(rig, options.requests, false)?;
            rig.ring()?;
            let done = self.suspensions.len() as u64;
            if done < count
                && self.requests >= every * (done + 1)
                && let Some(comeback) = suspensions.next()
            {
                completed += self.suspend(rig, harvester, options.requests, *comeback)?;
                if let Some(suspension) = self.suspensions.last() {
                    watcher.suspended(suspension);
                }
            }
            if completed - harvested >= options.harvest_every.max(1) {
                harvested = completed;
                // Now, when the device has just been given work. Who does not listen any more has
                // an error to tell.
                let _ = due.send(rig.in_flight());
                watcher.moves(&Moment {
                    round: self.round,
                    requests: self.requests,
                    queues: rig.sizes().zip(rig.waiting()).collect(),
                });
            }
            let reaped = self.reap(rig)?;
            if reaped == 0 {
                rig.wait()?;
            }
            completed += reaped;
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Waits until the device is idle, gives it as much as it takes at one stroke, and suspends it
    /// before it can be done; how many requests completed.
    fn suspend(
        &mut self,
        rig: &mut Rig,
        harvester: &Harvester,
        limit: u64,
        comeback: Comeback,
    ) -> Result<u64, VmError> {
        let mut completed = 0;
        while rig.in_flight() != 0 {
            rig.wait()?;
            completed += self.reap(rig)?;
        }
        self.fill(rig, limit, true)?;
        rig.ring()?;
        if self.suspensions.len() % 2 == 1 {
            // In the middle of its work; the other times before it has well begun.
            rig.wait()?;
            completed += self.reap(rig)?;
        }
        let mut meanwhile = harvester;
        let one = cycle(rig, comeback, &mut meanwhile, |done| self.complete(done))?;
        completed += one.drained;
        self.suspensions.push(one);
        Ok(completed)
    }

    /// Submits until `limit` is reached or no queue takes more.
    fn fill(&mut self, rig: &mut Rig, limit: u64, big: bool) -> Result<(), VmError> {
        let mut full = 0;
        while self.requests < limit && full < rig.queues() {
            let Some(pending) = self.choose(big) else {
                return Ok(());
            };
            let queue = self.next(rig.queues() as u64);
            let bytes = u32::try_from(pending.pages * 4096).unwrap_or(4096);
            let data = [(self.pages.address(pending.page), bytes)];
            let queue = usize::try_from(queue).unwrap_or(0);
            match rig.submit(queue, pending.write, pending.sector, &data)? {
                None => full += 1,
                Some(token) => {
                    if pending.write {
                        self.bytes_written += u64::from(bytes);
                    } else {
                        self.reads += 1;
                        self.bytes_read += u64::from(bytes);
                        self.set_busy(pending.page, true);
                        let pages = pending.page..pending.page + pending.pages;
                        self.written.insert_range(pages);
                    }
                    self.pending.insert(token, pending);
                    self.requests += 1;
                }
            }
        }
        Ok(())
    }

    fn set_busy(&mut self, page: u64, busy: bool) {
        let group = usize::try_from(page / GROUP).ok();
        if let Some(place) = group.and_then(|group| self.busy.get_mut(group)) {
            *place = busy;
        }
    }

    fn choose(&mut self, big: bool) -> Option<Pending> {
        let sectors = self.reach - GROUP * SECTORS;
        let sector = self.next(sectors / SECTORS + 1) * SECTORS;
        if !big && self.next(100) < u64::from(self.writes_percent) {
            let pages = 1 + self.next(4);
            let sources = self.pages.count() - self.pages.frames();
            return Some(Pending {
                write: true,
                page: self.pages.frames() + self.next(sources - pages + 1),
                pages,
                sector: self.reach + sector,
            });
        }
        for _ in 0..TRIES {
            let group = self.walk.step().frame;
            let index = usize::try_from(group).unwrap_or(0);
            let used = self.used(group);
            if used != 0 && self.busy.get(index) == Some(&false) {
                let pages = if big {
                    used
                } else {
                    1 + self.next(used.min(4))
                };
                return Some(Pending {
                    write: false,
                    page: group * GROUP + self.next(used - pages + 1),
                    pages,
                    sector,
                });
            }
        }
        None
    }

    fn reap(&mut self, rig: &mut Rig) -> Result<u64, VmError> {
        rig.reap(|done| self.complete(done))
    }

    fn complete(&mut self, done: &Completion) -> Result<(), VmError> {
        let Some(pending) = self.pending.remove(&done.token) else {
            return Ok(());
        };
        if !pending.write {
            self.set_busy(pending.page, false);
            if let Some(seed) = self.journal {
                let Pending {
                    page,
                    pages,
                    sector,
                    ..
                } = pending;
                self.wrong += self.pages.wrong(page, pages, sector, seed)?;
            }
        }
        Ok(())
    }
}
