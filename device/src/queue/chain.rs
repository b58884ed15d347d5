//! Walking a chain of descriptors, from a table in guest memory to two lists of buffers.

use crate::dma::DmaGuard;
use crate::virtio::QueueError;
use spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor};
use zerocopy::{FromBytes, IntoBytes};

/// Longest chain in bytes (VIRTIO 1.4, "The Virtqueue Descriptor Table").
const CHAIN_BYTES_MAX: u64 = 1 << 32;
const DESC_BYTES: u32 = 16;

/// A chain of buffers that the driver made available.
///
/// Buffers of length zero carry nothing and are left out; a chain of nothing else is empty on both
/// sides. No buffer wraps around the address space, and all together have at most 2^32 bytes.
/// Whether they are mapped is found out when they are accessed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Index of the first descriptor; names the chain when it is pushed.
    pub head: u16,
    /// Buffers the device reads, as (IOVA, bytes), in order.
    pub readable: Vec<(u64, u32)>,
    /// Buffers the device writes, as (IOVA, bytes), in order.
    pub writable: Vec<(u64, u32)>,
    /// Descriptors visited: what the walk cost, empty buffers and tables included.
    pub descriptors: u32,
}

impl Chain {
    /// Walks the chain at `head` of the table of `entries` descriptors at `table`.
    ///
    /// Every descriptor is read once. At most `entries` of the table are visited, and as many of
    /// one indirect table as it has.
    pub(super) fn walk(
        mem: &DmaGuard<'_>,
        table: u64,
        entries: u16,
        head: u16,
    ) -> Result<Self, QueueError> {
        let mut chain = Walk::default();
        let bad = |what: String| QueueError::broken(format!("chain {head}: {what}"));
        let mut table = table;
        let mut entries = entries;
        let mut index = head;
        let mut left = entries;
        let mut indirect = false;
        loop {
            if index >= entries {
                return Err(bad(format!("descriptor {index} of a table of {entries}")));
            }
            let Some(rest) = left.checked_sub(1) else {
                return Err(bad(format!("longer than its table of {entries}: a loop")));
            };
            left = rest;
            chain.visited();
            let desc: Descriptor = read(mem, table, index)
                .map_err(|error| bad(format!("descriptor {index}: {error}")))?;
            let (addr, len, flags) = (desc.addr.get(), desc.len.get(), desc.flags.get());

            if flags & DESC_F_INDIRECT != 0 {
                if indirect {
                    return Err(bad("an indirect table within an indirect table".to_owned()));
                }
                if flags & DESC_F_NEXT != 0 {
                    return Err(bad(format!("descriptor {index} has INDIRECT and NEXT")));
                }
                entries = table_entries(len).map_err(&bad)?;
                table = addr;
                index = 0;
                left = entries;
                indirect = true;
                continue;
            }

            chain.add(addr, len, flags).map_err(&bad)?;
            if flags & DESC_F_NEXT == 0 {
                return Ok(chain.end(head));
            }
            index = desc.next.get();
        }
    }

    /// Bytes the device can read.
    pub fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes the device can write.
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }
}

/// A chain while it is walked, in whichever ring: what the formats have in common.
#[derive(Debug, Default)]
pub(super) struct Walk {
    chain: Chain,
    bytes: u64,
}

impl Walk {
    /// A descriptor has been read.
    pub(super) fn visited(&mut self) {
        // At most 65535 of the queue's table and 65535 of an indirect one.
        self.chain.descriptors = self.chain.descriptors.saturating_add(1);
    }

    /// Adds a buffer, if it can follow those before it.
    pub(super) fn add(&mut self, addr: u64, len: u32, flags: u16) -> Result<(), String> {
        let chain = &mut self.chain;
        self.bytes = self.bytes.saturating_add(len.into());
        if self.bytes > CHAIN_BYTES_MAX || addr.checked_add(len.into()).is_none() {
            return Err(format!(
                "{len} bytes at {addr:#x} make it {} bytes long, or wrap",
                self.bytes
            ));
        }
        if flags & DESC_F_WRITE == 0 {
            if !chain.writable.is_empty() {
                return Err("a readable buffer after a writable one".to_owned());
            }
            chain.readable.extend((len != 0).then_some((addr, len)));
        } else {
            chain.writable.extend((len != 0).then_some((addr, len)));
        }
        Ok(())
    }

    /// The chain as it has become; `head` names it.
    pub(super) fn end(self, head: u16) -> Chain {
        Chain { head, ..self.chain }
    }
}

/// How many descriptors an indirect table of `len` bytes has.
pub(super) fn table_entries(len: u32) -> Result<u16, String> {
    u16::try_from(len / DESC_BYTES)
        .ok()
        .filter(|&count| count != 0 && len.is_multiple_of(DESC_BYTES))
        .ok_or_else(|| format!("an indirect table of {len} bytes"))
}

fn total(buffers: &[(u64, u32)]) -> u64 {
    buffers.iter().map(|&(_, len)| u64::from(len)).sum()
}

/// Entry `index` of the table of descriptors at `table`, read once.
pub(super) fn read<T: FromBytes + IntoBytes>(
    mem: &DmaGuard<'_>,
    table: u64,
    index: u16,
) -> Result<T, String> {
    const { assert!(size_of::<T>() == 16, "a descriptor of either format") };
    let mut desc = T::new_zeroed();
    let offset = u64::from(DESC_BYTES) * u64::from(index);
    let at = table
        .checked_add(offset)
        .ok_or_else(|| format!("the table at {table:#x} wraps"))?;
    mem.read(at, desc.as_mut_bytes())
        .map_err(|error| error.to_string())?;
    Ok(desc)
}

/// A position in a list of buffers that only moves forward.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    /// What is left, the next one last.
    rest: Vec<(u64, u32)>,
}

impl Cursor {
    /// The beginning of `buffers`.
    pub fn new(mut buffers: Vec<(u64, u32)>) -> Self {
        buffers.reverse();
        Self { rest: buffers }
    }

    /// The next at most `max` bytes that lie in one buffer, as (IOVA, bytes). `None` at the end,
    /// or if `max` is 0.
    pub fn piece(&mut self, max: usize) -> Option<(u64, usize)> {
        let (addr, len) = self.rest.last_mut()?;
        let there = usize::try_from(*len).unwrap_or(usize::MAX);
        let now = there.min(max);
        if now == 0 {
            return None;
        }
        let piece = (*addr, now);
        match u32::try_from(now).ok().filter(|now| now < len) {
            Some(now) => {
                *addr = addr.saturating_add(now.into());
                *len -= now;
            }
            None => {
                self.rest.pop();
            }
        }
        Some(piece)
    }

    /// Copies the next bytes out of guest memory. False if there are not enough, or not mapped.
    pub fn read(&mut self, mem: &DmaGuard<'_>, into: &mut [u8]) -> bool {
        let mut rest = into;
        while !rest.is_empty() {
            let Some((iova, len)) = self.piece(rest.len()) else {
                return false;
            };
            let (now, later) = rest.split_at_mut(len);
            if mem.read(iova, now).is_err() {
                return false;
            }
            rest = later;
        }
        true
    }

    /// Stores `data` into the next bytes of guest memory, as far as they can be written; returns
    /// how many bytes were stored.
    pub fn write(&mut self, burst: &mut crate::dma::Burst<'_>, data: &[u8]) -> usize {
        let mut done = 0;
        while let Some((iova, len)) = self.piece(data.len() - done) {
            if burst.write(iova, &data[done..done + len]).is_err() {
                break;
            }
            done += len;
        }
        done
    }
}
