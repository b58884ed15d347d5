//! From a chain of buffers to a request that has been judged.

use crate::dma::DmaGuard;
use crate::queue::{Chain, Cursor};
use crate::virtio::QueueError;
use spec::blk::{
    DiscardWriteZeroes, RequestHeader, SECTOR_SIZE, WRITE_ZEROES_FLAG_UNMAP, request, status,
};
use zerocopy::{FromZeros, IntoBytes};

/// Largest DISCARD segment in sectors: 2 GiB.
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// Largest WRITE_ZEROES segment in sectors: 16 MiB, which may have to be written out.
pub(super) const ZERO_SECTORS_MAX: u32 = 1 << 15;
/// Most segments in a DISCARD or WRITE_ZEROES.
pub(super) const RANGES_MAX: u32 = 16;

const HEADER_BYTES: u64 = 16;
const RANGE_BYTES: u64 = 16;

/// What requests are judged against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Sectors of the disk.
    pub capacity: u64,
    pub read_only: bool,
}

/// A range of bytes of the disk, within its capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub offset: u64,
    pub len: u64,
}

/// What is to be done. Everything in it has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Read(Extent),
    Write(Extent),
    Flush,
    GetId,
    Discard(Vec<Extent>),
    WriteZeroes(Vec<(Extent, bool)>),
    /// Nothing: the answer is known.
    Refuse(u8),
}

#[derive(Debug)]
pub(super) struct Request {
    pub head: u16,
    pub op: Op,
    /// The data: what the device reads for a write, what it writes for everything else.
    pub data: Cursor,
    /// Bytes of the chain that the device can write before the status byte.
    pub room: u64,
    /// IOVA of the status byte.
    pub status_at: u64,
}

impl Request {
    /// Reads a request's header, once, and judges it.
    ///
    /// # Errors
    ///
    /// [`QueueError::Broken`] if the chain has no room for a header or for a status byte, or the
    /// status byte cannot be written: there is then no way to answer it (VIRTIO 1.4, "Block
    /// Device / Device Operation"; that the queue breaks is a project rule, and QEMU's).
    pub(super) fn parse(
        mem: &DmaGuard<'_>,
        chain: Chain,
        limits: Limits,
    ) -> Result<Self, QueueError> {
        let Chain { head, .. } = chain;
        let broken = |what: &str| QueueError::broken(format!("chain {head}: {what}"));
        let data_out = chain
            .readable_len()
            .checked_sub(HEADER_BYTES)
            .ok_or_else(|| broken("no room for a request header"))?;
        let room = chain
            .writable_len()
            .checked_sub(1)
            .ok_or_else(|| broken("no room for a status byte"))?;
        let status_at = chain
            .writable
            .last()
            .map_or(0, |&(iova, len)| iova.saturating_add(u64::from(len) - 1));
        if !mem.is_writable(status_at, 1) {
            return Err(broken("the status byte is not mapped for writing"));
        }

        let mut readable = Cursor::new(chain.readable);
        let mut header = RequestHeader::new_zeroed();
        let op = if readable.read(mem, header.as_mut_bytes()) {
            judge(mem, &header, data_out, &mut readable, room, limits)
        } else {
            Op::Refuse(status::IOERR)
        };
        let data = match op {
            Op::Write(_) => readable,
            _ => Cursor::new(chain.writable),
        };
        Ok(Self {
            head,
            op,
            data,
            room,
            status_at,
        })
    }

    /// Bytes that go through a bounce buffer.
    pub(super) fn bytes(&self) -> u64 {
        match &self.op {
            Op::Read(extent) | Op::Write(extent) => extent.len,
            _ => 0,
        }
    }
}

fn judge(
    mem: &DmaGuard<'_>,
    header: &RequestHeader,
    data_out: u64,
    data: &mut Cursor,
    room: u64,
    limits: Limits,
) -> Op {
    let refuse = Op::Refuse(status::IOERR);
    let sector = header.sector.get();
    let kind = header.request_type.get();
    match kind {
        request::IN => extent(sector, room, limits).map_or(refuse, Op::Read),
        request::OUT if limits.read_only => refuse,
        request::OUT => extent(sector, data_out, limits).map_or(refuse, Op::Write),
        request::FLUSH => Op::Flush,
        request::GET_ID => Op::GetId,
        request::DISCARD | request::WRITE_ZEROES if limits.read_only => refuse,
        request::DISCARD | request::WRITE_ZEROES => {
            let ranges = match ranges(mem, data_out, data, kind, limits) {
                Ok(ranges) => ranges,
                Err(status) => return Op::Refuse(status),
            };
            if kind == request::WRITE_ZEROES {
                Op::WriteZeroes(ranges)
            } else {
                Op::Discard(ranges.into_iter().map(|(extent, _)| extent).collect())
            }
        }
        _ => Op::Refuse(status::UNSUPP),
    }
}

/// The extent of `bytes` from `sector` on, if they are whole sectors of the disk.
fn extent(sector: u64, bytes: u64, limits: Limits) -> Option<Extent> {
    let end = sector.checked_add(bytes / SECTOR_SIZE)?;
    let fits = bytes.is_multiple_of(SECTOR_SIZE) && end <= limits.capacity;
    let offset = sector.checked_mul(SECTOR_SIZE)?;
    fits.then_some(Extent { offset, len: bytes })
}

/// The segments of a DISCARD or WRITE_ZEROES, each with its unmap flag, or the status to refuse it
/// with.
fn ranges(
    mem: &DmaGuard<'_>,
    data_out: u64,
    data: &mut Cursor,
    kind: u32,
    limits: Limits,
) -> Result<Vec<(Extent, bool)>, u8> {
    let count = data_out / RANGE_BYTES;
    if count == 0 || count > RANGES_MAX.into() || !data_out.is_multiple_of(RANGE_BYTES) {
        return Err(status::IOERR);
    }
    let (most, flags) = if kind == request::DISCARD {
        (DISCARD_SECTORS_MAX, 0)
    } else {
        (ZERO_SECTORS_MAX, WRITE_ZEROES_FLAG_UNMAP)
    };
    (0..count)
        .map(|_| {
            let mut range = DiscardWriteZeroes::new_zeroed();
            if !data.read(mem, range.as_mut_bytes()) {
                return Err(status::IOERR);
            }
            if range.flags.get() & !flags != 0 {
                return Err(status::UNSUPP);
            }
            let sectors = range.num_sectors.get();
            let bytes = u64::from(sectors) * SECTOR_SIZE;
            let extent = extent(range.sector.get(), bytes, limits)
                .filter(|_| sectors != 0 && sectors <= most)
                .ok_or(status::IOERR)?;
            Ok((extent, range.flags.get() & WRITE_ZEROES_FLAG_UNMAP != 0))
        })
        .collect()
}
