//! SUSPEND: queues, memory and notifications.

use super::{Case, plain, special};
use crate::constants::{feature, status};
use crate::harness::{Bench, Clauses, Judged, Live, QUIET, Stop, arose, changed_pages, demand};
use crate::target::Variant;

const STOPS: &str = "general-initialization-and-device-operation-device-suspend/D8";
const DRAINS: &str = "general-initialization-and-device-operation-device-suspend/D9";
const NOTIFIES: &str = "general-initialization-and-device-operation-device-suspend/D10";

pub(super) const CASES: &[Case] = &[
    plain(
        "a:no_used_notification_while_suspended",
        &["SUS-12"],
        silent,
    ),
    plain(
        "b:no_queue_is_touched_while_suspended",
        &["SUS-12"],
        queues_rest,
    ),
    plain(
        "buffers_posted_while_suspended_are_used_after_the_resume",
        &["SUS-16"],
        catches_up,
    ),
    plain(
        "a:no_buffer_is_consumed_once_suspended",
        &[STOPS, "S23-8"],
        stops_under_load,
    ),
    plain(
        "b:buffers_in_process_are_used_before",
        &[DRAINS, "S23-8"],
        drains,
    ),
    special(
        "b:buffers_in_process_are_used_before_a_slow_suspend",
        &[DRAINS],
        Variant::SuspendDelayed,
        drains,
    ),
    plain(
        "c:used_notifications_are_sent_before",
        &[NOTIFIES],
        notifies_before,
    ),
    plain(
        "every_request_survives_suspend_under_load",
        &["SUS-16"],
        nothing_is_lost,
    ),
    plain(
        "memory_rests_when_suspended_before_a_request",
        &["SUS-12"],
        idle_rests,
    ),
];

/// Posts as many requests as there is room for, and asks for a suspend when the first are used.
fn suspend_under_load(bench: &Bench, live: &mut Live) -> Result<(), Stop> {
    let before = live.ring.used_index()?;
    for _ in 0..live.capacity() {
        let data = bench.buffer(4096)?;
        bench.request(live, data)?;
    }
    bench.kick(0)?;
    arose(bench.used_beyond(live, before)?, || {
        "nothing is used".to_owned()
    })?;
    bench.suspend()
}

/// No byte of memory changes for a while.
fn rests(bench: &Bench, clause: impl Clauses) -> Result<(), Stop> {
    let before = bench.snapshot()?;
    let touched = bench.wait(QUIET, || Ok(bench.snapshot()? != before))?;
    demand(
        clause,
        !touched,
        "no memory changes while suspended",
        || {
            let after = bench.snapshot().unwrap_or_default();
            format!(
                "pages {:x?} changed",
                changed_pages(&before, &after, bench.memory().iova())
            )
        },
    )
}

fn silent(bench: &Bench) -> Judged {
    let (mut live, interrupt) = bench.up_notified(feature::SUSPEND)?;
    bench.suspend()?;
    interrupt.wait(QUIET);
    let data = bench.buffer(512)?;
    bench.request(&mut live, data)?;
    bench.kick(0)?;
    demand(
        "SUS-12",
        !interrupt.wait(QUIET),
        "no used buffer notification",
        || "the queue's vector fired while suspended".to_owned(),
    )?;
    Ok(String::new())
}

fn queues_rest(bench: &Bench) -> Judged {
    let mut live = bench.up_suspendable()?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    bench.suspend()?;
    // A correct driver does neither: the device must not act on it all the same.
    let changed = bench.tempt(&mut live, true)?;
    demand(
        "SUS-12",
        changed.is_empty(),
        "no memory changes while suspended",
        || {
            format!(
                "pages {changed:x?} changed, used index {:?}",
                live.ring.used_index()
            )
        },
    )?;
    Ok(String::new())
}

fn idle_rests(bench: &Bench) -> Judged {
    let mut live = bench.up_suspendable()?;
    bench.suspend()?;
    let changed = bench.tempt(&mut live, false)?;
    demand(
        "SUS-12",
        changed.is_empty(),
        "no memory changes while suspended",
        || format!("pages {changed:x?} changed without a notification"),
    )?;
    bench.resume()?;
    bench.kick(0)?;
    arose(bench.used_all(&live)?, || {
        "the request fails after the resume too".to_owned()
    })?;
    Ok(String::new())
}

fn catches_up(bench: &Bench) -> Judged {
    let mut live = bench.up_suspendable()?;
    bench.suspend()?;
    let data = bench.buffer(512)?;
    bench.request(&mut live, data)?;
    bench.resume()?;
    let by_itself = bench.wait(QUIET, || Ok(live.ring.used_index()? == live.ring.next))?;
    bench.kick(0)?;
    let done = bench.used_all(&live)? && bench.filled(data)?;
    demand(
        "SUS-16",
        done,
        "the buffer is used once the device runs and is notified",
        || {
            format!(
                "used index {:?}, want {}",
                live.ring.used_index(),
                live.ring.next
            )
        },
    )?;
    Ok(format!("used without a new notification: {by_itself}"))
}

fn stops_under_load(bench: &Bench) -> Judged {
    let mut live = bench.up_suspendable()?;
    suspend_under_load(bench, &mut live)?;
    let used = live.ring.used_index()?;
    rests(bench, [STOPS, "S23-8"])?;
    Ok(format!(
        "{used} of {} used when it was suspended",
        live.ring.next
    ))
}

fn drains(bench: &Bench) -> Judged {
    let mut live = bench.up_suspendable()?;
    let mut buffers = Vec::new();
    for _ in 0..live.capacity() {
        let data = bench.buffer(4096)?;
        bench.request(&mut live, data)?;
        buffers.push(data);
    }
    bench.kick(0)?;
    arose(bench.used_beyond(&live, 0)?, || {
        "nothing is used".to_owned()
    })?;
    bench.suspend()?;
    let used = live.ring.used_index()?;
    arose(used <= live.ring.next, || format!("used index {used}"))?;
    // The heads that were used, and every buffer that the device has written to.
    let mut heads = Vec::new();
    for index in 0..used {
        heads.push(live.ring.used_element(index)?.0);
    }
    for (slot, data) in (0_u32..).zip(&buffers) {
        let written = bench.filled(*data)?;
        let returned = heads.contains(&(slot * 3));
        demand(
            [DRAINS, "S23-8"],
            returned || !written,
            "what was begun is used",
            || format!("buffer {slot} was written and is not among {used} used ones"),
        )?;
        arose(written || !returned, || {
            format!("buffer {slot} was used and not written")
        })?;
    }
    Ok(format!(
        "{used} of {} used when it was suspended",
        live.ring.next
    ))
}

fn notifies_before(bench: &Bench) -> Judged {
    let (mut live, interrupt) = bench.up_notified(feature::SUSPEND)?;
    // At first the suspend races with the request; later it waits for the used index, which comes
    // before the notification.
    for round in 0..8 {
        let before = live.ring.used_index()?;
        interrupt.wait(std::time::Duration::ZERO);
        let data = bench.buffer(512)?;
        bench.request(&mut live, data)?;
        bench.kick(0)?;
        if round > 3 {
            arose(bench.used_beyond(&live, before)?, || {
                "nothing is used".to_owned()
            })?;
        }
        bench.suspend()?;
        let fired = interrupt.wait(QUIET);
        let used = live.ring.used_index()?.wrapping_sub(before);
        if used > 0 {
            demand(
                NOTIFIES,
                fired,
                "the notification of what was used, before SUSPEND",
                || format!("{used} buffers used and no notification"),
            )?;
            return Ok(String::new());
        }
        bench.resume()?;
        bench.kick(0)?;
        arose(bench.used_all(&live)?, || {
            "the request was not carried out".to_owned()
        })?;
    }
    Err(Stop::Inconclusive(
        "nothing was ever used between kick and suspend".to_owned(),
    ))
}

fn nothing_is_lost(bench: &Bench) -> Judged {
    let mut live = bench.up_suspendable()?;
    let mut caught = 0_u32;
    for _ in 0..8 {
        let mut buffers = Vec::new();
        for _ in 0..8.min(live.capacity()) {
            let data = bench.buffer(4096)?;
            bench.request(&mut live, data)?;
            buffers.push(data);
        }
        bench.kick(0)?;
        bench.suspend()?;
        caught += u32::from(live.ring.used_index()? != live.ring.next);
        bench.resume()?;
        bench.kick(0)?;
        let done = bench.used_all(&live)?;
        demand("SUS-16", done, "every buffer is used in the end", || {
            format!(
                "used index {:?}, want {}",
                live.ring.used_index(),
                live.ring.next
            )
        })?;
        for data in buffers {
            let filled = bench.filled(data)?;
            demand("SUS-16", filled, "every buffer is written", || {
                format!("{data:x?} is not")
            })?;
        }
    }
    let shown = bench.status()?;
    arose(shown == status::RUNNING, || format!("status {shown:#04x}"))?;
    Ok(format!("{caught} of 8 suspends came with buffers left"))
}
