//! Packed virtqueues against rings built by hand, hostile ones among them.

use super::test_packed::{Desc, TestPacked, desc, table_entry};
use super::test_ring::{BASE, Guest, INDIRECT, NEXT, WRITE};
use super::*;
use crate::tracker::TrackerConfig;
use proptest::prelude::*;
use vm_memory::Permissions;

const MEM: u64 = 1 << 20;

fn guest() -> Guest {
    Guest::new(MEM)
}

fn start(ring: &TestPacked<'_>, config: QueueConfig) -> Virtqueue {
    Virtqueue::start(config, &ring.guest.dma.enter()).unwrap()
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

const ONE: Desc = Desc {
    addr: 0x1000,
    len: 1,
    id: 0,
    flags: 0,
};

#[test]
fn a_chain_comes_as_two_lists_and_its_used_descriptor_stands_where_it_began() {
    let guest = guest();
    // No power of two, and the chain goes round the end.
    let ring = TestPacked::new(&guest, BASE, 7);
    let mut queue = start(&ring, ring.config_at(4, 4));
    assert_eq!(pop(&mut queue, &guest).unwrap(), None);
    let end = ring.offer(
        4,
        &[
            desc(0x1000, 16, 9, NEXT),
            desc(0x2000, 0, 9, NEXT),
            desc(0x3000, 5, 9, NEXT),
            desc(0x4000, 512, 9, WRITE | NEXT),
            desc(0x5000, 0, 9, WRITE | NEXT),
            // The last one's id counts, and ids have no range.
            desc(0x6000, 1, 0xfffe, WRITE),
        ],
    );
    assert_eq!(end, 10);
    let chain = pop(&mut queue, &guest).unwrap().unwrap();
    assert_eq!(chain.head, 0xfffe);
    assert_eq!(chain.readable, [(0x1000, 16), (0x3000, 5)]);
    assert_eq!(chain.writable, [(0x4000, 512), (0x6000, 1)]);
    assert_eq!((chain.readable_len(), chain.writable_len()), (21, 513));
    assert_eq!((chain.descriptors, queue.in_flight()), (6, 1));
    assert_eq!(pop(&mut queue, &guest).unwrap(), None);
    assert_eq!(queue.state(), ring.state(4, 4), "not used, so not consumed");

    queue.push(&guest.dma.enter(), 0xfffe, 513).unwrap();
    assert_eq!(ring.used(4), Some((0xfffe, 513, true)));
    assert!((5..10).all(|place| ring.used(place).is_none()));
    assert_eq!(queue.in_flight(), 0);
    assert_eq!(ring.state(10, 10).avail, 3, "the second lap");
    assert_eq!(queue.stop(), ring.state(10, 10));
}

#[test]
fn nothing_written_is_used_without_the_write_flag() {
    let guest = guest();
    let ring = TestPacked::new(&guest, BASE, 3);
    ring.offer(0, &[ONE]);
    let mut queue = start(&ring, ring.config());
    pop(&mut queue, &guest).unwrap().unwrap();
    queue.push(&guest.dma.enter(), 0, 0).unwrap();
    assert_eq!(ring.used(0), Some((0, 0, false)));
}

#[test]
fn an_indirect_table_counts_whole_and_only_write_is_looked_at_in_it() {
    let guest = guest();
    let ring = TestPacked::new(&guest, BASE, 3);
    // Not aligned: only the queue's own areas have to be.
    let table = ring.end() + 1;
    let ignored = !WRITE;
    table_entry(&guest, table, 0, desc(0x2000, 8, 77, ignored));
    table_entry(&guest, table, 1, desc(0x3000, 0, 78, ignored));
    table_entry(&guest, table, 2, desc(0x4000, 9, 79, WRITE));
    ring.offer(0, &[desc(table, 3 * 16, 5, INDIRECT | WRITE)]);
    let mut queue = start(&ring, ring.config());
    let chain = pop(&mut queue, &guest).unwrap().unwrap();
    assert_eq!((chain.head, chain.descriptors), (5, 4));
    assert_eq!(chain.readable, [(0x2000, 8)]);
    assert_eq!(chain.writable, [(0x4000, 9)]);
    queue.push(&guest.dma.enter(), 5, 9).unwrap();
    assert_eq!(queue.stop(), ring.state(1, 1));
}

#[test]
fn a_descriptor_is_taken_in_its_own_lap_only() {
    let guest = guest();
    let ring = TestPacked::new(&guest, BASE, 2);
    for lap in [0, 1, 2, 3] {
        let mut queue = start(&ring, ring.config_at(2 * lap, 2 * lap));
        for flags in [0, 0x80, 0x8000, 0x8080] {
            ring.raw(0, desc(0x1000, 1, 0, flags));
            let there = pop(&mut queue, &guest).unwrap().is_some();
            assert_eq!(there, flags == ring.owner(2 * lap), "{lap}: {flags:#x}");
            if there {
                queue.unpop();
            }
        }
    }
}

/// Each breaks the queue, with a reason that names it, at the chain it stands in; a queue started
/// again from that state works once the chain is mended.
#[test]
fn every_malformed_chain_breaks_the_queue_and_leaves_a_state_that_works() {
    type Spoil = fn(&TestPacked<'_>);
    let cases: [(&str, Spoil); 12] = [
        ("longer than the 4 entries", |r| {
            r.offer(1, &[desc(0x1000, 1, 1, NEXT); 4]);
        }),
        ("longer than the 4 entries", |r| {
            r.offer(1, &[desc(0x1000, 0, 1, NEXT); 4]);
        }),
        ("not available", |r| {
            r.offer(1, &[desc(0x1000, 1, 1, NEXT)]);
        }),
        ("not available", |r| {
            r.raw(2, desc(0x1000, 1, 1, r.owner(5 + 2)));
            r.offer(1, &[desc(0x1000, 1, 1, NEXT)]);
        }),
        ("a readable buffer after a writable one", |r| {
            r.offer(1, &[desc(0x1000, 1, 1, NEXT | WRITE), ONE]);
        }),
        ("INDIRECT in a list", |r| {
            r.offer(1, &[desc(r.end(), 16, 1, INDIRECT | NEXT), ONE]);
        }),
        ("INDIRECT in a list", |r| {
            let table = desc(r.end(), 16, 1, INDIRECT);
            r.offer(1, &[desc(0x1000, 1, 1, NEXT), table]);
        }),
        ("an indirect table of 0 bytes", |r| {
            r.offer(1, &[desc(r.end(), 0, 1, INDIRECT)]);
        }),
        ("an indirect table of 17 bytes", |r| {
            r.offer(1, &[desc(r.end(), 17, 1, INDIRECT)]);
        }),
        ("an indirect table of 1048576 bytes", |r| {
            r.offer(1, &[desc(r.end(), 65536 * 16, 1, INDIRECT)]);
        }),
        ("descriptor 0: no Read access", |r| {
            r.offer(1, &[desc(0x10, 16, 1, INDIRECT)]);
        }),
        ("bytes long, or wrap", |r| {
            r.offer(1, &[desc(0x1000, u32::MAX, 1, NEXT), desc(0, 2, 1, 0)]);
        }),
    ];
    for (reason, spoil) in cases {
        let guest = guest();
        let ring = TestPacked::new(&guest, BASE, 5);
        ring.offer(0, &[ONE]);
        spoil(&ring);
        let mut queue = start(&ring, ring.config());
        let good = pop(&mut queue, &guest).unwrap().unwrap();
        let what = broken(pop(&mut queue, &guest));
        assert!(what.contains(reason), "{what} does not say: {reason}");
        broken(pop(&mut queue, &guest));
        // What was popped before can still be used.
        queue.push(&guest.dma.enter(), good.head, 0).unwrap();
        let state = queue.stop();
        assert_eq!(state, ring.state(1, 1), "{reason}");

        ring.offer(1, &[ONE]);
        let mut queue = start(&ring, ring.config_at(1, 1));
        assert_eq!(pop(&mut queue, &guest).unwrap(), Some(good), "{reason}");
    }
}

#[test]
fn entries_in_flight_are_bounded_by_the_ring_cve_2016_5403() {
    let guest = guest();
    let ring = TestPacked::new(&guest, BASE, 4);
    let mut queue = start(&ring, ring.config());
    for place in 0..4 {
        ring.offer(place, &[ONE]);
        pop(&mut queue, &guest).unwrap().unwrap();
    }
    assert_eq!(pop(&mut queue, &guest).unwrap(), None);
    // None was used, so a fifth cannot be the driver's to offer.
    ring.offer(4, &[ONE]);
    broken(pop(&mut queue, &guest));
    assert_eq!(queue.in_flight(), 4);
    assert_eq!(queue.stop(), ring.state(0, 0));
}

#[test]
fn a_configuration_is_judged_before_it_starts() {
    let guest = guest();
    let good = TestPacked::new(&guest, BASE, 6).config();
    start(&TestPacked::new(&guest, BASE, 6), good);
    let end = BASE + MEM;
    let bad = |change: fn(&mut QueueConfig, u64)| {
        let mut config = good;
        change(&mut config, end);
        Virtqueue::start(config, &guest.dma.enter()).unwrap_err()
    };
    let broken: [fn(&mut QueueConfig, u64); 10] = [
        |c, _| c.size = 0,
        |c, _| c.size = 32769,
        |c, _| c.desc += 8,
        |c, _| c.driver += 2,
        |c, _| c.device += 2,
        |c, _| c.desc = u64::MAX - 15,
        |c, _| c.state.avail = 0x8006,
        |c, _| c.state.used = 6,
        // Seven ahead, and one behind.
        |c, _| c.state.avail = 1,
        |c, _| c.state.used = 0x8001,
    ];
    for (n, change) in broken.into_iter().enumerate() {
        let error = bad(change);
        assert!(matches!(error, QueueError::Broken { .. }), "{n}: {error}");
    }
    let unmapped: [fn(&mut QueueConfig, u64); 4] = [
        |c, _| c.desc = 0x1000,
        |c, end| c.desc = end - 80,
        |c, end| c.driver = end,
        |c, end| c.device = end,
    ];
    for (n, change) in unmapped.into_iter().enumerate() {
        let error = bad(change);
        assert!(matches!(error, QueueError::Ring { .. }), "{n}: {error}");
    }
    for area in [good.desc, good.device] {
        let offset = area - BASE;
        let (file, read) = (&guest.file, Permissions::Read);
        guest.dma.map(area, 4096, file, offset, read).unwrap();
        let error = Virtqueue::start(good, &guest.dma.enter()).unwrap_err();
        assert!(matches!(error, QueueError::Ring { .. }), "{error}");
        guest.map();
    }
}

#[test]
fn a_restored_queue_goes_on_where_the_state_says_and_notifies_once() {
    let guest = guest();
    let ring = TestPacked::new(&guest, BASE, 5);
    for event_idx in [false, true] {
        // Three entries were consumed and lost by whoever had the queue before.
        for (avail, used) in [(8, 5), (5, 5), (3, 0), (12, 9)] {
            ring.offer(avail, &[ONE]);
            ring.want(0, 1);
            let config = QueueConfig {
                event_idx,
                ..ring.config_at(avail, used)
            };
            let mut queue = start(&ring, config);
            assert_eq!(u64::from(queue.in_flight()), avail - used);
            let mem = guest.dma.enter();
            assert!(queue.needs_notification(&mem).unwrap());
            assert!(!queue.needs_notification(&mem).unwrap());
            queue.pop(&mem).unwrap().unwrap();
            queue.push(&mem, 0, 1).unwrap();
            assert!(ring.used(used).is_some());
            assert_eq!(queue.stop(), ring.state(avail + 1, used + 1));
        }
        let config = QueueConfig {
            event_idx,
            ..ring.config()
        };
        let fresh = start(&ring, config).needs_notification(&guest.dma.enter());
        assert!(!fresh.unwrap());
    }
}

#[test]
fn what_is_popped_last_can_be_given_back() {
    let guest = guest();
    let ring = TestPacked::new(&guest, BASE, 3);
    let mut queue = start(&ring, ring.config_at(2, 2));
    ring.offer(2, &[desc(0x1000, 1, 1, NEXT), desc(0x1000, 1, 1, 0)]);
    let chain = pop(&mut queue, &guest).unwrap().unwrap();
    ring.offer(4, &[ONE]);
    pop(&mut queue, &guest).unwrap().unwrap();
    queue.unpop();
    queue.unpop();
    queue.unpop();
    assert_eq!((queue.in_flight(), queue.state()), (0, ring.state(2, 2)));
    assert_eq!(pop(&mut queue, &guest).unwrap(), Some(chain));
}

#[test]
fn pushes_out_of_order_or_too_many_are_refused() {
    let guest = guest();
    let ring = TestPacked::new(&guest, BASE, 4);
    let mut queue = start(&ring, ring.config());
    queue.push(&guest.dma.enter(), 0, 0).unwrap_err();
    let next = ring.offer(0, &[ONE]);
    ring.offer(next, &[desc(0x1000, 1, 3, 0)]);
    let mut queue = start(&ring, ring.config());
    pop(&mut queue, &guest).unwrap().unwrap();
    pop(&mut queue, &guest).unwrap().unwrap();
    queue.push(&guest.dma.enter(), 3, 0).unwrap_err();
    assert_eq!(queue.stop(), ring.state(0, 0));
}

#[test]
fn rings_that_vanish_are_errors_that_a_queue_at_rest_outlasts() {
    let guest = guest();
    let ring = TestPacked::new(&guest, BASE, 4);
    ring.offer(0, &[ONE]);
    let mut queue = start(&ring, ring.config());
    guest.dma.unmap(ring.desc, 4096);
    let error = pop(&mut queue, &guest).unwrap_err();
    assert!(queue.outlasts(&error), "{error}");
    guest.map();
    pop(&mut queue, &guest).unwrap().unwrap();
    guest.dma.unmap(ring.desc, 4096);
    let error = queue.push(&guest.dma.enter(), 0, 0).unwrap_err();
    assert!(matches!(error, QueueError::Ring { .. }) && !queue.outlasts(&error));
    broken(pop(&mut queue, &guest));
    assert_eq!(queue.stop(), ring.state(0, 0));

    guest.map();
    let mut queue = start(&ring, ring.config());
    pop(&mut queue, &guest).unwrap().unwrap();
    queue.push(&guest.dma.enter(), 0, 0).unwrap();
    guest.dma.unmap(ring.driver, 8192);
    let error = queue.needs_notification(&guest.dma.enter()).unwrap_err();
    assert!(queue.outlasts(&error), "{error}");
    queue.enable_notification(&guest.dma.enter()).unwrap_err();
    guest.map();
    assert!(
        queue.needs_notification(&guest.dma.enter()).unwrap(),
        "owed"
    );
    assert!(!queue.enable_notification(&guest.dma.enter()).unwrap());
}

#[test]
fn notifications_are_asked_for_and_declined() {
    let guest = guest();
    let ring = TestPacked::new(&guest, BASE, 3);
    let mem = || guest.dma.enter();
    for (event_idx, asked) in [(false, (0, 0)), (true, (0x8002, 2))] {
        let config = QueueConfig {
            event_idx,
            ..ring.config_at(2, 2)
        };
        let mut queue = start(&ring, config);
        queue.disable_notification(&mem()).unwrap();
        assert_eq!(ring.wanted(), (0, 1));
        ring.raw(2, desc(0, 0, 0, 0));
        assert!(!queue.enable_notification(&mem()).unwrap());
        assert_eq!(ring.wanted(), asked);
        ring.offer(2, &[ONE]);
        assert!(queue.enable_notification(&mem()).unwrap());
        pop(&mut queue, &guest).unwrap().unwrap();
        assert!(!queue.enable_notification(&mem()).unwrap());
        assert_eq!(ring.wanted(), if event_idx { (0, 2) } else { (0, 0) });
    }
}

#[test]
fn interrupts_follow_the_flags() {
    let guest = guest();
    let ring = TestPacked::new(&guest, BASE, 3);
    // The third is for RING_EVENT_IDX only, the fourth is reserved; the upper bits are too.
    for event_idx in [false, true] {
        let config = QueueConfig {
            event_idx,
            ..ring.config()
        };
        let mut queue = start(&ring, config);
        let flags = [
            (0, true),
            (1, false),
            (2, !event_idx),
            (3, true),
            (0xfffd, false),
        ];
        for (place, (flags, notifies)) in (0..).zip(flags) {
            // The place that is just ahead.
            ring.want(ring.bits(place + 1), flags);
            ring.offer(place, &[ONE]);
            let mem = guest.dma.enter();
            queue.pop(&mem).unwrap().unwrap();
            queue.push(&mem, 0, 0).unwrap();
            assert_eq!(queue.needs_notification(&mem).unwrap(), notifies, "{flags}");
            // Nothing was used since.
            assert!(!queue.needs_notification(&mem).unwrap());
        }
        if event_idx {
            // A place that the ring does not have: rather one too many.
            ring.want(0x8003, 2);
            ring.offer(5, &[ONE]);
            let mem = guest.dma.enter();
            queue.pop(&mem).unwrap().unwrap();
            queue.push(&mem, 0, 0).unwrap();
            assert!(queue.needs_notification(&mem).unwrap());
        }
    }
}

#[test]
fn the_largest_ring_and_one_of_one_entry_go_round() {
    let guest = Guest::new(2 << 20);
    for size in [1, 32767, 32768] {
        let ring = TestPacked::new(&guest, BASE, size);
        let mut queue = start(&ring, ring.config());
        let mut place = 0;
        for _ in 0..3 {
            let begin = place;
            for _ in 0..size {
                place = ring.offer(place, &[desc(0x1000, 1, 7, 0)]);
            }
            let mem = guest.dma.enter();
            while queue.pop(&mem).unwrap().is_some() {}
            assert_eq!(queue.in_flight(), size);
            while queue.in_flight() != 0 {
                queue.push(&mem, 7, 9).unwrap();
            }
            assert_eq!(ring.used(begin), Some((7, 9, true)));
            assert_eq!(ring.used(place - 1), Some((7, 9, true)));
            assert_eq!(queue.state(), ring.state(place, place));
        }
    }
}

#[test]
fn every_page_that_the_queue_writes_is_marked_and_no_other() {
    let guest = guest();
    let ring = TestPacked::new(&guest, BASE, 1000);
    let bitmap = ring.end();
    let begin = 500;
    let mut queue = start(&ring, ring.config_at(begin, begin));
    guest.dma.set_tracker(TrackerConfig {
        enabled: true,
        bitmap_addr: bitmap,
        bitmap_length: (BASE + MEM) / 4096 / 8,
        ..TrackerConfig::default()
    });
    ring.offer(begin, &[ONE]);
    let mem = guest.dma.enter();
    queue.enable_notification(&mem).unwrap();
    queue.pop(&mem).unwrap().unwrap();
    queue.push(&mem, 0, 0).unwrap();
    let page = |iova: u64| iova / 4096;
    let mut marked = Vec::new();
    for at in page(BASE)..page(ring.end()) {
        let byte = guest.read(bitmap + at / 8, 1)[0];
        marked.extend((byte >> (at % 8) & 1 == 1).then_some(at));
    }
    let written = [page(ring.desc + 16 * begin), page(ring.device)];
    assert_eq!(marked, written);
}

/// The walk, slowly: all descriptors of the list first, then every rule on it.
fn naive_walk(ring: &[Desc], inner: &[Desc]) -> Option<(Chain, usize)> {
    let last = ring.iter().position(|d| d.flags & NEXT == 0)?;
    let mut list = ring[..=last].to_vec();
    if list.iter().any(|d| d.flags & (0x80 | 0x8000) != 0x80) {
        return None;
    }
    let (id, entries, mut visited) = (list[last].id, list.len(), list.len());
    if list.iter().any(|d| d.flags & INDIRECT != 0) {
        let [table] = list[..] else { return None };
        let count = usize::try_from(table.len / 16).ok()?;
        if table.len % 16 != 0 || count == 0 {
            return None;
        }
        list = inner[..count].to_vec();
        visited += count;
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
    let chain = Chain {
        head: id,
        readable: side(0),
        writable: side(WRITE),
        descriptors: u32::try_from(visited).ok()?,
    };
    Some((chain, entries))
}

const INNER: u64 = BASE + 0x8000;

fn raw() -> impl Strategy<Value = Desc> {
    let owner = prop_oneof![9 => Just(0x80_u16), 1 => any::<u16>().prop_map(|f| f & 0x8080)];
    let data = (0..0x1000u64, 0..3u32, any::<u16>(), 0..4u16);
    let data = data.prop_map(|(addr, len, id, flags)| desc(addr, len, id, flags));
    let indirect = (0..9u32, 0..16u32, any::<u16>(), 0..4u16).prop_map(|(n, odd, id, more)| {
        let len = 16 * n + if odd == 0 && n < 8 { 3 } else { 0 };
        desc(INNER, len, id, INDIRECT | if more == 0 { NEXT } else { 0 })
    });
    let either = prop_oneof![6 => data, 1 => indirect];
    (either, owner).prop_map(|(d, owner)| Desc {
        flags: d.flags | owner,
        ..d
    })
}

proptest! {
    #[test]
    fn the_walk_agrees_with_a_naive_one(
        table in prop::collection::vec(raw(), 1..9),
        inner in prop::collection::vec(raw(), 8),
    ) {
        let guest = guest();
        let ring = TestPacked::new(&guest, BASE, u16::try_from(table.len()).unwrap());
        for (place, d) in (0..).zip(&table) {
            ring.raw(place, *d);
        }
        for (index, d) in (0..).zip(&inner) {
            table_entry(&guest, INNER, index, *d);
        }
        let mut queue = start(&ring, ring.config());
        let popped = pop(&mut queue, &guest).ok().flatten();
        let naive = naive_walk(&table, &inner);
        prop_assert_eq!(&popped, &naive.as_ref().map(|(chain, _)| chain.clone()));
        if let (Some(chain), Some((_, entries))) = (popped, naive) {
            queue.push(&guest.dma.enter(), chain.head, 0).unwrap();
            let end = u64::try_from(entries).unwrap();
            prop_assert_eq!(queue.state(), ring.state(end, end));
        }
    }

    /// Notify if and only if one of the entries used since the last time is the one asked for.
    #[test]
    fn events_agree_with_a_naive_count(
        size in 1..9u16,
        start_at in 0..40u64,
        batches in prop::collection::vec((0..6u16, 1..3usize, -8..8i64), 1..8),
    ) {
        let guest = guest();
        let ring = TestPacked::new(&guest, BASE, size);
        let mut at = start_at;
        let config = QueueConfig { event_idx: true, ..ring.config_at(at, at) };
        let mut queue = start(&ring, config);
        queue.needs_notification(&guest.dma.enter()).unwrap();
        let laps = 2 * u64::from(size);
        for (count, entries, event) in batches {
            let entries = entries.min(usize::from(size));
            let event = at.checked_add_signed(event).unwrap_or(at);
            ring.want(ring.bits(event), 2);
            let mut asked_for = false;
            for _ in 0..count {
                let mut list = vec![desc(0x1000, 1, 0, NEXT); entries];
                list.last_mut().unwrap().flags = 0;
                let next = ring.offer(at, &list);
                pop(&mut queue, &guest).unwrap();
                queue.push(&guest.dma.enter(), 0, 0).unwrap();
                asked_for |= (at..next).any(|place| place % laps == event % laps);
                at = next;
            }
            let notify = queue.needs_notification(&guest.dma.enter()).unwrap();
            prop_assert_eq!(notify, asked_for);
        }
    }
}
