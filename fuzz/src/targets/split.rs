//! A split ring with a hostile driver, against the block device.

use super::request::{INDIRECT, NEXT, Piece, TABLES};
use super::ring::{self, Format};
use crate::Plant;
use crate::input::Input;
use crate::rig::{Rig, Rings};

/// Runs the target.
pub fn run(data: &[u8], plant: Option<Plant>) {
    ring::run(data, plant, Split::default());
}

#[derive(Debug, Default)]
struct Split {
    rings: Option<Rings>,
    /// Next descriptor of the table to be written.
    next: u16,
    avail: u16,
}

fn descriptor(at: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = at.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// Offsets in a ring that may be anywhere: what lies beyond memory is left out by the rig.
fn at(base: u64, index: u16, each: u64) -> u64 {
    base.wrapping_add(each * u64::from(index))
}

impl Format for Split {
    const FEATURE: u64 = 0;

    fn begin(&mut self, rings: Rings) {
        *self = Self {
            rings: Some(rings),
            ..Self::default()
        };
    }

    fn offer(&mut self, rig: &mut Rig, input: &mut Input<'_>, pieces: &[Piece]) {
        let Some(rings) = self.rings else { return };
        let size = rings.size.max(1);
        let (indirect, hostile) = (input.once_in(4), input.once_in(8));
        let head = self.next % size;
        let mut bad = |sound: u16| if hostile { sound ^ input.u16() } else { sound };
        if indirect {
            let table = TABLES + 256 * u64::from(head);
            for (index, &(address, len, flags)) in (0_u16..).zip(pieces) {
                let last = usize::from(index) + 1 == pieces.len();
                let next = if last { 0 } else { NEXT };
                let bytes = descriptor(address, len, bad(flags | next), bad(index + 1));
                rig.put(at(table, index, 16), &bytes);
            }
            let len = 16 * u32::try_from(pieces.len()).unwrap_or(0);
            let bytes = descriptor(table, len + u32::from(bad(0)), bad(INDIRECT), bad(0));
            rig.put(at(rings.desc, head, 16), &bytes);
            self.next = self.next.wrapping_add(1);
        } else {
            for (index, &(address, len, flags)) in pieces.iter().enumerate() {
                let next = if index + 1 == pieces.len() { 0 } else { NEXT };
                let here = self.next % size;
                self.next = self.next.wrapping_add(1);
                let bytes = descriptor(address, len, bad(flags | next), bad(self.next % size));
                rig.put(at(rings.desc, here, 16), &bytes);
            }
        }
        let entry = at(rings.driver.wrapping_add(4), self.avail % size, 2);
        rig.put(entry, &bad(head).to_le_bytes());
        self.avail = bad(self.avail.wrapping_add(1));
        rig.put(rings.driver.wrapping_add(2), &self.avail.to_le_bytes());
    }

    fn scribble(&mut self, rig: &mut Rig, input: &mut Input<'_>) {
        let Some(rings) = self.rings else { return };
        let size = rings.size;
        let (at, value) = match input.below(5) {
            0 => (rings.driver, input.u16() & 1),
            1 => {
                self.avail = self.avail.wrapping_add(u16::from(input.u8()));
                (rings.driver.wrapping_add(2), self.avail)
            }
            2 => (at(rings.driver.wrapping_add(4), size, 2), input.u16()),
            // What is the device's.
            3 => (rings.device.wrapping_add(2), input.u16()),
            _ => (at(rings.device.wrapping_add(4), size, 8), input.u16()),
        };
        rig.put(at, &value.to_le_bytes());
    }

    fn is_drained(&self, rig: &Rig, (_, used): (u16, u16)) -> bool {
        let Some(rings) = self.rings else { return true };
        rig.memory.get16(rings.driver.wrapping_add(2)) == used
    }
}
