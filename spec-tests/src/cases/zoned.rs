//! Disks with zones: what the configuration says, and whether it is so.

use super::{Case, plain, special};
use crate::clause;
use crate::constants::blk::{self, zone};
use crate::constants::{feature, status};
use crate::harness::{Absent, Bench, Judged, Stop, Zone, arose, demand};
use crate::target::Variant;

const UNZONED: &str = clause!(blk_init "D6");
const INSISTS: &str = clause!(blk_init "D7");
const MODEL: &str = clause!(blk_init "D8");
const SECTORS: &str = clause!(blk_init "D9");
const OPEN: &str = clause!(blk_init "D11");
const ACTIVE: &str = clause!(blk_init "D12");
const APPEND: &str = clause!(blk_init "D13");
const APPEND_FITS: &str = clause!(blk_init "D14");
const GRANULARITY: &str = clause!(blk_init "D16");
const PADDING: &str = clause!(blk_init "D17");
const ERASE_ALIGNED: &str = clause!(blk "D37");

pub(super) const CASES: &[Case] = &[
    special(
        "zone_fields_are_0_without_zoned",
        &[UNZONED],
        Variant::HostAware,
        fields_without_zoned,
    ),
    plain(
        "a_host_managed_disk_insists_on_zoned",
        &[INSISTS],
        insists_on_zoned,
    ),
    plain("the_zone_model_is_that_of_the_zones", &[MODEL], model),
    special(
        "the_zone_model_of_host_aware_zones",
        &[MODEL],
        Variant::HostAware,
        model,
    ),
    plain("zones_have_the_size_that_is_said", &[SECTORS], sectors),
    writing("as_many_zones_open_as_is_said", &[OPEN], open),
    writing("as_many_zones_active_as_is_said", &[ACTIVE], active),
    writing("the_largest_append_is_done", &[APPEND], largest_append),
    plain(
        "an_append_is_no_larger_than_a_request",
        &[APPEND_FITS],
        append_fits,
    ),
    writing("writes_are_aligned_as_is_said", &[GRANULARITY], granularity),
    plain("padding_after_the_zone_model_is_0", &[PADDING], padding),
    plain(
        "secure_erase_is_aligned_to_zones",
        &[ERASE_ALIGNED],
        erase_aligned,
    ),
];

pub(super) const fn writing(
    name: &'static str,
    clauses: &'static [&'static str],
    run: fn(&Bench) -> Judged,
) -> Case {
    Case {
        writes: true,
        ..plain(name, clauses, run)
    }
}

/// The zone fields, as they stand in the configuration.
fn fields(bench: &Bench) -> Result<Vec<u8>, Stop> {
    let config = bench.device_config()?;
    let fields = config.get(zone::FIELDS..zone::END);
    let fields = fields.ok_or(Stop::NotApplicable(Absent::Own("zone fields")))?;
    Ok(fields.to_vec())
}

/// Not applicable if the model, as it reads before features are agreed on, is another one.
fn is_model(bench: &Bench, model: u8, what: &'static str) -> Result<(), Stop> {
    bench.is_disk()?;
    if bench.offered()? & feature::BLK_ZONED == 0 {
        return Err(Stop::NotApplicable(Absent::Features(feature::BLK_ZONED)));
    }
    if bench.zone_model()? != model {
        return Err(Stop::NotApplicable(Absent::Own(what)));
    }
    Ok(())
}

fn fields_without_zoned(bench: &Bench) -> Judged {
    is_model(bench, zone::HOST_AWARE, "host-aware zones")?;
    bench.to_features_ok(feature::BLK_ZONED)?;
    let with = fields(bench)?;
    arose(with.iter().any(|byte| *byte != 0), || {
        "they are 0 with ZONED too".to_owned()
    })?;
    bench.to_features_ok(0)?;
    let without = fields(bench)?;
    demand(
        UNZONED,
        without.iter().all(|byte| *byte == 0),
        "zone fields 0 when ZONED is not negotiated",
        || format!("{without:02x?}"),
    )?;
    bench.up(0)?;
    Ok(String::new())
}

fn insists_on_zoned(bench: &Bench) -> Judged {
    is_model(bench, zone::HOST_MANAGED, "host-managed zones")?;
    for more in [0, feature::BLK_FLUSH] {
        bench.to_driver()?;
        let more = more & bench.offered()?;
        bench.accept((bench.basis()? | more) & !feature::BLK_ZONED)?;
        bench.set_status(status::AGREED)?;
        let shown = bench.status()?;
        demand(
            INSISTS,
            shown & status::FEATURES_OK == 0,
            "FEATURES_OK clear when ZONED is not negotiated",
            || format!("status {shown:#04x}"),
        )?;
    }
    bench.to_features_ok(feature::BLK_ZONED)?;
    Ok(String::new())
}

/// The model that the zones themselves are of.
fn model(bench: &Bench) -> Judged {
    let mut disk = bench.disk(feature::BLK_ZONED)?;
    let traits = bench.zone_traits()?;
    let answer = disk.ask(blk::ZONE_REPORT, 0, &[], 2 * zone::DESCRIPTOR)?;
    let zones = if answer.status == blk::OK {
        disk.zones(&traits)?
    } else {
        Vec::new()
    };
    let any = |kind| zones.iter().any(|one: &Zone| one.kind == kind);
    let (required, preferred) = (any(zone::REQUIRED), any(zone::PREFERRED));
    let fits = match traits.model {
        zone::HOST_MANAGED => !preferred,
        zone::HOST_AWARE => !required,
        0 => !required && !preferred,
        _ => false,
    };
    demand(
        MODEL,
        fits,
        "model 1 for zones to be written in sequence, 2 where that is preferred, else 0",
        || {
            format!(
                "model {}; zones where sequence is required: {required}, preferred: {preferred}",
                traits.model
            )
        },
    )?;
    Ok(format!("model {}", traits.model))
}

fn sectors(bench: &Bench) -> Judged {
    let mut disk = bench.disk(feature::BLK_ZONED)?;
    let traits = bench.zone_traits()?;
    arose(traits.zone_sectors > 0, || "zone_sectors is 0".to_owned())?;
    let zones = disk.zones(&traits)?;
    arose(zones.len() > 1, || format!("{} zones", zones.len()))?;
    for pair in zones.windows(2) {
        let [this, next] = pair else {
            continue;
        };
        let size = next.start.wrapping_sub(this.start);
        demand(
            SECTORS,
            size == traits.zone_sectors && this.capacity <= size,
            "zones of zone_sectors each, but for the last",
            || {
                let (start, capacity) = (this.start, this.capacity);
                format!(
                    "the zone at {start} has {size} sectors, {capacity} of them to write; zone_sectors is {}",
                    traits.zone_sectors
                )
            },
        )?;
    }
    Ok(format!("{} zones", zones.len()))
}

/// Zones that are opened until the limit is met, each of which has to succeed.
fn open(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let limit = usize::try_from(zoned.traits.max_open).unwrap_or(usize::MAX);
    if limit == 0 {
        return Err(Stop::NotApplicable(Absent::Own("limit of open zones")));
    }
    let zones = zoned.fresh(limit + 1)?;
    for (count, zone) in zones.iter().enumerate() {
        let status = zoned.command(blk::ZONE_OPEN, zone.start)?;
        let wanted = if count < limit {
            status == blk::OK
        } else {
            matches!(status, blk::ZONE_OPEN_RESOURCE | blk::ZONE_ACTIVE_RESOURCE)
        };
        demand(
            OPEN,
            wanted,
            "max_open_zones zones can be open, and no more",
            || format!("open {} of at most {limit}: status {status}", count + 1),
        )?;
    }
    Ok(format!("{limit} zones"))
}

/// Zones that are written in part and closed until the limit is met.
fn active(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let limit = usize::try_from(zoned.traits.max_active).unwrap_or(usize::MAX);
    if limit == 0 {
        return Err(Stop::NotApplicable(Absent::Own("limit of active zones")));
    }
    let zones = zoned.fresh(limit + 1)?;
    for (count, one) in zones.iter().enumerate() {
        let noise = zoned.disk.noise(zoned.traits.granule);
        let status = zoned.disk.write(one.start, &noise)?;
        let wanted = if count < limit {
            status == blk::OK
        } else {
            status == blk::ZONE_ACTIVE_RESOURCE
        };
        demand(
            ACTIVE,
            wanted,
            "max_active_zones zones can be active, and no more",
            || format!("active {} of at most {limit}: status {status}", count + 1),
        )?;
        if status == blk::OK {
            zoned.done(blk::ZONE_CLOSE, one.start)?;
        }
    }
    Ok(format!("{limit} zones"))
}

fn largest_append(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let most = zoned.traits.max_append / zoned.traits.granule * zoned.traits.granule;
    if most == 0 {
        return Err(Stop::NotApplicable(Absent::Own("appends")));
    }
    let one = zoned.one("zones with room for the largest append", |one| {
        one.is_fresh() && one.capacity >= most
    })?;
    let noise = zoned.disk.noise(most);
    let (status, place) = zoned.append(one.start, &noise)?;
    let stored = status == blk::OK && zoned.disk.read(one.start, most)? == noise;
    demand(
        APPEND,
        stored,
        "an append of max_append_sectors carried out",
        || format!("status {status} for {most} sectors; they are at {place}: {stored}"),
    )?;
    Ok(format!("{most} sectors"))
}

fn append_fits(bench: &Bench) -> Judged {
    let need = feature::BLK_ZONED | feature::BLK_SIZE_MAX | feature::BLK_SEG_MAX;
    bench.is_disk()?;
    bench.to_features_ok(need)?;
    let traits = bench.zone_traits()?;
    let size = bench.config_field(blk::SIZE_MAX, 4)?;
    let segments = bench.config_field(blk::SEG_MAX, 4)?;
    let product = size * segments;
    demand(
        APPEND_FITS,
        traits.max_append <= product,
        "max_append_sectors at most seg_max times size_max",
        || {
            format!(
                "{} with {segments} segments of {size} bytes",
                traits.max_append
            )
        },
    )?;
    let fits = blk::SECTOR.saturating_mul(traits.max_append) <= product;
    Ok(format!(
        "the same in bytes, which the text does not say: {fits}"
    ))
}

fn granularity(bench: &Bench) -> Judged {
    let mut zoned = bench.zoned(0)?;
    let granule = zoned.traits.granule;
    let bytes = bench.config_field(zone::GRANULARITY, 4)?;
    demand(
        GRANULARITY,
        bytes != 0 && bytes.is_multiple_of(blk::SECTOR),
        "write_granularity is a multiple of a sector",
        || format!("{bytes} bytes"),
    )?;
    let [one, other] = zoned.fresh(2)?[..] else {
        return Err(Stop::Inconclusive("no two zones".to_owned()));
    };
    for step in 0..3 {
        let noise = zoned.disk.noise(granule);
        let status = zoned.disk.write(one.start + step * granule, &noise)?;
        demand(
            GRANULARITY,
            status == blk::OK,
            "a write of write_granularity at a multiple of it carried out",
            || format!("write {step} ends in status {status}"),
        )?;
    }
    if granule > 1 {
        let noise = zoned.disk.noise(granule - 1);
        let status = zoned.disk.write(other.start, &noise)?;
        let now = zoned.now(&other)?;
        demand(
            GRANULARITY,
            status != blk::OK && now.pointer == other.start,
            "a write of less than write_granularity not carried out",
            || format!("status {status}, the write pointer at {}", now.pointer),
        )?;
    }
    Ok(format!("{bytes} bytes"))
}

fn padding(bench: &Bench) -> Judged {
    bench.is_disk()?;
    bench.to_features_ok(feature::BLK_ZONED)?;
    let all = fields(bench)?;
    arose(all.iter().any(|byte| *byte != 0), || {
        "all zone fields are 0".to_owned()
    })?;
    let (_, padding) = all.split_at(zone::UNUSED2 - zone::FIELDS);
    demand(
        PADDING,
        padding.iter().all(|byte| *byte == 0),
        "unused2 is 0",
        || format!("{padding:02x?}"),
    )?;
    Ok(String::new())
}

fn erase_aligned(bench: &Bench) -> Judged {
    bench.is_disk()?;
    bench.to_features_ok(feature::BLK_ZONED | feature::BLK_SECURE_ERASE)?;
    let traits = bench.zone_traits()?;
    arose(traits.zone_sectors > 0, || "zone_sectors is 0".to_owned())?;
    let alignment = bench.config_field(blk::ERASE_ALIGNMENT, 4)?;
    demand(
        ERASE_ALIGNED,
        alignment.is_multiple_of(traits.zone_sectors),
        "secure_erase_sector_alignment is a multiple of zone_sectors",
        || format!("{alignment}, with zones of {}", traits.zone_sectors),
    )?;
    Ok(format!("{alignment} sectors"))
}
