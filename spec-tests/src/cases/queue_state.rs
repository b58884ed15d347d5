//! Saving and restoring where a queue stands.

use super::{Case, at_least_queues, plain};
use crate::clause;
use crate::constants::{COMMON_LEN_QUEUE_STATE, cfg_type, feature, reg, ring, status};
use crate::harness::{Absent, Bench, Judged, Live, QUIET, Stop, arose, demand};

pub(super) const CASES: &[Case] = &[
    plain("the_structure_covers_the_state", &["QL-1"], structure),
    plain(
        "state_is_0_and_deaf_when_not_negotiated",
        &["QS-2"],
        not_negotiated,
    ),
    plain("a_restored_queue_goes_on_where_it_was", &["QS-3"], restored),
    plain(
        "a_restored_queue_goes_on_over_the_wrap",
        &["QS-3"],
        restored_at_the_wrap,
    ),
    plain("state_is_stable_while_suspended", &["QS-5"], stable),
    plain(
        "state_counts_every_buffer_consumed",
        &["QS-5"],
        complete_under_load,
    ),
    plain(
        "a_queue_moves_through_suspend_reset_and_restore",
        &["QS-3", "QS-5"],
        round_trip,
    ),
    plain(
        "default_after_a_device_reset",
        &["QS-6"],
        default_after_reset,
    ),
    plain(
        "default_after_a_function_level_reset",
        &["QS-6"],
        default_after_flr,
    ),
    plain(
        "default_after_a_queue_reset",
        &["QS-7"],
        default_after_queue_reset,
    ),
    plain(
        "refused_for_an_enabled_queue_while_suspended",
        &["QS-8"],
        refused_enabled,
    ),
    plain(
        "refused_for_a_disabled_queue_while_suspended",
        &["QS-8"],
        refused_disabled,
    ),
];

const STATE: u64 = feature::QUEUE_STATE;
const BOTH: u64 = feature::QUEUE_STATE | feature::SUSPEND;

fn offers(bench: &Bench) -> Result<(), Stop> {
    if bench.offered()? & STATE == 0 {
        return Err(Stop::NotApplicable(Absent::Features(STATE)));
    }
    Ok(())
}

fn state(bench: &Bench, queue: u16) -> Result<(u64, u64), Stop> {
    bench.put(reg::QUEUE_SELECT, u64::from(queue))?;
    let state = (
        bench.get(reg::QUEUE_AVAIL_STATE)?,
        bench.get(reg::QUEUE_USED_STATE)?,
    );
    bench.step(format!("read queue state {state:?} of queue {queue}"));
    Ok(state)
}

fn set_state(bench: &Bench, queue: u16, (avail, used): (u64, u64)) -> Result<(), Stop> {
    bench.put(reg::QUEUE_SELECT, u64::from(queue))?;
    bench.put(reg::QUEUE_AVAIL_STATE, avail)?;
    bench.put(reg::QUEUE_USED_STATE, used)
}

fn some_requests(bench: &Bench, live: &mut Live, count: u16) -> Result<(), Stop> {
    for _ in 0..count {
        let data = bench.buffer(512)?;
        bench.exchange(live, data)?;
    }
    Ok(())
}

fn structure(bench: &Bench) -> Judged {
    offers(bench)?;
    let cap = bench.cap(cfg_type::COMMON, clause!(caps "D1"))?;
    let length = cap.region.length;
    demand(
        "QL-1",
        length >= COMMON_LEN_QUEUE_STATE,
        "at least 68 bytes",
        || format!("the common configuration has {length} bytes and QUEUE_STATE is offered"),
    )?;
    Ok(String::new())
}

fn not_negotiated(bench: &Bench) -> Judged {
    offers(bench)?;
    bench.to_features_ok(0)?;
    set_state(bench, 0, (0x1234, 0x1234))?;
    let shown = state(bench, 0)?;
    demand("QS-2", shown == (0, 0), "0 and 0", || {
        format!("{shown:?} after 0x1234 was written")
    })?;
    let mut live = bench.queue_zero()?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    let data = bench.buffer(512)?;
    bench.request(&mut live, data)?;
    bench.kick(0)?;
    let done = bench.used_all(&live)? && bench.filled(data)?;
    demand("QS-2", done, "a queue that starts from 0", || {
        format!("used index {:?}, want 1", live.ring.used_index())
    })?;
    let shown = state(bench, 0)?;
    demand("QS-2", shown == (0, 0), "0 and 0", || {
        format!("{shown:?} after a request")
    })?;
    Ok(String::new())
}

/// Enables the queue that was given a state. A device that takes another one meets entries of the
/// available ring that are no chains.
fn start_restored(bench: &Bench) -> Result<(), Stop> {
    bench.put(reg::QUEUE_ENABLE, 1)?;
    bench.set_status(status::RUNNING)?;
    let shown = bench.status()?;
    demand(
        "QS-3",
        shown == status::RUNNING,
        "a queue that starts from its state",
        || format!("status {shown:#04x} after DRIVER_OK"),
    )
}

fn restore_at(bench: &Bench, index: u16, requests: u16) -> Judged {
    bench.to_features_ok(STATE)?;
    let mut live = bench.queue_zero()?;
    live.ring.start_at(index)?;
    bench.place_ring(0, &live.ring)?;
    set_state(bench, 0, (u64::from(index), u64::from(index)))?;
    start_restored(bench)?;
    for number in 0..requests {
        let data = bench.buffer(512)?;
        bench.request(&mut live, data)?;
        bench.kick(0)?;
        let done = bench.used_all(&live)? && bench.filled(data)?;
        demand(
            "QS-3",
            done,
            "the queue goes on from the state written before enable",
            || {
                let used = live.ring.used_index();
                format!("request {number} from index {index}: used index {used:?}")
            },
        )?;
    }
    let written = live.ring.rewritten(0, live.ring.size)?;
    demand(
        "QS-3",
        written == requests,
        "one used element for each request",
        || format!("{written} elements of the used ring for {requests} requests"),
    )?;
    Ok(String::new())
}

fn restored(bench: &Bench) -> Judged {
    restore_at(bench, 7, 3)
}

fn restored_at_the_wrap(bench: &Bench) -> Judged {
    restore_at(bench, 0xfffe, 5)
}

fn stable(bench: &Bench) -> Judged {
    let mut live = bench.up(BOTH)?;
    some_requests(bench, &mut live, 5)?;
    bench.suspend()?;
    let shown = state(bench, 0)?;
    let used = u64::from(live.ring.used_index()?);
    demand(
        "QS-5",
        shown == (used, used),
        "both halves where the used ring stands",
        || format!("{shown:?} with used index {used}"),
    )?;
    let moved = bench.wait(QUIET, || Ok(state(bench, 0)? != shown))?;
    demand(
        "QS-5",
        !moved,
        "the state does not move while suspended",
        || format!("{shown:?} became {:?}", state(bench, 0)),
    )?;
    Ok(String::new())
}

fn load(bench: &Bench, live: &mut Live) -> Result<(), Stop> {
    for _ in 0..live.capacity() {
        let data = bench.buffer(4096)?;
        bench.request(live, data)?;
    }
    bench.kick(0)
}

fn complete_under_load(bench: &Bench) -> Judged {
    let mut live = bench.up(BOTH)?;
    load(bench, &mut live)?;
    arose(bench.used_beyond(&live, 0)?, || {
        "nothing is used".to_owned()
    })?;
    bench.suspend()?;
    let (avail, used) = state(bench, 0)?;
    let index = u64::from(live.ring.used_index()?);
    demand(
        "QS-5",
        avail == index && used == index,
        "consumed, used and shown are one",
        || format!("state ({avail}, {used}), used index {index}"),
    )?;
    Ok(format!(
        "{index} of {} consumed when it was suspended",
        live.ring.next
    ))
}

fn round_trip(bench: &Bench) -> Judged {
    let mut live = bench.up(BOTH)?;
    some_requests(bench, &mut live, 3)?;
    load(bench, &mut live)?;
    bench.suspend()?;
    let saved = state(bench, 0)?;
    arose(saved != (0, 0), || {
        "the state is 0 after requests".to_owned()
    })?;
    // Another device would come here: a reset makes this one forget. What was done before must
    // not be done again, and cannot be.
    let done_before = u16::try_from(saved.0).unwrap_or(0);
    bench.to_features_ok(BOTH)?;
    live.ring.forget(0, done_before)?;
    bench.place_ring(0, &live.ring)?;
    set_state(bench, 0, saved)?;
    start_restored(bench)?;
    let left = live.ring.used_index()? != live.ring.next;
    if !left {
        let data = bench.buffer(512)?;
        bench.request(&mut live, data)?;
    }
    bench.kick(0)?;
    let done = bench.used_all(&live)?;
    demand(
        ["QS-3", "QS-5"],
        done,
        "every buffer is used exactly once across the move",
        || {
            format!(
                "used index {:?}, want {}",
                live.ring.used_index(),
                live.ring.next
            )
        },
    )?;
    let beyond = bench.wait(QUIET, || Ok(live.ring.used_index()? != live.ring.next))?;
    let again = live.ring.rewritten(0, done_before)?;
    demand(
        ["QS-3", "QS-5"],
        !beyond && again == 0,
        "no buffer is used twice",
        || {
            let used = live.ring.used_index();
            format!(
                "used index {used:?}, want {}; {again} used again",
                live.ring.next
            )
        },
    )?;
    Ok(format!(
        "moved at {saved:?} of {}, buffers left: {left}",
        live.ring.next
    ))
}

fn default_after(bench: &Bench, reset: impl Fn() -> Result<(), Stop>) -> Judged {
    let mut live = bench.up(BOTH)?;
    some_requests(bench, &mut live, 3)?;
    bench.suspend()?;
    let before = state(bench, 0)?;
    arose(before != (0, 0), || {
        "the state is 0 after requests".to_owned()
    })?;
    reset()?;
    bench.to_features_ok(BOTH)?;
    let after = state(bench, 0)?;
    let default = (ring::STATE_DEFAULT, ring::STATE_DEFAULT);
    demand("QS-6", after == default, "0 and 0", || {
        format!("{after:?}, before {before:?}")
    })?;
    let mut again = bench.queue_zero()?;
    bench.enable(0, &again.ring)?;
    bench.driver_ok()?;
    let data = bench.buffer(512)?;
    bench.request(&mut again, data)?;
    bench.kick(0)?;
    demand(
        "QS-6",
        bench.used_all(&again)?,
        "a queue that starts from 0",
        || format!("used index {:?}, want 1", again.ring.used_index()),
    )?;
    Ok(String::new())
}

fn default_after_reset(bench: &Bench) -> Judged {
    default_after(bench, || bench.reset())
}

fn default_after_flr(bench: &Bench) -> Judged {
    default_after(bench, || bench.function_reset())
}

fn default_after_queue_reset(bench: &Bench) -> Judged {
    let mut live = bench.up(STATE | feature::RING_RESET)?;
    some_requests(bench, &mut live, 3)?;
    let before = state(bench, 0)?;
    arose(before != (0, 0), || {
        "the state is 0 after requests".to_owned()
    })?;
    bench.put(reg::QUEUE_RESET, 1)?;
    let ended = bench.wait(bench.limit, || Ok(bench.get(reg::QUEUE_RESET)? == 0))?;
    arose(ended, || "the queue reset does not end".to_owned())?;
    let after = state(bench, 0)?;
    let default = (ring::STATE_DEFAULT, ring::STATE_DEFAULT);
    demand("QS-7", after == default, "0 and 0", || {
        format!("{after:?}, before {before:?}")
    })?;
    Ok(String::new())
}

fn refused_enabled(bench: &Bench) -> Judged {
    let mut live = bench.up(BOTH)?;
    some_requests(bench, &mut live, 3)?;
    bench.suspend()?;
    let before = state(bench, 0)?;
    set_state(bench, 0, (0x55, 0x55))?;
    let after = state(bench, 0)?;
    demand("QS-8", after == before, "the write is refused", || {
        format!("{before:?} became {after:?}")
    })?;
    bench.resume()?;
    let data = bench.buffer(512)?;
    bench.request(&mut live, data)?;
    bench.kick(0)?;
    demand(
        "QS-8",
        bench.used_all(&live)?,
        "the queue goes on where it was",
        || {
            format!(
                "used index {:?}, status {:?}",
                live.ring.used_index(),
                bench.status()
            )
        },
    )?;
    Ok(String::new())
}

fn refused_disabled(bench: &Bench) -> Judged {
    at_least_queues(bench, 2)?;
    bench.prepare(BOTH)?;
    set_state(bench, 1, (5, 5))?;
    let before = state(bench, 1)?;
    arose(before == (5, 5), || {
        format!("{before:?} after 5 was written to a disabled queue")
    })?;
    bench.driver_ok()?;
    bench.suspend()?;
    set_state(bench, 1, (9, 9))?;
    let after = state(bench, 1)?;
    demand("QS-8", after == before, "the write is refused", || {
        format!("{after:?}")
    })?;
    let shown = bench.status()?;
    arose(shown == status::SUSPENDED, || {
        format!("status {shown:#04x}")
    })?;
    Ok(String::new())
}
