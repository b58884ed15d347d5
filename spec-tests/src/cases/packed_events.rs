//! Packed rings: who is notified of what, by the two event suppression structures.

use super::{Case, plain};
use crate::constants::{feature, packed, reg};
use crate::harness::{Bench, Judged, PackedLive, QUIET, Spot, Stop, arose, demand};
use driver::bus::Interrupt;
use std::sync::Arc;

pub(super) const CASES: &[Case] = &[
    plain("a_packed_interrupt_is_wanted", &["PK-5"], wanted).rings(),
    plain("no_packed_interrupt_is_wanted", &["PK-5"], suppressed).rings(),
    plain(
        "a_packed_place_means_nothing_unless_asked_for",
        &["PK-5"],
        place_ignored,
    )
    .rings(),
    plain("a_packed_event_is_met", &["PK-6"], met).rings(),
    plain("a_packed_event_within_a_list_is_met", &["PK-6"], met_within).rings(),
    plain(
        "a_packed_event_is_met_around_the_wrap",
        &["PK-6"],
        met_around_the_wrap,
    )
    .rings(),
    plain("a_packed_event_is_not_met", &["PK-6"], not_met).rings(),
    plain(
        "a_packed_event_of_another_lap_is_not_met",
        &["PK-6"],
        other_lap,
    )
    .rings(),
    plain(
        "device_event_flags_without_event_idx",
        &["PK-7"],
        device_flags,
    )
    .rings(),
    plain(
        "device_event_flags_with_event_idx",
        &["PK-7"],
        device_flags_with_place,
    )
    .rings(),
];

type Heard = (PackedLive, Arc<dyn Interrupt>);

/// One request; true if the vector fired for it. `quiet` says that it is not expected to.
fn fires(bench: &Bench, (live, interrupt): &mut Heard, quiet: bool) -> Result<bool, Stop> {
    let data = bench.buffer(512)?;
    bench.packed_exchange(live, data)?;
    Ok(interrupt.wait(if quiet { QUIET } else { bench.limit }))
}

fn wanted(bench: &Bench) -> Judged {
    let mut heard = bench.packed_notified(0)?;
    heard.0.ring.ask(Spot::BEGIN, packed::ENABLE)?;
    for round in 0..4 {
        heard.1.wait(QUIET);
        let fired = fires(bench, &mut heard, false)?;
        demand("PK-5", fired, "a notification with event flags 0", || {
            format!("nothing came for request {round}")
        })?;
    }
    Ok(String::new())
}

fn suppressed(bench: &Bench) -> Judged {
    let mut heard = bench.packed_notified(0)?;
    heard.0.ring.ask(Spot::BEGIN, packed::DISABLE)?;
    heard.1.wait(QUIET);
    for _ in 0..3 {
        let fired = fires(bench, &mut heard, true)?;
        demand("PK-5", !fired, "no notification with event flags 1", || {
            "it fired".to_owned()
        })?;
    }
    heard.0.ring.ask(Spot::BEGIN, packed::ENABLE)?;
    arose(fires(bench, &mut heard, false)?, || {
        "it does not fire with event flags 0 any more".to_owned()
    })?;
    Ok(String::new())
}

fn place_ignored(bench: &Bench) -> Judged {
    for need in [0, feature::EVENT_IDX] {
        let mut heard = bench.packed_notified(need)?;
        for bits in [0, 0x8000, 0x7fff, 0xffff, 0x8000 | heard.0.ring.size] {
            heard.0.ring.ask(Spot::of(bits), packed::ENABLE)?;
            heard.1.wait(QUIET);
            let fired = fires(bench, &mut heard, false)?;
            demand(
                "PK-5",
                fired,
                "a notification with event flags 0, whatever the place",
                || format!("nothing came with {bits:#06x} there"),
            )?;
        }
    }
    Ok(String::new())
}

/// Asks for a place that is `lists` lists and `rest` descriptors ahead, and goes there.
fn goes_to(bench: &Bench, heard: &mut Heard, lists: u16, rest: u16) -> Judged {
    let (live, interrupt) = heard;
    // How long a list is shows when one was made.
    let before = live.ring.next;
    let data = bench.buffer(512)?;
    bench.packed_exchange(live, data)?;
    let size = live.ring.size;
    let length = (live.ring.next.index + size - before.index) % size;
    let place = live.ring.next.after(lists * length + rest, size);
    live.ring.ask(place, packed::DESC_EVENT)?;
    interrupt.wait(QUIET);
    for _ in 0..lists {
        bench.packed_exchange(live, data)?;
    }
    // What comes before the place is another case's affair.
    interrupt.wait(QUIET);
    let fired = fires(bench, heard, false)?;
    demand(
        "PK-6",
        fired,
        "a notification when the descriptor at the place is used",
        || {
            format!(
                "nothing came for entry {} with wrap counter {}",
                place.index,
                u8::from(place.wrap)
            )
        },
    )?;
    Ok(String::new())
}

fn met(bench: &Bench) -> Judged {
    let mut heard = bench.packed_notified(feature::EVENT_IDX)?;
    for lists in [0, 1, 3] {
        goes_to(bench, &mut heard, lists, 0)?;
    }
    Ok(String::new())
}

/// The whole list is used at once, the descriptors that the device does not write among it.
fn met_within(bench: &Bench) -> Judged {
    let mut heard = bench.packed_notified(feature::EVENT_IDX)?;
    let before = heard.0.ring.next;
    let data = bench.buffer(512)?;
    bench.packed_exchange(&mut heard.0, data)?;
    let length = heard.0.ring.next.index - before.index;
    for rest in 0..length {
        goes_to(bench, &mut heard, 1, rest)?;
    }
    Ok(format!("lists of {length}"))
}

fn met_around_the_wrap(bench: &Bench) -> Judged {
    let mut heard = bench.packed_notified(feature::EVENT_IDX)?;
    let data = bench.buffer(512)?;
    for _ in 0..3 {
        let (live, interrupt) = &mut heard;
        // Up to the last list that does not reach the end of this lap.
        live.ring.ask(Spot::BEGIN, packed::DISABLE)?;
        while live.ring.next.index + 8 < live.ring.size {
            bench.packed_exchange(live, data)?;
        }
        let wrap = !live.ring.next.wrap;
        let place = Spot { index: 0, wrap };
        live.ring.ask(place, packed::DESC_EVENT)?;
        interrupt.wait(QUIET);
        let mut fired = false;
        while live.ring.next.wrap != wrap || live.ring.next.index == 0 {
            bench.packed_exchange(live, data)?;
            let there = live.ring.next.wrap == wrap && live.ring.next.index != 0;
            fired |= interrupt.wait(if there { bench.limit } else { QUIET });
        }
        demand(
            "PK-6",
            fired,
            "a notification for the first entry of the next lap",
            || format!("nothing came for wrap counter {}", u8::from(wrap)),
        )?;
    }
    Ok(String::new())
}

fn not_met(bench: &Bench) -> Judged {
    let mut heard = bench.packed_notified(feature::EVENT_IDX)?;
    let size = heard.0.ring.size;
    // Behind every list that is used below.
    let ahead = size - 4;
    let place = heard.0.ring.next.after(ahead, size);
    heard.0.ring.ask(place, packed::DESC_EVENT)?;
    heard.1.wait(QUIET);
    let mut gone = 0;
    loop {
        let before = heard.0.ring.next;
        let next = heard.0.ring.next.index;
        let fired = fires(bench, &mut heard, true)?;
        gone += (heard.0.ring.next.index + size - before.index) % size;
        if gone > ahead {
            break arose(fired, || {
                "it does not fire when the place is met either".to_owned()
            })?;
        }
        demand(
            "PK-6",
            !fired,
            "no notification before the descriptor at the place is used",
            || format!("it fired for entry {next}, {} was asked for", place.index),
        )?;
    }
    Ok(String::new())
}

/// The entry is the one that is used next, but of the lap before.
fn other_lap(bench: &Bench) -> Judged {
    let mut heard = bench.packed_notified(feature::EVENT_IDX)?;
    for _ in 0..2 {
        let at = heard.0.ring.next;
        let other = Spot {
            wrap: !at.wrap,
            ..at
        };
        heard.0.ring.ask(other, packed::DESC_EVENT)?;
        heard.1.wait(QUIET);
        let fired = fires(bench, &mut heard, true)?;
        demand(
            "PK-6",
            !fired,
            "no notification for an entry of a lap that was not asked for",
            || format!("it fired for entry {}", at.index),
        )?;
        let next = heard.0.ring.next;
        heard.0.ring.ask(next, packed::DESC_EVENT)?;
        arose(fires(bench, &mut heard, false)?, || {
            "it does not fire for the right lap either".to_owned()
        })?;
    }
    Ok(String::new())
}

fn device_flags(bench: &Bench) -> Judged {
    device_says(bench, 0, &[packed::ENABLE, packed::DISABLE])
}

fn device_flags_with_place(bench: &Bench) -> Judged {
    let allowed = [packed::ENABLE, packed::DISABLE, packed::DESC_EVENT];
    device_says(bench, feature::EVENT_IDX, &allowed)
}

fn device_says(bench: &Bench, need: u64, allowed: &[u16]) -> Judged {
    let mut live = bench.packed_up(need)?;
    let data = bench.buffer(512)?;
    let mut seen = Vec::new();
    for _ in 0..live.capacity() + 4 {
        bench.fill(data)?;
        bench.packed_exchange(&mut live, data)?;
        let (place, all) = live.ring.asked()?;
        let flags = all & packed::EVENT_FLAGS;
        demand(
            "PK-7",
            allowed.contains(&flags),
            "event flags that the negotiated features allow",
            || format!("{flags}"),
        )?;
        let inside = flags != packed::DESC_EVENT || place.index < live.ring.size;
        demand("PK-7", inside, "a place within the ring", || {
            format!("entry {} of {}", place.index, live.ring.size)
        })?;
        if !seen.contains(&flags) {
            seen.push(flags);
        }
    }
    let size = bench.get(reg::QUEUE_SIZE)?;
    Ok(format!("event flags {seen:?} in a ring of {size}"))
}
