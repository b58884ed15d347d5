//! Split rings: framing, indirect tables, event indices, the order of use.

use super::{Case, plain};
use crate::clause;
use crate::constants::{PAGE, blk, feature, reg, ring};
use crate::harness::{Absent, Bench, Judged, Live, QUIET, Segment, Span, Stop, arose, demand};
use driver::bus::Interrupt;
use std::sync::Arc;

const ANY_FRAMING: &str = clause!(framing "D1");
const FLAG_IGNORED: &str = clause!(indirect "D1");
const AFTER_OTHERS: &str = clause!(indirect "D2");
const EVENT_IGNORED: &str = clause!(used_suppression "D1");
const FLAGS_IGNORED: &str = clause!(used_suppression "D4");
const EVENT_KEPT: &str = clause!(used_suppression "D5");
const NO_OTHER: &str = clause!(used_suppression "D6");
const USED_FLAGS: &str = clause!(avail_suppression "D3");
const IN_ORDER: &str = clause!(reserved "D5");

pub(super) const CASES: &[Case] = &[
    plain("a_header_may_be_divided", &[ANY_FRAMING], divided_header).rings(),
    plain("data_may_be_divided", &[ANY_FRAMING], divided_data).rings(),
    plain("data_and_status_may_be_one", &[ANY_FRAMING], joined_status).rings(),
    plain("an_indirect_table_alone", &[AFTER_OTHERS], indirect_alone).rings(),
    plain(
        "an_indirect_table_after_others",
        &[AFTER_OTHERS],
        indirect_after_others,
    )
    .rings(),
    plain(
        "write_on_an_indirect_descriptor",
        &[FLAG_IGNORED],
        indirect_write,
    )
    .rings(),
    plain(
        "used_event_without_event_idx",
        &[EVENT_IGNORED],
        event_ignored,
    )
    .rings(),
    plain("flags_with_event_idx", &[FLAGS_IGNORED], flags_ignored).rings(),
    plain("used_event_is_met", &[EVENT_KEPT], event_met).rings(),
    plain(
        "used_event_is_met_around_the_wrap",
        &[EVENT_KEPT],
        event_wraps,
    )
    .rings(),
    plain("used_event_is_not_met", &[NO_OTHER], event_not_met).rings(),
    plain("used_flags_are_0_with_event_idx", &[USED_FLAGS], used_flags).rings(),
    plain("buffers_are_used_in_order", &[IN_ORDER], in_order).rings(),
];

/// Posts a chain at descriptor 0, notifies, and waits. True if all of `data` came.
fn carried_out(
    bench: &Bench,
    live: &mut Live,
    chain: &[Segment],
    data: Span,
) -> Result<bool, Stop> {
    live.ring.stage(0, chain)?;
    settle(bench, live, data)
}

/// Publishes what is exposed, notifies and waits. True if the device carried it out.
fn settle(bench: &Bench, live: &Live, data: Span) -> Result<bool, Stop> {
    live.ring.publish(live.ring.next)?;
    bench.kick(0)?;
    Ok(bench.used_all(live)? && bench.carried_out(data)?)
}

fn saw(live: &Live) -> String {
    format!(
        "used index {:?}, want {}, or the end of the data as it was",
        live.ring.used_index(),
        live.ring.next
    )
}

/// A buffer in pieces of these lengths.
fn pieces(data: Span, lengths: &[u32]) -> Vec<Segment> {
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

fn divided_header(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    for cut in [8, 4, 1, 15] {
        let data = bench.buffer(512)?;
        let parts = bench.parts(&live, data)?;
        // Only a disk's requests have one.
        let [header, rest @ ..] = parts.as_slice() else {
            continue;
        };
        if header.writable {
            return Err(Stop::NotApplicable(Absent::Header));
        }
        let first = Segment {
            len: cut,
            ..*header
        };
        let second = Segment {
            iova: header.iova + u64::from(cut),
            len: header.len - cut,
            ..*header
        };
        let chain: Vec<_> = [first, second]
            .into_iter()
            .chain(rest.iter().copied())
            .collect();
        let done = carried_out(bench, &mut live, &chain, data)?;
        demand(
            ANY_FRAMING,
            done,
            "a request whose header is in two descriptors carried out",
            || saw(&live),
        )?;
    }
    Ok(String::new())
}

fn divided_data(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    for lengths in [[1, 511, 512], [512, 1, 511], [100, 900, 24]] {
        let data = bench.buffer(1024)?;
        let whole = bench.parts(&live, data)?;
        let divided = |segment: &Segment| {
            if segment.iova == data.iova {
                pieces(data, &lengths)
            } else {
                vec![*segment]
            }
        };
        let chain: Vec<_> = whole.iter().flat_map(divided).collect();
        arose(chain.len() > whole.len(), || {
            "nothing was divided".to_owned()
        })?;
        let done = carried_out(bench, &mut live, &chain, data)?;
        // A source of entropy may use less than it is given.
        let begun = done || whole.len() == 1 && live.ring.used_index()? == live.ring.next;
        demand(
            ANY_FRAMING,
            begun,
            "a request whose data is in three descriptors carried out",
            || saw(&live),
        )?;
    }
    Ok(String::new())
}

fn joined_status(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let all = bench.buffer(PAGE)?;
    let data = all.part(0, 512);
    let parts = bench.parts(&live, data)?;
    let [header, ..] = parts.as_slice() else {
        return Err(Stop::Inconclusive("a request has no parts".to_owned()));
    };
    if header.writable {
        return Err(Stop::NotApplicable(Absent::Header));
    }
    let joined = Segment {
        iova: data.iova,
        len: 513,
        writable: true,
    };
    let done = carried_out(bench, &mut live, &[*header, joined], data)?;
    let mut status = [0xff];
    bench.memory().read(all.offset + 512, &mut status)?;
    demand(
        ANY_FRAMING,
        done && status == [blk::OK],
        "a request whose status follows its data in one descriptor carried out, status 0",
        || format!("{}; status {status:?}", saw(&live)),
    )?;
    Ok(String::new())
}

fn indirect_alone(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::INDIRECT_DESC)?;
    let table = bench.take(PAGE)?;
    for _ in 0..3 {
        let data = bench.buffer(512)?;
        let parts = bench.parts(&live, data)?;
        live.ring.indirect(1, table, &parts, 0)?;
        live.ring.expose(1)?;
        let done = settle(bench, &live, data)?;
        demand(
            AFTER_OTHERS,
            done,
            "a request in an indirect table carried out",
            || saw(&live),
        )?;
    }
    Ok(String::new())
}

fn indirect_after_others(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::INDIRECT_DESC)?;
    let table = bench.take(PAGE)?;
    let data = bench.buffer(1024)?;
    let whole = bench.parts(&live, data)?;
    let halves = |segment: &Segment| {
        if segment.iova == data.iova {
            pieces(data, &[512, 512])
        } else {
            vec![*segment]
        }
    };
    let parts: Vec<_> = whole.iter().flat_map(halves).collect();
    for direct in 1..parts.len() {
        bench.fill(data)?;
        let (before, after) = parts.split_at(direct);
        for (index, segment) in (0_u16..).zip(before) {
            let write = if segment.writable { ring::WRITE } else { 0 };
            live.ring
                .descriptor(index, *segment, write | ring::NEXT, index + 1)?;
        }
        let last = u16::try_from(direct).unwrap_or(0);
        live.ring.indirect(last, table, after, 0)?;
        live.ring.expose(0)?;
        let done = settle(bench, &live, data)?;
        let begun = done || whole.len() == 1 && live.ring.used_index()? == live.ring.next;
        demand(
            AFTER_OTHERS,
            begun,
            "a request of direct descriptors that end in an indirect one carried out",
            || format!("{direct} direct ones: {}", saw(&live)),
        )?;
    }
    Ok(format!("1 to {} direct descriptors", parts.len() - 1))
}

fn indirect_write(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::INDIRECT_DESC)?;
    let table = bench.take(PAGE)?;
    for _ in 0..3 {
        let data = bench.buffer(512)?;
        let parts = bench.parts(&live, data)?;
        live.ring.indirect(0, table, &parts, ring::WRITE)?;
        live.ring.expose(0)?;
        let done = settle(bench, &live, data)?;
        let wants = "the request carried out as without the flag";
        demand(FLAG_IGNORED, done, wants, || saw(&live))?;
    }
    Ok(String::new())
}

/// One request; true if the vector fired for it within `limit`.
fn fires(
    bench: &Bench,
    live: &mut Live,
    interrupt: &Arc<dyn Interrupt>,
    quiet: bool,
) -> Result<bool, Stop> {
    let data = bench.buffer(512)?;
    bench.exchange(live, data)?;
    Ok(interrupt.wait(if quiet { QUIET } else { bench.limit }))
}

fn event_ignored(bench: &Bench) -> Judged {
    let (mut live, interrupt) = bench.up_notified(0)?;
    for event in [0, 1, live.ring.next, 0x7fff, 0x8000, 0xffff] {
        live.ring.set_used_event(event)?;
        interrupt.wait(QUIET);
        let fired = fires(bench, &mut live, &interrupt, false)?;
        demand(
            EVENT_IGNORED,
            fired,
            "a notification whatever stands in used_event",
            || format!("nothing came with {event:#x} there"),
        )?;
    }
    Ok(String::new())
}

fn flags_ignored(bench: &Bench) -> Judged {
    let (mut live, interrupt) = bench.up_notified(feature::EVENT_IDX)?;
    live.ring.set_flags(ring::NO_INTERRUPT)?;
    live.ring.set_used_event(live.ring.next)?;
    interrupt.wait(QUIET);
    let fired = fires(bench, &mut live, &interrupt, false)?;
    demand(
        FLAGS_IGNORED,
        fired,
        "the notification that used_event asks for, with flags 1",
        || "nothing came".to_owned(),
    )?;
    Ok(String::new())
}

fn event_met(bench: &Bench) -> Judged {
    let (mut live, interrupt) = bench.up_notified(feature::EVENT_IDX)?;
    for ahead in [0, 1, 3] {
        let event = live.ring.next.wrapping_add(ahead);
        live.ring.set_used_event(event)?;
        interrupt.wait(QUIET);
        for _ in 0..ahead {
            let data = bench.buffer(512)?;
            bench.exchange(&mut live, data)?;
        }
        interrupt.wait(QUIET);
        let fired = fires(bench, &mut live, &interrupt, false)?;
        demand(
            EVENT_KEPT,
            fired,
            "a notification for the entry at index used_event",
            || format!("nothing came for index {event}"),
        )?;
    }
    Ok(String::new())
}

/// The index passes 65535 between the entry before and the one that is asked for.
fn event_wraps(bench: &Bench) -> Judged {
    let (mut live, interrupt) = near_the_wrap(bench)?;
    let data = bench.buffer(512)?;
    // What stands in the table serves again and again: all the way round takes 65,536 requests.
    let parts = bench.parts(&live, data)?;
    let stride = u16::try_from(parts.len()).unwrap_or(u16::MAX);
    let room = (live.ring.size / stride).max(1);
    for slot in 0..room {
        live.ring.chain(slot * stride, &parts)?;
    }
    // Notifications are turned off by an index that is half the circle away.
    while live.ring.next != 0 {
        live.ring
            .set_used_event(live.ring.next.wrapping_add(0x8000))?;
        for slot in 0..(0_u16.wrapping_sub(live.ring.next)).min(room) {
            live.ring.expose(slot * stride)?;
        }
        live.ring.publish(live.ring.next)?;
        bench.kick(0)?;
        arose(bench.used_all(&live)?, || {
            "a request was not carried out".to_owned()
        })?;
    }
    live.ring.set_used_event(0)?;
    interrupt.wait(QUIET);
    let fired = fires(bench, &mut live, &interrupt, false)?;
    demand(
        EVENT_KEPT,
        fired,
        "a notification for the entry at index 0, after 65535",
        || "nothing came".to_owned(),
    )?;
    Ok(String::new())
}

/// A queue that is about to wrap. Where queue state can be written it begins there; elsewhere all
/// of the way has to be gone.
fn near_the_wrap(bench: &Bench) -> Result<(Live, Arc<dyn Interrupt>), Stop> {
    const BEGIN: u16 = 0xffe0;
    if bench.offered()? & feature::QUEUE_STATE == 0 {
        return bench.up_notified(feature::EVENT_IDX);
    }
    bench.to_features_ok(feature::EVENT_IDX | feature::QUEUE_STATE)?;
    let mut live = bench.queue_zero()?;
    let interrupt = bench.queue_vector(0, 1)?;
    live.ring.start_at(BEGIN)?;
    bench.put(reg::QUEUE_SELECT, 0)?;
    bench.put(reg::QUEUE_AVAIL_STATE, u64::from(BEGIN))?;
    bench.put(reg::QUEUE_USED_STATE, u64::from(BEGIN))?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    Ok((live, interrupt))
}

fn event_not_met(bench: &Bench) -> Judged {
    let (mut live, interrupt) = bench.up_notified(feature::EVENT_IDX)?;
    live.ring.set_used_event(live.ring.next.wrapping_add(10))?;
    interrupt.wait(QUIET);
    for _ in 0..10 {
        let fired = fires(bench, &mut live, &interrupt, true)?;
        demand(
            NO_OTHER,
            !fired,
            "no notification before used_event is met",
            || format!("it fired for index {}", live.ring.next.wrapping_sub(1)),
        )?;
    }
    arose(fires(bench, &mut live, &interrupt, false)?, || {
        "it does not fire when used_event is met either".to_owned()
    })?;
    Ok(String::new())
}

fn used_flags(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::EVENT_IDX)?;
    for _ in 0..20 {
        let data = bench.buffer(512)?;
        bench.exchange(&mut live, data)?;
        let flags = live.ring.used_flags()?;
        demand(
            USED_FLAGS,
            flags == 0,
            "the used ring's flags 0 with EVENT_IDX",
            || format!("{flags:#x}"),
        )?;
    }
    Ok(String::new())
}

fn in_order(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::IN_ORDER)?;
    let mut heads = Vec::new();
    for _ in 0..live.capacity() {
        heads.push(u32::from(live.ring.next % live.capacity() * 3));
        let data = bench.buffer(512 * (1 + bench.random(8)))?;
        bench.request(&mut live, data)?;
    }
    bench.kick(0)?;
    arose(bench.used_all(&live)?, || {
        "the requests were not carried out".to_owned()
    })?;
    let mut last = None;
    for index in 0..live.ring.next {
        // A batch may be returned by its last element alone.
        let (head, _) = live.ring.used_element(index)?;
        let place = heads.iter().position(|one| *one == head);
        let later = last.is_none_or(|last| place > Some(last));
        demand(
            IN_ORDER,
            place.is_none() || later,
            "heads in the order in which they were posted",
            || format!("head {head} at used index {index}, out of {heads:?}"),
        )?;
        last = place.or(last);
    }
    Ok(String::new())
}
