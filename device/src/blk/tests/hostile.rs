//! Chains that no driver should offer, and framings that every device must accept.

use super::bed::wire::{IN, IOERR, OK, OUT};
use super::bed::{Bed, HEADER, IN_AT, OUT_AT, SECTORS, STATUS, UNTOUCHED, pattern};
use crate::queue::test_ring::{INDIRECT, NEXT, TestRing, WRITE};
use crate::virtio::{QueueError, VirtioDevice};
use proptest::prelude::*;
use spec::queue_state::QueueState;

/// Any split of header, data and status over buffers is legal (VIRTIO 1.4, "Message Framing").
#[test]
fn framing_is_the_drivers_choice() {
    let mut bed = Bed::new();
    // A write: header in two pieces, the second with the data's first bytes.
    bed.header(HEADER, OUT, 3);
    bed.guest.write(HEADER + 16, &[1; 12]);
    bed.guest.write(OUT_AT, &[2; 500]);
    let ring = bed.ring();
    ring.set(0, HEADER, 5, NEXT, 1);
    ring.set(1, HEADER + 5, 23, NEXT, 2);
    ring.set(2, OUT_AT, 500, NEXT, 3);
    ring.set(3, STATUS, 1, WRITE, 0);
    ring.offer(0);
    // A read: byte by byte, with the status in the data's last buffer.
    bed.header(HEADER + 64, IN, 9);
    ring.set(10, HEADER + 64, 16, NEXT, 11);
    ring.set(11, IN_AT, 1, NEXT | WRITE, 12);
    ring.set(12, IN_AT + 1, 512, WRITE, 0);
    ring.offer(10);
    // The same in an indirect table.
    let table = OUT_AT + 4096;
    for (n, (at, len)) in (1..).zip([(IN_AT + 8192, 100), (IN_AT + 8292, 413)]) {
        let flags = WRITE | if n == 1 { NEXT } else { 0 };
        bed.guest.desc(table, n, at, len, flags, n + 1);
    }
    bed.guest.desc(table, 0, HEADER + 64, 16, NEXT, 1);
    ring.set(20, table, 48, INDIRECT, 0);
    ring.offer(20);

    bed.run().unwrap();
    let ring = bed.ring();
    let used = [0, 1, 2].map(|n| ring.used_at(n));
    assert_eq!(used, [(0, 1), (10, 513), (20, 513)]);
    assert_eq!(bed.status(0), OK);
    assert_eq!(bed.on_disk(3, 1), [vec![1; 12], vec![2; 500]].concat());
    let sector = pattern(10)[9 * 512..].to_vec();
    for at in [IN_AT, IN_AT + 8192] {
        assert_eq!(bed.guest.read(at, 513), [sector.clone(), vec![OK]].concat());
    }
}

/// Each breaks the queue after the good request before it was answered; the state that is returned
/// stands before the bad one, so that a queue started from it works once it is mended.
#[test]
fn requests_that_cannot_be_answered_break_the_queue_cloud_hypervisor_8401() {
    type Spoil = fn(&TestRing<'_>);
    let cases: [(&str, Spoil); 6] = [
        ("no room for a request header", |r| {
            r.set(9, HEADER, 15, NEXT, 10);
            r.set(10, STATUS, 1, WRITE, 0);
        }),
        ("no room for a request header", |r| {
            r.set(9, STATUS, 600, WRITE, 0);
        }),
        ("no room for a status byte", |r| {
            r.set(9, HEADER, 528, 0, 0);
        }),
        ("no room for a request header", |r| {
            r.set(9, 0, 0, 0, 0);
        }),
        ("the status byte is not mapped", |r| {
            r.set(9, HEADER, 16, NEXT, 10);
            r.set(10, IN_AT, 512, NEXT | WRITE, 11);
            r.set(11, 0x1000, 1, WRITE, 0);
        }),
        ("a loop", |r| {
            r.set(9, HEADER, 16, NEXT, 9);
        }),
    ];
    for (reason, spoil) in cases {
        let mut bed = Bed::new();
        bed.submit(0, OUT, 1, 512, 0);
        bed.guest.write(OUT_AT, &[7; 512]);
        spoil(&bed.ring());
        bed.ring().offer(9);
        bed.submit(4, IN, 1, 0, 512);
        match bed.run() {
            Err(QueueError::Broken { what }) => assert!(what.contains(reason), "{what}"),
            other => panic!("{other:?}, not {reason}"),
        }
        assert_eq!((bed.ring().used_idx(), bed.status(0)), (1, OK), "{reason}");
        assert_eq!(bed.status(4), UNTOUCHED);
        let state = bed.stop();
        assert_eq!(state, QueueState { avail: 1, used: 1 }, "{reason}");

        let ring = bed.ring();
        ring.set(9, HEADER, 16, NEXT, 10);
        ring.set(10, STATUS + 9, 1, WRITE, 0);
        bed.start(state);
        bed.run().unwrap();
        assert_eq!((bed.ring().used_idx(), bed.status(4)), (3, OK), "{reason}");
    }
}

#[test]
fn a_header_in_unmapped_memory_is_an_error_of_that_request() {
    let mut bed = Bed::new();
    let ring = bed.ring();
    ring.set(0, 0x1000, 16, NEXT, 1);
    ring.set(1, STATUS, 1, WRITE, 0);
    ring.offer(0);
    bed.run().unwrap();
    assert_eq!((bed.status(0), bed.ring().used_at(0)), (IOERR, (0, 1)));
}

/// 4 GiB are claimed: the length is judged against the disk before anything is done.
#[test]
fn the_longest_chain_costs_no_memory() {
    let mut bed = Bed::new();
    for (kind, flags) in [(OUT, 0), (IN, WRITE)] {
        bed.header(HEADER, kind, 0);
        let ring = bed.ring();
        ring.set(0, HEADER, 16, NEXT, 1);
        ring.set(1, IN_AT, 0xffff_fe00, NEXT | flags, 2);
        ring.set(2, STATUS, 1, WRITE, 0);
        ring.offer(0);
        bed.run().unwrap();
        assert_eq!(bed.status(0), IOERR);
        bed.guest.write(STATUS, &[UNTOUCHED]);
    }
    assert_eq!(bed.on_disk(0, SECTORS), pattern(SECTORS));
}

proptest! {
    /// Whatever stands in the descriptors, the device comes to an end, uses every chain it took or
    /// breaks the queue, and writes nothing but what a chain let it write.
    #[test]
    fn random_descriptors_end_in_bounded_steps(
        descs in prop::collection::vec((0..6u64, 0..3000u32, 0..8u16, 0..18u16), 16),
        kinds in prop::collection::vec((0..14u32, 0..10_000u64), 4),
        heads in prop::collection::vec(0..17u16, 1..20),
    ) {
        let mut bed = Bed::new();
        let canary = OUT_AT + 0x10_0000;
        bed.guest.write(canary, &[UNTOUCHED; 4096]);
        for (n, (kind, sector)) in (0..).zip(&kinds) {
            bed.header(HEADER + 16 * n, *kind, *sector);
        }
        let places = [HEADER, HEADER + 16, HEADER + 40, IN_AT, IN_AT + 4000, 0x10];
        for (n, (place, len, flags, next)) in (0..).zip(&descs) {
            let place = places[usize::try_from(*place).unwrap()];
            bed.ring().set(n, place, *len, *flags, *next);
        }
        for head in &heads {
            bed.ring().offer(*head);
        }
        let result = bed.run();
        let state = bed.queue.as_ref().unwrap().state();
        prop_assert_eq!(state.avail, state.used);
        prop_assert_eq!(state.used, bed.ring().used_idx());
        if result.is_ok() {
            prop_assert_eq!(usize::from(state.used), heads.len());
        }
        prop_assert_eq!(bed.guest.read(canary, 4096), [UNTOUCHED; 4096]);
    }
}

/// 32 chains of the longest indirect table, all empty: taken in small steps, and all answered.
#[test]
fn long_tables_of_nothing_end_a_step_early() {
    let mut bed = Bed::new();
    let mut table = Vec::new();
    for next in 1..=65535u16 {
        // Header and status stand at the end.
        let (at, len, flags) = match next {
            65534 => (HEADER, 16u32, NEXT),
            65535 => (STATUS, 1, WRITE),
            _ => (0, 0, NEXT),
        };
        table.extend(at.to_le_bytes());
        table.extend(len.to_le_bytes());
        table.extend(flags.to_le_bytes());
        table.extend(next.to_le_bytes());
    }
    bed.guest.write(IN_AT, &table);
    bed.header(HEADER, 4, 0);
    for head in 0..32 {
        let len = u32::try_from(table.len()).unwrap();
        bed.ring().set(head, IN_AT, len, INDIRECT, 0);
        bed.ring().offer(head);
    }
    let mut queue = bed.queue.take().unwrap();
    for n in 1..=32 {
        bed.device
            .process(0, &mut queue, &bed.guest.dma, &mut || {})
            .unwrap();
        assert_eq!(queue.state(), QueueState { avail: n, used: n });
    }
    assert_eq!(bed.status(0), OK);
}
