use super::*;
use crate::testing::{FakeBus, memory};
use std::sync::atomic::Ordering;

const RING: u64 = 0x10_0000;
const AREA: u64 = 0x20_0000;

fn ring(features: Features) -> (Virtqueue, DmaMemory) {
    let memory = memory(Virtqueue::bytes_needed(8).next_multiple_of(4096), RING);
    (Virtqueue::new(memory.clone(), 8, features).unwrap(), memory)
}

/// The descriptors of a chain: address, length, flags.
fn chain(ring: &DmaMemory, mut index: u16) -> Vec<(u64, u32, u16)> {
    let mut found = Vec::new();
    loop {
        let at = u64::from(index) * 16;
        let flags = ring.load_u16(at + 12, Ordering::Relaxed).unwrap();
        found.push((
            ring.load_u64(at, Ordering::Relaxed).unwrap(),
            ring.load_u32(at + 8, Ordering::Relaxed).unwrap(),
            flags & 2,
        ));
        if flags & 1 == 0 {
            return found;
        }
        index = ring.load_u16(at + 14, Ordering::Relaxed).unwrap();
    }
}

/// Head of the n-th available entry.
fn head(ring: &DmaMemory, n: u64) -> u16 {
    ring.load_u16(8 * 16 + 4 + 2 * n, Ordering::Relaxed)
        .unwrap()
}

fn finish(ring: &DmaMemory, n: u16, id: u16, len: u32) {
    // The first page boundary after the 8 descriptors and the available ring.
    let used = 4096;
    let entry = used + 4 + 8 * u64::from(n);
    ring.store_u32(entry, u32::from(id), Ordering::Relaxed)
        .unwrap();
    ring.store_u32(entry + 4, len, Ordering::Relaxed).unwrap();
    ring.store_u16(used + 2, n + 1, Ordering::Release).unwrap();
}

#[test]
fn requests_have_the_standards_layout() {
    let (queue, ring) = ring(Features::empty());
    let area = memory(0x1000, AREA);
    let mut blk = BlkQueue::new(queue, area.clone());
    blk.write(0x1122, &[(0x9000, 512), (0xa000, 1024)], 70)
        .unwrap();
    assert!(blk.publish().unwrap());
    let seen = chain(&ring, head(&ring, 0));
    let header = seen[0].0;
    assert_eq!(
        seen,
        [
            (header, 16, 0),
            (0x9000, 512, 0),
            (0xa000, 1024, 0),
            (header + 16, 1, 2)
        ]
    );
    let mut bytes = [0; 17];
    area.read(header - AREA, &mut bytes).unwrap();
    assert_eq!(
        bytes,
        [1, 0, 0, 0, 0, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0xff]
    );
    area.write(header - AREA + 16, &[0]).unwrap();
    finish(&ring, 0, head(&ring, 0), 1);
    let done = blk.complete().unwrap().unwrap();
    assert_eq!(
        (done.token, done.outcome, done.written),
        (70, Outcome::Ok, 1)
    );

    blk.write_zeroes(3, 4, true, 71).unwrap();
    blk.publish().unwrap();
    let seen = chain(&ring, head(&ring, 1));
    assert_eq!(
        seen.iter().map(|part| (part.1, part.2)).collect::<Vec<_>>(),
        [(16, 0), (16, 0), (1, 2)]
    );
    let mut segment = [0; 16];
    area.read(seen[1].0 - AREA, &mut segment).unwrap();
    assert_eq!(segment, [3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(area.load_u32(seen[0].0 - AREA, Ordering::Relaxed), Ok(13));
    finish(&ring, 1, head(&ring, 1), 1);
    assert_eq!(
        blk.complete().unwrap().unwrap().outcome,
        Outcome::Other(0xff),
        "none was written"
    );

    blk.get_id(72).unwrap();
    blk.publish().unwrap();
    let seen = chain(&ring, head(&ring, 2));
    area.write(seen[1].0 - AREA, b"tidemark").unwrap();
    area.write(seen[2].0 - AREA, &[2]).unwrap();
    finish(&ring, 2, head(&ring, 2), 21);
    let done = blk.complete().unwrap().unwrap();
    assert_eq!(done.outcome, Outcome::Unsupported);
    assert!(done.id.unwrap().starts_with(b"tidemark\0"));
    assert_eq!(blk.complete().unwrap(), None);
}

#[test]
fn requests_in_flight_survive_a_move() {
    let features = Features::RING_INDIRECT_DESC;
    let (queue, ring) = ring(features);
    let area = memory(0x1000, AREA);
    let mut blk = BlkQueue::new(queue, area.clone());
    for token in 0..8 {
        blk.read(token, &[(0x9000, 512)], 100 + token).unwrap();
    }
    assert!(matches!(blk.flush(9), Err(DriverError::QueueFull)));
    blk.publish().unwrap();
    finish(&ring, 0, head(&ring, 0), 513);
    assert_eq!(blk.complete().unwrap().unwrap().token, 100);
    let state = blk.state();
    let mut moved = BlkQueue::resume(ring.clone(), area.clone(), features, &state).unwrap();
    assert_eq!((moved.state(), moved.in_flight()), (state.clone(), 7));
    moved.flush(9).unwrap();
    assert!(matches!(
        moved.discard(0, 8, 10),
        Err(DriverError::QueueFull)
    ));
    for n in 1..8 {
        finish(&ring, n, head(&ring, u64::from(n)), 513);
    }
    for token in 101..108 {
        assert_eq!(moved.complete().unwrap().unwrap().token, token);
    }
    let spoiled: [fn(&mut BlkQueueState); 4] = [
        |state| state.requests[0].slot = 8,
        |state| state.requests[0].slot = state.requests[1].slot,
        |state| state.requests.truncate(3),
        |state| state.queue.chains[0].token = 8,
    ];
    for spoil in spoiled {
        let mut state = state.clone();
        spoil(&mut state);
        let refused = BlkQueue::resume(ring.clone(), area.clone(), features, &state);
        assert!(matches!(refused, Err(DriverError::BadState { .. })));
    }
}

#[test]
fn configuration_fields_follow_the_features() {
    // VERSION_1, DISCARD.
    let bus = FakeBus::new(1 << 32 | 1 << 13);
    let transport = Transport::new(bus).unwrap();
    transport
        .initialise(Features::from_bits_retain(!0))
        .unwrap();
    let config = read_config(&transport).unwrap();
    assert_eq!(config.capacity.get(), 0x0706_0504_0302_0100);
    assert_eq!(config.max_discard_sectors.get(), 0x2726_2524);
    assert_eq!(config.seg_max.get(), 0);
}
