//! Starting, draining, going on, and going away.

use super::bed::*;
use crate::queue::test_ring::Guest;
use crate::tracker::Marking;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserInflight};

#[test]
fn a_frontend_learns_what_it_needs() {
    let server = Server::new(Marking::Bit);
    let mut front = Front::new(&server);
    let offered = front.front.get_features().unwrap();
    // LOG_ALL, PROTOCOL_FEATURES, VERSION_1, INDIRECT, EVENT_IDX, FLUSH and MQ of block devices.
    for bit in [26, 30, 32, 28, 29, 9, 12] {
        assert_ne!(offered & 1 << bit, 0, "bit {bit}");
    }
    let protocol = front.front.get_protocol_features().unwrap().bits();
    // MQ, LOG_SHMFD, REPLY_ACK, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS.
    for bit in [0, 1, 3, 9, 12, 13, 15] {
        assert_ne!(protocol & 1 << bit, 0, "protocol bit {bit}");
    }
    assert_eq!(front.front.get_queue_num().unwrap(), 2);
    assert!(front.front.get_max_mem_slots().unwrap() >= 8);
    let none = VhostUserConfigFlags::empty();
    let (_, config) = front.front.get_config(0, 96, none, &[0; 96]).unwrap();
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[34..36], [2, 0]);
    assert_eq!(config[80..], [0; 16]);
}

#[test]
fn requests_are_carried_out_and_told() {
    let server = Server::new(Marking::Bit);
    let mut front = Front::new(&server);
    front.start(0);
    // The call made when the descriptor was set.
    assert_eq!(front.call.read().unwrap(), 1);
    front.request(false, 24);
    assert_eq!(front.guest.read(front.data(0), 8), 24u64.to_le_bytes());
    eventually(|| front.call.read().is_ok());
    front.guest.write(front.data(0), &[7; 4096]);
    front.request(true, 8);
    assert_eq!(server.disk.contents()[8 * 512..16 * 512], [7; 4096]);
}

/// No descriptor for kicks: bit 8 of the message says so, and the ring is polled.
#[test]
fn a_ring_without_kicks_is_polled() {
    let server = Server::new(Marking::Bit);
    let mut front = Front::new(&server);
    front.prepare(0);
    front.send(12, 1, 8, &0x100u64.to_ne_bytes());
    front.front.set_vring_enable(0, true).unwrap();
    for n in 1..4 {
        front.offer(0, false, 8 * u64::from(n));
        front.used(n);
    }
}

#[test]
fn a_ring_runs_only_while_it_is_enabled_and_kicked() {
    let server = Server::new(Marking::Bit);
    let mut front = Front::new(&server);
    front.offer(0, false, 0);
    front.prepare(0);
    front.front.set_vring_enable(0, true).unwrap();
    assert_eq!(server.stats().ring_starts, 0);
    front.front.set_vring_kick(0, &front.kick).unwrap();
    // What was available before is done without a kick.
    front.used(1);
    front.front.set_vring_enable(0, false).unwrap();
    front.offer(0, false, 0);
    front.kick();
    front.front.set_vring_enable(1, true).unwrap();
    assert_eq!(front.ring().used_idx(), 1);
    front.front.set_vring_enable(0, true).unwrap();
    front.used(2);
    assert_eq!(server.stats().ring_starts, 2);
}

#[test]
fn get_vring_base_waits_for_what_is_in_flight() {
    let server = Server::new(Marking::Bit);
    let mut front = Front::new(&server);
    let (arrives, go) = server.disk.close();
    front.start(0);
    front.offer(0, false, 8);
    front.offer(3, false, 16);
    front.kick();
    arrives.recv_timeout(HANG).unwrap();
    let asking = front.front.clone();
    let answer = std::thread::spawn(move || asking.get_vring_base(0).unwrap());
    assert!(!answer.is_finished());
    go.send(()).unwrap();
    let base = answer.join().unwrap();
    assert_eq!(base, u32::from(front.ring().used_idx()));
    // Nothing more is popped until the ring is started again, where it stood.
    let done = front.ring().used_idx();
    front.offer(6, false, 24);
    front.kick();
    assert_eq!(front.front.get_vring_base(0).unwrap(), base);
    assert_eq!(front.ring().used_idx(), done);
    front.start(done);
    front.used(3);
}

#[test]
fn a_reset_stops_all_and_starts_afresh() {
    let server = Server::new(Marking::Bit);
    let mut front = Front::new(&server);
    front.start(0);
    front.request(false, 8);
    front.front.reset_device().unwrap();
    front.offer(0, false, 8);
    front.kick();
    assert_eq!(front.front.get_vring_base(0).unwrap(), 0);
    assert_eq!(front.ring().used_idx(), 1);
    front.start(1);
    front.used(2);
}

/// What a backend leaves that is killed while it works: guest memory and the table, as they are at
/// that moment. Another backend and frontend take over from a copy.
#[test]
fn what_a_killed_backend_had_in_flight_is_done_by_the_next() {
    let first = Server::new(Marking::Bit);
    let mut front = Front::new(&first);
    let (_, file) = front.inflight();
    front.start(0);
    for n in 0..3 {
        front.request(false, 8 * n);
    }
    let (arrives, go) = first.disk.close();
    for head in [0, 3, 6] {
        front.guest.write(front.data(head), &[0x10; 4096]);
        front.offer(head, true, 64 + 8 * u64::from(head));
    }
    front.kick();
    arrives.recv_timeout(HANG).unwrap();
    let left = Guest::new(MEMORY);
    left.write(
        crate::queue::test_ring::BASE,
        &front.guest.read(crate::queue::test_ring::BASE, 8 << 20),
    );
    let table = memfd(file.metadata().unwrap().len());
    let mut notes = vec![0; usize::try_from(table.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut notes, 0).unwrap();
    table.write_all_at(&notes, 0).unwrap();
    go.send(()).unwrap();

    let second = Server::new(Marking::Bit);
    let mut next = Front::with_guest(&second, left);
    let size = table.metadata().unwrap().len();
    let message = VhostUserInflight::new(size, 0, 1, RING);
    let fd = table.as_raw_fd();
    next.front.set_inflight_fd(&message, fd).unwrap();
    // What QEMU knows: the used index.
    let used = next.ring().used_idx();
    assert_eq!(used, 3);
    next.start(used);
    next.used(6);
    let taken = second.stats().resubmitted;
    assert!((1..=3).contains(&taken), "{taken} taken over");
    let mut heads: Vec<u32> = (3..6).map(|idx| next.ring().used_at(idx).0).collect();
    heads.sort_unstable();
    assert_eq!(heads, [0, 3, 6]);
    for head in [0, 3, 6u16] {
        assert_eq!(next.status(head), 0);
        let at = (64 + 8 * usize::from(head)) * 512;
        assert_eq!(second.disk.contents()[at..at + 4096], [0x10; 4096]);
    }
    assert_eq!(next.front.get_vring_base(0).unwrap(), 6);

    // The negative control: the same without the table loses them.
    let third = Server::new(Marking::Bit);
    let lost = Guest::new(MEMORY);
    lost.write(
        crate::queue::test_ring::BASE,
        &next.guest.read(crate::queue::test_ring::BASE, 8 << 20),
    );
    let mut control = Front::with_guest(&third, lost);
    control.ring().set_used_idx(3);
    control.start(6);
    assert_eq!(control.front.get_vring_base(0).unwrap(), 6);
    assert_eq!(control.ring().used_idx(), 3);
}

#[test]
fn frontends_come_one_after_the_other() {
    let mut server = Server::new(Marking::Bit);
    for round in 1..=3 {
        let mut front = Front::new(&server);
        front.start(0);
        front.request(false, 8);
        if round == 2 {
            // In the middle of a message: SET_FEATURES without its body.
            front.send(2, 1, 8, &[1, 2]);
        }
        drop(front);
    }
    server.wait(|stats| stats.connections == 3);
    server.stop();
    assert_eq!(server.stats().ring_starts, 3);
}

/// With a request that waits for its disk.
#[test]
fn a_server_that_is_stopped_finishes_what_it_has() {
    let mut server = Server::new(Marking::Bit);
    let mut front = Front::new(&server);
    let (arrives, go) = server.disk.close();
    front.start(0);
    front.offer(0, true, 8);
    front.kick();
    arrives.recv_timeout(HANG).unwrap();
    let opener = std::thread::spawn(move || go.send(()).unwrap());
    server.stop();
    opener.join().unwrap();
    assert_eq!(front.ring().used_idx(), 1);
    assert!(front.is_closed());
}
