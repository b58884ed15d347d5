//! Requests of a block device over a virtqueue (VIRTIO 1.4, "Block Device").

use crate::error::DriverError;
use crate::memory::DmaMemory;
use crate::queue::{Buffer, RingState, Virtqueue};
use crate::transport::Transport;
use spec::blk::{
    BlkConfig, DiscardWriteZeroes, ID_BYTES, RequestHeader, WRITE_ZEROES_FLAG_UNMAP, request,
    status,
};
use spec::features::Features;
use std::mem::offset_of;
use zerocopy::IntoBytes;

/// Bytes of the caller's area that each request in flight takes: header, status, payload.
pub const SLOT_BYTES: u64 = 64;
const STATUS_AT: u64 = 16;
/// The segment of DISCARD and WRITE_ZEROES, or the string of GET_ID.
const PAYLOAD_AT: u64 = 32;
/// No device writes this: tells a status that was never written.
const STATUS_NONE: u8 = 0xff;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Ok,
    /// The device failed, or the request is out of range.
    IoError,
    /// The device does not know this kind of request.
    Unsupported,
    /// A status that VIRTIO 1.4 does not define; 0xff if the device wrote none.
    Other(u8),
}

impl From<u8> for Outcome {
    fn from(byte: u8) -> Self {
        match byte {
            status::OK => Self::Ok,
            status::IOERR => Self::IoError,
            status::UNSUPP => Self::Unsupported,
            other => Self::Other(other),
        }
    }
}

/// A request that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// What the caller passed on submission.
    pub token: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes the device says it wrote, the status byte included.
    pub written: u32,
    /// The device's string, for GET_ID.
    pub id: Option<[u8; ID_BYTES]>,
}

/// A request in flight, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingRequest {
    /// Slot of the caller's area.
    pub slot: u16,
    /// The caller's token.
    pub token: u64,
    /// True if the slot will hold an identity string.
    pub is_id: bool,
}

/// What a driver has to take along when its memory moves. Possibly from outside:
/// [`BlkQueue::resume`] judges it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkQueueState {
    /// The ring.
    pub queue: RingState,
    /// The requests in flight.
    pub requests: Vec<PendingRequest>,
}

/// A request queue of a block device.
///
/// Requests become visible to the device with [`publish`](Self::publish).
#[derive(Debug)]
pub struct BlkQueue {
    queue: Virtqueue,
    area: DmaMemory,
    slots: Vec<Option<PendingRequest>>,
    free: Vec<u16>,
}

impl BlkQueue {
    /// Bytes of area for as many requests as a queue of `size` entries can hold.
    pub fn area_needed(size: u16) -> u64 {
        u64::from(size) * SLOT_BYTES
    }

    /// Requests over an empty `queue`; headers and status bytes go to `area`. A smaller area than
    /// [`area_needed`](Self::area_needed) bounds the requests in flight.
    pub fn new(queue: impl Into<Virtqueue>, area: DmaMemory) -> Self {
        let queue = queue.into();
        let slots = usize::from(queue.size())
            .min(usize::try_from(area.len() / SLOT_BYTES).unwrap_or(usize::MAX));
        Self {
            slots: vec![None; slots],
            free: (0..queue.size()).take(slots).rev().collect(),
            queue,
            area,
        }
    }

    /// Goes on where [`state`](Self::state) was taken, over memory with the same contents.
    ///
    /// # Errors
    /// As [`Virtqueue::resume`]; [`DriverError::BadState`] if the requests do not fit the ring or
    /// the area.
    pub fn resume(
        memory: DmaMemory,
        area: DmaMemory,
        features: Features,
        state: &BlkQueueState,
    ) -> Result<Self, DriverError> {
        let queue = Virtqueue::resume(memory, state.queue.size, features, &state.queue)?;
        let mut this = Self::new(queue, area);
        let bad = |why: String| DriverError::BadState {
            field: "requests".to_owned(),
            why,
        };
        for pending in &state.requests {
            match this.slots.get_mut(usize::from(pending.slot)) {
                Some(slot @ None) => *slot = Some(*pending),
                _ => return Err(bad(format!("slot {}", pending.slot))),
            }
        }
        // Both sides name slots at most once, so equal numbers and membership make them equal.
        let mut named: Vec<_> = state.queue.chains.iter().map(|chain| chain.token).collect();
        named.sort_unstable();
        named.dedup();
        let known = |token: &u64| {
            let slot = usize::try_from(*token).ok();
            slot.and_then(|slot| this.slots.get(slot))
                .is_some_and(Option::is_some)
        };
        if named.len() != state.queue.chains.len()
            || named.len() != state.requests.len()
            || !named.iter().all(known)
        {
            return Err(bad("not those that the ring holds".to_owned()));
        }
        this.free.retain(|slot| {
            this.slots
                .get(usize::from(*slot))
                .is_some_and(Option::is_none)
        });
        Ok(this)
    }

    /// What is needed to go on elsewhere with the same memory contents.
    pub fn state(&self) -> BlkQueueState {
        BlkQueueState {
            queue: self.queue.state(),
            requests: self.slots.iter().flatten().copied().collect(),
        }
    }

    /// The ring: its setup, its interrupts.
    pub fn ring(&self) -> &Virtqueue {
        &self.queue
    }

    /// The ring, to switch its interrupts. Requests added here directly are not of this queue.
    pub fn ring_mut(&mut self) -> &mut Virtqueue {
        &mut self.queue
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u16 {
        self.queue.in_flight()
    }

    /// Reads sectors from `sector` on into `data`.
    ///
    /// # Errors
    /// As [`Virtqueue::add`]; also of all other requests.
    pub fn read(&mut self, sector: u64, data: &[Buffer], token: u64) -> Result<(), DriverError> {
        self.submit(request::IN, sector, Data::In(data), token)
    }

    /// Writes `data` to sectors from `sector` on.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&mut self, sector: u64, data: &[Buffer], token: u64) -> Result<(), DriverError> {
        self.submit(request::OUT, sector, Data::Out(data), token)
    }

    /// Makes completed writes durable.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn flush(&mut self, token: u64) -> Result<(), DriverError> {
        self.submit(request::FLUSH, 0, Data::None, token)
    }

    /// Drops `sectors` sectors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn discard(&mut self, sector: u64, sectors: u32, token: u64) -> Result<(), DriverError> {
        let segment = DiscardWriteZeroes {
            sector: sector.into(),
            num_sectors: sectors.into(),
            flags: 0.into(),
        };
        self.submit(request::DISCARD, 0, Data::Segment(segment), token)
    }

    /// Writes zeroes to `sectors` sectors; with `unmap` the device may drop them.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write_zeroes(
        &mut self,
        sector: u64,
        sectors: u32,
        unmap: bool,
        token: u64,
    ) -> Result<(), DriverError> {
        let flags = if unmap { WRITE_ZEROES_FLAG_UNMAP } else { 0 };
        let segment = DiscardWriteZeroes {
            sector: sector.into(),
            num_sectors: sectors.into(),
            flags: flags.into(),
        };
        self.submit(request::WRITE_ZEROES, 0, Data::Segment(segment), token)
    }

    /// Asks for the device's identity string, which comes with the completion.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn get_id(&mut self, token: u64) -> Result<(), DriverError> {
        self.submit(request::GET_ID, 0, Data::Id, token)
    }

    /// Makes the submitted requests visible; true if the device wants to be notified.
    ///
    /// # Errors
    /// As [`Virtqueue::publish`].
    pub fn publish(&mut self) -> Result<bool, DriverError> {
        self.queue.publish()
    }

    /// Takes the next request that has ended.
    ///
    /// # Errors
    /// As [`Virtqueue::reap`].
    pub fn complete(&mut self) -> Result<Option<Completion>, DriverError> {
        let Some(used) = self.queue.reap()? else {
            return Ok(None);
        };
        let slot = usize::try_from(used.token).ok();
        let pending = slot
            .and_then(|slot| self.slots.get_mut(slot))
            .and_then(Option::take);
        let Some(pending) = pending else {
            // Only a request that somebody added to the ring directly has no slot.
            let id = u32::try_from(used.token).unwrap_or(u32::MAX);
            return Err(DriverError::UsedId { id });
        };
        self.free.push(pending.slot);
        let at = u64::from(pending.slot) * SLOT_BYTES;
        let mut byte = [0];
        self.area.read(at + STATUS_AT, &mut byte)?;
        let [byte] = byte;
        let id = if pending.is_id {
            let mut id = [0; ID_BYTES];
            self.area.read(at + PAYLOAD_AT, &mut id)?;
            Some(id)
        } else {
            None
        };
        Ok(Some(Completion {
            token: pending.token,
            outcome: byte.into(),
            written: used.len,
            id,
        }))
    }

    fn submit(
        &mut self,
        request_type: u32,
        sector: u64,
        data: Data<'_>,
        token: u64,
    ) -> Result<(), DriverError> {
        let slot = *self.free.last().ok_or(DriverError::QueueFull)?;
        let at = u64::from(slot) * SLOT_BYTES;
        let header = RequestHeader {
            request_type: request_type.into(),
            reserved: 0.into(),
            sector: sector.into(),
        };
        self.area.write(at, header.as_bytes())?;
        self.area.write(at + STATUS_AT, &[STATUS_NONE])?;
        let iova = self.area.iova() + at;
        let mut readable = vec![(iova, 16)];
        let mut writable = Vec::new();
        match data {
            Data::None => {}
            Data::Out(buffers) => readable.extend_from_slice(buffers),
            Data::In(buffers) => writable.extend_from_slice(buffers),
            Data::Segment(segment) => {
                self.area.write(at + PAYLOAD_AT, segment.as_bytes())?;
                readable.push((iova + PAYLOAD_AT, 16));
            }
            Data::Id => {
                // A device may write less; what it leaves must not be a former request's.
                self.area.write(at + PAYLOAD_AT, &[0; ID_BYTES])?;
                // ID_BYTES.
                writable.push((iova + PAYLOAD_AT, 20));
            }
        }
        writable.push((iova + STATUS_AT, 1));
        self.queue.add(&readable, &writable, u64::from(slot))?;
        self.free.pop();
        if let Some(pending) = self.slots.get_mut(usize::from(slot)) {
            *pending = Some(PendingRequest {
                slot,
                token,
                is_id: matches!(data, Data::Id),
            });
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Data<'a> {
    None,
    Out(&'a [Buffer]),
    In(&'a [Buffer]),
    Segment(DiscardWriteZeroes),
    Id,
}

/// Reads what every block device has of its configuration, and of the rest what `features` (as
/// negotiated) make valid and the device's structure covers; other fields are 0.
///
/// # Errors
/// [`DriverError::NoCapability`], [`DriverError::ConfigUnstable`] or what the bus says.
pub fn read_config(transport: &Transport) -> Result<BlkConfig, DriverError> {
    use spec::blk::BlkFeatures;
    let have = BlkFeatures::from_bits_truncate(transport.features().bits());
    transport.device_config(|config| {
        let mut read = BlkConfig {
            capacity: config.u64(offset_of!(BlkConfig, capacity))?.into(),
            ..BlkConfig::default()
        };
        if have.contains(BlkFeatures::SIZE_MAX) {
            read.size_max = config.u32(offset_of!(BlkConfig, size_max))?.into();
        }
        if have.contains(BlkFeatures::SEG_MAX) {
            read.seg_max = config.u32(offset_of!(BlkConfig, seg_max))?.into();
        }
        if have.contains(BlkFeatures::BLK_SIZE) {
            read.blk_size = config.u32(offset_of!(BlkConfig, blk_size))?.into();
        }
        if have.contains(BlkFeatures::MQ) {
            read.num_queues = config.u16(offset_of!(BlkConfig, num_queues))?.into();
        }
        if have.contains(BlkFeatures::DISCARD) {
            let sectors = config.u32(offset_of!(BlkConfig, max_discard_sectors))?;
            read.max_discard_sectors = sectors.into();
            read.max_discard_seg = config.u32(offset_of!(BlkConfig, max_discard_seg))?.into();
        }
        if have.contains(BlkFeatures::WRITE_ZEROES) {
            let sectors = config.u32(offset_of!(BlkConfig, max_write_zeroes_sectors))?;
            read.max_write_zeroes_sectors = sectors.into();
            let segments = config.u32(offset_of!(BlkConfig, max_write_zeroes_seg))?;
            read.max_write_zeroes_seg = segments.into();
            let unmap = offset_of!(BlkConfig, write_zeroes_may_unmap);
            read.write_zeroes_may_unmap = config.u8(unmap)?;
        }
        Ok(read)
    })
}

/// Refuses a disk that must be written zone by zone where ZONED is offered and among the features
/// that are `left`.
pub(crate) fn judge_zones(transport: &Transport, left: Features) -> Result<(), DriverError> {
    use spec::blk::BlkFeatures;
    use spec::zoned::{Characteristics, ZonedConfig, model};
    if !BlkFeatures::from_bits_truncate(left.bits()).contains(BlkFeatures::ZONED) {
        return Ok(());
    }
    let at = offset_of!(ZonedConfig, zoned) + offset_of!(Characteristics, model);
    match transport.device_config(|config| config.u8(at))? {
        model @ model::HOST_MANAGED => Err(DriverError::HostManaged { model }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
