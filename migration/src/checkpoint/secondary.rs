//! The side that keeps the last whole checkpoint.

use super::aside;
use super::control::Control;
use super::error::CheckpointError;
use super::guest::Standby;
use super::link::{HangUp, Line, Switch};
use super::message::{Kind, Message, Side};
use crate::error::GuestError;
use crate::guest::DeviceRecord;
use crate::stream::GatherWrite;
use crate::stream::epoch::{EpochReader, Part};
use driver::dirty::{DirtySet, PAGE_SIZE};
use driver::memory::DmaMemory;
use std::io::Read;
use std::time::Duration;

const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_SIZE == 4096);

/// Longest device state of a checkpoint, held output included, in bytes.
const STATE_MAX: u64 = 1 << 30;
/// Most devices of a guest, its CPU included.
const DEVICES_MAX: usize = 4096;

/// What came of an epoch so far: nothing of it is in the guest's memory.
#[derive(Debug, Default)]
struct Epoch {
    pages: Vec<u64>,
    data: Vec<u8>,
    records: Vec<DeviceRecord>,
}

impl Epoch {
    /// Forgets all but the last of each page, of which there are `all`.
    fn keep_latest(&mut self, all: u64) {
        let mut later = DirtySet::new(all);
        let pages = self.pages.iter().rev();
        let mut keeps: Vec<bool> = pages.map(|page| later.insert(*page)).collect();
        keeps.reverse();
        let mut to = 0;
        for (from, _) in keeps.iter().enumerate().filter(|(_, keep)| **keep) {
            self.pages.swap(to, from);
            let bytes = from * PAGE_BYTES..(from + 1) * PAGE_BYTES;
            self.data.copy_within(bytes, to * PAGE_BYTES);
            to += 1;
        }
        self.pages.truncate(to);
    }
}

/// A whole checkpoint, where it is kept.
#[derive(Debug)]
pub struct Kept<'a> {
    /// The guest's description.
    pub description: &'a [u8],
    /// The devices' states, held output included.
    pub devices: &'a [DeviceRecord],
    /// The pages that came with it, some perhaps more than once; none for the first copy, with which
    /// all came.
    pub pages: &'a [u64],
    /// All of the guest's pages.
    pub all: &'a DirtySet,
    memory: &'a [DmaMemory],
}

impl Kept<'_> {
    /// What a page holds in the checkpoint, whatever runs here.
    ///
    /// # Errors
    /// [`CheckpointError::Epoch`] if it is none of the guest's pages.
    pub fn read(&self, page: u64, into: &mut [u8; PAGE_BYTES]) -> Result<(), CheckpointError> {
        let at = page.saturating_mul(PAGE_SIZE);
        let window = window_of(self.memory, at)?;
        Ok(window.read(at - window.iova(), into).map_err(beyond)?)
    }
}

/// The secondary of a pair.
#[derive(Debug)]
pub struct Secondary<'g, S, G: ?Sized> {
    standby: &'g mut G,
    description: Vec<u8>,
    stream: EpochReader<Line<S>>,
    control: Control,
    switch: Switch,
    memory: Vec<DmaMemory>,
    /// All of the guest's pages.
    all: DirtySet,
    /// The memory of the last whole checkpoint, if something here writes the guest's.
    cache: Option<DmaMemory>,
    /// Pages that were written here since the last whole checkpoint. Kept until they are undone: an
    /// epoch that comes to nothing must not forget them.
    own: DirtySet,
    /// The device states of the last whole checkpoint.
    whole: Vec<DeviceRecord>,
    epoch: Epoch,
    epochs: u64,
    /// A checkpoint was begun to be loaded and could not: what is in memory is none.
    torn: bool,
    patience: Duration,
}

impl<'g, S, G> Secondary<'g, S, G>
where
    S: HangUp + 'static,
    for<'a> &'a S: Read + GatherWrite,
    G: Standby + ?Sized,
{
    /// Takes a guest for the first time. The primary may take `patience` for each thing that is due;
    /// for the next checkpoint it may take for ever.
    ///
    /// # Errors
    /// Why there is no pair: nothing here can be run.
    pub fn pair(
        standby: &'g mut G,
        line: Line<S>,
        switch: Switch,
        patience: Duration,
    ) -> Result<Self, CheckpointError> {
        let mut secondary = Self {
            standby,
            description: Vec::new(),
            stream: EpochReader::new(line),
            control: Control::new(Side::Secondary, STATE_MAX),
            switch,
            memory: Vec::new(),
            all: DirtySet::default(),
            cache: None,
            own: DirtySet::default(),
            whole: Vec::new(),
            epoch: Epoch::default(),
            epochs: 0,
            torn: false,
            patience,
        };
        secondary.await_no_longer_than(Some(patience))?;
        secondary.first_copy()?;
        Ok(secondary)
    }

    fn first_copy(&mut self) -> Result<(), CheckpointError> {
        let Part::Open(description) = self.part()? else {
            return Err(CheckpointError::Epoch(
                "no description of a guest".to_owned(),
            ));
        };
        self.standby.prepare(&description)?;
        self.description = description;
        self.memory = self.standby.memory();
        let end = self.memory.iter().map(|w| w.iova() + w.len()).max();
        self.all = DirtySet::new(end.unwrap_or(0).div_ceil(PAGE_SIZE));
        for window in &self.memory {
            self.all.insert_bytes(window.iova(), window.len());
        }
        self.own = DirtySet::new(self.all.len());
        self.epoch.data = aside::room(self.all.count() * PAGE_SIZE);
        let mut missing = self.all.clone();
        loop {
            match self.part()? {
                Part::Pages(pages) => {
                    // Until it is whole nobody can run it: straight into memory.
                    self.take_pages(&pages)?;
                    self.store()?;
                    pages.iter().for_each(|page| {
                        missing.remove(*page);
                    });
                    self.epoch.pages.clear();
                }
                Part::MemoryEnd => break,
                other => return Err(unexpected("pages or the end of memory", &other)),
            }
        }
        if !missing.is_empty() {
            let why = format!("{} pages of the guest have not come", missing.count());
            return Err(CheckpointError::Epoch(why));
        }
        self.take_devices(STATE_MAX)?;
        self.cache = self.standby.cache()?;
        self.load()?;
        let all = std::mem::take(&mut self.all);
        self.refresh_cache(all.iter())?;
        self.all = all;
        self.say(Kind::Ready)?;
        self.settle()
    }

    /// Takes one checkpoint, and waits for it as long as need be.
    ///
    /// # Errors
    /// Why there is none. What is in memory, after [`take_over`](Self::take_over), is the last whole
    /// one.
    pub fn checkpoint(&mut self) -> Result<u64, CheckpointError> {
        self.await_no_longer_than(None)?;
        self.control.hear(self.stream.get_mut())?;
        self.await_no_longer_than(Some(self.patience))?;
        self.switch.check()?;
        self.standby.stop(&mut self.own)?;
        self.say(Kind::Reply)?;
        // While the primary's guest runs: afterwards it would wait for that.
        self.roll_back()?;
        self.control.hear(self.stream.get_mut())?;
        self.epoch.pages.clear();
        self.epoch.records.clear();
        loop {
            match self.part()? {
                Part::Pages(pages) => self.take_pages(&pages)?,
                Part::MemoryEnd => break,
                other => return Err(unexpected("pages or the end of memory", &other)),
            }
        }
        let size = self.control.hear(self.stream.get_mut())?;
        self.take_devices(size)?;

        // Everything is here. From now on this checkpoint is the one, whoever else is gone: a
        // failover comes after it.
        self.switch.begin_load()?;
        let told = self.say(Kind::Received);
        self.torn = true;
        let loaded = self.store().and_then(|()| self.load());
        self.torn = loaded.is_err();
        let pending = self.switch.end_load();
        loaded?;
        self.epochs += 1;
        let told = told.and(pending.map_err(CheckpointError::from));
        let told = told.and_then(|()| self.say(Kind::Loaded));
        // After the primary has been told: its guest waits for that. And in any case: this is the
        // checkpoint to go back to.
        let pages = std::mem::take(&mut self.epoch.pages);
        self.refresh_cache(pages.iter().copied())?;
        self.epoch.pages = pages;
        told?;
        self.settle()?;
        Ok(self.epochs)
    }

    /// Takes checkpoints until something ends that; returns what. `each` is told of every one, with
    /// the place that holds it.
    pub fn run(&mut self, mut each: impl FnMut(u64, &mut G)) -> CheckpointError {
        loop {
            match self.checkpoint() {
                Ok(number) => each(number, self.standby),
                Err(error) => return error,
            }
        }
    }

    /// Waits until a failover to this side is decided, then runs the guest from the last whole
    /// checkpoint. Returns how many checkpoints came after the first copy.
    ///
    /// # Errors
    /// [`CheckpointError::Epoch`] if the last checkpoint could not be loaded, and so there is none;
    /// [`CheckpointError::Guest`] if the guest cannot be run.
    pub fn take_over(mut self) -> Result<u64, CheckpointError> {
        self.switch.wait();
        if self.torn {
            let why = "the last one could not be loaded, and the one before is gone";
            return Err(CheckpointError::Epoch(why.to_owned()));
        }
        self.standby.stop(&mut self.own)?;
        if self.cache.is_some() {
            self.roll_back()?;
            self.standby.load(&self.whole)?;
        }
        self.standby.take_over()?;
        let completed = self.switch.complete()?;
        self.stream.into_inner().close(&completed);
        Ok(self.epochs)
    }

    /// The last whole checkpoint, while no next one is taken.
    pub fn kept(&self) -> Kept<'_> {
        Kept {
            description: &self.description,
            devices: &self.whole,
            pages: &self.epoch.pages,
            all: &self.all,
            memory: match &self.cache {
                Some(cache) => std::slice::from_ref(cache),
                None => &self.memory,
            },
        }
    }

    fn await_no_longer_than(&mut self, patience: Option<Duration>) -> Result<(), CheckpointError> {
        let set = self.stream.get_mut().set_patience(patience);
        set.map_err(self.control.lost("setting a time limit".to_owned()))
    }

    fn part(&mut self) -> Result<Part, CheckpointError> {
        Ok(self.stream.part()?)
    }

    fn say(&mut self, kind: Kind) -> Result<(), CheckpointError> {
        self.control
            .say(self.stream.get_mut(), Message::Plain(kind))
    }

    /// Takes a record of pages into the epoch's buffer, which never holds more than twice what the
    /// guest has: a page may come again, as often as the primary finds it dirty.
    fn take_pages(&mut self, pages: &[u64]) -> Result<(), CheckpointError> {
        if let Some(page) = pages.iter().find(|page| !self.all.contains(**page)) {
            let why = format!("page {page:#x} is none of the guest's memory");
            return Err(CheckpointError::Epoch(why));
        }
        let epoch = &mut self.epoch;
        let twice = usize::try_from(self.all.count()).map_or(usize::MAX, |all| all * 2);
        if epoch.pages.len() + pages.len() > twice {
            epoch.keep_latest(self.all.len());
        }
        let held = epoch.pages.len();
        let count = held + pages.len();
        if count > twice {
            let why = format!("{count} pages, and the guest has {}", self.all.count());
            return Err(CheckpointError::Epoch(why));
        }
        epoch.pages.extend(pages);
        // Kept from epoch to epoch: what is here is overwritten.
        if epoch.data.len() < count * PAGE_BYTES {
            epoch.data.resize(count * PAGE_BYTES, 0);
        }
        let into = epoch.data.get_mut(held * PAGE_BYTES..count * PAGE_BYTES);
        Ok(self.stream.data(into.unwrap_or_default())?)
    }

    /// Takes device states, which are `size` bytes exactly, or at most for the first time.
    fn take_devices(&mut self, size: u64) -> Result<(), CheckpointError> {
        let begin = self.stream.offset();
        loop {
            let part = self.part()?;
            let taken = self.stream.offset() - begin;
            if taken > size {
                let why = format!("{taken} bytes of device state, and {size} were announced");
                return Err(CheckpointError::Epoch(why));
            }
            match part {
                Part::Device(record) if self.epoch.records.len() < DEVICES_MAX => {
                    self.epoch.records.push(record);
                }
                Part::End if taken == size || size == STATE_MAX => return Ok(()),
                Part::End => {
                    let why = format!("{taken} bytes of device state, and {size} were announced");
                    return Err(CheckpointError::Epoch(why));
                }
                other => return Err(unexpected("the state of a device", &other)),
            }
        }
    }

    /// Undoes what was written here: memory is that of the last whole checkpoint.
    fn roll_back(&mut self) -> Result<(), CheckpointError> {
        let mut undone = std::mem::take(&mut self.own);
        self.own = DirtySet::new(self.all.len());
        let Some(cache) = &self.cache else {
            return Ok(());
        };
        undone.intersect_with(&self.all);
        let mut bytes = [0; PAGE_BYTES];
        for page in undone.iter() {
            let at = page * PAGE_SIZE;
            let window = window_of(&self.memory, at)?;
            cache.read(at, &mut bytes).map_err(beyond)?;
            window.write(at - window.iova(), &bytes).map_err(beyond)?;
        }
        Ok(())
    }

    /// Stores the epoch's pages, adjacent ones at once.
    fn store(&self) -> Result<(), CheckpointError> {
        let Epoch { pages, data, .. } = &self.epoch;
        let mut from = 0;
        while let Some(first) = pages.get(from) {
            let window = window_of(&self.memory, first * PAGE_SIZE)?;
            let offset = first * PAGE_SIZE - window.iova();
            let room = (window.len() - offset) / PAGE_SIZE;
            let adjacent = (*first..first.saturating_add(room)).zip(&pages[from..]);
            let count = adjacent
                .take_while(|(expected, page)| expected == *page)
                .count();
            let to = from + count.max(1);
            let bytes = data
                .get(from * PAGE_BYTES..to * PAGE_BYTES)
                .unwrap_or_default();
            window.write(offset, bytes).map_err(beyond)?;
            from = to;
        }
        Ok(())
    }

    fn load(&mut self) -> Result<(), CheckpointError> {
        self.standby.load(&self.epoch.records)?;
        std::mem::swap(&mut self.whole, &mut self.epoch.records);
        self.epoch.records.clear();
        Ok(())
    }

    /// Copies pages of the checkpoint into the cache. Nothing that runs here has been told to begin.
    fn refresh_cache(&self, pages: impl Iterator<Item = u64>) -> Result<(), CheckpointError> {
        let Some(cache) = &self.cache else {
            return Ok(());
        };
        let mut bytes = [0; PAGE_BYTES];
        for page in pages {
            let at = page * PAGE_SIZE;
            let window = window_of(&self.memory, at)?;
            window
                .read(at - window.iova(), &mut bytes)
                .map_err(beyond)?;
            cache.write(at, &bytes).map_err(beyond)?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), CheckpointError> {
        Ok(self.standby.settle()?)
    }
}

pub(super) fn window_of(memory: &[DmaMemory], at: u64) -> Result<&DmaMemory, CheckpointError> {
    let holds = |w: &&DmaMemory| at >= w.iova() && at - w.iova() < w.len();
    let found = memory.iter().find(holds);
    found.ok_or_else(|| CheckpointError::Epoch(format!("no memory at {at:#x}")))
}

fn beyond(error: driver::memory::MemoryError) -> GuestError {
    GuestError::new("storing a page", error)
}

fn unexpected(expected: &str, got: &Part) -> CheckpointError {
    CheckpointError::Epoch(format!("expected {expected}, got {}", got.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_pages_that_came_again_the_last_is_kept() {
        let came = [(3_u64, 1_u8), (5, 2), (3, 3), (4, 4), (3, 5), (5, 6)];
        let mut epoch = Epoch::default();
        for (page, byte) in came {
            epoch.pages.push(page);
            epoch.data.extend([byte; PAGE_BYTES]);
        }
        epoch.keep_latest(8);
        assert_eq!(epoch.pages, [4, 3, 5]);
        let bytes = |at: usize| epoch.data[at * PAGE_BYTES..][..PAGE_BYTES].to_vec();
        for (at, byte) in [4, 5, 6].into_iter().enumerate() {
            assert_eq!(bytes(at), [byte; PAGE_BYTES]);
        }
    }
}
