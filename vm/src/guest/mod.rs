//! The emulated guest: memory, block devices, and virtual CPUs that use them at full speed.
//!
//! Every device write changes bytes (see [`block`]), every request is written down (see
//! [`journal`]), and every page is written by a known party (see [`PageClass`]).

pub mod block;
mod conducted;
pub mod journal;
mod layout;
mod life;
mod moving;
mod protect;
mod saved;
mod vcpu;
mod workload;

pub use layout::{Layout, PageClass, Place, Shape};
pub use workload::{Pattern, Step, Walk};

pub(crate) use saved::{Description, SavedDevice, SavedVcpu, decode, encode};

use crate::cpu_log::CpuLogSource;
use crate::emulated_bus::EmulatedBus;
use crate::error::VmError;
use crate::evidence::Marks;
use crate::held::HeldDisk;
use crate::hypervisor::{Means, Owner};
use crate::machine::{Hosting, Machine, Remapper};
use crate::seat::SharedTracker;
use block::Stamp;
use conducted::Conducted;
use driver::Transport;
use driver::bus::Bus;
use driver::dirty::{DirtySource, PAGE_SIZE, TrackerSource};
use driver::memory::DmaMemory;
use driver::queue::Virtqueue;
use journal::Journal;
use life::Life;
use migration::NamedSource;
use migration::checkpoint::Witness;
use spec::blk::BlkFeatures;
use spec::features::Features;
use spec::{packed, ring};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vcpu::{Gate, Order, Vcpu, Wires};

/// What the guest's driver wants of a device.
fn wanted(means: Means) -> Features {
    let blk = BlkFeatures::FLUSH | BlkFeatures::MQ | BlkFeatures::SEG_MAX | BlkFeatures::BLK_SIZE;
    Features::RING_EVENT_IDX
        | Features::RING_INDIRECT_DESC
        | Features::RING_RESET
        | Features::ORDER_PLATFORM
        | Features::NOTIFICATION_DATA
        | Features::NOTIF_CONFIG_DATA
        | needed(means)
        | Features::from_bits_retain(blk.bits())
}

/// What a guest that is to move cannot do without: nothing, if an owner moves it.
fn needed(means: Means) -> Features {
    if means.parts {
        Features::VERSION_1
    } else {
        Features::VERSION_1 | Features::SUSPEND | Features::QUEUE_STATE
    }
}

/// The feature that makes queues packed, if they are to be.
pub(crate) fn ring_format(packed: bool) -> Features {
    if packed {
        Features::RING_PACKED
    } else {
        Features::empty()
    }
}

/// Negotiates as the guest's driver does.
fn negotiate(transport: &Transport, means: Means, packed: bool) -> Result<(), VmError> {
    let ring = ring_format(packed);
    let accepted = transport.negotiate(wanted(means) | ring, needed(means) | ring);
    accepted
        .map(drop)
        .map_err(VmError::driver("initialising a device"))
}

/// Sets up the queue of a virtual CPU.
fn setup_of(transport: &Transport, place: &Place, queue: &Virtqueue) -> Result<(), VmError> {
    // The vector's receiver exists before the device can use it.
    let vector = vector_of(place);
    transport.bus().interrupt(vector)?;
    let done = transport.setup_queue(place.queue, &queue.setup(vector), None);
    done.map_err(VmError::driver("setting up a queue"))
}

/// One device as the guest's driver has it.
#[derive(Debug)]
struct Device {
    transport: Arc<Transport>,
    /// If it is reset now and then.
    life: Option<Arc<Life>>,
}

impl Device {
    /// Device `number` of a guest.
    fn new(machine: &Machine, number: u16, transport: Arc<Transport>) -> Result<Self, VmError> {
        let layout = &machine.layout;
        let shape = &layout.shape;
        let mut queues = Vec::new();
        for place in layout.places.iter().filter(|place| place.device == number) {
            let bytes = Virtqueue::bytes_needed(shape.queue_size);
            queues.push((*place, machine.memory.slice(place.ring, bytes)?));
        }
        let life = (shape.reset_every > 0).then(|| {
            let (means, every) = (shape.means, shape.reset_every);
            Life::new(&transport, means, every, shape.queue_size, queues)
        });
        Ok(Self { transport, life })
    }
}

/// A running virtual CPU hands itself back when it stops.
type Running = JoinHandle<(Vcpu, Result<(), VmError>)>;

#[derive(Debug)]
enum Cpus {
    Running(Vec<Running>),
    Stopped(Vec<Vcpu>),
}

/// A guest.
#[derive(Debug)]
pub struct EmulatedGuest {
    machine: Machine,
    devices: Vec<Device>,
    cpus: Cpus,
    gate: Arc<Gate>,
    sources: Vec<NamedSource>,
    /// The sources of its devices, if those have trackers of their own.
    trackers: Vec<SharedTracker>,
    conducted: Conducted,
    suspended: bool,
    /// Of each moment that it can be brought back to, if it is checkpointed and leaves evidence.
    marks: Option<Marks>,
    /// Is told of what its devices put out, if that is compared.
    witness: Option<Arc<dyn Witness>>,
}

/// What a guest has done so far, on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests completed.
    pub completed: u64,
    /// Of those, reads: each wrote a page of guest memory.
    pub reads: u64,
    /// How often a driver reset its device.
    pub resets: u64,
}

/// A guest's counters.
#[derive(Clone, Debug)]
pub struct Counters(Arc<Gate>);

impl Counters {
    /// What the guest has done so far.
    pub fn read(&self) -> Progress {
        Progress {
            completed: self.0.completed.load(Ordering::Relaxed),
            reads: self.0.reads.load(Ordering::Relaxed),
            resets: self.0.resets.load(Ordering::Relaxed),
        }
    }
}

impl EmulatedGuest {
    /// Boots a guest: every page of memory written once, devices initialised, CPUs stopped.
    ///
    /// # Errors
    /// [`VmError`] says what is wrong with the shape or with the host.
    pub fn boot(shape: &Shape, hosting: &Hosting) -> Result<Self, VmError> {
        let machine = Machine::build(shape, hosting)?;
        let layout = Arc::clone(&machine.layout);
        let mut page = [0; block::BLOCK_BYTES];
        let mut at = layout.frames_at;
        while at < shape.memory {
            Stamp::empty(at / PAGE_SIZE).fill(&mut page);
            machine.memory.write(at, &page)?;
            at += PAGE_SIZE;
        }
        let mut devices = Vec::new();
        for (number, bus) in (0..).zip(&machine.buses) {
            let transport = transport(Arc::clone(bus) as Arc<dyn Bus>)?;
            negotiate(&transport, shape.means, shape.packed)?;
            devices.push(Device::new(&machine, number, transport)?);
        }
        let mut cpus = Vec::new();
        for place in &layout.places {
            let device = device_of(&devices, place)?;
            let features = device.transport.features();
            let vcpu = Vcpu::boot(&layout, *place, &machine.memory, features)?;
            setup_of(&device.transport, place, vcpu.queue())?;
            cpus.push(vcpu);
        }
        for device in &devices {
            let live = device.transport.driver_ok();
            live.map_err(VmError::driver("starting a device"))?;
        }
        Self::assemble(machine, devices, cpus, hosting)
    }

    /// A guest from received parts; its devices are initialised up to DRIVER_OK.
    fn assemble(
        machine: Machine,
        devices: Vec<Device>,
        mut cpus: Vec<Vcpu>,
        hosting: &Hosting,
    ) -> Result<Self, VmError> {
        for vcpu in &mut cpus {
            let journal = match &hosting.evidence {
                None => None,
                Some(folder) => {
                    let path = Journal::path(folder, &hosting.side, vcpu.place().vcpu);
                    Some(Journal::create(&path)?)
                }
            };
            vcpu.keep_journal(journal);
        }
        let shape = &machine.layout.shape;
        let cpu_log = CpuLogSource(Arc::clone(&machine.cpu_log));
        let mut sources = vec![NamedSource {
            name: "cpu".to_owned(),
            source: Box::new(cpu_log) as Box<dyn DirtySource>,
        }];
        let mut trackers = Vec::new();
        let records = shape.means.records.is_some();
        for (number, device) in (0..).zip(&devices) {
            if let Some(owner) = machine.owner.as_ref().filter(|_| records) {
                sources.push(NamedSource {
                    name: format!("records{number}"),
                    source: Box::new(owner.records(number)),
                });
                continue;
            }
            // The bitmap is the hypervisor's: no page of the guest's memory.
            let length = (shape.memory / PAGE_SIZE).div_ceil(8);
            let bitmap = device.transport.bus().dma_alloc(length)?;
            let transport = Arc::clone(&device.transport);
            let width = shape.marking.width();
            let tracker = TrackerSource::new(transport, bitmap, width)
                .map_err(VmError::driver("setting up a tracker"))?;
            let tracker = SharedTracker::new(tracker, width);
            trackers.push(tracker.clone());
            sources.push(NamedSource {
                name: format!("tracker{number}"),
                source: Box::new(tracker),
            });
        }
        let marks = match &hosting.evidence {
            Some(folder) if hosting.hold.is_some() => Some(Marks::create(folder, &hosting.side)?),
            _ => None,
        };
        Ok(Self {
            machine,
            marks,
            devices,
            cpus: Cpus::Stopped(cpus),
            gate: Arc::default(),
            sources,
            trackers,
            conducted: Conducted::default(),
            suspended: false,
            witness: None,
        })
    }

    /// Its shape.
    pub fn shape(&self) -> &Shape {
        &self.machine.layout.shape
    }

    /// All of its memory.
    pub fn ram(&self) -> &DmaMemory {
        &self.machine.memory
    }

    /// Who writes which page.
    pub fn classes(&self) -> Vec<PageClass> {
        classes(&self.machine.layout)
    }

    /// What it has done.
    pub fn progress(&self) -> Progress {
        self.counters().read()
    }

    /// The means to edit its devices' maps while they run.
    pub fn remapper(&self) -> Remapper {
        self.machine.remapper()
    }

    /// How often its devices were suspended, or stopped or let go on by their owner, as they
    /// themselves count it.
    pub fn stops(&self) -> u64 {
        let suspends = |bus: &Arc<EmulatedBus>| bus.function().stats().suspends;
        let suspends: u64 = self.machine.buses.iter().map(suspends).sum();
        suspends + self.machine.owner.as_ref().map_or(0, Owner::stops)
    }

    /// Its counters, to be read while somebody else holds the guest.
    pub fn counters(&self) -> Counters {
        Counters(Arc::clone(&self.gate))
    }

    /// Lets the virtual CPUs run. Harmless if they do.
    ///
    /// # Errors
    /// [`VmError::System`] if the system has no thread, or what the bus says.
    pub fn run(&mut self) -> Result<(), VmError> {
        let cpus = match &mut self.cpus {
            Cpus::Running(_) => return Ok(()),
            Cpus::Stopped(cpus) => std::mem::take(cpus),
        };
        self.gate.set(Order::Run);
        let mut running = Vec::new();
        for mut vcpu in cpus {
            let place = *vcpu.place();
            let device = device_of(&self.devices, &place)?;
            let notifier = device.transport.notifier(place.queue);
            let wires = Wires {
                notifier: notifier.map_err(VmError::driver("finding a doorbell"))?,
                interrupt: device.transport.bus().interrupt(vector_of(&place))?,
                life: device.life.clone(),
                witness: self.witness.clone(),
            };
            let gate = Arc::clone(&self.gate);
            let thread = std::thread::Builder::new().name(format!("vcpu{}", place.vcpu));
            let spawned = thread.spawn(move || {
                let ended = vcpu.run(&gate, &wires);
                (vcpu, ended)
            });
            running.push(spawned.map_err(VmError::system("start a virtual CPU"))?);
        }
        self.cpus = Cpus::Running(running);
        Ok(())
    }

    /// Runs until so many more requests have completed, or for `limit` at most; true in the first
    /// case.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_for(&mut self, requests: u64, limit: Duration) -> Result<bool, VmError> {
        self.run()?;
        let begin = Instant::now();
        let target = self.progress().completed.saturating_add(requests);
        while self.progress().completed < target {
            if begin.elapsed() > limit {
                return Ok(false);
            }
            // A counter that the CPUs raise at every request is not worth a notification each.
            std::thread::park_timeout(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Stops the virtual CPUs, with or without what is in flight.
    fn stop(&mut self, order: Order) -> Result<(), VmError> {
        let running = match &mut self.cpus {
            Cpus::Stopped(_) => return Ok(()),
            Cpus::Running(running) => std::mem::take(running),
        };
        self.gate.set(order);
        let mut cpus = Vec::new();
        let mut first = Ok(());
        for (number, thread) in running.into_iter().enumerate() {
            match thread.join() {
                Ok((vcpu, ended)) => {
                    cpus.push(vcpu);
                    first = first.and(ended);
                }
                Err(_) => {
                    first = first.and(Err(VmError::Vcpu {
                        vcpu: number,
                        why: "it panicked".to_owned(),
                    }));
                }
            }
        }
        // One that had stopped when another reset their device has not seen it.
        for vcpu in &mut cpus {
            if let Some(life) = &device_of(&self.devices, vcpu.place())?.life {
                let caught_up = vcpu.follow(*life.enter(), life.features());
                first = first.and(caught_up.map(drop));
            }
        }
        self.cpus = Cpus::Stopped(cpus);
        first
    }

    /// Submits nothing more, waits until every request has completed, and stops the CPUs.
    ///
    /// # Errors
    /// What a virtual CPU met.
    pub fn drain(&mut self) -> Result<(), VmError> {
        // Stopped CPUs may have left requests in flight.
        self.run()?;
        self.stop(Order::Drain)
    }

    fn stopped(&self, operation: &'static str) -> Result<&[Vcpu], VmError> {
        match &self.cpus {
            Cpus::Stopped(cpus) => Ok(cpus),
            Cpus::Running(_) => Err(VmError::Wrong {
                is: "running",
                operation,
            }),
        }
    }
}

impl Drop for EmulatedGuest {
    fn drop(&mut self) {
        // What waits in a disk for a checkpoint that nobody makes any more would hold up the threads
        // that other guests' devices use. It stays in memory, and goes with it.
        self.disks().for_each(HeldDisk::boundary);
        // Threads that go on would use a device that is going away.
        if let Err(error) = self.stop(Order::Pause) {
            tracing::debug!(%error, "stopping a guest that is dropped");
        }
    }
}

fn transport(bus: Arc<dyn Bus>) -> Result<Arc<Transport>, VmError> {
    let transport = Transport::new(bus).map_err(VmError::driver("finding a device"))?;
    Ok(Arc::new(transport))
}

/// Vector 0 is left to configuration changes.
fn vector_of(place: &Place) -> u16 {
    place.queue.saturating_add(1)
}

fn device_of<'d>(devices: &'d [Device], place: &Place) -> Result<&'d Device, VmError> {
    devices
        .get(usize::from(place.device))
        .ok_or_else(|| VmError::shape("devices", "one for each virtual CPU", devices.len()))
}

/// Who writes which page of a guest laid out like this.
pub(crate) fn classes(layout: &Layout) -> Vec<PageClass> {
    let places = layout.places.iter();
    let parts = places.filter_map(|place| written_parts(place.ring, &layout.shape));
    layout.classes(&parts.flatten().collect::<Vec<_>>())
}

/// The parts of a queue at `ring` that a device writes, as address and bytes: asked of the driver
/// itself, by means of a queue in memory of its own. A packed ring the driver writes too, but a
/// page of it that is lost may be the device's fault.
fn written_parts(ring: u64, shape: &Shape) -> Option<Vec<(u64, u64)>> {
    let size = shape.queue_size;
    let bytes = Virtqueue::bytes_needed(size);
    let file = crate::emulated_bus::memory_file("tidemark-probe", bytes).ok()?;
    let memory = DmaMemory::from_file(&file, 0, bytes, ring).ok()?;
    let features = Features::VERSION_1 | ring_format(shape.packed);
    let setup = Virtqueue::new(memory, size, features).ok()?.setup(0);
    Some(if shape.packed {
        let descriptors = (setup.desc, ring::desc_bytes(size));
        vec![descriptors, (setup.device, packed::EVENT_BYTES)]
    } else {
        vec![(setup.device, ring::used_bytes(size))]
    })
}
