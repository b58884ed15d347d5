//! A packed ring with a hostile driver, against the block device.

use super::request::{INDIRECT, NEXT, Piece, TABLES};
use super::ring::{self, Format};
use crate::Plant;
use crate::input::Input;
use crate::rig::{Rig, Rings, feature};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// A place's wrap counter.
const WRAP: u16 = 1 << 15;

/// Runs the target.
pub fn run(data: &[u8], plant: Option<Plant>) {
    ring::run(data, plant, Packed::default());
}

#[derive(Debug, Default)]
struct Packed {
    rings: Option<Rings>,
    /// Descriptors written since the queue began.
    written: u16,
}

fn descriptor(at: u64, len: u32, id: u16, flags: u16) -> Vec<u8> {
    let mut bytes = at.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

impl Packed {
    /// The next place and the flags that make it available.
    fn place(&mut self, rings: Rings) -> (u64, u16) {
        let size = rings.size.max(1);
        let (index, lap) = (self.written % size, self.written / size);
        self.written = self.written.wrapping_add(1);
        let flags = if lap.is_multiple_of(2) { AVAIL } else { USED };
        (rings.desc.wrapping_add(16 * u64::from(index)), flags)
    }
}

impl Format for Packed {
    const FEATURE: u64 = feature::PACKED;

    fn begin(&mut self, rings: Rings) {
        *self = Self {
            rings: Some(rings),
            written: 0,
        };
    }

    fn offer(&mut self, rig: &mut Rig, input: &mut Input<'_>, pieces: &[Piece]) {
        let Some(rings) = self.rings else { return };
        let (indirect, hostile) = (input.once_in(4), input.once_in(8));
        let id = self.written % rings.size.max(1);
        let mut bad = |sound: u16| if hostile { sound ^ input.u16() } else { sound };
        let mut bytes = Vec::new();
        if indirect {
            let table = TABLES + 256 * u64::from(id);
            for (index, &(address, len, flags)) in (0_u64..).zip(pieces) {
                rig.put(
                    table + 16 * index,
                    &descriptor(address, len, bad(0), bad(flags)),
                );
            }
            let len = 16 * u32::try_from(pieces.len()).unwrap_or(0) + u32::from(bad(0));
            let (at, flags) = self.place(rings);
            bytes.push((at, descriptor(table, len, bad(id), bad(INDIRECT | flags))));
        } else {
            for (index, &(address, len, flags)) in pieces.iter().enumerate() {
                let next = if index + 1 == pieces.len() { 0 } else { NEXT };
                let (at, available) = self.place(rings);
                let flags = bad(flags | next | available);
                bytes.push((at, descriptor(address, len, bad(id), flags)));
            }
        }
        // The first descriptor last: it makes the others the device's.
        for (at, descriptor) in bytes.iter().rev() {
            rig.put(*at, descriptor);
        }
    }

    fn scribble(&mut self, rig: &mut Rig, input: &mut Input<'_>) {
        let Some(rings) = self.rings else { return };
        let value = input.u32();
        let at = match input.below(4) {
            0 | 1 => rings.driver,
            2 => rings.device,
            _ => rings.desc.wrapping_add(u64::from(input.u8()) * 4),
        };
        rig.put(at, &value.to_le_bytes());
        if input.once_in(4) {
            self.written = self.written.wrapping_add(u16::from(input.u8()));
        }
    }

    fn is_drained(&self, rig: &Rig, (avail, used): (u16, u16)) -> bool {
        let Some(rings) = self.rings else { return true };
        let (index, wrap) = (avail & !WRAP, avail & WRAP != 0);
        let flags = rings.desc.wrapping_add(16 * u64::from(index) + 14);
        let offered = if wrap { AVAIL } else { USED };
        avail == used && rig.memory.get16(flags) & (AVAIL | USED) != offered
    }
}
