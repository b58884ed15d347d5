//! Zones in memory, and what requests make of them.

use spec::zoned::{Descriptor, ReportHeader, kind, request, state, status};
use zerocopy::IntoBytes;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Sectors of a zone; the last one has half as many.
pub(super) const ZONE: u64 = 128;
/// The same, for walks over zones.
const STEP: usize = 128;
/// Of these, sectors that can be written in a sequential zone; all of the last one.
const WRITABLE: u64 = 96;
/// Sectors that writes to sequential zones are aligned to.
pub(super) const GRANULE: u64 = 8;
/// Most zones that can be open.
pub(super) const OPEN_MAX: usize = 3;
/// Most zones that can be open or closed.
pub(super) const ACTIVE_MAX: usize = 5;
/// Most sectors of an append.
pub(super) const APPEND_MAX: u64 = 48;
/// Sectors of the disk: fifteen zones and a half.
pub(super) const CAPACITY: u64 = 15 * ZONE + ZONE / 2;
/// Zones at the beginning that are written anywhere.
const CONVENTIONAL: u64 = 2;
/// The zone that failed and can only be read, and the one that cannot even be read.
const READ_ONLY: u64 = 12;
const OFFLINE: u64 = 13;
/// What unwritten sectors read as.
const UNWRITTEN: u8 = 0xe5;

/// A request that was not carried out: its status.
type Done<T> = Result<T, u8>;

#[derive(Clone, Copy, Debug)]
struct Zone {
    start: u64,
    capacity: u64,
    pointer: u64,
    kind: u8,
    state: u8,
}

impl Zone {
    fn is_open(&self) -> bool {
        matches!(self.state, state::IMPLICITLY_OPEN | state::EXPLICITLY_OPEN)
    }

    fn is_active(&self) -> bool {
        self.is_open() || self.state == state::CLOSED
    }

    fn end(&self) -> u64 {
        self.start + self.capacity
    }
}

/// All zones and what is written in them. Unwritten sectors hold [`UNWRITTEN`] at any time.
#[derive(Debug)]
pub(super) struct Zones {
    zones: Vec<Zone>,
    data: Vec<u8>,
    append_max: u64,
    resets: u64,
}

fn bytes(sectors: u64) -> usize {
    usize::try_from(sectors * SECTOR).unwrap_or(usize::MAX)
}

impl Zones {
    /// Two conventional zones, then zones of `sequential` kind, of which one is read-only and one
    /// offline. Conventional and read-only zones hold what no buffer of a case does.
    pub(super) fn new(sequential: u8, append_max: u64) -> Self {
        let zone = |index: u64| {
            let start = index * ZONE;
            let (kind, state) = match index {
                0..CONVENTIONAL => (kind::CONVENTIONAL, state::NOT_WP),
                READ_ONLY => (sequential, state::READ_ONLY),
                OFFLINE => (sequential, state::OFFLINE),
                _ => (sequential, state::EMPTY),
            };
            let all = ZONE.min(CAPACITY - start);
            let capacity = if kind == kind::CONVENTIONAL {
                all
            } else {
                all.min(WRITABLE)
            };
            Zone {
                start,
                capacity,
                pointer: start,
                kind,
                state,
            }
        };
        let zones: Vec<Zone> = (0..CAPACITY.div_ceil(ZONE)).map(zone).collect();
        let mut data = vec![UNWRITTEN; bytes(CAPACITY)];
        for zone in &zones {
            if matches!(zone.state, state::NOT_WP | state::READ_ONLY) {
                let content = (1..=80_u8).cycle();
                let written = data.iter_mut().skip(bytes(zone.start));
                for (byte, value) in written.take(bytes(zone.capacity)).zip(content) {
                    *byte = value;
                }
            }
        }
        Self {
            zones,
            data,
            append_max,
            resets: 0,
        }
    }

    /// How often zones were reset: the wear of what this stands for.
    pub(super) fn resets(&self) -> u64 {
        self.resets
    }

    /// The zones of `len` bytes from `sector` on, and how many sectors that is.
    fn touched(&self, sector: u64, len: u64) -> Done<(std::ops::RangeInclusive<usize>, u64)> {
        let sectors = len / SECTOR;
        let end = sector.saturating_add(sectors);
        if !len.is_multiple_of(SECTOR) || sectors == 0 || end > CAPACITY {
            return Err(spec::blk::status::IOERR);
        }
        let index = |sector: u64| usize::try_from(sector / ZONE).unwrap_or(usize::MAX);
        Ok((index(sector)..=index(end - 1), sectors))
    }

    /// Refuses a request to sequential-write-required zones that is not within one, and any to an
    /// offline zone.
    fn within(&self, touched: &std::ops::RangeInclusive<usize>) -> Done<()> {
        let zones = self.zones.get(touched.clone()).unwrap_or(&[]);
        let crosses = zones.len() > 1
            && zones
                .iter()
                .any(|zone| zone.kind == kind::SEQUENTIAL_REQUIRED);
        let offline = zones.iter().any(|zone| zone.state == state::OFFLINE);
        if crosses || offline {
            return Err(status::INVALID_CMD);
        }
        Ok(())
    }

    pub(super) fn read(&self, sector: u64, len: u64) -> Done<&[u8]> {
        let (touched, sectors) = self.touched(sector, len)?;
        self.within(&touched)?;
        let from = bytes(sector);
        let data = self.data.get(from..from + bytes(sectors));
        data.ok_or(spec::blk::status::IOERR)
    }

    pub(super) fn write(&mut self, sector: u64, data: &[u8]) -> Done<()> {
        let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let (touched, sectors) = self.touched(sector, len)?;
        self.within(&touched)?;
        let end = sector + sectors;
        for index in touched {
            let zone = *self.zones.get(index).ok_or(spec::blk::status::IOERR)?;
            match zone.kind {
                kind::CONVENTIONAL => {}
                _ if zone.state == state::READ_ONLY => return Err(status::INVALID_CMD),
                kind::SEQUENTIAL_REQUIRED => {
                    if zone.state == state::FULL {
                        return Err(status::INVALID_CMD);
                    }
                    if sector != zone.pointer || !end.is_multiple_of(GRANULE) {
                        return Err(status::UNALIGNED_WP);
                    }
                    if end > zone.end() {
                        return Err(status::INVALID_CMD);
                    }
                    self.open(index, state::IMPLICITLY_OPEN)?;
                    self.advance(index, end);
                }
                _ => {
                    // A sequential-write-preferred zone takes what comes, up to its capacity.
                    let end = end.min(zone.start + ZONE);
                    if end > zone.end() {
                        return Err(status::INVALID_CMD);
                    }
                    if zone.state != state::FULL {
                        self.open(index, state::IMPLICITLY_OPEN)?;
                        self.advance(index, end.max(zone.pointer));
                    }
                }
            }
        }
        let from = bytes(sector);
        if let Some(place) = self.data.get_mut(from..from + data.len()) {
            place.copy_from_slice(data);
        }
        Ok(())
    }

    /// Writes at the write pointer; returns the sector where that was.
    pub(super) fn append(&mut self, sector: u64, data: &[u8]) -> Done<u64> {
        let sectors = u64::try_from(data.len()).unwrap_or(u64::MAX) / SECTOR;
        if self.append_max == 0 {
            return Err(spec::blk::status::UNSUPP);
        }
        let zone = self.zones.iter().find(|zone| zone.start == sector);
        let zone = zone.filter(|zone| zone.kind == kind::SEQUENTIAL_REQUIRED);
        let pointer = zone.ok_or(status::INVALID_CMD)?.pointer;
        if sectors > self.append_max {
            return Err(status::INVALID_CMD);
        }
        self.write(pointer, data)?;
        Ok(pointer)
    }

    fn advance(&mut self, index: usize, to: u64) {
        if let Some(zone) = self.zones.get_mut(index) {
            zone.pointer = to;
            if to == zone.end() {
                zone.state = state::FULL;
            }
        }
    }

    /// Brings a zone into an open state, as far as zones may be open and active. An implicitly open
    /// one gives way.
    fn open(&mut self, index: usize, wanted: u8) -> Done<()> {
        let zone = *self.zones.get(index).ok_or(status::INVALID_CMD)?;
        if !zone.is_open() {
            let active = self.zones.iter().filter(|zone| zone.is_active()).count();
            if !zone.is_active() && active >= ACTIVE_MAX {
                return Err(status::ACTIVE_RESOURCE);
            }
            let open = self.zones.iter().filter(|zone| zone.is_open()).count();
            if open >= OPEN_MAX {
                let mut zones = self.zones.iter_mut();
                let other = zones.find(|zone| zone.state == state::IMPLICITLY_OPEN);
                other.ok_or(status::OPEN_RESOURCE)?.state = state::CLOSED;
            }
        }
        if let Some(zone) = self.zones.get_mut(index)
            && zone.state != state::EXPLICITLY_OPEN
        {
            zone.state = wanted;
        }
        Ok(())
    }

    /// Opens, closes, finishes or resets the zone that begins at `sector`.
    pub(super) fn command(&mut self, kind: u32, sector: u64) -> Done<()> {
        let index = self.zones.iter().position(|zone| zone.start == sector);
        let index = index.ok_or(status::INVALID_CMD)?;
        let zone = *self.zones.get(index).ok_or(status::INVALID_CMD)?;
        let next = match (kind, zone.state) {
            (request::ZONE_OPEN, state::EMPTY | state::CLOSED)
            | (request::ZONE_OPEN, state::IMPLICITLY_OPEN | state::EXPLICITLY_OPEN) => {
                return self.open(index, state::EXPLICITLY_OPEN);
            }
            (request::ZONE_CLOSE, state::EXPLICITLY_OPEN) if zone.pointer == zone.start => {
                state::EMPTY
            }
            (request::ZONE_CLOSE, state::CLOSED)
            | (request::ZONE_CLOSE, state::IMPLICITLY_OPEN | state::EXPLICITLY_OPEN) => {
                state::CLOSED
            }
            (request::ZONE_FINISH, state::FULL)
            | (request::ZONE_FINISH, state::IMPLICITLY_OPEN | state::EXPLICITLY_OPEN) => {
                state::FULL
            }
            (request::ZONE_RESET, state::EMPTY) => return Ok(()),
            (request::ZONE_RESET, _) if zone.is_active() || zone.state == state::FULL => {
                self.reset(index);
                return Ok(());
            }
            _ => return Err(status::INVALID_CMD),
        };
        if let Some(zone) = self.zones.get_mut(index) {
            zone.state = next;
        }
        Ok(())
    }

    fn reset(&mut self, index: usize) {
        if let Some(zone) = self.zones.get_mut(index) {
            zone.state = state::EMPTY;
            zone.pointer = zone.start;
            let from = bytes(zone.start);
            if let Some(data) = self.data.get_mut(from..from + bytes(zone.capacity)) {
                data.fill(UNWRITTEN);
            }
            self.resets += 1;
        }
    }

    pub(super) fn reset_all(&mut self) {
        for index in 0..self.zones.len() {
            let zone = self.zones.get(index);
            if zone.is_some_and(|zone| zone.is_active() || zone.state == state::FULL) {
                self.reset(index);
            }
        }
    }

    /// Resets the zones of a range, which has to be of whole zones.
    pub(super) fn erase(&mut self, sector: u64, sectors: u64) -> Done<()> {
        let whole = sector.is_multiple_of(ZONE) && sectors.is_multiple_of(ZONE);
        if !whole || sectors == 0 || sector.saturating_add(sectors) > CAPACITY {
            return Err(status::INVALID_CMD);
        }
        for start in (sector..sector + sectors).step_by(STEP) {
            self.command(request::ZONE_RESET, start)?;
        }
        Ok(())
    }

    /// As many descriptors as `room` bytes hold, from the zone of `sector` on.
    pub(super) fn report(&self, sector: u64, room: u64) -> Done<Vec<u8>> {
        let most = usize::try_from(room / 64).unwrap_or(usize::MAX);
        let most = most.checked_sub(1).ok_or(status::INVALID_CMD)?;
        if sector >= CAPACITY {
            return Err(status::INVALID_CMD);
        }
        let first = usize::try_from(sector / ZONE).unwrap_or(usize::MAX);
        let zones: Vec<_> = self.zones.iter().skip(first).take(most).collect();
        let header = ReportHeader {
            nr_zones: u64::try_from(zones.len()).unwrap_or(0).into(),
            ..ReportHeader::default()
        };
        let mut report = header.as_bytes().to_vec();
        for zone in zones {
            let descriptor = Descriptor {
                z_cap: zone.capacity.into(),
                z_start: zone.start.into(),
                z_wp: zone.pointer.into(),
                kind: zone.kind,
                state: zone.state,
                ..Descriptor::default()
            };
            report.extend_from_slice(descriptor.as_bytes());
        }
        Ok(report)
    }
}
