//! DEVICE_FEATURE: migration and DMA logging, for a VMM's VFIO code.

use super::dma::Maps;
use super::frame::DATA_MAX;
use super::message::{Feature, LogControl, LogRange, LogReport, MigrationState};
use super::migration::Migration;
use super::served::{Migrates, Refusal, Served};
use rustix::io::Errno;
use std::ops::Range;
use zerocopy::{FromBytes, IntoBytes};

/// Numbers of features.
mod number {
    pub(super) const MIGRATION: u32 = 1;
    pub(super) const MIG_DEVICE_STATE: u32 = 2;
    pub(super) const LOG_START: u32 = 6;
    pub(super) const LOG_STOP: u32 = 7;
    pub(super) const LOG_REPORT: u32 = 8;
}

/// Bits of `flags` beside the number.
const NUMBER: u32 = 0xffff;
const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;
/// Of the ways to migrate only the one that every device has: stop, then copy.
const STOP_COPY: u64 = 1;
/// Most ranges that are logged at once. QEMU asks for three.
const RANGES_MAX: u32 = 1 << 10;
/// Where logging without ranges ends, unless memory is mapped beyond: 1 TiB.
const EVERYTHING: u64 = 1 << 40;

/// What a client has under way.
#[derive(Debug, Default)]
pub(super) struct Features {
    pub(super) migration: Migration,
    /// Where the logging of all writes ends, if that is on.
    everything: Option<u64>,
}

/// What else DEVICE_FEATURE needs to know.
pub(super) struct Around<'a> {
    pub(super) served: &'a dyn Served,
    pub(super) maps: &'a Maps,
    /// Nobody waits for the answer.
    pub(super) posted: bool,
}

impl Features {
    /// DEVICE_FEATURE: appends the answer's payload.
    pub(super) fn carry_out(
        &mut self,
        around: &Around<'_>,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let (ask, data) = Feature::read_from_prefix(payload).map_err(|_| {
            let got = payload.len();
            Refusal::invalid(format!(
                "DEVICE_FEATURE of {got} bytes, at least 8 expected"
            ))
        })?;
        let flags = ask.flags.get();
        let number = flags & NUMBER;
        let offered = match number {
            number::MIGRATION | number::LOG_REPORT => GET,
            number::MIG_DEVICE_STATE => GET | SET,
            number::LOG_START | number::LOG_STOP => SET,
            _ => 0,
        };
        let device = around.served.migrates().filter(|_| offered != 0);
        let device = device.ok_or_else(|| {
            let why = format!("feature {number}, which there is not");
            Refusal::new(Errno::NOTTY, why)
        })?;
        let ways = flags & (GET | SET);
        let fits = flags & !(NUMBER | GET | SET | PROBE) == 0 && ways & !offered == 0;
        if !fits || (flags & PROBE == 0 && ways.count_ones() != 1) {
            let why = format!("feature {number} with flags {flags:#x}, which it has not");
            return Err(Refusal::invalid(why));
        }
        let start = out.len();
        out.extend_from_slice(payload);
        if flags & PROBE != 0 {
            return Ok(());
        }
        if ways == SET {
            return self.set(around, device, number, data, out.get_mut(start..));
        }
        out.truncate(start);
        // The answer's length is known beforehand: what has no room is not taken from the device.
        let report = match number {
            number::LOG_REPORT => Some(self.judge_report(data)?),
            _ => None,
        };
        let size = size_of::<Feature>()
            + match &report {
                Some((_, _, words)) => size_of::<LogReport>() + words * 8,
                None => 8,
            };
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let head = Feature {
            argsz: size.into(),
            ..ask
        };
        out.extend_from_slice(head.as_bytes());
        if ask.argsz.get() < size || around.posted {
            return Ok(());
        }
        match report {
            Some((range, unit, words)) => {
                let mut bits = vec![0; words];
                device.log_report(&range, unit, &mut bits)?;
                out.extend_from_slice(data);
                out.extend_from_slice(bits.as_bytes());
            }
            None if number == number::MIGRATION => {
                out.extend_from_slice(STOP_COPY.as_bytes());
            }
            None => out.extend_from_slice(self.migration.get(device).as_bytes()),
        }
        Ok(())
    }

    fn set(
        &mut self,
        around: &Around<'_>,
        device: &dyn Migrates,
        number: u32,
        data: &[u8],
        answer: Option<&mut [u8]>,
    ) -> Result<(), Refusal> {
        let short = |expected: usize| {
            let got = data.len();
            let why = format!("feature {number} with {got} bytes of data, {expected} expected");
            Refusal::invalid(why)
        };
        match number {
            number::MIG_DEVICE_STATE => {
                let ask = MigrationState::read_from_bytes(data);
                let ask = ask.map_err(|_| short(size_of::<MigrationState>()))?;
                self.migration.set(device, &ask)
            }
            number::LOG_STOP => {
                self.everything = None;
                device.log_stop()
            }
            _ => {
                let (mut ask, rest) = LogControl::read_from_prefix(data)
                    .map_err(|_| short(size_of::<LogControl>()))?;
                let count = ask.num_ranges.get();
                if count > RANGES_MAX {
                    let why = format!("{count} ranges, at most {RANGES_MAX} expected");
                    return Err(Refusal::new(Errno::TOOBIG, why));
                }
                let bytes = usize::try_from(count).unwrap_or(usize::MAX) * size_of::<LogRange>();
                if rest.len() != bytes {
                    return Err(short(size_of::<LogControl>() + bytes));
                }
                let (ranges, everything) = if count == 0 {
                    let end = EVERYTHING.max(around.maps.end());
                    (vec![0..end], Some(end))
                } else {
                    let ranges = rest.chunks_exact(size_of::<LogRange>());
                    (ranges.map(range).collect::<Result<_, _>>()?, None)
                };
                let page_size = device.log_start(ask.page_size.get(), &ranges)?;
                self.everything = everything;
                // The answer is what was asked, but for the size.
                ask.page_size = page_size.into();
                let at = size_of::<Feature>()..size_of::<Feature>() + size_of::<LogControl>();
                if let Some(room) = answer.and_then(|answer| answer.get_mut(at)) {
                    room.copy_from_slice(ask.as_bytes());
                }
                Ok(())
            }
        }
    }

    /// What is to be reported, in which unit, and how many words that takes.
    fn judge_report(&self, data: &[u8]) -> Result<(Range<u64>, u64, usize), Refusal> {
        let ask = LogReport::read_from_bytes(data).map_err(|_| {
            let got = data.len();
            Refusal::invalid(format!("a report with {got} bytes of data, 24 expected"))
        })?;
        let (iova, length, unit) = (ask.iova.get(), ask.length.get(), ask.page_size.get());
        let bad = |why: &str| {
            let what = format!("a report of {length:#x} bytes at {iova:#x} by {unit:#x}: {why}");
            Refusal::invalid(what)
        };
        if !unit.is_power_of_two() || unit < 4096 {
            return Err(bad("a power of two of at least 4096 expected"));
        }
        let end = iova.checked_add(length).filter(|_| length != 0);
        let end = end.ok_or_else(|| bad("the range is empty or wraps"))?;
        if !iova.is_multiple_of(unit) {
            return Err(bad("the first page begins elsewhere"));
        }
        let words = length.div_ceil(unit).div_ceil(64);
        let words = usize::try_from(words).ok();
        let words = words.filter(|words| *words <= DATA_MAX / 8);
        let words = words.ok_or_else(|| bad("a bitmap of at most 1 MiB expected; ask in parts"))?;
        Ok((iova..end, unit, words))
    }

    /// Whether a map may end there: all writes are logged, as far as that was promised.
    pub(super) fn judge_map(&self, end: u64) -> Result<(), Refusal> {
        match self.everything {
            Some(logged) if end > logged => {
                let why = format!("a map up to {end:#x}; writes are logged below {logged:#x} only");
                Err(Refusal::new(Errno::NOSPC, why))
            }
            _ => Ok(()),
        }
    }
}

/// One range of LOG_START. Its end may be the end of all addresses, where nothing can be mapped.
fn range(bytes: &[u8]) -> Result<Range<u64>, Refusal> {
    let range = LogRange::read_from_bytes(bytes).unwrap_or_default();
    let (iova, length) = (range.iova.get(), range.length.get());
    let last = length
        .checked_sub(1)
        .and_then(|more| iova.checked_add(more));
    match last {
        Some(last) => Ok(iova..last.saturating_add(1)),
        None => Err(Refusal::invalid(format!(
            "a range of {length:#x} bytes at {iova:#x} to be logged: it is empty or wraps"
        ))),
    }
}
