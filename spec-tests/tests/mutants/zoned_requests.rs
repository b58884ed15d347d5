//! Mutants of disks with zones: what they make of requests.

use super::frame::{Defect, Mind, Mutant};
use super::requests::{Request, answered, answers, idles};
use super::zoned::ZONED;
use spec_tests::clause;
use spec_tests::constants::blk;

/// Sectors of a zone of the suite's disk, and of these what can be written.
const ZONE: u64 = 128;
const WRITABLE: u64 = 96;
/// End of its conventional zones.
const SEQUENTIAL: u64 = 2 * ZONE;
/// Its zones that have failed.
const READ_ONLY: u64 = 12 * ZONE;
const OFFLINE: u64 = 13 * ZONE;
/// Most sectors of an append.
const APPEND_MAX: u64 = 48;
/// What its unwritten sectors hold.
const UNWRITTEN: u8 = 0xe5;

const COMMANDS: [u32; 4] = [
    blk::ZONE_OPEN,
    blk::ZONE_CLOSE,
    blk::ZONE_FINISH,
    blk::ZONE_RESET,
];
const WRITES: [u32; 2] = [blk::OUT, blk::ZONE_APPEND];

/// Whether a request was refused that names a zone which is to be written in sequence and works.
fn refused(request: &Request) -> bool {
    (SEQUENTIAL..READ_ONLY).contains(&request.sector) && invalid(request)
}

fn invalid(request: &Request) -> bool {
    request.status == blk::ZONE_INVALID_CMD
}

fn lacking(request: &Request) -> bool {
    matches!(
        request.status,
        blk::ZONE_OPEN_RESOURCE | blk::ZONE_ACTIVE_RESOURCE
    )
}

/// Remembers where the data of a write stands in memory and which zone was reset last.
fn follow(mind: &Mind, request: &Request) {
    if let (blk::OUT, Some((data, _))) = (request.kind, request.output) {
        mind.remember("data", data);
        mind.remember("written", request.sector);
    }
    if request.kind == blk::ZONE_RESET {
        mind.remember("reset", request.sector);
    }
}

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "an_io_error_for_conventional_zones",
        clauses: &[clause!(blk "D17")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &COMMANDS, |_, request| {
                    let conventional = request.sector < SEQUENTIAL;
                    (conventional && invalid(request)).then_some(blk::IOERR)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "appends_to_conventional_zones",
        clauses: &[clause!(blk "D18")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::ZONE_APPEND], |_, request| {
                    let conventional = request.sector < SEQUENTIAL;
                    (conventional && invalid(request)).then_some(blk::OK)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "opens_full_zones",
        clauses: &[clause!(blk "D19")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::ZONE_OPEN], |_, request| {
                    refused(request).then_some(blk::OK)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "an_invalid_command_for_an_open_too_many",
        clauses: &[clause!(blk "D20")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::ZONE_OPEN], |_, request| {
                    lacking(request).then_some(blk::ZONE_INVALID_CMD)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "closes_full_zones",
        clauses: &[clause!(blk "D21")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::ZONE_CLOSE], |_, request| {
                    refused(request).then_some(blk::OK)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "finishes_read_only_zones",
        clauses: &[clause!(blk "D22")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::ZONE_FINISH], |_, request| {
                    (request.sector == READ_ONLY && invalid(request)).then_some(blk::OK)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "resets_read_only_zones",
        clauses: &[clause!(blk "D23")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::ZONE_RESET], |_, request| {
                    (request.sector == READ_ONLY && invalid(request)).then_some(blk::OK)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "an_io_error_for_a_write_too_many",
        clauses: &[clause!(blk "D24")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &WRITES, |_, request| {
                    let status = request.status == blk::ZONE_OPEN_RESOURCE;
                    status.then_some(blk::IOERR)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "appends_from_within_a_zone",
        clauses: &[clause!(blk "D25")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::ZONE_APPEND], |_, request| {
                    let within = request.sector % ZONE != 0;
                    (within && invalid(request)).then_some(blk::OK)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "an_io_error_beyond_the_capacity_of_a_zone",
        clauses: &[clause!(blk "D26")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::OUT], |_, request| {
                    let end = request.sector % ZONE + request.sectors();
                    let beyond = end > WRITABLE && end <= ZONE;
                    (beyond && refused(request)).then_some(blk::IOERR)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "says_that_an_append_went_elsewhere",
        clauses: &[clause!(blk "D27")],
        defect: Defect {
            wrote: |at, access, _| {
                answered(at, access, &[blk::ZONE_APPEND], |mind, request| {
                    if let Some((place, _)) = request.input {
                        let [low] = mind.peek(place);
                        // Where the zone begins is right, for the first append.
                        if request.status == blk::OK && u64::from(low) % ZONE != 0 {
                            mind.scribble(place, low - 8);
                        }
                    }
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "an_invalid_command_where_there_are_no_appends",
        clauses: &[clause!(blk "D28")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::ZONE_APPEND], |_, request| {
                    let sequential = request.sector >= SEQUENTIAL;
                    (sequential && request.status == blk::UNSUPP).then_some(blk::ZONE_INVALID_CMD)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "unsupported_where_an_append_is_too_large",
        clauses: &[clause!(blk "D29")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::ZONE_APPEND], |_, request| {
                    let large = request.sectors() > APPEND_MAX;
                    (large && invalid(request)).then_some(blk::UNSUPP)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "reads_across_zones",
        clauses: &[clause!(blk "D30")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::IN], |_, request| {
                    refused(request).then_some(blk::OK)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "an_invalid_command_away_from_the_pointer",
        clauses: &[clause!(blk "D31")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::OUT], |_, request| {
                    let whole = request.sectors() % 8 == 0;
                    let unaligned = request.status == blk::ZONE_UNALIGNED_WP;
                    (whole && unaligned).then_some(blk::ZONE_INVALID_CMD)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "an_io_error_for_writes_to_read_only_zones",
        clauses: &[clause!(blk "D33")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &WRITES, |_, request| {
                    (request.sector == READ_ONLY && invalid(request)).then_some(blk::IOERR)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "reads_offline_zones",
        clauses: &[clause!(blk "D34")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::IN], |_, request| {
                    (request.sector == OFFLINE && invalid(request)).then_some(blk::OK)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "what_was_before_a_reset",
        clauses: &[clause!(blk "D35")],
        defect: Defect {
            wrote: |at, access, _| {
                let kinds = [blk::OUT, blk::ZONE_RESET, blk::IN];
                answered(at, access, &kinds, |mind, request| {
                    follow(mind, request);
                    let here = Some(request.sector);
                    let stale = mind.recall("reset") == here && mind.recall("written") == here;
                    if let (true, blk::IN, Some((input, _))) = (stale, request.kind, request.input)
                    {
                        let old = mind.peek::<512>(mind.recall("data").unwrap_or(0));
                        for (place, byte) in (input..).zip(old) {
                            mind.scribble(place, byte);
                        }
                    }
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "anything_where_nothing_was_written",
        clauses: &[clause!(blk "D36")],
        defect: Defect {
            wrote: |at, access, _| {
                answered(at, access, &[blk::IN], |mind, request| {
                    let Some((input, _)) = request.input else {
                        return;
                    };
                    if mind.peek(input) == [UNWRITTEN; 16] {
                        let count = mind.recall("count").unwrap_or(0) + 1;
                        mind.remember("count", count);
                        mind.scribble(input, count.to_le_bytes()[0]);
                    }
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "erases_part_of_a_zone",
        clauses: &[clause!(blk "D38")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::SECURE_ERASE], |mind, request| {
                    let (_, sectors, _) = request.range(mind);
                    let part = u64::from(sectors) % ZONE != 0;
                    (part && invalid(request)).then_some(blk::OK)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "erases_without_a_reset",
        clauses: &[clause!(blk "D39")],
        defect: Defect {
            write: |at, access, value| {
                idles(at, access, value, |mind, request| {
                    let (sector, sectors, flags) = request.range(mind);
                    let whole = u64::from(sectors) % ZONE == 0 && sector >= SEQUENTIAL;
                    request.kind == blk::SECURE_ERASE && whole && flags == 0
                })
            },
            ..ZONED
        },
    },
];
