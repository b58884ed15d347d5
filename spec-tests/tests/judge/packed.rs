//! Drivers that break the rules of packed rings.

use crate::raw::Raw;
use crate::ring::{Ring, TABLES};
use crate::{Mutant, WANTED, mutant, named};
use spec_tests::clause;
use spec_tests::constants::status;
use spec_tests::judge::Plan;

const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

type Pieces = [(u64, u32, bool)];

fn packed() -> Plan {
    named("packed")
}

fn plain() -> Plan {
    named("packed-plain")
}

/// A read whose descriptors are written by `write`.
fn built(d: &mut Raw, write: impl Fn(&mut Ring, &Pieces)) {
    d.up(WANTED);
    let pieces = d.request(0, 0, &[], 512);
    write(&mut d.rings[0], &pieces);
    d.notify(0);
}

fn meanwhile(d: &mut Raw, act: impl Fn(&mut Raw)) {
    d.up(WANTED);
    let pieces = d.request(0, 0, &[], 512);
    d.expose(0, &pieces);
    d.notify(0);
    act(d);
    d.bus.judge().settle(true);
}

/// A list of `count` descriptors, the first of them last.
fn long(ring: &mut Ring, pieces: &Pieces, count: usize) {
    let mut many = vec![pieces[0]];
    many.extend(vec![(pieces[1].0, 8, true); count - 1]);
    ring.tables = false;
    ring.list(&many);
}

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "misaligns_a_packed_ring",
        &[clause!(packed "R1")],
        packed,
        |d| {
            d.begin();
            d.agree(WANTED);
            d.vectors();
            let ring = d.prepare(0);
            let [desc, driver, device] = ring.addresses();
            d.addresses([desc, driver + 2, device]);
            d.set(28, 2, 1);
            d.rings.push(ring);
            d.ready();
        },
    ),
    mutant(
        "changes_unused_descriptors",
        &[clause!(packed_table "R1")],
        packed,
        |d| {
            meanwhile(d, |d| d.rings[0].store(8, 17));
        },
    ),
    mutant(
        "changes_available_descriptors",
        &[clause!(packed_table "R2")],
        plain,
        |d| {
            meanwhile(d, |d| d.rings[0].store(16 + 12, 5));
        },
    ),
    mutant(
        "notifies_with_another_place",
        &[clause!(packed_table "R3")],
        packed,
        |d| {
            d.up(WANTED);
            let pieces = d.request(0, 0, &[], 512);
            d.expose(0, &pieces);
            let (place, len, value) = d.doorbell(0);
            d.set_bar(place, len, value ^ 1 << 31);
        },
    ),
    mutant(
        "makes_longer_lists_than_allowed",
        &[clause!(packed_lists "R1")],
        plain,
        |d| {
            built(d, |ring, pieces| long(ring, pieces, 20));
        },
    ),
    mutant(
        "makes_endless_lists",
        &[clause!(packed_lists "R2")],
        plain,
        |d| {
            built(d, |ring, pieces| {
                for at in (0..ring.size).rev() {
                    let flags = ring.available_flags(true) | NEXT;
                    ring.packed_desc(at, pieces[0], 0, flags);
                }
            });
        },
    ),
    mutant(
        "packed_writable_first",
        &[clause!(packed_lists "R3")],
        plain,
        |d| {
            built(d, |ring, pieces| {
                ring.list(&[pieces[2], pieces[0], pieces[1]])
            });
        },
    ),
    mutant(
        "waits_for_the_last_descriptor",
        &[clause!(packed_lists "R4")],
        plain,
        |d| {
            d.up(WANTED);
            let pieces = d.request(0, 0, &[], 512);
            d.expose(0, &pieces);
            d.notify(0);
            d.bus.judge().settle(true);
            let used = |flags: u16| flags & 1 << 15 != 0;
            if !used(d.rings[0].load(2 * 16 + 14)) {
                d.set_status(status::RUNNING | status::FAILED);
            }
        },
    ),
    mutant(
        "makes_lists_without_room",
        &[clause!(packed_lists "R5")],
        plain,
        |d| {
            d.up(WANTED);
            let pieces = d.request(0, 0, &[], 512);
            for _ in 0..4 {
                long(&mut d.rings[0], &pieces, 16);
                d.notify(0);
            }
            long(&mut d.rings[0], &pieces, 2);
            d.notify(0);
        },
    ),
    mutant(
        "makes_the_first_available_first",
        &[clause!(packed_lists "R6")],
        plain,
        |d| {
            built(d, |ring, pieces| {
                let flags = ring.available_flags(true) | NEXT;
                ring.packed_desc(0, pieces[0], 0, flags);
            });
        },
    ),
    mutant(
        "packed_indirect_without_the_feature",
        &[clause!(packed_indirect "R1")],
        plain,
        |d| {
            built(d, |ring, pieces| {
                ring.tables = true;
                ring.list(pieces);
            });
        },
    ),
    mutant(
        "sets_flags_in_packed_tables",
        &[clause!(packed_indirect "R2")],
        packed,
        |d| {
            built(d, |ring, pieces| {
                let table = ring.table(0, pieces);
                ring.store(TABLES + 14, NEXT);
                let flags = ring.available_flags(true) | INDIRECT;
                ring.packed_desc(0, (table, 48, false), 0, flags);
                ring.step();
            });
        },
    ),
    mutant(
        "makes_longer_tables_than_allowed",
        &[clause!(packed_indirect "R3")],
        packed,
        |d| {
            built(d, |ring, pieces| {
                let mut many = vec![pieces[0]];
                many.extend([(pieces[1].0, 8, true); 20]);
                ring.list(&many);
            });
        },
    ),
    mutant(
        "links_tables",
        &[clause!(packed_indirect "R4")],
        packed,
        |d| {
            built(d, |ring, pieces| {
                let table = ring.table(0, pieces);
                let available = ring.available_flags(true);
                ring.packed_desc(1, pieces[2], 0, available);
                ring.packed_desc(0, (table, 48, false), 0, available | INDIRECT | NEXT);
                ring.step();
                ring.step();
            });
        },
    ),
];
