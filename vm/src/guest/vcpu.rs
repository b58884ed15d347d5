//! One virtual CPU: keeps its queue full, checks what it reads, and writes everything down.

use super::block::{BLOCK_BYTES, Page, Stamp};
use super::journal::{Entry, Event, Journal};
use super::layout::{HEADER_BYTES, Layout, Place};
use super::life::Life;
use super::saved::{SavedRequest, SavedVcpu};
use super::workload::Walk;
use crate::error::VmError;
use driver::bus::Interrupt;
use driver::dirty::PAGE_SIZE;
use driver::memory::DmaMemory;
use driver::queue::Virtqueue;
use driver::transport::Notifier;
use migration::checkpoint::{Digest, Output, Witness};
use spec::blk::{RequestHeader, SECTOR_SIZE, request, status};
use spec::features::Features;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

const PAGE_LEN: u32 = 4096;
const SECTORS: u64 = PAGE_SIZE / SECTOR_SIZE;
/// How long a virtual CPU waits for an interrupt before it looks for itself.
const INTERRUPT_WAIT: Duration = Duration::from_millis(20);
/// A throttled virtual CPU stands still for no less than this at a time, which the system can tell
/// from nothing, and for no more, so that it hears its orders.
const IDLE_LEAST: Duration = Duration::from_millis(1);
const IDLE_MOST: Duration = Duration::from_millis(50);
/// How long a device may take for the last requests.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// No device writes this: tells a status that was never written.
const STATUS_NONE: u8 = 0xff;

/// What the virtual CPUs are to do; shared by all of them.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    order: AtomicU8,
    /// How much the virtual CPUs are slowed down, in percent.
    throttle: AtomicU8,
    /// Requests completed by all of them together.
    pub(crate) completed: AtomicU64,
    /// Reads completed: how often a device wrote a frame.
    pub(crate) reads: AtomicU64,
    /// How often a device was reset.
    pub(crate) resets: AtomicU64,
}

/// An order to the virtual CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Full speed.
    Run,
    /// Fill the queue once more and stop, leaving requests in flight.
    Pause,
    /// Submit nothing more, wait until everything has completed, and stop.
    Drain,
}

impl Gate {
    pub(crate) fn set(&self, order: Order) {
        let byte = match order {
            Order::Run => 0,
            Order::Pause => 1,
            Order::Drain => 2,
        };
        self.order.store(byte, Ordering::Release);
    }

    /// Slows the virtual CPUs down by so many percent, 99 at most.
    pub(crate) fn throttle(&self, percent: u8) {
        self.throttle.store(percent.min(99), Ordering::Relaxed);
    }

    /// How long a virtual CPU that has worked so long has to stand still for it.
    fn idle_for(&self, worked: Duration) -> Duration {
        let percent = u32::from(self.throttle.load(Ordering::Relaxed).min(99));
        worked.saturating_mul(percent) / (100 - percent)
    }

    pub(crate) fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Run,
            1 => Order::Pause,
            _ => Order::Drain,
        }
    }
}

/// A virtual CPU that is not running.
#[derive(Debug)]
pub(crate) struct Vcpu {
    place: Place,
    layout: Arc<Layout>,
    /// All of guest memory, every store logged.
    memory: DmaMemory,
    queue: Virtqueue,
    /// The life of the device that the queue belongs to, counted on this host.
    life: u64,
    walk: Walk,
    next_id: u64,
    slots: Vec<Option<SavedRequest>>,
    free: Vec<u16>,
    busy_blocks: Vec<bool>,
    busy_frames: Vec<bool>,
    journal: Option<Journal>,
}

/// What a virtual CPU has of its device while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Wires {
    pub(crate) notifier: Notifier,
    pub(crate) interrupt: Arc<dyn Interrupt>,
    /// If the device is reset now and then.
    pub(crate) life: Option<Arc<Life>>,
    /// Is told of what its requests come to.
    pub(crate) witness: Option<Arc<dyn Witness>>,
}

impl Vcpu {
    /// A virtual CPU at boot; its ring is zeroed memory.
    pub(crate) fn boot(
        layout: &Arc<Layout>,
        place: Place,
        memory: &DmaMemory,
        features: Features,
    ) -> Result<Self, VmError> {
        let shape = &layout.shape;
        let seed = shape.seed ^ super::block::splitmix(place.vcpu);
        let walk = Walk::new(shape.pattern, place.frames, shape.writes_percent, seed)?;
        let ring = memory.slice(place.ring, Virtqueue::bytes_needed(shape.queue_size))?;
        let queue = Virtqueue::new(ring, shape.queue_size, features)
            .map_err(VmError::driver("making a queue"))?;
        let statuses = vec![STATUS_NONE; usize::from(shape.depth)];
        memory.write(place.statuses, &statuses)?;
        Self::assemble(layout, place, memory, queue, walk, 0, &[])
    }

    /// A virtual CPU that goes on elsewhere, over memory with the same contents.
    pub(crate) fn restore(
        layout: &Arc<Layout>,
        place: Place,
        memory: &DmaMemory,
        features: Features,
        saved: &SavedVcpu,
    ) -> Result<Self, VmError> {
        saved.walk.check(place.frames)?;
        let shape = &layout.shape;
        let ring = memory.slice(place.ring, Virtqueue::bytes_needed(shape.queue_size))?;
        let state = saved.ring();
        let queue = Virtqueue::resume(ring, shape.queue_size, features, &state)
            .map_err(VmError::driver("restoring a queue"))?;
        let bad = |why: String| VmError::BadState {
            what: format!("virtual CPU {}", place.vcpu),
            why,
        };
        // Every chain names a request and every request has a chain.
        let mut tokens: Vec<u64> = state.chains.iter().map(|chain| chain.token).collect();
        let mut slots: Vec<u64> = saved.requests.iter().map(|r| u64::from(r.slot)).collect();
        tokens.sort_unstable();
        slots.sort_unstable();
        if tokens != slots {
            return Err(bad(
                "the ring and the requests in flight do not agree".to_owned()
            ));
        }
        Self::assemble(
            layout,
            place,
            memory,
            queue,
            saved.walk,
            saved.next_id,
            &saved.requests,
        )
    }

    fn assemble(
        layout: &Arc<Layout>,
        place: Place,
        memory: &DmaMemory,
        queue: Virtqueue,
        walk: Walk,
        next_id: u64,
        requests: &[SavedRequest],
    ) -> Result<Self, VmError> {
        let depth = layout.shape.depth;
        let mut vcpu = Self {
            place,
            layout: Arc::clone(layout),
            memory: memory.clone(),
            queue,
            life: 0,
            walk,
            next_id,
            slots: vec![None; usize::from(depth)],
            free: Vec::new(),
            busy_blocks: vec![false; index(place.blocks)],
            busy_frames: vec![false; index(place.frames)],
            journal: None,
        };
        for request in requests {
            let slot = vcpu.slots.get_mut(usize::from(request.slot));
            let block = vcpu.busy_blocks.get_mut(index(request.block));
            let frame = vcpu.busy_frames.get_mut(index(request.frame));
            match (slot, block, frame) {
                (Some(slot @ None), Some(block @ false), Some(frame)) => {
                    *slot = Some(*request);
                    *block = true;
                    *frame |= !request.write;
                }
                _ => {
                    return Err(VmError::BadState {
                        what: format!("virtual CPU {}", place.vcpu),
                        why: format!("request {} cannot be in flight", request.id),
                    });
                }
            }
        }
        vcpu.free = (0..depth)
            .filter(|slot| matches!(vcpu.slots.get(usize::from(*slot)), Some(None)))
            .rev()
            .collect();
        Ok(vcpu)
    }

    pub(crate) fn keep_journal(&mut self, journal: Option<Journal>) {
        self.journal = journal;
    }

    pub(crate) fn take_journal(&mut self) -> Option<Journal> {
        self.journal.take()
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn queue(&self) -> &Virtqueue {
        &self.queue
    }

    /// Requests that the device has not used.
    pub(crate) fn in_flight(&self) -> Result<u16, VmError> {
        let unused = self.queue.unused();
        unused.map_err(VmError::driver("counting what is in flight"))
    }

    /// Its state; what it last knew of blocks is in guest memory.
    pub(crate) fn save(&self) -> SavedVcpu {
        let requests = self.slots.iter().flatten().copied().collect();
        SavedVcpu::new(self.walk, self.next_id, requests, self.queue.state())
    }

    /// Runs until told otherwise.
    pub(crate) fn run(&mut self, gate: &Gate, wires: &Wires) -> Result<(), VmError> {
        self.silence()?;
        // Whoever comes back from a pause may have missed notifications both ways.
        self.ring_bell(wires)?;
        let mut order = Order::Run;
        let mut idle = Duration::ZERO;
        while order == Order::Run {
            order = gate.order();
            let begin = Instant::now();
            let (reaped, submitted) = self.turn(order, gate, wires)?;
            if order != Order::Run {
                break;
            }
            idle += gate.idle_for(begin.elapsed());
            if idle >= IDLE_LEAST {
                std::thread::park_timeout(idle.min(IDLE_MOST));
                idle = Duration::ZERO;
            }
            if reaped == 0 && submitted == 0 {
                self.wait(wires)?;
            }
            if let Some(life) = &wires.life {
                life.go_on(reaped, gate)?;
            }
        }
        if order == Order::Drain {
            self.drain(gate, wires)?;
        }
        match &mut self.journal {
            Some(journal) => journal.flush(),
            None => Ok(()),
        }
    }

    /// Takes what has completed and submits more; returns how many of each.
    fn turn(&mut self, order: Order, gate: &Gate, wires: &Wires) -> Result<(u64, u64), VmError> {
        // No new life begins before the turn ends.
        let _life = match &wires.life {
            None => None,
            Some(life) => {
                let number = life.enter();
                if self.follow(*number, life.features())? {
                    self.silence()?;
                    self.ring_bell(wires)?;
                }
                Some(number)
            }
        };
        let reaped = self.reap(gate, wires.witness.as_deref())?;
        let submitted = if order == Order::Drain {
            0
        } else {
            self.fill()?
        };
        if submitted > 0 && self.publish()? {
            self.ring_bell(wires)?;
        }
        Ok((reaped, submitted))
    }

    /// Follows the device into life number `life`, in which its ring is empty: what was in flight is
    /// submitted again. True if that is another life than before.
    pub(crate) fn follow(&mut self, life: u64, features: Features) -> Result<bool, VmError> {
        if self.life == life {
            return Ok(false);
        }
        self.life = life;
        let size = self.queue.size();
        let ring = self
            .memory
            .slice(self.place.ring, Virtqueue::bytes_needed(size))?;
        let queue = Virtqueue::new(ring, size, features);
        self.queue = queue.map_err(VmError::driver("making a queue again"))?;
        for request in self.slots.clone().into_iter().flatten() {
            self.submit(&request)?;
        }
        self.publish()?;
        Ok(true)
    }

    fn drain(&mut self, gate: &Gate, wires: &Wires) -> Result<(), VmError> {
        let mut last = Instant::now();
        while self.queue.in_flight() > 0 {
            if self.turn(Order::Drain, gate, wires)?.0 > 0 {
                last = Instant::now();
                continue;
            }
            if last.elapsed() > DRAIN_TIMEOUT {
                // What is missing shows in the journal: the judge reports it as lost.
                tracing::error!(in_flight = self.queue.in_flight(), "the device is silent");
                return Ok(());
            }
            self.wait(wires)?;
        }
        Ok(())
    }

    fn silence(&mut self) -> Result<(), VmError> {
        let done = self.queue.disable_interrupts();
        done.map_err(VmError::driver("disabling interrupts"))
    }

    fn wait(&mut self, wires: &Wires) -> Result<(), VmError> {
        let ready = self.queue.enable_interrupts();
        if !ready.map_err(VmError::driver("enabling interrupts"))? {
            wires.interrupt.wait(INTERRUPT_WAIT);
        }
        self.silence()
    }

    fn publish(&mut self) -> Result<bool, VmError> {
        let wanted = self.queue.publish();
        wanted.map_err(VmError::driver("making buffers available"))
    }

    fn ring_bell(&self, wires: &Wires) -> Result<(), VmError> {
        let told = wires.notifier.notify(self.queue.published());
        told.map_err(VmError::driver("notifying the device"))
    }

    /// Takes what has completed; returns how many.
    fn reap(&mut self, gate: &Gate, witness: Option<&dyn Witness>) -> Result<u64, VmError> {
        let (mut count, mut reads) = (0, 0);
        while let Some(used) = self
            .queue
            .reap()
            .map_err(VmError::driver("taking a used buffer"))?
        {
            let slot = u16::try_from(used.token).unwrap_or(u16::MAX);
            let request = self.slots.get_mut(usize::from(slot)).and_then(Option::take);
            let Some(request) = request else {
                return Err(VmError::Vcpu {
                    vcpu: index(self.place.vcpu),
                    why: format!("slot {slot} completed and was not in flight"),
                });
            };
            self.free.push(slot);
            set(&mut self.busy_blocks, request.block, false);
            let event = self.judge(&request)?;
            if !request.write {
                set(&mut self.busy_frames, request.frame, false);
                reads += 1;
            }
            if let Some(witness) = witness {
                witness.output(self.shown(&request, used.len)?);
            }
            self.note(event, &request)?;
            count += 1;
        }
        if count > 0 {
            gate.completed.fetch_add(count, Ordering::Relaxed);
            gate.reads.fetch_add(reads, Ordering::Relaxed);
        }
        Ok(count)
    }

    fn judge(&mut self, request: &SavedRequest) -> Result<Event, VmError> {
        let at = self.place.statuses + u64::from(request.slot);
        if self.memory.load_u8(at, Ordering::Relaxed)? != status::OK {
            return Ok(Event::Failed);
        }
        if request.write {
            // Only an acknowledged write counts: this table is what later reads are held to.
            let entry = self.place.sequences + request.block * 4;
            self.memory
                .store_u32(entry, request.sequence, Ordering::Relaxed)?;
            return Ok(Event::Completed);
        }
        let mut page: Page = [0; BLOCK_BYTES];
        self.memory
            .read(self.layout.frame(&self.place, request.frame), &mut page)?;
        let held = self.stamp(request.block, request.sequence).matches(&page);
        Ok(if held {
            Event::Completed
        } else {
            Event::Corrupt
        })
    }

    /// A completed request as an output of the device: all that its driver can tell of it.
    fn shown(&self, request: &SavedRequest, len: u32) -> Result<Output, VmError> {
        let at = self.place.statuses + u64::from(request.slot);
        let status = self.memory.load_u8(at, Ordering::Relaxed)?;
        let mut digest = [
            u64::from(request.write),
            request.block,
            request.frame,
            u64::from(len),
            u64::from(status),
        ]
        .into_iter()
        .fold(Digest::default(), Digest::word);
        if !request.write {
            let mut page: Page = [0; BLOCK_BYTES];
            self.memory
                .read(self.layout.frame(&self.place, request.frame), &mut page)?;
            digest = digest.bytes(&page);
        }
        Ok(Output {
            lane: self.place.vcpu,
            index: request.id,
            digest: digest.value(),
        })
    }

    /// Submits requests until the depth is reached; returns how many.
    fn fill(&mut self) -> Result<u64, VmError> {
        let mut count = 0;
        while let Some(slot) = self.free.last().copied() {
            let Some(request) = self.choose(slot)? else {
                break;
            };
            self.submit(&request)?;
            self.free.pop();
            set(&mut self.busy_blocks, request.block, true);
            if !request.write {
                set(&mut self.busy_frames, request.frame, true);
            }
            if let Some(place) = self.slots.get_mut(usize::from(slot)) {
                *place = Some(request);
            }
            let event = if request.write {
                Event::WriteSubmitted
            } else {
                Event::ReadSubmitted
            };
            self.note(event, &request)?;
            count += 1;
        }
        Ok(count)
    }

    /// What to do next. Blocks and frames in use are passed over. A frame that holds the block
    /// already is a hit in the page cache: the frame's other block is read instead, so every read
    /// changes the frame.
    fn choose(&mut self, slot: u16) -> Result<Option<SavedRequest>, VmError> {
        let step = self.walk.step();
        let (frames, blocks) = (self.place.frames, self.place.blocks);
        // At most `depth` frames and blocks are in use, and there are four times as many of each.
        for probe in 0..u64::from(self.layout.shape.depth) * 4 {
            let frame = (step.frame + probe) % frames;
            let first = frame % blocks;
            if step.write {
                if get(&self.busy_blocks, first) {
                    continue;
                }
                let sequence = self.sequence(first)?.wrapping_add(1);
                return Ok(Some(self.request(slot, true, first, frame, sequence)));
            }
            if get(&self.busy_frames, frame) {
                continue;
            }
            let held = self.held(frame)?;
            for block in [first, (first + blocks / 2) % blocks] {
                let sequence = self.sequence(block)?;
                let stamp = self.stamp(block, sequence);
                let hit = held == (stamp.block, u64::from(stamp.sequence));
                if !hit && !get(&self.busy_blocks, block) {
                    return Ok(Some(self.request(slot, false, block, frame, sequence)));
                }
            }
        }
        Ok(None)
    }

    fn request(
        &mut self,
        slot: u16,
        write: bool,
        block: u64,
        frame: u64,
        sequence: u32,
    ) -> SavedRequest {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        SavedRequest {
            slot,
            id,
            write,
            block,
            frame,
            sequence,
        }
    }

    fn submit(&mut self, request: &SavedRequest) -> Result<(), VmError> {
        let slot = u64::from(request.slot);
        let kind = if request.write {
            request::OUT
        } else {
            request::IN
        };
        let header = RequestHeader {
            request_type: kind.into(),
            reserved: 0.into(),
            sector: (self.disk_block(request.block) * SECTORS).into(),
        };
        let header_at = self.place.headers + slot * HEADER_BYTES;
        self.memory.write(header_at, header.as_bytes())?;
        let header = (header_at, 16);
        let status = (self.place.statuses + slot, 1);
        let added = if request.write {
            let buffer = self.place.buffers + slot * PAGE_SIZE;
            let mut page: Page = [0; BLOCK_BYTES];
            self.stamp(request.block, request.sequence).fill(&mut page);
            self.memory.write(buffer, &page)?;
            self.queue
                .add(&[header, (buffer, PAGE_LEN)], &[status], slot)
        } else {
            let frame = self.layout.frame(&self.place, request.frame);
            self.queue
                .add(&[header], &[(frame, PAGE_LEN), status], slot)
        };
        added.map_err(VmError::driver("adding a request"))
    }

    fn disk_block(&self, block: u64) -> u64 {
        block * u64::from(self.layout.shape.queues) + u64::from(self.place.queue)
    }

    fn stamp(&self, block: u64, sequence: u32) -> Stamp {
        Stamp::of(self.place.device, self.disk_block(block), sequence)
    }

    fn sequence(&self, block: u64) -> Result<u32, VmError> {
        let entry = self.place.sequences + block * 4;
        Ok(self.memory.load_u32(entry, Ordering::Relaxed)?)
    }

    fn held(&self, frame: u64) -> Result<(u64, u64), VmError> {
        let mut first = [0; 16];
        self.memory
            .read(self.layout.frame(&self.place, frame), &mut first)?;
        Ok(Stamp::read(first))
    }

    fn note(&mut self, event: Event, request: &SavedRequest) -> Result<(), VmError> {
        let block = self.disk_block(request.block);
        match &mut self.journal {
            Some(journal) => journal.add(Entry {
                event,
                id: request.id,
                block,
                sequence: request.sequence,
            }),
            None => Ok(()),
        }
    }
}

/// An index from a number that was checked against the memory's size.
fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn get(all: &[bool], at: u64) -> bool {
    all.get(index(at)).copied().unwrap_or(true)
}

fn set(all: &mut [bool], at: u64, value: bool) {
    if let Some(slot) = all.get_mut(index(at)) {
        *slot = value;
    }
}
