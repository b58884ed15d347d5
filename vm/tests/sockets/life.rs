//! A driver's whole life over the socket: start, I/O, tracking, suspend, save, reset, restore,
//! resume.

use crate::harness::{Bed, Driver, PATIENCE, SECTORS};
use driver::bus::vfio_user::VfioUserBus;
use driver::bus::{Bus, BusError, RelayBus};
use driver::dirty::harvest::HarvestWidth;
use driver::dirty::{DirtySet, DirtySource, TrackerSource};
use driver::{Transport, state, suspend};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use vm::journal::{self, Disk, DrivenDisk};

#[test]
fn a_disk_is_driven_tracked_and_moved_within_its_server() {
    let bed = Bed::new();
    let (socket, _) = bed.serve("a");
    let bus = VfioUserBus::connect(&socket).unwrap();
    let mut driver = Driver::start(bus.clone());
    driver.run(500);

    let bitmap = bus.dma_alloc(4096).unwrap();
    let width = HarvestWidth::Word;
    let mut tracker = TrackerSource::new(driver.transport.clone(), bitmap.clone(), width).unwrap();
    let end = bitmap.iova() + bitmap.len();
    driver.drain();
    let before = (bytes(&driver.ring), bytes(&driver.area));
    let range = 0..end;
    let ranges = std::slice::from_ref(&range);
    assert_eq!(tracker.start(ranges, 4096).unwrap(), 4096);
    driver.run(500);
    driver.submit();
    suspend::suspend(&driver.transport, PATIENCE).unwrap();
    let mut dirty = DirtySet::new(end / 4096);
    tracker.report(0..end, &mut dirty).unwrap();
    let mut changed = BTreeSet::new();
    for (memory, before) in [(&driver.ring, &before.0), (&driver.area, &before.1)] {
        let first = memory.iova() / 4096;
        let after = bytes(memory);
        let pages = before.chunks(4096).zip(after.chunks(4096));
        for (page, (old, new)) in (first..).zip(pages) {
            if old != new {
                changed.insert(page);
            }
        }
    }
    let marked: BTreeSet<u64> = dirty.iter().collect();
    // The used ring with avail_event, and the status bytes of as many requests as were in flight.
    // The driver's own stores change other pages, which must not be marked.
    let written = BTreeSet::from([driver.setup().device / 4096, driver.area.iova() / 4096]);
    assert!(written.is_subset(&changed), "{changed:?}");
    assert_eq!(marked, written);

    let saved = state::save(&driver.transport).unwrap();
    assert_eq!(
        saved.queues[0].avail, saved.queues[0].used,
        "nothing is in flight"
    );
    driver.transport.reset(PATIENCE).unwrap();
    assert!(matches!(tracker.stop(), Ok(())));
    driver.restore(Transport::new(bus.clone()).unwrap().into(), &saved);
    driver.run(500);

    // Again, and on without a reset.
    suspend::suspend(&driver.transport, PATIENCE).unwrap();
    suspend::resume(&driver.transport, PATIENCE).unwrap();
    driver.run(500);
    driver.judge(&bed.disk);

    bus.reset().unwrap();
    assert!(driver.transport.status().unwrap().is_empty());
}

fn bytes(memory: &driver::memory::DmaMemory) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(memory.len()).unwrap()];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_client_that_went_can_come_back() {
    let bed = Bed::new();
    let (socket, served) = bed.serve("a");
    for _ in 0..3 {
        let bus = VfioUserBus::connect(&socket).unwrap();
        assert_eq!(bus.vectors(), 3);
        let mut driver = Driver::start(bus.clone());
        driver.run(200);
        // In the middle of things.
        driver.submit();
        drop((driver, bus));
    }
    let bus = VfioUserBus::connect(&socket).unwrap();
    let transport = Transport::new(bus).unwrap();
    assert!(transport.status().unwrap().is_empty(), "as after power-on");
    assert!(served.stats().dma_maps >= 9);
}

#[test]
fn a_server_that_serves_somebody_else_is_not_waited_for_for_ever() {
    let bed = Bed::new();
    let (socket, _) = bed.serve("a");
    let first = VfioUserBus::connect(&socket).unwrap();
    let second = VfioUserBus::connect(&socket).unwrap_err();
    assert!(second.to_string().contains("another client"), "{second}");
    first.config_read(0, &mut [0; 4]).unwrap();
    let nobody = VfioUserBus::connect(&bed.path("nobody")).unwrap_err();
    assert!(matches!(nobody, BusError::Unreachable { .. }), "{nobody}");
}

#[test]
fn accesses_outside_are_told_apart() {
    let bed = Bed::new();
    let (socket, _) = bed.serve("a");
    let bus: Arc<VfioUserBus> = VfioUserBus::connect(&socket).unwrap();
    let beyond = bus.bar_read(0, bus.bar_size(0), &mut [0; 4]).unwrap_err();
    assert!(matches!(beyond, BusError::OutOfRange { bar: 0, .. }));
    let none = bus.bar_post(9, 0, &[0; 2]).unwrap_err();
    assert!(matches!(none, BusError::OutOfRange { bar: 9, .. }));
    let none = bus.interrupt(3).unwrap_err();
    assert!(matches!(none, BusError::Exhausted { .. }), "{none}");
    let mut data = [0; 8];
    bus.config_read(4092, &mut data).unwrap();
    assert_eq!(data, [0xff; 8], "an access that does not lie in it");
}

#[test]
fn a_journal_drives_a_disk_by_itself() {
    let bed = Bed::new();
    let (socket, served) = bed.serve("a");
    let options = journal::Options {
        requests: Some(2000),
        ..journal::Options::default()
    };
    let stop = AtomicBool::new(false);
    let disk = DrivenDisk::start(VfioUserBus::connect(&socket).unwrap()).unwrap();
    assert_eq!(disk.size(), SECTORS * 512);
    let report = journal::run(&disk, &options, &stop, &|_| {}).unwrap();
    assert!(report.is_good() && report.requests == 2000, "{report:?}");
    // Beyond its end, and still in step.
    assert!(disk.read(SECTORS * 512, &mut [0; 512]).is_err());
    disk.flush().unwrap();
    drop(disk);
    assert!(served.function().stats().interrupts > 0);
}
