//! The memory table, changed under a ring that runs.

use super::bed::*;
use crate::queue::test_ring::BASE;
use crate::tracker::Marking;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

/// A half of memory: rings and headers below, data in the lower half too.
const HALF: u64 = MEMORY / 2;

#[test]
fn tables_replace_each_other_under_load_and_no_request_fails() {
    let server = Server::new(Marking::Bit);
    let mut front = Front::new(&server);
    let log_size = (BASE + MEMORY) / 4096 / 8;
    let log = memfd(log_size);
    front.set_log(&log, 0, log_size);
    front.log_all(true);
    front.start(0);
    let changing = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let (front, changing) = (&front, &changing);
        let control = front.front.clone();
        let tables = [
            vec![front.whole()],
            vec![front.region(0, HALF), front.region(HALF, HALF)],
            vec![front.region(0, HALF)],
        ];
        scope.spawn(move || {
            for round in 0..300 {
                control
                    .set_mem_table(&tables[round % tables.len()])
                    .unwrap();
            }
            changing.store(false, Ordering::Release);
        });
        let mut sector = 0;
        while changing.load(Ordering::Acquire) {
            front.request(false, sector);
            let head = front.guest.read(front.data(0), 8);
            assert_eq!(head, sector.to_le_bytes());
            sector = (sector + 8) % SECTORS;
        }
    });
    // The log has outlived 300 tables.
    log.write_all_at(&vec![0; usize::try_from(log_size).unwrap()], 0)
        .unwrap();
    front.request(false, 8);
    eventually(|| {
        let mut byte = [0];
        let page = front.data(0) / 4096;
        log.read_exact_at(&mut byte, page / 8).unwrap();
        byte[0] & 1 << (page % 8) != 0
    });
    assert_eq!(server.stats().memory_changes, 301);
    assert_eq!(server.stats().rings_broken, 0);
}

#[test]
fn regions_come_and_go_one_by_one() {
    let server = Server::new(Marking::Bit);
    let mut front = Front::new(&server);
    front.front.set_mem_table(&[front.region(0, HALF)]).unwrap();
    front.start(0);
    front.request(false, 8);
    let upper = front.region(HALF, HALF);
    front.front.add_mem_region(&upper).unwrap();
    // A buffer there.
    let at = BASE + HALF;
    front.offer(0, false, 16);
    front.ring().set(1, at, 4096, 3, 2);
    front.kick();
    front.used(2);
    assert_eq!(front.guest.read(at, 8), 16u64.to_le_bytes());
    front.front.remove_mem_region(&upper).unwrap();
    front.guest.write(at, &[9; 8]);
    front.offer(0, false, 24);
    front.ring().set(1, at, 4096, 3, 2);
    front.kick();
    front.used(3);
    assert_eq!(front.status(0), 1, "an I/O error");
    assert_eq!(front.guest.read(at, 8), [9; 8]);
}
