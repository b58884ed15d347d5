//! Disks: what their configuration says, what a read-only one refuses, what a driver did not agree
//! to.

use super::{Case, plain, special};
use crate::clause;
use crate::constants::blk::{self, zone};
use crate::constants::{feature, status};
use crate::harness::{Absent, Bench, Disk, Judged, Stop, arose, demand};
use crate::target::Variant;

const CACHE: &str = clause!(blk_init "D2");
const PADDING: &str = clause!(blk_init "D3");
const NO_ZONES: &str = clause!(blk_init "D4");
const CAPACITY: &str = clause!(blk "D2");
const READ_ONLY: &str = clause!(blk "D3");
const WEAR: &str = clause!(blk "D15");
const UNZONED: &str = clause!(blk "D16");

pub(super) const CASES: &[Case] = &[
    plain(
        "the_cache_is_writethrough_for_a_driver_that_cannot_flush",
        &[CACHE],
        cache_without_flush,
    ),
    plain("padding_of_a_disk_is_0", &[PADDING], padding).rings(),
    plain("zoned_is_offered_for_zones", &[NO_ZONES], zones_to_show),
    plain(
        "a_change_of_capacity_is_notified",
        &[CAPACITY],
        capacity_changes,
    ),
    Case {
        writes: true,
        ..special(
            "a_read_only_disk_is_not_written",
            &[READ_ONLY],
            Variant::ReadOnly,
            read_only,
        )
    }
    .rings(),
    plain("metrics_of_wear_are_not_reserved", &[WEAR], wear).rings(),
    plain("zone_requests_to_a_disk_without_zones", &[UNZONED], unzoned).rings(),
    Case {
        writes: true,
        ..special(
            "zone_requests_to_a_host_aware_disk_without_zoned",
            &[UNZONED],
            Variant::HostAware,
            unzoned_host_aware,
        )
    },
];

fn cache_without_flush(bench: &Bench) -> Judged {
    let both = feature::BLK_CONFIG_WCE | feature::BLK_FLUSH;
    bench.is_disk()?;
    let offset = usize::try_from(blk::WRITEBACK).unwrap_or(0);
    // What an earlier driver chose is not to be what this one begins with.
    bench.up(both)?;
    let region = bench.device_region()?;
    bench.step("write 1 to writeback");
    bench
        .bus
        .bar_write(region.bar, region.offset + blk::WRITEBACK, &[1])?;
    let first = bench.config_field(offset, 1)?;
    bench.to_features_ok(feature::BLK_CONFIG_WCE)?;
    let early = bench.config_field(offset, 1)?;
    let live = bench.queue_zero()?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    let late = bench.config_field(offset, 1)?;
    demand(
        CACHE,
        (early, late) == (0, 0),
        "writeback 0 with CONFIG_WCE and without FLUSH",
        || format!("{early} at FEATURES_OK, {late} at DRIVER_OK"),
    )?;
    Ok(format!("with FLUSH and after 1 was written: {first}"))
}

fn padding(bench: &Bench) -> Judged {
    bench.is_disk()?;
    bench.to_features_ok(0)?;
    let config = bench.device_config()?;
    arose(config.iter().take(8).any(|byte| *byte != 0), || {
        "capacity reads 0".to_owned()
    })?;
    let places = [
        blk::UNUSED0,
        blk::UNUSED1,
        blk::UNUSED1 + 1,
        blk::UNUSED1 + 2,
    ];
    let mut looked = 0_u32;
    for place in places {
        // A configuration may end before it.
        let Some(byte) = config.get(place) else {
            continue;
        };
        looked += 1;
        demand(PADDING, *byte == 0, "unused0 and unused1 are 0", || {
            format!("{byte:#x} at offset {place}")
        })?;
    }
    arose(looked > 0, || {
        format!("the configuration has {} bytes only", config.len())
    })?;
    Ok(format!("{looked} bytes"))
}

fn zones_to_show(bench: &Bench) -> Judged {
    bench.is_disk()?;
    if bench.offered()? & feature::BLK_ZONED == 0 {
        demand(
            NO_ZONES,
            true,
            "ZONED for disks with zones only",
            String::new,
        )?;
        return Ok("it is not offered".to_owned());
    }
    let mut disk = bench.disk(feature::BLK_ZONED)?;
    let traits = bench.zone_traits()?;
    if !matches!(traits.model, zone::HOST_MANAGED | zone::HOST_AWARE) {
        return Ok(format!(
            "model {}: that zones are managed by the disk itself cannot be told from none",
            traits.model
        ));
    }
    let zones = disk.zones(&traits)?;
    let sequential = zones.iter().filter(|one| one.kind != zone::CONVENTIONAL);
    let count = sequential.count();
    demand(
        NO_ZONES,
        count > 0,
        "ZONED for disks with zones only",
        || format!("none of {} zones is sequential", zones.len()),
    )?;
    Ok(format!("{count} of {} zones are sequential", zones.len()))
}

fn capacity_changes(bench: &Bench) -> Judged {
    bench.is_disk()?;
    bench.to_features_ok(0)?;
    let interrupt = bench.config_vector(0)?;
    let live = bench.queue_zero()?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    for _ in 0..3 {
        let before = bench.config_field(blk::CAPACITY, 8)?;
        bench.change_config()?;
        let fired = interrupt.wait(bench.limit);
        let after = bench.config_field(blk::CAPACITY, 8)?;
        arose(before != after, || format!("capacity stays {before}"))?;
        demand(
            CAPACITY,
            fired,
            "a configuration change notification",
            || format!("nothing came when capacity went from {before} to {after}"),
        )?;
    }
    Ok(String::new())
}

fn read_only(bench: &Bench) -> Judged {
    let mut disk = bench.disk(feature::BLK_RO)?;
    let capacity = bench.config_field(blk::CAPACITY, 8)?;
    for sectors in [1, 8, 32] {
        let sector = bench.random(capacity.saturating_sub(sectors));
        let before = disk.read(sector, sectors)?;
        let noise = disk.noise(sectors);
        let status = disk.write(sector, &noise)?;
        let after = disk.read(sector, sectors)?;
        demand(
            READ_ONLY,
            status == blk::IOERR && before == after,
            "a write ends in IOERR and writes nothing",
            || {
                let kept = before == after;
                format!("status {status} at sector {sector}; the sectors are as before: {kept}")
            },
        )?;
    }
    Ok(String::new())
}

fn wear(bench: &Bench) -> Judged {
    let mut disk = bench.disk(feature::BLK_LIFETIME)?;
    let answer = disk.ask(blk::GET_LIFETIME, 0, &[], blk::LIFETIME)?;
    arose(answer.status == blk::OK, || {
        format!("GET_LIFETIME ends in status {}", answer.status)
    })?;
    let (words, _) = answer.data.as_chunks::<2>();
    let metrics: Vec<_> = words.iter().map(|word| u16::from_le_bytes(*word)).collect();
    let known = metrics.iter().zip(blk::LIFETIME_MAX);
    demand(
        WEAR,
        metrics.len() == 3 && known.clone().all(|(value, most)| *value <= most),
        "no value above 3, 11 and 11",
        || format!("{metrics:?}"),
    )?;
    Ok(format!("{metrics:?}"))
}

/// Every request that ZONED brings, and how much of it the device is to read and to write.
const ZONE_REQUESTS: [(u32, usize, u64); 7] = [
    (blk::ZONE_REPORT, 0, 4 * zone::DESCRIPTOR),
    (blk::ZONE_OPEN, 0, 0),
    (blk::ZONE_CLOSE, 0, 0),
    (blk::ZONE_FINISH, 0, 0),
    (blk::ZONE_APPEND, 4096, 8),
    (blk::ZONE_RESET, 0, 0),
    (blk::ZONE_RESET_ALL, 0, 0),
];

fn refused(disk: &mut Disk<'_>, requests: &[(u32, usize, u64)]) -> Judged {
    for (kind, readable, room) in requests {
        let answer = disk.ask(*kind, 0, &vec![0; *readable], *room)?;
        demand(
            UNZONED,
            answer.status == blk::UNSUPP,
            "every zone request ends in UNSUPP",
            || format!("type {kind}: status {}", answer.status),
        )?;
    }
    Ok(format!("{} requests", requests.len()))
}

/// What would lose data on a disk that has zones is left to the case that may write.
fn unzoned(bench: &Bench) -> Judged {
    bench.is_disk()?;
    let offered = bench.offered()?;
    if bench.insisted(offered)? & feature::BLK_ZONED != 0 {
        return Err(Stop::NotApplicable(Absent::UNZONED));
    }
    let zones = offered & feature::BLK_ZONED != 0;
    let mut disk = bench.disk(0)?;
    let (harmless, _) = ZONE_REQUESTS.split_at(1);
    refused(&mut disk, if zones { harmless } else { &ZONE_REQUESTS })
}

fn unzoned_host_aware(bench: &Bench) -> Judged {
    bench.is_disk()?;
    let offered = bench.offered()?;
    if offered & feature::BLK_ZONED == 0 {
        return Err(Stop::NotApplicable(Absent::Features(feature::BLK_ZONED)));
    }
    if bench.zone_model()? != zone::HOST_AWARE {
        return Err(Stop::NotApplicable(Absent::Own("host-aware zones")));
    }
    let mut disk = bench.disk(0)?;
    arose(bench.status()? == status::RUNNING, || {
        "it does not run".to_owned()
    })?;
    refused(&mut disk, &ZONE_REQUESTS)
}
