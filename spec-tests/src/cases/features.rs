//! Which features may be offered.

use super::{Case, plain, special};
use crate::clause;
use crate::constants::{blk, feature, reg};
use crate::harness::{Absent, Bench, Judged, Stop, arose, demand};
use crate::target::Variant;

pub(super) const CASES: &[Case] = &[
    plain("version_1_is_offered", &[VERSION], version_1),
    plain("no_reserved_bit_is_offered", &[RESERVED], no_reserved_bit),
    plain("sr_iov_only_with_its_capability", &[SR_IOV], sr_iov),
    plain("suspend_is_bit_43", &["SUS-1"], suspend_offered),
    special(
        "no_bit_43_without_suspend",
        &["SUS-1"],
        Variant::NoSuspend,
        suspend_not_offered,
    ),
    plain(
        "prerequisites_are_offered",
        &[REQUIRED, FLUSH],
        prerequisites,
    ),
    plain("driver_features_read_back", &[WRITTEN], read_back),
    plain("nothing_beyond_bit_63", &[WINDOW], beyond_63),
];

const WINDOW: &str = clause!(common "D3");
const WRITTEN: &str = clause!(common "D4");
const REQUIRED: &str = clause!(features "D1");
const FLUSH: &str = clause!(blk_init "D1");
const VERSION: &str = "reserved-feature-bits/D1";
const RESERVED: &str = "feature-bits/D3";
const SR_IOV: &str = "reserved-feature-bits/D9";

fn version_1(bench: &Bench) -> Judged {
    let offered = bench.offered()?;
    demand(VERSION, offered & feature::VERSION_1 != 0, "bit 32", || {
        format!("{offered:#x}")
    })?;
    Ok(String::new())
}

fn no_reserved_bit(bench: &Bench) -> Judged {
    let offered = bench.offered()?;
    let reserved = offered & feature::RESERVED;
    arose(offered != 0, || "nothing is offered".to_owned())?;
    demand(RESERVED, reserved == 0, "none of bits 45 to 49", || {
        format!("{reserved:#x}")
    })?;
    Ok(if offered & feature::QUEUE_STATE != 0 {
        "bit 44 is offered: the project's VIRTIO_F_QUEUE_STATE, reserved in VIRTIO 1.4".to_owned()
    } else {
        String::new()
    })
}

/// Features of disks that the standard lets nobody offer without another one.
const PREREQUISITES: [(u64, u64); 1] = [(feature::BLK_CONFIG_WCE, feature::BLK_FLUSH)];

fn prerequisites(bench: &Bench) -> Judged {
    if bench.caps.virtio_id() != Some(blk::ID) {
        return Err(Stop::NotApplicable(Absent::DeviceType(blk::ID)));
    }
    let offered = bench.offered()?;
    let mut met = 0_u32;
    for (needy, need) in PREREQUISITES {
        if offered & needy == 0 {
            continue;
        }
        met += 1;
        demand(
            [REQUIRED, FLUSH],
            offered & need != 0,
            "every feature with what it requires",
            || {
                format!(
                    "{:?} without {:?}",
                    feature::names(needy),
                    feature::names(need)
                )
            },
        )?;
    }
    if met == 0 {
        let needy = PREREQUISITES.iter().fold(0, |all, (needy, _)| all | needy);
        return Err(Stop::NotApplicable(Absent::Features(needy)));
    }
    Ok(String::new())
}

fn sr_iov(bench: &Bench) -> Judged {
    let offered = bench.offered()? & feature::SR_IOV != 0;
    let present = bench.caps.sr_iov.is_some();
    demand(
        SR_IOV,
        present || !offered,
        "no SR_IOV without the capability",
        || "bit 37 is offered and there is no SR-IOV capability".to_owned(),
    )?;
    Ok(format!("capability {present}, offered {offered}"))
}

fn suspend_offered(bench: &Bench) -> Judged {
    let mut live = bench.up_suspendable()?;
    bench.suspend()?;
    bench.resume()?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    Ok(String::new())
}

fn suspend_not_offered(bench: &Bench) -> Judged {
    let offered = bench.offered()?;
    arose(offered & feature::VERSION_1 != 0, || {
        format!("offered {offered:#x}")
    })?;
    demand(
        "SUS-1",
        offered & feature::SUSPEND == 0,
        "bit 43 clear",
        || format!("{offered:#x}"),
    )?;
    Ok(String::new())
}

fn read_back(bench: &Bench) -> Judged {
    bench.to_driver()?;
    let offered = bench.offered()?;
    arose(offered.count_ones() > 1, || {
        format!("only {offered:#x} is offered")
    })?;
    for features in [
        offered,
        feature::VERSION_1,
        0,
        offered & !feature::VERSION_1,
    ] {
        bench.accept(features)?;
        let shown = bench.accepted()?;
        demand(
            WRITTEN,
            shown & offered == features & offered,
            "the valid bits that were written",
            || format!("{shown:#x} after {features:#x} was written"),
        )?;
    }
    Ok(String::new())
}

fn beyond_63(bench: &Bench) -> Judged {
    bench.to_driver()?;
    let offered = bench.offered()?;
    arose(offered != 0, || "nothing is offered".to_owned())?;
    let nothing = |select: u64| -> Result<(), Stop> {
        bench.put(reg::DEVICE_FEATURE_SELECT, select)?;
        let window = bench.get(reg::DEVICE_FEATURE)?;
        demand(WINDOW, window == 0, "0 beyond bit 63", || {
            format!("device_feature {window:#x} with select {select:#x}")
        })
    };
    for select in [2, 3, 4, 31, 0x8000_0000, 0xffff_ffff] {
        nothing(select)?;
    }
    let again = bench.offered()?;
    demand(
        WINDOW,
        again == offered,
        "the same features as before",
        || format!("{again:#x}, before {offered:#x}"),
    )?;
    Ok(String::new())
}
