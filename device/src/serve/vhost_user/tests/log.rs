//! The log, held against the pages of guest memory that changed.

use super::bed::*;
use crate::queue::test_ring::BASE;
use crate::tracker::Marking;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use vhost::vhost_user::VhostUserFrontend;

const PAGE: u64 = 4096;
/// A log for all of memory: it begins at guest physical address 0.
pub(super) const LOG: u64 = (BASE + MEMORY) / PAGE / 8;

pub(super) fn logged(log: &File, offset: u64) -> BTreeSet<u64> {
    let mut bytes = vec![0; usize::try_from(log.metadata().unwrap().len() - offset).unwrap()];
    log.read_exact_at(&mut bytes, offset).unwrap();
    let pages = (0u64..).zip(&bytes);
    pages
        .flat_map(|(n, byte)| {
            (0..8)
                .filter(move |bit| byte & 1 << bit != 0)
                .map(move |bit| 8 * n + bit)
        })
        .collect()
}

fn clear(log: &File) {
    let zeroes = vec![0; usize::try_from(LOG).unwrap()];
    log.write_all_at(&zeroes, 0).unwrap();
}

pub(super) fn memory(front: &Front) -> Vec<u8> {
    front.guest.read(BASE, usize::try_from(MEMORY).unwrap())
}

/// Pages, by guest physical address, that differ.
pub(super) fn changed(before: &[u8], after: &[u8]) -> BTreeSet<u64> {
    let pages = before.chunks(4096).zip(after.chunks(4096));
    (BASE / PAGE..)
        .zip(pages)
        .filter(|(_, (before, after))| before != after)
        .map(|(page, _)| page)
        .collect()
}

/// Requests on the disk, and the pages that the device changed: between two moments at which the
/// ring stands still. It runs before and after.
fn work(front: &mut Front, heads: &[u16]) -> BTreeSet<u64> {
    front.front.set_vring_enable(0, false).unwrap();
    for &head in heads {
        front.guest.write(front.data(head), &[0xee; 4096]);
        front.offer(head, false, 8 * u64::from(head));
    }
    let before = memory(front);
    front.front.set_vring_enable(0, true).unwrap();
    front.used(front.ring().avail_idx());
    front.front.set_vring_enable(0, false).unwrap();
    let after = memory(front);
    front.front.set_vring_enable(0, true).unwrap();
    changed(&before, &after)
}

fn logging(marking: Marking) -> (Server, Front, File) {
    let server = Server::new(marking);
    let mut front = Front::new(&server);
    front.start(0);
    let log = memfd(LOG);
    front.set_log(&log, 0, LOG);
    (server, front, log)
}

#[test]
fn everything_that_changed_is_logged_and_nothing_else() {
    let (server, mut front, log) = logging(Marking::Bit);
    front.log_all(true);
    front.log_used(Some(front.ring().used));
    let changed = work(&mut front, &[0, 3, 6, 9]);
    // Four pages of data, one of status bytes, one of the used ring.
    assert_eq!(changed.len(), 6);
    assert_eq!(logged(&log, 0), changed);
    assert_eq!(server.stats().log_starts, 1);
    assert!(server.stats().pages_logged >= 8);
}

/// The negative control.
#[test]
fn with_marking_off_the_same_work_is_lost() {
    let (_server, mut front, log) = logging(Marking::Off);
    front.log_all(true);
    front.log_used(Some(front.ring().used));
    assert_eq!(work(&mut front, &[0, 3, 6, 9]).len(), 6);
    assert_eq!(logged(&log, 0), BTreeSet::new());
}

#[test]
fn data_and_used_ring_are_switched_apart() {
    let (_server, mut front, log) = logging(Marking::Bit);
    let used = front.ring().used / PAGE;
    work(&mut front, &[0]);
    assert_eq!(logged(&log, 0), BTreeSet::new(), "nothing is switched on");

    front.log_used(Some(front.ring().used));
    work(&mut front, &[3]);
    assert_eq!(logged(&log, 0), BTreeSet::from([used]), "the flag alone");

    front.log_used(None);
    front.log_all(true);
    clear(&log);
    let mut data = work(&mut front, &[6]);
    data.remove(&used);
    assert_eq!(logged(&log, 0), data, "LOG_ALL alone");

    // A cancelled migration.
    front.log_all(false);
    clear(&log);
    work(&mut front, &[9]);
    assert_eq!(logged(&log, 0), BTreeSet::new());
    // And the next one.
    front.log_all(true);
    front.log_used(Some(front.ring().used));
    let changed = work(&mut front, &[0]);
    assert_eq!(logged(&log, 0), changed);
}

/// Behind a vIOMMU the frontend says where the used ring is in physical memory.
#[test]
fn the_used_ring_is_logged_at_the_address_that_was_given() {
    let (_server, mut front, log) = logging(Marking::Bit);
    let at = BASE + 77 * PAGE;
    front.log_used(Some(at));
    work(&mut front, &[0]);
    assert_eq!(logged(&log, 0), BTreeSet::from([at / PAGE]));
    // Another address, while the ring runs.
    front.log_used(Some(at + PAGE));
    work(&mut front, &[3]);
    assert_eq!(logged(&log, 0), BTreeSet::from([at / PAGE, at / PAGE + 1]));
}

#[test]
fn a_log_takes_over_from_another_without_a_gap() {
    let (server, mut front, first) = logging(Marking::Bit);
    front.log_all(true);
    front.log_used(Some(front.ring().used));
    let one = work(&mut front, &[0, 3]);
    // In the middle of a file, at no page.
    let second = memfd(8 + LOG);
    front.set_log(&second, 8, LOG);
    let two = work(&mut front, &[6]);
    assert_eq!(logged(&first, 0), one);
    assert_eq!(logged(&second, 8), two);

    // Shorter: it ends within memory. What has no bit is counted, and nothing is written behind.
    let short = memfd(LOG);
    front.set_log(&short, 0, BASE / PAGE / 8);
    work(&mut front, &[9]);
    assert_eq!(logged(&short, 0), BTreeSet::new());
    assert!(server.stats().beyond_log >= 3);
    // Longer again.
    let long = memfd(2 * LOG);
    front.set_log(&long, 0, 2 * LOG);
    let four = work(&mut front, &[0]);
    assert_eq!(logged(&long, 0), four);
    assert_eq!(server.stats().logs, 4);
}

/// Logs that follow each other while requests run: no page is in none of them.
#[test]
fn no_page_falls_between_two_logs_under_load() {
    let (_server, mut front, first) = logging(Marking::Bit);
    front.log_all(true);
    front.log_used(Some(front.ring().used));
    let mut logs = vec![first];
    front.front.set_vring_enable(0, false).unwrap();
    let before = memory(&front);
    front.front.set_vring_enable(0, true).unwrap();
    let mut offered = 0u16;
    for round in 0..100u16 {
        for head in [0, 3, 6, 9] {
            front.guest.write(front.data(head), &[0; 64]);
            front.offer(head, false, 8 * u64::from(round));
            offered += 1;
        }
        front.kick();
        let log = memfd(LOG);
        front.set_log(&log, 0, LOG);
        logs.push(log);
        front.used(offered);
    }
    front.front.set_vring_enable(0, false).unwrap();
    let after = memory(&front);
    let all: BTreeSet<u64> = logs.iter().flat_map(|log| logged(log, 0)).collect();
    let mut device: BTreeSet<u64> = changed(&before, &after);
    // What the driver alone writes: descriptors and the available ring.
    device.retain(|page| *page >= front.ring().used / PAGE);
    assert!(device.len() >= 6);
    assert_eq!(
        device.difference(&all).collect::<Vec<_>>(),
        Vec::<&u64>::new()
    );
}
