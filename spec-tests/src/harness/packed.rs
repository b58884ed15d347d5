//! A packed virtqueue written by hand: one ring of descriptors that both sides write, and two event
//! suppression structures.

use super::memory::Span;
use super::outcome::Stop;
use super::ring::{Layout, Segment};
use crate::constants::packed::{AVAIL, EVENT, USED};
use crate::constants::ring::{DESC, NEXT, WRITE};
use driver::memory::DmaMemory;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// A place in the ring: an entry, and the wrap counter of the lap that it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Entry.
    pub index: u16,
    /// Wrap counter.
    pub wrap: bool,
}

impl Spot {
    /// Where both sides begin.
    pub const BEGIN: Self = Self {
        index: 0,
        wrap: true,
    };

    /// As notifications, event suppression structures and queue states have it.
    pub fn bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// From such bits.
    pub fn of(bits: u16) -> Self {
        Self {
            index: bits & 0x7fff,
            wrap: bits & 0x8000 != 0,
        }
    }

    /// `count` entries further on in a ring of `size`.
    #[must_use]
    pub fn after(self, count: u16, size: u16) -> Self {
        let gone = u32::from(self.index) + u32::from(count);
        let laps = gone / u32::from(size.max(1));
        Self {
            index: u16::try_from(gone % u32::from(size.max(1))).unwrap_or(0),
            wrap: self.wrap == (laps % 2 == 0),
        }
    }

    /// The bits of a descriptor that is available here.
    pub fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// The bits of a descriptor that was used here.
    pub fn used(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

/// What a driver writes into one descriptor, but for the bits that say whose it is.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The buffer.
    pub segment: Segment,
    /// Buffer id.
    pub id: u16,
    /// Flags besides WRITE, which the segment says.
    pub flags: u16,
}

impl Entry {
    fn bytes(self, whose: u16) -> [u8; 16] {
        let write = if self.segment.writable { WRITE } else { 0 };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.segment.iova.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.segment.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.id.to_le_bytes());
        bytes[14..].copy_from_slice(&(self.flags | write | whose).to_le_bytes());
        bytes
    }
}

/// A list that stands in the ring but for the flags of its first descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Staged {
    /// Where it begins.
    pub at: Spot,
    /// The first descriptor's flags, which make the list the device's.
    pub flags: u16,
    /// How many descriptors it has.
    pub count: u16,
}

/// A descriptor that a device has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Where it stands.
    pub at: Spot,
    /// Buffer id.
    pub id: u16,
    /// Bytes written, by its own account.
    pub len: u32,
    /// All of its flags.
    pub flags: u16,
}

/// The three areas, each on pages of its own, and what the driver's part knows.
#[derive(Clone, Debug)]
pub struct PackedRing {
    memory: DmaMemory,
    /// Entries.
    pub size: u16,
    /// The ring of descriptors.
    pub desc: Span,
    /// The driver's event suppression structure.
    pub driver: Span,
    /// The device's event suppression structure.
    pub device: Span,
    /// Where the next list goes.
    pub next: Spot,
    /// Where the next used descriptor is to come.
    pub used: Spot,
    /// How many descriptors each list has that is not used yet, by its buffer id.
    lists: BTreeMap<u16, u16>,
}

impl Layout for PackedRing {
    fn size(&self) -> u16 {
        self.size
    }
    fn addresses(&self) -> [u64; 3] {
        [self.desc.iova, self.driver.iova, self.device.iova]
    }
}

impl PackedRing {
    /// Bytes of the ring and of the two structures.
    pub fn lengths(size: u16) -> [u64; 3] {
        [DESC * u64::from(size), EVENT, EVENT]
    }

    pub(super) fn new(memory: DmaMemory, size: u16, areas: [Span; 3]) -> Self {
        let [desc, driver, device] = areas;
        Self {
            memory,
            size,
            desc,
            driver,
            device,
            next: Spot::BEGIN,
            used: Spot::BEGIN,
            lists: BTreeMap::new(),
        }
    }

    /// As if the ring had been used up to `at`: every entry is a used one, those before `at` of its
    /// lap, the others of the lap before.
    ///
    /// # Errors
    /// The memory's.
    pub fn start_at(&mut self, at: Spot) -> Result<(), Stop> {
        (self.next, self.used) = (at, at);
        self.lists.clear();
        for index in 0..self.size {
            let wrap = at.wrap == (index < at.index);
            let flags = Spot { index, wrap }.used();
            self.set_flags(index, flags)?;
        }
        Ok(())
    }

    /// Lists that the device has not used.
    pub fn open(&self) -> usize {
        self.lists.len()
    }

    fn at(&self, index: u16) -> u64 {
        self.desc.offset + DESC * u64::from(index)
    }

    /// Writes one descriptor, its flags last, with `whose` as its AVAIL and USED bits.
    ///
    /// # Errors
    /// The memory's.
    pub fn descriptor(&self, index: u16, entry: Entry, whose: u16) -> Result<(), Stop> {
        let bytes = entry.bytes(whose);
        self.memory.write(self.at(index), &bytes[..14])?;
        self.set_flags(index, u16::from_le_bytes([bytes[14], bytes[15]]))
    }

    /// Stores the flags of a descriptor.
    ///
    /// # Errors
    /// The memory's.
    pub fn set_flags(&self, index: u16, flags: u16) -> Result<(), Stop> {
        let at = self.at(index) + 14;
        self.memory.store_u16(at, flags, Ordering::Release)?;
        Ok(())
    }

    /// A descriptor as it stands in memory.
    ///
    /// # Errors
    /// The memory's.
    pub fn raw(&self, index: u16) -> Result<[u8; 16], Stop> {
        let mut bytes = [0; 16];
        self.memory.read(self.at(index), &mut bytes)?;
        Ok(bytes)
    }

    /// Writes a list of these segments, with `id` in its last descriptor, and does not tell the
    /// device: [`PackedRing::publish`] does.
    ///
    /// # Errors
    /// The memory's.
    pub fn stage(&mut self, id: u16, list: &[Segment]) -> Result<Staged, Stop> {
        let entry = |(place, segment): (usize, &Segment)| {
            let last = place + 1 == list.len();
            Entry {
                segment: *segment,
                id: if last { id } else { 0 },
                flags: if last { 0 } else { NEXT },
            }
        };
        let entries: Vec<_> = list.iter().enumerate().map(entry).collect();
        self.stage_entries(id, &entries)
    }

    /// As [`PackedRing::stage`], with the descriptors given in full. `id` is what the device is to
    /// return.
    ///
    /// # Errors
    /// The memory's.
    pub fn stage_entries(&mut self, id: u16, list: &[Entry]) -> Result<Staged, Stop> {
        let count = u16::try_from(list.len()).unwrap_or(u16::MAX);
        let at = self.next;
        let mut staged = Staged {
            at,
            flags: at.available(),
            count,
        };
        for (place, entry) in (0_u16..).zip(list) {
            let spot = at.after(place, self.size);
            let bytes = entry.bytes(spot.available());
            if place == 0 {
                // Its flags stay as they are: those of a descriptor that is not available.
                self.memory.write(self.at(spot.index), &bytes[..14])?;
                staged.flags = u16::from_le_bytes([bytes[14], bytes[15]]);
            } else {
                self.descriptor(spot.index, *entry, spot.available())?;
            }
        }
        self.next = at.after(count, self.size);
        self.lists.insert(id, count);
        Ok(staged)
    }

    /// Makes a list available.
    ///
    /// # Errors
    /// The memory's.
    pub fn publish(&self, staged: Staged) -> Result<(), Stop> {
        self.set_flags(staged.at.index, staged.flags)
    }

    /// Writes an indirect table into `table` and returns the segment that refers to it.
    ///
    /// # Errors
    /// The memory's.
    pub fn table(&self, table: Span, entries: &[Entry]) -> Result<Segment, Stop> {
        for (place, entry) in (0_u64..).zip(entries) {
            let at = table.offset + DESC * place;
            self.memory.write(at, &entry.bytes(0))?;
        }
        let bytes = DESC * u64::try_from(entries.len()).unwrap_or(0);
        Ok(Segment {
            iova: table.iova,
            len: u32::try_from(bytes).unwrap_or(0),
            writable: false,
        })
    }

    /// The descriptor at `at`, if it was used there.
    ///
    /// # Errors
    /// The memory's.
    pub fn used_at(&self, at: Spot) -> Result<Option<Used>, Stop> {
        let place = self.at(at.index);
        let flags = self.memory.load_u16(place + 14, Ordering::Acquire)?;
        if flags & (AVAIL | USED) != at.used() {
            return Ok(None);
        }
        let len = self.memory.load_u32(place + 8, Ordering::Relaxed)?;
        let id = self.memory.load_u16(place + 12, Ordering::Relaxed)?;
        Ok(Some(Used { at, id, len, flags }))
    }

    /// Takes the next used descriptor, if there is one, and goes on behind the list that it stands
    /// for; of an id that nobody made available, by one.
    ///
    /// # Errors
    /// The memory's.
    pub fn take(&mut self) -> Result<Option<Used>, Stop> {
        let used = self.used_at(self.used)?;
        if let Some(used) = used {
            let count = self.lists.remove(&used.id).unwrap_or(1);
            self.used = self.used.after(count, self.size);
        }
        Ok(used)
    }

    /// Writes the driver's event suppression structure.
    ///
    /// # Errors
    /// The memory's.
    pub fn ask(&self, spot: Spot, flags: u16) -> Result<(), Stop> {
        let word = u32::from(spot.bits()) | u32::from(flags) << 16;
        let at = self.driver.offset;
        self.memory.store_u32(at, word, Ordering::SeqCst)?;
        Ok(())
    }

    /// What the device's event suppression structure says: place and flags.
    ///
    /// # Errors
    /// The memory's.
    pub fn asked(&self) -> Result<(Spot, u16), Stop> {
        let at = self.device.offset;
        let [a, b, c, d] = self.memory.load_u32(at, Ordering::Acquire)?.to_le_bytes();
        let place = Spot::of(u16::from_le_bytes([a, b]));
        Ok((place, u16::from_le_bytes([c, d])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_go_round_with_their_wrap_counter() {
        let mut at = Spot::BEGIN;
        for gone in 0..30_u16 {
            assert_eq!(at.index, gone % 5);
            assert_eq!(at.wrap, gone / 5 % 2 == 0);
            assert_eq!(Spot::of(at.bits()), at);
            assert_eq!(Spot::BEGIN.after(gone, 5), at);
            at = at.after(1, 5);
        }
        assert_eq!(Spot::BEGIN.bits(), 0x8000);
    }

    #[test]
    fn no_two_states_of_a_descriptor_look_alike_in_one_lap() {
        for wrap in [true, false] {
            let (here, before) = (
                Spot { index: 0, wrap },
                Spot {
                    index: 0,
                    wrap: !wrap,
                },
            );
            let looks = [here.available(), here.used(), before.used()];
            assert_ne!(looks[0], looks[1]);
            assert_ne!(looks[0], looks[2]);
            assert_ne!(looks[1], looks[2]);
        }
        assert_eq!(Spot::BEGIN.available(), 0x0080);
        assert_eq!(Spot::BEGIN.used(), 0x8080);
    }
}
