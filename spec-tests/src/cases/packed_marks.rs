//! What the dirty pages tracker marks of packed rings.

use super::tracker::{Truth, union};
use super::{Case, plain};
use crate::constants::{PAGE, feature, reg};
use crate::harness::{
    Bench, Bitmap, Judged, PackedLive, QUIET, Span, Stop, arose, demand, pages_of,
};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

pub(super) const CASES: &[Case] = &[
    plain(
        "every_page_that_a_packed_queue_writes_is_marked",
        &["DT-1"],
        every_page,
    ),
    plain(
        "a_mark_is_visible_with_the_packed_used_flags",
        &["DT-8"],
        mark_before_used,
    ),
    plain("the_packed_ring_is_marked", &["DT-9"], ring_is_marked),
    plain(
        "packed_event_suppression_is_marked",
        &["DT-9"],
        event_is_marked,
    ),
    plain(
        "what_a_packed_queue_only_reads_stays_clean",
        &["TL-7"],
        read_pages_stay_clean,
    ),
    plain("suspend_drains_packed_marks", &["TL-6"], suspend_drains),
];

/// Posts requests for these buffers at once; returns what memory was when the device was told.
fn post(
    bench: &Bench,
    live: &mut PackedLive,
    bitmap: Bitmap,
    buffers: &[Span],
) -> Result<Truth, Stop> {
    let mut lists = Vec::new();
    for data in buffers {
        bench.fill(*data)?;
        lists.push(bench.packed_stage(live, *data)?);
    }
    // All but the first, which the device has to see before it takes any of the others.
    let first = lists.first().copied();
    for staged in lists.into_iter().skip(1) {
        live.ring.publish(staged)?;
    }
    let truth = Truth::except(bench, pages_of(bitmap.bits))?;
    if let Some(staged) = first {
        live.ring.publish(staged)?;
    }
    bench.kick(0)?;
    Ok(truth)
}

fn done(bench: &Bench, live: &mut PackedLive) -> Result<(), Stop> {
    arose(bench.packed_settled(live)?, || {
        format!("the requests were not carried out: {}", live.saw())
    })
}

fn buffers(bench: &Bench, lengths: &[u64]) -> Result<Vec<Span>, Stop> {
    lengths.iter().map(|len| bench.buffer(*len)).collect()
}

fn every_page(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let buffers = buffers(bench, &vec![4096; usize::from(live.capacity())])?;
    let least = union(&buffers);
    let mut note = String::new();
    // Over the end of the ring.
    for _ in 0..4 {
        bench.clear(bitmap)?;
        let truth = post(bench, &mut live, bitmap, &buffers)?;
        done(bench, &mut live)?;
        note = truth.check(bench, bitmap, 0, &least, &["DT-1"])?;
    }
    Ok(note)
}

fn mark_before_used(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    for _ in 0..200 {
        let data = bench.buffer(512)?;
        bench.packed_request(&mut live, data)?;
        bench.kick(0)?;
        let page = data.iova / PAGE;
        let used = bench.packed_settled(&mut live)?;
        // At once: the used flags were loaded with Acquire.
        let byte = bench
            .memory()
            .load_u8(bitmap.bits.offset + page / 8, Ordering::Acquire)?;
        arose(used && bench.filled(data)?, || {
            "the request was not carried out".to_owned()
        })?;
        demand(
            "DT-8",
            byte & 1 << (page % 8) != 0,
            "the mark no later than the used descriptor",
            || {
                format!(
                    "page {page:#x} was used and byte {} is {byte:#04x}",
                    page / 8
                )
            },
        )?;
    }
    Ok("200 requests".to_owned())
}

/// The ring takes two pages, and the second is written in the second half of a lap only.
fn ring_is_marked(bench: &Bench) -> Judged {
    const SIZE: u16 = 512;
    bench.to_features_ok(feature::RING_PACKED)?;
    bench.put(reg::QUEUE_SELECT, 0)?;
    let largest = bench.get(reg::QUEUE_SIZE)?;
    let size = SIZE.min(u16::try_from(largest).unwrap_or(SIZE));
    let mut live = bench.packed_of(size)?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let data = bench.buffer(512)?;
    let pages = live.ring.desc.len.div_ceil(PAGE);
    for page in 0..pages {
        let at = live.ring.desc.iova / PAGE + page;
        while live.ring.next.wrap && u64::from(live.ring.next.index) * 16 < page * PAGE {
            bench.fill(data)?;
            bench.packed_exchange(&mut live, data)?;
        }
        bench.clear(bitmap)?;
        let truth = post(bench, &mut live, bitmap, &[data])?;
        done(bench, &mut live)?;
        truth.check(bench, bitmap, 0, &BTreeSet::from([at]), &["DT-9"])?;
    }
    Ok(format!("{pages} pages of ring"))
}

fn event_is_marked(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(feature::EVENT_IDX)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let data = bench.buffer(512)?;
    let truth = post(bench, &mut live, bitmap, &[data])?;
    done(bench, &mut live)?;
    let device = live.ring.device;
    let written = bench.wait(QUIET, || Ok(bench.first_nonzero(device)?.is_some()))?;
    arose(written, || {
        "the device does not write its event suppression structure".to_owned()
    })?;
    truth.check(bench, bitmap, 0, &pages_of(device), &["DT-9"])
}

fn read_pages_stay_clean(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(feature::EVENT_IDX)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let buffers = buffers(bench, &[4096, 512])?;
    let truth = post(bench, &mut live, bitmap, &buffers)?;
    done(bench, &mut live)?;
    truth.check(bench, bitmap, 0, &union(&buffers), &["TL-7"])?;
    let marked = bench.marked(bitmap)?;
    let read = union(&[live.ring.driver, live.headers()]);
    let stray: Vec<_> = read.intersection(&marked).collect();
    // A page in the same byte as a written one may be marked with it (DT-3).
    let bytes: BTreeSet<u64> = truth.written(bench)?.iter().map(|page| page / 8).collect();
    let whole = bytes
        .iter()
        .all(|byte| (0..8).all(|bit| marked.contains(&(byte * 8 + bit))));
    demand(
        "TL-7",
        stray.is_empty() || whole,
        "no mark for pages that are only read",
        || format!("bits {stray:x?}"),
    )?;
    Ok(String::new())
}

fn suspend_drains(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(feature::SUSPEND)?;
    let bitmap = bench.bitmap(0)?;
    let buffers = buffers(bench, &vec![512; usize::from(live.capacity())])?;
    let mut most = 0;
    for round in 0..12 {
        bench.put(reg::TRACKER_ENABLE, 0)?;
        bench.clear(bitmap)?;
        bench.track(bitmap, 0)?;
        live.used.clear();
        let first = live.ring.next;
        let truth = post(bench, &mut live, bitmap, &buffers)?;
        // Every other suspend races with the first request.
        if round % 2 == 0 {
            let begun = bench.wait(bench.limit, || Ok(live.ring.used_at(first)?.is_some()))?;
            arose(begun, || "nothing is used".to_owned())?;
        }
        bench.suspend()?;
        let marked = bench.marked(bitmap)?;
        let idle = live.ring.used_at(first)?.is_none();
        // The page of the flags that make the first list available is the driver's writing too.
        if !idle {
            truth.check(bench, bitmap, 0, &BTreeSet::new(), &["TL-6"])?;
            most = most.max(truth.written(bench)?.len());
        }
        let later = bench.wait(QUIET / 5, || Ok(bench.marked(bitmap)? != marked))?;
        demand(
            "TL-6",
            !later,
            "no mark after SUSPEND reads back set",
            || format!("{marked:x?} became {:x?}", bench.marked(bitmap)),
        )?;
        bench.resume()?;
        bench.kick(0)?;
        arose(bench.packed_settled(&mut live)?, || {
            "requests are lost by the suspend".to_owned()
        })?;
    }
    arose(most > 0, || {
        "nothing was ever written before the suspend".to_owned()
    })?;
    Ok(format!("up to {most} pages before the suspend"))
}
