//! Packed queues: the device's end against the driver's, and whole moves over them.

use device::dma::Dma;
use device::queue::{Chain, QueueConfig, Virtqueue as DeviceQueue};
use driver::memory::DmaMemory;
use driver::queue::{Buffer, Virtqueue};
use migration::observe::Silent;
use migration::policy::Rounds;
use proptest::prelude::*;
use spec::features::Features;
use spec::queue_state::QueueState;
use std::collections::{BTreeMap, VecDeque};
use vm::guest::{Pattern, Shape};
use vm::{InProcess, Limits, MarkingMode, Means, Outcome, migrate_in_process};
use vm_memory::Permissions;

/// Where both sides know the memory.
const BASE: u64 = 0x10_0000;

#[derive(Clone, Debug)]
enum Step {
    /// A request of so many readable and writable buffers.
    Add(usize, usize),
    Publish,
    /// The device takes at most so many and uses at most so many.
    Work(usize, usize),
    Reap,
    /// The device stops, whatever it has in hand, and another goes on where it stood.
    OtherDevice,
    /// The same on the driver's side.
    OtherDriver,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..6_usize, 0..6_usize).prop_map(|(r, w)| Step::Add(r, w)),
        3 => Just(Step::Publish),
        5 => (0..8_usize, 0..8_usize).prop_map(|(take, finish)| Step::Work(take, finish)),
        3 => Just(Step::Reap),
        1 => Just(Step::OtherDevice),
        1 => Just(Step::OtherDriver),
    ]
}

/// Both ends of one queue, and what each knows of the other.
struct Pair {
    memory: DmaMemory,
    dma: Dma,
    features: Features,
    size: u16,
    driver: Virtqueue,
    device: DeviceQueue,
    /// The device has something to look for; if not, it waits to be kicked.
    awake: bool,
    /// The driver has been told to look.
    told: bool,
    /// Buffers of each request in flight, by token.
    sent: BTreeMap<u64, (Vec<Buffer>, Vec<Buffer>)>,
    popped: VecDeque<Chain>,
    /// Lengths of what was used and not reaped.
    used: VecDeque<(Vec<Buffer>, Vec<Buffer>, u32)>,
}

impl Pair {
    fn new(size: u16, features: Features) -> Self {
        let bytes = Virtqueue::bytes_needed(size).next_multiple_of(4096);
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let memory = DmaMemory::from_file(&file, 0, bytes, BASE).unwrap();
        let dma = Dma::new();
        let access = Permissions::ReadWrite;
        dma.map(BASE, bytes, &file, 0, access).unwrap();
        let driver = Virtqueue::new(memory.clone(), size, features).unwrap();
        let begin = QueueState::default_of(features.contains(Features::RING_PACKED));
        let device = Self::start(&dma, &driver, features, begin);
        Self {
            memory,
            dma,
            features,
            size,
            driver,
            device,
            awake: true,
            told: false,
            sent: BTreeMap::new(),
            popped: VecDeque::new(),
            used: VecDeque::new(),
        }
    }

    fn start(dma: &Dma, driver: &Virtqueue, features: Features, state: QueueState) -> DeviceQueue {
        let setup = driver.setup(0);
        let config = QueueConfig {
            size: setup.size,
            desc: setup.desc,
            driver: setup.driver,
            device: setup.device,
            packed: features.contains(Features::RING_PACKED),
            event_idx: features.contains(Features::RING_EVENT_IDX),
            state,
        };
        DeviceQueue::start(config, &dma.enter()).unwrap()
    }

    fn add(&mut self, token: u64, reads: usize, writes: usize) {
        let base = 0x1_0000_0000 + token * 0x10_0000;
        let part = |n: usize, from: u64| -> Vec<Buffer> {
            (0..u64::try_from(n).unwrap())
                .map(|i| (base + from + i * 0x1000, 100 + u32::try_from(i).unwrap()))
                .collect()
        };
        let (readable, writable) = (part(reads, 0), part(writes, 0x8000));
        if self.driver.add(&readable, &writable, token).is_ok() {
            self.sent.insert(token, (readable, writable));
        }
    }

    fn publish(&mut self) {
        self.awake |= self.driver.publish().unwrap();
    }

    fn work(&mut self, take: usize, finish: usize) {
        let mem = self.dma.enter();
        for _ in 0..take {
            if !self.awake {
                break;
            }
            match self.device.pop(&mem).unwrap() {
                Some(chain) => self.popped.push_back(chain),
                None => self.awake = self.device.enable_notification(&mem).unwrap(),
            }
        }
        for _ in 0..finish {
            let Some(chain) = self.popped.pop_front() else {
                break;
            };
            let len = u32::try_from(chain.writable_len() / 2).unwrap();
            self.device.push(&mem, chain.head, len).unwrap();
            self.used.push_back((chain.readable, chain.writable, len));
        }
        self.told |= self.device.needs_notification(&mem).unwrap();
    }

    /// Takes what there is, and asks to be told of more.
    fn reap(&mut self) {
        loop {
            while let Some(used) = self.driver.reap().unwrap() {
                let (readable, writable, len) = self.used.pop_front().expect("used before");
                assert_eq!(used.len, len);
                let sent = self.sent.remove(&used.token);
                assert_eq!(sent, Some((readable, writable)), "{}", used.token);
            }
            self.told = false;
            if !self.driver.enable_interrupts().unwrap() {
                break;
            }
        }
    }

    fn other_device(&mut self) {
        // Popped and not used counts as not consumed, so asking is enough: nothing else is lost
        // with the device that is here.
        let state = self.device.state();
        self.device = Self::start(&self.dma, &self.driver, self.features, state);
        // It finds again what was popped and not used.
        self.popped.clear();
        self.awake = true;
        let mem = self.dma.enter();
        self.told |= self.device.needs_notification(&mem).unwrap();
    }

    fn other_driver(&mut self) {
        let state = self.driver.state();
        let memory = self.memory.clone();
        self.driver = Virtqueue::resume(memory, self.size, self.features, &state).unwrap();
        assert_eq!(self.driver.state(), state);
        self.told = true;
    }
}

proptest! {
    /// Whatever either side does and whoever takes its place, every request arrives as it was
    /// built, comes back once, and neither side sleeps while there is something for it.
    #[test]
    fn device_and_driver_agree(
        steps in prop::collection::vec(step(), 1..250),
        size in prop_oneof![1..8_u16, 1..40_u16],
        event_idx in any::<bool>(),
        indirect in any::<bool>(),
        packed in prop_oneof![3 => Just(true), 1 => Just(false)],
    ) {
        let mut features = Features::VERSION_1;
        features.set(Features::RING_EVENT_IDX, event_idx);
        features.set(Features::RING_INDIRECT_DESC, indirect);
        features.set(Features::RING_PACKED, packed);
        let size = if packed { size } else { size.next_power_of_two() };
        let mut pair = Pair::new(size, features);
        for (token, step) in (0..).zip(steps) {
            match step {
                Step::Add(reads, writes) => pair.add(token, reads, writes),
                Step::Publish => pair.publish(),
                Step::Work(take, finish) => pair.work(take, finish),
                Step::Reap => pair.reap(),
                Step::OtherDevice => pair.other_device(),
                Step::OtherDriver => pair.other_driver(),
            }
            prop_assert_eq!(usize::from(pair.driver.in_flight()), pair.sent.len());
            let unused = pair.sent.len() - pair.used.len();
            prop_assert_eq!(usize::from(pair.driver.unused().unwrap()), unused);
            prop_assert_eq!(usize::from(pair.device.in_flight()), pair.popped.len());
        }
        // All that is left goes the same way, by notifications alone.
        pair.publish();
        pair.reap();
        while pair.awake || !pair.popped.is_empty() {
            pair.work(usize::from(size) + 1, usize::from(size));
            if pair.told {
                pair.reap();
            }
        }
        prop_assert_eq!(pair.sent.len(), 0, "asleep with work to do");
        let state = pair.device.stop();
        let places = pair.driver.state();
        prop_assert_eq!((state.avail, state.used), (places.published, places.last_used));
    }
}

fn plan(pattern: Pattern, means: Means) -> InProcess {
    InProcess {
        shape: Shape {
            memory: 32 << 20,
            devices: 2,
            queues: 2,
            // No power of two: the places where it is moved are any.
            queue_size: 251,
            depth: 32,
            blocks: 2048,
            pattern,
            writes_percent: 30,
            seed: 0x71de,
            marking: MarkingMode::Bits,
            means,
            reset_every: 0,
            packed: true,
        },
        granularity: 4096,
        policy: Rounds {
            min_rounds: 5,
            max_rounds: 6,
            stop_pages: 64,
        },
        plain_copies: 0,
        before: 2000,
        after: 2000,
        destination: Limits::default(),
    }
}

fn run(plan: &InProcess) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    migrate_in_process(plan, folder.path(), &mut Silent).unwrap()
}

/// The move must be a proof; with marking off the same move must lose pages.
fn moves(pattern: Pattern, means: Means) {
    let what = format!("{pattern:?}, {means:?}");
    let mut plan = plan(pattern, means);
    let outcome = run(&plan);
    let objections = outcome.objections();
    assert!(
        objections.is_empty(),
        "{what}: {objections:#?}\n{outcome:#?}"
    );
    assert!(outcome.moved, "{what}");

    plan.shape.marking = MarkingMode::Off;
    let control = run(&plan);
    let memory = control.memory.as_ref().expect("the memories are compared");
    assert!(control.device_writes > 0, "{what}: inconclusive");
    assert!(memory.lost_device > 0, "{what}: {control:#?}");
    assert_eq!(memory.lost_cpu + memory.lost_unused, 0, "{what}");
    assert!(!control.moved && control.resumed, "{what}");
    // What could not be moved is whole where it stayed.
    assert!(
        control.guest_objections().is_empty(),
        "{what}: {control:#?}"
    );
}

const RECORDS: Option<u32> = Some(1 << 18);

#[test]
fn bitmap_and_registers() {
    for pattern in [Pattern::Random, Pattern::Zipf, Pattern::Sequential] {
        moves(pattern, Means::default());
    }
}

#[test]
fn bitmap_and_parts() {
    let parts = true;
    moves(
        Pattern::Random,
        Means {
            parts,
            ..Means::default()
        },
    );
}

#[test]
fn records_and_parts() {
    let (records, parts) = (RECORDS, true);
    moves(Pattern::Zipf, Means { records, parts });
}

/// A destination without packed queues says so before the guest is gone.
#[test]
fn a_host_without_packed_queues_refuses() {
    let mut plan = plan(Pattern::Random, Means::default());
    plan.destination.features_off = Features::RING_PACKED;
    let outcome = run(&plan);
    assert!(!outcome.moved && outcome.resumed, "{outcome:#?}");
    assert!(outcome.guest_objections().is_empty(), "{outcome:#?}");
}
