//! The host-managed zoned disk.

use super::blk::Request;
use super::chain::Chain;
use super::ledger::{Ledger, rules};
use super::memory::Memory;
use crate::clause;
use crate::constants::feature;

rules! {
    NO_DISCARD = clause!(blk_init "R6"), "accepts_no_discard_with_zones": "DISCARD is offered by a host-managed disk and must not be accepted";
    UNFIT = clause!(blk_init "R8"), "does_not_drive_zones_unknowingly": "a host-managed disk: FEATURES_OK without ZONED must not be set";
    ALIGNED = clause!(blk "R17"), "zone_sectors_are_addresses": "the sector of every zone request is within the disk, in units of 512 bytes";
    REPORT = clause!(blk "R18"), "reports_begin_in_a_zone": "the sector of every zone report";
    FIRST = clause!(blk "R20"), "zones_are_named_by_their_first_sector": "the sector of every open, close, finish and reset";
    ALL = clause!(blk "R21"), "reset_all_has_sector_0": "the sector of every reset of all zones";
    APPEND = clause!(blk "R22"), "appends_name_the_first_sector": "the sector of every append";
    APPEND_SIZE = clause!(blk "R23"), "appends_are_of_a_size": "data of every append, against granularity and limit";
    GRANULE = clause!(blk "R25"), "zone_writes_are_granular": "data of every write";
    GRANULE_AT = clause!(blk "R26"), "zone_writes_begin_on_a_granule": "the sector of every write";
    POINTER = clause!(blk "R27"), "zone_writes_fit": "every write, against the write pointer and the zone's capacity";
}

/// Sectors of a zone and of the disk, all sequential.
const ZONE: u64 = 2048;
const ZONES: u64 = 8;
const COUNT: usize = 8;
const GRANULARITY: u64 = 4096;
const MAX_APPEND: u64 = 64;

/// Requests.
const OUT: u32 = 1;
const APPEND_KIND: u32 = 15;
const REPORT_KIND: u32 = 16;
const OPEN: u32 = 18;
const CLOSE: u32 = 20;
const FINISH: u32 = 22;
const RESET: u32 = 24;
const RESET_ALL: u32 = 26;

const OK: u8 = 0;
const INVALID: u8 = 3;

/// The write pointers, in sectors from the start of each zone.
#[derive(Debug)]
pub(super) struct Zones {
    pointers: [u64; COUNT],
}

pub(super) fn negotiated(accepted: u64, book: &mut Ledger) {
    let zoned = accepted & feature::BLK_ZONED != 0;
    book.check(&UNFIT, zoned, || {
        format!(
            "FEATURES_OK {} ZONED",
            if zoned { "with" } else { "without" }
        )
    });
    if zoned {
        let discard = accepted & feature::BLK_DISCARD != 0;
        book.check(&NO_DISCARD, !discard, || {
            format!("ZONED {} DISCARD", if discard { "with" } else { "without" })
        });
    }
}

/// The driver set FAILED and not FEATURES_OK.
pub(super) fn left_alone(book: &mut Ledger) {
    book.kept(&UNFIT, "it set FAILED");
}

pub(super) fn config(bytes: &mut [u8]) {
    let fields = [
        (72, ZONE),
        (76, ZONES),
        (80, ZONES),
        (84, MAX_APPEND),
        (88, GRANULARITY),
    ];
    for (at, value) in fields {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()[..4]);
    }
    // Host-managed.
    bytes[92] = 1;
}

impl Zones {
    pub(super) fn new() -> Self {
        Self {
            pointers: [0; COUNT],
        }
    }

    fn pointer(&mut self, sector: u64) -> Option<&mut u64> {
        self.pointers.get_mut(usize::try_from(sector / ZONE).ok()?)
    }

    pub(super) fn judge(&mut self, book: &mut Ledger, request: Request) {
        let Request {
            kind, sector, out, ..
        } = request;
        let first = sector.is_multiple_of(ZONE) && sector < ZONE * ZONES;
        let saw = || format!("sector {sector}, zones have {ZONE}");
        if (APPEND_KIND..=RESET_ALL).contains(&kind) {
            let within = sector < ZONE * ZONES;
            book.check(&ALIGNED, within, || {
                format!("sector {sector} of {}", ZONE * ZONES)
            });
        }
        match kind {
            REPORT_KIND => book.check(&REPORT, sector < ZONE * ZONES, saw),
            OPEN | CLOSE | FINISH | RESET => book.check(&FIRST, first, saw),
            RESET_ALL => book.check(&ALL, sector == 0, saw),
            APPEND_KIND => {
                book.check(&APPEND, first, saw);
                let fits = out.is_multiple_of(GRANULARITY) && out <= 512 * MAX_APPEND;
                book.check(&APPEND_SIZE, fits, || format!("{out} bytes"));
            }
            OUT => {
                book.check(&GRANULE, out.is_multiple_of(GRANULARITY), || {
                    format!("{out} bytes")
                });
                let granules = GRANULARITY / 512;
                book.check(&GRANULE_AT, sector.is_multiple_of(granules), saw);
                let at = sector % ZONE;
                let pointer = self.pointer(sector).copied();
                let fits = pointer == Some(at) && at + out / 512 <= ZONE;
                book.check(&POINTER, fits, || {
                    format!("{out} bytes at sector {sector}, the write pointer is at {pointer:?} of the zone")
                });
                if let Some(pointer) = self.pointer(sector)
                    && fits
                {
                    *pointer += out / 512;
                }
            }
            _ => {}
        }
    }

    pub(super) fn carry_out(
        &mut self,
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
        let Some(pointer) = self.pointer(sector) else {
            return (INVALID, 0);
        };
        match kind {
            RESET => *pointer = 0,
            FINISH => *pointer = ZONE,
            RESET_ALL => self.pointers = [0; COUNT],
            APPEND_KIND => {
                let at = sector + *pointer;
                *pointer += out / 512;
                chain.write(memory, room.saturating_sub(8), &at.to_le_bytes());
                return (OK, room);
            }
            REPORT_KIND => {
                let mut report = vec![0; 64];
                report[..8].copy_from_slice(&ZONES.to_le_bytes());
                for (index, pointer) in (0..).zip(self.pointers) {
                    let mut zone = [0; 64];
                    zone[..8].copy_from_slice(&ZONE.to_le_bytes());
                    zone[8..16].copy_from_slice(&(index * ZONE).to_le_bytes());
                    zone[16..24].copy_from_slice(&(index * ZONE + pointer).to_le_bytes());
                    // Sequential write required; empty, or closed, or full.
                    zone[24] = 2;
                    zone[25] = if pointer == 0 { 1 } else { 4 };
                    report.extend(zone);
                }
                report.truncate(usize::try_from(room).unwrap_or(0));
                return (OK, chain.write(memory, 0, &report) as u64);
            }
            _ => {}
        }
        (OK, 0)
    }
}
