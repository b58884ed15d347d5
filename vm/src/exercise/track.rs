//! Rounds of tracking: block I/O into pages that nobody but the device writes, harvested while it
//! runs.

use super::harvester::Harvester;
use super::load::Load;
use super::pages::Pages;
use super::rig::{Account, Rig};
use super::suspend::{Comeback, Suspension};
use crate::error::VmError;
use crate::guest::Pattern;
use driver::bus::Bus;
use driver::dirty::DirtySet;
use serde::Serialize;
use spec::features::Features;
use std::sync::{Arc, mpsc};
use std::thread;

/// Pages that writes come from: the device only reads them.
const SOURCES: u64 = 64;

/// What to do.
#[derive(Clone, Debug)]
pub struct TrackOptions {
    /// Rounds.
    pub rounds: u32,
    /// Requests of a round.
    pub requests: u64,
    /// Pages that reads go to. In each round, about half of them are left alone.
    pub pages: u64,
    /// Queues to use, at most.
    pub queues: u16,
    /// Entries of each, at most.
    pub queue_size: u16,
    /// Writes in a hundred requests. They go to the disk's second half, and reads to the first.
    pub writes_percent: u8,
    /// Where reads go.
    pub pattern: Pattern,
    /// Page size to track with, in bytes.
    pub granularity: u64,
    /// Completions between two harvests; the last harvest of a round comes on top.
    pub harvest_every: u64,
    /// How the device is suspended in each round while its queues are full, one after the other.
    pub suspensions: Vec<Comeback>,
    /// Check what is read: a journal with this seed has formatted the disk.
    pub journal: Option<u64>,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for TrackOptions {
    fn default() -> Self {
        Self {
            rounds: 3,
            requests: 2000,
            pages: 4096,
            queues: 4,
            queue_size: 128,
            writes_percent: 0,
            pattern: Pattern::Random,
            granularity: 4096,
            harvest_every: 100,
            suspensions: Vec::new(),
            journal: None,
            seed: 1,
        }
    }
}

/// A round that is about to begin: every page is prepared, and the device is quiet.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RoundStart {
    /// Its number, from 1.
    pub round: u32,
    /// IOVA of the first page.
    pub iova: u64,
    /// Pages of 4 KiB.
    pub pages: u64,
    /// Of these, how many from the first on the device may write. The others it may only read.
    pub frames: u64,
}

/// A round that is over: every request is done, and the device is quiet.
#[derive(Clone, Debug, Serialize)]
pub struct RoundReport {
    /// Its number, from 1.
    pub round: u32,
    /// Requests, all of them completed.
    pub requests: u64,
    /// Of these, reads.
    pub reads: u64,
    /// Bytes that reads brought.
    pub bytes_read: u64,
    /// Bytes that writes took away.
    pub bytes_written: u64,
    /// Pages that reads have gone to, by the program's own account.
    pub written: u64,
    /// Pages harvested.
    pub harvested: u64,
    /// Of those written, the ones that were not harvested.
    pub lost: u64,
    /// Of those harvested, the ones that were not written.
    pub falsely_dirty: u64,
    /// Harvests made.
    pub harvests: u64,
    /// Of these, made while requests were in flight.
    pub harvests_in_flight: u64,
    /// Pages that the largest of them gave.
    pub largest_harvest: u64,
    /// Sectors that were read and did not hold what the journal had put there.
    pub wrong: u64,
    /// The suspensions.
    pub suspensions: Vec<Suspension>,
    /// From the first request to the last, in seconds.
    pub seconds: f64,
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct TrackReport {
    /// Whether the queues were packed: they are if the device offers that.
    pub packed: bool,
    /// The granularity in force, in bytes.
    pub granularity: u64,
    /// The rounds.
    pub rounds: Vec<RoundReport>,
    /// What became of all requests.
    pub requests: Account,
    /// Times that an interrupt was waited for and came.
    pub interrupts: u64,
    /// Times that requests had completed and no interrupt told.
    pub unannounced: u64,
}

impl TrackReport {
    /// Whether nothing was lost, wrong or doubled, by the program's own account.
    pub fn is_good(&self) -> bool {
        let round = |round: &RoundReport| {
            let agree = round.suspensions.iter().all(|one| one.disagreeing == 0);
            round.lost + round.wrong == 0 && agree
        };
        self.requests.is_exact() && self.unannounced == 0 && self.rounds.iter().all(round)
    }
}

/// A round that goes on.
#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    /// Its number, from 1.
    pub round: u32,
    /// Requests made available in it so far.
    pub requests: u64,
    /// Entries and requests in flight of each queue, as the driver knows.
    pub queues: Vec<(u16, u64)>,
}

/// Whoever looks at memory between rounds.
pub trait Watcher {
    /// The pages are prepared; nothing writes them until this returns.
    ///
    /// # Errors
    /// Whatever makes it senseless to go on.
    fn ready(&mut self, start: &RoundStart) -> Result<(), VmError>;

    /// The round is over; nothing writes the pages until this returns. `harvested` holds page
    /// numbers by IOVA.
    ///
    /// # Errors
    /// Whatever makes it senseless to go on.
    fn done(&mut self, report: &RoundReport, harvested: &DirtySet) -> Result<(), VmError>;

    /// A harvest is due while the device works. Returns soon: the device's driver waits.
    fn moves(&mut self, moment: &Moment) {
        let _ = moment;
    }

    /// The device was suspended, and has come back.
    fn suspended(&mut self, suspension: &Suspension) {
        let _ = suspension;
    }

    /// Asked before each round but the first: whether that is enough.
    fn enough(&mut self) -> bool {
        false
    }
}

/// Drives a block device and tracks what it writes.
///
/// The disk is only read, unless the options ask for writes.
///
/// # Errors
/// [`VmError`]: the options make no sense, the device has no tracker or is no block device, or it
/// breaks a rule.
pub fn track(
    bus: Arc<dyn Bus>,
    options: &TrackOptions,
    watcher: &mut dyn Watcher,
) -> Result<TrackReport, VmError> {
    if options.writes_percent > 100 {
        let got = options.writes_percent;
        return Err(VmError::shape("share of writes", "at most 100", got));
    }
    let needed = match options.suspensions.is_empty() {
        true => Features::empty(),
        false => Features::SUSPEND | Features::QUEUE_STATE,
    };
    let mut rig = Rig::start(bus, options.queues, options.queue_size, needed)?;
    let sources = if options.writes_percent > 0 {
        SOURCES
    } else {
        0
    };
    let pages = Pages::new(&**rig.transport.bus(), options.pages, sources)?;
    let mut load = Load::new(&pages, options, rig.capacity)?;
    let mut harvester = Harvester::new(&rig.transport, &pages)?;
    pages.prepare(0)?;
    let granularity = harvester.start(options.granularity)?;
    let mut rounds = Vec::new();
    for round in 1..=options.rounds {
        if round > 1 && watcher.enough() {
            break;
        }
        pages.prepare(u64::from(round))?;
        watcher.ready(&RoundStart {
            round,
            iova: pages.iova(),
            pages: pages.count(),
            frames: pages.frames(),
        })?;
        load.begin(round);
        let seconds = run(&mut rig, &mut load, &harvester, options, watcher)?;
        harvester.harvest(rig.in_flight())?;
        let mut report = load.report(round, seconds);
        let harvested = harvester.end_round(&mut report, &pages);
        compare(&mut report, load.written(), &harvested, &pages);
        watcher.done(&report, &harvested)?;
        rounds.push(report);
    }
    harvester.stop()?;
    Ok(TrackReport {
        packed: rig.transport.features().contains(Features::RING_PACKED),
        granularity,
        rounds,
        interrupts: rig.interrupts,
        unannounced: rig.unannounced,
        requests: rig.finish()?,
    })
}

/// The I/O of one round, with somebody who harvests beside it; how long it took.
fn run(
    rig: &mut Rig,
    load: &mut Load<'_>,
    harvester: &Harvester,
    options: &TrackOptions,
    watcher: &mut dyn Watcher,
) -> Result<f64, VmError> {
    // What is told is how many requests are in flight: a harvest is due.
    let (due, told) = mpsc::channel();
    thread::scope(|scope| {
        let harvesting = scope.spawn(move || {
            told.iter()
                .try_for_each(|in_flight| harvester.harvest(in_flight))
        });
        let ran = load.run(rig, harvester, options, &due, watcher);
        drop(due);
        match harvesting.join() {
            Ok(harvested) => ran.and_then(|seconds| harvested.map(|()| seconds)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The program's own judgement; whoever compares memory has another.
fn compare(report: &mut RoundReport, written: &DirtySet, harvested: &DirtySet, pages: &Pages) {
    let first = pages.iova() / driver::dirty::PAGE_SIZE;
    for page in 0..pages.count() {
        let (is_written, is_harvested) = (written.contains(page), harvested.contains(first + page));
        report.harvested += u64::from(is_harvested);
        report.lost += u64::from(is_written && !is_harvested);
        report.falsely_dirty += u64::from(!is_written && is_harvested);
    }
}
