//! Mutants of page-write recording.

use super::commands::{Command, RESULT, after, before, watch};
use super::frame::{Access, Defect, Function, Mutant, SOUND};
use device::tracker::Marking;
use driver::bus::BusError;
use spec_tests::constants::PAGE;
use spec_tests::constants::admin::{opcode, qualifier, status};
use spec_tests::constants::parts::STOPPED;
use spec_tests::constants::records::{COUNT, READ, START, STOP};

/// Where the output of an answer stands.
const OUTPUT: u64 = 4;
/// A page that no case records.
const ELSEWHERE: u64 = 0x7ff_ffff_f000;

fn number(command: &Command<'_>, at: usize) -> u64 {
    u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|byte| command.data(at + byte)))
}

fn starts(command: &Command<'_>) -> bool {
    command.opcode() == START
}

/// Ranges of a START.
fn ranges(command: &Command<'_>) -> u64 {
    number(command, 8) & 0xffff_ffff
}

/// A READ that succeeded: its records.
fn read(command: &Command<'_>) -> Option<Vec<u64>> {
    if command.opcode() != READ || !command.succeeded() || command.room() < RESULT {
        return None;
    }
    let byte = |at: u64| command.answered(at);
    let count = u32::from_le_bytes([0, 1, 2, 3].map(|at| byte(OUTPUT + at))) & COUNT;
    let record =
        |n: u64| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| byte(RESULT + 8 * n + at)));
    Some((0..u64::from(count)).map(record).collect())
}

/// Makes these the records of an answer; its flags stay.
fn answer(command: &Command<'_>, records: &[u64]) {
    let count = u32::try_from(records.len()).unwrap();
    let [a, b, c, d] = count.to_le_bytes();
    let flags = command.answered(OUTPUT + 3) & 0xc0;
    command.answers(OUTPUT, &[a, b, c, d | flags]);
    for (at, record) in (RESULT..).step_by(8).zip(records) {
        command.answers(at, &record.to_le_bytes());
    }
    command.says_written(u32::try_from(RESULT).unwrap() + 8 * count);
}

fn noted(at: &Function, name: &'static str) -> u64 {
    at.recall(name).unwrap_or(0)
}

/// Whether recording goes on, as far as commands say.
fn follow(at: &Function, command: &Command<'_>) {
    if command.succeeded() {
        match command.opcode() {
            START => at.remember("recording", 1),
            STOP => at.remember("recording", 0),
            opcode::MODE_SET => at.remember("stopped", u64::from(command.data(0) & STOPPED)),
            _ => {}
        }
    }
}

/// Changes the answers to READ.
const fn reads(wrote: fn(&Function, Access, u64) -> Result<(), BusError>) -> Defect {
    Defect {
        write: watch,
        wrote,
        ..SOUND
    }
}

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "records_nothing",
        clauses: &["WR-1", "WR-8", "WR-10"],
        defect: Defect {
            seams: |seams| seams.member = |config| config.marking = Marking::Off,
            ..SOUND
        },
    },
    Mutant {
        name: "loses_one_of_many_records",
        clauses: &["WR-1", "WR-10"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                if let Some(records) = read(command)
                    && records.len() > 16
                {
                    answer(command, &records[1..]);
                }
            })
        }),
    },
    Mutant {
        name: "records_a_page_twice",
        clauses: &["WR-1"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                if let Some(mut records) = read(command)
                    && records.len() == 4
                    && number(command, 8) == 4 * PAGE
                {
                    records.push(records[0]);
                    answer(command, &records);
                }
            })
        }),
    },
    Mutant {
        name: "records_pages_of_4_kib_only",
        clauses: &["WR-1"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                if starts(command) {
                    at.remember("large", u64::from(number(command, 0) > PAGE));
                }
                if let Some(mut records) = read(command)
                    && noted(at, "large") == 1
                {
                    records.iter_mut().for_each(|record| *record |= PAGE);
                    answer(command, &records);
                }
            })
        }),
    },
    Mutant {
        name: "records_a_page_outside_its_ranges",
        clauses: &["WR-2"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                if starts(command) {
                    at.remember("several", u64::from(ranges(command) > 1));
                }
                if let Some(mut records) = read(command)
                    && noted(at, "several") == 1
                    && !records.is_empty()
                {
                    records.push(ELSEWHERE);
                    answer(command, &records);
                }
            })
        }),
    },
    Mutant {
        name: "keeps_a_record_that_was_read",
        clauses: &["WR-3"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                let Some(mut records) = read(command) else {
                    return;
                };
                if let Some(last) = records.last() {
                    at.remember("last", *last);
                } else if number(command, 8) == 4 * PAGE {
                    records.push(noted(at, "last"));
                    answer(command, &records);
                }
            })
        }),
    },
    Mutant {
        name: "loses_records_when_a_read_fails",
        clauses: &["WR-3"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                if command.opcode() == READ && !command.succeeded() {
                    at.remember("failed", noted(at, "recording"));
                }
                follow(at, command);
                if read(command).is_some() && noted(at, "failed") == 1 {
                    at.remember("failed", 0);
                    answer(command, &[]);
                }
            })
        }),
    },
    Mutant {
        name: "takes_ranges_that_overlap",
        clauses: &["WR-4"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                if starts(command) && ranges(command) == 2 && command.codes().0 == status::EINVAL {
                    command.ends_in(status::OK, qualifier::OK);
                }
            })
        }),
    },
    Mutant {
        name: "calls_a_second_start_invalid",
        clauses: &["WR-5"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                if starts(command) && command.codes().0 == status::EBUSY {
                    command.ends_in(status::EINVAL, qualifier::INVALID_COMMAND);
                }
            })
        }),
    },
    // What is too much is cut, and refused all the same.
    Mutant {
        name: "records_a_part_of_what_is_too_much",
        clauses: &["WR-6"],
        defect: Defect {
            write: |at, access, _| {
                before(at, access, |command| {
                    if starts(command) && ranges(command) == 1 && number(command, 24) >> 62 != 0 {
                        at.remember("cut", 1);
                        command.rewrite(24 + 24, &PAGE.to_le_bytes());
                    }
                })
            },
            wrote: |at, access, _| {
                after(at, access, |command| {
                    if starts(command) && noted(at, "cut") == 1 {
                        at.remember("cut", 0);
                        command.ends_in(status::ENOMEM, qualifier::NO_RESOURCE);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "forgets_records_when_recording_stops",
        clauses: &["WR-7"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                follow(at, command);
                if read(command).is_some() && noted(at, "recording") == 0 {
                    answer(command, &[]);
                }
            })
        }),
    },
    Mutant {
        name: "forgets_records_when_the_member_is_reset",
        clauses: &["WR-8"],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    follow(at, command);
                    if read(command).is_some() && noted(at, "member was reset") == 1 {
                        answer(command, &[]);
                    }
                })
            },
            member: Some(&Defect {
                resetting: |at| {
                    at.remember("member was reset", noted(at, "recording"));
                    Ok(())
                },
                ..SOUND
            }),
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_a_record_over_the_owners_reset",
        clauses: &["WR-8"],
        defect: Defect {
            write: watch,
            wrote: |at, access, _| {
                after(at, access, |command| {
                    follow(at, command);
                    let reads = command.opcode() == READ && command.room() > RESULT + 8;
                    if reads && noted(at, "kept") == 1 {
                        command.answers(0, &[0; 8]);
                        answer(command, &[PAGE]);
                    }
                })
            },
            resetting: |at| {
                at.remember("kept", noted(at, "recording"));
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "hides_an_overflow",
        clauses: &["WR-9"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                if read(command).is_some() {
                    let byte = command.answered(OUTPUT + 3) & 0x7f;
                    command.answers(OUTPUT + 3, &[byte]);
                }
            })
        }),
    },
    Mutant {
        name: "forgets_an_overflow_that_nobody_heard_of",
        clauses: &["WR-9"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                if command.opcode() == READ && command.room() < RESULT {
                    at.remember("deaf", 1);
                }
                if read(command).is_some() && noted(at, "deaf") == 1 {
                    let byte = command.answered(OUTPUT + 3) & 0x7f;
                    command.answers(OUTPUT + 3, &[byte]);
                }
            })
        }),
    },
    Mutant {
        name: "has_a_late_record_of_a_stopped_member",
        clauses: &["WR-10"],
        defect: reads(|at, access, _| {
            after(at, access, |command| {
                follow(at, command);
                let Some(records) = read(command) else {
                    return;
                };
                if noted(at, "stopped") == 1 && records.len() > 1 {
                    at.remember("late", records[0]);
                    answer(command, &records[1..]);
                } else if records.is_empty() && noted(at, "late") != 0 {
                    answer(command, &[noted(at, "late")]);
                    at.remember("late", 0);
                }
            })
        }),
    },
];
