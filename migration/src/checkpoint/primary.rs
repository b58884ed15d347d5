//! The side that runs the guest.

use super::aside::Aside;
use super::control::Control;
use super::error::CheckpointError;
use super::guest::Protected;
use super::link::{HangUp, Line, Switch};
use super::message::{Kind, Message, Side};
use crate::guest::NamedSource;
use crate::stream::GatherWrite;
use crate::stream::epoch::{self, EpochWriter};
use driver::dirty::{DirtyError, DirtySet, PAGE_SIZE};
use driver::memory::DmaMemory;
use serde::Serialize;
use std::io::Read;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Rounds of the first copy in which the guest runs.
const FIRST_ROUNDS: u32 = 3;
/// Most rounds of a checkpoint in which the guest runs.
const ROUNDS_AHEAD: u32 = 4;
/// So few dirty pages are not worth another round.
const FEW: u64 = 64;
/// Most pages of one record that are handed to the writer at once.
const BATCH: usize = 1024;

/// One checkpoint, as it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EpochReport {
    /// Its number; 0 is the first copy.
    pub number: u64,
    /// Pages of 4 KiB sent.
    pub pages: u64,
    /// Of those, sent while the guest ran; some of them again when it was stopped.
    pub ahead: u64,
    /// Bytes of the stream, messages not included.
    pub bytes: u64,
    /// From the order to stop the guest until it ran again, in nanoseconds.
    pub pause_ns: u64,
    /// Of that, stopping it.
    pub stop_ns: u64,
    /// Of that, collecting dirty pages.
    pub harvest_ns: u64,
    /// Of that, setting aside what is to be sent: pages and device state. If there is no room for
    /// all the pages they are sent at once.
    pub aside_ns: u64,
    /// Sending what was set aside. The guest runs, unless it is owed something that holds only when
    /// the checkpoint is whole.
    pub send_ns: u64,
    /// From the last byte sent until the secondary had loaded everything. The guest runs, unless it
    /// is owed something.
    pub load_ns: u64,
}

/// The primary of a pair.
#[derive(Debug)]
pub struct Primary<'g, S, G: ?Sized> {
    guest: &'g mut G,
    stream: EpochWriter<Line<S>>,
    control: Control,
    switch: Switch,
    memory: Vec<DmaMemory>,
    span: Range<u64>,
    all: DirtySet,
    aside: Aside,
    /// What each source reported for the epoch under way.
    sets: Vec<DirtySet>,
    epochs: u64,
}

/// What became of the guest when its pair came apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survived {
    /// Whole checkpoints that the secondary had, as far as is known here.
    pub epochs: u64,
    /// Pages given back to the sources that had reported them, added up over the sources.
    pub put_back: u64,
    /// What also went wrong; empty is good.
    pub aftermath: Vec<String>,
}

impl<'g, S, G> Primary<'g, S, G>
where
    S: HangUp + 'static,
    for<'a> &'a S: Read + GatherWrite,
    G: Protected + ?Sized,
{
    /// Copies the running guest to a secondary for the first time. From here on its output is held.
    /// The secondary may take `patience` for each thing that is due.
    ///
    /// # Errors
    /// Why there is no pair. The guest was never protected: it runs on with nothing held, and
    /// everything its sources had reported is theirs again.
    pub fn pair(
        guest: &'g mut G,
        line: Line<S>,
        switch: Switch,
        patience: Duration,
    ) -> Result<(Self, EpochReport), (CheckpointError, Survived)> {
        let memory = guest.memory();
        let end = memory.iter().map(|w| w.iova() + w.len()).max().unwrap_or(0);
        let mut all = DirtySet::new(end.div_ceil(PAGE_SIZE));
        for window in &memory {
            all.insert_bytes(window.iova(), window.len());
        }
        let mut primary = Self {
            guest,
            stream: EpochWriter::new(line),
            control: Control::new(Side::Primary, 0),
            switch,
            memory,
            span: 0..end,
            aside: Aside::new(all.count() * PAGE_SIZE),
            all,
            sets: Vec::new(),
            epochs: 0,
        };
        match primary.first_copy(patience) {
            Ok(report) => Ok((primary, report)),
            Err(error) => {
                let survived = primary.alone();
                Err((error, survived))
            }
        }
    }

    fn first_copy(&mut self, patience: Duration) -> Result<EpochReport, CheckpointError> {
        let set = self.stream.get_mut().set_patience(Some(patience));
        set.map_err(self.control.lost("setting a time limit".to_owned()))?;
        self.guest.hold()?;
        self.start_tracking()?;
        let description = self.guest.describe();
        let opened = self.stream.open(&description);
        opened.map_err(self.control.lost("opening the stream".to_owned()))?;
        let all = self.all.clone();
        let mut sent = self.send(&all)?;
        for _ in 1..FIRST_ROUNDS {
            let dirty = self.collect()?;
            sent += self.send(&dirty)?;
        }
        let ahead = sent;
        let begin = Instant::now();
        self.guest.pause()?;
        let stopped = Instant::now();
        let dirty = self.collect()?;
        let harvested = Instant::now();
        sent += self.send(&dirty)?;
        self.memory_end()?;
        let records = self.guest.save()?;
        let devices = epoch::devices(&records);
        let devices = devices.map_err(|error| CheckpointError::Epoch(error.to_string()))?;
        self.put(&devices)?;
        let handed = Instant::now();
        self.control.hear(self.stream.get_mut())?;
        let loaded = Instant::now();
        self.guest.make_true()?;
        self.guest.resume()?;
        let paused = begin.elapsed();
        self.is_whole()?;
        Ok(EpochReport {
            number: 0,
            pages: sent,
            ahead,
            bytes: self.stream.written(),
            pause_ns: nanos(paused),
            stop_ns: nanos(stopped - begin),
            harvest_ns: nanos(harvested - stopped),
            aside_ns: 0,
            send_ns: nanos(handed - harvested),
            load_ns: nanos(loaded - handed),
        })
    }

    /// Makes one checkpoint. The guest runs when it returns.
    ///
    /// # Errors
    /// Why there is none. The guest stays as it is, paused or not, and a failover is to be waited
    /// for: [`survive`](Self::survive).
    pub fn checkpoint(&mut self) -> Result<EpochReport, CheckpointError> {
        let before = self.stream.written();
        self.switch.check()?;
        self.say(Message::Plain(Kind::Request))?;
        self.control.hear(self.stream.get_mut())?;
        self.switch.check()?;
        self.say(Message::Plain(Kind::Send))?;
        let ahead = self.send_ahead()?;
        let begin = Instant::now();
        self.guest.pause()?;
        // Again: it may have been asked for meanwhile.
        self.switch.check()?;
        let stopped = Instant::now();
        let dirty = self.collect()?;
        let harvested = Instant::now();
        if !self.aside.take(&self.memory, &dirty)? {
            self.send(&dirty)?;
        }
        let records = self.guest.save()?;
        let aside = Instant::now();
        // Everything of this checkpoint is here: the guest may go on, and whatever it puts out
        // meanwhile is held for the next one.
        let owed = self.guest.owes();
        let mut paused = aside;
        if !owed {
            self.guest.resume()?;
            paused = Instant::now();
        }
        let sending = Instant::now();
        self.send_aside()?;
        self.memory_end()?;
        let devices = epoch::devices(&records);
        let devices = devices.map_err(|error| CheckpointError::Epoch(error.to_string()))?;
        let count = u64::try_from(devices.len()).unwrap_or(u64::MAX);
        self.say(Message::Size(count))?;
        self.put(&devices)?;
        let handed = Instant::now();
        self.control.hear(self.stream.get_mut())?;
        self.control.hear(self.stream.get_mut())?;
        let loaded = Instant::now();
        if owed {
            self.guest.make_true()?;
            self.guest.resume()?;
            paused = Instant::now();
        }
        self.epochs += 1;
        self.is_whole()?;
        Ok(EpochReport {
            number: self.epochs,
            pages: ahead + dirty.count(),
            ahead,
            bytes: self.stream.written() - before,
            pause_ns: nanos(paused - begin),
            stop_ns: nanos(stopped - begin),
            harvest_ns: nanos(harvested - stopped),
            aside_ns: nanos(aside - harvested),
            send_ns: nanos(handed - sending),
            load_ns: nanos(loaded - handed),
        })
    }

    /// Sends what is dirty while the guest runs, again and again, until little is or it does not
    /// become less: what it dirties meanwhile is sent when it has been stopped.
    fn send_ahead(&mut self) -> Result<u64, CheckpointError> {
        let (mut sent, mut before) = (0, u64::MAX);
        for _ in 0..ROUNDS_AHEAD {
            let dirty = self.collect()?;
            let count = self.send(&dirty)?;
            sent += count;
            if count <= FEW || count > before / 4 * 3 {
                break;
            }
            before = count;
        }
        Ok(sent)
    }

    /// Makes a checkpoint whenever `period` has passed since the last one or somebody asked for
    /// one, until something ends that. `each` is told of every checkpoint.
    ///
    /// Returns why it ended; a failover that was asked for is one reason.
    pub fn run(&mut self, period: Duration, mut each: impl FnMut(&EpochReport)) -> CheckpointError {
        loop {
            // A failover that ended the wait is found at the start of the checkpoint.
            self.switch.sleep(period);
            match self.checkpoint() {
                Ok(report) => each(&report),
                Err(error) => return error,
            }
        }
    }

    /// The guest, to look at.
    pub fn guest(&mut self) -> &mut G {
        self.guest
    }

    /// Waits until a failover to this side is decided, then carries it out: the guest goes on from
    /// where it is, which is at or after the last checkpoint, and its output goes out.
    ///
    /// # Errors
    /// [`CheckpointError::Failover`] if somebody else carries it out.
    pub fn survive(self) -> Result<Survived, CheckpointError> {
        self.switch.wait();
        let switch = self.switch.clone();
        let (survived, line) = self.go_alone();
        let completed = switch.complete()?;
        line.close(&completed);
        Ok(survived)
    }

    fn alone(self) -> Survived {
        let (survived, line) = self.go_alone();
        drop(line);
        survived
    }

    fn go_alone(self) -> (Survived, Line<S>) {
        let mut survived = Survived {
            epochs: self.epochs,
            ..Survived::default()
        };
        for (named, set) in self.guest.sources().iter_mut().zip(&self.sets) {
            match named.source.put_back(set) {
                Ok(()) => survived.put_back += set.count(),
                Err(error) => survived
                    .aftermath
                    .push(format!("giving pages back to '{}': {error}", named.name)),
            }
        }
        let freed = self.guest.let_out().and_then(|()| self.guest.resume());
        if let Err(error) = freed {
            survived.aftermath.push(error.to_string());
        }
        (survived, self.stream.into_inner())
    }

    /// The checkpoint is whole: nothing of it is to be given back, and its output goes out.
    fn is_whole(&mut self) -> Result<(), CheckpointError> {
        self.sets.clear();
        Ok(self.guest.release()?)
    }

    fn start_tracking(&mut self) -> Result<(), CheckpointError> {
        let range = |window: &DmaMemory| window.iova()..window.iova() + window.len();
        let ranges: Vec<Range<u64>> = self.memory.iter().map(range).collect();
        self.guest.begin_tracking(&ranges, PAGE_SIZE)?;
        for NamedSource { name, source } in self.guest.sources() {
            // A former pair may have left it on.
            let started = match source.stop() {
                Ok(()) | Err(DirtyError::NotStarted) => source.start(&ranges, PAGE_SIZE),
                Err(error) => Err(error),
            };
            started.map_err(source_failed(name))?;
        }
        Ok(())
    }

    /// Asks every source for its pages; each answer is kept until the epoch is safe.
    fn collect(&mut self) -> Result<DirtySet, CheckpointError> {
        let mut union = DirtySet::new(self.all.len());
        let sources = self.guest.sources();
        self.sets
            .resize_with(sources.len(), || DirtySet::new(self.all.len()));
        for (NamedSource { name, source }, kept) in sources.iter_mut().zip(&mut self.sets) {
            let mut set = DirtySet::new(self.all.len());
            let reported = source.report(self.span.clone(), &mut set);
            set.intersect_with(&self.all);
            // Of the first copy every round is kept: none of it is safe before the last.
            kept.union_with(&set);
            union.union_with(&set);
            reported.map_err(source_failed(name))?;
        }
        Ok(union)
    }

    fn send(&mut self, pages: &DirtySet) -> Result<u64, CheckpointError> {
        let mut numbers = pages.iter();
        let mut batch: Vec<u64> = Vec::with_capacity(BATCH);
        loop {
            batch.extend(numbers.by_ref().take(BATCH - batch.len()));
            if batch.is_empty() {
                return Ok(pages.count());
            }
            let written = self.stream.pages(&self.memory, &batch);
            let written = written.map_err(self.control.lost("sending memory".to_owned()))?;
            batch.drain(..written.pages);
        }
    }

    fn send_aside(&mut self) -> Result<(), CheckpointError> {
        for (pages, data) in self.aside.records() {
            let sent = self.stream.page_data(pages, data);
            sent.map_err(self.control.lost("sending memory".to_owned()))?;
        }
        Ok(())
    }

    fn memory_end(&mut self) -> Result<(), CheckpointError> {
        let ended = self.stream.memory_end();
        ended.map_err(self.control.lost("sending the end of memory".to_owned()))
    }

    fn put(&mut self, devices: &[u8]) -> Result<(), CheckpointError> {
        let put = self.stream.put(devices);
        put.map_err(self.control.lost("sending device state".to_owned()))
    }

    fn say(&mut self, message: Message) -> Result<(), CheckpointError> {
        self.control.say(self.stream.get_mut(), message)
    }
}

fn source_failed(name: &str) -> impl FnOnce(DirtyError) -> CheckpointError {
    let name = name.to_owned();
    move |source| CheckpointError::Source { name, source }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
