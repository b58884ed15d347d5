//! A guest that resets its device as it likes, while its host tracks what it writes.

use super::bed::{Commanded, memory};
use super::{Effort, PAGE, Result, ensure, repeat};
use crate::claims::figures::Figures;
use crate::claims::topics::RESETS;
use crate::memory::Random;
use device::blk::{BlkDevice, BlkOptions};
use device::function::{FunctionConfig, PciFunction};
use driver::Transport;
use driver::admin::Subject;
use driver::blk::BlkQueue;
use driver::bus::Bus;
use driver::dirty::harvest::HarvestWidth;
use driver::dirty::{DirtySet, DirtySource, RecordsSource, TrackerSource, records};
use driver::memory::DmaMemory;
use driver::parts::MemberParts;
use driver::queue::SplitQueue;
use spec::features::Features;
use spec::pci::NO_VECTOR;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vm::EmulatedBus;
use vm::evidence::format_disk;
use vm_memory::Permissions;

const RAM: u64 = 16 << 20;
const BLOCKS: u64 = 1024;
const QUEUE: u16 = 64;
const DEPTH: u64 = 16;
const PATIENCE: Duration = Duration::from_secs(20);

/// How a guest resets its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Status,
    FunctionLevel,
}

/// A source that the guest's resets may have to wait for.
type Shared<'a> = Mutex<&'a mut dyn DirtySource>;

/// A hypervisor that sees its guest set the device up after a reset, and sets up the tracker anew
/// before the device is live: what the bitmap holds is still there.
fn rearm(source: &Shared<'_>) -> Result<()> {
    let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
    let mut kept = DirtySet::new(RAM / PAGE);
    source.report(0..RAM, &mut kept)?;
    source.stop()?;
    source.start(std::slice::from_ref(&(0..RAM)), PAGE)?;
    source.put_back(&kept)?;
    Ok(())
}

/// Drives the device, and resets it in the middle of its work.
fn guest(
    bus: &Arc<EmulatedBus>,
    how: How,
    trap: Option<&Shared<'_>>,
    lives: &AtomicU64,
    end: &AtomicBool,
    seed: u64,
) -> Result<()> {
    let ring = bus.dma_alloc(SplitQueue::bytes_needed(QUEUE))?;
    let area = bus.dma_alloc(BlkQueue::area_needed(QUEUE))?;
    let blank = vec![0; usize::try_from(ring.len())?];
    let mut random = Random(seed);
    let mut draw = |below: u64| random.next().unwrap_or(0) % below;
    while !end.load(Ordering::Acquire) {
        let transport = Transport::new(Arc::clone(bus) as Arc<dyn Bus>)?;
        let features = transport.negotiate(Features::RING_EVENT_IDX, Features::empty())?;
        ring.write(0, &blank)?;
        let queue = SplitQueue::new(ring.clone(), QUEUE, features)?;
        let setup = queue.setup(NO_VECTOR);
        let mut queue = BlkQueue::new(queue, area.clone());
        transport.setup_queue(0, &setup, None)?;
        if let Some(source) = trap {
            rearm(source)?;
        }
        transport.driver_ok()?;
        for token in 0..DEPTH {
            let frame = draw(RAM / PAGE) * PAGE;
            queue.read(draw(BLOCKS) * 8, &[(frame, 4096)], token)?;
        }
        if queue.publish()? {
            let next = queue.ring().published();
            transport.notify(0, next)?;
        }
        let begin = Instant::now();
        let mut left = draw(DEPTH);
        while left > 0 {
            match queue.complete()? {
                Some(_) => left -= 1,
                None => thread::yield_now(),
            }
            ensure(begin.elapsed() < PATIENCE, || {
                "the device stands still".to_owned()
            })?;
        }
        match how {
            How::FunctionLevel => bus.reset()?,
            How::Status => transport.reset(PATIENCE)?,
        }
        lives.fetch_add(1, Ordering::Release);
    }
    Ok(())
}

/// A copy of the memory that follows its reports.
struct Follower {
    ram: DmaMemory,
    bytes: Vec<u8>,
}

impl Follower {
    fn page(&mut self, page: u64) -> Result<()> {
        let at = usize::try_from(page * PAGE)?;
        self.ram.read(page * PAGE, &mut self.bytes[at..at + 4096])?;
        Ok(())
    }

    fn report(&mut self, source: &Shared<'_>) -> Result<()> {
        let mut dirty = DirtySet::new(RAM / PAGE);
        {
            let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
            source.report(0..RAM, &mut dirty)?;
        }
        dirty.iter().try_for_each(|page| self.page(page))
    }

    fn wrong(&self) -> Result<usize> {
        let mut now = vec![0; self.bytes.len()];
        self.ram.read(0, &mut now)?;
        let pages = now.chunks(4096).zip(self.bytes.chunks(4096));
        Ok(pages.filter(|(now, copy)| now != copy).count())
    }
}

/// Who tracks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Tracker,
    TrackerTrapped,
    Owner,
}

/// Pages that the copy has wrong after so many lives of the device.
fn lost(who: Who, how: How, lives_wanted: u64, seed: u64) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk.img");
    File::create(&disk)?;
    format_disk(&disk, 0, BLOCKS)?;
    let options = BlkOptions {
        queues: 1,
        queue_size: QUEUE,
        ..BlkOptions::default()
    };
    let device = BlkDevice::open_path(&disk, options)?;
    let member = PciFunction::new(FunctionConfig::default(), device);
    let file = memory(RAM)?;
    let access = Permissions::ReadWrite;
    member.dma().map(0, RAM, &file, 0, access)?;
    let mut owner = Commanded::new(1, 1 << 18, vec![Arc::clone(&member)])?;
    let mut queue = owner.queues.pop().ok_or("no queue")?;
    MemberParts::prepare(&mut queue, &records::COMMANDS)?;
    let queue = Arc::new(Mutex::new(queue));
    let parts = MemberParts::new(Arc::clone(&queue), 1)?;
    let bus = EmulatedBus::new(member);
    let mut source: Box<dyn DirtySource> = match who {
        Who::Owner => Box::new(RecordsSource::new(queue, Subject::virtual_function(1))),
        Who::Tracker | Who::TrackerTrapped => {
            let bus = Arc::clone(&bus) as Arc<dyn Bus>;
            let bitmap = bus.dma_alloc(RAM / PAGE / 8)?;
            let transport = Arc::new(Transport::new(bus)?);
            Box::new(TrackerSource::new(transport, bitmap, HarvestWidth::Word)?)
        }
    };
    source.start(std::slice::from_ref(&(0..RAM)), PAGE)?;
    let source: Shared<'_> = Mutex::new(&mut *source);
    let mut copy = Follower {
        ram: DmaMemory::from_file(&file, 0, RAM, 0)?,
        bytes: vec![0; usize::try_from(RAM)?],
    };
    (0..RAM / PAGE).try_for_each(|page| copy.page(page))?;
    let (lives, end) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let trap = (who == Who::TrackerTrapped).then_some(&source);
        let (bus, lives, end) = (&bus, &lives, &end);
        let guest = scope.spawn(move || guest(bus, how, trap, lives, end, seed));
        let mut outcome = Ok(());
        while lives.load(Ordering::Acquire) < lives_wanted && outcome.is_ok() {
            outcome = copy.report(&source);
            if guest.is_finished() {
                break;
            }
        }
        end.store(true, Ordering::Release);
        guest.join().map_err(|_| "the guest panicked")??;
        outcome
    })?;
    // What is still under way when the guest is gone ends here, and is in the last report.
    parts.stop()?;
    copy.report(&source)?;
    Ok(copy.wrong()? as f64)
}

/// Pages lost by a reset and a function level reset in the middle of a round.
pub fn resets(effort: Effort, figures: &mut Figures) -> Result<()> {
    let lives = effort.pick(60, 10);
    for (how, reset) in [
        (How::Status, "reset"),
        (How::FunctionLevel, "function level reset"),
    ] {
        for (who, name) in [
            (Who::Tracker, "tracker"),
            (Who::TrackerTrapped, "tracker set up anew by a hypervisor"),
            (Who::Owner, "owner's records"),
        ] {
            let samples = repeat(|seed| lost(who, how, lives, seed))?;
            figures.add(&RESETS, format!("{name}, {reset}"), 1, samples);
        }
    }
    Ok(())
}
