//! Mutants of sources of entropy.

use super::frame::{Access, Defect, Function, Mind, Mutant};
use super::split::{Descriptor, LEARNING, after_use, chain, index, slot};
use driver::bus::BusError;
use spec_tests::clause;
use spec_tests::constants::ring;
use spec_tests::target::Medium;

/// Does something to a buffer of at least `least` and at most `most` bytes, in one descriptor, once
/// it was used.
fn buffer(
    at: &Function,
    access: Access,
    [least, most]: [u32; 2],
    what: fn(&Mind, &Descriptor),
) -> Result<(), BusError> {
    if !at.kicked(access) {
        return Ok(());
    }
    if let [one] = chain(&at.mind).as_slice()
        && (least..=most).contains(&one.len)
    {
        after_use(at, access, |mind| what(mind, one));
    }
    Ok(())
}

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "nothing_for_the_smallest_buffers",
        clauses: &[clause!(rng "D1")],
        defect: Defect {
            medium: Medium::Entropy,
            wrote: |at, access, _| {
                buffer(at, access, [1, 2], |mind, _| {
                    let last = slot(mind, index(mind, "used").wrapping_sub(1));
                    let element = mind.recall("used").unwrap_or(0) + 4 + ring::USED * last;
                    mind.scribble(element + 4, 0);
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "the_same_byte_again_and_again",
        clauses: &[clause!(rng "D1")],
        defect: Defect {
            medium: Medium::Entropy,
            wrote: |at, access, _| {
                buffer(at, access, [16, 64], |mind, one| {
                    for place in 0..u64::from(one.len) {
                        mind.scribble(one.address + place, 0x33);
                    }
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "the_same_bytes_for_everybody",
        clauses: &[clause!(rng "D1")],
        defect: Defect {
            medium: Medium::Entropy,
            wrote: |at, access, _| {
                buffer(at, access, [511, 4096], |mind, one| {
                    for place in 0..16_u8 {
                        mind.scribble(one.address + u64::from(place), 3 * place + 1);
                    }
                })
            },
            ..LEARNING
        },
    },
];
