//! Drivers that break the rules of administration queues.

use crate::raw::Raw;
use crate::sound::{object, part};
use crate::{Mutant, WANTED, mutant, named};
use spec_tests::clause;
use spec_tests::constants::feature;
use spec_tests::judge::Plan;

fn plan() -> Plan {
    named("admin")
}

fn up(d: &mut Raw) {
    d.begin();
    d.agree(WANTED | feature::SR_IOV);
    d.set_config(0x110, 2, 2);
    d.set_config(0x108, 2, 1);
    d.vectors();
    d.queues();
    d.ready();
}

fn listed(d: &mut Raw) {
    up(d);
    d.list(0);
    d.list(1);
}

/// The driver's limits of objects.
fn limits(d: &mut Raw, get: u8, set: u8) {
    let mut data = vec![0; 8];
    data.extend([get, set, 0, 0, 0, 0, 0, 0]);
    d.command(9, 0, 0, &data);
}

/// A command in buffers of these lengths.
fn sized(d: &mut Raw, out: u32, room: u32) {
    listed(d);
    let at = d.bytes(&[0; 128]);
    let mut pieces = Vec::new();
    if out > 0 {
        pieces.push((at, out, false));
    }
    if room > 0 {
        pieces.push((at + 64, room, true));
    }
    d.send(1, &pieces);
}

pub const MUTANTS: &[Mutant] = &[
    mutant("lists_nothing", &[clause!(admin "R2")], plan, |d| {
        up(d);
        d.command(7, 0, 0, &[]);
    }),
    mutant(
        "lists_what_was_not_reported",
        &[clause!(admin "R5")],
        plan,
        |d| {
            up(d);
            d.command(0, 0, 0, &[]);
            d.command(1, 0, 0, &0x0003_ffff_u64.to_le_bytes());
        },
    ),
    mutant(
        "uses_what_it_did_not_list",
        &[clause!(admin "R6")],
        plan,
        |d| {
            up(d);
            d.command(0, 0, 0, &[]);
            d.command(1, 0, 0, &3_u64.to_le_bytes());
            d.command(7, 0, 0, &[]);
        },
    ),
    mutant(
        "takes_reserved_status_for_success",
        &[clause!(admin "R8")],
        || named("reserved-status"),
        |d| {
            d.up(WANTED);
            d.list(0);
            d.command(7, 0, 0, &[]);
        },
    ),
    mutant(
        "names_members_that_are_not",
        &[clause!(admin "R10")],
        plan,
        |d| {
            listed(d);
            d.command(0x11, 1, 3, &[1]);
        },
    ),
    mutant(
        "gives_parts_of_commands",
        &[clause!(adminq "R2")],
        plan,
        |d| sized(d, 16, 16),
    ),
    mutant("gives_parts_of_words", &[clause!(adminq "R3")], plan, |d| {
        sized(d, 24, 20)
    }),
    mutant("gives_no_room", &[clause!(adminq "R4")], plan, |d| {
        sized(d, 24, 0)
    }),
    mutant(
        "takes_unused_for_reported",
        &[clause!(adminq "R6"), clause!(used_ring "R1")],
        plan,
        |d| {
            up(d);
            let command = d.bytes(&[0; 24]);
            let room = d.bytes(&[0; 64]);
            d.send(1, &[(command, 24, false), (room, 64, true)]);
            let list = d.look(room + 8, 32);
            d.command(1, 0, 0, &list);
        },
    ),
    mutant(
        "creates_without_the_capability",
        &[clause!(capabilities "R1"), clause!(objects "R6")],
        plan,
        |d| {
            listed(d);
            d.command(0xa, 0, 0, &object(1, 0));
        },
    ),
    mutant(
        "sets_more_than_the_device_has",
        &[clause!(capabilities "R2")],
        plan,
        |d| {
            listed(d);
            limits(d, 200, 1);
        },
    ),
    mutant(
        "disables_a_capability_in_use",
        &[clause!(capabilities "R3")],
        plan,
        |d| {
            listed(d);
            limits(d, 1, 1);
            d.command(0xa, 0, 0, &object(1, 0));
            limits(d, 0, 0);
        },
    ),
    mutant("creates_twins", &[clause!(objects "R1")], plan, |d| {
        listed(d);
        limits(d, 2, 2);
        d.command(0xa, 0, 0, &object(1, 0));
        d.command(0xa, 0, 0, &object(1, 1));
    }),
    mutant("creates_too_many", &[clause!(objects "R2")], plan, |d| {
        listed(d);
        limits(d, 1, 1);
        d.command(0xa, 0, 0, &object(1, 0));
        d.command(0xa, 0, 0, &object(2, 0));
    }),
    mutant(
        "queries_what_it_destroyed",
        &[clause!(objects "R3")],
        plan,
        |d| {
            listed(d);
            limits(d, 1, 1);
            d.command(0xa, 0, 0, &object(1, 0));
            d.command(0xd, 0, 0, &object(1, 0));
            d.command(0xc, 0, 0, &object(1, 0));
        },
    ),
    mutant(
        "sets_the_capability_of_objects",
        &[clause!(objects "R5")],
        plan,
        |d| {
            listed(d);
            limits(d, 1, 1);
            d.command(0xa, 0, 0, &object(1, 0));
            limits(d, 2, 2);
        },
    ),
    mutant(
        "sets_parts_of_a_running_member",
        &[clause!(parts "R1")],
        plan,
        |d| {
            listed(d);
            let mut data = vec![0; 8];
            data.extend(part(0x103));
            d.command(0x10, 1, 1, &data);
        },
    ),
    mutant(
        "sets_parts_in_any_order",
        &[clause!(parts "R2")],
        plan,
        |d| {
            listed(d);
            d.command(0x11, 1, 1, &[1]);
            let mut data = vec![0; 8];
            data.extend(part(0x103));
            data.extend(part(0x101));
            d.command(0x10, 1, 1, &data);
        },
    ),
    mutant("records_without_listing", &["WR-11"], plan, |d| {
        up(d);
        d.command(0, 0, 0, &[]);
        d.command(1, 0, 0, &0x83_u64.to_le_bytes());
        d.command(0x40, 0, 0, &[]);
    }),
];
