//! Mutants of packed rings' saved state, of what becomes of them in suspend, and of their marks.

use super::frame::{Access, Defect, Function, Mutant, SOUND};
use super::packed::{is_packed, study};
use driver::bus::BusError;
use spec_tests::constants::{PAGE, packed, reg};
use std::time::{Duration, Instant};

/// How long a defect that comes after use waits for it.
const USE: Duration = Duration::from_millis(60);
/// The wrap counter in a state.
const WRAP: u64 = packed::STATE_DEFAULT;

fn is_state(at: &Function, access: Access) -> bool {
    at.is(access, reg::QUEUE_AVAIL_STATE) || at.is(access, reg::QUEUE_USED_STATE)
}

/// Changes what is read of a packed queue's state.
fn shows(
    at: &Function,
    access: Access,
    data: &mut [u8],
    changed: fn(&Function, Access, u16) -> Result<u16, BusError>,
) -> Result<(), BusError> {
    if is_state(at, access)
        && is_packed(&at.mind)
        && let Ok(bytes) = <[u8; 2]>::try_from(&*data)
    {
        let shown = changed(at, access, u16::from_le_bytes(bytes))?;
        data.copy_from_slice(&shown.to_le_bytes());
    }
    Ok(())
}

/// Clears or sets the mark of the page that holds `iova`.
pub(super) fn mark(at: &Function, iova: u64, on: bool) -> Result<(), BusError> {
    if at.get(reg::TRACKER_ENABLE)? != 1 || at.get(reg::TRACKER_GRA_POWER)? != 0 {
        return Ok(());
    }
    let page = iova / PAGE;
    let place = at.wide(reg::TRACKER_ADDR)? + page / 8;
    let [byte] = at.mind.peek(place);
    let bit = 1 << (page % 8);
    at.scribble(place, if on { byte | bit } else { byte & !bit });
    Ok(())
}

/// Notifies, and changes a mark of a packed queue's once the device has set that of its ring.
fn after_marks(
    at: &Function,
    access: Access,
    value: u64,
    what: fn(&Function) -> Result<(), BusError>,
) -> Result<bool, BusError> {
    study(at, access, value)?;
    let tracked = at.kicked(access) && is_packed(&at.mind) && at.get(reg::TRACKER_ENABLE)? == 1;
    if !tracked {
        return Ok(true);
    }
    at.ring(access, value)?;
    let page = at.recall("desc").unwrap_or(0) / PAGE;
    let place = at.wide(reg::TRACKER_ADDR)? + page / 8;
    let begun = Instant::now();
    while begun.elapsed() < USE {
        if at.mind.peek::<1>(place)[0] & 1 << (page % 8) != 0 {
            break;
        }
        std::thread::yield_now();
    }
    what(at)?;
    Ok(false)
}

/// What learns on every write and lets all through.
const STUDYING: Defect = Defect {
    write: |at, access, value| study(at, access, value).map(|()| true),
    ..SOUND
};

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "restores_no_wrap_counter",
        clauses: &["QS-3"],
        defect: Defect {
            write: |at, access, value| {
                study(at, access, value)?;
                let lost = is_state(at, access) && is_packed(&at.mind) && value & WRAP == 0;
                if lost {
                    let field = match at.is(access, reg::QUEUE_AVAIL_STATE) {
                        true => reg::QUEUE_AVAIL_STATE,
                        false => reg::QUEUE_USED_STATE,
                    };
                    at.put(field, value | WRAP)?;
                }
                Ok(!lost)
            },
            ..SOUND
        },
    },
    Mutant {
        name: "shows_a_packed_used_state_without_wrap_counter",
        clauses: &["QS-5"],
        defect: Defect {
            read: |at, access, data| {
                shows(at, access, data, |at, access, shown| {
                    let used = at.is(access, reg::QUEUE_USED_STATE) && at.suspended()?;
                    Ok(if used { shown & 0x7fff } else { shown })
                })
            },
            ..STUDYING
        },
    },
    Mutant {
        name: "packed_default_is_0_after_a_device_reset",
        clauses: &["QS-6"],
        defect: Defect {
            read: |at, access, data| {
                shows(at, access, data, |_, _, shown| {
                    Ok(if shown == 0x8000 { 0 } else { shown })
                })
            },
            ..STUDYING
        },
    },
    Mutant {
        name: "packed_default_is_0_after_a_queue_reset",
        clauses: &["QS-7"],
        defect: Defect {
            read: |at, access, data| {
                shows(at, access, data, |at, _, shown| {
                    let reset = at.recall("queue reset") == Some(1);
                    Ok(if reset && shown == 0x8000 { 0 } else { shown })
                })
            },
            write: |at, access, value| {
                study(at, access, value)?;
                if at.is(access, reg::QUEUE_RESET) {
                    at.remember("queue reset", value);
                }
                Ok(true)
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_a_packed_state_while_suspended",
        clauses: &["QS-8"],
        defect: Defect {
            read: |at, access, data| {
                shows(at, access, data, |at, _, shown| {
                    let written = at.recall("state").and_then(|bits| u16::try_from(bits).ok());
                    Ok(written
                        .filter(|_| at.recall("fresh") == Some(1))
                        .unwrap_or(shown))
                })
            },
            write: |at, access, value| {
                study(at, access, value)?;
                if at.is(access, reg::DEVICE_STATUS) {
                    at.remember("fresh", 0);
                }
                if is_state(at, access) && is_packed(&at.mind) && at.suspended()? {
                    at.remember("state", value);
                    at.remember("fresh", 1);
                }
                Ok(true)
            },
            ..SOUND
        },
    },
    Mutant {
        name: "touches_a_packed_queue_while_suspended",
        clauses: &["SUS-12"],
        defect: Defect {
            write: |at, access, value| {
                study(at, access, value)?;
                if at.kicked(access) && is_packed(&at.mind) && at.suspended()? {
                    at.scribble(at.recall("used").unwrap_or(0) + 2, 1);
                }
                Ok(true)
            },
            ..SOUND
        },
    },
    Mutant {
        name: "leaves_the_packed_ring_unmarked",
        clauses: &["DT-9"],
        defect: Defect {
            write: |at, access, value| {
                after_marks(at, access, value, |at| {
                    mark(at, at.recall("desc").unwrap_or(0), false)
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "marks_packed_event_suppression_that_it_reads",
        clauses: &["TL-7"],
        defect: Defect {
            write: |at, access, value| {
                after_marks(at, access, value, |at| {
                    mark(at, at.recall("avail").unwrap_or(0), true)
                })
            },
            ..SOUND
        },
    },
];
