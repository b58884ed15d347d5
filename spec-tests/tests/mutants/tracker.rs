//! Mutants of the dirty pages tracker.

use super::frame::{Defect, Mutant, SOUND};
use super::split::{LEARNING, after_use};
use device::tracker::Marking;
use spec_tests::constants::{PAGE, reg, status};

/// Bytes of the largest bitmap that cases have.
const LENGTH_MAX: u64 = 1 << 20;

/// What remembers the PASID that was written and lets all through.
const NOTING_PASID: Defect = Defect {
    write: |at, access, value| {
        if at.is(access, reg::TRACKER_PASID) {
            at.remember("pasid", value);
        }
        Ok(true)
    },
    was_reset: |at| {
        at.remember("pasid", 0);
        Ok(())
    },
    ..SOUND
};

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
    Mutant {
        name: "shows_no_length_before_driver_ok",
        clauses: &["T-F2"],
        defect: Defect {
            read: |at, access, data| {
                let early = at.get(reg::DEVICE_STATUS)? == u64::from(status::AGREED);
                if at.is(access, reg::TRACKER_LENGTH[0]) && early {
                    data.fill(0);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    // Whoever reads it sees what was written.
    Mutant {
        name: "takes_length_for_dwords",
        clauses: &["T-F4"],
        defect: Defect {
            write: |at, access, value| {
                let length = at.is(access, reg::TRACKER_LENGTH[0]);
                let dwords = length && value <= LENGTH_MAX;
                if length {
                    at.remember("dwords", u64::from(dwords));
                }
                if dwords {
                    at.put(reg::TRACKER_LENGTH[0], value * 4)?;
                }
                Ok(!dwords)
            },
            read: |at, access, data| {
                if at.is(access, reg::TRACKER_LENGTH[0])
                    && at.recall("dwords") == Some(1)
                    && let Ok(bytes) = <[u8; 4]>::try_from(&*data)
                {
                    data.copy_from_slice(&(u32::from_le_bytes(bytes) / 4).to_le_bytes());
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "couples_halves_of_the_length",
        clauses: &["TL-4"],
        defect: Defect {
            wrote: |at, access, _| {
                let [low, high] = reg::TRACKER_LENGTH;
                if at.is(access, low) {
                    at.put(high, 0)?;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "tracks_the_first_pasid_only",
        clauses: &["T-F8"],
        defect: Defect {
            write: |at, access, value| {
                if !at.is(access, reg::TRACKER_PASID) {
                    return Ok(true);
                }
                let first = at.recall("pasid").is_none();
                at.remember("pasid", value);
                Ok(first)
            },
            read: |at, access, data| {
                let changed = at.get(reg::TRACKER_PASID)? != 0;
                if at.is(access, reg::TRACKER_PASID)
                    && changed
                    && let Some(value) = at.recall("pasid")
                {
                    let shown = value & 0xf_ffff;
                    data.copy_from_slice(&shown.to_le_bytes()[..data.len()]);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "a_pasid_of_32_bits",
        clauses: &["TL-5"],
        defect: Defect {
            read: |at, access, data| {
                let written = at.recall("pasid").unwrap_or(0);
                if at.is(access, reg::TRACKER_PASID) && at.get(reg::TRACKER_PASID)? != 0 {
                    data.copy_from_slice(&written.to_le_bytes()[..data.len()]);
                }
                Ok(())
            },
            ..NOTING_PASID
        },
    },
    Mutant {
        name: "takes_pasid_while_it_is_disabled",
        clauses: &["DT-5"],
        defect: Defect {
            read: |at, access, data| {
                let written = at.recall("pasid").unwrap_or(0);
                let disabled = at.caps.pasid.is_some() && at.get(reg::TRACKER_PASID)? == 0;
                if at.is(access, reg::TRACKER_PASID) && disabled {
                    data.copy_from_slice(&written.to_le_bytes()[..data.len()]);
                }
                Ok(())
            },
            ..NOTING_PASID
        },
    },
    Mutant {
        name: "knows_the_least_page_size_only",
        clauses: &["T-F6"],
        defect: Defect {
            write: |at, access, value| {
                let larger = at.is(access, reg::TRACKER_GRA_POWER) && value > 0;
                if larger {
                    at.put(reg::TRACKER_GRA_POWER, 0)?;
                }
                if at.is(access, reg::TRACKER_GRA_POWER) {
                    at.remember("power", value);
                }
                Ok(!larger)
            },
            read: |at, access, data| {
                let power = at.recall("power").filter(|power| *power > 0);
                if at.is(access, reg::TRACKER_GRA_POWER)
                    && let Some(power) = power
                {
                    data[0] = power.to_le_bytes()[0];
                }
                Ok(())
            },
            was_reset: |at| {
                at.remember("power", 0);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "starts_again_with_a_new_bitmap_only",
        clauses: &["T-F5"],
        defect: Defect {
            write: |at, access, value| {
                for field in [reg::TRACKER_ADDR, reg::TRACKER_LENGTH].as_flattened() {
                    if at.is(access, *field) {
                        at.remember("old", 0);
                    }
                }
                if !at.is(access, reg::TRACKER_ENABLE) || value > 1 {
                    return Ok(true);
                }
                let sham = value == 1 && at.recall("old") == Some(1);
                at.remember("sham", u64::from(sham));
                if value == 1 {
                    at.remember("old", 1);
                }
                Ok(!sham)
            },
            read: |at, access, data| {
                if at.is(access, reg::TRACKER_ENABLE) && at.recall("sham") == Some(1) {
                    data[0] = 1;
                }
                Ok(())
            },
            was_reset: |at| {
                at.remember("old", 0);
                at.remember("sham", 0);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "shows_a_larger_page_size_than_it_uses",
        clauses: &["DT-4"],
        defect: Defect {
            write: |at, access, value| {
                if at.is(access, reg::TRACKER_GRA_POWER) {
                    at.remember("power", value);
                }
                Ok(true)
            },
            read: |at, access, data| {
                // It was raised, or has its least value.
                let asked = at.recall("power").unwrap_or(0);
                if at.is(access, reg::TRACKER_GRA_POWER) && u64::from(data[0]) > asked {
                    data[0] += 1;
                }
                Ok(())
            },
            was_reset: |at| {
                at.remember("power", 0);
                Ok(())
            },
            ..SOUND
        },
    },
];
