//! Frontends that lie. Each is refused and loses its connection; the next one is served.

use super::super::memory::REGIONS_MAX;
use super::bed::*;
use crate::tracker::Marking;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VringConfigData};

/// Runs `lie`, which is to be refused, and then an honest frontend.
fn refused(lie: impl FnOnce(&mut Front)) {
    let server = Server::new(Marking::Bit);
    let mut front = Front::new(&server);
    lie(&mut front);
    assert!(front.is_closed(), "it is still served");
    let mut honest = Front::new(&server);
    honest.start(0);
    honest.request(false, 8);
}

#[test]
fn messages_that_are_none() {
    // Unknown; a wrong version; larger than any; a body of the wrong size; nonsense for a body.
    refused(|front| front.send(9999, 1, 0, &[]));
    refused(|front| front.send(1, 2, 0, &[]));
    refused(|front| front.send(2, 1, u32::MAX, &[]));
    refused(|front| front.send(2, 1, 4, &[0; 4]));
    refused(|front| front.send(5, 1, 8, &[0xff; 8]));
    refused(|front| front.send(24, 1, 12, &[0xff; 12]));
    // A reply to a question that nobody asked.
    refused(|front| front.send(2, 5, 8, &[0; 8]));
    // SET_LOG_BASE, ADD_MEM_REG, SET_INFLIGHT_FD without their descriptors.
    refused(|front| front.send(6, 1, 16, &[1; 16]));
    refused(|front| front.send(37, 1, 40, &[0; 40]));
    refused(|front| front.send(32, 1, 24, &[1; 24]));
}

#[test]
fn features_that_were_not_offered() {
    refused(|front| assert!(front.front.set_features(FEATURES | 1 << 34).is_err()));
    refused(|front| front.send(16, 1, 8, &(1u64 << 19).to_ne_bytes()));
}

#[test]
fn features_may_not_change_under_a_ring_but_for_the_log() {
    refused(|front| {
        front.start(0);
        front.log_all(true);
        front.log_all(false);
        assert!(front.front.set_features(FEATURES & !(1 << 28)).is_err());
    });
}

#[test]
fn memory_that_cannot_be() {
    type Table = fn(&Front) -> Vec<vhost::VhostUserMemoryRegionInfo>;
    let tables: [Table; 6] = [
        // Overlapping in the guest; in the frontend.
        |front| {
            let mut second = front.region(0x10_0000, 0x10_0000);
            second.userspace_addr += 1 << 40;
            vec![front.region(0, 0x20_0000), second]
        },
        |front| {
            let mut second = front.region(0x10_0000, 0x10_0000);
            second.guest_phys_addr += 1 << 40;
            vec![front.region(0, 0x20_0000), second]
        },
        // Longer than its file; from no page on; around the end of all addresses.
        |front| vec![front.region(0, 2 * MEMORY)],
        |front| vec![front.region(0x800, 0x1000)],
        |front| {
            let mut region = front.region(0, 0x1000);
            region.mmap_offset = u64::MAX - 0xfff;
            vec![region]
        },
        |front| {
            let mut region = front.region(0, 0x1000);
            region.guest_phys_addr = u64::MAX - 0xfff;
            vec![region]
        },
    ];
    for table in tables {
        refused(|front| assert!(front.front.set_mem_table(&table(front)).is_err()));
    }
    refused(|front| {
        let again = front.whole();
        assert!(front.front.add_mem_region(&again).is_err());
    });
    refused(|front| {
        let none = front.region(0, 0x1000);
        assert!(front.front.remove_mem_region(&none).is_err());
    });
}

#[test]
fn a_region_more_than_there_may_be() {
    refused(|front| {
        let page = |number: u64| front.region(number * 0x1000, 0x1000);
        front.front.set_mem_table(&[page(0)]).unwrap();
        let most = u64::try_from(REGIONS_MAX).unwrap();
        for number in 1..most {
            front.front.add_mem_region(&page(number)).unwrap();
        }
        let beyond = page(most);
        assert!(front.front.add_mem_region(&beyond).is_err());
    });
}

#[test]
fn rings_that_cannot_be() {
    // Of another device; of a size that none has.
    refused(|front| front.send(8, 1, 8, &[9, 0, 0, 0, 16, 0, 0, 0]));
    for size in [0, 3, 128, 0x1_0010u32] {
        refused(|front| {
            let mut body = 0u32.to_ne_bytes().to_vec();
            body.extend(size.to_ne_bytes());
            front.send(8, 1, 8, &body);
        });
    }
    // In no memory; at an odd place; beyond memory's end.
    let wrong: [fn(&mut VringConfigData); 4] = [
        |ring| ring.used_ring_addr = 0,
        |ring| ring.desc_table_addr += 8,
        |ring| ring.avail_ring_addr = u64::MAX - 1,
        |ring| ring.used_ring_addr = USER + MEMORY - 4,
    ];
    for wrong in wrong {
        refused(|front| {
            front.prepare(0);
            let mut ring = front.addresses();
            wrong(&mut ring);
            let told = front.front.set_vring_addr(0, &ring);
            let told = told.and_then(|()| front.front.set_vring_enable(0, true));
            assert!(
                told.and_then(|()| front.front.set_vring_kick(0, &front.kick))
                    .is_err()
            );
        });
    }
    // A base further ahead than the ring is long.
    refused(|front| {
        front.prepare(0x4000);
        front.front.set_vring_enable(0, true).unwrap();
        assert!(front.front.set_vring_kick(0, &front.kick).is_err());
    });
}

#[test]
fn a_running_ring_is_not_configured() {
    let changes: [fn(&mut Front) -> bool; 4] = [
        |front| front.front.set_vring_num(0, 8).is_err(),
        |front| front.front.set_vring_base(0, 5).is_err(),
        |front| {
            let mut moved = front.addresses();
            moved.used_ring_addr += 0x1000;
            front.front.set_vring_addr(0, &moved).is_err()
        },
        |front| {
            let asked = VhostUserInflight::new(0, 0, 1, RING);
            let (table, file) = front.front.get_inflight_fd(&asked).unwrap();
            front
                .front
                .set_inflight_fd(&table, file.as_raw_fd())
                .is_err()
        },
    ];
    for change in changes {
        refused(|front| {
            front.start(0);
            assert!(change(front));
        });
    }
}

#[test]
fn logs_that_cannot_be_written() {
    let read_only = |size| {
        let file = memfd(size);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        (OpenOptions::new().read(true).open(path).unwrap(), file)
    };
    let lies: [(File, u64, u64); 5] = [
        (read_only(4096).0, 0, 4096),
        (memfd(4096), 0, 4097),
        (memfd(4096), 4, 64),
        (memfd(4096), 8192, 1 << 50),
        // The end wraps (CVE-2020-10722).
        (memfd(4096), u64::MAX - 4095, 8192),
    ];
    for (file, offset, size) in lies {
        refused(|front| {
            let region = VhostUserDirtyLogRegion {
                mmap_size: size,
                mmap_offset: offset,
                mmap_handle: file.as_raw_fd(),
            };
            assert!(front.front.set_log_base(0, Some(region)).is_err());
        });
    }
}

#[test]
fn in_flight_tables_that_cannot_be() {
    for (queues, entries, bytes, offset) in [(3, 16, 4096, 0), (1, 16, 64, 0), (1, 16, 4096, 4)] {
        refused(|front| {
            let table = VhostUserInflight::new(bytes, offset, queues, entries);
            let fd = memfd(8192);
            assert!(front.front.set_inflight_fd(&table, fd.as_raw_fd()).is_err());
        });
    }
    // Too short for a ring of this size, which only its start shows.
    refused(|front| {
        let table = VhostUserInflight::new(4096, 0, 1, 8);
        let fd = memfd(4096);
        front.front.set_inflight_fd(&table, fd.as_raw_fd()).unwrap();
        front.prepare(0);
        front.front.set_vring_enable(0, true).unwrap();
        assert!(front.front.set_vring_kick(0, &front.kick).is_err());
    });
}

/// A file is no eventfd. The end of a pipe can be waited for, until its other end is gone.
#[test]
fn kicks_that_are_no_eventfds() {
    let message = [12, 1, 8, 0, 0u32];
    let bytes: Vec<u8> = message.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let kick = |front: &Front, fd: BorrowedFd<'_>| {
        let mut space = [MaybeUninit::uninit(); 64];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let parts = [IoSlice::new(&bytes)];
        let sent = sendmsg(&front.raw, &parts, &mut control, SendFlags::empty());
        assert_eq!(sent.unwrap(), bytes.len());
    };
    refused(|front| kick(front, memfd(8).as_fd()));

    let server = Server::new(Marking::Bit);
    let mut front = Front::new(&server);
    front.prepare(0);
    let (reader, mut writer) = std::io::pipe().unwrap();
    kick(&front, reader.as_fd());
    front.front.set_vring_enable(0, true).unwrap();
    front.offer(0, false, 8);
    writer.write_all(&[1; 20]).unwrap();
    front.used(1);
    drop(writer);
    front.front.set_vring_kick(0, &front.kick).unwrap();
    front.request(false, 8);
}
