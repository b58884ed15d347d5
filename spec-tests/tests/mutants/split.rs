//! Mutants of split rings, of indirect tables and of event indices.

use super::frame::{Access, Defect, Function, Mind, Mutant, SOUND};
use driver::bus::{BusError, Interrupt};
use spec_tests::clause;
use spec_tests::constants::{feature, reg, ring};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a defect that comes after use waits for it.
const USE: Duration = Duration::from_millis(200);

/// A descriptor of queue 0's table.
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(mind: &Mind, index: u16) -> Self {
        let at = mind.recall("desc").unwrap_or(0) + ring::DESC * u64::from(index);
        let word = |offset| u16::from_le_bytes(mind.peek(at + offset));
        Self {
            address: u64::from_le_bytes(mind.peek(at)),
            len: u32::from_le_bytes(mind.peek(at + 8)),
            flags: word(12),
            next: word(14),
        }
    }
}

/// Remembers where the queue lies that is notified, and what was agreed on. Cases select the queue
/// before they notify it.
pub(super) fn learn(at: &Function, access: Access, value: u64) -> Result<(), BusError> {
    if at.is(access, reg::DRIVER_FEATURE) && at.get(reg::DRIVER_FEATURE_SELECT)? == 0 {
        at.remember("features", value);
    }
    if at.kicked(access) {
        at.remember("desc", at.wide(reg::QUEUE_DESC)?);
        at.remember("avail", at.wide(reg::QUEUE_DRIVER)?);
        at.remember("used", at.wide(reg::QUEUE_DEVICE)?);
        at.remember("size", at.get(reg::QUEUE_SIZE)?);
    }
    Ok(())
}

pub(super) fn index(mind: &Mind, which: &'static str) -> u16 {
    u16::from_le_bytes(mind.peek(mind.recall(which).unwrap_or(0) + 2))
}

pub(super) fn slot(mind: &Mind, index: u16) -> u64 {
    u64::from(index) % mind.recall("size").unwrap_or(1).max(1)
}

/// The chain that was made available last, descriptors of the table only.
pub(super) fn chain(mind: &Mind) -> Vec<Descriptor> {
    let last = slot(mind, index(mind, "avail").wrapping_sub(1));
    let mut at = u16::from_le_bytes(mind.peek(mind.recall("avail").unwrap_or(0) + 4 + 2 * last));
    let mut chain = Vec::new();
    while chain.len() < 8 {
        let descriptor = Descriptor::read(mind, at);
        let (more, next) = (descriptor.flags & ring::NEXT != 0, descriptor.next);
        chain.push(descriptor);
        if !more {
            break;
        }
        at = next;
    }
    chain
}

/// Loses the notification of a chain that looks so.
fn deaf_to(
    at: &Function,
    access: Access,
    value: u64,
    looks: fn(&[Descriptor]) -> bool,
) -> Result<bool, BusError> {
    learn(at, access, value)?;
    Ok(!(at.kicked(access) && looks(&chain(&at.mind))))
}

/// Does something once everything that was made available has been used.
pub(super) fn after_use(at: &Function, access: Access, what: impl FnOnce(&Mind)) {
    if !at.kicked(access) {
        return;
    }
    let begun = Instant::now();
    while begun.elapsed() < USE {
        if index(&at.mind, "used") == index(&at.mind, "avail") {
            what(&at.mind);
            return;
        }
        std::thread::yield_now();
    }
}

pub fn with_event_idx(mind: &Mind) -> bool {
    mind.recall("features").unwrap_or(0) & feature::EVENT_IDX != 0
}

/// The index that the driver asks to be notified of.
fn used_event(mind: &Mind) -> u16 {
    let size = mind.recall("size").unwrap_or(0);
    u16::from_le_bytes(mind.peek(mind.recall("avail").unwrap_or(0) + 4 + 2 * size))
}

pub(super) fn avail_flags(mind: &Mind) -> u16 {
    u16::from_le_bytes(mind.peek(mind.recall("avail").unwrap_or(0)))
}

/// A vector that swallows what it should let through, or makes up what did not come.
#[derive(Debug)]
struct Crooked {
    real: Arc<dyn Interrupt>,
    mind: Mind,
    says: fn(&Mind, bool) -> bool,
}

impl Interrupt for Crooked {
    fn wait(&self, timeout: Duration) -> bool {
        let fired = self.real.wait(timeout);
        (self.says)(&self.mind, fired)
    }
}

/// Puts [`Crooked`] in the place of a vector.
pub(super) fn crooked(
    at: &Function,
    real: Arc<dyn Interrupt>,
    says: fn(&Mind, bool) -> bool,
) -> Arc<dyn Interrupt> {
    let mind = at.mind.clone();
    Arc::new(Crooked { real, mind, says })
}

/// What learns on every write and lets all through.
pub(super) const LEARNING: Defect = Defect {
    write: |at, access, value| learn(at, access, value).map(|()| true),
    ..SOUND
};

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "wants_the_header_in_one_piece",
        clauses: &[clause!(framing "D1")],
        defect: Defect {
            write: |at, access, value| {
                deaf_to(at, access, value, |chain| {
                    chain.first().is_some_and(|first| {
                        first.flags & (ring::WRITE | ring::INDIRECT) == 0 && first.len < 16
                    })
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_write_on_an_indirect_descriptor_for_data",
        clauses: &[clause!(indirect "D1")],
        defect: Defect {
            write: |at, access, value| {
                deaf_to(at, access, value, |chain| {
                    chain
                        .iter()
                        .any(|one| one.flags & ring::INDIRECT != 0 && one.flags & ring::WRITE != 0)
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "indirect_tables_stand_alone",
        clauses: &[clause!(indirect "D2")],
        defect: Defect {
            write: |at, access, value| {
                deaf_to(at, access, value, |chain| {
                    chain
                        .iter()
                        .skip(1)
                        .any(|one| one.flags & ring::INDIRECT != 0)
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "writes_to_a_header",
        clauses: &[clause!(table "D1")],
        defect: Defect {
            wrote: |at, access, _| {
                after_use(at, access, |mind| {
                    if let Some(header) = chain(mind)
                        .first()
                        .filter(|first| first.flags & ring::WRITE == 0)
                    {
                        mind.scribble(header.address + 5, 0x77);
                    }
                });
                Ok(())
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "writes_to_the_descriptor_table",
        clauses: &[clause!(table "D2")],
        defect: Defect {
            wrote: |at, access, _| {
                after_use(at, access, |mind| {
                    let last = mind.recall("size").unwrap_or(1) - 1;
                    mind.scribble(mind.recall("desc").unwrap_or(0) + ring::DESC * last, 0x77);
                });
                Ok(())
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "says_more_than_it_wrote",
        clauses: &[clause!(used_ring "D2")],
        defect: Defect {
            wrote: |at, access, _| {
                after_use(at, access, |mind| {
                    // The end of the data is as it was before the request.
                    if let Some(data) = chain(mind)
                        .iter()
                        .find(|one| one.flags & ring::WRITE != 0 && one.len > 512)
                    {
                        for byte in 0..16 {
                            mind.scribble(data.address + u64::from(data.len) - 16 + byte, 0x5a);
                        }
                    }
                });
                Ok(())
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "used_flags_of_its_own",
        clauses: &[clause!(avail_suppression "D1")],
        defect: Defect {
            wrote: |at, access, _| {
                after_use(at, access, |mind| {
                    if !with_event_idx(mind) {
                        mind.scribble(mind.recall("used").unwrap_or(0), 2);
                    }
                });
                Ok(())
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "used_flags_with_event_idx",
        clauses: &[clause!(avail_suppression "D3")],
        defect: Defect {
            wrote: |at, access, _| {
                after_use(at, access, |mind| {
                    if with_event_idx(mind) {
                        mind.scribble(mind.recall("used").unwrap_or(0), 1);
                    }
                });
                Ok(())
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "tires_of_spurious_notifications",
        clauses: &[clause!(avail_suppression "D5")],
        defect: Defect {
            write: |at, access, value| {
                learn(at, access, value)?;
                if at.is(access, reg::DEVICE_STATUS) {
                    at.remember("idle", 0);
                }
                let idle = at.recall("idle").unwrap_or(0);
                if at.kicked(access) && index(&at.mind, "used") == index(&at.mind, "avail") {
                    at.remember("idle", idle + 1);
                }
                Ok(!(at.kicked(access) && idle > 50))
            },
            ..SOUND
        },
    },
    Mutant {
        name: "heeds_used_event_without_event_idx",
        clauses: &[clause!(used_suppression "D1")],
        defect: Defect {
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    let event = used_event(mind);
                    let met = event == 0 || event == index(mind, "used").wrapping_sub(1);
                    fired && (with_event_idx(mind) || met)
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "notifies_once_only",
        clauses: &[clause!(used_suppression "D3")],
        defect: Defect {
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    let later = index(mind, "used") > 2 && index(mind, "used") < 0x8000;
                    fired && (with_event_idx(mind) || !later || used_event(mind) != 0)
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "heeds_flags_with_event_idx",
        clauses: &[clause!(used_suppression "D4")],
        defect: Defect {
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    fired && !(with_event_idx(mind) && avail_flags(mind) & 1 != 0)
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "misses_used_event_after_the_wrap",
        clauses: &[clause!(used_suppression "D5")],
        defect: Defect {
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    if index(mind, "used") > 0x8000 {
                        mind.remember("round", 1);
                    }
                    let wrapped = mind.recall("round") == Some(1) && index(mind, "used") < 0x8000;
                    fired && !(with_event_idx(mind) && wrapped)
                })
            },
            wrote: |at, access, _| {
                if at.kicked(access) && index(&at.mind, "avail") > 0x8000 {
                    at.remember("round", 1);
                }
                Ok(())
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "notifies_before_used_event",
        clauses: &[clause!(used_suppression "D6")],
        defect: Defect {
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    let ahead = used_event(mind).wrapping_sub(index(mind, "used"));
                    fired || with_event_idx(mind) && (5..20).contains(&ahead)
                })
            },
            ..LEARNING
        },
    },
    Mutant {
        name: "swaps_the_first_two_with_in_order",
        clauses: &[clause!(reserved "D5")],
        defect: Defect {
            wrote: |at, access, value| {
                let high = at.is(access, reg::DRIVER_FEATURE);
                if high && at.get(reg::DRIVER_FEATURE_SELECT)? == 1 {
                    at.remember("high", value);
                }
                if at.recall("high").unwrap_or(0) & (feature::IN_ORDER >> 32) == 0 {
                    return Ok(());
                }
                after_use(at, access, |mind| {
                    let first = mind.recall("used").unwrap_or(0) + 4;
                    let second = first + ring::USED;
                    let elements: [[u8; 8]; 2] = [mind.peek(second), mind.peek(first)];
                    for (place, byte) in (first..).zip(elements.as_flattened()) {
                        mind.scribble(place, *byte);
                    }
                });
                Ok(())
            },
            ..LEARNING
        },
    },
];
