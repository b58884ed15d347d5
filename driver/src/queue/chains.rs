//! Which descriptors belong to which request: kept here, whatever the device writes into memory.

use super::{Buffer, ChainState, Used};
use crate::error::DriverError;

/// Descriptors in one indirect table; longer chains are built without one.
pub(super) const INDIRECT_MAX: usize = 32;
/// Bytes of one indirect table.
pub(super) const INDIRECT_BYTES: u64 = 512;

/// The requests in flight of a queue, and what descriptors are left.
#[derive(Debug)]
pub(super) struct Chains {
    size: u16,
    free: Vec<u16>,
    /// By head descriptor.
    by_head: Vec<Option<ChainState>>,
    in_flight: u16,
}

/// What a request comes to, judged before anything is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// Buffers of either kind.
    pub(super) buffers: usize,
    /// Bytes that the device may write.
    pub(super) writable: u32,
}

impl Request {
    /// # Errors
    /// [`DriverError::BadChain`] if a queue of `size` entries can never hold it: no buffer at all,
    /// one of length 0, more than there are entries, 4 GiB or more.
    pub(super) fn new(
        readable: &[Buffer],
        writable: &[Buffer],
        size: u16,
    ) -> Result<Self, DriverError> {
        let buffers = readable.len().saturating_add(writable.len());
        let bad = DriverError::BadChain { buffers, size };
        let total = |buffers: &[Buffer]| {
            buffers.iter().try_fold(0_u32, |sum, (_, len)| {
                sum.checked_add(*len).filter(|_| *len != 0)
            })
        };
        let (Some(read), Some(write)) = (total(readable), total(writable)) else {
            return Err(bad);
        };
        if buffers == 0 || buffers > usize::from(size) || read.checked_add(write).is_none() {
            return Err(bad);
        }
        Ok(Self {
            buffers,
            writable: write,
        })
    }

    /// Whether an indirect table is worth it, where there are some.
    pub(super) fn fits_table(self) -> bool {
        (2..=INDIRECT_MAX).contains(&self.buffers)
    }
}

/// A field of a state that cannot be.
pub(super) fn bad(field: &str, why: String) -> DriverError {
    DriverError::BadState {
        field: field.to_owned(),
        why,
    }
}

impl Chains {
    /// Takes over the requests of a state that may come from outside.
    ///
    /// # Errors
    /// [`DriverError::BadState`] if they cannot be those of a queue of `size` entries.
    pub(super) fn adopt(size: u16, chains: &[ChainState]) -> Result<Self, DriverError> {
        let mut by_head = vec![None; usize::from(size)];
        let mut taken = vec![false; usize::from(size)];
        let mut in_flight: u16 = 0;
        for chain in chains {
            for &descriptor in &chain.descriptors {
                match taken.get_mut(usize::from(descriptor)) {
                    Some(taken) if !*taken => *taken = true,
                    _ => return Err(bad("chains", format!("descriptor {descriptor}"))),
                }
            }
            let head = chain.descriptors.first().copied();
            let slot = head.and_then(|head| by_head.get_mut(usize::from(head)));
            *slot.ok_or_else(|| bad("chains", "an empty chain".to_owned()))? = Some(chain.clone());
            // At most `size`: each has descriptors of its own.
            in_flight = in_flight.saturating_add(1);
        }
        let numbered = (0..size).zip(taken).rev();
        Ok(Self {
            size,
            free: numbered
                .filter(|(_, taken)| !taken)
                .map(|(descriptor, _)| descriptor)
                .collect(),
            by_head,
            in_flight,
        })
    }

    pub(super) fn list(&self) -> Vec<ChainState> {
        self.by_head.iter().flatten().cloned().collect()
    }

    pub(super) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// The descriptors that the next request gets if it takes so many, head first.
    ///
    /// # Errors
    /// [`DriverError::QueueFull`].
    pub(super) fn next(&self, needed: usize) -> Result<(u16, Vec<u16>), DriverError> {
        if self.free.len() < needed {
            return Err(DriverError::QueueFull);
        }
        let descriptors: Vec<u16> = self.free.iter().rev().take(needed).copied().collect();
        match descriptors.first() {
            Some(&head) => Ok((head, descriptors)),
            None => Err(DriverError::BadChain {
                buffers: 0,
                size: self.size,
            }),
        }
    }

    /// The request that got them is in flight.
    pub(super) fn add(&mut self, descriptors: Vec<u16>, token: u64, writable: u32) {
        self.free
            .truncate(self.free.len().saturating_sub(descriptors.len()));
        let head = descriptors.first().copied().map(usize::from);
        if let Some(slot) = head.and_then(|head| self.by_head.get_mut(head)) {
            *slot = Some(ChainState {
                descriptors,
                token,
                writable,
            });
            self.in_flight = self.in_flight.saturating_add(1);
        }
    }

    /// How many descriptors the request named `id` has and how many bytes the device may write, if
    /// there is one.
    pub(super) fn find(&self, id: u16) -> Option<(u16, u32)> {
        let chain = self.by_head.get(usize::from(id))?.as_ref()?;
        let entries = u16::try_from(chain.descriptors.len()).ok()?;
        Some((entries, chain.writable))
    }

    /// The device is done with the request named `id` and says that it wrote `len` bytes.
    ///
    /// # Errors
    /// [`DriverError::UsedId`] or [`DriverError::UsedLength`]; nothing has been taken then.
    pub(super) fn finish(&mut self, id: u32, len: u32) -> Result<Used, DriverError> {
        let unknown = DriverError::UsedId { id };
        let Ok(head) = u16::try_from(id) else {
            return Err(unknown);
        };
        let Some(slot) = self.by_head.get_mut(usize::from(head)) else {
            return Err(unknown);
        };
        if let Some(chain) = slot.as_ref().filter(|chain| len > chain.writable) {
            return Err(DriverError::UsedLength {
                id: head,
                len,
                writable: chain.writable,
            });
        }
        let Some(chain) = slot.take() else {
            return Err(unknown);
        };
        self.free.extend(chain.descriptors.iter().rev());
        self.in_flight = self.in_flight.saturating_sub(1);
        let token = chain.token;
        Ok(Used { token, len })
    }
}
