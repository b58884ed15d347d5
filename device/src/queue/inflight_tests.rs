//! The table under a device that is killed after every single store to it, and tables that lie.
//!
//! Offsets are typed again from the vhost-user protocol, not taken from the code.

use super::*;
use crate::queue::test_ring::{BASE, Guest, TestRing, WRITE};
use crate::queue::{QueueConfig, Virtqueue};
use proptest::prelude::*;
use spec::queue_state::QueueState;
use std::cell::RefCell;
use std::os::unix::fs::FileExt;

const SIZE: u16 = 8;
const GUEST: u64 = 0x10000;

/// What would be left if the device were killed now: guest memory and the table.
#[derive(Clone)]
struct Remains {
    memory: Vec<u8>,
    table: Vec<u8>,
}

type Observer = Box<dyn FnMut()>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Called after each store to a table.
pub(super) fn stored() {
    OBSERVER.with_borrow_mut(|observer| {
        if let Some(observer) = observer {
            observer();
        }
    });
}

fn shape(queues: u16) -> InflightShape {
    InflightShape {
        queues,
        queue_size: SIZE,
    }
}

fn contents(file: &File) -> Vec<u8> {
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn file_of(bytes: &[u8]) -> File {
    let file = File::from(memfd_create("remains", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn part(file: &File) -> InflightQueue {
    let shape = shape(1);
    let table = InflightTable::open(file, 0, shape.bytes(), shape).unwrap();
    table.queue(0).unwrap()
}

/// A guest with a ring at its beginning whose descriptor n is a chain of its own.
fn guest() -> Guest {
    let guest = Guest::new(GUEST);
    let ring = TestRing::new(&guest, BASE, SIZE);
    for head in 0..SIZE {
        ring.set(head, BASE + 0x8000, 4, WRITE, 0);
    }
    guest
}

fn ring(guest: &Guest) -> TestRing<'_> {
    TestRing::new(guest, BASE, SIZE)
}

fn start(guest: &Guest, table: &File) -> Result<Virtqueue, QueueError> {
    Virtqueue::start_noted(ring(guest).config(), part(table), &guest.dma.enter())
}

fn pop(queue: &mut Virtqueue, guest: &Guest) -> Option<u16> {
    let chain = queue.pop(&guest.dma.enter()).unwrap();
    chain.map(|chain| chain.head)
}

fn push(queue: &mut Virtqueue, guest: &Guest, head: u16) {
    queue.push(&guest.dma.enter(), head, 4).unwrap();
}

/// Heads in the used ring, from the first on.
fn used(guest: &Guest, from: u16) -> Vec<u16> {
    let ring = ring(guest);
    let heads = (from..ring.used_idx()).map(|idx| ring.used_at(idx).0);
    heads.map(|head| u16::try_from(head).unwrap()).collect()
}

/// A step of a device: take a chain, or use the nth of those it has.
#[derive(Clone, Copy, Debug)]
enum Step {
    Pop,
    Push(usize),
}

/// Runs `steps` on a ring where `offered` is available, and returns what would be left after each
/// store, with the heads that were popped by then, in that order.
fn killed_everywhere(offered: &[u16], steps: &[Step]) -> Vec<(Remains, Vec<u16>)> {
    let guest = guest();
    offered.iter().for_each(|&head| ring(&guest).offer(head));
    let table = InflightTable::new_file(shape(1)).unwrap();
    let mut queue = start(&guest, &table).unwrap();

    let remains = std::rc::Rc::new(RefCell::new(Vec::new()));
    let sink = std::rc::Rc::clone(&remains);
    let (memory, notes) = (guest.file.try_clone().unwrap(), table.try_clone().unwrap());
    OBSERVER.set(Some(Box::new(move || {
        sink.borrow_mut().push(Remains {
            memory: contents(&memory),
            table: contents(&notes),
        });
    })));
    let mut popped = Vec::new();
    let mut held = Vec::new();
    let mut result = Vec::new();
    for step in steps {
        match *step {
            Step::Pop => {
                if let Some(head) = pop(&mut queue, &guest) {
                    held.push(head);
                    popped.push(head);
                }
            }
            Step::Push(n) if !held.is_empty() => {
                let head = held.remove(n % held.len());
                push(&mut queue, &guest, head);
            }
            Step::Push(_) => {}
        }
        let now = remains.borrow_mut().drain(..).collect::<Vec<_>>();
        result.extend(now.into_iter().map(|remains| (remains, popped.clone())));
    }
    OBSERVER.set(None);
    result
}

/// A second device takes over: everything offered is used exactly once in the end, nothing that was
/// used is done again, and what was in flight is done again in its order.
fn takes_over(remains: &Remains, offered: &[u16], popped: &[u16]) {
    let guest = guest();
    guest.write(BASE, &remains.memory);
    let table = file_of(&remains.table);
    let before = used(&guest, 0);

    let mut queue = start(&guest, &table).unwrap();
    let inherited = queue.inherited();
    let again: Vec<u16> = std::iter::from_fn(|| pop(&mut queue, &guest)).collect();
    for &head in &again {
        assert!(!before.contains(&head), "{head} is done a second time");
        push(&mut queue, &guest, head);
    }
    let mut all = used(&guest, 0);
    all.sort_unstable();
    let mut expected = offered.to_vec();
    expected.sort_unstable();
    assert_eq!(all, expected, "lost or doubled");
    let flying: Vec<u16> = popped
        .iter()
        .copied()
        .filter(|head| again[..inherited].contains(head))
        .collect();
    assert_eq!(again[..inherited], flying, "not in their order");
    assert_eq!(queue.in_flight(), 0);
    assert_eq!(queue.stop().avail, u16::try_from(offered.len()).unwrap());
}

#[test]
fn a_kill_after_any_store_loses_nothing_and_doubles_nothing() {
    use Step::{Pop, Push};
    let offered = [3, 1, 7, 0, 5];
    let steps = [
        Pop,
        Pop,
        Push(0),
        Pop,
        Pop,
        Push(2),
        Push(0),
        Pop,
        Push(1),
        Push(0),
    ];
    let points = killed_everywhere(&offered, &steps);
    // Two stores for each pop, four for each push.
    assert_eq!(points.len(), 5 * 2 + 5 * 4);
    for (remains, popped) in &points {
        takes_over(remains, &offered, popped);
    }
}

/// The negative control: the same without the table.
#[test]
fn without_the_table_a_kill_loses_what_was_in_flight() {
    use Step::{Pop, Push};
    let offered = [3, 1, 7];
    let points = killed_everywhere(&offered, &[Pop, Pop, Pop, Push(1)]);
    let (remains, _) = points.last().unwrap();
    let guest = guest();
    guest.write(BASE, &remains.memory);
    let state = spec::queue_state::QueueState { avail: 3, used: 1 };
    let config = ring(&guest).config_at(state);
    let mut queue = Virtqueue::start(config, &guest.dma.enter()).unwrap();
    assert_eq!(pop(&mut queue, &guest), None);
    assert_eq!(used(&guest, 0), [1]);
}

proptest! {
    #[test]
    fn any_order_of_work_can_be_killed_anywhere(
        steps in prop::collection::vec(
            prop_oneof![Just(Step::Pop), (0usize..8).prop_map(Step::Push)], 1..24),
        offered in Just((0..SIZE).collect::<Vec<_>>()).prop_shuffle(),
        seed in any::<prop::sample::Index>(),
    ) {
        let points = killed_everywhere(&offered, &steps);
        if !points.is_empty() {
            let (remains, popped) = seed.get(&points);
            takes_over(remains, &offered, popped);
        }
    }
}

#[test]
fn a_table_goes_on_where_the_ring_stands() {
    // A ring that has gone around, and an empty table made afterwards.
    let guest = guest();
    let ring = ring(&guest);
    ring.set_used_idx(0xfffe);
    ring.set_avail_idx(0xfffe);
    ring.offer(2);
    ring.offer(4);
    ring.offer(6);
    let table = InflightTable::new_file(shape(1)).unwrap();
    let mut queue = start(&guest, &table).unwrap();
    assert_eq!(queue.inherited(), 0);
    assert_eq!(pop(&mut queue, &guest), Some(2));
    assert_eq!(pop(&mut queue, &guest), Some(4));
    push(&mut queue, &guest, 4);
    drop(queue);
    let mut queue = start(&guest, &table).unwrap();
    assert_eq!(queue.inherited(), 1);
    assert_eq!(pop(&mut queue, &guest), Some(2));
    assert_eq!(pop(&mut queue, &guest), Some(6));
}

#[test]
fn each_queue_has_its_own_part() {
    let shape = shape(3);
    let file = InflightTable::new_file(shape).unwrap();
    let bytes = contents(&file);
    // 16 bytes and 8 times 16, rounded up to a multiple of 64.
    assert_eq!(bytes.len(), 3 * 192);
    for part in bytes.chunks(192) {
        assert_eq!(part[8..16], [1, 0, 8, 0, 0, 0, 0, 0]);
    }
    let table = InflightTable::open(&file, 0, shape.bytes(), shape).unwrap();
    let mut last = table.queue(2).unwrap();
    last.recover(SIZE, 0).unwrap();
    last.popped(1);
    last.popped(0);
    assert!(table.queue(3).is_none());
    let bytes = contents(&file);
    assert!(bytes[16..192].iter().all(|&byte| byte == 0));
    // Entry 0: in flight, popped second.
    assert_eq!(bytes[384 + 16], 1);
    assert_eq!(bytes[384 + 24..384 + 32], 1u64.to_ne_bytes());
}

#[test]
fn what_cannot_be_a_table_is_refused() {
    let file = InflightTable::new_file(shape(1)).unwrap();
    let open = |offset, bytes, queues, queue_size| {
        InflightTable::open(&file, offset, bytes, InflightShape { queues, queue_size })
    };
    let bytes = shape(1).bytes();
    assert!(matches!(
        open(0, bytes, 0, 8),
        Err(InflightError::Shape { .. })
    ));
    assert!(matches!(
        open(0, bytes, 1, 0),
        Err(InflightError::Shape { .. })
    ));
    assert!(matches!(
        open(4, bytes, 1, 8),
        Err(InflightError::Shape { .. })
    ));
    assert!(matches!(
        open(0, bytes - 1, 1, 8),
        Err(InflightError::Short { .. })
    ));
    // It says that it is long enough, and is not.
    assert!(matches!(
        open(0, 1 << 40, 1, 256),
        Err(InflightError::File(_))
    ));
    assert!(matches!(
        open(u64::MAX - 7, bytes, 1, 8),
        Err(InflightError::File(_))
    ));
    assert!(matches!(open(64, bytes, 1, 8), Err(InflightError::File(_))));
}

/// Tables that say what no device can have written for this ring.
#[test]
fn a_table_that_lies_breaks_its_queue() {
    let guest = guest();
    let ring = ring(&guest);
    ring.offer(0);
    ring.offer(1);
    let entry = |head: u64| 16 + 16 * head;
    let lies: [&[(u64, &[u8])]; 8] = [
        // Version; entries beyond its file; entries below the ring's.
        &[(8, &[2, 0])],
        &[(10, &[0xff, 0xff])],
        &[(10, &[4, 0])],
        // No flag.
        &[(entry(0), &[7])],
        // More in flight than was made available.
        &[(entry(0), &[1]), (entry(1), &[1]), (entry(2), &[1])],
        // The end of the counter.
        &[(entry(0), &[1]), (entry(0) + 8, &[0xff; 8])],
        // A last batch that begins outside, or is longer than the table.
        &[(entry(0), &[1]), (12, &[0xff, 0xff, 0xff, 0xff])],
        &[(entry(0), &[1]), (14, &[0x80, 0])],
    ];
    for lie in lies {
        let table = InflightTable::new_file(shape(1)).unwrap();
        for (at, bytes) in lie {
            table.write_all_at(bytes, *at).unwrap();
        }
        let error = start(&guest, &table).unwrap_err();
        assert!(
            matches!(error, QueueError::Broken { .. }),
            "{lie:?}: {error}"
        );
    }
    assert!(start(&guest, &InflightTable::new_file(shape(1)).unwrap()).is_ok());
}

#[test]
fn a_queue_that_drains_pops_only_what_it_inherited() {
    let guest = guest();
    [1, 2, 3].iter().for_each(|&head| ring(&guest).offer(head));
    let table = InflightTable::new_file(shape(1)).unwrap();
    let mut queue = start(&guest, &table).unwrap();
    assert_eq!(pop(&mut queue, &guest), Some(1));
    drop(queue);
    let mut queue = start(&guest, &table).unwrap();
    queue.gate().close();
    assert_eq!(pop(&mut queue, &guest), Some(1));
    assert_eq!(pop(&mut queue, &guest), None);
    push(&mut queue, &guest, 1);
    assert_eq!(queue.stop().avail, 1);
}

/// Pops some of what the guest offers, and is gone.
fn killed_with(flying: u16, table: &File) -> Guest {
    let guest = guest();
    [3, 5, 1, 7]
        .iter()
        .for_each(|&head| ring(&guest).offer(head));
    let mut queue = start(&guest, table).unwrap();
    for _ in 0..flying {
        queue.pop(&guest.dma.enter()).unwrap().unwrap();
    }
    guest
}

fn start_from(guest: &Guest, table: &File, avail: u16) -> Result<Virtqueue, QueueError> {
    let config = QueueConfig {
        state: QueueState { avail, used: 0 },
        ..ring(guest).config()
    };
    Virtqueue::start_from(config, part(table), &guest.dma.enter())
}

#[test]
fn the_state_says_whether_a_table_counts() {
    let table = InflightTable::new_file(shape(1)).unwrap();
    let guest = killed_with(3, &table);

    for wrong in [1, 2, 4] {
        let error = start_from(&guest, &table, wrong).unwrap_err();
        assert!(error.to_string().contains("3 chains in flight"), "{error}");
    }
    let mut queue = start_from(&guest, &table, 3).unwrap();
    let heads: Vec<u16> = std::iter::from_fn(|| queue.pop(&guest.dma.enter()).unwrap())
        .map(|chain| chain.head)
        .collect();
    assert_eq!(
        heads,
        [3, 5, 1, 7],
        "what was in flight, then what is available"
    );
}

#[test]
fn what_an_earlier_life_left_is_not_taken_for_a_later_ones() {
    let table = InflightTable::new_file(shape(1)).unwrap();
    killed_with(4, &table);

    let fresh = guest();
    ring(&fresh).offer(2);
    let mut queue = start_from(&fresh, &table, 0).unwrap();
    assert_eq!(queue.inherited(), 0);
    let chain = queue.pop(&fresh.dma.enter()).unwrap().unwrap();
    assert_eq!(chain.head, 2);
    assert_eq!(
        part(&table).recover(SIZE, 0).unwrap(),
        [2],
        "and only that is noted"
    );
    queue.push(&fresh.dma.enter(), 2, 0).unwrap();
    assert!(part(&table).recover(SIZE, 1).unwrap().is_empty());

    // Not a table at all: whatever it says, a queue with nothing in flight begins a new one.
    let noise = file_of(&vec![0xa5; contents(&table).len()]);
    let queue = start_from(&fresh, &noise, 0).unwrap();
    assert_eq!(queue.inherited(), 0);
    assert!(part(&noise).recover(SIZE, 0).unwrap().is_empty());
}
