//! Pre-copy: rounds of dirty pages while the guest runs, then the last one while it does not.

use crate::error::MigrationError;
use crate::guest::{Guest, NamedSource};
use crate::observe::Observer;
use crate::policy::Policy;
use crate::report::{Report, RoundReport, SourceShare};
use crate::stream::{BATCH_PAGES, SourceStream};
use driver::dirty::{DirtySet, PAGE_SIZE};
use driver::memory::DmaMemory;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Pages handed to the stream at a time: as many as several records take, because one of scattered
/// pages takes fewer than [`BATCH_PAGES`].
const PORTION: usize = 8 * BATCH_PAGES;

/// What a migration is to do.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// When to go on and when to stop the guest.
    pub policy: Policy,
    /// Page size in bytes that sources are asked to track with; they may raise it.
    pub granularity: u64,
    /// How many plain copies of the memory to make first, for comparison.
    pub plain_copies: u32,
    /// Set by anyone at any time before the hand-over: the guest stays.
    pub cancel: &'a AtomicBool,
}

/// A migration that did not succeed, and what became of the guest.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// Why.
    #[source]
    pub error: MigrationError,
    /// The round under way, 0 before the first.
    pub round: u32,
    /// Pages reported for that round and given back to the sources that reported them, added up
    /// over the sources.
    pub put_back: u64,
    /// The guest runs on at its source.
    pub resumed: bool,
    /// What also went wrong while giving back and resuming; empty is good.
    pub aftermath: Vec<String>,
    /// What had been done so far.
    pub report: Report,
}

/// Moves `guest` over `stream`.
///
/// On success the guest runs at the destination and is paused here for good. The sources go on
/// tracking after a failure, with everything they had reported for the failed round given back.
///
/// # Errors
/// [`Failure`] tells what happened. Unless its `resumed` is false the guest runs here and is whole.
pub fn migrate(
    guest: &mut dyn Guest,
    stream: &mut dyn SourceStream,
    options: &Options<'_>,
    observer: &mut dyn Observer,
) -> Result<Report, Box<Failure>> {
    let mut migration = Migration::new(guest);
    match migration.run(stream, options, observer) {
        Ok(()) => Ok(migration.report),
        Err(error) => Err(Box::new(migration.roll_back(stream, error))),
    }
}

struct Migration<'g> {
    guest: &'g mut dyn Guest,
    memory: Vec<DmaMemory>,
    span: Range<u64>,
    /// What each source reported for the round under way.
    round_sets: Vec<DirtySet>,
    round: u32,
    paused: bool,
    report: Report,
}

impl<'g> Migration<'g> {
    fn new(guest: &'g mut dyn Guest) -> Self {
        let memory = guest.memory();
        let end = memory.iter().map(|w| w.iova() + w.len()).max().unwrap_or(0);
        let report = Report {
            memory_bytes: memory.iter().map(DmaMemory::len).sum(),
            ..Report::default()
        };
        Self {
            guest,
            memory,
            span: 0..end,
            round_sets: Vec::new(),
            round: 0,
            paused: false,
            report,
        }
    }

    fn run(
        &mut self,
        stream: &mut dyn SourceStream,
        options: &Options<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), MigrationError> {
        stream.open(&self.guest.describe())?;
        for _ in 0..options.plain_copies {
            let taken = stream.plain_copy(&self.memory)?;
            self.report.plain_copies.push(taken);
        }
        self.start_tracking(options.granularity)?;

        // Tracking is on before the first byte is read: what changes while the bulk goes is in
        // the next report.
        self.round = 1;
        let all = self.all_pages();
        self.send_round(
            stream,
            options,
            observer,
            &all,
            Instant::now(),
            Duration::ZERO,
        )?;
        loop {
            self.round += 1;
            observer.before_round(self.round);
            let started = Instant::now();
            let dirty = self.collect()?;
            let harvest = started.elapsed();
            self.send_round(stream, options, observer, &dirty, started, harvest)?;
            if options.policy.stop_now(self.round, dirty.count()) {
                break;
            }
        }
        self.hand_over(stream, options, observer)
    }

    fn hand_over(
        &mut self,
        stream: &mut dyn SourceStream,
        options: &Options<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), MigrationError> {
        self.round += 1;
        let stopped = Instant::now();
        // Set before the attempt: a pause that fails half-way needs a resume as well.
        self.paused = true;
        self.report.paused = self.guest.pause()?;
        let started = Instant::now();
        // Devices mark until they present SUSPEND, so only now is a report the last one.
        let dirty = self.collect()?;
        let harvest = started.elapsed();
        self.send_round(stream, options, observer, &dirty, started, harvest)?;
        for record in self.guest.save()? {
            stream.device(&record)?;
        }
        let evidence = stream.end()?;
        let judged = Instant::now();
        observer
            .switch_over(self.guest)
            .map_err(MigrationError::Judged)?;
        self.report.judging = evidence + judged.elapsed();
        cancelled(options)?;
        stream.go()?;
        self.report.downtime = stopped.elapsed().saturating_sub(self.report.judging);
        Ok(())
    }

    fn start_tracking(&mut self, granularity: u64) -> Result<(), MigrationError> {
        let ranges: Vec<Range<u64>> = self
            .memory
            .iter()
            .map(|window| window.iova()..window.iova() + window.len())
            .collect();
        for named in self.guest.sources() {
            let started = named.source.start(&ranges, granularity);
            let granularity = started.map_err(source_failed(&named.name))?;
            self.report
                .granularity
                .push((named.name.clone(), granularity));
        }
        Ok(())
    }

    fn all_pages(&self) -> DirtySet {
        let mut all = DirtySet::new(self.span.end.div_ceil(PAGE_SIZE));
        for window in &self.memory {
            all.insert_bytes(window.iova(), window.len());
        }
        all
    }

    /// Asks every source for its pages; each answer is kept until the round is safe.
    fn collect(&mut self) -> Result<DirtySet, MigrationError> {
        let pages = self.span.end.div_ceil(PAGE_SIZE);
        let known = self.all_pages();
        let mut union = DirtySet::new(pages);
        self.round_sets.clear();
        for NamedSource { name, source } in self.guest.sources() {
            let mut set = DirtySet::new(pages);
            let reported = source.report(self.span.clone(), &mut set);
            // What lies between the windows is nobody's memory, whatever a coarse page covers.
            set.intersect_with(&known);
            union.union_with(&set);
            self.round_sets.push(set);
            reported.map_err(source_failed(name))?;
        }
        Ok(union)
    }

    fn send_round(
        &mut self,
        stream: &mut dyn SourceStream,
        options: &Options<'_>,
        observer: &mut dyn Observer,
        pages: &DirtySet,
        started: Instant,
        harvest: Duration,
    ) -> Result<(), MigrationError> {
        let (round, count) = (self.round, pages.count());
        observer.round_started(round, count, self.paused);
        let (mut sent, mut bytes) = (0, 0);
        let mut batch = Vec::with_capacity(PORTION);
        let mut numbers = pages.iter();
        loop {
            batch.clear();
            batch.extend(numbers.by_ref().take(PORTION));
            if batch.is_empty() {
                break;
            }
            cancelled(options)?;
            bytes += stream.pages(&self.memory, &batch)?;
            sent += u64::try_from(batch.len()).unwrap_or(u64::MAX);
            observer.progress(round, sent);
        }
        let unchanged = stream.round_end(round)?;
        let mut same = DirtySet::new(pages.len());
        for page in unchanged {
            same.insert(page);
        }
        let report = RoundReport {
            round,
            pages: count,
            bytes,
            unchanged: same.count(),
            shares: self.shares(&same),
            elapsed_ns: nanos(started.elapsed()),
            harvest_ns: nanos(harvest),
            last: self.paused,
        };
        // The destination has the pages: nothing of this round needs giving back unless the whole
        // migration fails, and then its memory is forgotten as well.
        self.round_sets.clear();
        observer.round_ended(&report);
        self.report.rounds.push(report);
        Ok(())
    }

    fn shares(&mut self, same: &DirtySet) -> Vec<SourceShare> {
        let sources = self.guest.sources();
        let share = |(named, set): (&NamedSource, &DirtySet)| {
            let mut unchanged = set.clone();
            unchanged.intersect_with(same);
            SourceShare {
                name: named.name.clone(),
                pages: set.count(),
                unchanged: unchanged.count(),
            }
        };
        sources.iter().zip(&self.round_sets).map(share).collect()
    }

    fn roll_back(self, stream: &mut dyn SourceStream, error: MigrationError) -> Failure {
        let mut failure = Failure {
            resumed: false,
            put_back: 0,
            round: self.round,
            aftermath: Vec::new(),
            report: Report::default(),
            error,
        };
        if !matches!(failure.error, MigrationError::Uncertain(_)) {
            if !matches!(failure.error, MigrationError::PeerVanished { .. }) {
                stream.abort();
            }
            for (named, set) in self.guest.sources().iter_mut().zip(&self.round_sets) {
                match named.source.put_back(set) {
                    Ok(()) => failure.put_back += set.count(),
                    Err(error) => failure
                        .aftermath
                        .push(format!("giving pages back to '{}': {error}", named.name)),
                }
            }
            failure.resumed = match self.guest.resume() {
                Ok(()) => true,
                Err(error) => {
                    failure.aftermath.push(error.to_string());
                    false
                }
            };
        }
        failure.report = self.report;
        failure
    }
}

fn source_failed(name: &str) -> impl FnOnce(driver::dirty::DirtyError) -> MigrationError {
    let name = name.to_owned();
    move |source| MigrationError::Source { name, source }
}

fn cancelled(options: &Options<'_>) -> Result<(), MigrationError> {
    if options.cancel.load(Ordering::Relaxed) {
        return Err(MigrationError::Cancelled);
    }
    Ok(())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
