//! Packed rings over suspend, saved state and resets.

use super::{Case, plain};
use crate::constants::{feature, packed, reg, status};
use crate::harness::{
    Bench, Clauses, Judged, PackedLive, QUIET, Span, Spot, Stop, arose, changed_pages, demand,
};

const DRAINS: &str = "general-initialization-and-device-operation-device-suspend/D9";
const STATE: u64 = feature::QUEUE_STATE;
const BOTH: u64 = feature::QUEUE_STATE | feature::SUSPEND;

pub(super) const CASES: &[Case] = &[
    plain(
        "packed_state_is_0_and_deaf_when_not_negotiated",
        &["QS-2"],
        not_negotiated,
    ),
    plain("a_restored_packed_queue_goes_on", &["QS-3"], restored),
    plain(
        "a_restored_packed_queue_goes_on_over_the_end",
        &["QS-3"],
        restored_near_the_end,
    ),
    plain(
        "a_restored_packed_queue_has_its_wrap_counter",
        &["QS-3"],
        restored_in_the_other_lap,
    ),
    plain("packed_state_is_stable_while_suspended", &["QS-5"], stable),
    plain(
        "packed_state_counts_every_buffer_consumed",
        &["QS-5"],
        complete_under_load,
    ),
    plain(
        "packed_buffers_in_process_are_used_before",
        &[DRAINS],
        drains,
    ),
    plain(
        "a_packed_queue_moves_through_suspend_reset_and_restore",
        &["QS-3", "QS-5"],
        round_trip,
    ),
    plain(
        "packed_default_after_a_device_reset",
        &["QS-6", "PK-1"],
        default_after_reset,
    ),
    plain(
        "packed_default_after_a_function_level_reset",
        &["QS-6", "PK-1"],
        default_after_flr,
    ),
    plain(
        "packed_default_after_a_queue_reset",
        &["QS-7"],
        default_after_queue_reset,
    ),
    plain(
        "a_reset_packed_queue_starts_over",
        &["VR-2"],
        queue_starts_over,
    ),
    plain(
        "packed_state_is_refused_while_suspended",
        &["QS-8"],
        refused,
    ),
    plain(
        "no_packed_queue_is_touched_while_suspended",
        &["SUS-12"],
        rests,
    ),
    plain(
        "packed_buffers_survive_suspend_under_load",
        &["SUS-16"],
        nothing_is_lost,
    ),
];

fn state(bench: &Bench) -> Result<(u64, u64), Stop> {
    bench.put(reg::QUEUE_SELECT, 0)?;
    let state = (
        bench.get(reg::QUEUE_AVAIL_STATE)?,
        bench.get(reg::QUEUE_USED_STATE)?,
    );
    bench.step(format!("read queue state {state:x?}"));
    Ok(state)
}

fn set_state(bench: &Bench, (avail, used): (u64, u64)) -> Result<(), Stop> {
    bench.put(reg::QUEUE_SELECT, 0)?;
    bench.put(reg::QUEUE_AVAIL_STATE, avail)?;
    bench.put(reg::QUEUE_USED_STATE, used)
}

fn some_requests(bench: &Bench, live: &mut PackedLive, count: u16) -> Result<(), Stop> {
    for _ in 0..count {
        let data = bench.buffer(512)?;
        bench.packed_exchange(live, data)?;
    }
    Ok(())
}

/// One request that `clauses` demand to be carried out.
fn one_more(
    bench: &Bench,
    live: &mut PackedLive,
    data: Span,
    clauses: impl Clauses,
    wants: &str,
) -> Result<(), Stop> {
    bench.fill(data)?;
    let staged = bench.packed_stage(live, data)?;
    let done = bench.packed_finish(live, staged, data)?;
    demand(clauses, done, wants, || {
        let status = bench.status();
        format!("{}; status {status:x?}", live.saw())
    })
}

fn not_negotiated(bench: &Bench) -> Judged {
    if bench.offered()? & STATE == 0 {
        return Err(Stop::NotApplicable(crate::harness::Absent::Features(STATE)));
    }
    bench.to_features_ok(feature::RING_PACKED)?;
    set_state(bench, (3, 3))?;
    let mut live = bench.packed_zero()?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    let data = bench.buffer(512)?;
    let wants = "a queue that starts from entry 0 with wrap counter 1";
    one_more(bench, &mut live, data, "QS-2", wants)?;
    let shown = state(bench)?;
    demand("QS-2", shown == (0, 0), "0 and 0", || format!("{shown:x?}"))?;
    Ok(String::new())
}

/// Enables the queue that was given a state, and carries out requests.
fn goes_on(bench: &Bench, live: &mut PackedLive, requests: u16) -> Judged {
    bench.put(reg::QUEUE_ENABLE, 1)?;
    bench.set_status(status::RUNNING)?;
    let shown = bench.status()?;
    demand(
        "QS-3",
        shown == status::RUNNING,
        "a queue that starts from its state",
        || format!("status {shown:#04x} after DRIVER_OK"),
    )?;
    let data = bench.buffer(512)?;
    for _ in 0..requests {
        let wants = "the queue goes on from the state written before enable";
        one_more(bench, live, data, "QS-3", wants)?;
    }
    Ok(String::new())
}

fn restored(bench: &Bench) -> Judged {
    let at = Spot {
        index: 7,
        wrap: true,
    };
    let mut live = bench.packed_placed(0, 30, at)?;
    goes_on(bench, &mut live, 5)
}

fn restored_near_the_end(bench: &Bench) -> Judged {
    for index in [27, 28, 29] {
        for wrap in [true, false] {
            let mut live = bench.packed_placed(0, 30, Spot { index, wrap })?;
            goes_on(bench, &mut live, 12)?;
        }
    }
    Ok(String::new())
}

fn restored_in_the_other_lap(bench: &Bench) -> Judged {
    for index in [0, 11] {
        let at = Spot { index, wrap: false };
        let mut live = bench.packed_placed(0, 30, at)?;
        goes_on(bench, &mut live, 12)?;
    }
    Ok(String::new())
}

fn stable(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(BOTH)?;
    some_requests(bench, &mut live, 5)?;
    bench.suspend()?;
    let shown = state(bench)?;
    let here = u64::from(live.ring.used.bits());
    demand(
        "QS-5",
        shown == (here, here),
        "both halves where the next used descriptor is to come",
        || format!("{shown:x?}, and the ring stands at {here:#x}"),
    )?;
    let moved = bench.wait(QUIET, || Ok(state(bench)? != shown))?;
    demand(
        "QS-5",
        !moved,
        "the state does not move while suspended",
        || format!("{shown:x?} became {:x?}", state(bench)),
    )?;
    Ok(String::new())
}

/// Posts as many requests as there is room for, and suspends when the first is used.
fn suspend_under_load(bench: &Bench, live: &mut PackedLive) -> Result<Vec<(u16, Span)>, Stop> {
    let mut posted = Vec::new();
    for _ in 0..live.capacity() {
        let data = bench.buffer(4096)?;
        bench.packed_request(live, data)?;
        posted.push((live.ids.last().copied().unwrap_or(0), data));
    }
    bench.kick(0)?;
    let begun = bench.wait(bench.limit, || {
        live.settled()?;
        Ok(!live.used.is_empty())
    })?;
    arose(begun, || "nothing is used".to_owned())?;
    bench.suspend()?;
    live.settled()?;
    Ok(posted)
}

fn complete_under_load(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(BOTH)?;
    let posted = suspend_under_load(bench, &mut live)?.len();
    let shown = state(bench)?;
    let here = u64::from(live.ring.used.bits());
    demand(
        "QS-5",
        shown == (here, here),
        "consumed, used and shown are one",
        || format!("state {shown:x?}, and the ring stands at {here:#x}"),
    )?;
    Ok(format!(
        "{} of {posted} used when it was suspended",
        live.used.len()
    ))
}

fn drains(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(feature::SUSPEND)?;
    let posted = suspend_under_load(bench, &mut live)?;
    for (id, data) in &posted {
        let written = bench.filled(*data)?;
        let returned = live.used.iter().any(|used| used.id == *id);
        demand(
            DRAINS,
            returned || !written,
            "what was begun is used",
            || format!("buffer {id} was written and is not used"),
        )?;
        arose(written || !returned, || {
            format!("buffer {id} was used and not written")
        })?;
    }
    Ok(format!(
        "{} of {} used when it was suspended",
        live.used.len(),
        posted.len()
    ))
}

fn round_trip(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(BOTH)?;
    // Past the end of the ring, so that the wrap counter has a part in it.
    let data = bench.buffer(512)?;
    while live.ring.next.wrap {
        bench.fill(data)?;
        bench.packed_exchange(&mut live, data)?;
    }
    live.used.clear();
    let posted = suspend_under_load(bench, &mut live)?;
    let saved = state(bench)?;
    let here = u64::from(live.ring.used.bits());
    demand(
        "QS-5",
        saved == (here, here),
        "consumed, used and shown are one",
        || format!("state {saved:x?}, and the ring stands at {here:#x}"),
    )?;
    let before = live.used.len();
    // Another device would come here: a reset makes this one forget.
    bench.to_features_ok(BOTH | feature::RING_PACKED)?;
    bench.place_ring(0, &live.ring)?;
    set_state(bench, saved)?;
    bench.put(reg::QUEUE_ENABLE, 1)?;
    bench.set_status(status::RUNNING)?;
    bench.kick(0)?;
    let mut done = bench.packed_settled(&mut live)?;
    for (_, data) in &posted {
        done &= bench.filled(*data)?;
    }
    let once = live.used.len() == posted.len();
    demand(
        ["QS-3", "QS-5"],
        done && once,
        "each buffer used once, before the move or after it",
        || {
            format!(
                "{} used of {}, {before} before: {}; status {:x?}",
                live.used.len(),
                posted.len(),
                live.saw(),
                bench.status()
            )
        },
    )?;
    let wants = "the queue goes on after the move";
    one_more(bench, &mut live, data, ["QS-3", "QS-5"], wants)?;
    Ok(format!("{before} of {} used before the move", posted.len()))
}

fn default_after(bench: &Bench, reset: impl Fn() -> Result<(), Stop>) -> Judged {
    let mut live = bench.packed_up(BOTH)?;
    some_requests(bench, &mut live, 3)?;
    bench.suspend()?;
    let before = state(bench)?;
    let default = (packed::STATE_DEFAULT, packed::STATE_DEFAULT);
    arose(before != default, || {
        "the state is the default after requests".to_owned()
    })?;
    reset()?;
    bench.to_features_ok(BOTH | feature::RING_PACKED)?;
    let after = state(bench)?;
    demand("QS-6", after == default, "0x8000 and 0x8000", || {
        format!("{after:x?}, before {before:x?}")
    })?;
    let mut again = bench.packed_zero()?;
    bench.enable(0, &again.ring)?;
    bench.driver_ok()?;
    let data = bench.buffer(512)?;
    let wants = "a queue that starts from entry 0 with wrap counter 1";
    one_more(bench, &mut again, data, ["QS-6", "PK-1"], wants)?;
    Ok(String::new())
}

fn default_after_reset(bench: &Bench) -> Judged {
    default_after(bench, || bench.reset())
}

fn default_after_flr(bench: &Bench) -> Judged {
    default_after(bench, || bench.function_reset())
}

fn reset_queue(bench: &Bench) -> Result<(), Stop> {
    bench.put(reg::QUEUE_SELECT, 0)?;
    bench.put(reg::QUEUE_RESET, 1)?;
    let ended = bench.wait(bench.limit, || Ok(bench.get(reg::QUEUE_RESET)? == 0))?;
    arose(ended, || "the queue reset does not end".to_owned())
}

fn default_after_queue_reset(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(STATE | feature::RING_RESET)?;
    some_requests(bench, &mut live, 3)?;
    let before = state(bench)?;
    let default = (packed::STATE_DEFAULT, packed::STATE_DEFAULT);
    arose(before != default, || {
        "the state is the default after requests".to_owned()
    })?;
    reset_queue(bench)?;
    let after = state(bench)?;
    demand("QS-7", after == default, "0x8000 and 0x8000", || {
        format!("{after:x?}, before {before:x?}")
    })?;
    Ok(String::new())
}

/// The reset comes in the lap whose wrap counter is 0.
fn queue_starts_over(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(feature::RING_RESET)?;
    let data = bench.buffer(512)?;
    while live.ring.next.wrap {
        bench.fill(data)?;
        bench.packed_exchange(&mut live, data)?;
    }
    reset_queue(bench)?;
    let mut again = bench.packed_zero()?;
    bench.enable(0, &again.ring)?;
    for _ in 0..again.capacity() + 2 {
        let wants = "the queue starts from entry 0 with wrap counter 1";
        one_more(bench, &mut again, data, "VR-2", wants)?;
    }
    Ok(String::new())
}

fn refused(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(BOTH)?;
    some_requests(bench, &mut live, 3)?;
    bench.suspend()?;
    let before = state(bench)?;
    for (avail, used) in [(0x8000, 0x8000), (before.0 ^ 0x8000, before.1 ^ 0x8000)] {
        set_state(bench, (avail, used))?;
        let after = state(bench)?;
        demand("QS-8", after == before, "the write is refused", || {
            format!("{before:x?} became {after:x?}")
        })?;
    }
    bench.resume()?;
    let data = bench.buffer(512)?;
    let wants = "the queue goes on where it was";
    one_more(bench, &mut live, data, "QS-8", wants)?;
    Ok(String::new())
}

fn rests(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(feature::SUSPEND)?;
    let data = bench.buffer(512)?;
    bench.packed_exchange(&mut live, data)?;
    bench.suspend()?;
    bench.fill(data)?;
    bench.packed_request(&mut live, data)?;
    let before = bench.snapshot()?;
    // A correct driver does neither: the device must not act on it all the same.
    bench.kick(0)?;
    let touched = bench.wait(QUIET, || Ok(bench.snapshot()? != before))?;
    demand(
        "SUS-12",
        !touched,
        "no memory changes while suspended",
        || {
            let after = bench.snapshot().unwrap_or_default();
            let pages = changed_pages(&before, &after, bench.memory().iova());
            format!("pages {pages:x?} changed")
        },
    )?;
    bench.resume()?;
    bench.kick(0)?;
    arose(bench.packed_settled(&mut live)?, || {
        format!("it is not used after the resume either: {}", live.saw())
    })?;
    Ok(String::new())
}

fn nothing_is_lost(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(feature::SUSPEND)?;
    let buffers: Vec<_> = (0..live.capacity().min(8))
        .map(|_| bench.buffer(4096))
        .collect::<Result<_, _>>()?;
    let mut caught = 0_u32;
    for _ in 0..12 {
        for data in &buffers {
            bench.fill(*data)?;
            bench.packed_request(&mut live, *data)?;
        }
        bench.kick(0)?;
        bench.suspend()?;
        caught += u32::from(!live.settled()?);
        bench.resume()?;
        bench.kick(0)?;
        let done = bench.packed_settled(&mut live)?;
        demand("SUS-16", done, "every buffer is used in the end", || {
            live.saw()
        })?;
        for data in &buffers {
            let filled = bench.filled(*data)?;
            demand("SUS-16", filled, "every buffer is written", || {
                format!("{data:x?} is not")
            })?;
        }
    }
    Ok(format!("{caught} of 12 suspends came with buffers left"))
}
