//! Pre-copy: rounds of dirty pages while the guest runs, then the last one while it does not.

use crate::cancel::Cancel;
use crate::error::MigrationError;
use crate::guest::{Guest, NamedSource};
use crate::observe::Observer;
use crate::pace::{Bandwidth, Bucket};
use crate::policy::{Decision, Policy, Seen};
use crate::report::{Report, RoundReport, SourceShare};
use crate::stream::{BATCH_PAGES, New, Sent, SourceStream};
use driver::dirty::{DirtySet, PAGE_SIZE};
use driver::memory::DmaMemory;
use probe::probe;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Pages handed to the stream at a time, to begin with: as many as several records take, because
/// one of scattered pages takes fewer than [`BATCH_PAGES`].
const PORTION: usize = 8 * BATCH_PAGES;
/// And at most.
const PORTION_MAX: usize = 128 * BATCH_PAGES;
/// So long may a portion take at least: between two, nothing is on its way.
const PROMPT: Duration = Duration::from_millis(50);
/// Portions in a second, at least, when the bandwidth is limited.
const PORTIONS_PER_SECOND: u64 = 20;
/// A round of fewer bytes says nothing of the bandwidth.
const MEASURABLE: u64 = 1 << 20;

/// What a migration is to do.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// When to go on and when to stop the guest.
    pub policy: &'a dyn Policy,
    /// Page size in bytes that sources are asked to track with; they may raise it.
    pub granularity: u64,
    /// How many plain copies of the memory to make first, for comparison.
    pub plain_copies: u32,
    /// Most that may be sent while the guest runs. The last round is not held to it: it would only
    /// keep the guest standing.
    pub bandwidth: Option<Bandwidth<'a>>,
    /// By this anyone cancels at any time before the hand-over: the guest stays.
    pub cancel: &'a Cancel,
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
    let mut migration = Migration::new(guest, options);
    match migration.run(stream, observer) {
        Ok(()) => Ok(migration.report),
        Err(error) => {
            // Whoever cancels hangs up: what that broke is not what happened.
            let error = if options.cancel.is_cancelled() {
                MigrationError::Cancelled
            } else {
                error
            };
            Err(Box::new(migration.roll_back(stream, error)))
        }
    }
}

struct Migration<'g, 'o> {
    guest: &'g mut dyn Guest,
    options: &'g Options<'o>,
    bucket: Option<Bucket<'o>>,
    memory: Vec<DmaMemory>,
    span: Range<u64>,
    /// What each source reported for the round under way.
    round_sets: Vec<DirtySet>,
    round: u32,
    paused: bool,
    bandwidth: Option<f64>,
    /// Pages handed to the stream at a time if nothing limits the bandwidth.
    portion: usize,
    throttle: u8,
    report: Report,
}

/// What is to be sent, and since when it has been looked for.
struct Dirty {
    pages: DirtySet,
    started: Instant,
    harvest: Duration,
}

impl<'g, 'o> Migration<'g, 'o> {
    fn new(guest: &'g mut dyn Guest, options: &'g Options<'o>) -> Self {
        let memory = guest.memory();
        let end = memory.iter().map(|w| w.iova() + w.len()).max().unwrap_or(0);
        let report = Report {
            memory_bytes: memory.iter().map(DmaMemory::len).sum(),
            ..Report::default()
        };
        Self {
            guest,
            options,
            bucket: options.bandwidth.map(Bucket::new),
            memory,
            span: 0..end,
            round_sets: Vec::new(),
            round: 0,
            paused: false,
            bandwidth: None,
            portion: PORTION,
            throttle: 0,
            report,
        }
    }

    fn run(
        &mut self,
        stream: &mut dyn SourceStream,
        observer: &mut dyn Observer,
    ) -> Result<(), MigrationError> {
        stream.open(&self.guest.describe())?;
        for _ in 0..self.options.plain_copies {
            let taken = stream.plain_copy(&self.memory)?;
            self.report.plain_copies.push(taken);
        }
        self.start_tracking()?;

        // Tracking is on before the first byte is read: what changes while the bulk goes is in
        // the next report.
        self.round = 1;
        let all = Dirty {
            pages: self.all_pages(),
            started: Instant::now(),
            harvest: Duration::ZERO,
        };
        self.send_round(stream, observer, &all)?;
        loop {
            if self.stop_now(None)? {
                return self.hand_over(stream, observer, false);
            }
            self.round += 1;
            observer.before_round(self.round);
            self.check_cancel()?;
            let dirty = self.collect(false)?;
            observer.dirty(self.round, dirty.pages.count(), &self.seen(None));
            if self.stop_now(Some(dirty.pages.count()))? {
                // Nothing is lost by stopping with a report in hand: the last round sends it too.
                return self.hand_over(stream, observer, true);
            }
            self.send_round(stream, observer, &dirty)?;
        }
    }

    fn seen(&self, dirty: Option<u64>) -> Seen {
        let rounds = &self.report.rounds;
        Seen {
            rounds: u32::try_from(rounds.len()).unwrap_or(u32::MAX),
            sent: rounds.last().map_or(0, |round| round.pages),
            dirty,
            bandwidth: self.bandwidth,
            throttle: self.throttle,
        }
    }

    /// Asks the policy, and slows the guest down if it says so.
    fn stop_now(&mut self, dirty: Option<u64>) -> Result<bool, MigrationError> {
        match self.options.policy.decide(&self.seen(dirty)) {
            Decision::Continue => Ok(false),
            Decision::Stop => Ok(true),
            Decision::Throttle(percent) => {
                self.guest.throttle(percent)?;
                self.throttle = percent;
                Ok(false)
            }
            Decision::GiveUp(why) => Err(MigrationError::NotConverged(why)),
        }
    }

    /// Stops the guest and sends the rest; `carried`: what has been reported for this round and
    /// not been sent is part of it.
    fn hand_over(
        &mut self,
        stream: &mut dyn SourceStream,
        observer: &mut dyn Observer,
        carried: bool,
    ) -> Result<(), MigrationError> {
        if !carried {
            self.round += 1;
        }
        let stopped = Instant::now();
        // Set before the attempt: a pause that fails half-way needs a resume as well.
        self.paused = true;
        self.report.paused = self.guest.pause()?;
        // Devices mark until they present SUSPEND, so only now is a report the last one.
        let dirty = self.collect(carried)?;
        self.send_round(stream, observer, &dirty)?;
        for record in self.guest.save()? {
            stream.device(&record)?;
        }
        let evidence = stream.end()?;
        let judged = Instant::now();
        observer
            .switch_over(self.guest)
            .map_err(MigrationError::Judged)?;
        self.report.judging = evidence + judged.elapsed();
        if !self.options.cancel.commit() {
            return Err(MigrationError::Cancelled);
        }
        stream.go()?;
        self.report.downtime = stopped.elapsed().saturating_sub(self.report.judging);
        Ok(())
    }

    fn start_tracking(&mut self) -> Result<(), MigrationError> {
        let granularity = self.options.granularity;
        let ranges: Vec<Range<u64>> = self
            .memory
            .iter()
            .map(|window| window.iova()..window.iova() + window.len())
            .collect();
        self.guest.begin_tracking(&ranges, granularity)?;
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

    /// Asks every source for its pages; each answer is kept until the round is safe, and with
    /// `carried` added to the answer before. All that is kept is what is to be sent.
    fn collect(&mut self, carried: bool) -> Result<Dirty, MigrationError> {
        let started = Instant::now();
        let pages = self.span.end.div_ceil(PAGE_SIZE);
        let known = self.all_pages();
        let mut union = DirtySet::new(pages);
        if !carried {
            self.round_sets.clear();
        }
        for (number, NamedSource { name, source }) in self.guest.sources().iter_mut().enumerate() {
            let mut set = DirtySet::new(pages);
            let reported = source.report(self.span.clone(), &mut set);
            // What lies between the windows is nobody's memory, whatever a coarse page covers.
            set.intersect_with(&known);
            match self.round_sets.get_mut(number) {
                Some(before) => before.union_with(&set),
                None => self.round_sets.push(set),
            }
            reported.map_err(source_failed(name))?;
        }
        self.round_sets.iter().for_each(|set| union.union_with(set));
        Ok(Dirty {
            pages: union,
            started,
            harvest: started.elapsed(),
        })
    }

    fn send_round(
        &mut self,
        stream: &mut dyn SourceStream,
        observer: &mut dyn Observer,
        dirty: &Dirty,
    ) -> Result<(), MigrationError> {
        let (round, pages) = (self.round, dirty.pages.count());
        observer.round_started(round, pages, self.paused);
        observer.sending(round, &dirty.pages);
        let begun = Instant::now();
        let (mut sent, mut out) = (0, Sent::default());
        // Only what has never been sent may go without its bytes: nobody over there has others in
        // its place.
        let new = if round == 1 { New::All } else { New::Unknown };
        let mut batch = Vec::new();
        let mut numbers = dirty.pages.iter();
        loop {
            batch.clear();
            batch.extend(numbers.by_ref().take(self.portion()));
            self.check_cancel()?;
            if batch.is_empty() {
                break;
            }
            sent += u64::try_from(batch.len()).unwrap_or(u64::MAX);
            let begin = Instant::now();
            let put = stream.pages(&self.memory, &batch, new)?;
            self.adapt(batch.len(), begin.elapsed());
            out += put;
            observer.progress(round, sent);
            self.keep_pace(put.bytes)?;
        }
        let unchanged = stream.round_end(round)?;
        self.measure(out.bytes, begun.elapsed());
        let mut same = DirtySet::new(dirty.pages.len());
        for page in unchanged {
            same.insert(page);
        }
        let report = RoundReport {
            round,
            pages,
            zeros: out.zeros,
            bytes: out.bytes,
            unchanged: same.count(),
            shares: self.shares(&same),
            elapsed_ns: nanos(dirty.started.elapsed()),
            harvest_ns: nanos(dirty.harvest),
            throttle: self.throttle,
            last: self.paused,
        };
        // The destination has the pages: nothing of this round needs giving back unless the whole
        // migration fails, and then its memory is forgotten as well.
        self.round_sets.clear();
        probe!(
            tidemark,
            round,
            round,
            report.pages,
            report.bytes,
            u8::from(report.last)
        );
        observer.round_ended(&report);
        self.report.rounds.push(report);
        Ok(())
    }

    /// Pages to be sent before the pace is looked at again.
    fn portion(&self) -> usize {
        match self.options.bandwidth {
            Some(Bandwidth { rate, .. }) if !self.paused => {
                let pages = rate / PORTIONS_PER_SECOND / PAGE_SIZE;
                usize::try_from(pages).map_or(PORTION, |pages| pages.clamp(1, PORTION))
            }
            _ => self.portion,
        }
    }

    /// Makes the next portion larger if this one was soon gone, and smaller if it took so long that
    /// whoever cancels would wait.
    fn adapt(&mut self, pages: usize, took: Duration) {
        if pages < self.portion {
            return;
        }
        self.portion = match self.portion {
            few if took < PROMPT && few < PORTION_MAX => few * 2,
            many if took > 4 * PROMPT && many > BATCH_PAGES => many / 2,
            right => right,
        };
    }

    fn keep_pace(&mut self, bytes: u64) -> Result<(), MigrationError> {
        let cancel = self.options.cancel;
        match &mut self.bucket {
            Some(bucket) if !self.paused => {
                if bucket.spend(bytes, || !cancel.is_cancelled()) {
                    Ok(())
                } else {
                    Err(MigrationError::Cancelled)
                }
            }
            _ => Ok(()),
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "an estimate; a round is far below 2^53 bytes"
    )]
    fn measure(&mut self, bytes: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if bytes >= MEASURABLE && seconds > 0.0 {
            self.bandwidth = Some(bytes as f64 / seconds);
        }
    }

    fn check_cancel(&self) -> Result<(), MigrationError> {
        if self.options.cancel.is_cancelled() {
            return Err(MigrationError::Cancelled);
        }
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
            if self.throttle != 0
                && let Err(error) = self.guest.throttle(0)
            {
                failure.aftermath.push(error.to_string());
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

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
