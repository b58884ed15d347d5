//! Drivers that break the rules of split rings.

use crate::raw::Raw;
use crate::ring::{DEVICE, DRIVER, Ring};
use crate::{Mutant, WANTED, mutant, named, watch};
use spec_tests::clause;
use spec_tests::constants::feature;

const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

/// A read whose descriptors are written by `write`, which returns the head.
fn built(d: &mut Raw, write: impl Fn(&mut Ring, &[(u64, u32, bool)]) -> u16) {
    d.up(WANTED);
    let pieces = d.request(0, 0, &[], 512);
    let ring = &mut d.rings[0];
    let head = write(ring, &pieces);
    ring.publish(head);
    d.notify(0);
}

/// A read, and something between notification and use.
fn meanwhile(d: &mut Raw, act: impl Fn(&mut Raw)) {
    d.up(WANTED);
    let pieces = d.request(0, 0, &[], 512);
    d.expose(0, &pieces);
    d.notify(0);
    act(d);
    d.bus.judge().settle(true);
}

/// Exposes without a notification, and waits.
fn silent(d: &mut Raw) {
    d.up(WANTED);
    let pieces = d.request(0, 0, &[], 512);
    d.expose(0, &pieces);
    d.bus.judge().settle(true);
}

/// A queue at these offsets in the ring's window.
fn placed(d: &mut Raw, offsets: [u64; 3]) {
    d.begin();
    d.agree(WANTED);
    d.vectors();
    let ring = d.prepare(0);
    let addresses = ring.addresses();
    d.addresses([0, 1, 2].map(|at| addresses[at] + offsets[at]));
    d.set(28, 2, 1);
    d.rings.push(ring);
    d.ready();
}

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "misaligns_a_split_ring",
        &[clause!(split "R1")],
        watch,
        |d| placed(d, [0, 0, 2]),
    ),
    mutant("writable_first", &[clause!(framing "R1")], watch, |d| {
        built(d, |ring, pieces| {
            ring.chain(&[pieces[0], pieces[2], pieces[1], (pieces[0].0, 16, false)])
        });
    }),
    mutant(
        "chains_in_circles",
        &[clause!(table "R1")],
        || named("plain-rings"),
        |d| {
            built(d, |ring, pieces| {
                ring.desc(0, pieces[0], NEXT, 1);
                ring.desc(16, pieces[1], NEXT, 0);
                0
            });
        },
    ),
    mutant(
        "chains_in_any_order",
        &[clause!(table "R2")],
        || named("in-order"),
        |d| {
            built(d, |ring, pieces| {
                ring.desc(0, pieces[0], NEXT, 2);
                ring.desc(32, pieces[1], NEXT, 1);
                ring.desc(16, pieces[2], 0, 0);
                0
            });
        },
    ),
    mutant(
        "indirect_without_the_feature",
        &[clause!(indirect "R1")],
        || named("plain-rings"),
        |d| {
            built(d, |ring, pieces| {
                ring.tables = true;
                ring.chain(pieces)
            });
        },
    ),
    mutant("nests_tables", &[clause!(indirect "R2")], watch, |d| {
        built(d, |ring, pieces| {
            let table = ring.table(0, pieces);
            ring.desc(crate::ring::TABLES + 32, (table, 48, true), INDIRECT, 0);
            ring.desc(0, (table, 48, false), INDIRECT, 0);
            0
        });
    }),
    mutant("makes_long_tables", &[clause!(indirect "R3")], watch, |d| {
        built(d, |ring, pieces| {
            let mut many = vec![pieces[0]];
            many.extend([(pieces[1].0, 8, true); 65]);
            ring.chain(&many)
        });
    }),
    mutant(
        "chains_on_after_a_table",
        &[clause!(indirect "R4")],
        watch,
        |d| {
            built(d, |ring, pieces| {
                let table = ring.table(0, pieces);
                ring.desc(0, (table, 48, false), INDIRECT | NEXT, 1);
                ring.desc(16, pieces[2], 0, 0);
                0
            });
        },
    ),
    mutant(
        "tables_in_any_order",
        &[clause!(indirect "R5")],
        || named("in-order"),
        |d| {
            built(d, |ring, pieces| {
                let table = ring.table(0, pieces);
                let at = crate::ring::TABLES;
                ring.desc(at, pieces[0], NEXT, 2);
                ring.desc(at + 32, pieces[1], NEXT, 1);
                ring.desc(at + 16, pieces[2], 0, 0);
                ring.desc(0, (table, 48, false), INDIRECT, 0);
                0
            });
        },
    ),
    mutant(
        "takes_the_available_index_back",
        &[clause!(available_ring "R1")],
        watch,
        |d| {
            d.up(WANTED);
            d.disk(0, 0, &[], 512);
            d.rings[0].store(DRIVER + 2, 0);
            d.notify(0);
        },
    ),
    mutant(
        "sets_reserved_flags",
        &[clause!(used_suppression "R1")],
        || named("plain-rings"),
        |d| {
            d.up(WANTED);
            d.rings[0].store(DRIVER, 2);
            d.disk(0, 0, &[], 512);
        },
    ),
    mutant(
        "sets_flags_with_event_idx",
        &[clause!(used_suppression "R3")],
        watch,
        |d| {
            d.up(WANTED);
            d.rings[0].store(DRIVER, 1);
            d.disk(0, 0, &[], 512);
        },
    ),
    mutant(
        "begins_with_used_flags",
        &[clause!(avail_suppression "R1")],
        watch,
        |d| {
            d.begin();
            d.agree(WANTED);
            d.vectors();
            let ring = d.prepare(0);
            ring.store(DEVICE, 1);
            d.set(28, 2, 1);
            d.rings.push(ring);
            d.ready();
        },
    ),
    mutant(
        "heeds_avail_event",
        &[clause!(avail_suppression "R2")],
        || named("plain-rings"),
        |d| {
            d.up(WANTED);
            let pieces = d.request(0, 0, &[], 512);
            d.expose(0, &pieces);
            let ring = &d.rings[0];
            if ring.load(DEVICE + 4 + 8 * u64::from(ring.size)) == 0 {
                d.notify(0);
            }
            d.bus.judge().settle(true);
        },
    ),
    mutant(
        "does_not_notify",
        &[clause!(avail_suppression "R4")],
        || spec_tests::judge::Plan {
            lie_in_used_ring: false,
            ..named("plain-rings")
        },
        silent,
    ),
    mutant(
        "heeds_used_flags",
        &[clause!(avail_suppression "R5")],
        watch,
        |d| {
            d.up(WANTED);
            let pieces = d.request(0, 0, &[], 512);
            d.expose(0, &pieces);
            if d.rings[0].load(DEVICE) == 0 {
                d.notify(0);
            }
            d.bus.judge().settle(true);
        },
    ),
    mutant(
        "does_not_notify_at_avail_event",
        &[clause!(avail_suppression "R6")],
        || spec_tests::judge::Plan {
            lie_in_used_ring: false,
            ..watch()
        },
        silent,
    ),
    mutant(
        "changes_exposed_descriptors",
        &[clause!(cleanup "R1")],
        watch,
        |d| {
            meanwhile(d, |d| d.rings[0].desc(0, (0x10_0000, 16, false), 0, 0));
        },
    ),
    mutant(
        "gives_readable_entropy_buffers",
        &[clause!(rng "R1")],
        || named("entropy"),
        |d| {
            d.up(WANTED & !feature::EVENT_IDX);
            let at = d.bytes(&[0; 64]);
            d.send(0, &[(at, 16, false), (at + 16, 16, true)]);
        },
    ),
];
