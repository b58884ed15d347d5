//! The driver's side of a packed ring in a memory file, written by hand for tests.
//!
//! Offsets and bits are typed again from VIRTIO 1.4, "Packed Virtqueues", not imported.

use super::QueueConfig;
use super::test_ring::Guest;
use spec::queue_state::QueueState;

/// A descriptor as a driver writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Desc {
    pub addr: u64,
    pub len: u32,
    pub id: u16,
    /// NEXT 1, WRITE 2, INDIRECT 4.
    pub flags: u16,
}

pub(crate) fn desc(addr: u64, len: u32, id: u16, flags: u16) -> Desc {
    Desc {
        addr,
        len,
        id,
        flags,
    }
}

/// A ring of `size` entries; its areas follow each other from `at`, page by page. Places are
/// counted on and on: the lap's parity is the wrap counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TestPacked<'a> {
    pub guest: &'a Guest,
    pub size: u16,
    pub desc: u64,
    pub driver: u64,
    pub device: u64,
}

impl<'a> TestPacked<'a> {
    pub(crate) fn new(guest: &'a Guest, at: u64, size: u16) -> Self {
        let driver = at + (16 * u64::from(size)).next_multiple_of(4096);
        Self {
            guest,
            size,
            desc: at,
            driver,
            device: driver + 4096,
        }
    }

    /// The first IOVA after the ring.
    pub(crate) fn end(&self) -> u64 {
        self.device + 4096
    }

    pub(crate) fn config(&self) -> QueueConfig {
        QueueConfig {
            size: self.size,
            desc: self.desc,
            driver: self.driver,
            device: self.device,
            packed: true,
            event_idx: false,
            state: QueueState {
                avail: 0x8000,
                used: 0x8000,
            },
        }
    }

    /// With the places where the queue stands.
    pub(crate) fn config_at(&self, avail: u64, used: u64) -> QueueConfig {
        QueueConfig {
            state: self.state(avail, used),
            ..self.config()
        }
    }

    pub(crate) fn state(&self, avail: u64, used: u64) -> QueueState {
        QueueState {
            avail: self.bits(avail),
            used: self.bits(used),
        }
    }

    pub(crate) fn bits(&self, place: u64) -> u16 {
        let (index, wrap) = self.place(place);
        u16::try_from(index).unwrap() | if wrap { 0x8000 } else { 0 }
    }

    fn place(&self, place: u64) -> (u64, bool) {
        let size = u64::from(self.size);
        (place % size, (place / size).is_multiple_of(2))
    }

    fn at(&self, place: u64) -> u64 {
        self.desc + 16 * self.place(place).0
    }

    /// Writes a descriptor with flags as they are.
    pub(crate) fn raw(&self, place: u64, desc: Desc) {
        table_entry(self.guest, self.at(place), 0, desc);
    }

    /// AVAIL and USED of a descriptor that is available at this place.
    pub(crate) fn owner(&self, place: u64) -> u16 {
        if self.place(place).1 { 0x0080 } else { 0x8000 }
    }

    /// Makes a list available at `place`, the first descriptor last; returns the place after it.
    pub(crate) fn offer(&self, place: u64, list: &[Desc]) -> u64 {
        let end = place + u64::try_from(list.len()).unwrap();
        for (place, desc) in (place..end).rev().zip(list.iter().rev()) {
            let flags = desc.flags | self.owner(place);
            self.raw(place, Desc { flags, ..*desc });
        }
        end
    }

    /// Id and length at `place`, if it was used in its lap, with the WRITE flag.
    pub(crate) fn used(&self, place: u64) -> Option<(u16, u32, bool)> {
        let at = self.at(place);
        let flags = self.guest.read_u16(at + 14);
        let owner = if self.place(place).1 { 0x8080 } else { 0 };
        if flags & 0x8080 != owner {
            return None;
        }
        assert_eq!(flags & !0x8082, 0);
        let len = self.guest.read(at + 8, 4).try_into().unwrap();
        let id = self.guest.read_u16(at + 12);
        Some((id, u32::from_le_bytes(len), flags & 2 != 0))
    }

    /// What the driver wants to be told of: 0 all, 1 nothing, 2 the descriptor.
    pub(crate) fn want(&self, off_wrap: u16, flags: u16) {
        self.guest.write_u16(self.driver, off_wrap);
        self.guest.write_u16(self.driver + 2, flags);
    }

    /// What the device wants to be told of.
    pub(crate) fn wanted(&self) -> (u16, u16) {
        let read = |at| self.guest.read_u16(at);
        (read(self.device), read(self.device + 2))
    }
}

/// Writes entry `index` of a table of descriptors, as they are.
pub(crate) fn table_entry(guest: &Guest, table: u64, index: u16, desc: Desc) {
    let mut bytes = Vec::new();
    bytes.extend(desc.addr.to_le_bytes());
    bytes.extend(desc.len.to_le_bytes());
    bytes.extend(desc.id.to_le_bytes());
    bytes.extend(desc.flags.to_le_bytes());
    guest.write(table + 16 * u64::from(index), &bytes);
}
