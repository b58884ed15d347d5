//! Packed rings: their bases have both places, and their pages are logged where they are.

use super::bed::*;
use super::log::{LOG, changed, logged, memory};
use crate::queue::test_packed::{TestPacked, desc};
use crate::queue::test_ring::{BASE, Guest, NEXT, WRITE};
use crate::tracker::Marking;
use std::io::{Read, Write};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures as Protocol};
use vhost::{VhostBackend, VringConfigData};

const PACKED: u64 = 1 << 34;
/// No power of two, and no multiple of a request's three descriptors.
const SIZE: u16 = 11;
const SET_VRING_BASE: u32 = 10;

struct Packed(Front);

impl Packed {
    fn with_guest(server: &Server, guest: Guest) -> Self {
        let front = Front::with_guest(server, guest);
        let offered = front.front.get_features().unwrap();
        assert_eq!(offered & PACKED, PACKED);
        front.front.set_features(FEATURES | PACKED).unwrap();
        Self(front)
    }

    fn ring(&self) -> TestPacked<'_> {
        TestPacked::new(&self.0.guest, BASE, SIZE)
    }

    /// With the log's address of the device's area, if its ring is logged.
    fn address(&mut self, log: Option<u64>) {
        let ring = self.ring();
        let user = |gpa| gpa - BASE + USER;
        let data = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: log.is_some().into(),
            desc_table_addr: user(ring.desc),
            avail_ring_addr: user(ring.driver),
            used_ring_addr: user(ring.device),
            log_addr: log,
        };
        self.0.front.set_vring_addr(0, &data).unwrap();
    }

    /// As the crate cannot send it: with 32 bits. True if it was taken.
    fn set_base(&mut self, base: u32) -> bool {
        // Version 1, and a reply is wanted.
        let words = [SET_VRING_BASE, 1 | 8, 8, 0, base];
        let message: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.0.raw.write_all(&message).unwrap();
        let mut reply = [0; 20];
        let came = self.0.raw.read_exact(&mut reply).is_ok();
        came && reply[12..] == [0; 8]
    }

    fn start(&mut self, base: u32) {
        let front: &mut Frontend = &mut self.0.front;
        front.set_vring_num(0, SIZE).unwrap();
        assert!(self.set_base(base));
        self.address(None);
        let front = &mut self.0;
        front.front.set_vring_call(0, &front.call).unwrap();
        front.front.set_vring_err(0, &front.error).unwrap();
        front.front.set_vring_kick(0, &front.kick).unwrap();
        front.front.set_vring_enable(0, true).unwrap();
    }

    /// Makes a read of 4 KiB available at `place`; returns the place after it.
    fn offer(&self, place: u64) -> u64 {
        let guest = &self.0.guest;
        let id = u16::try_from(place).unwrap();
        let header = HEADERS + 64 * place;
        let mut bytes = vec![0; 8];
        bytes.extend((8 * place).to_le_bytes());
        bytes.push(0xff);
        guest.write(header, &bytes);
        guest.write(self.0.data(id), &[0xee; 4096]);
        self.ring().offer(
            place,
            &[
                desc(header, 16, id, NEXT),
                desc(self.0.data(id), 4096, id, NEXT | WRITE),
                desc(header + 16, 1, id, WRITE),
            ],
        )
    }

    /// Carries out two requests from `place` on; returns the place after them and the pages that
    /// the device changed.
    fn work(&mut self, place: u64) -> (u64, std::collections::BTreeSet<u64>) {
        self.0.front.set_vring_enable(0, false).unwrap();
        let second = self.offer(place);
        let end = self.offer(second);
        let before = memory(&self.0);
        self.0.front.set_vring_enable(0, true).unwrap();
        eventually(|| self.ring().used(second).is_some());
        self.0.front.set_vring_enable(0, false).unwrap();
        let after = memory(&self.0);
        self.0.front.set_vring_enable(0, true).unwrap();
        for place in [place, second] {
            let id = u16::try_from(place).unwrap();
            assert_eq!(self.ring().used(place), Some((id, 4097, true)));
            assert_eq!(self.0.status(id), 0);
        }
        (end, changed(&before, &after))
    }
}

fn base(ring: &TestPacked<'_>, place: u64) -> u32 {
    u32::from(ring.bits(place)) | u32::from(ring.bits(place)) << 16
}

#[test]
fn a_packed_ring_goes_on_in_another_backend() {
    let first = Server::offering(Marking::Bit, true);
    let mut front = Packed::with_guest(&first, Guest::new(MEMORY));
    front.start(0x8000_8000);
    let (place, _) = front.work(0);
    let (place, _) = front.work(place);
    // In the second lap, whose wrap counter is 0.
    assert_eq!(base(&front.ring(), place), 0x0001_0001);
    assert_eq!(front.0.front.get_vring_base(0).unwrap(), 0x0001_0001);
    let Packed(Front { guest, .. }) = front;

    let second = Server::offering(Marking::Bit, true);
    let mut front = Packed::with_guest(&second, guest);
    front.start(0x0001_0001);
    let (place, _) = front.work(place);
    let expected = base(&front.ring(), place);
    assert_eq!(front.0.front.get_vring_base(0).unwrap(), expected);
    assert_eq!(
        (first.stats().rings_broken, second.stats().rings_broken),
        (0, 0)
    );
}

#[test]
fn what_a_packed_ring_changes_is_logged_and_nothing_else() {
    for marking in [Marking::Bit, Marking::Off] {
        let server = Server::offering(marking, true);
        let mut front = Packed::with_guest(&server, Guest::new(MEMORY));
        front.start(0x8000_8000);
        let log = memfd(LOG);
        front.0.set_log(&log, 0, LOG);
        let all = FEATURES | PACKED | LOG_ALL;
        front.0.front.set_features(all).unwrap();
        let device = front.ring().device;
        front.address(Some(device));
        let (_, mut changed) = front.work(0);
        // The device's area may hold the same at both looks; the ring has changed.
        assert!(changed.contains(&(front.ring().desc / 4096)));
        let logged = logged(&log, 0);
        if marking == Marking::Off {
            assert!(logged.is_empty());
            continue;
        }
        changed.insert(device / 4096);
        assert_eq!(logged, changed);
    }
}

#[test]
fn bases_and_sizes_are_judged_by_the_rings_format() {
    let server = Server::offering(Marking::Bit, true);
    let split = Front::new(&server);
    assert!(split.front.set_vring_num(0, SIZE).is_err());
    drop(split);
    let front = Front::new(&server);
    assert!(!Packed(front).set_base(0x1_0000), "of a split ring");

    let mut front = Packed::with_guest(&server, Guest::new(MEMORY));
    assert_eq!(front.0.front.get_vring_base(0).unwrap(), 0x8000_8000);
    // An entry that the ring does not have: it does not start.
    front.0.front.set_vring_num(0, SIZE).unwrap();
    assert!(front.set_base(0x8000_800b));
    front.address(None);
    let Front { front, kick, .. } = &mut front.0;
    front.set_vring_enable(0, true).unwrap();
    assert!(front.set_vring_kick(0, kick).is_err());
}

#[test]
fn packed_rings_come_without_tables_of_what_is_in_flight() {
    for packed in [false, true] {
        let server = Server::offering(Marking::Bit, packed);
        let mut front = Front::new(&server);
        let features = front.front.get_features().unwrap();
        assert_eq!(features & PACKED != 0, packed);
        let protocol = front.front.get_protocol_features().unwrap();
        assert_eq!(protocol.contains(Protocol::INFLIGHT_SHMFD), !packed);
    }
}
