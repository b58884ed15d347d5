//! Reset of the device and of one queue.

use super::{Case, plain, special};
use crate::clause;
use crate::constants::{feature, reg, status};
use crate::harness::{Bench, Judged, QUIET, Stop, arose, demand};
use crate::target::Variant;

const RESETS: &str = clause!(common "D11");
const RESETTING: &str = clause!(common "D12");
const RESET_DONE: &str = clause!(common "D13");

pub(super) const CASES: &[Case] = &[
    plain(
        "status_is_0_after_a_reset_at_every_step",
        &["RS-1", "PC-5"],
        reset_at_every_step,
    ),
    plain(
        "status_is_0_after_a_reset_while_suspended",
        &["RS-1", "PC-5"],
        reset_suspended,
    ),
    special(
        "status_is_0_after_a_reset_while_suspending",
        &["RS-1", "PC-5"],
        Variant::SuspendDelayed,
        reset_suspending,
    ),
    special(
        "status_is_0_after_a_reset_from_needs_reset",
        &["RS-1", "PC-5"],
        Variant::SuspendFails,
        reset_needs_reset,
    ),
    plain(
        "status_is_0_after_a_function_level_reset",
        &["RS-1"],
        function_reset,
    ),
    plain(
        "a:nothing_is_touched_after_a_reset",
        &["RS-2"],
        untouched_after_reset,
    ),
    plain(
        "b:nobody_is_notified_after_a_reset",
        &["RS-2"],
        silent_after_reset,
    ),
    plain(
        "a:a_reset_queue_executes_nothing",
        &["VR-1"],
        reset_queue_rests,
    ),
    plain(
        "b:a_reset_queue_notifies_nobody",
        &["VR-1"],
        reset_queue_is_silent,
    ),
    plain(
        "a_reset_queue_is_as_after_a_device_reset",
        &["VR-2", RESETS],
        reset_queue_is_default,
    ),
    plain(
        "a_reset_queue_starts_from_index_0",
        &["VR-2"],
        reset_queue_starts_over,
    ),
    plain(
        "a_queue_comes_back_with_another_size_and_place",
        &["VR-3"],
        queue_moves,
    ),
    plain(
        "queue_reset_and_queue_enable_end_at_0",
        &[RESETTING, RESET_DONE],
        queue_reset_ends,
    ),
];

fn must_be_zero(bench: &Bench, from: u8) -> Result<(), Stop> {
    bench.set_status(0)?;
    let last = bench.status_when(|shown| shown == 0)?;
    demand(
        ["RS-1", "PC-5"],
        last == 0,
        "status 0 once the reset is done",
        || {
            let limit = bench.limit;
            format!("status {last:#04x}, {limit:?} after 0 was written in {from:#04x}")
        },
    )?;
    Ok(())
}

fn reset_at_every_step(bench: &Bench) -> Judged {
    let steps = [
        status::ACKNOWLEDGE,
        status::NEGOTIATING,
        status::AGREED,
        status::RUNNING,
        status::RUNNING | status::FAILED,
    ];
    for last in steps {
        bench.reset()?;
        for step in steps.into_iter().filter(|step| *step <= last) {
            if step == status::AGREED {
                bench.accept(bench.basis()?)?;
            }
            bench.set_status(step)?;
        }
        let shown = bench.status()?;
        arose(shown == last, || {
            format!("status {shown:#04x} instead of {last:#04x}")
        })?;
        must_be_zero(bench, last)?;
    }
    Ok(String::new())
}

fn reset_suspended(bench: &Bench) -> Judged {
    bench.up_suspendable()?;
    bench.suspend()?;
    must_be_zero(bench, status::SUSPENDED)?;
    Ok(String::new())
}

fn reset_suspending(bench: &Bench) -> Judged {
    bench.up_suspendable()?;
    bench.set_status(status::SUSPEND_OR_RESUME)?;
    let shown = bench.status()?;
    arose(shown == status::RUNNING, || {
        format!("status {shown:#04x}, suspended at once")
    })?;
    must_be_zero(bench, shown)?;
    let back = bench.wait(4 * QUIET, || Ok(bench.status()? != 0))?;
    demand("RS-1", !back, "status stays 0", || {
        "the suspend went on after the reset".to_owned()
    })?;
    Ok(String::new())
}

fn reset_needs_reset(bench: &Bench) -> Judged {
    bench.up_suspendable()?;
    bench.set_status(status::SUSPEND_OR_RESUME)?;
    let last = bench.status_when(|shown| shown & status::NEEDS_RESET != 0)?;
    arose(last & status::NEEDS_RESET != 0, || {
        format!("status {last:#04x}")
    })?;
    must_be_zero(bench, last)?;
    Ok(String::new())
}

fn function_reset(bench: &Bench) -> Judged {
    bench.up(0)?;
    bench.function_reset()?;
    let last = bench.status_when(|shown| shown == 0)?;
    demand("RS-1", last == 0, "status 0", || {
        format!("status {last:#04x}")
    })?;
    Ok(String::new())
}

fn untouched_after_reset(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let first = bench.buffer(512)?;
    bench.exchange(&mut live, first)?;
    // Work is under way when the reset comes.
    for _ in 2..live.capacity() {
        let data = bench.buffer(4096)?;
        bench.request(&mut live, data)?;
    }
    bench.kick(0)?;
    bench.reset()?;
    let changed = bench.tempt(&mut live, true)?;
    demand(
        "RS-2",
        changed.is_empty(),
        "no memory changes once status reads 0",
        || format!("pages {changed:x?} changed"),
    )?;
    Ok(String::new())
}

fn silent_after_reset(bench: &Bench) -> Judged {
    let (mut live, interrupt) = bench.up_notified(0)?;
    let data = bench.buffer(512)?;
    bench.reset()?;
    interrupt.wait(QUIET);
    bench.request(&mut live, data)?;
    bench.kick(0)?;
    demand("RS-2", !interrupt.wait(QUIET), "no notification", || {
        "vector 1 fired".to_owned()
    })?;
    Ok(String::new())
}

/// Writes 1 to queue 0's `queue_reset` and waits for the end. False if there is none.
fn queue_reset(bench: &Bench) -> Result<bool, Stop> {
    bench.put(reg::QUEUE_SELECT, 0)?;
    bench.put(reg::QUEUE_RESET, 1)?;
    bench.wait(bench.limit, || {
        Ok(bench.get(reg::QUEUE_RESET)? == 0 && bench.get(reg::QUEUE_ENABLE)? == 0)
    })
}

/// Resets queue 0.
fn reset_queue(bench: &Bench) -> Result<(), Stop> {
    let done = queue_reset(bench)?;
    arose(done, || "the queue reset does not end".to_owned())
}

fn reset_queue_rests(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::RING_RESET)?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    reset_queue(bench)?;
    let changed = bench.tempt(&mut live, true)?;
    demand(
        "VR-1",
        changed.is_empty(),
        "no request of a reset queue is executed",
        || {
            format!(
                "pages {changed:x?} changed, used index {:?}",
                live.ring.used_index()
            )
        },
    )?;
    Ok(String::new())
}

fn reset_queue_is_silent(bench: &Bench) -> Judged {
    let (mut live, interrupt) = bench.up_notified(feature::RING_RESET)?;
    let data = bench.buffer(512)?;
    reset_queue(bench)?;
    interrupt.wait(QUIET);
    bench.request(&mut live, data)?;
    bench.kick(0)?;
    demand("VR-1", !interrupt.wait(QUIET), "no notification", || {
        "vector 1 fired".to_owned()
    })?;
    Ok(String::new())
}

fn reset_queue_is_default(bench: &Bench) -> Judged {
    bench.to_features_ok(feature::RING_RESET)?;
    let fields = |bench: &Bench| -> Result<[u64; 6], Stop> {
        bench.put(reg::QUEUE_SELECT, 0)?;
        Ok([
            bench.get(reg::QUEUE_SIZE)?,
            bench.get(reg::QUEUE_ENABLE)?,
            bench.get_wide(reg::QUEUE_DESC)?,
            bench.get_wide(reg::QUEUE_DRIVER)?,
            bench.get_wide(reg::QUEUE_DEVICE)?,
            bench.get(reg::QUEUE_MSIX_VECTOR)?,
        ])
    };
    let default = fields(bench)?;
    let mut live = bench.queue_zero()?;
    bench.queue_vector(0, 1)?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    let running = fields(bench)?;
    arose(running != default, || {
        "the queue's registers did not change".to_owned()
    })?;
    let done = queue_reset(bench)?;
    demand(RESETS, done, "a queue that is off at the end", || {
        let enabled = bench.get(reg::QUEUE_ENABLE);
        format!("queue_enable {enabled:?} after 1 was written to queue_reset")
    })?;
    let after = fields(bench)?;
    demand(
        ["VR-2", RESETS],
        after == default,
        "every register of the queue at its default",
        || format!("size, enable, desc, driver, device, vector: {after:x?}, default {default:x?}"),
    )?;
    Ok(String::new())
}

fn reset_queue_starts_over(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::RING_RESET)?;
    for _ in 0..3 {
        let data = bench.buffer(512)?;
        bench.exchange(&mut live, data)?;
    }
    reset_queue(bench)?;
    let mut again = bench.queue_zero()?;
    bench.enable(0, &again.ring)?;
    let data = bench.buffer(512)?;
    bench.request(&mut again, data)?;
    bench.kick(0)?;
    let used = bench.used_all(&again)?;
    demand(
        "VR-2",
        used && bench.filled(data)?,
        "the queue starts from index 0",
        || format!("used index {:?}, want 1", again.ring.used_index()),
    )?;
    Ok(String::new())
}

fn queue_moves(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::RING_RESET)?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    reset_queue(bench)?;
    let mut moved = bench.queue_zero()?;
    moved.ring.size /= 2;
    arose(moved.ring.size >= 4, || {
        "the queue has no smaller size".to_owned()
    })?;
    bench.enable(0, &moved.ring)?;
    let size = bench.get(reg::QUEUE_SIZE)?;
    let want = u64::from(moved.ring.size);
    demand("VR-3", size == want, "the new size", || {
        format!("{size}, {want} was written")
    })?;
    let old = live.ring.used_index()?;
    // Once round the smaller ring, so that a device with the old size goes astray.
    for _ in 0..=moved.ring.size {
        let data = bench.buffer(512)?;
        bench.request(&mut moved, data)?;
        bench.kick(0)?;
        let used = bench.used_all(&moved)?;
        demand(
            "VR-3",
            used && bench.filled(data)?,
            "requests done on the new ring",
            || {
                format!(
                    "used index {:?}, want {}",
                    moved.ring.used_index(),
                    moved.ring.next
                )
            },
        )?;
    }
    let now = live.ring.used_index()?;
    demand("VR-3", now == old, "the old ring is left alone", || {
        format!("{old} became {now}")
    })?;
    Ok(String::new())
}

fn queue_reset_ends(bench: &Bench) -> Judged {
    let mut live = bench.up(feature::RING_RESET)?;
    for _ in 0..live.capacity() {
        let data = bench.buffer(4096)?;
        bench.request(&mut live, data)?;
    }
    bench.kick(0)?;
    bench.put(reg::QUEUE_SELECT, 0)?;
    let enabled = bench.get(reg::QUEUE_ENABLE)?;
    arose(enabled == 1, || {
        format!("queue_enable reads {enabled} before")
    })?;
    bench.put(reg::QUEUE_RESET, 1)?;
    let mut ongoing = 0_u32;
    let mut last = (0, 0);
    let ended = bench.wait(bench.limit, || {
        last.0 = bench.get(reg::QUEUE_RESET)?;
        last.1 = bench.get(reg::QUEUE_ENABLE)?;
        ongoing += u32::from(last.0 == 1);
        Ok(last.0 == 0)
    })?;
    demand(
        RESET_DONE,
        ended && last.1 == 0,
        "1 while it goes on, then 0 in both",
        || format!("queue_reset {}, queue_enable {}", last.0, last.1),
    )?;
    let before = bench.snapshot()?;
    let touched = bench.wait(QUIET, || Ok(bench.snapshot()? != before))?;
    demand(RESETTING, !touched, "a completed reset is complete", || {
        "memory still changes after queue_reset read 0".to_owned()
    })?;
    let status = bench.status()?;
    arose(status & status::NEEDS_RESET == 0, || {
        format!("status {status:#04x}")
    })?;
    Ok(format!("{ongoing} reads saw the reset going on"))
}
