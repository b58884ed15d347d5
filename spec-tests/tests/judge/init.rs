//! Drivers that break the rules of initialisation, of features and of notifications.

use crate::raw::Raw;
use crate::{Mutant, WANTED, mutant, named, quiet, watch};
use spec_tests::clause;
use spec_tests::constants::{feature, status};
use spec_tests::judge::{Plan, RESERVED};

/// Initialisation with other features.
fn accepting(d: &mut Raw, more: u64, less: u64) {
    d.begin();
    let offered = d.offered();
    d.accept(offered & WANTED & !less | more);
    d.set_status(status::AGREED);
    d.status();
    d.vectors();
    d.queues();
    d.ready();
}

/// Initialisation up to DRIVER_OK.
fn almost(d: &mut Raw) {
    d.begin();
    d.agree(WANTED);
    d.vectors();
    d.queues();
}

/// A notification of queue 0 by other means.
fn notifying(d: &mut Raw, how: impl Fn(u64, usize, u64) -> (usize, u64)) {
    d.up(WANTED);
    let pieces = d.request(0, 0, &[], 512);
    d.expose(0, &pieces);
    let (place, len, value) = d.doorbell(0);
    let (len, value) = how(place, len, value);
    d.set_bar(place, len, value);
}

pub const MUTANTS: &[Mutant] = &[
    mutant("sets_bits_out_of_order", &["ST-1"], watch, |d| {
        d.reset();
        d.set_status(status::ACKNOWLEDGE | status::FEATURES_OK);
        d.up(WANTED);
    }),
    mutant("clears_a_bit", &["ST-2"], watch, |d| {
        d.begin();
        d.set_status(status::DRIVER);
        d.up(WANTED);
    }),
    mutant("goes_on_after_failed", &["ST-3"], watch, |d| {
        d.begin();
        d.set_status(status::NEGOTIATING | status::FAILED);
        d.offered();
    }),
    mutant(
        "goes_on_after_an_error",
        &["ST-4"],
        || Plan {
            needs_reset_after: Some(1),
            ..watch()
        },
        |d| {
            d.up(WANTED);
            d.disk(0, 0, &[], 512);
            d.status();
            d.notify(0);
        },
    ),
    mutant(
        "does_not_begin_with_a_reset",
        &[clause!(init "R1")],
        watch,
        |d| {
            d.set_status(status::ACKNOWLEDGE);
            d.up(WANTED);
        },
    ),
    mutant("does_not_acknowledge", &[clause!(init "R2")], watch, |d| {
        d.reset();
        d.set_status(status::DRIVER);
        d.up(WANTED);
    }),
    mutant(
        "negotiates_before_driver",
        &[clause!(init "R3")],
        watch,
        |d| {
            d.reset();
            d.set_status(status::ACKNOWLEDGE);
            let offered = d.offered();
            d.accept(offered & WANTED);
            d.up(WANTED);
        },
    ),
    mutant(
        "knows_the_offer",
        &[clause!(init "R4"), clause!(features "R2")],
        watch,
        |d| {
            d.begin();
            d.accept(feature::VERSION_1);
            d.set_status(status::AGREED);
            d.status();
            d.vectors();
            d.queues();
            d.ready();
        },
    ),
    mutant("forgets_features_ok", &[clause!(init "R6")], watch, |d| {
        d.begin();
        let offered = d.offered();
        d.accept(offered & WANTED);
        d.vectors();
        d.queues();
        d.set_status(status::NEGOTIATING | status::DRIVER_OK);
    }),
    mutant("accepts_more_later", &[clause!(init "R7")], watch, |d| {
        d.begin();
        d.agree(WANTED & !feature::EVENT_IDX);
        d.accept(d.features | feature::EVENT_IDX);
        d.features &= !feature::EVENT_IDX;
        d.vectors();
        d.queues();
        d.ready();
    }),
    mutant("trusts_features_ok", &[clause!(init "R8")], watch, |d| {
        d.begin();
        let offered = d.offered();
        d.accept(offered & WANTED);
        d.set_status(status::AGREED);
        d.vectors();
        d.queues();
        d.ready();
    }),
    mutant(
        "sets_up_after_driver_ok",
        &[clause!(init "R9")],
        watch,
        |d| {
            d.begin();
            d.agree(WANTED);
            d.vectors();
            d.ready();
            d.queues();
        },
    ),
    mutant("forgets_driver_ok", &[clause!(init "R10")], watch, |d| {
        almost(d);
        let pieces = d.request(0, 0, &[], 512);
        d.expose(0, &pieces);
    }),
    mutant(
        "goes_on_after_refusal",
        &[clause!(init "R13")],
        || named("refuse"),
        |d| {
            d.begin();
            let offered = d.offered();
            d.accept(offered & WANTED);
            d.set_status(status::AGREED);
            d.status();
            d.vectors();
            d.queues();
            d.ready();
        },
    ),
    mutant(
        "goes_silent_after_refusal",
        &[clause!(init "R12")],
        || named("refuse"),
        |d| {
            d.begin();
            let offered = d.offered();
            d.accept(offered & WANTED);
            d.set_status(status::AGREED);
            d.status();
        },
    ),
    mutant(
        "notifies_before_driver_ok",
        &[clause!(init "R14")],
        watch,
        |d| {
            almost(d);
            d.notify(0);
            d.ready();
        },
    ),
    mutant(
        "accepts_what_is_not_offered",
        &[clause!(features "R1")],
        watch,
        |d| {
            accepting(d, feature::ORDER_PLATFORM, 0);
        },
    ),
    mutant(
        "accepts_reserved_bits",
        &[clause!(features "R3")],
        watch,
        |d| {
            accepting(d, 1 << 47, 0);
        },
    ),
    mutant(
        "fails_on_unknown_bits",
        &[clause!(features "R5")],
        || Plan {
            features: watch().features,
            ..quiet()
        },
        |d| {
            d.begin();
            if d.offered() & RESERVED == 0 {
                d.up(WANTED);
            } else {
                d.set_status(status::NEGOTIATING | status::FAILED);
            }
        },
    ),
    mutant(
        "wants_no_version_1",
        &[clause!(reserved "R1")],
        watch,
        |d| {
            accepting(d, 0, feature::VERSION_1);
        },
    ),
    mutant(
        "wants_no_packed_rings",
        &[clause!(reserved "R5")],
        || named("packed"),
        |d| {
            accepting(d, 0, feature::RING_PACKED);
        },
    ),
    mutant(
        "wants_no_order",
        &[clause!(reserved "R6")],
        || named("plain-rings"),
        |d| {
            accepting(d, 0, feature::ORDER_PLATFORM);
        },
    ),
    mutant(
        "wants_no_config_data",
        &[clause!(reserved "R12")],
        || named("notify-data"),
        |d| {
            accepting(d, 0, feature::NOTIF_CONFIG_DATA);
        },
    ),
    mutant("accepts_sr_iov", &[clause!(reserved "R9")], watch, |d| {
        accepting(d, feature::SR_IOV, 0);
    }),
    mutant(
        "gives_addresses_of_its_own",
        &[clause!(reserved "R4")],
        watch,
        |d| {
            d.up(WANTED);
            let mut pieces = d.request(0, 0, &[], 512);
            pieces[1].0 = 0x7f00_0000_0000;
            d.expose(0, &pieces);
            d.notify(0);
        },
    ),
    mutant(
        "notifies_with_32_bits",
        &[clause!(notify "R1")],
        || named("plain-rings"),
        |d| {
            notifying(d, |_, _, value| (4, value));
        },
    ),
    mutant(
        "notifies_with_16_bits",
        &[clause!(notify "R2")],
        watch,
        |d| {
            notifying(d, |_, _, value| (2, value));
        },
    ),
    mutant(
        "notifies_with_1",
        &[clause!(notify "R3")],
        || named("plain-rings"),
        |d| {
            notifying(d, |_, len, _| (len, 1));
        },
    ),
    mutant(
        "notifies_with_1_and_place",
        &[clause!(notify "R4")],
        watch,
        |d| {
            notifying(d, |_, len, value| (len, value | 1));
        },
    ),
    mutant(
        "notifies_with_the_index_alone",
        &[clause!(notify "R5")],
        || named("notify-data"),
        |d| {
            notifying(d, |_, len, _| (len, 0));
        },
    ),
    mutant(
        "notifies_with_index_and_place",
        &[clause!(notify "R6")],
        || named("both-data"),
        |d| {
            notifying(d, |_, len, value| (len, value & 0xffff_0000));
        },
    ),
    mutant(
        "reads_capacity_in_two",
        &[clause!(config "R1")],
        watch,
        |d| {
            d.begin();
            d.agree(WANTED);
            d.bar(d.at.device, 4);
            d.bar(d.at.device + 4, 4);
            d.vectors();
            d.queues();
            d.ready();
        },
    ),
    mutant(
        "reads_what_is_not_offered",
        &[clause!(config "R2")],
        watch,
        |d| {
            d.begin();
            d.agree(WANTED);
            d.bar(d.at.device + 16, 2);
            d.vectors();
            d.queues();
            d.ready();
        },
    ),
    mutant(
        "reads_writeback_early",
        &[clause!(blk_init "R4")],
        watch,
        |d| {
            d.begin();
            d.offered();
            d.bar(d.at.device + 32, 1);
            d.up(WANTED);
        },
    ),
    mutant(
        "ignores_the_capacity",
        &[clause!(blk "R1")],
        || Plan {
            change_config_after: Some(1),
            ..watch()
        },
        |d| {
            d.up(WANTED);
            d.disk(0, 0, &[], 512);
            d.disk(0, 0, &[], 512);
        },
    ),
];
