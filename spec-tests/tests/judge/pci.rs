//! Drivers that stumble over how a function presents itself.

use crate::raw::{Raw, low16};
use crate::{Mutant, WANTED, mutant, named, quiet, watch};
use spec_tests::clause;
use spec_tests::constants::{feature, status};
use spec_tests::judge::{Odd, Plan};

/// A function with one odd thing about it.
macro_rules! odd {
    ($($field:ident),*) => {
        || Plan { odd: Odd { $($field: true,)* ..Odd::NONE }, ..quiet() }
    };
}

/// Drives the function if it likes it.
fn if_it_likes(d: &mut Raw, likes: bool) {
    if likes {
        d.up(WANTED);
    }
}

fn window(d: &Raw, offset: u64, length: u64) {
    d.set_config(d.at.window + 4, 1, 0);
    d.set_config(d.at.window + 8, 4, offset);
    d.set_config(d.at.window + 12, 4, length);
    d.config(d.at.window + 16, 4);
}

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "knows_transitional_ids_only",
        &[clause!(discovery "R1")],
        quiet,
        |d| {
            let likes = d.config(2, 2) < 0x1040;
            if_it_likes(d, likes);
        },
    ),
    mutant(
        "knows_no_transitional_ids",
        &[clause!(discovery "R2")],
        || named("transitional"),
        |d| {
            let likes = d.config(2, 2) >= 0x1040;
            if_it_likes(d, likes);
        },
    ),
    mutant(
        "wants_revision_1",
        &[clause!(discovery "R3")],
        || Plan {
            revision: 0x5a,
            ..quiet()
        },
        |d| {
            let likes = d.config(8, 1) == 1;
            if_it_likes(d, likes);
        },
    ),
    mutant(
        "follows_reserved_types",
        &[clause!(caps "R1")],
        odd!(reserved_type),
        |d| {
            let first = low16(d.config(0x34, 1));
            let place = d.config(first + 8, 4);
            d.bar(place, 4);
            d.up(WANTED);
        },
    ),
    mutant(
        "uses_the_last_structure",
        &[clause!(caps "R2")],
        odd!(second_common),
        |d| {
            d.up(WANTED);
            d.bar(0x6000, 4);
        },
    ),
    mutant(
        "wants_short_capabilities",
        &[clause!(caps "R3")],
        odd!(long_capability),
        |d| {
            let likes = d.config(d.at.cap + 2, 1) == 16;
            if_it_likes(d, likes);
        },
    ),
    mutant(
        "stumbles_over_reserved_bars",
        &[clause!(caps "R4")],
        odd!(reserved_bar),
        |d| {
            let first = low16(d.config(0x34, 1));
            let likes = d.config(first + 4, 1) < 6;
            if_it_likes(d, likes);
        },
    ),
    mutant(
        "wants_exact_structures",
        &[clause!(caps "R6"), clause!(config "R3")],
        odd!(large_structures),
        |d| {
            let likes = d.config(d.at.cap + 12, 4) <= 68;
            if_it_likes(d, likes);
        },
    ),
    mutant("writes_a_capability", &[clause!(caps "R7")], watch, |d| {
        d.set_config(d.at.cap + 5, 1, 1);
        d.up(WANTED);
    }),
    mutant(
        "takes_vendor_data_for_its_own",
        &[clause!(vendor_data "R2")],
        watch,
        |d| {
            d.config(d.at.vendor + 8, 4);
            d.up(WANTED);
        },
    ),
    mutant(
        "misaligns_the_window",
        &[clause!(window "R1")],
        watch,
        |d| {
            window(d, d.at.common + 18, 4);
            d.up(WANTED);
        },
    ),
    mutant(
        "opens_the_window_elsewhere",
        &[clause!(window "R2")],
        watch,
        |d| {
            window(d, 0x7000, 4);
            d.up(WANTED);
        },
    ),
    mutant(
        "enables_functions_early",
        &[clause!(reserved "R10")],
        || named("admin"),
        |d| {
            d.begin();
            d.set_config(0x110, 2, 1);
            d.set_config(0x108, 2, 1);
            d.up(WANTED | feature::SR_IOV);
        },
    ),
    mutant(
        "wants_as_many_vectors_as_queues",
        &[clause!(msix "R1")],
        || Plan {
            vectors: Some(1),
            ..quiet()
        },
        |d| {
            use device::serve::vfio_user::Served;
            let likes = d.bus.judge().vectors() > 1;
            if_it_likes(d, likes);
        },
    ),
    mutant(
        "maps_vectors_beyond_the_table",
        &[clause!(msix "R4")],
        watch,
        |d| {
            d.begin();
            d.agree(WANTED);
            d.set(16, 2, 7);
            d.get(16, 2);
            d.vectors();
            d.queues();
            d.ready();
        },
    ),
    mutant("trusts_vectors", &[clause!(msix "R5")], watch, |d| {
        d.begin();
        d.agree(WANTED);
        d.vectors();
        d.queues();
        d.set(16, 2, 0);
        d.ready();
    }),
    mutant("reads_isr_status", &[clause!(isr "R1")], watch, |d| {
        d.up(WANTED);
        d.bar(d.at.isr, 1);
    }),
    mutant(
        "fails_on_interrupts_without_reason",
        &[clause!(used_suppression "R5")],
        || Plan {
            spurious_after: Some(1),
            ..watch()
        },
        |d| {
            d.up(WANTED);
            d.disk(0, 0, &[], 512);
            d.set_status(status::RUNNING | status::FAILED);
        },
    ),
    mutant(
        "fails_on_interrupts_for_both",
        &[clause!(config_interrupt "R1")],
        || Plan {
            vectors: Some(1),
            change_config_after: Some(1),
            ..watch()
        },
        |d| {
            d.up(WANTED);
            d.disk(0, 0, &[], 512);
            d.set_status(status::RUNNING | status::FAILED);
        },
    ),
    mutant(
        "writes_wide_fields_at_once",
        &[clause!(layout "R1")],
        watch,
        |d| {
            d.begin();
            d.agree(WANTED);
            d.vectors();
            let ring = d.prepare(0);
            d.set(32, 8, ring.addresses()[0]);
            d.set(28, 2, 1);
            d.rings.push(ring);
            d.ready();
        },
    ),
    mutant("writes_num_queues", &[clause!(common "R1")], watch, |d| {
        d.begin();
        d.agree(WANTED);
        d.set(18, 2, 1);
        d.vectors();
        d.queues();
        d.ready();
    }),
    mutant(
        "writes_packed_size_0",
        &[clause!(common "R2")],
        || named("packed"),
        |d| {
            d.begin();
            d.agree(WANTED);
            d.select(0);
            d.set(24, 2, 0);
            d.vectors();
            d.queues();
            d.ready();
        },
    ),
    mutant(
        "writes_split_size_48",
        &[clause!(common "R3")],
        watch,
        |d| {
            d.begin();
            d.agree(WANTED);
            d.select(0);
            d.set(24, 2, 48);
            d.set(24, 2, 64);
            d.vectors();
            d.queues();
            d.ready();
        },
    ),
    mutant(
        "configures_after_enabling",
        &[clause!(common "R4")],
        watch,
        |d| {
            d.begin();
            d.agree(WANTED);
            d.vectors();
            d.queues();
            let addresses = d.rings[0].addresses();
            d.addresses(addresses);
            d.ready();
        },
    ),
    mutant(
        "does_not_wait_for_the_reset",
        &[clause!(common "R5"), "RS-3"],
        watch,
        |d| {
            d.up(WANTED);
            d.set_status(0);
            d.set_status(status::ACKNOWLEDGE);
        },
    ),
    mutant("disables_a_queue", &[clause!(common "R6")], watch, |d| {
        d.up(WANTED);
        d.select(0);
        d.set(28, 2, 0);
    }),
    mutant(
        "does_not_wait_for_the_queue_reset",
        &[clause!(common "R7"), clause!(queue_reset "R1")],
        watch,
        |d| {
            d.up(WANTED);
            d.select(0);
            d.set(58, 2, 1);
            d.rings[0] = d.prepare(0);
            d.set(28, 2, 1);
        },
    ),
    mutant(
        "enables_again_without_addresses",
        &[clause!(queue_enable "R1")],
        watch,
        |d| {
            d.up(WANTED);
            d.select(0);
            d.set(58, 2, 1);
            d.until(|d| d.get(58, 2) == 0);
            d.set(28, 2, 1);
        },
    ),
    mutant(
        "looks_for_admin_queues_elsewhere",
        &[clause!(common "R10")],
        || named("admin"),
        |d| {
            d.begin();
            d.agree(WANTED);
            d.vectors();
            d.queues();
            d.select(5);
            d.set(28, 2, 1);
            d.ready();
        },
    ),
];
