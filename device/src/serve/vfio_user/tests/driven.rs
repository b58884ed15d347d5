//! A driver with pencil and paper behind a session: one ring of an entropy device, which fills a page
//! for each buffer.

use super::Outcome;
use super::talk::{Talk, numbers, word};
use crate::function::{FunctionConfig, PciFunction};
use crate::rng::RngDevice;
use crate::serve::vfio_user::ServedFunction;
use crate::tracker::Marking;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const MEMORY: u64 = 1 << 20;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
pub const USED: u64 = 0x3000;
/// Pages that only the driver writes.
pub const DRIVERS: [u64; 2] = [DESC / 4096, AVAIL / 4096];
/// Where the pages begin that are filled, one for each buffer.
pub const PAGES: u64 = 0x1_0000;
const SIZE: u16 = 64;
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Driven {
    pub talk: Talk,
    pub function: Arc<PciFunction>,
    pub memory: Arc<File>,
}

pub fn guest() -> Result<Arc<File>, std::io::Error> {
    let memory = tempfile::tempfile()?;
    memory.set_len(MEMORY)?;
    Ok(Arc::new(memory))
}

impl Driven {
    /// A device after power-on, with the guest's memory mapped from 0 on.
    pub fn new(marking: Marking, memory: &Arc<File>) -> Result<Self, Box<dyn std::error::Error>> {
        let config = FunctionConfig {
            marking,
            ..FunctionConfig::default()
        };
        let function = PciFunction::new(config, RngDevice::seeded(7));
        let mut talk = Talk::new(ServedFunction::new(Arc::clone(&function)));
        let fd = memory.as_fd().try_clone_to_owned()?;
        talk.map(0, MEMORY, Some(fd)).map_err(|e| e.to_string())?;
        Ok(Self {
            talk,
            function,
            memory: Arc::clone(memory),
        })
    }

    pub fn set(&mut self, offset: u64, value: u64, width: usize) {
        let bytes = numbers(&[(value, width)]);
        assert_eq!(self.talk.write(0, offset, &bytes), Ok(()));
    }

    pub fn get(&mut self, offset: u64) -> u32 {
        word(&self.talk.read(0, offset, 4).unwrap(), 0)
    }

    /// VERSION_1 and SUSPEND; queue 0 enabled, with vector 1; DRIVER_OK.
    pub fn start(&mut self) {
        for status in [1, 3] {
            self.set(0x14, status, 1);
        }
        self.set(8, 1, 4);
        self.set(12, 1 | 1 << 11, 4);
        self.set(0x14, 0xb, 1);
        self.set(0x16, 0, 2);
        self.set(0x18, SIZE.into(), 2);
        self.set(0x1a, 1, 2);
        for (at, address) in [(0x20, DESC), (0x28, AVAIL), (0x30, USED)] {
            self.set(at, address, 4);
            self.set(at + 4, 0, 4);
        }
        self.set(0x1c, 1, 2);
        self.set(0x14, 0xf, 1);
    }

    /// Makes buffers `from` to `to` available; page n of those to be filled is buffer n's.
    pub fn offer(&mut self, from: u16, to: u16) -> Outcome {
        for n in from..to {
            let at = PAGES + u64::from(n) * 4096;
            let desc = numbers(&[(at, 8), (4096, 4), (2, 2), (0, 2)]);
            self.memory.write_all_at(&desc, DESC + 16 * u64::from(n))?;
            self.memory
                .write_all_at(&n.to_le_bytes(), AVAIL + 4 + 2 * u64::from(n))?;
        }
        self.memory.write_all_at(&to.to_le_bytes(), AVAIL + 2)?;
        self.set(0x3000, 0, 2);
        Ok(())
    }

    pub fn used(&self) -> Result<u16, std::io::Error> {
        let mut bytes = [0; 2];
        self.memory.read_exact_at(&mut bytes, USED + 2)?;
        Ok(u16::from_le_bytes(bytes))
    }

    pub fn await_used(&self, expected: u16) -> Outcome {
        let begin = Instant::now();
        while self.used()? != expected {
            assert!(begin.elapsed() < PATIENCE, "{} used", self.used()?);
            std::thread::yield_now();
        }
        Ok(())
    }

    pub fn bytes(&self) -> Result<Vec<u8>, std::io::Error> {
        let mut bytes = vec![0; usize::try_from(MEMORY).unwrap_or(0)];
        self.memory.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// Pages whose bytes differ.
pub fn changed(before: &[u8], after: &[u8]) -> Vec<u64> {
    let pages = before.chunks(4096).zip(after.chunks(4096));
    let pages = (0..).zip(pages).filter(|(_, (old, new))| old != new);
    pages.map(|(page, _)| page).collect()
}
