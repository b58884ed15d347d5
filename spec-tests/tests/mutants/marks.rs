//! Mutants of the dirty pages tracker's marks: split rings, one page for each bit.

use super::frame::{Access, Defect, Function, Mutant, SOUND};
use super::packed::{is_packed, study};
use super::packed_state::mark;
use super::split::{after_use, chain};
use driver::bus::BusError;
use spec_tests::constants::{PAGE, reg, ring, status};

/// How often use is waited for: most of these defects have but one request to strike at, which a
/// busy machine may be slow to carry out.
const PATIENCE: u32 = 5;

/// What the last request has the device write besides its status: where it begins, and its bytes.
fn data(at: &Function) -> Option<(u64, u64)> {
    let chain = chain(&at.mind);
    let mut writable = chain.iter().filter(|one| one.flags & ring::WRITE != 0);
    let data = writable.find(|one| one.len > 1);
    data.map(|one| (one.address, u64::from(one.len)))
}

/// Changes marks once a request has been used: until then its doorbell does not return.
fn after_marks(
    at: &Function,
    access: Access,
    what: fn(&Function, (u64, u64)) -> Result<(), BusError>,
) -> Result<(), BusError> {
    let tracked = at.kicked(access) && at.get(reg::TRACKER_ENABLE)? == 1;
    if !tracked || is_packed(&at.mind) || at.get(reg::TRACKER_GRA_POWER)? != 0 {
        return Ok(());
    }
    let mut done = None;
    for _ in 0..PATIENCE {
        after_use(at, access, |_| {
            done = Some(data(at).map_or(Ok(()), |data| what(at, data)));
        });
        if done.is_some() {
            break;
        }
    }
    done.unwrap_or(Ok(()))
}

/// What learns on every write and lets all through.
const STUDYING: Defect = Defect {
    write: |at, access, value| study(at, access, value).map(|()| true),
    ..SOUND
};

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "leaves_the_last_page_of_a_request_unmarked",
        clauses: &["DT-1"],
        defect: Defect {
            wrote: |at, access, _| {
                after_marks(at, access, |at, (start, len)| {
                    let last = start + len - 1;
                    if last / PAGE == start / PAGE {
                        return Ok(());
                    }
                    mark(at, last, false)
                })
            },
            ..STUDYING
        },
    },
    Mutant {
        name: "mirrors_one_bit_of_each_byte",
        clauses: &["T-F3"],
        defect: Defect {
            wrote: |at, access, _| {
                after_marks(at, access, |at, (start, _)| {
                    if start / PAGE % 8 != 3 {
                        return Ok(());
                    }
                    mark(at, start, false)?;
                    mark(at, start + PAGE, true)
                })
            },
            ..STUDYING
        },
    },
    Mutant {
        name: "marks_the_first_page_with_every_other",
        clauses: &["DT-3"],
        defect: Defect {
            // No case has it written, so that it is in a byte of its own.
            write: |at, access, _| {
                if at.kicked(access) && at.wide(reg::TRACKER_LENGTH)? > 0 {
                    mark(at, 0, true)?;
                }
                Ok(true)
            },
            ..SOUND
        },
    },
    Mutant {
        name: "marks_late_from_the_hundredth_request_on",
        clauses: &["DT-8"],
        defect: Defect {
            write: |at, access, value| {
                study(at, access, value)?;
                if at.is(access, reg::TRACKER_ENABLE) {
                    at.remember("requests", 0);
                    at.remember("late", 0);
                }
                Ok(true)
            },
            wrote: |at, access, _| {
                after_marks(at, access, |at, (start, _)| {
                    let requests = at.recall("requests").unwrap_or(0) + 1;
                    at.remember("requests", requests);
                    if requests < 100 {
                        return Ok(());
                    }
                    let late = at.recall("late").unwrap_or(0);
                    at.remember("late", start);
                    if late != 0 {
                        mark(at, late, true)?;
                    }
                    mark(at, start, false)
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "marks_the_used_ring_after_the_suspend",
        clauses: &["TL-6"],
        defect: Defect {
            write: |at, access, value| {
                study(at, access, value)?;
                if at.is(access, reg::DEVICE_STATUS) && at.suspended()? && !is_packed(&at.mind) {
                    mark(at, at.recall("used").unwrap_or(0), true)?;
                }
                Ok(true)
            },
            read: |at, access, data| {
                let suspended = data[0] == status::SUSPENDED && !is_packed(&at.mind);
                if at.is(access, reg::DEVICE_STATUS) && suspended {
                    mark(at, at.recall("used").unwrap_or(0), false)?;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "goes_on_marking_after_a_reset",
        clauses: &["DT-6"],
        defect: Defect {
            resetting: |at| {
                if at.get(reg::TRACKER_ENABLE)? == 1 {
                    at.remember("bitmap", at.wide(reg::TRACKER_ADDR)?);
                }
                Ok(())
            },
            wrote: |at, access, _| {
                if at.is(access, reg::TRACKER_ENABLE) {
                    at.remember("bitmap", 0);
                }
                let bitmap = at.recall("bitmap").unwrap_or(0);
                let runs = at.get(reg::DEVICE_STATUS)? == u64::from(status::RUNNING);
                if at.kicked(access) && bitmap != 0 && runs {
                    at.scribble(bitmap, 1);
                }
                Ok(())
            },
            ..SOUND
        },
    },
];
