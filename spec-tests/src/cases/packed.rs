//! Packed rings: whose a descriptor is, in which order they are taken and used, the wrap counters.

use super::{Case, plain};
use crate::clause;
use crate::constants::{blk, feature, packed, reg};
use crate::harness::{
    Absent, Bench, Judged, PackedLive, QUIET, Segment, Span, Spot, Stop, arose, changed_pages,
    demand, pages_of,
};

const STARTS_IN_ORDER: &str = clause!(packed "D1");
const USES_IN_ORDER: &str = clause!(packed "D2");
const READ_ONLY: &str = clause!(packed_table "D1");
const AVAIL_SEEN: &str = clause!(packed_table "D2");
const USED_STAYS: &str = clause!(packed_table "D3");
const LIST_ORDER: &str = clause!(packed_lists "D1");

pub(super) const CASES: &[Case] = &[
    plain(
        "a_packed_list_waits_for_those_before_it",
        &[STARTS_IN_ORDER],
        waits_its_turn,
    )
    .rings(),
    plain(
        "a_packed_batch_is_carried_out_whole",
        &[STARTS_IN_ORDER],
        batch,
    )
    .rings(),
    plain(
        "packed_buffers_are_used_as_they_complete",
        &[USES_IN_ORDER],
        as_they_complete,
    )
    .rings(),
    plain(
        "packed_used_descriptors_leave_no_gap",
        &[USES_IN_ORDER, "PK-2"],
        no_gap,
    )
    .rings(),
    plain(
        "what_a_packed_device_reads_stays",
        &[READ_ONLY, "PK-8"],
        reads_only,
    )
    .rings(),
    plain(
        "a_packed_descriptor_of_another_lap_is_left",
        &[AVAIL_SEEN],
        other_lap,
    )
    .rings(),
    plain(
        "the_rest_of_a_packed_list_is_left_in_the_next_lap",
        &[AVAIL_SEEN],
        rest_of_a_list,
    )
    .rings(),
    plain(
        "a_packed_queue_bears_spurious_notifications",
        &[AVAIL_SEEN],
        spurious,
    )
    .rings(),
    plain("a_used_packed_descriptor_stays", &[USED_STAYS], used_stays).rings(),
    plain(
        "a_packed_list_is_used_in_its_order",
        &[LIST_ORDER],
        list_order,
    )
    .rings(),
    plain("packed_wrap_counters_turn", &["PK-1"], wraps).rings(),
    plain("a_packed_ring_of_any_size", &["PK-9", "PK-1"], any_size).rings(),
];

/// A buffer in pieces of these lengths, in their order.
pub(super) fn pieces(data: Span, lengths: &[u32]) -> Vec<Segment> {
    let mut at = data.iova;
    let piece = |len: &u32| {
        let iova = at;
        at += u64::from(*len);
        Segment {
            iova,
            len: *len,
            writable: true,
        }
    };
    lengths.iter().map(piece).collect()
}

/// Watches what must not happen: the pages that change, but for the device's event suppression
/// structure, which it may write at any time.
pub(super) fn disturbed(bench: &Bench, live: &PackedLive, before: &[u8]) -> Result<Vec<u64>, Stop> {
    let own = pages_of(live.ring.device);
    let mut changed = Vec::new();
    bench.wait(QUIET, || {
        let all = changed_pages(before, &bench.snapshot()?, bench.memory().iova());
        changed = all.difference(&own).copied().collect();
        Ok(!changed.is_empty())
    })?;
    Ok(changed)
}

fn waits_its_turn(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    for _ in 0..3 {
        let (one, other) = (bench.buffer(512)?, bench.buffer(512)?);
        let first = bench.packed_stage(&mut live, one)?;
        bench.packed_request(&mut live, other)?;
        let before = bench.snapshot()?;
        bench.kick(0)?;
        let changed = disturbed(bench, &live, &before)?;
        demand(
            STARTS_IN_ORDER,
            changed.is_empty(),
            "a list waits until the one before it is available",
            || format!("pages {changed:x?} changed; {}", live.saw()),
        )?;
        live.ring.publish(first)?;
        bench.kick(0)?;
        let done = bench.packed_settled(&mut live)?;
        demand(
            STARTS_IN_ORDER,
            done && bench.filled(one)? && bench.filled(other)?,
            "both carried out once the first is available",
            || live.saw(),
        )?;
    }
    Ok(String::new())
}

fn batch(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    let buffers: Vec<_> = (0..live.capacity())
        .map(|_| bench.buffer(512))
        .collect::<Result<_, _>>()?;
    for _ in 0..5 {
        let mut lists = Vec::new();
        for data in &buffers {
            bench.fill(*data)?;
            lists.push(bench.packed_stage(&mut live, *data)?);
        }
        // The first one last, so that the device sees all of them at once.
        for staged in lists.into_iter().rev() {
            live.ring.publish(staged)?;
        }
        bench.kick(0)?;
        let mut done = bench.packed_settled(&mut live)?;
        for data in &buffers {
            done &= bench.filled(*data)?;
        }
        demand(
            STARTS_IN_ORDER,
            done,
            "every list of a batch carried out",
            || live.saw(),
        )?;
    }
    Ok(format!("5 batches of {}", buffers.len()))
}

/// The second request is posted when the first is complete by all that can be seen. The driver wants
/// no notification, and looks at the ring when it sees fit.
fn as_they_complete(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    live.ring.ask(live.ring.next, packed::DISABLE)?;
    let (one, other) = (bench.buffer(512)?, bench.buffer(512)?);
    for _ in 0..12 {
        bench.fill(one)?;
        bench.fill(other)?;
        bench.packed_request(&mut live, one)?;
        bench.kick(0)?;
        let complete = bench.wait(bench.limit, || bench.carried_out(one))?;
        arose(complete, || {
            format!("the first request is not carried out: {}", live.saw())
        })?;
        bench.wait(QUIET, || live.settled())?;
        bench.packed_request(&mut live, other)?;
        bench.kick(0)?;
        arose(bench.packed_settled(&mut live)?, || {
            format!("a request is not used: {}", live.saw())
        })?;
        let used: Vec<_> = live.used.drain(..).map(|used| used.id).collect();
        let want: Vec<_> = live.ids.drain(..).collect();
        demand(
            USES_IN_ORDER,
            used == want,
            "what was complete before is used before",
            || format!("buffers {used:?} used in this order, {want:?} completed"),
        )?;
    }
    Ok(String::new())
}

fn no_gap(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    let data = bench.buffer(4096)?;
    let mut lists = 0;
    for _ in 0..25 {
        let batch = 1 + bench.random(u64::from(live.ring.size / 5).min(4));
        for _ in 0..batch {
            let (id, parts) = bench.packed_parts(&mut live, data)?;
            let cut = 1 + bench.random(3);
            let length = u32::try_from(4096 / cut).unwrap_or(0);
            let mut lengths = vec![length; usize::try_from(cut).unwrap_or(1)];
            if let Some(last) = lengths.last_mut() {
                *last += 4096 % length;
            }
            let divided = |segment: &Segment| {
                if segment.iova == data.iova {
                    pieces(data, &lengths)
                } else {
                    vec![*segment]
                }
            };
            let list: Vec<_> = parts.iter().flat_map(divided).collect();
            let staged = live.ring.stage(id, &list)?;
            live.ring.publish(staged)?;
            lists += 1;
        }
        bench.kick(0)?;
        let done = bench.packed_settled(&mut live)?;
        let mut used: Vec<_> = live.used.drain(..).map(|used| used.id).collect();
        let mut want: Vec<_> = live.ids.drain(..).collect();
        let in_order = used == want;
        used.sort_unstable();
        want.sort_unstable();
        demand(
            [USES_IN_ORDER, "PK-2"],
            done && used == want,
            "one used descriptor for each list, as far behind the last as that one's list was long",
            || {
                format!(
                    "buffers {used:?} used, {want:?} posted, in order: {in_order}; {}",
                    live.saw()
                )
            },
        )?;
    }
    Ok(format!("{lists} lists"))
}

fn reads_only(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    live.ring.ask(Spot::of(0x8005), packed::ENABLE)?;
    let mut lists = Vec::new();
    for _ in 0..live.capacity() {
        let data = bench.buffer(512)?;
        lists.push(bench.packed_stage(&mut live, data)?);
    }
    let (headers, driver) = (live.headers(), live.ring.driver);
    let before = (bench.bytes(headers)?, bench.bytes(driver)?);
    for staged in lists {
        live.ring.publish(staged)?;
    }
    bench.kick(0)?;
    arose(bench.packed_settled(&mut live)?, || {
        format!("the requests were not carried out: {}", live.saw())
    })?;
    let after = (bench.bytes(headers)?, bench.bytes(driver)?);
    demand(
        READ_ONLY,
        before.0 == after.0,
        "device-readable buffers as they were",
        || "a header changed".to_owned(),
    )?;
    demand(
        "PK-8",
        before.1 == after.1,
        "the driver's event suppression structure as it was",
        || format!("{:02x?} became {:02x?}", before.1, after.1),
    )?;
    Ok(String::new())
}

/// The flags of a first descriptor that is not available where it stands: as it was before, used in
/// this lap, used in the last one, available in another lap.
fn not_available(at: Spot) -> [u16; 3] {
    let other = Spot {
        wrap: !at.wrap,
        ..at
    };
    [at.used(), other.used(), other.available()]
}

fn other_lap(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    let data = bench.buffer(512)?;
    // Over the end of the ring, so that both values of the wrap counter come.
    for round in 0..live.capacity() + 4 {
        bench.fill(data)?;
        let staged = bench.packed_stage(&mut live, data)?;
        if round % 8 == 0 || round >= live.capacity() {
            for whose in not_available(staged.at) {
                let others = staged.flags & !(packed::AVAIL | packed::USED);
                live.ring.set_flags(staged.at.index, others | whose)?;
                let before = bench.snapshot()?;
                bench.kick(0)?;
                let changed = disturbed(bench, &live, &before)?;
                demand(
                    AVAIL_SEEN,
                    changed.is_empty(),
                    "a descriptor left alone that is not available in this lap",
                    || {
                        format!(
                            "entry {} with flags {:#06x} and wrap counter {}: pages {changed:x?} \
                             changed",
                            staged.at.index,
                            others | whose,
                            u8::from(staged.at.wrap)
                        )
                    },
                )?;
            }
        }
        arose(bench.packed_finish(&mut live, staged, data)?, || {
            format!("made available, it is not used either: {}", live.saw())
        })?;
    }
    Ok(String::new())
}

/// The device writes the first descriptor of a list only: the others look available for the rest of
/// the lap, and stand where the next lap comes by.
fn rest_of_a_list(bench: &Bench) -> Judged {
    bench.to_features_ok(feature::RING_PACKED)?;
    // Lists of four in a ring of seven: each lap begins at another entry of the one before.
    let mut live = bench.packed_of(7)?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    let data = bench.buffer(1024)?;
    for _ in 0..12 {
        bench.fill(data)?;
        let (id, parts) = bench.packed_parts(&mut live, data)?;
        let divided = |segment: &Segment| {
            if segment.iova == data.iova {
                pieces(data, &[512, 512])
            } else {
                vec![*segment]
            }
        };
        let list: Vec<_> = parts.iter().flat_map(divided).collect();
        arose(bench.packed_carry(&mut live, id, &list, data)?, || {
            format!("a request is not used: {}", live.saw())
        })?;
        let before = bench.snapshot()?;
        bench.kick(0)?;
        let changed = disturbed(bench, &live, &before)?;
        demand(
            AVAIL_SEEN,
            changed.is_empty(),
            "what is left of earlier lists left alone",
            || format!("pages {changed:x?} changed; {}", live.saw()),
        )?;
    }
    Ok(String::new())
}

fn spurious(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    let before = bench.snapshot()?;
    for _ in 0..100 {
        bench.kick(0)?;
    }
    let changed = disturbed(bench, &live, &before)?;
    demand(
        AVAIL_SEEN,
        changed.is_empty(),
        "nothing used while nothing is available",
        || format!("pages {changed:x?} changed"),
    )?;
    let data = bench.buffer(512)?;
    bench.packed_exchange(&mut live, data)?;
    let before = bench.snapshot()?;
    for _ in 0..100 {
        bench.kick(0)?;
    }
    let changed = disturbed(bench, &live, &before)?;
    demand(
        AVAIL_SEEN,
        changed.is_empty(),
        "one buffer used once",
        || format!("pages {changed:x?} changed; {}", live.saw()),
    )?;
    bench.fill(data)?;
    bench.packed_exchange(&mut live, data)?;
    Ok(String::new())
}

fn used_stays(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    let data = bench.buffer(512)?;
    let mut seen: Vec<(u16, [u8; 16])> = Vec::new();
    // Less than a lap: the driver does not write them again.
    for _ in 0..live.capacity() {
        let at = live.ring.used.index;
        bench.fill(data)?;
        bench.packed_exchange(&mut live, data)?;
        seen.push((at, live.ring.raw(at)?));
        for (index, before) in &seen {
            let now = live.ring.raw(*index)?;
            demand(
                USED_STAYS,
                now == *before,
                "a used descriptor as it was when it was seen used",
                || format!("entry {index}: {before:02x?} became {now:02x?}"),
            )?;
        }
    }
    bench.kick(0)?;
    let mut changed = None;
    bench.wait(QUIET, || {
        for (index, before) in &seen {
            let now = live.ring.raw(*index)?;
            changed = (now != *before).then_some((*index, *before, now));
            if changed.is_some() {
                break;
            }
        }
        Ok(changed.is_some())
    })?;
    demand(
        USED_STAYS,
        changed.is_none(),
        "used descriptors as they were when nothing more comes",
        || format!("entry, before and now: {changed:02x?}"),
    )?;
    Ok(format!("{} descriptors", seen.len()))
}

fn list_order(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    let whole = bench.buffer(2048)?;
    let (id, parts) = bench.packed_parts(&mut live, whole)?;
    if parts.iter().all(|segment| segment.writable) {
        // What a source of entropy writes does not show in which order it was written.
        return Err(Stop::NotApplicable(Absent::Header));
    }
    // From the second sector, so that a header in another order asks for something else.
    set_sector(bench, &live, &parts[0])?;
    arose(bench.packed_carry(&mut live, id, &parts, whole)?, || {
        format!("a request is not carried out: {}", live.saw())
    })?;
    let want = bench.bytes(whole)?;
    for order in [[3, 1, 0, 2], [1, 0, 3, 2], [2, 3, 1, 0]] {
        let data = bench.buffer(2048)?;
        let (id, parts) = bench.packed_parts(&mut live, data)?;
        let header = set_sector(bench, &live, &parts[0])?;
        let pieces = bench.buffer(64)?;
        for (place, piece) in order.iter().zip(header.chunks(4)) {
            bench.memory().write(pieces.offset + place * 16, piece)?;
        }
        let scattered = |segment: &Segment| {
            let (span, each, len) = match segment {
                header if !header.writable => (pieces, 16, 4),
                segment if segment.iova == data.iova => (data, 512, 512),
                status => return vec![*status],
            };
            let piece = |place: &u64| Segment {
                iova: span.iova + place * each,
                len,
                writable: segment.writable,
            };
            order.iter().map(piece).collect()
        };
        let list: Vec<_> = parts.iter().flat_map(scattered).collect();
        let staged = live.ring.stage(id, &list)?;
        live.ring.publish(staged)?;
        bench.kick(0)?;
        arose(bench.packed_settled(&mut live)?, || {
            format!("a request is not used: {}", live.saw())
        })?;
        let mut found = Vec::new();
        for place in order {
            found.extend(bench.bytes(data.part(place * 512, 512))?);
        }
        demand(
            LIST_ORDER,
            found == want,
            "a list's elements used from the first to the last",
            || format!("elements at {order:?} do not hold together what one element holds"),
        )?;
    }
    Ok(String::new())
}

/// Has a request begin at the second sector, and gives its header.
fn set_sector(bench: &Bench, live: &PackedLive, header: &Segment) -> Result<[u8; 16], Stop> {
    let headers = live.headers();
    let at = headers.offset + (header.iova - headers.iova);
    bench
        .memory()
        .write(at + blk::SECTOR_AT, &1u64.to_le_bytes())?;
    let mut bytes = [0; 16];
    bench.memory().read(at, &mut bytes)?;
    Ok(bytes)
}

/// Carries out requests until the ring has gone round `laps` times.
fn laps(bench: &Bench, live: &mut PackedLive, laps: u16) -> Judged {
    let data = bench.buffer(512)?;
    let mut turns = 0;
    while turns < laps {
        let before = live.ring.next;
        bench.fill(data)?;
        let staged = bench.packed_stage(live, data)?;
        let done = bench.packed_finish(live, staged, data)?;
        turns += u16::from(live.ring.next.wrap != before.wrap);
        demand(
            "PK-1",
            done,
            "a used descriptor with the wrap counter of its lap, in every lap",
            || format!("in lap {turns} of {}: {}", live.ring.size, live.saw()),
        )?;
    }
    Ok(String::new())
}

fn wraps(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    laps(bench, &mut live, 5)?;
    // One list that fills the ring, wherever it begins.
    let data = bench.buffer(PIECES_MAX)?;
    for _ in 0..3 {
        bench.fill(data)?;
        let (id, parts) = bench.packed_parts(&mut live, data)?;
        let others = parts.len() - 1;
        let room = usize::from(live.ring.size) - others;
        let whole = u32::try_from(data.len).unwrap_or(0);
        let mut lengths = vec![whole / u32::from(live.ring.size); room];
        let sum: u32 = lengths.iter().sum();
        if let Some(last) = lengths.last_mut() {
            *last += whole - sum;
        }
        let divided = |segment: &Segment| {
            if segment.iova == data.iova {
                pieces(data, &lengths)
            } else {
                vec![*segment]
            }
        };
        let list: Vec<_> = parts.iter().flat_map(divided).collect();
        let staged = live.ring.stage(id, &list)?;
        live.ring.publish(staged)?;
        bench.kick(0)?;
        let done = bench.packed_settled(&mut live)?;
        demand("PK-1", done, "a list as long as the ring used", || {
            live.saw()
        })?;
    }
    Ok(String::new())
}

/// Bytes of the longest list's data.
const PIECES_MAX: u64 = 8192;

fn any_size(bench: &Bench) -> Judged {
    for size in [5, 11, 63] {
        bench.to_features_ok(feature::RING_PACKED)?;
        let largest = bench.entries(0)?;
        let size = size.min(largest);
        let mut live = bench.packed_of(size)?;
        bench.place_ring(0, &live.ring)?;
        bench.enable(0, &live.ring)?;
        let shown = bench.get(reg::QUEUE_SIZE)?;
        demand(
            "PK-9",
            shown == u64::from(size),
            "the size as written",
            || format!("queue_size reads {shown} after {size} was written"),
        )?;
        bench.driver_ok()?;
        laps(bench, &mut live, 3)?;
    }
    Ok(String::new())
}
