//! A device's door to memory with a tracker or a recorder behind it, and functions to command.

use super::{PAGE, Result};
use device::dma::Dma;
use device::function::{AdminConfig, FunctionConfig, PciFunction};
use device::rng::RngDevice;
use device::tracker::records::{Recorder, RecordsConfig};
use device::tracker::{Marking, TrackerConfig};
use driver::Transport;
use driver::admin::{AdminQueue, Subject};
use driver::bus::Bus;
use driver::dirty::harvest::{HarvestWidth, harvest, harvest_into};
use driver::dirty::{DirtySet, records};
use driver::memory::DmaMemory;
use driver::sriov;
use rustix::fs::{MemfdFlags, memfd_create};
use spec::features::Features;
use spec::records::{Extent, START, Start};
use spec::tracker::bitmap_length;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use vm::EmulatedBus;
use vm_memory::Permissions;
use zerocopy::IntoBytes;

/// Writes whose marks a device sets together.
pub const BURST: usize = 32;
/// Where no guest memory is.
const BITMAP_IOVA: u64 = 1 << 50;

/// An anonymous file of zeroes.
pub fn memory(len: u64) -> Result<File> {
    let file = File::from(memfd_create("claims", MemfdFlags::CLOEXEC)?);
    file.set_len(len)?;
    Ok(file)
}

/// Marks pages in bursts, as a device does whose data has landed.
pub fn mark(dma: &Dma, pages: &[u64]) {
    for burst in pages.chunks(BURST) {
        let guard = dma.enter();
        let mut written = guard.written();
        burst
            .iter()
            .for_each(|page| written.record(page * PAGE, PAGE));
        guard.mark(&written);
    }
}

/// The tracker over a bitmap in memory that it shares with a driver.
#[derive(Debug)]
pub struct Tracked {
    /// The door to write through.
    pub dma: Dma,
    bitmap: DmaMemory,
    file: File,
    width: HarvestWidth,
    /// Bytes of the bitmap.
    pub length: u64,
}

impl Tracked {
    /// A tracker for memory up to `end`.
    pub fn new(end: u64, gra_power: u8, marking: Marking) -> Result<Self> {
        let length = bitmap_length(end, gra_power).ok_or("no such granularity")?;
        let size = length.next_multiple_of(PAGE);
        let file = memory(size)?;
        let dma = Dma::new();
        dma.map(BITMAP_IOVA, size, &file, 0, Permissions::ReadWrite)?;
        dma.set_tracker(TrackerConfig {
            enabled: true,
            gra_power,
            bitmap_addr: BITMAP_IOVA,
            bitmap_length: length,
            marking,
        });
        let width = match marking {
            Marking::Byte => HarvestWidth::Byte,
            Marking::Bit | Marking::Off => HarvestWidth::Word,
        };
        Ok(Self {
            dma,
            bitmap: DmaMemory::from_file(&file, 0, size, BITMAP_IOVA)?,
            file,
            width,
            length,
        })
    }

    /// Takes all marks; the set has one page for each bit.
    pub fn harvest(&self, into: &mut DirtySet) -> Result<()> {
        Ok(harvest_into(&self.bitmap, self.length, self.width, into)?)
    }

    /// Takes the marks of some ranges of bytes alone, whose ends are multiples of 64 pages.
    ///
    /// # Errors
    /// A range is beyond the bitmap.
    pub fn harvest_ranges(&self, ranges: &[Range<u64>], into: &mut DirtySet) -> Result<()> {
        for range in ranges {
            let (start, end) = (range.start / PAGE / 8, range.end / PAGE / 8);
            let part = self.bitmap.slice(start, end - start)?;
            let first = usize::try_from(start / 8)?;
            harvest(&part, end - start, self.width, |word, bits| {
                into.or_word((first + word) as u64, bits);
            })?;
        }
        Ok(())
    }

    /// Bytes of memory that the bitmap really takes.
    pub fn resident(&self) -> Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }
}

/// A recorder behind a door, without commands.
#[derive(Debug)]
pub struct Recorded {
    /// The door to write through.
    pub dma: Dma,
    /// What it has recorded.
    pub recorder: Arc<Recorder>,
}

impl Recorded {
    /// Records pages of 4 KiB of `ranges`, and surely holds so many of them.
    pub fn new(ranges: &[Range<u64>], capacity: u32) -> Result<Self> {
        let config = RecordsConfig {
            page_shift: 12,
            ranges: ranges.to_vec(),
            capacity,
        };
        let recorder = Arc::new(Recorder::new(&config)?);
        let dma = Dma::new();
        dma.attach_recorder(Arc::clone(&recorder));
        Ok(Self { dma, recorder })
    }

    /// Takes at most so many records, and hands them on; whether there may be more, and whether
    /// some were lost.
    pub fn take(&self, most: usize, mut sink: impl FnMut(u64)) -> (bool, bool) {
        let turn = || self.dma.quiet(|| self.recorder.turn());
        let taken = self.recorder.take(&(0..u64::MAX), most, turn);
        let (more, overflow) = (taken.more, taken.overflow);
        taken
            .records
            .iter()
            .for_each(|record| sink(record.get() / PAGE));
        self.recorder.delivered(taken);
        (more, overflow)
    }

    /// Takes everything; whether some were lost.
    pub fn drain(&self, mut sink: impl FnMut(u64)) -> bool {
        let mut lost = false;
        loop {
            let (more, overflow) = self.take(usize::MAX, &mut sink);
            lost |= overflow;
            if !more {
                return lost;
            }
        }
    }
}

/// Data of a command that starts recording of `ranges`.
pub fn start_data(ranges: &[Range<u64>]) -> Result<Vec<u8>> {
    let start = Start {
        page_size: PAGE.into(),
        count: u32::try_from(ranges.len())?.into(),
        reserved: 0.into(),
    };
    let mut data = start.as_bytes().to_vec();
    for range in ranges {
        let extent = Extent {
            start: range.start.into(),
            length: (range.end - range.start).into(),
        };
        data.extend_from_slice(extent.as_bytes());
    }
    Ok(data)
}

/// A function with administration queues, live, with the commands of recording in use.
#[derive(Debug)]
pub struct Commanded {
    /// Its queues.
    pub queues: Vec<AdminQueue>,
    /// The function itself.
    pub function: Arc<PciFunction>,
}

impl Commanded {
    /// A function with so many queues that surely holds so many records; and with members, if
    /// there are any.
    pub fn new(queues: u16, max_records: u32, members: Vec<Arc<PciFunction>>) -> Result<Self> {
        let config = FunctionConfig {
            admin: AdminConfig {
                queues,
                max_records,
                ..AdminConfig::default()
            },
            ..FunctionConfig::default()
        };
        let count = u16::try_from(members.len())?;
        let device = RngDevice::seeded(0);
        let function = match count {
            0 => PciFunction::new(config, device),
            _ => PciFunction::owner(config, device, members)?,
        };
        let bus = EmulatedBus::new(Arc::clone(&function));
        let transport = Arc::new(Transport::new(Arc::clone(&bus) as Arc<dyn Bus>)?);
        let needed = match count {
            0 => Features::ADMIN_VQ,
            _ => Features::ADMIN_VQ | Features::SR_IOV,
        };
        transport.negotiate(needed, needed)?;
        let mut all = (0..queues)
            .map(|number| AdminQueue::new(Arc::clone(&transport), number))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        transport.driver_ok()?;
        let first = all.first_mut().ok_or("no queue")?;
        first.use_commands(spec::admin::group::SELF, &records::COMMANDS)?;
        if count > 0 {
            sriov::enable(&*bus, count)?;
            first.use_commands(spec::admin::group::SR_IOV, &records::COMMANDS)?;
        }
        Ok(Self {
            queues: all,
            function,
        })
    }

    /// Starts recording of `ranges`.
    pub fn start(&mut self, subject: Subject, ranges: &[Range<u64>]) -> Result<()> {
        let data = start_data(ranges)?;
        let queue = self.queues.first_mut().ok_or("no queue")?;
        queue.command(START, subject, &data, 0)?;
        Ok(())
    }
}
