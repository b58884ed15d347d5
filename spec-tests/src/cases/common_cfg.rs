//! The common configuration.

use super::{Case, plain, special};
use crate::clause;
use crate::constants::{feature, pci, reg};
use crate::harness::{Absent, Bench, Judged, Stop, arose, demand};
use crate::target::Variant;

const ENABLE_RESET: &str = clause!(common "D8");
const QUEUE_RESET_RESET: &str = clause!(common "D9");
const QUEUE_RESET_ENABLE: &str = clause!(common "D10");
const ABSENT: &str = clause!(common "D14");
const POWERS: &str = clause!(common "D15");
const COUNT: &str = clause!(msix "D2");
const MAPS: &str = clause!(msix "D4");
const UNMAPS: &str = clause!(msix "D5");
const SHOWN: &str = clause!(msix "D6");
const UNMAPPED_RESET: &str = clause!(msix "D7");
const MAPPABLE: &str = clause!(msix "D8");
const REFUSED: &str = clause!(msix "D9");

pub(super) const CASES: &[Case] = &[
    plain(
        "halves_of_queue_addresses_are_independent",
        &["PC-1"],
        halves,
    ),
    plain("generation_follows_a_change", &["PC-4"], generation),
    plain(
        "queue_enable_is_0_after_a_reset",
        &[ENABLE_RESET],
        enable_after_reset,
    ),
    plain(
        "queue_reset_is_0_after_a_reset",
        &[QUEUE_RESET_RESET],
        queue_reset_after_reset,
    ),
    plain(
        "queue_reset_is_0_after_enable",
        &[QUEUE_RESET_ENABLE],
        queue_reset_after_enable,
    ),
    plain("absent_queues_have_size_0", &[ABSENT], absent_queues),
    plain("sizes_are_powers_of_two", &[POWERS], powers_of_two),
    special(
        "admin_queues_come_after_the_others",
        &["PC-9"],
        Variant::Admin,
        admin_queues,
    ),
    plain(
        "every_event_maps_to_every_vector",
        &[MAPS, SHOWN, MAPPABLE, COUNT],
        vectors_map,
    ),
    plain(
        "events_are_unmapped_with_no_vector",
        &[UNMAPS],
        vectors_unmap,
    ),
    plain(
        "a_vector_that_is_absent_is_refused",
        &[REFUSED, COUNT],
        vectors_refused,
    ),
    plain(
        "events_are_unmapped_by_a_reset",
        &[UNMAPPED_RESET],
        vectors_after_reset,
    ),
];

fn halves(bench: &Bench) -> Judged {
    bench.to_features_ok(0)?;
    bench.put(reg::QUEUE_SELECT, 0)?;
    for field in [reg::QUEUE_DESC, reg::QUEUE_DRIVER, reg::QUEUE_DEVICE] {
        let [low, high] = field;
        bench.put_wide(field, 0x12_3456_7000)?;
        bench.put(low, 0x89ab_c000)?;
        let shown = bench.get_wide(field)?;
        demand(
            "PC-1",
            shown == 0x12_89ab_c000,
            "the low half alone changes",
            || format!("{} and its other half: {shown:#x}", low.name),
        )?;
        bench.put(high, 0x7)?;
        let shown = bench.get_wide(field)?;
        demand(
            "PC-1",
            shown == 0x7_89ab_c000,
            "the high half alone changes",
            || format!("{} and its other half: {shown:#x}", low.name),
        )?;
    }
    Ok(String::new())
}

fn generation(bench: &Bench) -> Judged {
    bench.up(0)?;
    for _ in 0..3 {
        let before = bench.device_config()?;
        let old = bench.get(reg::CONFIG_GENERATION)?;
        bench.change_config()?;
        let after = bench.device_config()?;
        arose(before != after, || {
            "the configuration did not change".to_owned()
        })?;
        let new = bench.get(reg::CONFIG_GENERATION)?;
        demand(
            "PC-4",
            new != old,
            "another generation after a changed value was read",
            || format!("config_generation stays {old}"),
        )?;
    }
    let still = bench.get(reg::CONFIG_GENERATION)?;
    bench.device_config()?;
    let now = bench.get(reg::CONFIG_GENERATION)?;
    Ok(format!("it changes without a change: {}", still != now))
}

fn enable_after_reset(bench: &Bench) -> Judged {
    bench.up(0)?;
    let before = bench.get(reg::QUEUE_ENABLE)?;
    arose(before == 1, || {
        format!("queue_enable reads {before} while running")
    })?;
    bench.reset()?;
    let queues = bench.get(reg::NUM_QUEUES)?;
    for queue in 0..queues {
        bench.put(reg::QUEUE_SELECT, queue)?;
        let enabled = bench.get(reg::QUEUE_ENABLE)?;
        demand(
            ENABLE_RESET,
            enabled == 0,
            "queue_enable 0 on reset",
            || format!("queue {queue} reads {enabled}"),
        )?;
    }
    Ok(String::new())
}

fn queue_reset_after_reset(bench: &Bench) -> Judged {
    bench.up(feature::RING_RESET)?;
    bench.put(reg::QUEUE_SELECT, 0)?;
    bench.put(reg::QUEUE_RESET, 1)?;
    bench.reset()?;
    bench.to_features_ok(feature::RING_RESET)?;
    bench.put(reg::QUEUE_SELECT, 0)?;
    let value = bench.get(reg::QUEUE_RESET)?;
    demand(
        QUEUE_RESET_RESET,
        value == 0,
        "queue_reset 0 on reset",
        || value.to_string(),
    )?;
    Ok(String::new())
}

fn queue_reset_after_enable(bench: &Bench) -> Judged {
    let live = bench.prepare(feature::RING_RESET)?;
    arose(live.ring.size > 0, || "no queue".to_owned())?;
    let value = bench.get(reg::QUEUE_RESET)?;
    demand(
        QUEUE_RESET_ENABLE,
        value == 0,
        "queue_reset 0 after enable",
        || value.to_string(),
    )?;
    Ok(String::new())
}

fn absent_queues(bench: &Bench) -> Judged {
    bench.to_driver()?;
    let queues = bench.get(reg::NUM_QUEUES)?;
    arose(queues < 0xffff, || "there is every queue".to_owned())?;
    for queue in [queues, queues + 1, 0x7fff, 0xffff] {
        bench.put(reg::QUEUE_SELECT, queue)?;
        let size = bench.get(reg::QUEUE_SIZE)?;
        demand(
            ABSENT,
            size == 0,
            "queue_size 0 for an absent queue",
            || format!("queue {queue} of {queues} has size {size}"),
        )?;
    }
    Ok(format!("{queues} queues"))
}

fn powers_of_two(bench: &Bench) -> Judged {
    bench.to_features_ok(0)?;
    let queues = bench.get(reg::NUM_QUEUES)?;
    arose(queues > 0, || "there are no queues".to_owned())?;
    for queue in 0..queues {
        bench.put(reg::QUEUE_SELECT, queue)?;
        let size = bench.get(reg::QUEUE_SIZE)?;
        demand(
            POWERS,
            size == 0 || size.is_power_of_two(),
            "0 or a power of 2",
            || format!("queue {queue} has size {size}"),
        )?;
    }
    Ok(String::new())
}

fn admin_queues(bench: &Bench) -> Judged {
    bench.to_features_ok(feature::ADMIN_VQ)?;
    let queues = bench.get(reg::NUM_QUEUES)?;
    let index = bench.get(reg::ADMIN_QUEUE_INDEX)?;
    let count = bench.get(reg::ADMIN_QUEUE_NUM)?;
    let fits = index >= queues && count <= 0x1_0000 - index;
    demand(
        "PC-9",
        fits,
        "admin queues beyond all others, below 0x10000",
        || format!("{count} from {index}, {queues} others"),
    )?;
    Ok(String::new())
}

/// Writes a vector to both kinds of event and returns what they read.
fn map(bench: &Bench, vector: u64) -> Result<[u64; 2], Stop> {
    bench.put(reg::QUEUE_SELECT, 0)?;
    bench.put(reg::QUEUE_MSIX_VECTOR, vector)?;
    bench.put(reg::CONFIG_MSIX_VECTOR, vector)?;
    Ok([
        bench.get(reg::QUEUE_MSIX_VECTOR)?,
        bench.get(reg::CONFIG_MSIX_VECTOR)?,
    ])
}

fn count(bench: &Bench) -> Result<u64, Stop> {
    let msix = bench.caps.msix.ok_or(Stop::NotApplicable(Absent::Msix))?;
    // Allocates and enables: a device may refuse vectors before that.
    bench.bus.interrupt(0)?;
    bench.to_features_ok(0)?;
    Ok(u64::from(msix.vectors))
}

fn vectors_map(bench: &Bench) -> Judged {
    let vectors = count(bench)?;
    for vector in 0..vectors {
        let shown = map(bench, vector)?;
        demand(
            [MAPS, SHOWN, MAPPABLE, COUNT],
            shown == [vector; 2],
            "the vector reads back",
            || format!("queue and configuration read {shown:x?} after {vector}"),
        )?;
    }
    Ok(format!("{vectors} vectors"))
}

fn vectors_unmap(bench: &Bench) -> Judged {
    count(bench)?;
    let shown = map(bench, 0)?;
    arose(shown == [0; 2], || format!("vector 0 reads {shown:x?}"))?;
    let shown = map(bench, pci::NO_VECTOR)?;
    demand(UNMAPS, shown == [pci::NO_VECTOR; 2], "NO_VECTOR", || {
        format!("{shown:x?}")
    })?;
    Ok(String::new())
}

fn vectors_refused(bench: &Bench) -> Judged {
    let vectors = count(bench)?;
    for vector in [vectors, vectors + 1, 0x7ff, 0xfffe] {
        if vector < vectors {
            continue;
        }
        let shown = map(bench, vector)?;
        demand(
            [REFUSED, COUNT],
            shown == [pci::NO_VECTOR; 2],
            "NO_VECTOR for what cannot be mapped",
            || format!("{shown:x?} after {vector:#x}, of {vectors} vectors"),
        )?;
    }
    Ok(String::new())
}

fn vectors_after_reset(bench: &Bench) -> Judged {
    count(bench)?;
    let shown = map(bench, 0)?;
    arose(shown == [0; 2], || format!("vector 0 reads {shown:x?}"))?;
    bench.reset()?;
    bench.put(reg::QUEUE_SELECT, 0)?;
    let after = [
        bench.get(reg::QUEUE_MSIX_VECTOR)?,
        bench.get(reg::CONFIG_MSIX_VECTOR)?,
    ];
    demand(
        UNMAPPED_RESET,
        after == [pci::NO_VECTOR; 2],
        "NO_VECTOR after a reset",
        || format!("queue and configuration read {after:x?}"),
    )?;
    Ok(String::new())
}
