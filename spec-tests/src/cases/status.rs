//! Device status: what a device leaves alone before DRIVER_OK, and how it reports its errors.

use super::{Case, plain};
use crate::constants::status;
use crate::harness::{Bench, Judged, Live, QUIET, Stop, arose, demand};

pub(super) const CASES: &[Case] = &[
    plain(
        "a:no_buffer_is_consumed_before_driver_ok",
        &["ST-5"],
        no_buffer_early,
    ),
    plain(
        "b:no_used_notification_before_driver_ok",
        &["ST-5"],
        no_notification_early,
    ),
    plain(
        "needs_reset_after_a_broken_ring",
        &["ST-6"],
        broken_ring_is_reported,
    ),
    plain(
        "needs_reset_is_announced_while_running",
        &["ST-7"],
        broken_ring_is_announced,
    ),
];

fn no_buffer_early(bench: &Bench) -> Judged {
    let mut live = bench.prepare(0)?;
    let changed = bench.tempt(&mut live, true)?;
    demand(
        "ST-5",
        changed.is_empty(),
        "no memory changed before DRIVER_OK",
        || format!("pages {changed:x?} changed with status 0x0b"),
    )?;
    bench.driver_ok()?;
    bench.kick(0)?;
    arose(bench.used_all(&live)?, || {
        "the same request fails after DRIVER_OK too".to_owned()
    })?;
    Ok(String::new())
}

fn no_notification_early(bench: &Bench) -> Judged {
    bench.to_features_ok(0)?;
    let mut live = bench.queue_zero()?;
    let interrupt = bench.queue_vector(0, 1)?;
    bench.enable(0, &live.ring)?;
    let data = bench.buffer(512)?;
    bench.request(&mut live, data)?;
    bench.kick(0)?;
    let fired = interrupt.wait(QUIET);
    demand("ST-5", !fired, "no interrupt before DRIVER_OK", || {
        "vector 1 fired".to_owned()
    })?;
    bench.driver_ok()?;
    bench.kick(0)?;
    arose(interrupt.wait(bench.limit), || {
        "the vector does not fire after DRIVER_OK".to_owned()
    })?;
    Ok(String::new())
}

/// Claims more new buffers than the queue has entries: there is no way on from that.
fn break_ring(bench: &Bench, live: &Live) -> Result<(), Stop> {
    bench.step("publish an available index far beyond the queue's size");
    live.ring
        .publish(live.ring.next.wrapping_add(live.ring.size).wrapping_add(1))?;
    bench.kick(0)
}

fn broken_ring_is_reported(bench: &Bench) -> Judged {
    let live = bench.up(0)?;
    break_ring(bench, &live)?;
    let last = bench.status_when(|shown| shown & status::NEEDS_RESET != 0)?;
    demand(
        "ST-6",
        last & status::NEEDS_RESET != 0,
        "DEVICE_NEEDS_RESET",
        || format!("status {last:#04x} long after the ring was broken"),
    )?;
    Ok(format!("status {last:#04x}"))
}

fn broken_ring_is_announced(bench: &Bench) -> Judged {
    bench.to_features_ok(0)?;
    let interrupt = bench.config_vector(0)?;
    let live = bench.queue_zero()?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    break_ring(bench, &live)?;
    let last = bench.status_when(|shown| shown & status::NEEDS_RESET != 0)?;
    arose(last & status::NEEDS_RESET != 0, || {
        format!("status {last:#04x}, no error")
    })?;
    demand(
        "ST-7",
        interrupt.wait(bench.limit),
        "a configuration change notification",
        || format!("status {last:#04x} and no interrupt"),
    )?;
    Ok(String::new())
}
