//! A plain sound driver: after whatever came before, it is served.

use super::{Rig, Rings, feature, reg, status};
use crate::oracle::PATIENCE;

/// Where the request's header, data and status are.
const HEADER: u64 = 0x20_000;
const DATA: u64 = 0x21_000;
const STATUS: u64 = 0x22_000;
const SIZE: u16 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// The packed ring's AVAIL bit; its first lap has wrap counter 1.
const AVAIL: u16 = 1 << 7;
/// And its USED bit.
const USED: u16 = 1 << 15;

/// Resets, negotiates, writes a sector, reads it back, and finds it as it was.
///
/// # Panics
///
/// `oracle reset`.
pub(super) fn drive(rig: &mut Rig, packed: bool) {
    assert!(
        rig.function.reset_and_wait(PATIENCE),
        "oracle reset: not done before a sound driver"
    );
    let kind = if packed { feature::PACKED } else { 0 };
    // In a packed ring, too, zeroes are nothing available: its wrap counter begins at 1.
    rig.put(0, &[0; 0x1000]);
    rig.negotiate(feature::VERSION_1 | feature::QUEUE_STATE | feature::BLK_FLUSH | kind);
    rig.enable(0, Rings::of_queue(0, SIZE));
    rig.write8(reg::STATUS, 0x0f);
    assert_eq!(
        rig.status() & !status::SUSPEND,
        0x0f,
        "oracle reset: the status under a sound driver"
    );
    for (turn, kind) in (0..).zip([1_u32, 0]) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(3_u64.to_le_bytes());
        rig.put(HEADER, &header);
        rig.put(STATUS, &[0xff]);
        rig.put(DATA, &[if kind == 1 { 0x3c } else { 0 }; 512]);
        let data = if kind == 1 { 0 } else { WRITE };
        let chain = [(HEADER, 16, 0), (DATA, 512, data), (STATUS, 1, WRITE)];
        if packed {
            offer_packed(rig, turn, chain);
        } else {
            offer_split(rig, turn, chain);
        }
        rig.kick(0);
        // Not the status alone: marks are there when the chain is used, and not before.
        let served = rig.wait(|rig| is_used(rig, turn, packed));
        assert!(
            served,
            "oracle reset: a sound driver is not served, packed {packed}, status {:#04x}",
            rig.status()
        );
        assert_eq!(
            rig.memory.get::<1>(STATUS),
            [0],
            "oracle reset: the answer to a sound driver, packed {packed}"
        );
    }
    assert_eq!(
        rig.memory.get::<8>(DATA + 504),
        [0x3c; 8],
        "oracle reset: what a sound driver reads back, packed {packed}"
    );
}

/// Whether the chain of this turn is used.
fn is_used(rig: &Rig, turn: u16, packed: bool) -> bool {
    let rings = Rings::of_queue(0, SIZE);
    if packed {
        let first = rings.desc + 16 * u64::from(3 * turn);
        return rig.memory.get16(first + 14) & USED != 0;
    }
    rig.memory.get16(rings.device + 2) == turn + 1
}

/// A descriptor of either format: its last two words differ.
fn descriptor(address: u64, len: u32, words: [u16; 2]) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(words.into_iter().flat_map(u16::to_le_bytes));
    bytes
}

fn offer_split(rig: &mut Rig, turn: u16, chain: [(u64, u32, u16); 3]) {
    let rings = Rings::of_queue(0, SIZE);
    for (index, (address, len, flags)) in (0_u16..).zip(chain) {
        let next = if index < 2 { NEXT } else { 0 };
        let bytes = descriptor(address, len, [flags | next, index + 1]);
        rig.put(rings.desc + 16 * u64::from(index), &bytes);
    }
    rig.put(rings.driver + 4 + 2 * u64::from(turn), &[0, 0]);
    rig.put(rings.driver + 2, &(turn + 1).to_le_bytes());
}

fn offer_packed(rig: &mut Rig, turn: u16, chain: [(u64, u32, u16); 3]) {
    let rings = Rings::of_queue(0, SIZE);
    // The first descriptor last: it makes the others the device's.
    for (index, (address, len, flags)) in [2, 1, 0].into_iter().zip(chain.into_iter().rev()) {
        let next = if index < 2 { NEXT } else { 0 };
        let bytes = descriptor(address, len, [9, flags | next | AVAIL]);
        rig.put(rings.desc + 16 * u64::from(3 * turn + index), &bytes);
    }
}
