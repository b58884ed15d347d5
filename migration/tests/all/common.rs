//! A guest without a device: memory, and sources that report what the test says.

use driver::dirty::{DirtyError, DirtySet, DirtySource, PAGE_SIZE};
use driver::memory::DmaMemory;
use migration::stream::{Context, SectionKind};
use migration::{DeviceRecord, Guest, GuestError, Incoming, NamedSource, Paused};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const PAGES: u64 = 64;
/// Memory does not start at 0, so that page numbers and offsets differ.
pub const BASE: u64 = 16 * PAGE_SIZE;

pub fn memory(pages: u64) -> DmaMemory {
    let fd = rustix::fs::memfd_create("migration-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = std::fs::File::from(fd);
    file.set_len(pages * PAGE_SIZE).unwrap();
    DmaMemory::from_file(&file, 0, pages * PAGE_SIZE, BASE).unwrap()
}

/// The dirty pages of one source, shared with the test.
#[derive(Clone, Debug, Default)]
pub struct Dirty(pub Arc<Mutex<BTreeSet<u64>>>);

struct Source(Dirty);

impl DirtySource for Source {
    fn start(&mut self, _: &[Range<u64>], granularity: u64) -> Result<u64, DirtyError> {
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
        Ok(())
    }
}

pub struct FakeGuest {
    pub memory: DmaMemory,
    pub dirty: [Dirty; 2],
    pub runs: bool,
    sources: Vec<NamedSource>,
}

impl FakeGuest {
    pub fn new() -> Self {
        Self::of(PAGES)
    }

    pub fn of(pages: u64) -> Self {
        let dirty = [Dirty::default(), Dirty::default()];
        let named = |(name, dirty): (&str, &Dirty)| NamedSource {
            name: name.to_owned(),
            source: Box::new(Source(dirty.clone())) as Box<dyn DirtySource>,
        };
        let memory = memory(pages);
        for page in 0..pages {
            memory.write(page * PAGE_SIZE, &page.to_le_bytes()).unwrap();
        }
        Self {
            memory,
            sources: ["one", "two"].into_iter().zip(&dirty).map(named).collect(),
            dirty,
            runs: true,
        }
    }

    /// Stores into a page and tells source `source`.
    pub fn dirty(&self, source: usize, page: u64, value: u64) {
        self.memory
            .write(page * PAGE_SIZE + 8, &value.to_le_bytes())
            .unwrap();
        self.report_only(source, page);
    }

    pub fn report_only(&self, source: usize, page: u64) {
        self.dirty[source]
            .0
            .lock()
            .unwrap()
            .insert(page + BASE / PAGE_SIZE);
    }
}

impl Guest for FakeGuest {
    fn describe(&self) -> Vec<u8> {
        b"a guest".to_vec()
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
        Ok(())
    }
    fn save(&mut self) -> Result<Vec<DeviceRecord>, GuestError> {
        Ok(vec![DeviceRecord {
            id: 7,
            options: vec![("name".to_owned(), "seven".to_owned())],
            context: Context::of(SectionKind::Registers, b"state".to_vec()),
        }])
    }
}

pub struct FakeArrival {
    pages: u64,
    pub memory: Vec<DmaMemory>,
    pub records: Vec<DeviceRecord>,
    pub runs: bool,
}

impl FakeArrival {
    pub fn of(pages: u64) -> Self {
        Self {
            pages,
            memory: Vec::new(),
            records: Vec::new(),
            runs: false,
        }
    }
}

impl Default for FakeArrival {
    fn default() -> Self {
        Self::of(PAGES)
    }
}

impl Incoming for FakeArrival {
    fn prepare(&mut self, description: &[u8]) -> Result<(), GuestError> {
        if description != b"a guest" {
            return Err(GuestError("unknown guest".to_owned()));
        }
        self.memory = vec![memory(self.pages)];
        Ok(())
    }
    fn memory(&self) -> Vec<DmaMemory> {
        self.memory.clone()
    }
    fn poison(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
    fn restore(&mut self, record: DeviceRecord) -> Result<(), GuestError> {
        self.records.push(record);
        Ok(())
    }
    fn ready(&mut self) -> Result<Duration, GuestError> {
        Ok(Duration::from_nanos(5))
    }
    fn go(&mut self) -> Result<(), GuestError> {
        self.runs = true;
        Ok(())
    }
}

pub fn contents(memory: &DmaMemory) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(memory.len()).unwrap()];
    memory.read(0, &mut bytes).unwrap();
    bytes
}
