//! A guest that resets its device whenever it likes, while somebody else tracks what it writes.
//!
//! The device's own tracker forgets with every reset (by design: DT-6). Records that its owner had
//! started do not. Both are judged by the bytes of memory, and so is a device that marks nothing.

use device::blk::{BlkDevice, BlkOptions};
use device::function::{AdminConfig, FunctionConfig, PciFunction};
use device::rng::RngDevice;
use device::tracker::Marking;
use driver::admin::{AdminQueue, Subject};
use driver::blk::BlkQueue;
use driver::bus::Bus;
use driver::dirty::harvest::HarvestWidth;
use driver::dirty::{DirtySet, DirtySource, PAGE_SIZE, RecordsSource, TrackerSource, records};
use driver::memory::DmaMemory;
use driver::parts::MemberParts;
use driver::queue::SplitQueue;
use driver::{Transport, sriov};
use rustix::fs::{MemfdFlags, memfd_create};
use spec::features::Features;
use spec::pci::NO_VECTOR;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vm::EmulatedBus;
use vm::evidence::format_disk;
use vm::guest::block::splitmix;
use vm_memory::Permissions;

const RAM: u64 = 16 << 20;
const BLOCKS: u64 = 1024;
const QUEUE: u16 = 64;
const DEPTH: u64 = 16;
/// Lives of the device within one run.
const LIVES: u64 = 60;
const PATIENCE: Duration = Duration::from_secs(20);

/// A device, its owner, and the memory that nobody but the device writes.
struct Bed {
    member: Arc<EmulatedBus>,
    queue: Arc<Mutex<AdminQueue>>,
    parts: MemberParts,
    ram: DmaMemory,
}

impl Bed {
    fn new(folder: &Path, marking: Marking) -> Self {
        let disk = folder.join("disk.img");
        File::create(&disk).unwrap();
        format_disk(&disk, 0, BLOCKS).unwrap();
        let options = BlkOptions {
            queues: 1,
            queue_size: QUEUE,
            ..BlkOptions::default()
        };
        let device = BlkDevice::open_path(&disk, options).unwrap();
        let config = FunctionConfig {
            marking,
            ..FunctionConfig::default()
        };
        let member = PciFunction::new(config, device);
        let file = File::from(memfd_create("ram", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(RAM).unwrap();
        let dma = member.dma();
        dma.map(0, RAM, &file, 0, Permissions::ReadWrite).unwrap();
        let config = FunctionConfig {
            admin: AdminConfig {
                queues: 1,
                ..AdminConfig::default()
            },
            ..FunctionConfig::default()
        };
        let members = vec![Arc::clone(&member)];
        let owner = PciFunction::owner(config, RngDevice::seeded(0), members).unwrap();
        let bus = EmulatedBus::new(owner);
        let transport = Arc::new(Transport::new(Arc::clone(&bus) as Arc<dyn Bus>).unwrap());
        let needed = Features::ADMIN_VQ | Features::SR_IOV;
        transport.negotiate(needed, needed).unwrap();
        let mut queue = AdminQueue::new(Arc::clone(&transport), 0).unwrap();
        transport.driver_ok().unwrap();
        sriov::enable(&*bus, 1).unwrap();
        MemberParts::prepare(&mut queue, &records::COMMANDS).unwrap();
        let queue = Arc::new(Mutex::new(queue));
        Self {
            member: EmulatedBus::new(member),
            parts: MemberParts::new(Arc::clone(&queue), 1).unwrap(),
            queue,
            ram: DmaMemory::from_file(&file, 0, RAM, 0).unwrap(),
        }
    }

    fn records(&self) -> RecordsSource {
        RecordsSource::new(Arc::clone(&self.queue), Subject::virtual_function(1))
    }

    fn tracker(&self) -> TrackerSource {
        let bus = Arc::clone(&self.member) as Arc<dyn Bus>;
        let bitmap = bus.dma_alloc(RAM / PAGE_SIZE / 8).unwrap();
        let transport = Arc::new(Transport::new(bus).unwrap());
        TrackerSource::new(transport, bitmap, HarvestWidth::Word).unwrap()
    }
}

/// Drives the device, and resets it in the middle of its work, one way and the other.
fn guest(bus: &Arc<EmulatedBus>, lives: &AtomicU64, end: &AtomicBool) {
    let ring = bus.dma_alloc(SplitQueue::bytes_needed(QUEUE)).unwrap();
    let area = bus.dma_alloc(BlkQueue::area_needed(QUEUE)).unwrap();
    let blank = vec![0; usize::try_from(ring.len()).unwrap()];
    let mut random = 0x71de;
    let mut draw = |below: u64| {
        random = splitmix(random);
        random % below
    };
    while !end.load(Ordering::Acquire) {
        let transport = Transport::new(Arc::clone(bus) as Arc<dyn Bus>).unwrap();
        let features = transport.negotiate(Features::RING_EVENT_IDX, Features::empty());
        ring.write(0, &blank).unwrap();
        let queue = SplitQueue::new(ring.clone(), QUEUE, features.unwrap()).unwrap();
        let setup = queue.setup(NO_VECTOR);
        let mut queue = BlkQueue::new(queue, area.clone());
        transport.setup_queue(0, &setup, None).unwrap();
        transport.driver_ok().unwrap();
        for token in 0..DEPTH {
            let frame = draw(RAM / PAGE_SIZE) * PAGE_SIZE;
            queue
                .read(draw(BLOCKS) * 8, &[(frame, 4096)], token)
                .unwrap();
        }
        if queue.publish().unwrap() {
            let next = queue.ring().published();
            transport.notify(0, next).unwrap();
        }
        let begin = Instant::now();
        let mut left = draw(DEPTH);
        while left > 0 {
            match queue.complete().unwrap() {
                Some(_) => left -= 1,
                None => std::thread::yield_now(),
            }
            assert!(begin.elapsed() < PATIENCE, "the device stands still");
        }
        if draw(2) == 0 {
            bus.reset().unwrap();
        } else {
            transport.reset(PATIENCE).unwrap();
        }
        lives.fetch_add(1, Ordering::Release);
    }
}

/// A copy of the memory that follows its reports.
struct Copy {
    ram: DmaMemory,
    bytes: Vec<u8>,
    reported: u64,
}

impl Copy {
    fn page(&mut self, page: u64) {
        let at = usize::try_from(page * PAGE_SIZE).unwrap();
        let into = &mut self.bytes[at..at + 4096];
        self.ram.read(page * PAGE_SIZE, into).unwrap();
    }

    fn report(&mut self, source: &mut dyn DirtySource) {
        let mut dirty = DirtySet::new(RAM / PAGE_SIZE);
        source.report(0..RAM, &mut dirty).unwrap();
        self.reported += dirty.count();
        dirty.iter().for_each(|page| self.page(page));
    }

    fn wrong(&self) -> usize {
        let mut now = vec![0; self.bytes.len()];
        self.ram.read(0, &mut now).unwrap();
        let pages = now.chunks(4096).zip(self.bytes.chunks(4096));
        pages.filter(|(now, copy)| now != copy).count()
    }
}

/// Tracks while the guest does what it likes; pages that the copy has wrong at the end.
fn lost(bed: &Bed, source: &mut dyn DirtySource) -> usize {
    let all: Range<u64> = 0..RAM;
    source.start(slice::from_ref(&all), 4096).unwrap();
    let mut copy = Copy {
        ram: bed.ram.clone(),
        bytes: vec![0; usize::try_from(RAM).unwrap()],
        reported: 0,
    };
    (0..RAM / PAGE_SIZE).for_each(|page| copy.page(page));
    let (lives, end) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| guest(&bed.member, &lives, &end));
        let begin = Instant::now();
        while lives.load(Ordering::Acquire) < LIVES {
            copy.report(source);
            assert!(begin.elapsed() < PATIENCE, "the guest stands still");
        }
        end.store(true, Ordering::Release);
    });
    // What is still under way when the guest is gone ends here, and is in the last report.
    bed.parts.stop().unwrap();
    copy.report(source);
    copy.wrong()
}

#[test]
fn an_owners_records_outlive_every_reset() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(folder.path(), Marking::Bit);
    let mut source = bed.records();
    assert_eq!(lost(&bed, &mut source), 0);
    assert_eq!(source.overflows(), 0);
}

/// The other side of claim C7, and the proof that the test can tell.
#[test]
fn the_devices_own_tracker_forgets_with_a_reset() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(folder.path(), Marking::Bit);
    assert!(lost(&bed, &mut bed.tracker()) > 0);
}

#[test]
fn without_marks_there_are_no_records() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(folder.path(), Marking::Off);
    let mut source = bed.records();
    assert!(lost(&bed, &mut source) > 0);
    assert_eq!(source.overflows(), 0);
}
