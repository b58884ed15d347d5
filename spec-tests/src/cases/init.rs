//! Initialisation: FEATURES_OK, and what can be read before it.

use super::{Case, plain};
use crate::constants::{feature, status};
use crate::harness::{Bench, Judged, Stop, arose, demand};

pub(super) const CASES: &[Case] = &[
    plain(
        "config_is_readable_before_features_ok",
        &[CONFIG],
        config_before_features_ok,
    ),
    plain(
        "every_single_offered_bit_is_accepted",
        &[SUBSET],
        single_bits,
    ),
    plain("everything_offered_is_accepted", &[SUBSET], everything),
    plain(
        "a_bit_that_is_not_offered_is_refused",
        &[SUBSET],
        unoffered_is_refused,
    ),
    plain(
        "features_are_accepted_again_after_a_reset",
        &[AGAIN],
        again_after_reset,
    ),
    plain(
        "features_are_accepted_again_after_a_function_reset",
        &[AGAIN],
        again_after_flr,
    ),
];

const CONFIG: &str = "device-configuration-space/D1";
const SUBSET: &str = "feature-bits/D2";
const AGAIN: &str = "feature-bits/D4";

/// Bits whose acceptance changes how a driver must go on, or that are bound to other bits.
const NOT_ALONE: u64 = feature::VERSION_1 | feature::ACCESS_PLATFORM;

fn config_before_features_ok(bench: &Bench) -> Judged {
    bench.to_driver()?;
    let early = bench.device_config()?;
    bench.accept(bench.basis()?)?;
    bench.set_status(status::AGREED)?;
    let late = bench.device_config()?;
    arose(late.iter().any(|byte| *byte != 0), || {
        "the configuration is all zero".to_owned()
    })?;
    demand(
        CONFIG,
        early == late,
        "every field readable at status 0x03",
        || format!("{early:02x?} before FEATURES_OK, {late:02x?} after it"),
    )?;
    Ok(String::new())
}

/// Tries to agree on features and returns the status.
fn negotiate(bench: &Bench, features: u64) -> Result<u8, Stop> {
    bench.to_driver()?;
    bench.accept(features)?;
    bench.set_status(status::AGREED)?;
    bench.status()
}

fn single_bits(bench: &Bench) -> Judged {
    bench.to_driver()?;
    let offered = bench.offered()?;
    arose(offered & feature::VERSION_1 != 0, || {
        format!("offered {offered:#x}")
    })?;
    let basis = bench.basis()?;
    let bits = (0..64)
        .map(|bit| 1 << bit)
        .filter(|bit| offered & !NOT_ALONE & bit != 0);
    let mut count = 0_u32;
    for bit in bits.chain([0]) {
        let shown = negotiate(bench, bit | basis)?;
        demand(
            SUBSET,
            shown == status::AGREED,
            "FEATURES_OK stays set",
            || format!("status {shown:#04x} with features {:#x}", bit | basis),
        )?;
        count += 1;
    }
    Ok(format!("{count} sets of features"))
}

fn everything(bench: &Bench) -> Judged {
    bench.to_driver()?;
    let offered = bench.offered()?;
    arose(offered & feature::VERSION_1 != 0, || {
        format!("offered {offered:#x}")
    })?;
    let shown = negotiate(bench, offered)?;
    demand(
        SUBSET,
        shown == status::AGREED,
        "FEATURES_OK stays set",
        || format!("status {shown:#04x} with everything offered, {offered:#x}"),
    )?;
    Ok(format!("{offered:#x}"))
}

fn unoffered_is_refused(bench: &Bench) -> Judged {
    bench.to_driver()?;
    let offered = bench.offered()?;
    arose(offered != u64::MAX, || "everything is offered".to_owned())?;
    let basis = bench.basis()?;
    for bit in (0..64)
        .map(|bit| 1_u64 << bit)
        .filter(|bit| offered & bit == 0)
    {
        let shown = negotiate(bench, bit | basis)?;
        demand(
            SUBSET,
            shown & status::FEATURES_OK == 0,
            "FEATURES_OK reads back 0",
            || format!("status {shown:#04x} with {bit:#x}, which is not offered"),
        )?;
    }
    Ok(String::new())
}

fn agree_twice(bench: &Bench, reset: impl Fn() -> Result<(), Stop>) -> Judged {
    bench.to_driver()?;
    let offered = bench.offered()?;
    for features in [offered, bench.basis()?] {
        let shown = negotiate(bench, features)?;
        arose(shown == status::AGREED, || {
            format!("status {shown:#04x} the first time")
        })?;
        bench.set_status(status::RUNNING)?;
        reset()?;
        let shown = negotiate(bench, features)?;
        demand(
            AGAIN,
            shown == status::AGREED,
            "the same features are accepted again",
            || format!("status {shown:#04x} with {features:#x} after the reset"),
        )?;
    }
    Ok(String::new())
}

fn again_after_reset(bench: &Bench) -> Judged {
    agree_twice(bench, || bench.reset())
}

fn again_after_flr(bench: &Bench) -> Judged {
    agree_twice(bench, || bench.function_reset())
}
