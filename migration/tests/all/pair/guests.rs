//! A guest of memory and output alone, and the place of its copy.

use crate::common::Dirty;
use driver::dirty::{DirtyError, DirtySet, DirtySource, PAGE_SIZE};
use driver::memory::DmaMemory;
use migration::checkpoint::{Protected, Standby};
use migration::faults::Random;
use migration::stream::{Context, SectionKind};
use migration::{DeviceRecord, Guest, GuestError, NamedSource, Paused};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::mpsc::Sender;

pub const PAGES: u64 = 48;

pub fn memory(name: &str) -> DmaMemory {
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = std::fs::File::from(fd);
    file.set_len(PAGES * PAGE_SIZE).unwrap();
    DmaMemory::from_file(&file, 0, PAGES * PAGE_SIZE, 0).unwrap()
}

struct Source(Dirty, bool);

impl DirtySource for Source {
    fn start(&mut self, _: &[Range<u64>], granularity: u64) -> Result<u64, DirtyError> {
        assert!(!std::mem::replace(&mut self.1, true), "started twice");
        self.0.0.lock().unwrap().clear();
        Ok(granularity)
    }
    fn report(&mut self, _: Range<u64>, into: &mut DirtySet) -> Result<(), DirtyError> {
        for page in std::mem::take(&mut *self.0.0.lock().unwrap()) {
            into.insert(page);
        }
        Ok(())
    }
    fn put_back(&mut self, pages: &DirtySet) -> Result<(), DirtyError> {
        self.0.0.lock().unwrap().extend(pages.iter());
        Ok(())
    }
    fn stop(&mut self) -> Result<(), DirtyError> {
        match std::mem::take(&mut self.1) {
            true => Ok(()),
            false => Err(DirtyError::NotStarted),
        }
    }
}

/// The guest at the primary.
pub struct Machine {
    pub memory: DmaMemory,
    dirty: [Dirty; 2],
    sources: Vec<NamedSource>,
    pub runs: bool,
    /// Output in its order: all, what is held, what went out.
    pub produced: Vec<u64>,
    pub held: Vec<u64>,
    /// Of what is held, so much was saved last.
    saved: usize,
    holds: bool,
    pub seen: Vec<u64>,
    /// Memory each time that it was saved.
    pub snapshots: Vec<Vec<u8>>,
    /// Is told of each time that it goes on.
    pub told: Option<Sender<()>>,
}

impl Machine {
    pub fn new(seed: u64) -> Self {
        let dirty = [Dirty::default(), Dirty::default()];
        let named = |(name, dirty): (&str, &Dirty)| NamedSource {
            name: name.to_owned(),
            source: Box::new(Source(dirty.clone(), false)) as Box<dyn DirtySource>,
        };
        let memory = memory("primary");
        for page in 0..PAGES {
            let word = seed ^ page;
            memory.write(page * PAGE_SIZE, &word.to_le_bytes()).unwrap();
        }
        Self {
            memory,
            sources: ["cpu", "device"]
                .into_iter()
                .zip(&dirty)
                .map(named)
                .collect(),
            dirty,
            runs: true,
            produced: Vec::new(),
            held: Vec::new(),
            saved: 0,
            holds: false,
            seen: Vec::new(),
            snapshots: Vec::new(),
            told: None,
        }
    }

    /// Runs for a while: dirties pages, and has something to say.
    pub fn work(&mut self, random: &mut Random) {
        assert!(self.runs, "it is paused");
        for _ in 0..=random.below(8) {
            let (page, source) = (random.below(PAGES), random.below(2));
            let word = random.next_u64().to_le_bytes();
            let at = page * PAGE_SIZE + random.below(512) * 8;
            self.memory.write(at, &word).unwrap();
            let dirty = &self.dirty[usize::try_from(source).unwrap()];
            dirty.0.lock().unwrap().insert(page);
        }
        let out = random.next_u64();
        self.produced.push(out);
        let to = if self.holds {
            &mut self.held
        } else {
            &mut self.seen
        };
        to.push(out);
    }

    pub fn dirty(&self) -> BTreeSet<u64> {
        let all = self
            .dirty
            .iter()
            .map(|dirty| dirty.0.lock().unwrap().clone());
        all.flatten().collect()
    }
}

impl Guest for Machine {
    fn describe(&self) -> Vec<u8> {
        b"a machine".to_vec()
    }
    fn memory(&self) -> Vec<DmaMemory> {
        vec![self.memory.clone()]
    }
    fn sources(&mut self) -> &mut [NamedSource] {
        &mut self.sources
    }
    fn pause(&mut self) -> Result<Paused, GuestError> {
        self.runs = false;
        Ok(Paused::default())
    }
    fn resume(&mut self) -> Result<(), GuestError> {
        self.runs = true;
        if let Some(told) = &self.told {
            // Nobody may listen any more.
            let _heard = told.send(());
        }
        Ok(())
    }
    fn save(&mut self) -> Result<Vec<DeviceRecord>, GuestError> {
        self.snapshots.push(crate::common::contents(&self.memory));
        self.saved = self.held.len();
        let held: Vec<u8> = self.held.iter().flat_map(|out| out.to_le_bytes()).collect();
        Ok(vec![DeviceRecord {
            id: 0,
            options: Vec::new(),
            context: Context::of(SectionKind::Cpu, held),
        }])
    }
}

impl Protected for Machine {
    fn hold(&mut self) -> Result<(), GuestError> {
        self.holds = true;
        Ok(())
    }
    fn owes(&self) -> bool {
        // Now and then: as a guest whose disk was told to flush.
        self.produced.len().is_multiple_of(2)
    }
    fn make_true(&mut self) -> Result<(), GuestError> {
        assert!(!self.runs);
        Ok(())
    }
    fn release(&mut self) -> Result<(), GuestError> {
        self.seen.extend(self.held.drain(..self.saved));
        self.saved = 0;
        Ok(())
    }
    fn let_out(&mut self) -> Result<(), GuestError> {
        self.seen.append(&mut self.held);
        self.holds = false;
        Ok(())
    }
}

/// The copy at the secondary.
pub struct Copy {
    memory: Option<DmaMemory>,
    /// It runs between checkpoints, and does something else than the primary.
    runs: bool,
    own: BTreeSet<u64>,
    pub output: Vec<u64>,
    pub runs_alone: bool,
    /// Memory after each checkpoint.
    pub snapshots: Vec<Vec<u8>>,
    /// Memory as the last load found it.
    loaded: Vec<u8>,
}

impl Copy {
    pub fn new(runs: bool) -> Self {
        Self {
            memory: None,
            runs,
            own: BTreeSet::new(),
            output: Vec::new(),
            runs_alone: false,
            snapshots: Vec::new(),
            loaded: Vec::new(),
        }
    }

    pub fn memory(&self) -> DmaMemory {
        self.memory.clone().unwrap()
    }

    /// After a checkpoint that the primary was told of.
    pub fn remember(&self) {
        assert!(self.snapshots.last() == Some(&self.loaded));
    }
}

impl Standby for Copy {
    fn prepare(&mut self, description: &[u8]) -> Result<(), GuestError> {
        assert_eq!(description, b"a machine");
        self.memory = Some(memory("secondary"));
        Ok(())
    }
    fn memory(&self) -> Vec<DmaMemory> {
        self.memory.clone().into_iter().collect()
    }
    fn cache(&self) -> Result<Option<DmaMemory>, GuestError> {
        Ok(self.runs.then(|| memory("cache")))
    }
    fn stop(&mut self, own: &mut DirtySet) -> Result<(), GuestError> {
        for page in std::mem::take(&mut self.own) {
            own.insert(page);
        }
        Ok(())
    }
    fn load(&mut self, records: &[DeviceRecord]) -> Result<(), GuestError> {
        let [record] = records else {
            return Err(GuestError("one record expected".to_owned()));
        };
        let held = record.context.section(SectionKind::Cpu).unwrap();
        for out in held.as_chunks::<8>().0 {
            let out = u64::from_le_bytes(*out);
            if !self.output.contains(&out) {
                self.output.push(out);
            }
        }
        self.loaded = crate::common::contents(self.memory.as_ref().unwrap());
        // Loaded again before it runs alone: no other checkpoint.
        if self.snapshots.last() != Some(&self.loaded) {
            self.snapshots.push(self.loaded.clone());
        }
        Ok(())
    }
    fn settle(&mut self) -> Result<(), GuestError> {
        if self.runs {
            for page in [0, 1, 2, 3, 17, PAGES - 1] {
                let at = page * PAGE_SIZE + 24;
                self.memory
                    .as_ref()
                    .unwrap()
                    .write(at, &[0xee; 100])
                    .unwrap();
                self.own.insert(page);
            }
        }
        Ok(())
    }
    fn take_over(&mut self) -> Result<(), GuestError> {
        self.runs_alone = true;
        Ok(())
    }
}
