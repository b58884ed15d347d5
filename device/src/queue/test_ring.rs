//! The driver's side of a split ring in a memory file, written by hand for tests.
//!
//! Offsets and bits are typed again from VIRTIO 1.4, "Split Virtqueues", not imported.

use super::QueueConfig;
use crate::dma::Dma;
use rustix::fs::{MemfdFlags, memfd_create};
use spec::queue_state::QueueState;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use vm_memory::Permissions;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Where the guest's memory begins: IOVAs are not offsets.
pub(crate) const BASE: u64 = 0x4000_0000;

/// A guest: its memory, and the device's way to it.
#[derive(Debug)]
pub(crate) struct Guest {
    pub file: File,
    pub dma: Arc<Dma>,
    pub size: u64,
}

impl Guest {
    pub(crate) fn new(size: u64) -> Self {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(size).unwrap();
        let guest = Self {
            file,
            dma: Arc::new(Dma::new()),
            size,
        };
        guest.map();
        guest
    }

    pub(crate) fn map(&self) {
        self.dma
            .map(BASE, self.size, &self.file, 0, Permissions::ReadWrite)
            .unwrap();
    }

    pub(crate) fn write(&self, iova: u64, data: &[u8]) {
        self.file.write_all_at(data, iova - BASE).unwrap();
    }

    pub(crate) fn read(&self, iova: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.file.read_exact_at(&mut data, iova - BASE).unwrap();
        data
    }

    pub(crate) fn write_u16(&self, iova: u64, value: u16) {
        self.write(iova, &value.to_le_bytes());
    }

    pub(crate) fn read_u16(&self, iova: u64) -> u16 {
        u16::from_le_bytes(self.read(iova, 2).try_into().unwrap())
    }

    /// Writes entry `index` of the table of descriptors at `table`.
    pub(crate) fn desc(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(addr.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &bytes);
    }
}

/// A ring of `size` entries; its areas follow each other from `at`, page by page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TestRing<'a> {
    pub guest: &'a Guest,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

impl<'a> TestRing<'a> {
    pub(crate) fn new(guest: &'a Guest, at: u64, size: u16) -> Self {
        let page = |bytes: u64| bytes.next_multiple_of(4096);
        let avail = at + page(16 * u64::from(size));
        let used = avail + page(6 + 2 * u64::from(size));
        Self {
            guest,
            size,
            desc: at,
            avail,
            used,
        }
    }

    /// The first IOVA after the ring.
    pub(crate) fn end(&self) -> u64 {
        self.used + (6 + 8 * u64::from(self.size)).next_multiple_of(4096)
    }

    pub(crate) fn config(&self) -> QueueConfig {
        QueueConfig {
            size: self.size,
            desc: self.desc,
            driver: self.avail,
            device: self.used,
            packed: false,
            event_idx: false,
            state: QueueState::default(),
        }
    }

    pub(crate) fn config_at(&self, state: QueueState) -> QueueConfig {
        QueueConfig {
            state,
            ..self.config()
        }
    }

    pub(crate) fn set(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.guest.desc(self.desc, index, addr, len, flags, next);
    }

    /// Makes `head` available.
    pub(crate) fn offer(&self, head: u16) {
        let idx = self.avail_idx();
        let slot = self.avail + 4 + 2 * u64::from(idx % self.size);
        self.guest.write_u16(slot, head);
        self.set_avail_idx(idx.wrapping_add(1));
    }

    pub(crate) fn avail_idx(&self) -> u16 {
        self.guest.read_u16(self.avail + 2)
    }

    pub(crate) fn set_avail_idx(&self, idx: u16) {
        self.guest.write_u16(self.avail + 2, idx);
    }

    pub(crate) fn set_avail_flags(&self, flags: u16) {
        self.guest.write_u16(self.avail, flags);
    }

    pub(crate) fn set_used_event(&self, value: u16) {
        let at = self.avail + 4 + 2 * u64::from(self.size);
        self.guest.write_u16(at, value);
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.guest.read_u16(self.used)
    }

    pub(crate) fn used_idx(&self) -> u16 {
        self.guest.read_u16(self.used + 2)
    }

    pub(crate) fn set_used_idx(&self, idx: u16) {
        self.guest.write_u16(self.used + 2, idx);
    }

    pub(crate) fn avail_event(&self) -> u16 {
        let at = self.used + 4 + 8 * u64::from(self.size);
        self.guest.read_u16(at)
    }

    /// The entry written when the used index was `idx`: head and length.
    pub(crate) fn used_at(&self, idx: u16) -> (u32, u32) {
        let entry = self.used + 4 + 8 * u64::from(idx % self.size);
        let bytes = self.guest.read(entry, 8);
        let (id, len) = bytes.split_at(4);
        (
            u32::from_le_bytes(id.try_into().unwrap()),
            u32::from_le_bytes(len.try_into().unwrap()),
        )
    }
}
