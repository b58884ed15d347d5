//! A disk with zones: what it says of them, and commands to them.

use super::bench::Bench;
use super::disk::Disk;
use super::outcome::{Absent, Stop, arose};
use crate::constants::blk::{self, zone};
use crate::constants::feature;

/// Zones that are looked at; larger disks have more.
const ZONES_MAX: usize = 1 << 14;
/// Descriptors that are asked for at once.
const AT_ONCE: u64 = 2048;

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Sectors of the disk.
    pub capacity: u64,
    /// Sectors of a zone.
    pub zone_sectors: u64,
    /// Most open zones; 0 for no limit.
    pub max_open: u64,
    /// Most active zones; 0 for no limit.
    pub max_active: u64,
    /// Most sectors of an append; 0 if there is none.
    pub max_append: u64,
    /// Sectors that writes are aligned to.
    pub granule: u64,
    /// The model.
    pub model: u8,
}

/// What a report says of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Sectors that can be written when it is empty.
    pub capacity: u64,
    /// First sector.
    pub start: u64,
    /// Where the next write belongs.
    pub pointer: u64,
    /// Type.
    pub kind: u8,
    /// State.
    pub state: u8,
}

impl Zone {
    fn read(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            let word = bytes.get(at..at + 8)?.first_chunk::<8>()?;
            Some(u64::from_le_bytes(*word))
        };
        Some(Self {
            capacity: number(0)?,
            start: number(8)?,
            pointer: number(16)?,
            kind: *bytes.get(24)?,
            state: *bytes.get(25)?,
        })
    }

    /// Whether it is empty and must be written in sequence.
    pub fn is_fresh(&self) -> bool {
        self.kind == zone::REQUIRED && self.state == zone::EMPTY
    }
}

impl Bench {
    /// What the configuration says of zones, as it reads now.
    ///
    /// # Errors
    /// As [`Bench::config_field`].
    pub fn zone_traits(&self) -> Result<Traits, Stop> {
        let number = |offset| self.config_field(offset, 4);
        Ok(Traits {
            capacity: self.config_field(blk::CAPACITY, 8)?,
            zone_sectors: number(zone::SECTORS)?,
            max_open: number(zone::MAX_OPEN)?,
            max_active: number(zone::MAX_ACTIVE)?,
            max_append: number(zone::MAX_APPEND)?,
            granule: number(zone::GRANULARITY)?.div_ceil(blk::SECTOR).max(1),
            model: self.zone_model()?,
        })
    }

    /// The zone model, as it reads now.
    ///
    /// # Errors
    /// As [`Bench::config_field`].
    pub fn zone_model(&self) -> Result<u8, Stop> {
        let model = self.config_field(zone::MODEL, 1)?;
        Ok(u8::try_from(model).unwrap_or(u8::MAX))
    }

    /// Features without which the device type refuses to be driven: a host-managed disk insists
    /// on ZONED.
    ///
    /// # Errors
    /// The bus's.
    pub fn insisted(&self, offered: u64) -> Result<u64, Stop> {
        let may = offered & feature::BLK_ZONED != 0 && self.is_disk().is_ok();
        if may && self.zone_model()? == zone::HOST_MANAGED {
            return Ok(feature::BLK_ZONED);
        }
        Ok(0)
    }

    /// A running disk with ZONED and `need`, all of whose zones have been reset. What it holds is
    /// lost: for cases that write.
    ///
    /// # Errors
    /// Not applicable if it has no zones; inconclusive if they cannot be reset.
    pub fn zoned(&self, need: u64) -> Result<Zoned<'_>, Stop> {
        let mut disk = self.disk(feature::BLK_ZONED | need)?;
        let traits = self.zone_traits()?;
        if !matches!(traits.model, zone::HOST_MANAGED | zone::HOST_AWARE) {
            return Err(Stop::NotApplicable(Absent::Own("zones")));
        }
        let status = disk.ask(blk::ZONE_RESET_ALL, 0, &[], 0)?.status;
        arose(status == blk::OK, || {
            format!("resetting all zones ends in status {status}")
        })?;
        Ok(Zoned { disk, traits })
    }
}

impl Disk<'_> {
    /// Reports zones from the one of `sector` on.
    ///
    /// # Errors
    /// Those of [`Disk::ask`]; inconclusive if there is no report.
    pub fn report(&mut self, sector: u64, most: u64) -> Result<Vec<Zone>, Stop> {
        let room = zone::DESCRIPTOR * (1 + most);
        let answer = self.ask(blk::ZONE_REPORT, sector, &[], room)?;
        let (count, zones) = match answer.data.split_first_chunk::<8>() {
            Some((count, _)) => (u64::from_le_bytes(*count), answer.data.chunks(64).skip(1)),
            None => (0, [].chunks(64).skip(1)),
        };
        arose(answer.status == blk::OK && count <= most, || {
            let status = answer.status;
            format!("a report of {most} zones ends in status {status} with {count} zones")
        })?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Ok(zones.take(count).filter_map(Zone::read).collect())
    }

    /// Every zone, as far as they are looked at.
    ///
    /// # Errors
    /// Those of [`Disk::report`].
    pub fn zones(&mut self, traits: &Traits) -> Result<Vec<Zone>, Stop> {
        let mut all: Vec<Zone> = Vec::new();
        let mut sector = 0;
        while sector < traits.capacity && all.len() < ZONES_MAX {
            let some = self.report(sector, AT_ONCE)?;
            let Some(last) = some.last() else {
                break;
            };
            sector = last.start.saturating_add(traits.zone_sectors.max(1));
            all.extend(some);
        }
        Ok(all)
    }
}

/// A running disk with zones.
#[derive(Debug)]
pub struct Zoned<'a> {
    /// The disk.
    pub disk: Disk<'a>,
    /// What its configuration says.
    pub traits: Traits,
}

impl Zoned<'_> {
    /// The first `count` zones of a sort.
    ///
    /// # Errors
    /// Not applicable, as `what`, if there are not so many.
    pub fn some(
        &mut self,
        count: usize,
        what: &'static str,
        of: impl Fn(&Zone) -> bool,
    ) -> Result<Vec<Zone>, Stop> {
        let mut found = self.disk.zones(&self.traits)?;
        found.retain(of);
        found.truncate(count);
        if found.len() == count {
            Ok(found)
        } else {
            Err(Stop::NotApplicable(Absent::Own(what)))
        }
    }

    /// The first zone of a sort.
    ///
    /// # Errors
    /// As [`Zoned::some`].
    pub fn one(&mut self, what: &'static str, of: impl Fn(&Zone) -> bool) -> Result<Zone, Stop> {
        let found = self.some(1, what, of)?;
        let first = found.first().copied();
        first.ok_or(Stop::NotApplicable(Absent::Own(what)))
    }

    /// Empty zones that must be written in sequence.
    ///
    /// # Errors
    /// As [`Zoned::some`].
    pub fn fresh(&mut self, count: usize) -> Result<Vec<Zone>, Stop> {
        self.some(count, "empty zones to be written in sequence", |zone| {
            zone.is_fresh()
        })
    }

    /// One of them.
    ///
    /// # Errors
    /// As [`Zoned::some`].
    pub fn fresh_one(&mut self) -> Result<Zone, Stop> {
        self.one("empty zones to be written in sequence", Zone::is_fresh)
    }

    /// What a zone is like now.
    ///
    /// # Errors
    /// Those of [`Disk::report`]; inconclusive if it is not in the report.
    pub fn now(&mut self, zone: &Zone) -> Result<Zone, Stop> {
        let report = self.disk.report(zone.start, 1)?;
        let same = report.first().filter(|now| now.start == zone.start);
        same.copied().ok_or(Stop::Inconclusive(format!(
            "no report of the zone at {}",
            zone.start
        )))
    }

    /// Opens, closes, finishes or resets a zone; returns the status.
    ///
    /// # Errors
    /// Those of [`Disk::ask`].
    pub fn command(&mut self, kind: u32, sector: u64) -> Result<u8, Stop> {
        Ok(self.disk.ask(kind, sector, &[], 0)?.status)
    }

    /// As [`Zoned::command`], to bring about a situation.
    ///
    /// # Errors
    /// Inconclusive if it is not done.
    pub fn done(&mut self, kind: u32, sector: u64) -> Result<(), Stop> {
        let status = self.command(kind, sector)?;
        arose(status == blk::OK, || {
            format!("request type {kind} at sector {sector} ends in status {status}")
        })
    }

    /// Writes noise, to bring about a situation, and returns it.
    ///
    /// # Errors
    /// Inconclusive if it is not done.
    pub fn written(&mut self, sector: u64, sectors: u64) -> Result<Vec<u8>, Stop> {
        let noise = self.disk.noise(sectors);
        let status = self.disk.write(sector, &noise)?;
        arose(status == blk::OK, || {
            format!("writing {sectors} sectors at {sector} ends in status {status}")
        })?;
        Ok(noise)
    }

    /// Appends; returns the status and the sector that was written.
    ///
    /// # Errors
    /// Those of [`Disk::ask`].
    pub fn append(&mut self, sector: u64, data: &[u8]) -> Result<(u8, u64), Stop> {
        let answer = self.disk.ask(blk::ZONE_APPEND, sector, data, 8)?;
        let place = answer.data.first_chunk::<8>().copied().unwrap_or_default();
        Ok((answer.status, u64::from_le_bytes(place)))
    }
}
