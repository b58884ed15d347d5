//! Everybody who writes a guest's memory, at once and with a source of its own: a device with the
//! tracker, one whose owner reads records, one that marks a vhost log, and the CPU with its log. The
//! bytes of both sides are compared in the end; with the marks of any one of them left out, its
//! pages are lost, and nobody else's.

use device::dma::Dma;
use device::function::{AdminConfig, FunctionConfig, PciFunction};
use device::rng::RngDevice;
use device::tracker::{DirtyLog, Marking};
use driver::admin::{AdminQueue, Subject};
use driver::bus::Bus;
use driver::dirty::harvest::{HarvestWidth, harvest_into};
use driver::dirty::records::COMMANDS;
use driver::dirty::{DirtyError, DirtySet, DirtySource, PAGE_SIZE, RecordsSource, TrackerSource};
use driver::memory::{DmaMemory, WriteLog};
use driver::{Transport, sriov};
use migration::observe::Observer;
use migration::policy::Rounds;
use migration::precopy::{Options, migrate};
use migration::receive::receive;
use migration::stream::{Connection, live};
use migration::{
    Cancel, DeviceRecord, Guest, GuestError, Incoming, MigrationError, NamedSource, Paused,
};
use spec::features::Features;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use vm::{CpuLog, CpuLogSource, EmulatedBus};
use vm_memory::Permissions;

/// Pages of each writer.
const EACH: u64 = 512;
const NAMES: [&str; 4] = ["tracker", "records", "vhost log", "cpu"];
const SIZE: u64 = 4 * EACH * PAGE_SIZE;
/// Stores of each writer between two rounds, at least.
const BETWEEN: u64 = 300;

fn file(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}

/// A log that a device marks, as a frontend of vhost-user sees it: a bit for each page.
struct VhostLog {
    bitmap: DmaMemory,
    back: DirtySet,
}

impl DirtySource for VhostLog {
    fn start(&mut self, _: &[Range<u64>], _: u64) -> Result<u64, DirtyError> {
        Ok(PAGE_SIZE)
    }
    fn report(&mut self, _: Range<u64>, into: &mut DirtySet) -> Result<(), DirtyError> {
        into.union_with(&self.back);
        self.back.clear();
        let len = self.bitmap.len();
        harvest_into(&self.bitmap, len, HarvestWidth::Word, into).unwrap();
        Ok(())
    }
    fn put_back(&mut self, pages: &DirtySet) -> Result<(), DirtyError> {
        self.back.union_with(pages);
        Ok(())
    }
    fn stop(&mut self) -> Result<(), DirtyError> {
        Ok(())
    }
}

/// Stores a value at an address, through one's own door.
type Store = Arc<dyn Fn(u64, u64) + Send + Sync>;

fn through(function: &Arc<PciFunction>) -> Store {
    let function = Arc::clone(function);
    Arc::new(move |address, value| {
        let dma: &Dma = function.dma();
        let guard = dma.enter();
        let mut burst = guard.burst();
        burst.write(address, &value.to_le_bytes()).unwrap();
        burst.commit();
    })
}

struct Merged {
    memory: DmaMemory,
    sources: Vec<NamedSource>,
    stores: Vec<Store>,
    written: Arc<[AtomicU64; 4]>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// The owner of the device with records.
    _owner: Arc<EmulatedBus>,
}

fn function(memory: &File, marking: Marking) -> Arc<PciFunction> {
    let config = FunctionConfig {
        marking,
        ..FunctionConfig::default()
    };
    let function = PciFunction::new(config, RngDevice::seeded(0));
    let dma = function.dma();
    dma.map(0, SIZE, memory, 0, Permissions::ReadWrite).unwrap();
    function
}

impl Merged {
    /// A guest of which one writer, if any, leaves no marks.
    fn boot(deaf: Option<usize>) -> Self {
        let shared = file(SIZE);
        let memory = DmaMemory::from_file(&shared, 0, SIZE, 0).unwrap();
        let marking = |number| match deaf == Some(number) {
            true => Marking::Off,
            false => Marking::Bit,
        };
        let named = |number: usize, source: Box<dyn DirtySource>| NamedSource {
            name: NAMES[number].to_owned(),
            source,
        };

        let tracked = function(&shared, marking(0));
        let bus = EmulatedBus::new(Arc::clone(&tracked)) as Arc<dyn Bus>;
        let transport = Arc::new(Transport::new(bus).unwrap());
        transport
            .negotiate(Features::VERSION_1, Features::VERSION_1)
            .unwrap();
        transport.driver_ok().unwrap();
        let bitmap = transport.bus().dma_alloc(SIZE / PAGE_SIZE / 8).unwrap();
        let tracker = TrackerSource::new(transport, bitmap, HarvestWidth::Word).unwrap();

        let member = function(&shared, marking(1));
        let config = FunctionConfig {
            tracker: false,
            admin: AdminConfig {
                queues: 2,
                max_records: 1 << 16,
                ..AdminConfig::default()
            },
            ..FunctionConfig::default()
        };
        let members = vec![Arc::clone(&member)];
        let owner = PciFunction::owner(config, RngDevice::seeded(0), members).unwrap();
        let owner = EmulatedBus::new(owner);
        let transport = Arc::new(Transport::new(Arc::clone(&owner) as Arc<dyn Bus>).unwrap());
        let needed = Features::ADMIN_VQ | Features::SR_IOV;
        transport.negotiate(needed, needed).unwrap();
        let mut queue = AdminQueue::new(Arc::clone(&transport), 0).unwrap();
        transport.driver_ok().unwrap();
        sriov::enable(&*owner, 1).unwrap();
        queue
            .use_commands(spec::admin::group::SR_IOV, &COMMANDS)
            .unwrap();
        let queue = Arc::new(Mutex::new(queue));
        let records = RecordsSource::new(queue, Subject::virtual_function(1));

        let logging = function(&shared, Marking::Bit);
        let length = (SIZE / PAGE_SIZE / 8).next_multiple_of(PAGE_SIZE);
        let log = file(length);
        let marks = DirtyLog::open(&log, 0, length, marking(2)).unwrap();
        logging.dma().set_log(Some(marks));
        logging.dma().set_log_data(true);
        let log = VhostLog {
            bitmap: DmaMemory::from_file(&log, 0, length, 0).unwrap(),
            back: DirtySet::new(SIZE / PAGE_SIZE),
        };

        let cpu_log = CpuLog::new(SIZE);
        let cpu = match deaf {
            Some(3) => memory.clone(),
            _ => {
                let log = Arc::clone(&cpu_log) as Arc<dyn WriteLog>;
                memory.clone().with_log(log)
            }
        };
        let by_cpu: Store = Arc::new(move |address, value: u64| {
            cpu.write(address, &value.to_le_bytes()).unwrap();
        });
        let mut guest = Self {
            memory,
            sources: vec![
                named(0, Box::new(tracker)),
                named(1, Box::new(records)),
                named(2, Box::new(log)),
                named(3, Box::new(CpuLogSource(cpu_log))),
            ],
            stores: vec![
                through(&tracked),
                through(&member),
                through(&logging),
                by_cpu,
            ],
            written: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
            _owner: owner,
        };
        guest.resume().unwrap();
        guest
    }
}

impl Guest for Merged {
    fn describe(&self) -> Vec<u8> {
        b"a guest of four writers".to_vec()
    }
    fn memory(&self) -> Vec<DmaMemory> {
        vec![self.memory.clone()]
    }
    fn sources(&mut self) -> &mut [NamedSource] {
        &mut self.sources
    }
    fn pause(&mut self) -> Result<Paused, GuestError> {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        Ok(Paused::default())
    }
    fn resume(&mut self) -> Result<(), GuestError> {
        self.stop.store(false, Ordering::Release);
        for (number, store) in self.stores.iter().cloned().enumerate() {
            let (stop, written) = (Arc::clone(&self.stop), Arc::clone(&self.written));
            let first = u64::try_from(number).unwrap() * EACH;
            self.threads.push(std::thread::spawn(move || {
                let mut value = first + 1;
                while !stop.load(Ordering::Acquire) {
                    // Every page in turn, in steps that have no factor with their number.
                    let page = first + value.wrapping_mul(37) % EACH;
                    store(page * PAGE_SIZE + 64, value);
                    value += 1;
                    written[number].fetch_add(1, Ordering::Release);
                    if value.is_multiple_of(64) {
                        std::thread::yield_now();
                    }
                }
            }));
        }
        Ok(())
    }
    fn save(&mut self) -> Result<Vec<DeviceRecord>, GuestError> {
        Ok(Vec::new())
    }
}

impl Drop for Merged {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Lets every writer write before each round.
struct Busy(Arc<[AtomicU64; 4]>);

impl Observer for Busy {
    fn before_round(&mut self, _: u32) {
        for writer in &*self.0 {
            let now = writer.load(Ordering::Acquire);
            while writer.load(Ordering::Acquire) < now + BETWEEN {
                std::thread::yield_now();
            }
        }
    }
}

#[derive(Default)]
struct Arrived(Vec<DmaMemory>);

impl Incoming for Arrived {
    fn prepare(&mut self, _: &[u8]) -> Result<(), GuestError> {
        self.0 = vec![DmaMemory::from_file(&file(SIZE), 0, SIZE, 0).unwrap()];
        Ok(())
    }
    fn memory(&self) -> Vec<DmaMemory> {
        self.0.clone()
    }
    fn poison(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
    fn restore(&mut self, _: DeviceRecord) -> Result<(), GuestError> {
        Ok(())
    }
    fn ready(&mut self) -> Result<Duration, GuestError> {
        Ok(Duration::ZERO)
    }
    fn go(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
}

fn contents(memory: &DmaMemory) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(memory.len()).unwrap()];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

/// How many pages of each writer differ in the end, and what each source reported.
fn lost(deaf: Option<usize>) -> ([u64; 4], [u64; 4]) {
    let mut guest = Merged::boot(deaf);
    let (here, there) = Connection::pair().unwrap();
    let far = std::thread::spawn(move || -> Result<Arrived, MigrationError> {
        let mut arrived = Arrived::default();
        receive(&mut live::Destination::new(there), &mut arrived)?;
        Ok(arrived)
    });
    let cancel = Cancel::default();
    let options = Options {
        policy: &Rounds {
            min_rounds: 4,
            max_rounds: 4,
            stop_pages: 0,
        },
        granularity: PAGE_SIZE,
        plain_copies: 0,
        bandwidth: None,
        cancel: &cancel,
    };
    let mut busy = Busy(Arc::clone(&guest.written));
    let mut stream = live::Source::new(here);
    let report = migrate(&mut guest, &mut stream, &options, &mut busy).unwrap();
    let arrived = far.join().unwrap().unwrap();
    let (mine, theirs) = (contents(&guest.memory), contents(&arrived.0[0]));
    let (mut lost, mut reported) = ([0; 4], [0; 4]);
    let pages = mine.chunks(4096).zip(theirs.chunks(4096));
    for (number, (here, there)) in pages.enumerate() {
        let writer = number / usize::try_from(EACH).unwrap();
        lost[writer] += u64::from(here != there);
    }
    for share in report.rounds.iter().flat_map(|round| &round.shares) {
        let source = NAMES.iter().position(|name| *name == share.name);
        reported[source.unwrap()] += share.pages;
    }
    (lost, reported)
}

#[test]
fn four_sources_of_one_running_guest_lose_nothing_together() {
    let (lost, reported) = lost(None);
    assert_eq!(lost, [0; 4]);
    assert!(
        reported.iter().all(|pages| *pages > EACH / 2),
        "{reported:?}"
    );
}

#[test]
fn without_the_marks_of_one_its_pages_are_lost_and_no_others() {
    for (deaf, name) in NAMES.iter().enumerate() {
        let (lost, reported) = lost(Some(deaf));
        for writer in 0..NAMES.len() {
            assert_eq!(
                lost[writer] > 0,
                writer == deaf,
                "without the {name}: {lost:?} of {reported:?}"
            );
        }
    }
}
