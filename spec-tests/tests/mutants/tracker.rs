//! Mutants of the dirty pages tracker.

use super::frame::{Defect, Mutant, SOUND};
use super::split::{LEARNING, after_use};
use device::tracker::Marking;
use spec_tests::constants::{PAGE, reg};

pub const MUTANTS: &[Mutant] = &[
    // The one that matters most: a device that forgets to mark loses pages.
    Mutant {
        name: "marks_nothing",
        clauses: &[
            "DT-1", "DT-4", "DT-8", "DT-9", "T-F3", "T-F5", "T-F6", "T-F7", "TL-6",
        ],
        defect: Defect {
            seams: |seams| seams.config = |config| config.marking = Marking::Off,
            ..SOUND
        },
    },
    Mutant {
        name: "marks_beyond_length",
        clauses: &["DT-2"],
        defect: Defect {
            wrote: |at, access, _| {
                if at.kicked(access) && at.get(reg::TRACKER_ENABLE)? == 1 {
                    let base = at.wide(reg::TRACKER_ADDR)?;
                    at.scribble(base + at.wide(reg::TRACKER_LENGTH)?, 1);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "marks_when_off",
        clauses: &["DT-10"],
        defect: Defect {
            wrote: |at, access, _| {
                if at.kicked(access) && at.get(reg::TRACKER_ENABLE)? == 0 {
                    at.scribble(at.wide(reg::TRACKER_ADDR)?, 1);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_tracking_over_reset",
        clauses: &["DT-6", "T-F8"],
        defect: Defect {
            resetting: |at| {
                at.remember("power", at.get(reg::TRACKER_GRA_POWER)?);
                at.remember("addr", at.get(reg::TRACKER_ADDR[0])?);
                at.remember("length", at.get(reg::TRACKER_LENGTH[0])?);
                at.remember("enable", at.get(reg::TRACKER_ENABLE)?);
                Ok(())
            },
            was_reset: |at| {
                for (name, field) in [
                    ("power", reg::TRACKER_GRA_POWER),
                    ("addr", reg::TRACKER_ADDR[0]),
                    ("length", reg::TRACKER_LENGTH[0]),
                    ("enable", reg::TRACKER_ENABLE),
                ] {
                    at.put(field, at.recall(name).unwrap_or(0))?;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_pasid",
        clauses: &["DT-5", "TL-5"],
        defect: Defect {
            write: |at, access, value| {
                if at.is(access, reg::TRACKER_PASID) {
                    at.remember("pasid", value);
                }
                Ok(true)
            },
            read: |at, access, data| {
                if at.is(access, reg::TRACKER_PASID)
                    && let Some(value) = at.recall("pasid")
                {
                    data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "dirty_reserved",
        clauses: &["TL-2"],
        defect: Defect {
            read: |at, access, data| {
                if at.is(access, reg::TRACKER_RESERVED_2) {
                    data[0] = 1;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "enables_by_any_value",
        clauses: &["TL-3"],
        defect: Defect {
            write: |at, access, value| {
                if at.is(access, reg::TRACKER_ENABLE) {
                    at.remember("enable", value);
                }
                Ok(true)
            },
            read: |at, access, data| {
                let odd = at.recall("enable").filter(|value| *value > 1);
                if at.is(access, reg::TRACKER_ENABLE)
                    && let Some(value) = odd
                {
                    data[0] = value.to_le_bytes()[0];
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "marks_what_it_reads",
        clauses: &["TL-7"],
        defect: Defect {
            wrote: |at, access, _| {
                let on = at.get(reg::TRACKER_ENABLE)? == 1;
                if on && at.get(reg::TRACKER_GRA_POWER)? == 0 {
                    at.remember("bitmap", at.wide(reg::TRACKER_ADDR)?);
                    after_use(at, access, |mind| {
                        let bit = mind.recall("desc").unwrap_or(0) / PAGE;
                        let place = mind.recall("bitmap").unwrap_or(0) + bit / 8;
                        let [marks] = mind.peek(place);
                        mind.scribble(place, marks | 1 << (bit % 8));
                    });
                }
                Ok(())
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "stops_at_a_page_beyond_the_bitmap",
        clauses: &["DT-11"],
        defect: Defect {
            write: |at, access, _| {
                let kicked = at.kicked(access);
                let stopped = at.recall("stopped") == Some(1);
                if kicked && at.get(reg::TRACKER_ENABLE)? == 1 {
                    let power = at.get(reg::TRACKER_GRA_POWER)?;
                    let covered = (at.wide(reg::TRACKER_LENGTH)? * 8 * PAGE) << power;
                    let short = covered <= at.wide(reg::QUEUE_DEVICE)?;
                    at.remember("stopped", u64::from(stopped || short));
                }
                Ok(!(kicked && stopped))
            },
            was_reset: |at| {
                at.remember("stopped", 0);
                Ok(())
            },
            ..SOUND
        },
    },
];
