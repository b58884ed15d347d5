//! A driver that knows nothing of suspend, moved from server to server by the mediator.

use crate::harness::{Bed, Driver, PATIENCE, serve};
use device::blk::{BlkDevice, BlkOptions};
use device::function::{FunctionConfig, PciFunction};
use device::serve::vfio_user::ServedFunction;
use device::tracker::Marking;
use driver::Transport;
use driver::bus::vfio_user::VfioUserBus;
use driver::bus::{Bus, RelayBus};
use driver::dirty::DirtySet;
use driver::memory::DmaMemory;
use spec::features::Features;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use vm::mediate::{MediateError, Mediator, MoveReport, OWN_MEMORY, Options};

fn back(path: &Path) -> Arc<dyn RelayBus> {
    VfioUserBus::connect_with(path, OWN_MEMORY).unwrap()
}

/// A mediator in front of the server at `path`.
fn mediate(bed: &Bed, path: &Path, options: Options) -> (PathBuf, Arc<Mediator>) {
    let mediator = Mediator::new("first", back(path), options).unwrap();
    let front = serve(&bed.path("front"), Arc::clone(&mediator) as _);
    (front, mediator)
}

#[test]
fn the_driver_sees_a_device_of_virtio_1_4() {
    let bed = Bed::new();
    let (a, _) = bed.serve("a");
    let (front, _mediator) = mediate(&bed, &a, Options::default());
    let bus = VfioUserBus::connect(&front).unwrap();
    let transport = Transport::new(bus.clone()).unwrap();
    assert!(!transport.has_tracker());
    let caps = transport.capabilities();
    assert_eq!(caps.common.length, 64);
    let offered = transport.device_features().unwrap();
    assert!(offered.contains(Features::VERSION_1 | Features::RING_EVENT_IDX));
    assert!(!offered.intersects(Features::SUSPEND | Features::QUEUE_STATE));

    // What it was not offered it cannot have, nor see.
    let all = Features::from_bits_retain(!0);
    let accepted = transport.initialise(all).unwrap();
    assert_eq!(accepted, offered);
    transport.driver_ok().unwrap();
    assert_eq!(transport.adopt().unwrap(), offered);
    let status = transport.status().unwrap();
    transport
        .write_status(status | spec::status::DeviceStatus::SUSPEND)
        .unwrap();
    assert_eq!(transport.status().unwrap(), status, "the bit means nothing");
    let mut data = [0xff; 4];
    // Queue state, in the common configuration, and the tracker's registers.
    for offset in [64, 0x3800, 0x3808] {
        bus.bar_write(0, offset, &[1, 0, 0, 0]).unwrap();
        bus.bar_read(0, offset, &mut data).unwrap();
        assert_eq!(data, [0; 4], "{offset:#x}");
    }
    // Through the window in configuration space the same is seen as through the BAR.
    let window = window(&*bus);
    bus.config_write(window + 8, &20_u32.to_le_bytes()).unwrap();
    bus.config_write(window + 12, &1_u32.to_le_bytes()).unwrap();
    bus.config_write(window + 16, &[status.bits() | 0x10])
        .unwrap();
    let mut byte = [0];
    bus.config_read(window + 16, &mut byte).unwrap();
    assert_eq!(byte, [status.bits()]);
    bus.config_write(window + 16, &[0]).unwrap();
    assert!(
        transport.status().unwrap().is_empty(),
        "reset through the window"
    );
}

/// Where the window capability is.
fn window(bus: &dyn Bus) -> u16 {
    let byte = |at: u16| {
        let mut byte = [0];
        bus.config_read(at, &mut byte).unwrap();
        byte[0]
    };
    let mut at = u16::from(byte(0x34));
    while (byte(at), byte(at + 3)) != (9, 5) {
        at = u16::from(byte(at + 1));
        assert_ne!(at, 0);
    }
    at
}

#[test]
fn a_busy_disk_is_moved_back_and_forth() {
    let bed = Bed::new();
    let (a, first) = bed.serve("a");
    let (b, second) = bed.serve("b");
    let (front, mediator) = mediate(&bed, &a, Options::default());
    let mut driver = Driver::start(VfioUserBus::connect(&front).unwrap());
    let ended = Arc::new(AtomicBool::new(false));
    let working = thread::spawn({
        let ended = ended.clone();
        move || {
            while !ended.load(Ordering::Acquire) {
                driver.run(100);
            }
            driver.run(100);
            driver
        }
    });
    let mut reports: Vec<MoveReport> = Vec::new();
    for (name, path) in [("b", &b), ("a", &a)].into_iter().cycle().take(20) {
        reports.push(mediator.move_to(name, back(path), None).unwrap());
    }
    ended.store(true, Ordering::Release);
    let mut driver = working.join().unwrap();
    driver.judge(&bed.disk);
    assert_eq!((mediator.report().moves, mediator.report().maps), (20, 3));
    for report in &reports {
        assert_eq!((report.queues, report.maps, report.in_flight), (1, 3, 0));
        assert!(!report.takeover && report.downtime_ms > 0.0);
    }
    // 10 suspends each, and notifications each: both have worked.
    for served in [first, second] {
        let stats = served.function().stats();
        assert_eq!(stats.suspends, 10);
        assert!(stats.notifications > 0 && stats.interrupts > 0);
    }
}

#[test]
fn a_driver_is_moved_in_every_state_of_its_life() {
    let bed = Bed::new();
    let (a, _) = bed.serve("a");
    let (b, _) = bed.serve("b");
    let (front, mediator) = mediate(&bed, &a, Options::default());
    let bus = VfioUserBus::connect(&front).unwrap();
    let mut targets = [&b, &a].into_iter().cycle();
    let mut shift = || {
        mediator
            .move_to("next", back(targets.next().unwrap()), None)
            .unwrap()
    };
    let write = |offset: u64, data: &[u8]| bus.bar_write(0, offset, data).unwrap();
    let read = |offset: u64| {
        let mut data = [0; 4];
        bus.bar_read(0, offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    };
    let status = |expected: u8| {
        let mut data = [0];
        bus.bar_read(0, 20, &mut data).unwrap();
        assert_eq!(data, [expected]);
    };
    bus.config_write(4, &[6, 0]).unwrap();
    bus.config_write(0x10, &0xfeb0_0000_u32.to_le_bytes())
        .unwrap();
    shift();
    let mut bar = [0; 4];
    bus.config_read(0x10, &mut bar).unwrap();
    assert_eq!(u32::from_le_bytes(bar), 0xfeb0_0000);
    write(20, &[1]);
    shift();
    write(20, &[3]);
    write(8, &1_u32.to_le_bytes());
    write(12, &1_u32.to_le_bytes());
    shift();
    status(3);
    assert_eq!((read(8), read(12)), (1, 1), "the selector too");
    write(20, &[11]);
    shift();
    status(11);
    let memory = bus.dma_alloc(1 << 16).unwrap();
    write(22, &1_u16.to_le_bytes());
    write(24, &8_u16.to_le_bytes());
    write(26, &2_u16.to_le_bytes());
    for (offset, at) in [(32, 0), (40, 0x1000), (48, 0x2000)] {
        let low = u32::try_from(memory.iova() + at).unwrap();
        write(offset, &low.to_le_bytes());
        write(offset + 4, &[0; 4]);
    }
    shift();
    assert_eq!(
        (read(22), read(26)),
        (8 << 16 | 1, 2),
        "queue 1 is half set up"
    );
    write(28, &1_u16.to_le_bytes());
    shift();
    assert_eq!(read(26), 1 << 16 | 2, "and now enabled");
    write(20, &[15]);
    let report = shift();
    assert_eq!(report.queues, 1);
    status(15);
    assert_eq!(u64::from(read(48)), memory.iova() + 0x2000);
    write(20, &[0]);
    status(0);
    shift();
    status(0);
    assert_eq!(read(28) & 0xffff, 0);
}

#[test]
fn a_move_that_fails_leaves_the_driver_where_it_was() {
    let bed = Bed::new();
    let (a, served) = bed.serve("a");
    let (front, mediator) = mediate(&bed, &a, Options::default());
    let mut driver = Driver::start(VfioUserBus::connect(&front).unwrap());
    driver.run(100);

    let config = |features: Features| FunctionConfig {
        features,
        ..FunctionConfig::default()
    };
    let served_with = |name: &str, function: Arc<PciFunction>| {
        back(&serve(&bed.path(name), ServedFunction::new(function)))
    };
    let all = FunctionConfig::SUPPORTED;
    let small = tempfile::tempfile().unwrap();
    small.set_len(1 << 20).unwrap();
    let options = BlkOptions {
        queues: 2,
        ..BlkOptions::default()
    };
    let small = PciFunction::new(config(all), BlkDevice::open(small, options).unwrap() as _);
    let reset_fails = FunctionConfig {
        suspend: device::function::SuspendBehaviour {
            fails: true,
            ..Default::default()
        },
        ..config(all)
    };
    let cases = [
        ("small", small, "device configuration"),
        (
            "old",
            bed.function(config(all - Features::SUSPEND)),
            "old lacks SUSPEND",
        ),
        (
            "plain",
            bed.function(config(all - Features::QUEUE_STATE)),
            "plain lacks queue state",
        ),
        (
            "poor",
            bed.function(config(all - Features::RING_EVENT_IDX)),
            "RING_EVENT_IDX",
        ),
    ];
    for (name, function, why) in cases {
        driver.submit();
        let error = mediator
            .move_to(name, served_with(name, function), None)
            .unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        driver.run(100);
    }
    // A server that goes in the middle of it.
    let (b, _) = bed.serve("b");
    let bus = VfioUserBus::connect_with(&b, OWN_MEMORY).unwrap();
    let leaving = Arc::new(Leaving(bus, AtomicBool::new(false)));
    let error = mediator.move_to("leaving", leaving, None).unwrap_err();
    assert!(matches!(error, MediateError::Restore { .. }), "{error}");
    driver.run(100);
    assert_eq!(
        (
            mediator.report().failed_moves,
            served.function().stats().resumes
        ),
        (5, 1)
    );
    // A device that cannot suspend, last, because it needs its driver then.
    let stuck = served_with("stuck", bed.function(reset_fails));
    mediator.move_to("stuck", stuck, None).unwrap();
    driver.run(100);
    driver.judge(&bed.disk);
    let error = mediator.move_to("a", back(&a), None).unwrap_err();
    assert!(matches!(error, MediateError::Stuck { .. }), "{error}");
    assert!(
        driver.transport.status().unwrap().bits() & 0x40 != 0,
        "the driver is told"
    );
    let error = mediator.move_to("a", back(&a), None).unwrap_err();
    assert!(matches!(error, MediateError::Broken { .. }), "{error}");
}

/// Refuses to enable a queue.
#[derive(Debug)]
struct Leaving(Arc<VfioUserBus>, AtomicBool);

impl Bus for Leaving {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), driver::bus::BusError> {
        self.0.config_read(offset, data)
    }
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), driver::bus::BusError> {
        self.0.config_write(offset, data)
    }
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), driver::bus::BusError> {
        self.0.bar_read(bar, offset, data)
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), driver::bus::BusError> {
        if (bar, offset) == (0, 28) || self.1.load(Ordering::Relaxed) {
            self.1.store(true, Ordering::Relaxed);
            return Err(driver::bus::BusError::Unreachable {
                doing: "enabling a queue",
                source: std::io::ErrorKind::BrokenPipe.into(),
            });
        }
        self.0.bar_write(bar, offset, data)
    }
    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, driver::bus::BusError> {
        self.0.dma_alloc(len)
    }
    fn interrupt(
        &self,
        vector: u16,
    ) -> Result<Arc<dyn driver::bus::Interrupt>, driver::bus::BusError> {
        self.0.interrupt(vector)
    }
    fn reset(&self) -> Result<(), driver::bus::BusError> {
        self.0.reset()
    }
}

impl RelayBus for Leaving {
    fn bar_size(&self, bar: u8) -> u64 {
        self.0.bar_size(bar)
    }
    fn vectors(&self) -> u16 {
        self.0.vectors()
    }
    fn map(
        &self,
        iova: u64,
        size: u64,
        access: driver::bus::Access,
        file: std::os::fd::BorrowedFd<'_>,
        offset: u64,
    ) -> Result<(), driver::bus::BusError> {
        self.0.map(iova, size, access, file, offset)
    }
    fn unmap(&self, iova: u64, size: u64) -> Result<(), driver::bus::BusError> {
        self.0.unmap(iova, size)
    }
    fn connect_vector(
        &self,
        vector: u16,
        event: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<(), driver::bus::BusError> {
        self.0.connect_vector(vector, event)
    }
    fn bar_post(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), driver::bus::BusError> {
        self.0.bar_post(bar, offset, data)
    }
    fn hangup(&self) -> Option<std::os::fd::OwnedFd> {
        self.0.hangup()
    }
}

/// Pages of memory that the device alone writes, changed since `before`.
fn changed(memory: &DmaMemory, before: &[u8]) -> BTreeSet<u64> {
    let mut now = vec![0; before.len()];
    memory.read(0, &mut now).unwrap();
    let pages = before.chunks(4096).zip(now.chunks(4096));
    (memory.iova() / 4096..)
        .zip(pages)
        .filter(|(_, (old, new))| old != new)
        .map(|(page, _)| page)
        .collect()
}

/// What the mediator harvested, over ten moves, against the bytes of memory that only devices
/// write.
fn harvested(marking: Marking) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let bed = Bed::new();
    let sockets = ["a", "b"].map(|name| {
        let config = FunctionConfig {
            features: FunctionConfig::SUPPORTED,
            marking,
            ..FunctionConfig::default()
        };
        serve(&bed.path(name), ServedFunction::new(bed.function(config)))
    });
    // What is read is not zero.
    let disk = File::options().write(true).open(&bed.disk).unwrap();
    let bytes: Vec<u8> = (1..=255).cycle().take(2 << 20).collect();
    std::os::unix::fs::FileExt::write_all_at(&disk, &bytes, 0).unwrap();

    let options = Options {
        tracker: true,
        ..Options::default()
    };
    let (front, mediator) = mediate(&bed, &sockets[0], options);
    let bus = VfioUserBus::connect(&front).unwrap();
    let mut driver = Driver::start(bus.clone());
    let data = bus.dma_alloc(256 * 4096).unwrap();
    let mut everything = DirtySet::new(1 << 20);
    mediator.take_dirty(&mut everything).unwrap();
    everything.clear();
    let before = vec![0; 256 * 4096];
    for round in 0..10_u64 {
        for n in 0..20 {
            // Every other page.
            let page = 2 * (round * 10 + n % 10);
            let iova = data.iova() + page * 4096 + 512 * (n / 10);
            driver.queue.read(n * 8, &[(iova, 512)], n).unwrap();
        }
        driver.queue.publish().unwrap();
        driver
            .transport
            .notify(0, driver.queue.ring().published())
            .unwrap();
        let next = &sockets[usize::try_from((round + 1) % 2).unwrap()];
        mediator.move_to("next", back(next), None).unwrap();
        let until = std::time::Instant::now() + PATIENCE;
        while driver.queue.in_flight() > 0 {
            assert!(std::time::Instant::now() < until, "a request is lost");
            while driver.queue.complete().unwrap().is_some() {}
        }
    }
    mediator.take_dirty(&mut everything).unwrap();
    let range = data.iova() / 4096..(data.iova() + data.len()) / 4096;
    let marked = everything
        .iter()
        .filter(|page| range.contains(page))
        .collect();
    (changed(&data, &before), marked)
}

#[test]
fn what_devices_wrote_is_harvested_across_moves() {
    let (changed, marked) = harvested(Marking::Bit);
    assert_eq!(changed.len(), 100);
    assert_eq!(marked, changed, "lost or falsely dirty");
}

#[test]
fn devices_that_do_not_mark_are_found_out() {
    let (changed, marked) = harvested(Marking::Off);
    assert_eq!((changed.len(), marked.len()), (100, 0));
}
