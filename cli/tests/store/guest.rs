//! Streams of small guests, made up from a seed.

use migration::DeviceRecord;
pub use migration::faults::Random;
use migration::stream::body::BodyWriter;
use migration::stream::{Context, SectionKind};
use std::collections::BTreeMap;

/// A guest as its stream has it.
#[derive(Clone, Debug)]
pub struct Guest {
    pub pages: BTreeMap<u64, Vec<u8>>,
    pub state: u64,
}

impl Guest {
    /// One with so many pages, some of them alike.
    pub fn new(random: &mut Random, pages: u64) -> Self {
        let mut guest = Self {
            pages: BTreeMap::new(),
            state: 0,
        };
        for page in 0..pages {
            guest.write(random, page);
        }
        guest
    }

    fn write(&mut self, random: &mut Random, page: u64) {
        let word = match random.below(4) {
            0 => 0,
            _ => random.next_u64(),
        };
        let bytes = (0..512).flat_map(|at: u64| word.wrapping_mul(at + 1).to_le_bytes());
        self.pages.insert(page, bytes.collect());
    }

    /// Runs for a while: so many pages are written. Which.
    pub fn run(&mut self, random: &mut Random, writes: u64) -> Vec<u64> {
        self.state += 1;
        let count = self.pages.len() as u64;
        let written: Vec<u64> = (0..writes).map(|_| random.below(count)).collect();
        for page in &written {
            self.write(random, *page);
        }
        written
    }

    pub fn description(&self) -> Vec<u8> {
        format!("{{\"pages\":{}}}", self.pages.len()).into_bytes()
    }

    pub fn devices(&self) -> Vec<DeviceRecord> {
        let record = |id: u32| DeviceRecord {
            id,
            options: Vec::new(),
            context: Context::of(SectionKind::Cpu, format!("{}", self.state).into_bytes()),
        };
        vec![record(0), record(1)]
    }

    /// Its stream, each page once.
    pub fn stream(&self) -> Vec<u8> {
        let mut writer = BodyWriter::open(Vec::new(), &self.description()).unwrap();
        let pages: Vec<u64> = self.pages.keys().copied().collect();
        let data: Vec<u8> = self.pages.values().flatten().copied().collect();
        writer.pages(&pages, &data).unwrap();
        for record in self.devices() {
            writer.device(&record).unwrap();
        }
        writer.end().unwrap().0
    }
}
