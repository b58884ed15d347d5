//! Maps that come and go under a device that works and is tracked.

use crate::harness::{Bed, Driver, PATIENCE};
use driver::bus::vfio_user::VfioUserBus;
use driver::bus::{Access, RelayBus};
use driver::dirty::harvest::HarvestWidth;
use driver::dirty::{DirtySet, DirtySource, TrackerSource};
use driver::memory::DmaMemory;
use driver::suspend;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Where a vIOMMU would put things.
const ALIASES: u64 = 1 << 40;

fn memfd(len: u64) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("storm", flags).unwrap());
    file.set_len(len).unwrap();
    file
}

/// As behind a strict vIOMMU: every page comes and goes, with the odd ranges that QEMU sends.
fn storm(bus: &VfioUserBus, ended: &AtomicBool) -> u64 {
    let file = memfd(64 * 4096);
    let mut edits = 0;
    while edits < 100_000 || !ended.load(Ordering::Acquire) {
        for n in 0..64 {
            let iova = ALIASES + n * 8192;
            bus.map(iova, 4096, Access::ReadWrite, file.as_fd(), n * 4096)
                .unwrap();
        }
        bus.unmap(ALIASES, 32 * 8192).unwrap();
        for n in 32..64 {
            bus.unmap(ALIASES + n * 8192, 4096).unwrap();
        }
        // Never mapped; and the rest of the address space, whose end wraps to 0.
        bus.unmap(ALIASES * 2, 1 << 30).unwrap();
        bus.unmap(0xfef0_0000, 0xffff_ffff_0110_0000).unwrap();
        edits += 64 + 1 + 32 + 2;
    }
    edits
}

#[test]
fn a_hundred_thousand_maps_come_and_go_under_a_working_disk() {
    let bed = Bed::new();
    let (socket, served) = bed.serve("a");
    let bus = VfioUserBus::connect(&socket).unwrap();
    let mut driver = Driver::start(bus.clone());
    let ended = Arc::new(AtomicBool::new(false));
    let storming = thread::spawn({
        let (bus, ended) = (bus.clone(), ended.clone());
        move || storm(&bus, &ended)
    });
    while !storming.is_finished() {
        driver.run(500);
        ended.store(true, Ordering::Release);
    }
    let edits = storming.join().unwrap();
    driver.judge(&bed.disk);
    let stats = served.stats();
    assert!(edits >= 100_000);
    assert_eq!(
        stats.dma_maps + stats.dma_unmaps,
        edits + 3,
        "and the driver's own three"
    );
}

/// SeaBIOS takes low memory away and puts it back while it copies itself there; whatever the device
/// wrote before, between and after is reported.
#[test]
fn marks_survive_remapping() {
    let bed = Bed::new();
    let (socket, _) = bed.serve("a");
    // The bus's own memory out of the way.
    let bus = VfioUserBus::connect_with(&socket, 1 << 30).unwrap();
    let low = memfd(16 << 20);
    bus.map(0, 16 << 20, Access::ReadWrite, low.as_fd(), 0)
        .unwrap();
    let mut driver = Driver::start(bus.clone());
    let end = 16 << 20;
    // In memory of the client's that is remapped too.
    let bitmap = DmaMemory::from_file(&low, 0x8000, 4096, 0x8000).unwrap();
    let mut tracker =
        TrackerSource::new(driver.transport.clone(), bitmap, HarvestWidth::Word).unwrap();
    driver.run(1);
    driver.drain();
    let range = 0..end;
    let ranges = std::slice::from_ref(&range);
    tracker.start(ranges, 4096).unwrap();

    let read_to = |driver: &mut Driver, page: u64| {
        driver.queue.read(0, &[(page * 4096, 512)], 0).unwrap();
        driver.queue.publish().unwrap();
        driver
            .transport
            .notify(0, driver.queue.ring().published())
            .unwrap();
        let until = std::time::Instant::now() + PATIENCE;
        while driver.queue.complete().unwrap().is_none() {
            assert!(std::time::Instant::now() < until);
            thread::yield_now();
        }
    };
    read_to(&mut driver, 0x20);
    for round in 0..50 {
        bus.unmap(0, 0xa_0000).unwrap();
        bus.unmap(0xc_0000, end - 0xc_0000).unwrap();
        bus.map(
            0xc_0000,
            end - 0xc_0000,
            Access::ReadWrite,
            low.as_fd(),
            0xc_0000,
        )
        .unwrap();
        // Marked while the bitmap itself is not there.
        read_to(&mut driver, 0x100 + round);
        bus.map(0, 0xa_0000, Access::ReadWrite, low.as_fd(), 0)
            .unwrap();
    }
    read_to(&mut driver, 0x21);
    suspend::suspend(&driver.transport, PATIENCE).unwrap();
    let mut dirty = DirtySet::new(end / 4096);
    tracker.report(0..end, &mut dirty).unwrap();
    let expected: Vec<u64> = [0x20, 0x21].into_iter().chain(0x100..0x100 + 50).collect();
    assert_eq!(dirty.iter().collect::<Vec<_>>(), expected);
}
