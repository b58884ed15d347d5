//! Virtqueues against rings built by hand, hostile ones among them.

use super::test_ring::{BASE, Guest, INDIRECT, NEXT, TestRing, WRITE};
use super::*;
use proptest::prelude::*;

const MEM: u64 = 1 << 20;

fn guest() -> Guest {
    Guest::new(MEM)
}

fn start(ring: &TestRing<'_>) -> Virtqueue {
    Virtqueue::start(ring.config(), &ring.guest.dma.enter()).unwrap()
}

fn pop(queue: &mut Virtqueue, guest: &Guest) -> Result<Option<Chain>, QueueError> {
    queue.pop(&guest.dma.enter())
}

fn broken(result: Result<Option<Chain>, QueueError>) -> String {
    match result {
        Err(QueueError::Broken { what }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_chain_comes_as_two_lists_without_its_empty_buffers() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 8);
    let mut queue = start(&ring);
    assert_eq!(pop(&mut queue, &guest).unwrap(), None);

    ring.set(3, 0x1000, 16, NEXT, 1);
    ring.set(1, 0x2000, 0, NEXT, 7);
    ring.set(7, 0x3000, 5, NEXT, 0);
    ring.set(0, 0x4000, 512, WRITE | NEXT, 2);
    ring.set(2, 0x5000, 0, WRITE | NEXT, 4);
    ring.set(4, 0x6000, 1, WRITE, 9999);
    ring.offer(3);
    let chain = pop(&mut queue, &guest).unwrap().unwrap();
    assert_eq!(chain.head, 3);
    assert_eq!(chain.readable, [(0x1000, 16), (0x3000, 5)]);
    assert_eq!(chain.writable, [(0x4000, 512), (0x6000, 1)]);
    assert_eq!((chain.readable_len(), chain.writable_len()), (21, 513));
    assert_eq!(queue.in_flight(), 1);
    assert_eq!(pop(&mut queue, &guest).unwrap(), None);

    queue.push(&guest.dma.enter(), 3, 513).unwrap();
    assert_eq!((ring.used_idx(), ring.used_at(0)), (1, (3, 513)));
    assert_eq!(queue.in_flight(), 0);
    assert_eq!(queue.stop(), QueueState { avail: 1, used: 1 });
}

#[test]
fn what_changes_after_the_walk_is_not_read_again_cve_2026_93683() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 4);
    let table = ring.end();
    guest.desc(table, 0, 0x2000, 8, NEXT, 1);
    guest.desc(table, 1, 0x3000, 9, WRITE, 0);
    ring.set(0, table, 2 * 16, INDIRECT, 0);
    ring.offer(0);
    let mut queue = start(&ring);
    let chain = pop(&mut queue, &guest).unwrap().unwrap();
    // The head, the table and the available ring, all of them.
    ring.set(0, 0, u32::MAX, NEXT, 0);
    guest.write(table, &[0xff; 32]);
    guest.write_u16(ring.config().driver + 4, 3);
    assert_eq!(chain.readable, [(0x2000, 8)]);
    assert_eq!(chain.writable, [(0x3000, 9)]);
    queue.push(&guest.dma.enter(), chain.head, 9).unwrap();
    assert_eq!(ring.used_at(0), (0, 9));
}

#[test]
fn an_indirect_table_may_follow_direct_descriptors() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 4);
    // Not aligned: only the queue's own areas have to be.
    let table = ring.end() + 1;
    guest.desc(table, 0, 0x2000, 8, NEXT, 5);
    guest.desc(table, 5, 0x3000, 9, WRITE, 0);
    ring.set(0, 0x1000, 4, NEXT, 1);
    // The device ignores WRITE next to INDIRECT.
    ring.set(1, table, 6 * 16, INDIRECT | WRITE, 0);
    ring.offer(0);
    let chain = pop(&mut start(&ring), &guest).unwrap().unwrap();
    assert_eq!(chain.readable, [(0x1000, 4), (0x2000, 8)]);
    assert_eq!(chain.writable, [(0x3000, 9)]);
}

#[test]
fn a_chain_of_empty_buffers_is_popped_once_cve_2016_6490() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 4);
    ring.set(0, 0, 0, NEXT, 1);
    ring.set(1, 0, 0, WRITE, 0);
    ring.offer(0);
    let mut queue = start(&ring);
    let chain = pop(&mut queue, &guest).unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (0, 0));
    assert_eq!(pop(&mut queue, &guest).unwrap(), None);
}

/// Each breaks the queue, with a reason that names it, at the chain it stands in; a queue started
/// again from that state works once the chain is mended.
#[test]
fn every_malformed_chain_breaks_the_queue_and_leaves_a_state_that_works() {
    type Spoil = fn(&TestRing<'_>);
    let cases: [(&str, Spoil); 14] = [
        ("descriptor 8 of a table of 8", |r| r.offer(8)),
        ("descriptor 65535 of", |r| r.offer(0xffff)),
        ("descriptor 8 of a table of 8", |r| {
            r.set(1, 0x1000, 1, NEXT, 8);
            r.offer(1);
        }),
        ("a loop", |r| {
            r.set(1, 0x1000, 1, NEXT, 1);
            r.offer(1);
        }),
        ("a loop", |r| {
            r.set(1, 0x1000, 0, NEXT, 2);
            r.set(2, 0x1000, 0, NEXT, 1);
            r.offer(1);
        }),
        ("a readable buffer after a writable one", |r| {
            r.set(1, 0x1000, 1, NEXT | WRITE, 2);
            r.set(2, 0x1000, 1, 0, 0);
            r.offer(1);
        }),
        ("INDIRECT and NEXT", |r| {
            r.set(1, r.end(), 16, INDIRECT | NEXT, 2);
            r.set(2, 0x1000, 1, 0, 0);
            r.offer(1);
        }),
        ("table within an indirect", |r| {
            r.guest.desc(r.end(), 0, r.end(), 16, INDIRECT, 0);
            r.set(1, r.end(), 16, INDIRECT, 0);
            r.offer(1);
        }),
        ("an indirect table of 0 bytes", |r| {
            r.set(1, r.end(), 0, INDIRECT, 0);
            r.offer(1);
        }),
        ("an indirect table of 17 bytes", |r| {
            r.set(1, r.end(), 17, INDIRECT, 0);
            r.offer(1);
        }),
        ("an indirect table of 1048576 bytes", |r| {
            r.set(1, r.end(), 65536 * 16, INDIRECT, 0);
            r.offer(1);
        }),
        ("descriptor 0: no Read access", |r| {
            r.set(1, 0x10, 16, INDIRECT, 0);
            r.offer(1);
        }),
        ("bytes long, or wrap", |r| {
            r.set(1, 0x1000, u32::MAX, NEXT, 2);
            r.set(2, 0x1000, 2, 0, 0);
            r.offer(1);
        }),
        ("bytes long, or wrap", |r| {
            r.set(1, u64::MAX - 3, 5, 0, 0);
            r.offer(1);
        }),
    ];
    for (reason, spoil) in cases {
        let guest = guest();
        let ring = TestRing::new(&guest, BASE, 8);
        ring.set(0, 0x1000, 1, 0, 0);
        ring.offer(0);
        spoil(&ring);
        let mut queue = start(&ring);
        let good = pop(&mut queue, &guest).unwrap().unwrap();
        let what = broken(pop(&mut queue, &guest));
        assert!(what.contains(reason), "{what} does not say: {reason}");
        broken(pop(&mut queue, &guest));
        // What was popped before can still be used.
        queue.push(&guest.dma.enter(), good.head, 0).unwrap();
        let state = queue.stop();
        assert_eq!(state, QueueState { avail: 1, used: 1 }, "{reason}");

        guest.write_u16(ring.avail + 4 + 2, 0);
        let config = ring.config_at(state);
        let mut queue = Virtqueue::start(config, &guest.dma.enter()).unwrap();
        assert_eq!(pop(&mut queue, &guest).unwrap(), Some(good), "{reason}");
    }
}

#[test]
fn an_available_index_that_runs_ahead_is_refused_firecracker_3149() {
    for ahead in [5, 6, 0x8000, 0xffff] {
        let guest = guest();
        let ring = TestRing::new(&guest, BASE, 4);
        ring.set_avail_idx(ahead);
        broken(pop(&mut start(&ring), &guest));
    }
}

#[test]
fn outstanding_chains_are_bounded_by_the_ring_cve_2016_5403() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 4);
    ring.set(0, 0x1000, 1, 0, 0);
    let mut queue = start(&ring);
    for _ in 0..4 {
        ring.offer(0);
        pop(&mut queue, &guest).unwrap().unwrap();
    }
    // None was used, so a fifth cannot be the driver's to offer.
    ring.offer(0);
    broken(pop(&mut queue, &guest));
    assert_eq!(queue.in_flight(), 4);
    assert_eq!(queue.stop(), QueueState { avail: 0, used: 0 });
}

#[test]
fn a_configuration_is_judged_before_it_starts() {
    let guest = guest();
    let good = TestRing::new(&guest, BASE, 8).config();
    let end = BASE + MEM;
    let bad = |change: fn(&mut QueueConfig, u64)| {
        let mut config = good;
        change(&mut config, end);
        Virtqueue::start(config, &guest.dma.enter()).unwrap_err()
    };
    let broken: [fn(&mut QueueConfig, u64); 8] = [
        |c, _| c.size = 0,
        |c, _| c.size = 6,
        |c, _| c.size = 32769,
        |c, _| c.desc += 8,
        |c, _| c.driver += 1,
        |c, _| c.device += 2,
        |c, _| c.desc = u64::MAX - 15,
        |c, _| c.state.avail = 9,
    ];
    for (n, change) in broken.into_iter().enumerate() {
        let error = bad(change);
        assert!(matches!(error, QueueError::Broken { .. }), "{n}: {error}");
    }
    let unmapped: [fn(&mut QueueConfig, u64); 5] = [
        |c, _| c.desc = 0x1000,
        |c, end| c.desc = end - 16,
        |c, end| c.driver = end - 4,
        |c, end| c.device = end - 4,
        |c, _| c.driver = 0,
    ];
    for (n, change) in unmapped.into_iter().enumerate() {
        let error = bad(change);
        assert!(matches!(error, QueueError::Ring { .. }), "{n}: {error}");
    }
}

#[test]
fn a_used_ring_that_cannot_be_written_does_not_start() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 8);
    guest
        .dma
        .map(
            ring.used,
            4096,
            &guest.file,
            ring.used - BASE,
            vm_memory::Permissions::Read,
        )
        .unwrap();
    let error = Virtqueue::start(ring.config(), &guest.dma.enter()).unwrap_err();
    assert!(matches!(
        error,
        QueueError::Ring {
            ring: "used ring",
            ..
        }
    ));
}

#[test]
fn a_fresh_queue_starts_at_zero_whatever_memory_says() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 8);
    ring.set_used_idx(77);
    assert_eq!(start(&ring).state(), QueueState { avail: 0, used: 0 });
}

#[test]
fn a_restored_queue_believes_the_used_index_in_memory() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 8);
    ring.set_used_idx(65533);
    ring.set_avail_idx(2);
    // Four buffers were consumed and lost by whoever had the queue before.
    let written = QueueState { avail: 1, used: 42 };
    let mut queue = Virtqueue::start(ring.config_at(written), &guest.dma.enter()).unwrap();
    assert_eq!(queue.in_flight(), 4);
    assert!(pop(&mut queue, &guest).unwrap().is_some());
    queue.push(&guest.dma.enter(), 0, 0).unwrap();
    assert_eq!(ring.used_idx(), 65534);
    let now = QueueState {
        avail: 2,
        used: 65534,
    };
    assert_eq!(queue.stop(), now);
}

#[test]
fn a_restored_queue_notifies_once() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 8);
    for event_idx in [false, true] {
        for (avail, notifies) in [(0, false), (3, true)] {
            ring.set_used_idx(avail);
            ring.set_used_event(100);
            let state = QueueState { avail, used: avail };
            let config = QueueConfig {
                event_idx,
                ..ring.config_at(state)
            };
            let mem = guest.dma.enter();
            let mut queue = Virtqueue::start(config, &mem).unwrap();
            assert_eq!(queue.needs_notification(&mem).unwrap(), notifies);
            assert!(!queue.needs_notification(&mem).unwrap());
        }
    }
}

#[test]
fn interrupts_follow_the_flag_without_event_idx() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 8);
    ring.set(0, 0x1000, 1, 0, 0);
    let mut queue = start(&ring);
    for (flags, notifies) in [(0, true), (1, false), (0, true), (1, false)] {
        ring.set_avail_flags(flags);
        ring.offer(0);
        let mem = guest.dma.enter();
        queue.pop(&mem).unwrap().unwrap();
        queue.push(&mem, 0, 0).unwrap();
        assert_eq!(queue.needs_notification(&mem).unwrap(), notifies);
        // Nothing was used since.
        assert!(!queue.needs_notification(&mem).unwrap());
    }
}

#[test]
fn a_notification_that_could_not_be_looked_up_is_owed() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 8);
    ring.set(0, 0x1000, 1, 0, 0);
    for event_idx in [false, true] {
        let config = QueueConfig {
            event_idx,
            ..ring.config()
        };
        let mut queue = Virtqueue::start(config, &guest.dma.enter()).unwrap();
        ring.set_avail_idx(0);
        ring.offer(0);
        queue.pop(&guest.dma.enter()).unwrap().unwrap();
        queue.push(&guest.dma.enter(), 0, 0).unwrap();
        guest.dma.unmap(BASE, guest.size);
        let error = queue.needs_notification(&guest.dma.enter()).unwrap_err();
        assert!(queue.outlasts(&error), "{error}");
        guest.map();
        assert!(queue.needs_notification(&guest.dma.enter()).unwrap());
        assert!(!queue.needs_notification(&guest.dma.enter()).unwrap());
    }
}

#[test]
fn notifications_are_asked_for_and_declined() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 8);
    ring.set(0, 0x1000, 1, 0, 0);
    let mem = || guest.dma.enter();
    let mut queue = start(&ring);
    queue.disable_notification(&mem()).unwrap();
    assert_eq!(ring.used_flags(), 1);
    assert!(!queue.enable_notification(&mem()).unwrap());
    assert_eq!(ring.used_flags(), 0);
    ring.offer(0);
    assert!(queue.enable_notification(&mem()).unwrap());

    let config = QueueConfig {
        event_idx: true,
        ..ring.config()
    };
    let mut queue = Virtqueue::start(config, &mem()).unwrap();
    assert!(queue.enable_notification(&mem()).unwrap());
    pop(&mut queue, &guest).unwrap().unwrap();
    assert!(!queue.enable_notification(&mem()).unwrap());
    assert_eq!((ring.avail_event(), ring.used_flags()), (1, 0));
}

#[test]
fn rings_that_vanish_are_errors_and_leave_the_state_behind_the_last_push() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 8);
    ring.set(0, 0x1000, 1, 0, 0);
    for _ in 0..3 {
        ring.offer(0);
    }
    let mut queue = start(&ring);
    for _ in 0..3 {
        pop(&mut queue, &guest).unwrap().unwrap();
    }
    queue.push(&guest.dma.enter(), 0, 0).unwrap();
    guest.dma.unmap(ring.used, 4096);
    let error = queue.push(&guest.dma.enter(), 0, 0).unwrap_err();
    assert!(matches!(error, QueueError::Ring { .. }));
    broken(pop(&mut queue, &guest));
    let state = queue.stop();
    assert_eq!(state, QueueState { avail: 1, used: 1 });

    guest.map();
    let mut queue = Virtqueue::start(ring.config_at(state), &guest.dma.enter()).unwrap();
    guest.dma.unmap(ring.avail, 4096);
    assert!(matches!(
        pop(&mut queue, &guest),
        Err(QueueError::Ring { .. })
    ));
}

#[test]
fn more_pushes_than_pops_are_refused() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 8);
    let mut queue = start(&ring);
    queue.push(&guest.dma.enter(), 0, 0).unwrap_err();
    assert_eq!(ring.used_idx(), 0);
}

#[test]
fn the_largest_ring_works_and_indices_wrap() {
    let guest = Guest::new(2 << 20);
    let ring = TestRing::new(&guest, BASE, 32768);
    ring.set(32767, 0x1000, 1, 0, 0);
    // All entries at once, three times: past 65535 and past the ring's end.
    let mut queue = start(&ring);
    for round in 1..=3u16 {
        let heads = 32767u16.to_le_bytes().repeat(32768);
        guest.write(ring.avail + 4, &heads);
        ring.set_avail_idx(round.wrapping_mul(32768));
        let mem = guest.dma.enter();
        while let Some(chain) = queue.pop(&mem).unwrap() {
            assert_eq!(chain.head, 32767);
        }
        assert_eq!(queue.in_flight(), 32768);
        while queue.in_flight() != 0 {
            queue.push(&mem, 32767, 7).unwrap();
        }
        assert_eq!(ring.used_idx(), round.wrapping_mul(32768));
        assert_eq!(ring.used_at(32767), (32767, 7));
    }
    let state = QueueState {
        avail: 32768,
        used: 32768,
    };
    assert_eq!(queue.stop(), state);
}

#[test]
fn a_ring_of_one_entry_wraps() {
    let guest = guest();
    let ring = TestRing::new(&guest, BASE, 1);
    ring.set(0, 0x1000, 1, 0, 0);
    ring.set_avail_idx(65500);
    ring.set_used_idx(65500);
    let state = QueueState {
        avail: 65500,
        used: 0,
    };
    let mut queue = Virtqueue::start(ring.config_at(state), &guest.dma.enter()).unwrap();
    for _ in 0..100 {
        ring.offer(0);
        pop(&mut queue, &guest).unwrap().unwrap();
        queue.push(&guest.dma.enter(), 0, 0).unwrap();
    }
    assert_eq!(
        queue.state(),
        QueueState {
            avail: 64,
            used: 64
        }
    );
}

/// The walk, slowly: all descriptors of the chain first, then every rule on the list.
fn naive_walk(table: &[Raw], inner: &[Raw], head: u16) -> Option<Chain> {
    fn follow(table: &[Raw], head: u16) -> Option<Vec<Raw>> {
        let mut list = Vec::new();
        let mut at = head;
        loop {
            let desc = *table.get(usize::from(at))?;
            list.push(desc);
            if list.len() > table.len() {
                return None;
            }
            if desc.flags & INDIRECT != 0 || desc.flags & NEXT == 0 {
                return Some(list);
            }
            at = desc.next;
        }
    }
    let mut list = follow(table, head)?;
    let mut extra = 0;
    let last = *list.last()?;
    if last.flags & INDIRECT != 0 {
        let count = usize::try_from(last.len / 16).ok()?;
        if last.flags & NEXT != 0 || last.len % 16 != 0 || count == 0 {
            return None;
        }
        list.pop();
        extra = 1;
        list.extend(follow(&inner[..count], 0)?);
    }
    if list.iter().any(|d| d.flags & INDIRECT != 0) {
        return None;
    }
    let side = |write| {
        list.iter()
            .filter(|d| d.flags & WRITE == write && d.len != 0)
            .map(|d| (d.addr, d.len))
            .collect::<Vec<_>>()
    };
    let first_written = list.iter().position(|d| d.flags & WRITE != 0 && d.len != 0);
    let last_read = list.iter().rposition(|d| d.flags & WRITE == 0);
    if let (Some(written), Some(read)) = (first_written, last_read)
        && written < read
    {
        return None;
    }
    Some(Chain {
        head,
        readable: side(0),
        writable: side(WRITE),
        descriptors: u32::try_from(list.len() + extra).ok()?,
    })
}

#[derive(Clone, Copy, Debug)]
struct Raw {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

const INNER: u64 = BASE + 0x8000;

fn raw() -> impl Strategy<Value = Raw> {
    let data = (0..0x1000u64, 0..3u32, 0..4u16, 0..9u16);
    let data = data.prop_map(|(addr, len, flags, next)| Raw {
        addr,
        len,
        flags,
        next,
    });
    let indirect = (0..9u32, 0..16u32, 0..4u16, 0..9u16).prop_map(|(n, odd, more, next)| Raw {
        addr: INNER,
        len: 16 * n + if odd == 0 && n < 8 { 3 } else { 0 },
        flags: INDIRECT | if more == 0 { NEXT } else { 0 },
        next,
    });
    prop_oneof![6 => data, 1 => indirect]
}

proptest! {
    #[test]
    fn the_walk_agrees_with_a_naive_one(
        table in prop::collection::vec(raw(), 8),
        inner in prop::collection::vec(raw(), 8),
        head in 0..9u16,
    ) {
        let guest = guest();
        let ring = TestRing::new(&guest, BASE, 8);
        for (at, descs) in [(ring.desc, &table), (INNER, &inner)] {
            for (index, d) in (0..).zip(descs) {
                guest.desc(at, index, d.addr, d.len, d.flags, d.next);
            }
        }
        ring.offer(head);
        let popped = pop(&mut start(&ring), &guest);
        prop_assert_eq!(popped.ok().flatten(), naive_walk(&table, &inner, head));
    }

    /// Notify if and only if one of the entries used since the last time is the one asked for.
    #[test]
    fn event_idx_agrees_with_a_naive_count(
        old in any::<u16>(),
        batches in prop::collection::vec((0..6u16, -8..8i16), 1..6),
    ) {
        let guest = guest();
        let ring = TestRing::new(&guest, BASE, 8);
        ring.set(0, 0x1000, 1, 0, 0);
        let mut at = old.max(1);
        ring.set_used_idx(at);
        ring.set_avail_idx(at);
        let state = QueueState { avail: at, used: at };
        let config = QueueConfig { event_idx: true, ..ring.config_at(state) };
        let mut queue = Virtqueue::start(config, &guest.dma.enter()).unwrap();
        queue.needs_notification(&guest.dma.enter()).unwrap();
        for (count, event) in batches {
            let event = at.wrapping_add_signed(event);
            ring.set_used_event(event);
            let mut asked_for = false;
            for _ in 0..count {
                ring.offer(0);
                pop(&mut queue, &guest).unwrap().unwrap();
                queue.push(&guest.dma.enter(), 0, 0).unwrap();
                asked_for |= at == event;
                at = at.wrapping_add(1);
            }
            let notify = queue.needs_notification(&guest.dma.enter()).unwrap();
            prop_assert_eq!(notify, asked_for);
        }
    }
}
