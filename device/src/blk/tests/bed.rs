//! A block device, its disk, and a driver that asks one thing at a time.

use crate::blk::{BlkDevice, BlkOptions, Disk};
use crate::queue::Virtqueue;
use crate::queue::test_ring::{BASE, Guest, NEXT, TestRing, WRITE};
use crate::virtio::{Progress, QueueError, VirtioDevice};
use spec::queue_state::QueueState;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Typed again from VIRTIO 1.4, "Block Device".
pub(super) mod wire {
    pub(crate) const IN: u32 = 0;
    pub(crate) const OUT: u32 = 1;
    pub(crate) const FLUSH: u32 = 4;
    pub(crate) const GET_ID: u32 = 8;
    pub(crate) const DISCARD: u32 = 11;
    pub(crate) const WRITE_ZEROES: u32 = 13;
    pub(crate) const OK: u8 = 0;
    pub(crate) const IOERR: u8 = 1;
    pub(crate) const UNSUPP: u8 = 2;
}

pub(super) const SECTORS: u64 = 8192;
const MEM: u64 = 16 << 20;
/// Where requests are built, and where their data goes.
pub(super) const HEADER: u64 = BASE + 0x10000;
pub(super) const STATUS: u64 = BASE + 0x11000;
pub(super) const OUT_AT: u64 = BASE + 0x0020_0000;
pub(super) const IN_AT: u64 = BASE + 0x0080_0000;
pub(super) const UNTOUCHED: u8 = 0xa5;

/// A disk in memory that does as it is told.
#[derive(Debug)]
pub(super) struct MemDisk {
    pub data: Mutex<Vec<u8>>,
    /// Most bytes one call moves.
    pub most: AtomicUsize,
    /// What every read, write, and flush of these bytes answers.
    pub fault: Mutex<Option<(Range<u64>, i32)>>,
    /// Whether it knows fallocate.
    pub sparse: AtomicBool,
    pub flushes: AtomicUsize,
    /// Held by the test, all I/O waits.
    pub gate: Mutex<()>,
    /// Calls that have come to the gate.
    pub waiting: AtomicUsize,
}

#[derive(Clone, Debug)]
pub(super) struct Shared(pub Arc<MemDisk>);

impl MemDisk {
    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        drop(self.gate.lock().unwrap());
        match &*self.fault.lock().unwrap() {
            Some((range, errno)) if offset < range.end && range.start < offset + len => {
                Err(io::Error::from_raw_os_error(*errno))
            }
            _ => Ok(()),
        }
    }

    fn fill(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        if !self.sparse.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let at = usize::try_from(offset).unwrap();
        self.data.lock().unwrap()[at..][..usize::try_from(len).unwrap()].fill(0);
        Ok(())
    }
}

impl Disk for Shared {
    fn size(&self) -> io::Result<u64> {
        Ok(u64::try_from(self.0.data.lock().unwrap().len()).unwrap())
    }
    fn pread(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.check(offset, u64::try_from(into.len()).unwrap())?;
        let data = self.0.data.lock().unwrap();
        let rest = data
            .get(usize::try_from(offset).unwrap()..)
            .unwrap_or_default();
        let len = into
            .len()
            .min(rest.len())
            .min(self.0.most.load(Ordering::Relaxed));
        into[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    fn pwrite(&self, from: &[u8], offset: u64) -> io::Result<usize> {
        self.0.check(offset, u64::try_from(from.len()).unwrap())?;
        let mut data = self.0.data.lock().unwrap();
        let len = from.len().min(self.0.most.load(Ordering::Relaxed));
        data[usize::try_from(offset).unwrap()..][..len].copy_from_slice(&from[..len]);
        Ok(len)
    }
    fn flush(&self) -> io::Result<()> {
        self.0.check(0, u64::MAX)?;
        self.0.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.fill(offset, len)
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.fill(offset, len)
    }
}

/// Sector `n` begins with `n`, so that a wrong one shows.
pub(super) fn pattern(sectors: u64) -> Vec<u8> {
    let sectors: Vec<_> = (0..sectors).map(|n| n.to_le_bytes().repeat(64)).collect();
    sectors.concat()
}

#[derive(Debug)]
pub(super) struct Bed {
    pub guest: Guest,
    pub disk: Arc<MemDisk>,
    pub device: Arc<BlkDevice>,
    pub queue: Option<Virtqueue>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u8,
    pub len: u32,
    pub data: Vec<u8>,
}

impl Bed {
    pub(super) fn new() -> Self {
        Self::with(BlkOptions::default())
    }

    pub(super) fn with(options: BlkOptions) -> Self {
        let disk = Arc::new(MemDisk {
            data: Mutex::new(pattern(SECTORS)),
            most: AtomicUsize::new(usize::MAX),
            fault: Mutex::default(),
            sparse: AtomicBool::new(true),
            flushes: AtomicUsize::new(0),
            gate: Mutex::default(),
            waiting: AtomicUsize::new(0),
        });
        let device = BlkDevice::with_disk(Box::new(Shared(Arc::clone(&disk))), options).unwrap();
        let mut bed = Self {
            guest: Guest::new(MEM),
            disk,
            device,
            queue: None,
        };
        bed.start(QueueState::default());
        bed
    }

    pub(super) fn ring(&self) -> TestRing<'_> {
        TestRing::new(&self.guest, BASE, 256)
    }

    pub(super) fn start(&mut self, state: QueueState) {
        let config = self.ring().config_at(state);
        self.queue = Some(Virtqueue::start(config, &self.guest.dma.enter()).unwrap());
    }

    pub(super) fn stop(&mut self) -> QueueState {
        self.queue.take().unwrap().stop()
    }

    /// Runs the device until it is idle; says whether the driver is to be notified.
    pub(super) fn run(&mut self) -> Result<bool, QueueError> {
        let mut notify = false;
        let queue = self.queue.as_mut().unwrap();
        loop {
            let step = self
                .device
                .process(0, queue, &self.guest.dma, &mut || notify = true)?;
            if step == Progress::Idle {
                return Ok(notify);
            }
        }
    }

    pub(super) fn header(&self, at: u64, kind: u32, sector: u64) {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend(0u32.to_le_bytes());
        header.extend(sector.to_le_bytes());
        self.guest.write(at, &header);
    }

    /// Puts a request at descriptors `first` to `first + 3` and makes it available.
    pub(super) fn submit(&self, first: u16, kind: u32, sector: u64, out: u32, into: u32) {
        let ring = self.ring();
        let slot = 16 * u64::from(first);
        self.header(HEADER + slot, kind, sector);
        self.guest.write(STATUS + slot, &[UNTOUCHED]);
        ring.set(first, HEADER + slot, 16, NEXT, first + 1);
        ring.set(first + 1, OUT_AT, out, NEXT, first + 2);
        ring.set(first + 2, IN_AT, into, WRITE | NEXT, first + 3);
        ring.set(first + 3, STATUS + slot, 1, WRITE, 0);
        ring.offer(first);
    }

    pub(super) fn status(&self, first: u16) -> u8 {
        self.guest.read(STATUS + 16 * u64::from(first), 1)[0]
    }

    /// One request from beginning to end.
    pub(super) fn ask(&mut self, kind: u32, sector: u64, out: &[u8], into: usize) -> Answer {
        self.guest.write(OUT_AT, out);
        self.guest.write(IN_AT, &vec![UNTOUCHED; into]);
        let used = self.ring().used_idx();
        let (out, room) = (
            u32::try_from(out.len()).unwrap(),
            u32::try_from(into).unwrap(),
        );
        self.submit(0, kind, sector, out, room);
        assert!(self.run().unwrap());
        assert_eq!(self.ring().used_idx(), used.wrapping_add(1));
        let (head, len) = self.ring().used_at(used);
        assert_eq!(head, 0);
        Answer {
            status: self.status(0),
            len,
            data: self.guest.read(IN_AT, into),
        }
    }

    pub(super) fn on_disk(&self, sector: u64, sectors: u64) -> Vec<u8> {
        let at = usize::try_from(sector * 512).unwrap();
        self.disk.data.lock().unwrap()[at..][..usize::try_from(sectors * 512).unwrap()].to_vec()
    }
}
