//! The frontend against a backend that speaks by hand.

mod peer;

use super::*;
use crate::dirty::DirtySet;
use crate::queue::{PackedQueue, SplitQueue};
use peer::*;
use std::os::unix::fs::FileExt;

/// Only turns a hang into a failure.
const HANG: Duration = Duration::from_secs(60);
const NONE: Features = Features::empty();

fn start(manner: Manner) -> (Peer, Frontend) {
    let (peer, socket) = Peer::start(manner);
    (peer, Frontend::from_stream(socket, HANG).unwrap())
}

/// A connected frontend with memory and one queue in it, set up and running.
fn running(manner: Manner) -> (Peer, Frontend, SharedMemory, QueueEvents) {
    let (peer, mut frontend) = start(manner);
    frontend.negotiate(NONE, Features::VERSION_1).unwrap();
    let memory = SharedMemory::new(0x10_0000, 1 << 20).unwrap();
    frontend.share(&[&memory]).unwrap();
    let queue = SplitQueue::new(memory.window().clone(), 64, NONE).unwrap();
    let events = frontend.start_queue(1, queue.setup(0), 5).unwrap();
    (peer, frontend, memory, events)
}

fn kinds(requests: &[Request]) -> Vec<u32> {
    requests.iter().map(|request| request.kind).collect()
}

fn only(requests: &[Request], kind: u32) -> Vec<&Request> {
    requests
        .iter()
        .filter(|request| request.kind == kind)
        .collect()
}

#[test]
fn queues_start_in_order_with_what_they_are() {
    let (peer, mut frontend, memory, _events) = running(Manner::default());
    assert_eq!(frontend.num_queues(), 2);
    assert_eq!(frontend.config(60).unwrap(), [0x5a; 60]);
    assert_eq!(frontend.stop_queue(1).unwrap(), 7);
    drop(frontend);
    let requests = peer.requests();
    assert_eq!(
        kinds(&requests),
        [
            GET_FEATURES,
            GET_PROTOCOL_FEATURES,
            SET_PROTOCOL_FEATURES,
            GET_QUEUE_NUM,
            SET_OWNER,
            SET_FEATURES,
            SET_MEM_TABLE,
            SET_VRING_NUM,
            SET_VRING_BASE,
            SET_VRING_ADDR,
            SET_VRING_CALL,
            SET_VRING_KICK,
            SET_VRING_ENABLE,
            GET_CONFIG,
            GET_VRING_BASE,
        ]
    );
    let [table] = only(&requests, SET_MEM_TABLE)[..] else {
        panic!("one table")
    };
    let (address, len, user) = (table.u64(8), table.u64(16), table.u64(24));
    assert_eq!((address, len), (0x10_0000, 1 << 20));
    assert_ne!(user, address, "the two kinds of address can be told apart");
    // It is the memory that was shared.
    memory.window().write(0x8000, b"here").unwrap();
    let mut there = [0; 4];
    table.files[0].read_exact_at(&mut there, 0x8000).unwrap();
    assert_eq!(&there, b"here");
    let addresses = only(&requests, SET_VRING_ADDR)[0];
    assert_eq!((addresses.u32(0), addresses.u32(4)), (1, 0));
    // Descriptor table, used ring, available ring, in addresses of this process.
    assert_eq!(addresses.u64(8), user);
    assert!((user..user + len).contains(&addresses.u64(16)));
    assert_eq!(addresses.u64(24), user + 64 * 16);
    let base = only(&requests, SET_VRING_BASE)[0];
    assert_eq!((base.u32(0), base.u32(4)), (1, 5));
}

#[test]
fn a_packed_queue_begins_and_stops_with_both_places() {
    const BOTH: u32 = 0x8003_8003;
    let packed = Features::VERSION_1 | Features::RING_PACKED;
    for (vring_base, stops) in [(BOTH, true), (0x8003, false), (0x8004_8003, false)] {
        let mut manner = Manner {
            vring_base,
            ..Manner::default()
        };
        manner.features |= Features::RING_PACKED.bits();
        let (peer, mut frontend) = start(manner);
        frontend.negotiate(NONE, packed).unwrap();
        let memory = SharedMemory::new(0x10_0000, 1 << 20).unwrap();
        frontend.share(&[&memory]).unwrap();
        let queue = PackedQueue::new(memory.window().clone(), 64, packed).unwrap();
        frontend.start_queue(1, queue.setup(0), 0x8000).unwrap();
        let stopped = frontend.stop_queue(1);
        assert_eq!(stopped.is_ok_and(|at| at == 0x8003), stops);
        drop(frontend);
        let requests = peer.requests();
        let base = only(&requests, SET_VRING_BASE)[0];
        assert_eq!((base.u32(0), base.u32(4)), (1, 0x8000_8000));
    }
}

#[test]
fn a_backend_that_refuses_a_packed_queues_base_is_heard() {
    let packed = Features::VERSION_1 | Features::RING_PACKED;
    let mut manner = Manner {
        refuse: Some(SET_VRING_BASE),
        ..Manner::default()
    };
    manner.features |= Features::RING_PACKED.bits();
    let (_peer, mut frontend) = start(manner);
    frontend.negotiate(NONE, packed).unwrap();
    let memory = SharedMemory::new(0x10_0000, 1 << 20).unwrap();
    frontend.share(&[&memory]).unwrap();
    let queue = PackedQueue::new(memory.window().clone(), 64, packed).unwrap();
    let refused = frontend.start_queue(1, queue.setup(0), 0x8000).unwrap_err();
    assert!(refused.to_string().contains("SET_VRING_BASE"), "{refused}");
}

#[test]
fn only_what_is_offered_is_accepted() {
    let (peer, mut frontend) = start(Manner::default());
    let wanted = Features::RING_EVENT_IDX | Features::from_bits_retain(1 << 9 | 1 << 26);
    let accepted = frontend.negotiate(wanted, Features::VERSION_1).unwrap();
    assert_eq!(accepted.bits(), 1 << 32 | 1 << 9);
    let missing = frontend.negotiate(NONE, Features::RING_EVENT_IDX);
    assert!(matches!(
        missing,
        Err(VhostUserError::FeaturesMissing(Features::RING_EVENT_IDX))
    ));
    drop(frontend);
    let requests = peer.requests();
    let set = only(&requests, SET_FEATURES);
    assert_eq!(set[0].u64(0), 1 << 32 | 1 << 30 | 1 << 9);
    assert_eq!(set.len(), 1);
}

#[test]
fn the_log_is_switched_and_harvested() {
    for log_reply in [0, 8, 16] {
        let manner = Manner {
            log_reply,
            ..Manner::default()
        };
        let (peer, mut frontend, memory, _events) = running(manner);
        let mut dirty = DirtySet::new(0x1000);
        assert!(matches!(
            frontend.harvest_log(&mut dirty),
            Err(VhostUserError::NotLogging)
        ));
        frontend.start_log().unwrap();
        // The memory grows while it is on: the log is made longer first.
        let more = SharedMemory::new(0x1000_0000, 1 << 20).unwrap();
        frontend.share(&[&memory, &more]).unwrap();
        frontend.start_log().unwrap();
        frontend.stop_log().unwrap();
        assert!(!frontend.is_logging());
        drop(frontend);
        let requests = peer.requests();
        let logs = only(&requests, SET_LOG_BASE);
        let sizes: Vec<_> = logs.iter().map(|log| (log.u64(0), log.u64(8))).collect();
        // A bit for each page up to 0x20_0000, then up to 0x1010_0000, in whole pages.
        assert_eq!(sizes, [(4096, 0), (0x3000, 0), (0x3000, 0)]);
        let order = kinds(&requests);
        let at = |kind, nth: usize| {
            let places = (0..order.len()).filter(|&n| order[n] == kind);
            places.clone().nth(nth).unwrap()
        };
        assert!(at(SET_LOG_BASE, 0) < at(SET_FEATURES, 1));
        assert!(at(SET_LOG_BASE, 1) < at(SET_MEM_TABLE, 1));
        let features = only(&requests, SET_FEATURES);
        let logging: Vec<_> = features.iter().map(|set| set.u64(0) >> 26 & 1).collect();
        assert_eq!(logging, [0, 1, 1, 0]);
        let addresses = only(&requests, SET_VRING_ADDR);
        let flags: Vec<_> = addresses.iter().map(|set| set.u32(4)).collect();
        assert_eq!(flags, [0, 1, 1, 0]);
        // The used ring's guest address.
        let used = addresses[1].u64(16) - USER_BASE;
        assert_eq!(addresses[1].u64(32), used);
    }
}

#[test]
fn a_replaced_log_loses_nothing() {
    let (peer, mut frontend, _memory, _events) = running(Manner::default());
    frontend.start_log().unwrap();
    let mark = |frontend: &Frontend, page: u64| {
        let log = frontend.log.as_ref().unwrap();
        log.file.write_all_at(&[1 << (page % 8)], page / 8).unwrap();
    };
    // In what is about to be the old log.
    mark(&frontend, 0x105);
    frontend.start_log().unwrap();
    mark(&frontend, 0x106);
    let mut dirty = DirtySet::new(0x200);
    frontend.harvest_log(&mut dirty).unwrap();
    assert_eq!(dirty.iter().collect::<Vec<_>>(), [0x105, 0x106]);
    dirty.clear();
    frontend.harvest_log(&mut dirty).unwrap();
    assert!(dirty.is_empty());
    drop(frontend);
    drop(peer.requests());
}

#[test]
fn the_log_is_a_source_of_dirty_pages() {
    use crate::dirty::{DirtyError, DirtySource};
    use std::sync::{Arc, Mutex};
    let (peer, frontend, _memory, _events) = running(Manner::default());
    let frontend = Arc::new(Mutex::new(frontend));
    let mut source = LogSource::new(Arc::clone(&frontend));
    let mark = |page: u64| {
        let frontend = frontend.lock().unwrap();
        let log = frontend.log.as_ref().unwrap();
        log.file.write_all_at(&[1 << (page % 8)], page / 8).unwrap();
    };
    let all = 0..0x20_0000;
    let mut dirty = DirtySet::new(0x200);
    let early = source.report(all.clone(), &mut dirty);
    assert!(matches!(early, Err(DirtyError::NotStarted)));
    assert_eq!(
        source.start(std::slice::from_ref(&all), 1 << 16).unwrap(),
        4096
    );
    mark(0x105);
    mark(0x1a6);
    // Outside of what is asked for it stays, and what is put back comes again.
    source.report(0x10_0000..0x11_0000, &mut dirty).unwrap();
    assert_eq!(dirty.iter().collect::<Vec<_>>(), [0x105]);
    source.put_back(&dirty).unwrap();
    dirty.clear();
    source.report(all.clone(), &mut dirty).unwrap();
    assert_eq!(dirty.iter().collect::<Vec<_>>(), [0x105, 0x1a6]);
    dirty.clear();
    source.report(all, &mut dirty).unwrap();
    assert!(dirty.is_empty());
    source.stop().unwrap();
    assert!(!frontend.lock().unwrap().is_logging());
    drop((source, frontend));
    drop(peer.requests());
}

#[test]
fn a_backend_without_a_log_is_named() {
    let manner = Manner {
        protocol: PROTOCOL & !2,
        ..Manner::default()
    };
    let (_peer, mut frontend) = start(manner);
    assert!(matches!(
        frontend.start_log(),
        Err(VhostUserError::ProtocolMissing("LOG_SHMFD"))
    ));
    let manner = Manner {
        features: FEATURES & !(1 << 26),
        ..Manner::default()
    };
    let (_peer, mut frontend) = start(manner);
    assert!(matches!(
        frontend.start_log(),
        Err(VhostUserError::FeaturesMissing(_))
    ));
}

#[test]
fn a_table_of_requests_in_flight_goes_to_the_next_backend() {
    let (peer, mut frontend) = start(Manner::default());
    let table = frontend.create_inflight(2, 128).unwrap();
    table.window().write(0, b"mine").unwrap();
    drop(frontend);
    let (next, mut frontend) = start(Manner::default());
    frontend.give_inflight(&table).unwrap();
    drop(frontend);
    for requests in [peer.requests(), next.requests()] {
        let [given] = only(&requests, SET_INFLIGHT_FD)[..] else {
            panic!("one table is given")
        };
        assert_eq!((given.u64(0), given.u64(8)), (4096, 0));
        assert_eq!(given.payload[16..20], [2, 0, 128, 0]);
        let mut bytes = [0; 4];
        given.files[0].read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"mine");
    }
}

#[test]
fn nonsense_is_not_believed() {
    for inflight in [0, 1 << 40, 8192] {
        let manner = Manner {
            inflight,
            ..Manner::default()
        };
        let (_peer, mut frontend) = start(manner);
        let table = frontend.create_inflight(1, 128);
        assert!(matches!(table, Err(VhostUserError::Nonsense { .. })));
    }
    let manner = Manner {
        vring_base: 1 << 16,
        ..Manner::default()
    };
    let (_peer, mut frontend, _memory, _events) = running(manner);
    assert!(matches!(
        frontend.stop_queue(1),
        Err(VhostUserError::Nonsense { .. })
    ));
}

#[test]
fn refusals_are_seen() {
    for kind in [SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_ENABLE] {
        let manner = Manner {
            refuse: Some(kind),
            ..Manner::default()
        };
        let (_peer, mut frontend) = start(manner);
        frontend.negotiate(NONE, Features::VERSION_1).unwrap();
        let memory = SharedMemory::new(0, 1 << 20).unwrap();
        let queue = SplitQueue::new(memory.window().clone(), 64, NONE).unwrap();
        let done = frontend
            .share(&[&memory])
            .and_then(|()| frontend.start_queue(0, queue.setup(0), 0).map(drop));
        assert!(matches!(done, Err(VhostUserError::Request { .. })));
    }
}

#[test]
fn a_silent_backend_is_left() {
    for kind in [GET_FEATURES, SET_OWNER] {
        let (_peer, socket) = Peer::start(Manner {
            silent_at: Some(kind),
            ..Manner::default()
        });
        let timeout = Duration::from_millis(50);
        assert!(matches!(
            Frontend::from_stream(socket, timeout),
            Err(VhostUserError::Silent { .. })
        ));
    }
}

#[test]
fn a_connection_that_ends_is_an_error() {
    for kind in [GET_FEATURES, GET_QUEUE_NUM] {
        let (_peer, socket) = Peer::start(Manner {
            close_at: Some(kind),
            ..Manner::default()
        });
        assert!(matches!(
            Frontend::from_stream(socket, HANG),
            Err(VhostUserError::Request { .. })
        ));
    }
    let manner = Manner {
        close_at: Some(SET_LOG_BASE),
        ..Manner::default()
    };
    let (_peer, mut frontend, _memory, _events) = running(manner);
    assert!(matches!(
        frontend.start_log(),
        Err(VhostUserError::Request { .. })
    ));
    let nowhere = Frontend::connect(Path::new("/nonexistent/socket"));
    assert!(matches!(nowhere, Err(VhostUserError::Connect { .. })));
}

#[test]
fn mistakes_of_the_caller_are_named_before_anything_is_sent() {
    let (peer, mut frontend, memory, _events) = running(Manner::default());
    let queue = SplitQueue::new(memory.window().clone(), 64, NONE).unwrap();
    let setup = queue.setup(0);
    assert!(matches!(
        frontend.start_queue(1, setup, 0),
        Err(VhostUserError::QueueState { index: 1, .. })
    ));
    assert!(matches!(
        frontend.start_queue(2, setup, 0),
        Err(VhostUserError::NoSuchQueue { index: 2, have: 2 })
    ));
    assert!(matches!(
        frontend.stop_queue(0),
        Err(VhostUserError::QueueState { index: 0, .. })
    ));
    let elsewhere = QueueSetup { desc: 0, ..setup };
    assert!(matches!(
        frontend.start_queue(0, elsewhere, 0),
        Err(VhostUserError::Address { address: 0, .. })
    ));
    let over = SharedMemory::new(0x18_0000, 1 << 20).unwrap();
    for memories in [&[][..], &[&memory, &over], &[&memory; 9]] {
        assert!(matches!(
            frontend.share(memories),
            Err(VhostUserError::Address { .. })
        ));
    }
    for (address, len) in [(0, 0), (1, 4096), (0, 5), (u64::MAX - 4095, 8192)] {
        assert!(matches!(
            SharedMemory::new(address, len),
            Err(VhostUserError::Address { .. })
        ));
    }
    drop(frontend);
    assert_eq!(only(&peer.requests(), SET_MEM_TABLE).len(), 1);
}

#[test]
fn events_go_both_ways() {
    use crate::bus::Interrupt;
    let (peer, frontend, _memory, events) = running(Manner::default());
    assert!(!events.wait(Duration::ZERO));
    events.kick().unwrap();
    drop(frontend);
    let requests = peer.requests();
    let mut count = [0; 8];
    let kick = &only(&requests, SET_VRING_KICK)[0].files[0];
    std::io::Read::read_exact(&mut &*kick, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    let call = &only(&requests, SET_VRING_CALL)[0].files[0];
    std::io::Write::write_all(&mut &*call, &1_u64.to_ne_bytes()).unwrap();
    assert!(events.wait(HANG));
    assert!(!events.wait(Duration::ZERO));
}
