use super::*;
use crate::tracker::{Marking, TrackerConfig};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

const PAGE: u64 = 4096;

fn memory(pages: u64) -> File {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, pages * PAGE).unwrap();
    File::from(fd)
}

fn read(file: &File, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

fn config(addr: u64, length: u64) -> TrackerConfig {
    TrackerConfig {
        enabled: true,
        bitmap_addr: addr,
        bitmap_length: length,
        ..TrackerConfig::default()
    }
}

fn bits(bitmap: &[u8]) -> BTreeSet<u64> {
    (0..u64::try_from(bitmap.len()).unwrap() * 8)
        .filter(|bit| bitmap[usize::try_from(bit / 8).unwrap()] & (1 << (bit % 8)) != 0)
        .collect()
}

#[test]
fn a_write_that_straddles_two_maps_lands_and_marks_by_iova() {
    let (a, b) = (memory(4), memory(4));
    let dma = Dma::new();
    dma.map(0x10000, 4 * PAGE, &a, 0, Permissions::ReadWrite)
        .unwrap();
    dma.map(0x14000, PAGE, &b, 3 * PAGE, Permissions::ReadWrite)
        .unwrap();
    let log = memory(1);
    dma.map(0x8000_0000, PAGE, &log, 0, Permissions::ReadWrite)
        .unwrap();
    dma.set_tracker(config(0x8000_0000, 64));
    let data: Vec<u8> = (0..200u8).collect();
    let guard = dma.enter();
    let mut burst = guard.burst();
    burst.write(0x14000 - 100, &data).unwrap();
    burst.commit();
    assert_eq!(read(&a, 4 * PAGE - 100, 100), data[..100]);
    assert_eq!(read(&b, 3 * PAGE, 100), data[100..]);
    assert_eq!(bits(&read(&log, 0, 64)), BTreeSet::from([0x13, 0x14]));
    let mut back = vec![0; 200];
    guard.read(0x14000 - 100, &mut back).unwrap();
    assert_eq!(back, data);
}

#[test]
fn a_fault_anywhere_in_the_range_stores_nothing() {
    let file = memory(2);
    let dma = Dma::new();
    dma.map(0, PAGE, &file, 0, Permissions::ReadWrite).unwrap();
    dma.map(PAGE, PAGE, &file, PAGE, Permissions::Read).unwrap();
    let guard = dma.enter();
    assert!(guard.burst().write(PAGE - 8, &[1; 16]).is_err());
    assert!(guard.burst().write(3 * PAGE, &[1; 16]).is_err());
    assert!(guard.burst().write(u64::MAX - 8, &[1; 64]).is_err());
    assert!(guard.read(PAGE - 8, &mut [0; 16]).is_ok());
    assert_eq!(read(&file, 0, 8192), vec![0; 8192]);
}

#[test]
fn writes_through_vm_memory_are_marked_at_once() {
    let file = memory(8);
    let dma = Dma::new();
    dma.map(0, 8 * PAGE, &file, 0, Permissions::ReadWrite)
        .unwrap();
    dma.set_tracker(config(7 * PAGE, 8));
    let guard = dma.enter();
    guard.write_obj(7u32, GuestAddress(2 * PAGE - 2)).unwrap();
    guard
        .store(9u16, GuestAddress(5 * PAGE + 2), Ordering::Release)
        .unwrap();
    assert_eq!(bits(&read(&file, 7 * PAGE, 8)), BTreeSet::from([1, 2, 5]));
    assert!(guard.check_range(GuestAddress(0), 8 * 4096, Permissions::Write));
    assert!(!guard.check_range(GuestAddress(0), 8 * 4096 + 1, Permissions::Write));
}

#[test]
fn nothing_is_marked_when_off_and_nothing_beyond_the_length() {
    let file = memory(4096);
    let log = memory(1);
    let dma = Dma::new();
    dma.map(0, 4096 * PAGE, &file, 0, Permissions::ReadWrite)
        .unwrap();
    dma.map(1 << 40, PAGE, &log, 0, Permissions::ReadWrite)
        .unwrap();
    let write = |page: u64| dma.enter().burst().write(page * PAGE, &[1]).unwrap();
    write(1);
    for off in [
        TrackerConfig {
            enabled: false,
            ..config(1 << 40, 16)
        },
        TrackerConfig {
            marking: Marking::Off,
            ..config(1 << 40, 16)
        },
        config(0, 16),
        config(1 << 40, 0),
        config((1 << 40) + 4, 16),
    ] {
        dma.set_tracker(off);
        write(2);
        assert_eq!(read(&log, 0, 4096), vec![0; 4096], "{off:?}");
    }
    // 13 bytes: bit 103 is the last; the second word is bytes, not a word.
    dma.set_tracker(config(1 << 40, 13));
    for page in [63, 64, 101, 103, 104, 127, 4095] {
        write(page);
    }
    dma.enter()
        .burst()
        .write(102 * PAGE, &[1; 5 * 4096])
        .unwrap();
    assert_eq!(
        bits(&read(&log, 0, 4096)),
        BTreeSet::from([63, 64, 101, 102, 103])
    );
    assert_eq!(dma.tracker_stats().beyond_length, 3 + 3);
    dma.set_tracker(TrackerConfig {
        marking: Marking::Byte,
        ..config(1 << 40, 13)
    });
    write(103);
    assert_eq!(read(&log, 12, 2), [0xff, 0]);
}

#[test]
fn marks_for_an_unmapped_bitmap_wait_and_are_delivered_where_it_is_mapped_again() {
    let file = memory(64);
    let dma = Dma::new();
    dma.map(0, 64 * PAGE, &file, 0, Permissions::ReadWrite)
        .unwrap();
    dma.set_tracker(config(1 << 30, 8));
    let write = |page: u64| dma.enter().burst().write(page * PAGE, &[1]).unwrap();
    write(3);
    assert_eq!(dma.tracker_stats().shadowed, 1);
    let (first, second) = (memory(1), memory(1));
    dma.map(1 << 30, PAGE, &first, 0, Permissions::ReadWrite)
        .unwrap();
    assert_eq!(bits(&read(&first, 0, 8)), BTreeSet::from([3]));
    write(5);
    dma.unmap(1 << 30, PAGE);
    write(7);
    assert_eq!(bits(&read(&first, 0, 8)), BTreeSet::from([3, 5]));
    assert_eq!(dma.tracker_stats().undelivered, 1);
    // Read-only is not mapped, as far as marks go.
    dma.map(1 << 30, PAGE, &second, 0, Permissions::Read)
        .unwrap();
    assert_eq!(dma.tracker_stats().undelivered, 1);
    dma.map(1 << 30, PAGE, &second, 0, Permissions::ReadWrite)
        .unwrap();
    assert_eq!(bits(&read(&second, 0, 8)), BTreeSet::from([7]));
    assert_eq!(dma.tracker_stats().undelivered, 0);
}

#[test]
fn marks_outlive_the_maps_they_were_made_through() {
    let file = memory(16);
    let log = memory(1);
    let dma = Dma::new();
    dma.map(1 << 30, PAGE, &log, 0, Permissions::ReadWrite)
        .unwrap();
    dma.set_tracker(config(1 << 30, 8));
    dma.map(0, 16 * PAGE, &file, 0, Permissions::ReadWrite)
        .unwrap();
    dma.enter().burst().write(9 * PAGE, &[1]).unwrap();
    dma.unmap(0, u64::MAX);
    dma.unmap(0xfef0_0000, 0xffff_ffff_0110_0000);
    assert_eq!(bits(&read(&log, 0, 8)), BTreeSet::from([9]));
    assert!(dma.enter().burst().write(9 * PAGE, &[1]).is_err());
}

#[test]
fn bad_maps_are_refused_and_change_nothing() {
    let file = memory(4);
    let dma = Dma::new();
    for (iova, size, offset) in [
        (0, 0, 0),
        (1, PAGE, 0),
        (0, PAGE + 1, 0),
        (0, PAGE, 1),
        (0, 5 * PAGE, 0),
        (0, PAGE, 4 * PAGE),
        (u64::MAX - PAGE + 1, PAGE, 0),
        (0, PAGE, u64::MAX - PAGE + 1),
    ] {
        let perm = Permissions::ReadWrite;
        let refused = dma.map(iova, size, &file, offset, perm).unwrap_err();
        assert!(matches!(refused, DmaError::BadMap { .. }), "{refused}");
    }
    assert!(
        !dma.enter()
            .check_range(GuestAddress(0), 1, Permissions::Read)
    );
}

/// 131,072 maps: what 512 MiB behind a strict vIOMMU are. One mapping of the file serves them all.
#[test]
fn maps_by_the_hundred_thousand() {
    const MAPS: u64 = 131_072;
    let file = memory(MAPS);
    let dma = Dma::new();
    for n in 0..MAPS {
        // Scattered, so that no two maps join.
        dma.map(
            n * 2 * PAGE,
            PAGE,
            &file,
            (MAPS - 1 - n) * PAGE,
            Permissions::ReadWrite,
        )
        .unwrap();
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(
        maps.lines()
            .filter(|line| line.contains("memfd:guest"))
            .count()
            < 1000
    );
    dma.enter().burst().write(2 * 77 * PAGE, b"here").unwrap();
    assert_eq!(read(&file, (MAPS - 1 - 77) * PAGE, 4), b"here");
    for n in 0..MAPS {
        dma.unmap(n * 2 * PAGE, PAGE);
    }
    assert!(
        !dma.enter()
            .check_range(GuestAddress(0), 1, Permissions::Read)
    );
}

/// Writers store through maps that come and go while the bitmap itself is moved about, and a
/// harvester takes bits. Every page that was written after it was last harvested is marked.
#[test]
fn a_storm_of_maps_loses_no_mark() {
    const PAGES: u64 = 256;
    let (file, log) = (memory(PAGES), memory(2));
    let dma = Dma::new();
    let rw = Permissions::ReadWrite;
    dma.map(0, PAGES * PAGE, &file, 0, rw).unwrap();
    dma.map(1 << 40, PAGE, &log, 0, rw).unwrap();
    dma.set_tracker(config((1 << 40) + 8, 32));
    let done = AtomicBool::new(false);
    let written: Vec<u64> = thread::scope(|scope| {
        let writers: Vec<_> = (0..2u64)
            .map(|writer| {
                let dma = &dma;
                scope.spawn(move || {
                    let mut landed = BTreeSet::new();
                    for n in 0..20_000u64 {
                        let page = (n * 7919 + writer * 31) % PAGES;
                        let stored = dma.enter().burst().write(page * PAGE, &n.to_le_bytes());
                        if stored.is_ok() {
                            landed.insert(page);
                        }
                    }
                    landed
                })
            })
            .collect();
        scope.spawn(|| {
            let mut n = 0;
            while !done.load(Ordering::Relaxed) {
                n += 1;
                let page = (n * 613) % PAGES;
                dma.unmap(page * PAGE, PAGE);
                dma.unmap(1 << 40, PAGE);
                dma.map(page * PAGE, PAGE, &file, page * PAGE, rw).unwrap();
                dma.map(1 << 40, PAGE, &log, 0, rw).unwrap();
            }
        });
        let pages = writers
            .into_iter()
            .flat_map(|w| w.join().unwrap())
            .collect();
        done.store(true, Ordering::Relaxed);
        pages
    });
    assert!(written.len() > 200);
    let marked = bits(&read(&log, 8, 32));
    assert_eq!(dma.tracker_stats().undelivered, 0);
    assert!(written.iter().all(|page| marked.contains(page)));
}

proptest! {
    /// The bitmap against the obvious one, for ranges, page sizes, lengths, addresses and scatter.
    #[test]
    fn marks_equal_the_naive_oracle(
        gra_power in 0u8..4,
        length in 1u64..200,
        offset in (0u64..512).prop_map(|n| n * 8),
        bytewise in any::<bool>(),
        scattered in any::<bool>(),
        writes in prop::collection::vec((0u64..2048 * PAGE, 0usize..40_000), 1..20),
    ) {
        let file = memory(2048);
        let log = memory(2);
        let dma = Dma::new();
        dma.map(0, 2048 * PAGE, &file, 0, Permissions::ReadWrite).unwrap();
        let swap = u64::from(scattered);
        dma.map(1 << 40, PAGE, &log, swap * PAGE, Permissions::ReadWrite).unwrap();
        dma.map((1 << 40) + PAGE, PAGE, &log, (1 - swap) * PAGE, Permissions::ReadWrite).unwrap();
        let marking = if bytewise { Marking::Byte } else { Marking::Bit };
        dma.set_tracker(TrackerConfig {
            gra_power, marking, ..config((1 << 40) + offset, length)
        });
        let size = spec::tracker::page_size(gra_power).unwrap();
        let mut expected = BTreeSet::new();
        let mut beyond = 0;
        for (at, len) in writes {
            let len = len.min(usize::try_from(2048 * PAGE - at).unwrap());
            dma.enter().burst().write(at, &vec![1; len]).unwrap();
            if len == 0 { continue }
            for page in at / size..=(at + u64::try_from(len).unwrap() - 1) / size {
                if page >= length * 8 {
                    beyond += 1;
                } else if bytewise {
                    expected.extend(page / 8 * 8..page / 8 * 8 + 8);
                } else {
                    expected.insert(page);
                }
            }
        }
        let mut bytes = read(&log, swap * PAGE, 4096);
        bytes.extend(read(&log, (1 - swap) * PAGE, 4096));
        let at = usize::try_from(offset).unwrap();
        let end = at + usize::try_from(length).unwrap();
        prop_assert_eq!(bits(&bytes[at..end]), expected);
        prop_assert!(bytes[..at].iter().chain(&bytes[end..]).all(|&byte| byte == 0));
        prop_assert_eq!(dma.tracker_stats().beyond_length, beyond);
    }
}
