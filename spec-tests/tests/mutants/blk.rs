//! Mutants of disks.

use super::frame::{Defect, Mutant};
use super::requests::{answered, answers, config_byte, idles};
use super::split::LEARNING;
use spec_tests::clause;
use spec_tests::constants::{blk, feature};
use spec_tests::target::Medium;

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "writeback_for_a_driver_that_cannot_flush",
        clauses: &[clause!(blk_init "D2")],
        defect: Defect {
            read: |at, access, data| {
                let features = at.recall("features").unwrap_or(0);
                let both = feature::BLK_CONFIG_WCE | feature::BLK_FLUSH;
                let place = config_byte(at, access, data);
                let writeback = usize::try_from(blk::WRITEBACK).ok();
                if place == writeback && features & both == feature::BLK_CONFIG_WCE {
                    data[0] = 1;
                }
                Ok(())
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "something_in_the_padding_of_a_disk",
        clauses: &[clause!(blk_init "D3")],
        defect: Defect {
            read: |at, access, data| {
                if config_byte(at, access, data) == Some(blk::UNUSED1 + 2) {
                    data[0] = 1;
                }
                Ok(())
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "takes_writes_of_a_read_only_disk",
        clauses: &[clause!(blk "D3")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::OUT], |_, request| {
                    (request.status == blk::IOERR).then_some(blk::OK)
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "ignores_unknown_flags",
        clauses: &[clause!(blk "D4")],
        defect: Defect {
            wrote: |at, access, _| {
                let kinds = [blk::DISCARD, blk::WRITE_ZEROES];
                answers(at, access, &kinds, |mind, request| {
                    let (_, _, flags) = request.range(mind);
                    let unknown = flags & !blk::UNMAP != 0;
                    (unknown && request.status == blk::UNSUPP).then_some(blk::OK)
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "an_io_error_for_unknown_flags_of_an_erase",
        clauses: &[clause!(blk "D4")],
        defect: Defect {
            medium: Medium::Zoned,
            wrote: |at, access, _| {
                answers(at, access, &[blk::SECURE_ERASE], |mind, request| {
                    let (_, _, flags) = request.range(mind);
                    let one = flags == 1 << 17;
                    (one && request.status == blk::UNSUPP).then_some(blk::IOERR)
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "discards_with_unmap",
        clauses: &[clause!(blk "D5")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::DISCARD], |mind, request| {
                    let (_, _, flags) = request.range(mind);
                    (flags == blk::UNMAP && request.status == blk::UNSUPP).then_some(blk::OK)
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "leaves_what_is_to_be_zeroes",
        clauses: &[clause!(blk "D8")],
        defect: Defect {
            write: |at, access, value| {
                idles(at, access, value, |mind, request| {
                    let (_, _, flags) = request.range(mind);
                    request.kind == blk::WRITE_ZEROES && flags == blk::UNMAP
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "zeroes_the_first_range_only",
        clauses: &[clause!(blk "D8")],
        defect: Defect {
            wrote: |at, access, _| {
                answered(at, access, &[blk::IN], |mind, request| {
                    // Three parts of a read, of which the last came out as zeroes.
                    let Some((data, len)) = request.input else {
                        return;
                    };
                    let last = data + u64::from(len) - 1;
                    let third = mind.peek::<1>(last) == [0] && len % 3 == 0;
                    if third && mind.peek::<1>(data) == [0] {
                        mind.scribble(last, 0x77);
                    }
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "wear_beyond_all_bounds",
        clauses: &[clause!(blk "D15")],
        defect: Defect {
            medium: Medium::Zoned,
            wrote: |at, access, _| {
                answered(at, access, &[blk::GET_LIFETIME], |mind, request| {
                    if let Some((data, _)) = request.input {
                        mind.scribble(data + 4, 12);
                    }
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "reports_zones_that_nobody_agreed_to",
        clauses: &[clause!(blk "D16")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::ZONE_REPORT], |_, request| {
                    (request.status == blk::UNSUPP).then_some(blk::OK)
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "resets_zones_that_nobody_agreed_to",
        clauses: &[clause!(blk "D16")],
        defect: Defect {
            medium: Medium::Zoned,
            wrote: |at, access, _| {
                answers(at, access, &[blk::ZONE_RESET_ALL], |_, request| {
                    (request.status == blk::UNSUPP).then_some(blk::OK)
                })
            },
            ..LEARNING
        },
    },
];
