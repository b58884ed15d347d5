//! The disk: requests and their rules.

use super::chain::Chain;
use super::ledger::{Ledger, rules};
use super::memory::Memory;
use super::plan::{Kind, Plan};
use super::zoned::{self, Zones};
use crate::clause;
use crate::constants::feature;
use rustix::fs::MemfdFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

rules! {
    WITHIN = clause!(blk "R2"), "stays_within_capacity": "sector and length of every read and write";
    FLUSH_SECTOR = clause!(blk "R4"), "flush_has_sector_0": "the sector of every flush";
    FLUSH_DATA = clause!(blk "R5"), "flush_has_no_data": "data of every flush";
    SECTORS = clause!(blk "R6"), "data_are_whole_sectors": "data of every read and write";
    SEGMENTS = clause!(blk "R7"), "data_are_whole_segments": "data of every discard, secure erase and write zeroes";
    ID = clause!(blk "R8"), "id_has_20_bytes": "data of every GET_ID";
    DISCARDS = clause!(blk "R9"), "discards_few_segments": "segments of every discard";
    ERASES = clause!(blk "R10"), "erases_few_segments": "segments of every secure erase";
    ZEROES = clause!(blk "R11"), "zeroes_few_segments": "segments of every write zeroes";
    UNMAP = clause!(blk "R14"), "discards_without_unmap": "flags of every segment of a discard";
    READ_ONLY = clause!(blk "R3"), "accepts_read_only": "RO is offered";
}

const SIZE: u64 = 8 << 20;
const SEG_MAX: u32 = 16;
const MAX_SEGMENTS: u64 = 4;
const F_SEG_MAX: u64 = 1 << 2;
const F_BLK_SIZE: u64 = 1 << 6;
const OFFERED: u64 = F_SEG_MAX
    | F_BLK_SIZE
    | feature::BLK_FLUSH
    | feature::BLK_CONFIG_WCE
    | feature::BLK_DISCARD
    | feature::BLK_WRITE_ZEROES
    | feature::BLK_SECURE_ERASE;

/// Fields of the configuration that depend on a feature.
pub(super) const FIELDS: &[(u64, u64, u64)] = &[
    (8, 12, 1 << 1),
    (12, 16, F_SEG_MAX),
    (16, 20, 1 << 4),
    (20, 24, F_BLK_SIZE),
    (24, 32, 1 << 10),
    (32, 33, feature::BLK_CONFIG_WCE),
    (34, 36, 1 << 12),
    (36, 48, feature::BLK_DISCARD),
    (48, 57, feature::BLK_WRITE_ZEROES),
    (60, 72, feature::BLK_SECURE_ERASE),
    (72, 96, feature::BLK_ZONED),
];

/// A disk.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    sectors: u64,
    more: u64,
    writeback: u8,
    zones: Option<Zones>,
    read_only: bool,
}

/// A request, as far as all kinds are alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) kind: u32,
    pub(super) sector: u64,
    /// Bytes for the device to read, without the header.
    pub(super) out: u64,
    /// Bytes for the device to write, without the status.
    pub(super) room: u64,
}

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

impl Disk {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let file = match &plan.disk {
            Some(path) => OpenOptions::new().read(true).write(true).open(path)?,
            None => {
                let memory = rustix::fs::memfd_create("tidemark-judge", MemfdFlags::CLOEXEC)?;
                let file = File::from(memory);
                file.set_len(SIZE)?;
                file
            }
        };
        Ok(Self {
            sectors: file.metadata()?.len() / 512,
            file,
            more: 0,
            writeback: 1,
            read_only: plan.read_only,
            zones: (plan.kind == Kind::Zoned).then(Zones::new),
        })
    }

    pub(super) fn features(&self) -> u64 {
        let zoned = if self.zones.is_some() {
            feature::BLK_ZONED
        } else {
            0
        };
        let read_only = if self.read_only { feature::BLK_RO } else { 0 };
        OFFERED | zoned | read_only
    }

    pub(super) fn chain_limit(&self, features: u64) -> Option<usize> {
        let limit = usize::try_from(SEG_MAX + 2).ok()?;
        (features & F_SEG_MAX != 0).then_some(limit)
    }

    pub(super) fn negotiated(&mut self, accepted: u64, book: &mut Ledger) {
        if self.read_only {
            let took = accepted & feature::BLK_RO != 0;
            book.check(&READ_ONLY, took, || {
                format!("FEATURES_OK {} RO", if took { "with" } else { "without" })
            });
        }
        if self.zones.is_some() {
            zoned::negotiated(accepted, book);
        }
    }

    pub(super) fn config(&self) -> Vec<u8> {
        let mut bytes = vec![0; 96];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &(self.sectors + self.more).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &512_u32.to_le_bytes());
        put(32, &[self.writeback]);
        put(34, &1_u16.to_le_bytes());
        let segments = MAX_SEGMENTS.to_le_bytes();
        let segments = &segments[..4];
        for at in [36, 48, 60] {
            put(at, &2048_u32.to_le_bytes());
            put(at + 4, segments);
        }
        put(44, &8_u32.to_le_bytes());
        put(68, &8_u32.to_le_bytes());
        if self.zones.is_some() {
            zoned::config(&mut bytes);
        }
        bytes
    }

    pub(super) fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let (32, [value @ (0 | 1)]) = (offset, data) {
            self.writeback = *value;
        }
    }

    pub(super) fn grow(&mut self) {
        self.more += 8;
    }

    pub(super) fn reset(&mut self) {
        self.writeback = 1;
    }

    /// Carries out a request.
    pub(super) fn process(&mut self, book: &mut Ledger, memory: &Memory, chain: &Chain) -> u32 {
        let mut header = [0; 16];
        let got = chain.read(memory, 0, &mut header);
        let room = chain.writable();
        if got < header.len() || room == 0 {
            return 0;
        }
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte))
        };
        let request = Request {
            kind: u32::try_from(number(&header[..4])).unwrap_or(u32::MAX),
            sector: number(&header[8..]),
            out: chain.readable() - 16,
            room: room - 1,
        };
        self.judge(book, memory, chain, request);
        let (status, written) = self.carry_out(book, memory, chain, request);
        chain.write(memory, room - 1, &[status]);
        u32::try_from(written + 1).unwrap_or(u32::MAX)
    }

    fn judge(&self, book: &mut Ledger, memory: &Memory, chain: &Chain, request: Request) {
        let Request {
            kind,
            sector,
            out,
            room,
        } = request;
        match kind {
            0 | 1 => {
                let len = if kind == 0 { room } else { out };
                book.check(&SECTORS, len.is_multiple_of(512), || format!("{len} bytes"));
                let capacity = self.sectors + self.more;
                let end = sector.saturating_add(len.div_ceil(512));
                book.check(&WITHIN, end <= capacity, || {
                    format!("sectors {sector} to {end} of {capacity}")
                });
            }
            4 => {
                book.check(&FLUSH_SECTOR, sector == 0, || format!("sector {sector}"));
                book.check(&FLUSH_DATA, out + room == 0, || {
                    format!("{} bytes", out + room)
                });
            }
            8 => book.check(&ID, room == 20, || format!("{room} bytes")),
            11 | 13 | 14 => {
                book.check(&SEGMENTS, out.is_multiple_of(16) && out > 0, || {
                    format!("{out} bytes")
                });
                let rule = match kind {
                    11 => &DISCARDS,
                    13 => &ZEROES,
                    _ => &ERASES,
                };
                let count = out / 16;
                book.check(rule, count <= MAX_SEGMENTS, || {
                    format!("{count} segments of {MAX_SEGMENTS}")
                });
                for at in (0..count.min(64)).filter(|_| kind == 11) {
                    let mut flags = [0; 4];
                    chain.read(memory, 16 + 16 * at + 12, &mut flags);
                    book.check(&UNMAP, flags[0] & 1 == 0, || format!("flags {flags:02x?}"));
                }
            }
            _ => {}
        }
    }

    fn carry_out(
        &mut self,
        book: &mut Ledger,
        memory: &Memory,
        chain: &Chain,
        request: Request,
    ) -> (u8, u64) {
        let Request {
            kind,
            sector,
            out,
            room,
        } = request;
        if let Some(zones) = &mut self.zones {
            zones.judge(book, request);
        }
        match kind {
            0 => {
                // The size comes from the driver; what it has no memory for is not its to ask.
                let mut buffer = vec![0; usize::try_from(room.min(16 << 20)).unwrap_or(0)];
                let done = self.read(&mut buffer, sector);
                let written = chain.write(memory, 0, &buffer) as u64;
                (if done.is_ok() { OK } else { IOERR }, written)
            }
            1 => {
                let mut buffer = vec![0; usize::try_from(out.min(16 << 20)).unwrap_or(0)];
                chain.read(memory, 16, &mut buffer);
                (
                    if self.write(&buffer, sector) {
                        OK
                    } else {
                        IOERR
                    },
                    0,
                )
            }
            4 | 11 | 14 => (OK, 0),
            8 => (
                OK,
                chain.write(
                    memory,
                    0,
                    &b"tidemark-judge\0\0\0\0\0\0"[..usize::try_from(room.min(20)).unwrap_or(0)],
                ) as u64,
            ),
            13 => {
                let mut kept = true;
                for at in 0..(out / 16).min(MAX_SEGMENTS) {
                    let mut segment = [0; 12];
                    chain.read(memory, 16 + 16 * at, &mut segment);
                    let number = |bytes: &[u8]| {
                        bytes
                            .iter()
                            .rev()
                            .fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte))
                    };
                    let len = usize::try_from(number(&segment[8..]).min(2048)).unwrap_or(0);
                    kept &= self.write(&vec![0; len * 512], number(&segment[..8]));
                }
                (if kept { OK } else { IOERR }, 0)
            }
            15..=26 if self.zones.is_some() => {
                let mut none = Zones::new();
                self.zones
                    .as_mut()
                    .unwrap_or(&mut none)
                    .carry_out(memory, chain, request)
            }
            _ => (UNSUPPORTED, 0),
        }
    }

    /// What lies beyond the file, where the disk grew, reads 0.
    fn read(&self, buffer: &mut [u8], sector: u64) -> io::Result<()> {
        let mut done = 0;
        let at = sector.saturating_mul(512);
        while done < buffer.len() {
            match self
                .file
                .read_at(&mut buffer[done..], at.saturating_add(done as u64))?
            {
                0 => break,
                count => done += count,
            }
        }
        Ok(())
    }

    fn write(&self, buffer: &[u8], sector: u64) -> bool {
        let end = sector.saturating_add(buffer.len() as u64 / 512);
        let within = end <= self.sectors + self.more && !self.read_only;
        within && self.file.write_all_at(buffer, sector * 512).is_ok()
    }
}
