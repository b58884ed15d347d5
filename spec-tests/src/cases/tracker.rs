//! The dirty pages tracker: what is marked, when, and where.
//!
//! The truth is the bytes of memory: pages whose bytes differ were written.

use super::{Case, plain, special};
use crate::constants::{PAGE, feature, reg, ring};
use crate::harness::{
    Bench, Bitmap, Clauses, Judged, Live, QUIET, Span, Stop, arose, changed_pages, demand, pages_of,
};
use crate::target::{DMA_PASID, Variant};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    plain(
        "every_written_page_is_marked",
        &["DT-1", "T-F3", "T-F7"],
        every_page,
    ),
    plain(
        "every_written_page_is_marked_under_load",
        &["DT-1"],
        every_page_under_load,
    ),
    plain(
        "a_request_over_many_pages_marks_each",
        &["DT-1"],
        many_pages,
    ),
    plain("bit_n_of_byte_m_is_page_8m_plus_n", &["T-F3"], bit_order),
    plain("tracking_starts_with_enable", &["T-F5"], starts_with_enable),
    plain("tracking_starts_in_mid_flight", &["T-F5"], starts_in_flight),
    plain("gra_power_sets_the_page_size", &["T-F6"], granularity),
    special(
        "whole_bytes_may_be_marked",
        &["DT-3", "DT-1"],
        Variant::ByteMarking,
        whole_bytes,
    ),
    special(
        "a_raised_gra_power_is_shown_and_used",
        &["DT-4"],
        Variant::Coarse,
        raised,
    ),
    special(
        "another_pasid_is_not_tracked",
        &["T-F8"],
        Variant::PasidEnabled,
        other_pasid,
    ),
    plain(
        "a_mark_is_visible_with_the_used_index",
        &["DT-8"],
        mark_before_used,
    ),
    plain("used_ring_and_status_are_marked", &["DT-9"], ring_is_marked),
    plain("event_suppression_is_marked", &["DT-9"], event_is_marked),
    plain(
        "the_bitmaps_own_pages_are_not_marked",
        &["DT-9"],
        bitmap_is_not_marked,
    ),
    plain(
        "pages_that_are_only_read_stay_clean",
        &["TL-7"],
        read_pages_stay_clean,
    ),
    plain("suspend_drains_the_marks", &["TL-6"], suspend_drains),
];

/// What a case compares: memory at one time, and the pages that say nothing about marks.
pub(super) struct Truth {
    before: Vec<u8>,
    /// The bitmap's own, and the available ring's, which the driver's part writes.
    excluded: BTreeSet<u64>,
}

impl Truth {
    /// To be taken when requests are staged and the device has not been told of them yet: a
    /// running device may carry them out from then on.
    fn take(bench: &Bench, live: &Live, bitmap: Bitmap) -> Result<Self, Stop> {
        Self::except(bench, &pages_of(bitmap.bits) | &pages_of(live.ring.avail))
    }

    /// As [`Truth::take`], with the pages that say nothing about marks.
    pub(super) fn except(bench: &Bench, excluded: BTreeSet<u64>) -> Result<Self, Stop> {
        let before = bench.snapshot()?;
        Ok(Self { before, excluded })
    }

    /// Pages that the device has written since.
    pub(super) fn written(&self, bench: &Bench) -> Result<BTreeSet<u64>, Stop> {
        let after = bench.snapshot()?;
        let changed = changed_pages(&self.before, &after, bench.memory().iova());
        Ok(&changed - &self.excluded)
    }

    /// Every written page is marked, and at least those of `least` were written.
    pub(super) fn check(
        &self,
        bench: &Bench,
        bitmap: Bitmap,
        gra_power: u64,
        least: &BTreeSet<u64>,
        clauses: &[&'static str],
    ) -> Judged {
        let written = self.written(bench)?;
        arose(least.is_subset(&written), || {
            format!("pages {least:x?} should have been written, {written:x?} were")
        })?;
        let want: BTreeSet<u64> = written.iter().map(|page| page >> gra_power).collect();
        // The page of the used index may be marked after its store, which is what ended the wait
        // for the requests. Only a suspended device has nothing more to do.
        let grace = if clauses.contains(&"TL-6") {
            Duration::ZERO
        } else {
            bench.limit
        };
        bench.wait(grace, || Ok(want.is_subset(&bench.marked(bitmap)?)))?;
        let marked = bench.marked(bitmap)?;
        demand(
            clauses,
            want.is_subset(&marked),
            "a mark for every page that was written",
            || {
                let lost: BTreeSet<_> = want.difference(&marked).collect();
                format!("bits {lost:x?} are clear; written {written:x?}, marked {marked:x?}")
            },
        )?;
        let extra = marked.difference(&want).count();
        Ok(format!(
            "{} pages written, {extra} marks more than needed",
            written.len()
        ))
    }
}

pub(super) fn union(spans: &[Span]) -> BTreeSet<u64> {
    spans.iter().flat_map(|span| pages_of(*span)).collect()
}

/// Carries out requests of these lengths; returns what memory was before, and the buffers' pages.
fn do_requests(
    bench: &Bench,
    live: &mut Live,
    bitmap: Bitmap,
    lengths: &[u64],
) -> Result<(Truth, BTreeSet<u64>), Stop> {
    let mut buffers = Vec::new();
    for len in lengths.iter().copied() {
        let data = bench.buffer(len)?;
        bench.stage(live, data)?;
        buffers.push(data);
    }
    let truth = Truth::take(bench, live, bitmap)?;
    live.ring.publish(live.ring.next)?;
    bench.kick(0)?;
    arose(bench.used_all(live)?, || {
        "the requests were not carried out".to_owned()
    })?;
    Ok((truth, union(&buffers)))
}

fn every_page(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let (truth, least) = do_requests(bench, &mut live, bitmap, &[512, 4096, 1024])?;
    truth.check(bench, bitmap, 0, &least, &["DT-1", "T-F3", "T-F7"])
}

fn every_page_under_load(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let mut note = String::new();
    for _ in 0..6 {
        bench.clear(bitmap)?;
        let lengths = vec![4096; usize::from(live.capacity())];
        let (truth, least) = do_requests(bench, &mut live, bitmap, &lengths)?;
        note = truth.check(bench, bitmap, 0, &least, &["DT-1"])?;
    }
    Ok(note)
}

fn many_pages(bench: &Bench) -> Judged {
    // One request must fit what an entropy device gives at once too.
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let pages = bench.buffer(20 * PAGE)?;
    // It starts in the middle of a page and ends in the middle of another.
    let data = pages.part(512, 4096);
    bench.stage(&mut live, data)?;
    let truth = Truth::take(bench, &live, bitmap)?;
    live.ring.publish(live.ring.next)?;
    bench.kick(0)?;
    arose(bench.used_all(&live)?, || {
        "the request was not carried out".to_owned()
    })?;
    truth.check(bench, bitmap, 0, &pages_of(data), &["DT-1"])
}

fn bit_order(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    let pages = bench.buffer(16 * PAGE)?;
    let mut exact = 0_u32;
    for number in 0..16 {
        bench.put(reg::TRACKER_ENABLE, 0)?;
        bench.clear(bitmap)?;
        bench.track(bitmap, 0)?;
        let data = pages.part(number * PAGE, 512);
        bench.exchange(&mut live, data)?;
        let page = data.iova / PAGE;
        let at = bitmap.bits.offset + page / 8;
        let byte = bench.memory().load_u8(at, Ordering::Acquire)?;
        let want = 1_u8 << (page % 8);
        demand(
            "T-F3",
            byte & want != 0,
            "bit n % 8 of byte n / 8 for page n",
            || {
                format!(
                    "byte {} is {byte:#04x} after page {page:#x} was written",
                    page / 8
                )
            },
        )?;
        exact += u32::from(byte == want);
    }
    arose(exact > 0 || bench.marked(bitmap)?.len() >= 8, || {
        "no page has its own bit".to_owned()
    })?;
    Ok(format!("{exact} of 16 bytes held that bit alone"))
}

fn starts_with_enable(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track_at(bitmap.bits.iova, bitmap.bits.len, 0)?;
    bench.put(reg::TRACKER_ENABLE, 0)?;
    // A device may touch its ring when the queue starts, and that may fall between the two writes.
    bench.clear(bitmap)?;
    let early = bench.buffer(512)?;
    bench.exchange(&mut live, early)?;
    let marked = bench.marked(bitmap)?;
    demand(
        "T-F5",
        marked.is_empty(),
        "no mark while enable is 0",
        || format!("{marked:x?}"),
    )?;
    bench.put(reg::TRACKER_ENABLE, 1)?;
    let (truth, least) = do_requests(bench, &mut live, bitmap, &[512])?;
    truth.check(bench, bitmap, 0, &least, &["T-F5"])
}

/// Hazard c: pages written while `enable` goes from 0 to 1. What the device writes once the write
/// of `enable` has returned must be marked; what it wrote before it need not be.
fn starts_in_flight(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    let pages = bench.buffer(PAGE * u64::from(live.capacity()))?;
    let buffers: Vec<Span> = (0..u64::from(live.capacity()))
        .map(|page| pages.part(page * PAGE, 4096))
        .collect();
    bench.track_at(bitmap.bits.iova, bitmap.bits.len, 0)?;
    let (mut before, mut after) = (0, 0);
    for round in 0..60 {
        bench.put(reg::TRACKER_ENABLE, 0)?;
        bench.clear(bitmap)?;
        bench.fill(pages)?;
        for data in &buffers {
            bench.stage(&mut live, *data)?;
        }
        live.ring.publish(live.ring.next)?;
        // A device may be through before `enable` is written, or wait for its notification.
        if round % 2 == 0 {
            bench.kick(0)?;
        }
        bench.put(reg::TRACKER_ENABLE, 1)?;
        // From the last on: the device comes the other way.
        let mut late = BTreeSet::new();
        for data in buffers.iter().rev() {
            if !bench.filled(*data)? {
                late.extend(pages_of(*data));
            }
        }
        bench.kick(0)?;
        arose(bench.used_all(&live)?, || {
            "the requests were not carried out".to_owned()
        })?;
        let marked = bench.marked(bitmap)?;
        demand(
            "T-F5",
            late.is_subset(&marked),
            "a mark for what is written after enable",
            || {
                let lost: BTreeSet<_> = late.difference(&marked).collect();
                format!("pages {lost:x?} were as before when enable had been written")
            },
        )?;
        after += late.len();
        before += buffers.len() - late.len();
    }
    arose(after > 0, || {
        "everything was written before enable".to_owned()
    })?;
    Ok(format!(
        "{before} pages written before enable, {after} after it"
    ))
}

fn granularity(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let mut note = String::new();
    for gra_power in [0, 1, 3, 9] {
        let bitmap = bench.bitmap(gra_power)?;
        bench.track(bitmap, gra_power)?;
        let shown = bench.get(reg::TRACKER_GRA_POWER)?;
        arose(shown == gra_power, || {
            format!("gra_power reads {shown} after {gra_power}")
        })?;
        let (truth, least) = do_requests(bench, &mut live, bitmap, &[4096, 512, 4096])?;
        note = truth.check(bench, bitmap, gra_power, &least, &["T-F6"])?;
        bench.put(reg::TRACKER_ENABLE, 0)?;
        guards_are_clean(bench, bitmap, "T-F6")?;
    }
    Ok(note)
}

/// Nothing outside a bitmap was written.
pub(super) fn guards_are_clean(
    bench: &Bench,
    bitmap: Bitmap,
    clause: impl Clauses + Copy,
) -> Result<(), Stop> {
    let before = bitmap.all.part(0, PAGE);
    let start = PAGE + bitmap.bits.len;
    let after = bitmap.all.part(start, bitmap.all.len - start);
    for guard in [before, after] {
        let touched = bench.first_nonzero(guard)?;
        demand(
            clause,
            touched.is_none(),
            "nothing written outside the bitmap",
            || format!("byte {touched:x?} of the guard at {:#x}", guard.iova),
        )?;
    }
    Ok(())
}

fn whole_bytes(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let (truth, least) = do_requests(bench, &mut live, bitmap, &[512, 4096])?;
    truth.check(bench, bitmap, 0, &least, &["DT-1"])?;
    let bytes: BTreeSet<u64> = truth.written(bench)?.iter().map(|page| page / 8).collect();
    let marked = bench.marked(bitmap)?;
    let stray: BTreeSet<_> = marked
        .iter()
        .filter(|bit| !bytes.contains(&(*bit / 8)))
        .collect();
    demand(
        "DT-3",
        stray.is_empty(),
        "no more than the byte that holds a written page",
        || format!("bits {stray:x?}"),
    )?;
    guards_are_clean(bench, bitmap, "DT-3")?;
    let whole = marked.len() == bytes.len() * 8;
    Ok(format!("whole bytes: {whole}"))
}

fn raised(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let shown = bench.get(reg::TRACKER_GRA_POWER)?;
    arose(shown > 0, || {
        "gra_power reads 0: it was not raised".to_owned()
    })?;
    let (truth, least) = do_requests(bench, &mut live, bitmap, &[512, 4096, 4096])?;
    let note = truth.check(bench, bitmap, shown, &least, &["DT-4"])?;
    let end = (bench.memory().iova() + bench.memory().len() - 1) >> (12 + shown);
    let stray = bench.marked(bitmap)?.into_iter().find(|bit| *bit > end);
    demand(
        "DT-4",
        stray.is_none(),
        "marks at the granularity that is shown",
        || format!("bit {stray:x?} is beyond memory at gra_power {shown}"),
    )?;
    Ok(format!("gra_power {shown}; {note}"))
}

fn other_pasid(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.put(reg::TRACKER_PASID, u64::from(DMA_PASID))?;
    bench.track(bitmap, 0)?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    let marked = bench.marked(bitmap)?;
    arose(!marked.is_empty(), || {
        "its own PASID is not tracked".to_owned()
    })?;
    bench.put(reg::TRACKER_ENABLE, 0)?;
    bench.clear(bitmap)?;
    bench.put(reg::TRACKER_PASID, u64::from(DMA_PASID ^ 1))?;
    bench.put(reg::TRACKER_ENABLE, 1)?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    let marked = bench.marked(bitmap)?;
    demand(
        "T-F8",
        marked.is_empty(),
        "no mark for another PASID's writes",
        || format!("bits {marked:x?}"),
    )?;
    Ok(String::new())
}

fn mark_before_used(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    for _ in 0..200 {
        let data = bench.buffer(512)?;
        bench.request(&mut live, data)?;
        bench.kick(0)?;
        let page = data.iova / PAGE;
        let used = bench.wait(
            bench.limit,
            || Ok(live.ring.used_index()? == live.ring.next),
        )?;
        // At once: the used index was loaded with Acquire.
        let byte = bench
            .memory()
            .load_u8(bitmap.bits.offset + page / 8, Ordering::Acquire)?;
        arose(used && bench.filled(data)?, || {
            "the request was not carried out".to_owned()
        })?;
        demand(
            "DT-8",
            byte & 1 << (page % 8) != 0,
            "the mark no later than the used index",
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

fn ring_is_marked(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let (truth, _) = do_requests(bench, &mut live, bitmap, &[512])?;
    let mut least = pages_of(live.ring.used);
    least.retain(|page| *page == live.ring.used.iova / PAGE);
    truth.check(bench, bitmap, 0, &least, &["DT-9"])
}

fn event_is_marked(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::EVENT_IDX)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let event = live
        .ring
        .used
        .part(4 + ring::USED * u64::from(live.ring.size), 2);
    let (truth, least) = do_requests(bench, &mut live, bitmap, &[512])?;
    let written = bench.wait(QUIET, || {
        let mut bytes = [0; 2];
        bench.memory().read(event.offset, &mut bytes)?;
        Ok(bytes != [0; 2])
    })?;
    arose(written, || "the device writes no avail_event".to_owned())?;
    truth.check(bench, bitmap, 0, &(&least | &pages_of(event)), &["DT-9"])
}

fn bitmap_is_not_marked(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    do_requests(bench, &mut live, bitmap, &[512, 4096])?;
    let marked = bench.marked(bitmap)?;
    arose(!marked.is_empty(), || "nothing is marked at all".to_owned())?;
    let own: BTreeSet<_> = pages_of(bitmap.bits)
        .intersection(&marked)
        .copied()
        .collect();
    let byte_wide = marked.len().is_multiple_of(8)
        && marked
            .iter()
            .all(|bit| (bit / 8 * 8..bit / 8 * 8 + 8).all(|bit| marked.contains(&bit)));
    demand(
        "DT-9",
        own.is_empty() || byte_wide,
        "the bitmap's own pages stay unmarked",
        || format!("bits {own:x?}"),
    )?;
    Ok(String::new())
}

fn read_pages_stay_clean(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let bitmap = bench.bitmap(0)?;
    bench.track(bitmap, 0)?;
    let (truth, least) = do_requests(bench, &mut live, bitmap, &[4096, 512])?;
    truth.check(bench, bitmap, 0, &least, &["TL-7"])?;
    let written = truth.written(bench)?;
    let marked = bench.marked(bitmap)?;
    let read: BTreeSet<u64> = live
        .read_only()
        .iter()
        .flat_map(|span| pages_of(*span))
        .collect();
    let stray: Vec<_> = read.iter().filter(|page| marked.contains(page)).collect();
    // A page in the same byte as a written one may be marked with it (DT-3).
    let bytes: BTreeSet<u64> = written.iter().map(|page| page / 8).collect();
    let whole = bytes
        .iter()
        .all(|byte| (0..8).all(|bit| marked.contains(&(byte * 8 + bit))));
    demand(
        "TL-7",
        stray.is_empty() || whole,
        "no mark for pages that are only read",
        || format!("bits {stray:x?}, where {written:x?} were written"),
    )?;
    Ok(format!(
        "{} marks for {} pages written",
        marked.len(),
        written.len()
    ))
}

fn suspend_drains(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::SUSPEND)?;
    let bitmap = bench.bitmap(0)?;
    let mut most = 0;
    for round in 0..12 {
        bench.put(reg::TRACKER_ENABLE, 0)?;
        bench.clear(bitmap)?;
        bench.track(bitmap, 0)?;
        for _ in 0..live.capacity() {
            let data = bench.buffer(512)?;
            bench.stage(&mut live, data)?;
        }
        let truth = Truth::take(bench, &live, bitmap)?;
        let before = live.ring.used_index()?;
        live.ring.publish(live.ring.next)?;
        bench.kick(0)?;
        // Every other suspend races with the first request.
        if round % 2 == 0 {
            arose(bench.used_beyond(&live, before)?, || {
                "nothing is used".to_owned()
            })?;
        }
        bench.suspend()?;
        let marked = bench.marked(bitmap)?;
        truth.check(bench, bitmap, 0, &BTreeSet::new(), &["TL-6"])?;
        most = most.max(truth.written(bench)?.len());
        let later = bench.wait(QUIET / 5, || Ok(bench.marked(bitmap)? != marked))?;
        demand(
            "TL-6",
            !later,
            "no mark after SUSPEND reads back set",
            || format!("{marked:x?} became {:x?}", bench.marked(bitmap)),
        )?;
        bench.resume()?;
        bench.kick(0)?;
        arose(bench.used_all(&live)?, || {
            "requests are lost by the suspend".to_owned()
        })?;
    }
    arose(most > 0, || {
        "nothing was ever written before the suspend".to_owned()
    })?;
    Ok(format!("up to {most} pages before the suspend"))
}
