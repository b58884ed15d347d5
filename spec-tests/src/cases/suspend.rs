//! SUSPEND: the status bits, the configuration space, the failures.

use super::{Case, plain, special};
use crate::constants::{blk, feature, reg, status};
use crate::harness::{Absent, Bench, Judged, QUIET, Stop, arose, demand};
use crate::target::Variant;

pub(super) const CASES: &[Case] = &[
    plain(
        "suspended_shows_suspend_without_driver_ok",
        &["SUS-2", "SUS-15"],
        suspends,
    ),
    special(
        "driver_ok_stays_until_suspended",
        &["SUS-2", "SUS-15"],
        Variant::SuspendDelayed,
        suspends,
    ),
    plain(
        "resumed_shows_driver_ok_without_suspend",
        &["SUS-3", "SUS-16", "S23-7"],
        resumes,
    ),
    plain(
        "suspend_before_driver_ok_is_ignored",
        &["SUS-10"],
        ignored_early,
    ),
    plain(
        "suspend_before_features_ok_is_ignored",
        &["S23-4"],
        ignored_before_features_ok,
    ),
    plain(
        "suspend_not_negotiated_is_ignored",
        &["S23-5"],
        ignored_unless_negotiated,
    ),
    special(
        "suspend_not_offered_is_ignored",
        &["S23-5"],
        Variant::NoSuspend,
        ignored_unless_negotiated,
    ),
    plain(
        "status_is_written_while_suspended",
        &["S23-6"],
        status_still_counts,
    ),
    plain(
        "device_config_is_not_written_while_suspended",
        &["SUS-11"],
        config_is_locked,
    ),
    plain(
        "common_config_while_suspended",
        &["D-16"],
        common_config_reading,
    ),
    plain(
        "c:config_does_not_change_while_suspended",
        &["SUS-12"],
        config_rests,
    ),
    plain(
        "changes_are_announced_after_the_resume",
        &["SUS-13", "SUS-14"],
        announced_later,
    ),
    special(
        "needs_reset_when_it_cannot_suspend",
        &["SUS-15"],
        Variant::SuspendFails,
        cannot_suspend,
    ),
    special(
        "failed_suspend_is_announced",
        &["ST-7"],
        Variant::SuspendFails,
        failure_is_announced,
    ),
    special(
        "needs_reset_when_it_cannot_resume",
        &["SUS-16"],
        Variant::ResumeFails,
        cannot_resume,
    ),
    special(
        "the_same_byte_twice_is_once",
        &["D-15"],
        Variant::SuspendDelayed,
        twice_is_once,
    ),
];

fn suspends(bench: &Bench) -> Judged {
    bench.up_suspendable()?;
    bench.set_status(status::SUSPEND_OR_RESUME)?;
    let mut between = 0_u32;
    let mut last = 0;
    bench.wait(bench.limit, || {
        last = bench.status()?;
        between += u32::from(last != status::SUSPENDED);
        let odd = last != status::RUNNING && last != status::SUSPENDED;
        Ok(last == status::SUSPENDED || odd)
    })?;
    demand(
        ["SUS-15", "SUS-2"],
        last == status::SUSPENDED,
        "0x0f until suspended, then 0x1b",
        || format!("status {last:#04x}"),
    )?;
    Ok(format!("0x0f was read {between} times before 0x1b"))
}

fn resumes(bench: &Bench) -> Judged {
    let mut live = bench.up_suspendable()?;
    for round in 0..3 {
        let data = bench.buffer(512)?;
        bench.exchange(&mut live, data)?;
        bench.suspend()?;
        bench.set_status(status::SUSPEND_OR_RESUME)?;
        let last = bench.status_when(|shown| shown != status::SUSPENDED)?;
        demand(
            ["SUS-16", "SUS-3", "S23-7"],
            last == status::RUNNING,
            "0x1b until it runs, then 0x0f",
            || format!("status {last:#04x} in round {round}"),
        )?;
        let data = bench.buffer(512)?;
        bench.request(&mut live, data)?;
        bench.kick(0)?;
        let works = bench.used_all(&live)? && bench.filled(data)?;
        demand("SUS-16", works, "normal operation after the resume", || {
            format!("round {round}: used index {:?}", live.ring.used_index())
        })?;
    }
    Ok(String::new())
}

/// Writes each byte at its step; SUSPEND may not show at once nor later, and the device must run.
fn ignored(bench: &Bench, clause: &'static str, steps: &[(u8, u8)]) -> Result<(), Stop> {
    bench.reset()?;
    for (written, with_suspend) in steps.iter().copied() {
        bench.set_status(written)?;
        let before = bench.status()?;
        arose(before == written, || {
            format!("status {before:#04x} after {written:#04x}")
        })?;
        bench.set_status(with_suspend)?;
        let shown = bench.status()?;
        demand(
            clause,
            shown & status::SUSPEND == 0,
            "SUSPEND stays clear",
            || {
                format!(
                    "status {shown:#04x} after {with_suspend:#04x} was written in {before:#04x}"
                )
            },
        )?;
        if written == status::NEGOTIATING {
            bench.accept(bench.basis()? | feature::SUSPEND)?;
        }
    }
    Ok(())
}

fn offers_suspend(bench: &Bench) -> Result<(), Stop> {
    if bench.offered()? & feature::SUSPEND == 0 {
        return Err(Stop::NotApplicable(Absent::Features(feature::SUSPEND)));
    }
    Ok(())
}

const BEFORE_FEATURES_OK: [(u8, u8); 2] = [
    (status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::SUSPEND),
    (status::NEGOTIATING, status::NEGOTIATING | status::SUSPEND),
];

fn ignored_before_features_ok(bench: &Bench) -> Judged {
    offers_suspend(bench)?;
    ignored(bench, "S23-4", &BEFORE_FEATURES_OK)?;
    Ok(String::new())
}

fn ignored_early(bench: &Bench) -> Judged {
    offers_suspend(bench)?;
    let [first, second] = BEFORE_FEATURES_OK;
    ignored(
        bench,
        "SUS-10",
        &[first, second, (status::AGREED, status::SUSPENDED)],
    )?;
    let mut live = bench.queue_zero()?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    let data = bench.buffer(512)?;
    bench.request(&mut live, data)?;
    bench.kick(0)?;
    let works = bench.used_all(&live)?;
    demand(
        "SUS-10",
        works,
        "a device that runs as if nothing had been written",
        || {
            format!(
                "status {:?}, used index {:?}",
                bench.status(),
                live.ring.used_index()
            )
        },
    )?;
    Ok(String::new())
}

fn ignored_unless_negotiated(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    bench.set_status(status::SUSPEND_OR_RESUME)?;
    let suspended = bench.wait(QUIET, || Ok(bench.status()? & status::SUSPEND != 0))?;
    demand(
        "S23-5",
        !suspended,
        "SUSPEND stays clear when not negotiated",
        || format!("status {:?}", bench.status()),
    )?;
    let data = bench.buffer(512)?;
    bench.request(&mut live, data)?;
    bench.kick(0)?;
    let works = bench.used_all(&live)?;
    demand("S23-5", works, "the device goes on", || {
        format!("status {:?}", bench.status())
    })?;
    Ok(String::new())
}

fn status_still_counts(bench: &Bench) -> Judged {
    bench.up_suspendable()?;
    bench.suspend()?;
    bench.set_status(status::SUSPENDED | status::FAILED)?;
    let shown = bench.status()?;
    let failed = shown & status::FAILED != 0;
    demand("S23-6", failed, "FAILED shows", || {
        format!("status {shown:#04x}")
    })?;
    bench.set_status(0)?;
    let last = bench.status_when(|shown| shown == 0)?;
    demand("S23-6", last == 0, "a reset works", || {
        format!("status {last:#04x}")
    })?;
    Ok(String::new())
}

/// Writes `writeback` of a block device, the one field of its configuration that a driver writes.
fn write_writeback(bench: &Bench, value: u8) -> Result<u8, Stop> {
    let region = bench.device_region()?;
    bench.step(format!(
        "write {value} to writeback in the device configuration"
    ));
    bench
        .bus
        .bar_write(region.bar, region.offset + blk::WRITEBACK, &[value])?;
    let mut data = [0];
    bench
        .bus
        .bar_read(region.bar, region.offset + blk::WRITEBACK, &mut data)?;
    Ok(data[0])
}

fn config_is_locked(bench: &Bench) -> Judged {
    if bench.caps.virtio_id() != Some(blk::ID) {
        return Err(Stop::NotApplicable(Absent::WritableConfig));
    }
    bench.up(feature::SUSPEND | feature::BLK_CONFIG_WCE)?;
    for value in [0, 1] {
        let read = write_writeback(bench, value)?;
        arose(read == value, || {
            format!("writeback reads {read} after {value} while running")
        })?;
    }
    bench.suspend()?;
    let read = write_writeback(bench, 0)?;
    demand(
        "SUS-11",
        read == 1,
        "the write is ignored while suspended",
        || format!("writeback reads {read} after 0 was written, 1 before"),
    )?;
    bench.resume()?;
    let read = write_writeback(bench, 1)?;
    demand(
        "SUS-11",
        read == 1,
        "the write is not kept for later",
        || format!("{read}"),
    )?;
    Ok(String::new())
}

fn common_config_reading(bench: &Bench) -> Judged {
    bench.up_suspendable()?;
    bench.put(reg::DRIVER_FEATURE_SELECT, 0)?;
    bench.suspend()?;
    bench.put(reg::DRIVER_FEATURE_SELECT, 1)?;
    let locked = bench.get(reg::DRIVER_FEATURE_SELECT)? == 0;
    bench.put(reg::QUEUE_SELECT, 1)?;
    let select = bench.get(reg::QUEUE_SELECT)?;
    demand(
        "D-16",
        select == 1,
        "queue_select stays writable while suspended",
        || format!("queue_select reads {select} after 1 was written"),
    )?;
    bench.resume()?;
    Ok(if locked {
        "SUS-11 is read to cover the common configuration".to_owned()
    } else {
        "SUS-11 is read not to cover the common configuration".to_owned()
    })
}

fn config_rests(bench: &Bench) -> Judged {
    let mut live = bench.up_suspendable()?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    bench.suspend()?;
    let before = bench.device_config()?;
    let generation = bench.get(reg::CONFIG_GENERATION)?;
    arose(!before.is_empty(), || {
        "there is no device configuration".to_owned()
    })?;
    let changed = bench.wait(QUIET, || {
        let same = bench.device_config()? == before;
        Ok(!same || bench.get(reg::CONFIG_GENERATION)? != generation)
    })?;
    demand(
        "SUS-12",
        !changed,
        "no field changes while suspended",
        || format!("{before:02x?} became {:02x?}", bench.device_config()),
    )?;
    Ok(String::new())
}

fn announced_later(bench: &Bench) -> Judged {
    bench.to_features_ok(feature::SUSPEND)?;
    let interrupt = bench.config_vector(0)?;
    let live = bench.queue_zero()?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    bench.change_config()?;
    arose(interrupt.wait(bench.limit), || {
        "a change is not announced while running".to_owned()
    })?;
    bench.suspend()?;
    interrupt.wait(QUIET);
    bench.change_config()?;
    demand(
        "SUS-13",
        !interrupt.wait(QUIET),
        "no notification while suspended",
        || "the configuration's vector fired".to_owned(),
    )?;
    bench.resume()?;
    demand(
        "SUS-14",
        interrupt.wait(bench.limit),
        "a notification after the resume",
        || "nothing came".to_owned(),
    )?;
    Ok(String::new())
}

fn cannot_suspend(bench: &Bench) -> Judged {
    bench.up_suspendable()?;
    bench.set_status(status::SUSPEND_OR_RESUME)?;
    let settled = |shown| shown == status::SUSPENDED || shown & status::NEEDS_RESET != 0;
    let last = bench.status_when(settled)?;
    arose(last != status::SUSPENDED, || "it suspends".to_owned())?;
    demand(
        "SUS-15",
        settled(last),
        "0x1b or DEVICE_NEEDS_RESET",
        || format!("{last:#04x}"),
    )?;
    let both = last & status::SUSPEND != 0 && last & status::NEEDS_RESET != 0;
    demand("SUS-15", !both, "not suspended and failed at once", || {
        format!("{last:#04x}")
    })?;
    Ok(format!("status {last:#04x}"))
}

fn failure_is_announced(bench: &Bench) -> Judged {
    bench.to_features_ok(feature::SUSPEND)?;
    let interrupt = bench.config_vector(0)?;
    let live = bench.queue_zero()?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    bench.set_status(status::SUSPEND_OR_RESUME)?;
    let last = bench.status_when(|shown| shown & status::NEEDS_RESET != 0)?;
    let failed = last & status::NEEDS_RESET != 0 && last & status::DRIVER_OK != 0;
    arose(failed, || {
        format!("status {last:#04x}: no failure with DRIVER_OK")
    })?;
    demand(
        "ST-7",
        interrupt.wait(bench.limit),
        "a configuration change notification",
        || format!("status {last:#04x} and no interrupt"),
    )?;
    Ok(String::new())
}

fn cannot_resume(bench: &Bench) -> Judged {
    bench.to_features_ok(feature::SUSPEND)?;
    let interrupt = bench.config_vector(0)?;
    let live = bench.queue_zero()?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    bench.suspend()?;
    bench.set_status(status::SUSPEND_OR_RESUME)?;
    let settled = |shown| shown == status::RUNNING || shown & status::NEEDS_RESET != 0;
    let last = bench.status_when(settled)?;
    arose(last != status::RUNNING, || "it resumes".to_owned())?;
    demand(
        "SUS-16",
        settled(last),
        "0x0f or DEVICE_NEEDS_RESET",
        || format!("{last:#04x}"),
    )?;
    let running = last & status::DRIVER_OK != 0;
    demand("SUS-16", !running, "not running and failed at once", || {
        format!("{last:#04x}")
    })?;
    let told = interrupt.wait(QUIET);
    Ok(format!(
        "status {last:#04x}; D-17: configuration notification {told}"
    ))
}

fn twice_is_once(bench: &Bench) -> Judged {
    bench.up_suspendable()?;
    bench.set_status(status::SUSPEND_OR_RESUME)?;
    let shown = bench.status()?;
    arose(shown == status::RUNNING, || {
        format!("status {shown:#04x}, suspended at once")
    })?;
    bench.set_status(status::SUSPEND_OR_RESUME)?;
    let last = bench.status_when(|shown| shown == status::SUSPENDED)?;
    demand("D-15", last == status::SUSPENDED, "0x1b", || {
        format!("status {last:#04x}")
    })?;
    let left = bench.wait(QUIET, || Ok(bench.status()? != status::SUSPENDED))?;
    demand("D-15", !left, "it stays suspended", || {
        format!("status {:?}", bench.status())
    })?;
    Ok(String::new())
}
