//! The entropy device against a ring built by hand.

use super::*;
use crate::queue::test_ring::{BASE, Guest, NEXT, TestRing, WRITE};

fn run(device: &RngDevice, guest: &Guest, queue: &mut Virtqueue) -> Result<Progress, QueueError> {
    device.process(0, queue, &guest.dma, &mut || {})
}

#[test]
fn entropy_fills_what_is_writable_and_nothing_else() {
    let guest = Guest::new(1 << 20);
    let ring = TestRing::new(&guest, BASE, 8);
    let data = ring.end();
    ring.set(0, data, 10, WRITE | NEXT, 1);
    ring.set(1, data + 4096, 30, WRITE, 0);
    ring.set(2, data + 8192, 100_000, WRITE, 0);
    ring.set(3, data, 8, 0, 0);
    ring.set(4, 0x10, 8, WRITE, 0);
    for head in [0, 2, 3, 4] {
        ring.offer(head);
    }
    let device = RngDevice::seeded(1);
    let mut queue = Virtqueue::start(ring.config(), &guest.dma.enter()).unwrap();
    assert_eq!(run(&device, &guest, &mut queue).unwrap(), Progress::Idle);
    let used: Vec<_> = (0..4).map(|n| ring.used_at(n)).collect();
    assert_eq!(used, [(0, 40), (2, 4096), (3, 0), (4, 0)]);

    let mut expected = vec![0; 40];
    RngDevice::seeded(1).fill(&mut expected).unwrap();
    assert_eq!(guest.read(data, 10), expected[..10]);
    assert_eq!(guest.read(data + 10, 10), [0; 10]);
    assert_eq!(guest.read(data + 4096, 30), expected[10..]);
    assert_eq!(guest.read(data + 8192 + 4096, 64), [0; 64]);
}

#[test]
fn chains_before_a_malformed_one_are_served() {
    let guest = Guest::new(1 << 20);
    let ring = TestRing::new(&guest, BASE, 8);
    ring.set(0, ring.end(), 16, WRITE, 0);
    ring.offer(0);
    ring.offer(8);
    let device = RngDevice::system().unwrap();
    let mut queue = Virtqueue::start(ring.config(), &guest.dma.enter()).unwrap();
    run(&device, &guest, &mut queue).unwrap_err();
    assert_eq!((ring.used_idx(), ring.used_at(0)), (1, (0, 16)));
    assert_ne!(guest.read(ring.end(), 16), [0; 16]);
}
