//! Requests to a disk, one at a time, of any type and shape.

use super::bench::Bench;
use super::live::Live;
use super::memory::Span;
use super::outcome::{Absent, Stop, arose};
use super::ring::Segment;
use crate::constants::{PAGE, blk};

/// Bytes of the buffer that requests write from, and of the one that they read into.
const BUFFER: u64 = 256 << 10;

/// A running disk, with queue 0 enabled.
#[derive(Debug)]
pub struct Disk<'a> {
    /// The way to it.
    pub bench: &'a Bench,
    live: Live,
    header: Span,
    status: Span,
    output: Span,
    input: Span,
}

/// What a disk answered to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status byte; 0x5a if it was not written.
    pub status: u8,
    /// Bytes that the used element says were written.
    pub used: u32,
    /// The data that the device was to write; 0x5a where it did not.
    pub data: Vec<u8>,
}

/// One segment of a DISCARD, SECURE_ERASE or WRITE_ZEROES, as it stands in a request's data.
pub fn range(sector: u64, sectors: u64, flags: u32) -> [u8; 16] {
    let mut range = [0; 16];
    range[..8].copy_from_slice(&sector.to_le_bytes());
    range[8..12].copy_from_slice(&u32::try_from(sectors).unwrap_or(u32::MAX).to_le_bytes());
    range[12..].copy_from_slice(&flags.to_le_bytes());
    range
}

impl Bench {
    /// Not applicable if this is no disk.
    ///
    /// # Errors
    /// [`Absent::DeviceType`].
    pub fn is_disk(&self) -> Result<(), Stop> {
        if self.caps.virtio_id() == Some(blk::ID) {
            Ok(())
        } else {
            Err(Stop::NotApplicable(Absent::DeviceType(blk::ID)))
        }
    }

    /// Initialises a disk with `need` up to DRIVER_OK.
    ///
    /// # Errors
    /// Not applicable if this is no disk, or does not offer that; those of the steps.
    pub fn disk(&self, need: u64) -> Result<Disk<'_>, Stop> {
        self.is_disk()?;
        Ok(Disk {
            bench: self,
            live: self.up(need)?,
            header: self.take(PAGE)?,
            status: self.take(PAGE)?,
            output: self.take(BUFFER)?,
            input: self.take(BUFFER)?,
        })
    }

    /// A field of up to 8 bytes of the device configuration.
    ///
    /// # Errors
    /// The bus's; not applicable if the configuration ends before it.
    pub fn config_field(&self, offset: usize, width: usize) -> Result<u64, Stop> {
        let config = self.device_config()?;
        let field = config.get(offset..offset + width);
        let field = field.ok_or(Stop::NotApplicable(Absent::Own(
            "device configuration so far",
        )))?;
        let mut bytes = [0; 8];
        for (byte, value) in bytes.iter_mut().zip(field) {
            *byte = *value;
        }
        Ok(u64::from_le_bytes(bytes))
    }
}

impl Disk<'_> {
    /// Carries out one request: a header, `data` for the device to read, `room` bytes for it to
    /// write, the status, each in a descriptor of its own.
    ///
    /// # Errors
    /// Inconclusive if it does not come back, or is larger than the case's buffers.
    pub fn ask(&mut self, kind: u32, sector: u64, data: &[u8], room: u64) -> Result<Reply, Stop> {
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        arose(bytes <= BUFFER && room <= BUFFER, || {
            format!("a request of {bytes} and {room} bytes does not fit into the case's memory")
        })?;
        let Self { bench, live, .. } = self;
        bench.step(format!(
            "request type {kind}, sector {sector}, {bytes} bytes to read, {room} to write"
        ));
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let memory = bench.memory();
        memory.write(self.header.offset, &header)?;
        memory.write(self.output.offset, data)?;
        bench.fill(self.input.part(0, room))?;
        bench.fill(self.status.part(0, 1))?;
        let segment = |span: Span, len: u64, writable| Segment {
            iova: span.iova,
            len: u32::try_from(len).unwrap_or(0),
            writable,
        };
        let chain = [
            segment(self.header, blk::HEADER, false),
            segment(self.output, bytes, false),
            segment(self.input, room, true),
            segment(self.status, 1, true),
        ];
        let chain: Vec<_> = chain.into_iter().filter(|part| part.len != 0).collect();
        let place = live.ring.next;
        live.ring.stage(0, &chain)?;
        live.ring.publish(live.ring.next)?;
        bench.kick(0)?;
        arose(bench.used_all(live)?, || {
            format!("a request of type {kind} does not come back")
        })?;
        let (_, used) = live.ring.used_element(place)?;
        let mut answer = Reply {
            status: 0,
            used,
            data: vec![0; usize::try_from(room).unwrap_or(0)],
        };
        let mut status = [0];
        memory.read(self.status.offset, &mut status)?;
        memory.read(self.input.offset, &mut answer.data)?;
        [answer.status] = status;
        bench.step(format!("status {}, used length {used}", answer.status));
        Ok(answer)
    }

    /// Reads sectors.
    ///
    /// # Errors
    /// Those of [`Disk::ask`]; inconclusive if the disk does not.
    pub fn read(&mut self, sector: u64, sectors: u64) -> Result<Vec<u8>, Stop> {
        let Reply { status, data, .. } = self.ask(blk::IN, sector, &[], blk::SECTOR * sectors)?;
        arose(status == blk::OK, || {
            format!("reading {sectors} sectors from {sector} ends in status {status}")
        })?;
        Ok(data)
    }

    /// Writes sectors and returns the status.
    ///
    /// # Errors
    /// Those of [`Disk::ask`].
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<u8, Stop> {
        Ok(self.ask(blk::OUT, sector, data, 0)?.status)
    }

    /// Bytes that a disk cannot tell beforehand, and that no two calls return.
    pub fn noise(&self, sectors: u64) -> Vec<u8> {
        let byte = |_| u8::try_from(self.bench.random(256)).unwrap_or(0);
        (0..blk::SECTOR * sectors).map(byte).collect()
    }
}
