//! Moves a guest away and judges the move, by evidence that did not come through the stream.

use crate::error::VmError;
use crate::evidence::{
    DiskVerdict, MemoryVerdict, RequestVerdict, compare_memory, judge_disk, judge_requests,
    read_after,
};
use crate::guest::{Counters, EmulatedGuest, PageClass, Progress};
use crate::incoming::After;
use driver::dirty::DirtySet;
use migration::agent::End;
use migration::observe::Observer;
use migration::policy::Seen;
use migration::precopy::{self, Options};
use migration::report::{Report, RoundReport};
use migration::stream::file::Save;
use migration::stream::parallel::Parallel;
use migration::stream::{Connection, SourceStream, live};
use migration::{Guest, MigrationError};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Rounds that must have sent changed pages again before a run counts.
const REDIRTIED_MIN: usize = 3;
/// Pages that the devices write before another round is worth its while: so every round sends
/// something again, and a tracker that is off has something to lose.
const WRITES_BETWEEN: u64 = 256;
/// How long to wait for them.
const WRITES_PATIENCE: Duration = Duration::from_secs(2);
/// What a guest that stayed is to do before it is judged.
const AT_HOME: u64 = 2000;

/// A move.
#[derive(Clone, Copy, Debug)]
pub struct Move<'a> {
    /// How to migrate.
    pub options: Options<'a>,
    /// Where both sides leave their evidence. This side is called "source" there, the other
    /// "destination".
    pub evidence: &'a Path,
    /// The disks.
    pub disks: &'a [PathBuf],
}

/// What became of a move.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What the migration tells about itself, as far as it came.
    pub report: Report,
    /// Both memories at the switch-over, if it came to that.
    pub memory: Option<MemoryVerdict>,
    /// Pages that devices wrote while they were tracked and before the guest was paused.
    pub device_writes: u64,
    /// How often the guest's driver reset a device meanwhile.
    pub resets: u64,
    /// How often the devices were suspended, stopped or let go on at the source, by their count.
    pub stops: u64,
    /// The guest runs, or ran to its end, at the destination.
    pub moved: bool,
    /// The guest stayed, and ran on at the source.
    pub resumed: bool,
    /// Pages given back to their sources.
    pub put_back: u64,
    /// What ended the migration early.
    pub error: Option<MigrationError>,
    /// What the guest did at the destination.
    pub after: Option<After>,
    /// All requests, on both sides.
    pub requests: Option<RequestVerdict>,
    /// The disks at the end.
    pub disk: Option<DiskVerdict>,
    /// How each device at the source was left, by its own registers: whether it tracks, and whether it is
    /// suspended.
    pub devices: Vec<(bool, bool)>,
    /// What the judge could not judge, and what went wrong after a failure.
    pub troubles: Vec<String>,
}

impl Outcome {
    /// Everything that keeps this run from counting as proof, in words. None is a proof.
    pub fn objections(&self) -> Vec<String> {
        let mut all = self.troubles.clone();
        if let Some(error) = &self.error {
            all.push(error.to_string());
        }
        match &self.memory {
            Some(memory) if memory.same() => {}
            Some(memory) => all.push(format!(
                "{} pages lost by the tracker, {} by the CPU's log, {} that nobody writes",
                memory.lost_device, memory.lost_cpu, memory.lost_unused
            )),
            None => all.push("the memories were not compared".to_owned()),
        }
        all.extend(self.guest_objections());
        if self.report.paused.in_flight == 0 {
            all.push("no request was in flight when the devices were suspended".to_owned());
        }
        let rounds = self.report.redirtied_rounds();
        if rounds < REDIRTIED_MIN {
            all.push(format!(
                "{rounds} rounds sent changed pages again, {REDIRTIED_MIN} are needed"
            ));
        }
        if self.device_writes == 0 {
            all.push("inconclusive: the devices wrote nothing while they were tracked".to_owned());
        }
        all
    }

    /// What is wrong with the guest itself, wherever it ran.
    pub fn guest_objections(&self) -> Vec<String> {
        let mut all = Vec::new();
        match &self.requests {
            Some(requests) if requests.clean() => {}
            Some(r) => all.push(format!(
                "of {} requests {} lost, {} doubled, {} failed, {} read wrong data",
                r.submitted, r.lost, r.doubled, r.failed, r.corrupt
            )),
            None => all.push("the requests were not judged".to_owned()),
        }
        match &self.disk {
            Some(disk) if disk.wrong == 0 && disk.blocks > 0 => {}
            Some(disk) => all.push(format!(
                "{} of {} disk blocks do not hold the last acknowledged write",
                disk.wrong, disk.blocks
            )),
            None => all.push("the disks were not judged".to_owned()),
        }
        all
    }
}

/// Moves a running guest to whoever is at the other end of the connections, waits until it has
/// finished there, and judges. Cancelling hangs up. A guest that could not be moved runs on here, is drained and judged.
///
/// The outcome tells everything; nothing is an error here.
pub fn move_guest(
    guest: &mut EmulatedGuest,
    connections: Vec<Connection>,
    plan: &Move<'_>,
    observer: &mut dyn Observer,
) -> Outcome {
    let mut ears = connections.first().cloned();
    let all = connections.clone();
    let hang_up = move || all.iter().for_each(Connection::hang_up);
    plan.options.cancel.on_cancel(hang_up);
    let mut stream = match source(connections) {
        Ok(stream) => stream,
        Err(error) => return stayed(guest, plan, error.to_string()),
    };
    let mut outcome = send(guest, stream.as_mut(), plan, observer, Judged::AtSwitchOver);
    if outcome.moved {
        // The other side hangs up when the guest has come to its end there.
        let ended = ears.as_mut().map(|ears| ears.read(&mut [0]));
        tracing::debug!(?ended, "the destination hung up");
        judge_after(guest, plan, &mut outcome);
    } else {
        // So that a destination that waits does not wait for ever.
        drop(stream);
        if let Some(ears) = ears {
            ears.hang_up();
        }
        if outcome.resumed {
            finish_at_home(guest, plan, &mut outcome);
        }
    }
    outcome
}

fn source(mut connections: Vec<Connection>) -> Result<Box<dyn SourceStream>, MigrationError> {
    if connections.len() == 1
        && let Some(only) = connections.pop()
    {
        return Ok(Box::new(live::Source::new(only)));
    }
    Ok(Box::new(Parallel::new(connections)?))
}

/// A guest that was not even begun to be moved.
fn stayed(guest: &mut EmulatedGuest, plan: &Move<'_>, trouble: String) -> Outcome {
    let mut outcome = Outcome {
        resumed: true,
        troubles: vec![trouble],
        ..Outcome::default()
    };
    finish_at_home(guest, plan, &mut outcome);
    outcome
}

/// Sends a running guest where nobody answers, to be taken up by whoever reads it. What comes of it
/// there is not judged here; a guest that could not be sent runs on here, is drained and judged.
pub fn send_guest(
    guest: &mut EmulatedGuest,
    to: File,
    plan: &Move<'_>,
    observer: &mut dyn Observer,
) -> Outcome {
    let mut stream = Save::over(to);
    let mut outcome = send(guest, &mut stream, plan, observer, Judged::Afterwards);
    if outcome.resumed {
        finish_at_home(guest, plan, &mut outcome);
    }
    outcome
}

/// Saves a running guest to a file, then lets `restore` take it up from there and bring it to its
/// end, and judges. A guest that could not be saved runs on here, is drained and judged.
///
/// The file has the guest once it is whole: unlike a move, which is judged before the hand-over, a
/// file is judged after it.
pub fn save_guest(
    guest: &mut EmulatedGuest,
    path: &Path,
    plan: &Move<'_>,
    observer: &mut dyn Observer,
    restore: impl FnOnce() -> Result<(), String>,
) -> Outcome {
    let mut stream = match Save::create(path) {
        Ok(stream) => stream,
        Err(error) => {
            return stayed(
                guest,
                plan,
                format!("cannot write {}: {error}", path.display()),
            );
        }
    };
    let mut outcome = send(guest, &mut stream, plan, observer, Judged::Afterwards);
    if outcome.moved {
        outcome.troubles.extend(restore().err());
        let memory = guest.ram();
        match compare_memory(memory, &guest.classes(), plan.evidence) {
            Ok(verdict) => outcome.memory = Some(verdict),
            Err(error) => outcome.troubles.push(error.to_string()),
        }
        judge_after(guest, plan, &mut outcome);
    } else if outcome.resumed {
        finish_at_home(guest, plan, &mut outcome);
    }
    outcome
}

/// When the memories are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    /// While neither side runs the guest.
    AtSwitchOver,
    /// When the stream has been taken up.
    Afterwards,
}

fn send(
    guest: &mut EmulatedGuest,
    stream: &mut dyn SourceStream,
    plan: &Move<'_>,
    observer: &mut dyn Observer,
    judged: Judged,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut judge = Judge {
        inner: observer,
        counters: guest.counters(),
        classes: guest.classes(),
        folder: plan.evidence,
        judged,
        before: 0,
        last_round: 0,
        device_writes: 0,
        resets_before: 0,
        resets: 0,
        memory: None,
    };
    let migrated = precopy::migrate(guest, stream, &plan.options, &mut judge);
    outcome.device_writes = judge.device_writes;
    outcome.resets = judge.resets;
    outcome.stops = guest.stops();
    outcome.memory = judge.memory.take();
    match migrated {
        Ok(report) => {
            outcome.report = report;
            outcome.moved = true;
        }
        Err(failure) => {
            let failure = *failure;
            outcome.report = failure.report;
            outcome.put_back = failure.put_back;
            outcome.resumed = failure.resumed;
            outcome.troubles = failure.aftermath;
            outcome.error = Some(failure.error);
        }
    }
    let end = if outcome.resumed {
        End::Stays
    } else {
        End::Left
    };
    if let Err(why) = guest.end_conduct(end) {
        outcome.troubles.push(why);
    }
    outcome.devices = guest.device_states().unwrap_or_default();
    outcome
}

/// Judges a guest that has come to its end at the destination.
fn judge_after(guest: &EmulatedGuest, plan: &Move<'_>, outcome: &mut Outcome) {
    match read_after(plan.evidence) {
        Ok(after) => outcome.after = Some(after),
        Err(error) => outcome.troubles.push(error.to_string()),
    }
    judge_end(guest, plan, &["source", "destination"], outcome);
}

/// Lets a guest that stayed go on for a while, drains it, and judges it.
pub fn finish_at_home(guest: &mut EmulatedGuest, plan: &Move<'_>, outcome: &mut Outcome) {
    match guest.run_for(AT_HOME, Duration::from_secs(10)) {
        Ok(true) => {}
        Ok(false) => outcome
            .troubles
            .push("the guest stands still at its source".to_owned()),
        Err(error) => outcome.troubles.push(error.to_string()),
    }
    if let Err(error) = guest.drain() {
        outcome.troubles.push(error.to_string());
    }
    judge_end(guest, plan, &["source"], outcome);
}

fn judge_end(guest: &EmulatedGuest, plan: &Move<'_>, sides: &[&str], outcome: &mut Outcome) {
    let mut judge = || -> Result<(), VmError> {
        let (requests, last) = judge_requests(guest.shape(), plan.evidence, sides)?;
        outcome.requests = Some(requests);
        outcome.disk = Some(judge_disk(plan.disks, &last)?);
        Ok(())
    };
    if let Err(error) = judge() {
        outcome.troubles.push(error.to_string());
    }
}

/// Compares the memories at the switch-over; passes everything else on.
struct Judge<'a> {
    inner: &'a mut dyn Observer,
    counters: Counters,
    classes: Vec<PageClass>,
    folder: &'a Path,
    judged: Judged,
    before: u64,
    /// Device writes seen when the last round was collected.
    last_round: u64,
    device_writes: u64,
    resets_before: u64,
    resets: u64,
    memory: Option<MemoryVerdict>,
}

impl Observer for Judge<'_> {
    fn before_round(&mut self, round: u32) {
        let begin = Instant::now();
        let enough = self.last_round.saturating_add(WRITES_BETWEEN);
        while self.counters.read().reads < enough && begin.elapsed() < WRITES_PATIENCE {
            // The virtual CPUs count millions of requests: they wake nobody for one of them.
            std::thread::park_timeout(Duration::from_micros(200));
        }
        self.last_round = self.counters.read().reads;
        self.inner.before_round(round);
    }

    fn round_started(&mut self, round: u32, pages: u64, last: bool) {
        let Progress { reads, resets, .. } = self.counters.read();
        if round == 1 {
            self.before = reads;
            self.last_round = reads;
            self.resets_before = resets;
        }
        self.device_writes = reads.saturating_sub(self.before);
        self.resets = resets.saturating_sub(self.resets_before);
        self.inner.round_started(round, pages, last);
    }

    fn dirty(&mut self, round: u32, pages: u64, seen: &Seen) {
        self.inner.dirty(round, pages, seen);
    }

    fn sending(&mut self, round: u32, pages: &DirtySet) {
        self.inner.sending(round, pages);
    }

    fn progress(&mut self, round: u32, sent: u64) {
        self.inner.progress(round, sent);
    }

    fn round_ended(&mut self, report: &RoundReport) {
        self.inner.round_ended(report);
    }

    fn switch_over(&mut self, guest: &dyn Guest) -> Result<(), String> {
        self.inner.switch_over(guest)?;
        if self.judged == Judged::Afterwards {
            return Ok(());
        }
        let [memory] = guest
            .memory()
            .try_into()
            .map_err(|_| "one memory expected")?;
        let verdict = compare_memory(&memory, &self.classes, self.folder)
            .map_err(|error| error.to_string())?;
        let same = verdict.same();
        let text = format!(
            "{} of {} pages differ at the switch-over",
            verdict.lost_device + verdict.lost_cpu + verdict.lost_unused,
            verdict.compared
        );
        self.memory = Some(verdict);
        if same { Ok(()) } else { Err(text) }
    }
}
