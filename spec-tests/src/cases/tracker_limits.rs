//! The dirty pages tracker: its registers, its length, when it is off, and resets.

use super::tracker::guards_are_clean;
use super::{Case, plain, special};
use crate::constants::{PAGE, TRACKER_LEN, cfg_type, feature, pci, reg, status};
use crate::harness::{Absent, Bench, Bitmap, Judged, Live, QUIET, Stop, arose, demand, pages_of};
use crate::target::{DMA_PASID, Variant};

pub(super) const CASES: &[Case] = &[
    plain("a_capability_announces_it", &["T-F1", "TL-1"], announced),
    special(
        "no_capability_without_it",
        &["T-F1"],
        Variant::NoTracker,
        not_announced,
    ),
    plain("the_fields_are_there", &["T-F2"], fields),
    plain("halves_are_independent", &["TL-4", "PC-1"], halves),
    plain("reserved_fields_read_0", &["TL-2"], reserved),
    plain("enable_takes_0_and_1_only", &["TL-3"], enable_values),
    plain("length_is_in_bytes", &["T-F4", "DT-2"], short_bitmap),
    special(
        "whole_bytes_stay_within_the_length",
        &["DT-2"],
        Variant::ByteMarking,
        short_bitmap,
    ),
    plain(
        "nothing_beyond_the_length_at_any_granularity",
        &["DT-2"],
        short_at_every_granularity,
    ),
    plain("pages_beyond_the_length", &["DT-11"], beyond_length),
    plain(
        "pasid_is_ignored_without_the_capability",
        &["DT-5"],
        pasid_absent,
    ),
    special(
        "pasid_is_ignored_while_disabled",
        &["DT-5"],
        Variant::PasidDisabled,
        pasid_ignored,
    ),
    special(
        "pasid_is_20_bits",
        &["TL-5"],
        Variant::PasidEnabled,
        pasid_bits,
    ),
    plain("a_device_reset_clears_it", &["DT-6", "T-F8"], reset_clears),
    plain(
        "a_function_level_reset_clears_it",
        &["DT-6", "T-F8"],
        flr_clears,
    ),
    plain("no_mark_after_a_reset", &["DT-6"], reset_stops_marks),
    plain("no_mark_while_disabled", &["DT-10"], disabled),
    plain("no_mark_with_address_0", &["DT-10"], address_0),
    plain("no_mark_with_length_0", &["DT-10"], length_0),
    plain(
        "no_mark_after_it_was_switched_off",
        &["DT-10"],
        switched_off,
    ),
];

fn announced(bench: &Bench) -> Judged {
    let cap = bench
        .caps
        .first(cfg_type::TRACKER)
        .ok_or(Stop::NotApplicable(Absent::Tracker))?;
    let region = cap.region;
    let aligned = region.offset.is_multiple_of(4);
    demand("TL-1", aligned, "a region at a multiple of 4", || {
        format!("{region:x?}")
    })?;
    let enough = region.length >= TRACKER_LEN;
    demand("TL-1", enough, "at least 32 bytes", || {
        format!("{region:x?}")
    })?;
    for offset in 0..TRACKER_LEN {
        bench
            .bus
            .bar_read(region.bar, region.offset + offset, &mut [0])?;
    }
    Ok(format!("BAR {} at {:#x}", region.bar, region.offset))
}

fn not_announced(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    let none = bench.caps.tracker().is_none();
    demand("T-F1", none, "no capability without the facility", || {
        format!("{:x?}", bench.caps.tracker())
    })?;
    Ok(String::new())
}

fn fields(bench: &Bench) -> Judged {
    bench.to_features_ok(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track_at(bitmap.bits.iova, bitmap.bits.len, 0)?;
    let shown = [
        bench.get(reg::TRACKER_ENABLE)?,
        bench.get(reg::TRACKER_GRA_POWER)?,
        bench.get_wide(reg::TRACKER_ADDR)?,
        bench.get_wide(reg::TRACKER_LENGTH)?,
    ];
    let want = [1, 0, bitmap.bits.iova, bitmap.bits.len];
    demand(
        "T-F2",
        shown == want,
        "enable, gra_power, address and length as written",
        || format!("{shown:x?}, written {want:x?}"),
    )?;
    Ok(String::new())
}

fn halves(bench: &Bench) -> Judged {
    if bench.caps.tracker().is_none() {
        return Err(Stop::NotApplicable(Absent::Tracker));
    }
    for field in [reg::TRACKER_ADDR, reg::TRACKER_LENGTH] {
        let [low, high] = field;
        bench.put(low, 0x1234_5678)?;
        bench.put(high, 0x9a)?;
        bench.put(low, 0x7654_3210)?;
        let shown = bench.get_wide(field)?;
        for clause in ["TL-4", "PC-1"] {
            demand(
                clause,
                shown == 0x9a_7654_3210,
                "each half written by itself",
                || format!("{} and its other half: {shown:#x}", low.name),
            )?;
        }
    }
    Ok(String::new())
}

fn reserved(bench: &Bench) -> Judged {
    let zero = |bench: &Bench, when: &str| -> Result<(), Stop> {
        let short = bench.get(reg::TRACKER_RESERVED_2)?;
        let long = bench.get_wide(reg::TRACKER_RESERVED_24)?;
        demand(
            "TL-2",
            short == 0 && long == 0,
            "reserved fields read 0",
            || format!("{short:#x} at 2 and {long:#x} at 24 {when}"),
        )
    };
    zero(bench, "before a write")?;
    bench.put(reg::TRACKER_RESERVED_2, 0xffff)?;
    bench.put_wide(reg::TRACKER_RESERVED_24, u64::MAX)?;
    zero(bench, "after all ones were written")?;
    Ok(String::new())
}

fn enable_values(bench: &Bench) -> Judged {
    bench.to_features_ok(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    for (before, write_first) in [(1, 1), (0, 0)] {
        bench.put(reg::TRACKER_ENABLE, write_first)?;
        for value in [2, 3, 0x80, 0xff] {
            bench.put(reg::TRACKER_ENABLE, value)?;
            let shown = bench.get(reg::TRACKER_ENABLE)?;
            demand(
                "TL-3",
                shown == before,
                "values but 0 and 1 are ignored",
                || format!("enable reads {shown} after {value:#x}, {before} before"),
            )?;
        }
    }
    Ok(String::new())
}

/// A bitmap that ends within the case's memory, so that some pages have no bit.
fn short(bench: &Bench, gra_power: u64) -> Result<Bitmap, Stop> {
    let whole = bench.bitmap(gra_power)?;
    let len = ((bench.memory().iova() >> (12 + gra_power)) / 8).max(1);
    arose(len < whole.bits.len, || {
        "all memory is covered by the least bitmap".to_owned()
    })?;
    Ok(Bitmap {
        all: whole.all,
        bits: whole.all.part(PAGE, len),
    })
}

fn overrun(bench: &Bench, live: &mut Live, gra_power: u64, clause: &'static str) -> Judged {
    let bitmap = short(bench, gra_power)?;
    bench.track(bitmap, gra_power)?;
    let covered = bitmap.bits.len * 8;
    let data = bench.buffer(4096)?;
    arose(
        pages_of(data)
            .iter()
            .all(|page| page >> gra_power >= covered),
        || "the page has a bit".to_owned(),
    )?;
    bench.exchange(live, data)?;
    bench.put(reg::TRACKER_ENABLE, 0)?;
    guards_are_clean(bench, bitmap, clause)?;
    Ok(format!("{} bytes, {covered} pages", bitmap.bits.len))
}

fn short_bitmap(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    overrun(bench, &mut live, 0, "T-F4")?;
    overrun(bench, &mut live, 0, "DT-2")
}

fn short_at_every_granularity(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let mut note = String::new();
    for gra_power in [0, 1, 2, 3, 4] {
        note = overrun(bench, &mut live, gra_power, "DT-2")?;
    }
    Ok(note)
}

fn beyond_length(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    overrun(bench, &mut live, 0, "DT-11")?;
    let shown = bench.status()?;
    if shown & status::NEEDS_RESET != 0 {
        return Ok("it asks for a reset".to_owned());
    }
    let data = bench.buffer(512)?;
    bench.request(&mut live, data)?;
    bench.kick(0)?;
    let works = bench.used_all(&live)?;
    demand(
        "DT-11",
        works,
        "DEVICE_NEEDS_RESET, or a device that goes on",
        || format!("status {shown:#04x} and no further request is carried out"),
    )?;
    Ok("the mark is dropped and the device goes on".to_owned())
}

fn pasid_absent(bench: &Bench) -> Judged {
    arose(bench.caps.pasid.is_none(), || {
        "the PASID capability is present".to_owned()
    })?;
    pasid_ignored(bench)
}

fn pasid_ignored(bench: &Bench) -> Judged {
    let before = bench.get(reg::TRACKER_PASID)?;
    let value = u64::from(DMA_PASID);
    arose(before != value, || {
        "pasid holds the value already".to_owned()
    })?;
    if let Some(at) = bench.caps.pasid {
        let control = bench.config_word(at + 6)?;
        arose(control & 1 == 0, || "PASID is enabled".to_owned())?;
    }
    bench.put(reg::TRACKER_PASID, value)?;
    let after = bench.get(reg::TRACKER_PASID)?;
    demand("DT-5", after == before, "the write is ignored", || {
        format!("{before:#x} became {after:#x}")
    })?;
    Ok(String::new())
}

fn pasid_bits(bench: &Bench) -> Judged {
    let at = bench.caps.pasid;
    let at = at.ok_or(Stop::NotApplicable(Absent::Variant(Variant::PasidEnabled)))?;
    let control = bench.config_word(at + 6)?;
    arose(control & 1 == 1, || {
        format!("PASID is disabled, id {:#x}", pci::EXTENDED_PASID)
    })?;
    bench.put(reg::TRACKER_PASID, 0xffff_ffff)?;
    let shown = bench.get(reg::TRACKER_PASID)?;
    demand("TL-5", shown == 0xf_ffff, "20 bits, the others 0", || {
        format!("{shown:#x}")
    })?;
    Ok(String::new())
}

fn registers(bench: &Bench) -> Result<[u64; 5], Stop> {
    Ok([
        bench.get(reg::TRACKER_ENABLE)?,
        bench.get(reg::TRACKER_GRA_POWER)?,
        bench.get(reg::TRACKER_PASID)?,
        bench.get_wide(reg::TRACKER_ADDR)?,
        bench.get_wide(reg::TRACKER_LENGTH)?,
    ])
}

fn cleared_by(bench: &Bench, reset: impl Fn() -> Result<(), Stop>) -> Judged {
    bench.up(0)?;
    let bitmap = bench.bitmap(1)?;
    bench.track(bitmap, 1)?;
    let before = registers(bench)?;
    arose(before != [0; 5], || "the registers are 0 before".to_owned())?;
    reset()?;
    let after = registers(bench)?;
    for clause in ["DT-6", "T-F8"] {
        demand(clause, after == [0; 5], "all five fields 0", || {
            format!("enable, gra_power, pasid, address, length: {after:x?}, before {before:x?}")
        })?;
    }
    Ok(String::new())
}

fn reset_clears(bench: &Bench) -> Judged {
    cleared_by(bench, || bench.reset())
}

fn flr_clears(bench: &Bench) -> Judged {
    cleared_by(bench, || bench.function_reset())
}

fn reset_stops_marks(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    arose(!bench.marked(bitmap)?.is_empty(), || {
        "nothing was marked before".to_owned()
    })?;
    // Work is under way when the reset comes.
    for _ in 0..live.capacity() {
        let data = bench.buffer(512)?;
        bench.request(&mut live, data)?;
    }
    bench.kick(0)?;
    bench.reset()?;
    bench.clear(bitmap)?;
    let late = bench.wait(QUIET, || Ok(!bench.marked(bitmap)?.is_empty()))?;
    demand("DT-6", !late, "no mark after the reset", || {
        format!("{:x?}", bench.marked(bitmap))
    })?;
    let mut again = bench.up(0)?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut again, data)?;
    let marked = bench.marked(bitmap)?;
    demand(
        "DT-6",
        marked.is_empty(),
        "no tracking until it is enabled again",
        || format!("{marked:x?} after initialisation and a request"),
    )?;
    Ok(String::new())
}

/// Shows that tracking works, then that it does not with these settings.
fn nothing_marked(bench: &Bench, setting: impl Fn(Bitmap) -> Result<(), Stop>) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    arose(!bench.marked(bitmap)?.is_empty(), || {
        "nothing is marked when it is on".to_owned()
    })?;
    bench.put(reg::TRACKER_ENABLE, 0)?;
    bench.clear(bitmap)?;
    setting(bitmap)?;
    let data = bench.buffer(4096)?;
    bench.exchange(&mut live, data)?;
    let marked = bench.wait(QUIET, || Ok(bench.first_nonzero(bitmap.all)?.is_some()))?;
    demand("DT-10", !marked, "the bitmap is not written", || {
        format!(
            "byte {:x?} of bitmap and guards",
            bench.first_nonzero(bitmap.all)
        )
    })?;
    let shown = bench.status()?;
    arose(shown == status::RUNNING, || format!("status {shown:#04x}"))?;
    Ok(String::new())
}

fn disabled(bench: &Bench) -> Judged {
    nothing_marked(bench, |_| Ok(()))
}

fn address_0(bench: &Bench) -> Judged {
    nothing_marked(bench, |bitmap| bench.track_at(0, bitmap.bits.len, 0))
}

fn length_0(bench: &Bench) -> Judged {
    nothing_marked(bench, |bitmap| bench.track_at(bitmap.bits.iova, 0, 0))
}

fn switched_off(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::VERSION_1)?;
    let bitmap = bench.bitmap(0)?;
    let mut marks = 0;
    for _ in 0..6 {
        bench.track(bitmap, 0)?;
        for _ in 0..live.capacity() {
            let data = bench.buffer(512)?;
            bench.request(&mut live, data)?;
        }
        bench.kick(0)?;
        bench.put(reg::TRACKER_ENABLE, 0)?;
        marks += bench.marked(bitmap)?.len();
        bench.clear(bitmap)?;
        arose(bench.used_all(&live)?, || {
            "the requests were not carried out".to_owned()
        })?;
        let touched = bench.wait(QUIET / 5, || Ok(bench.first_nonzero(bitmap.all)?.is_some()))?;
        demand(
            "DT-10",
            !touched,
            "no mark once the write of 0 has returned",
            || format!("byte {:x?}", bench.first_nonzero(bitmap.all)),
        )?;
    }
    Ok(format!("{marks} marks before it was off"))
}
