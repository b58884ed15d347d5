//! A served disk, and a driver that keeps a journal of every sector.

use device::blk::{BlkDevice, BlkOptions};
use device::function::{FunctionConfig, PciFunction};
use device::serve::vfio_user::{Served, ServedFunction, VfioUserServer};
use driver::blk::{BlkQueue, Outcome};
use driver::bus::{Bus, Interrupt};
use driver::memory::DmaMemory;
use driver::queue::SplitQueue;
use driver::state::DeviceState;
use driver::transport::{Notifier, QueueSetup};
use driver::{Transport, state};
use spec::features::Features;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A step that takes longer than this hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const SECTORS: u64 = 4096;
const SECTOR: u64 = 512;
const BYTES: usize = 512;
/// Requests that the driver keeps in flight.
pub const DEPTH: u64 = 32;
const SIZE: u16 = 128;
const VECTOR: u16 = 1;
/// All that our devices offer, but not what would give notifications another form.
pub const WANTED: Features = Features::VERSION_1
    .union(Features::ACCESS_PLATFORM)
    .union(Features::RING_EVENT_IDX)
    .union(Features::SUSPEND)
    .union(Features::QUEUE_STATE);

/// A disk file and any number of servers on it.
pub struct Bed {
    pub dir: TempDir,
    pub disk: PathBuf,
}

impl Bed {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        File::create(&disk)
            .unwrap()
            .set_len(SECTORS * SECTOR)
            .unwrap();
        Self { dir, disk }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn function(&self, config: FunctionConfig) -> Arc<PciFunction> {
        let disk = File::options()
            .read(true)
            .write(true)
            .open(&self.disk)
            .unwrap();
        let options = BlkOptions {
            queues: 2,
            ..BlkOptions::default()
        };
        PciFunction::new(config, BlkDevice::open(disk, options).unwrap() as _)
    }

    /// A server on a thread that takes one client after the other.
    pub fn serve(&self, name: &str) -> (PathBuf, Arc<ServedFunction>) {
        let config = FunctionConfig {
            features: FunctionConfig::SUPPORTED,
            ..FunctionConfig::default()
        };
        let served = ServedFunction::new(self.function(config));
        (serve(&self.path(name), Arc::clone(&served) as _), served)
    }
}

/// Serves anything, for as long as the test runs.
pub fn serve(path: &Path, served: Arc<dyn Served>) -> PathBuf {
    let server = VfioUserServer::bind(path, served).unwrap();
    thread::spawn(move || while server.run().is_ok() {});
    path.to_owned()
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// A block driver on any bus. Sector `n` of the disk holds its number and how often it was written.
pub struct Driver {
    pub transport: Arc<Transport>,
    pub queue: BlkQueue,
    pub ring: DmaMemory,
    pub area: DmaMemory,
    pub data: DmaMemory,
    notifier: Notifier,
    interrupt: Arc<dyn Interrupt>,
    /// By sector: how often it was written, and the last that was acknowledged.
    written: Vec<u64>,
    acknowledged: Vec<u64>,
    /// By slot of the data: the sector and number of the write in flight.
    flying: Vec<Option<(u64, u64)>>,
    random: u64,
    pub completed: u64,
}

impl Driver {
    pub fn start(bus: Arc<dyn Bus>) -> Self {
        let transport = Arc::new(Transport::new(bus.clone()).unwrap());
        let features = transport.initialise(WANTED).unwrap();
        let alloc = |len| bus.dma_alloc(len).unwrap();
        let ring = alloc(SplitQueue::bytes_needed(SIZE));
        let area = alloc(BlkQueue::area_needed(SIZE));
        let data = alloc(DEPTH * 4096);
        let split = SplitQueue::new(ring.clone(), SIZE, features).unwrap();
        transport
            .setup_queue(0, &split.setup(VECTOR), None)
            .unwrap();
        let interrupt = bus.interrupt(VECTOR).unwrap();
        let mut queue = BlkQueue::new(split, area.clone());
        queue.ring_mut().enable_interrupts().unwrap();
        transport.driver_ok().unwrap();
        Self {
            notifier: transport.notifier(0).unwrap(),
            transport,
            queue,
            ring,
            area,
            data,
            interrupt,
            written: vec![0; index(SECTORS)],
            acknowledged: vec![0; index(SECTORS)],
            flying: vec![None; index(DEPTH)],
            random: 1,
            completed: 0,
        }
    }

    /// How the queue was set up.
    pub fn setup(&self) -> QueueSetup {
        self.queue.ring().setup(VECTOR)
    }

    /// Goes on with another device behind another transport, over the same memory.
    pub fn restore(&mut self, transport: Arc<Transport>, saved: &DeviceState) {
        state::restore(&transport, saved).unwrap();
        self.interrupt = transport.bus().interrupt(VECTOR).unwrap();
        transport.driver_ok().unwrap();
        self.notifier = transport.notifier(0).unwrap();
        self.transport = transport;
    }

    fn sector(&mut self) -> u64 {
        // Marsaglia's xorshift: any spread will do.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % SECTORS
    }

    /// Fills the queue up with writes.
    pub fn submit(&mut self) {
        for (slot, token) in (0..self.flying.len()).zip(0..) {
            if self.flying[slot].is_some() {
                continue;
            }
            let mut sector = self.sector();
            while self
                .flying
                .iter()
                .flatten()
                .any(|(other, _)| *other == sector)
            {
                sector = self.sector();
            }
            self.written[index(sector)] += 1;
            let number = self.written[index(sector)];
            let mut bytes = [0; BYTES];
            bytes[..8].copy_from_slice(&sector.to_le_bytes());
            bytes[8..16].copy_from_slice(&number.to_le_bytes());
            bytes[504..].copy_from_slice(&number.to_le_bytes());
            let at = token * 4096;
            self.data.write(at, &bytes).unwrap();
            let buffer = (self.data.iova() + at, 512);
            self.queue.write(sector, &[buffer], token).unwrap();
            self.flying[slot] = Some((sector, number));
        }
        if self.queue.publish().unwrap() {
            self.notifier.notify(self.queue.ring().published()).unwrap();
        }
    }

    /// Takes what has completed; true if that was anything.
    pub fn reap(&mut self) -> bool {
        let mut any = false;
        while let Some(done) = self.queue.complete().unwrap() {
            assert_eq!(done.outcome, Outcome::Ok);
            let (sector, number) = self.flying[index(done.token)].take().expect("in flight");
            self.acknowledged[index(sector)] = number;
            self.completed += 1;
            any = true;
        }
        any
    }

    /// Waits for an interrupt unless there is something to take already.
    pub fn wait(&mut self) {
        while !self.reap() {
            if self.queue.ring_mut().enable_interrupts().unwrap() {
                continue;
            }
            assert!(
                self.interrupt.wait(PATIENCE),
                "no interrupt: a request is lost"
            );
        }
    }

    /// Writes until so many more have completed; what is in flight then stays so.
    pub fn run(&mut self, requests: u64) {
        let until = self.completed + requests;
        while self.completed < until {
            self.submit();
            self.wait();
        }
    }

    /// Waits for all that is in flight.
    pub fn drain(&mut self) {
        let until = Instant::now() + PATIENCE;
        while self.queue.in_flight() > 0 {
            assert!(
                Instant::now() < until,
                "{} in flight",
                self.queue.in_flight()
            );
            self.wait();
        }
    }

    /// Drains, and compares every sector of the disk with the journal.
    pub fn judge(&mut self, disk: &Path) {
        self.drain();
        assert!(self.completed > 0);
        assert_eq!(
            self.completed,
            self.written.iter().sum::<u64>(),
            "lost or doubled"
        );
        let disk = File::open(disk).unwrap();
        for (sector, number) in (0..).zip(&self.acknowledged) {
            let mut bytes = [0; BYTES];
            disk.read_exact_at(&mut bytes, sector * SECTOR).unwrap();
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let expected = if *number == 0 {
                (0, 0, 0)
            } else {
                (sector, *number, *number)
            };
            assert_eq!((word(0), word(8), word(504)), expected, "sector {sector}");
        }
    }
}
