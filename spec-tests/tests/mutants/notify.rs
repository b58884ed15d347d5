//! Mutants of notifications and interrupts.

use super::frame::{Access, Defect, Function, Mind, Mutant, SOUND, Vector};
use super::packed::{is_packed, study};
use super::split::{avail_flags, crooked, with_event_idx};
use driver::bus::{BusError, Interrupt};
use spec_tests::clause;
use spec_tests::constants::{Field, ISR_CONFIG, ISR_QUEUE, cfg_type, pci, reg, status};
use std::sync::Arc;
use std::time::Duration;

/// An interrupt that fires whenever somebody looks for long enough.
#[derive(Debug)]
struct Nervous;

impl Interrupt for Nervous {
    fn wait(&self, _timeout: Duration) -> bool {
        true
    }
}

fn without_isr_bit(
    function: &Function,
    access: Access,
    data: &mut [u8],
    bit: u8,
) -> Result<(), BusError> {
    if function.within(access, cfg_type::ISR) {
        data[0] &= !bit;
    }
    Ok(())
}

/// Remembers which vector the configuration has.
fn follow_vector(at: &Function, access: Access, value: u64) -> Result<bool, BusError> {
    if at.is(access, reg::CONFIG_MSIX_VECTOR) {
        at.remember("configuration", value);
    }
    Ok(true)
}

/// Remembers the status that the driver reads.
fn follow_status(at: &Function, access: Access, data: &mut [u8]) -> Result<(), BusError> {
    if at.is(access, reg::DEVICE_STATUS) {
        at.remember("status", u64::from(data[0]));
    }
    Ok(())
}

fn shows(mind: &Mind, bits: u8) -> bool {
    let bits = u64::from(bits);
    mind.recall("status").unwrap_or(0) & bits == bits
}

/// What knows the vector of the configuration, and the status, and gives each vector to `vector`.
const fn announcing(vector: Vector) -> Defect {
    Defect {
        write: follow_vector,
        read: follow_status,
        interrupt: vector,
        ..SOUND
    }
}

/// Remembers that what had a vector has none any more.
fn unmaps(at: &Function, access: Access, field: Field, value: u64) {
    if at.is(access, field) {
        let before = at.recall("mapped") == Some(1);
        let mapped = value != pci::NO_VECTOR;
        at.remember("mapped", u64::from(mapped));
        at.remember("unmapped", u64::from(before && !mapped));
    }
}

/// What fires once whenever something is due.
const FIRING: Defect = Defect {
    interrupt: |at, _, real| {
        crooked(at, real, |mind, fired| {
            let due = mind.recall("due") == Some(1);
            mind.remember("due", 0);
            fired || due
        })
    },
    was_reset: |at| {
        for note in ["mapped", "unmapped", "due"] {
            at.remember(note, 0);
        }
        Ok(())
    },
    ..SOUND
};

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "fires_always",
        clauses: &[
            "ST-5",
            "RS-2",
            "VR-1",
            "SUS-12",
            "SUS-13",
            clause!(used_interrupt "D1"),
            clause!(config_interrupt "D1"),
        ],
        defect: Defect {
            interrupt: |_, _, _| Arc::new(Nervous),
            ..SOUND
        },
    },
    Mutant {
        name: "sticky_isr",
        clauses: &[clause!(isr "D5")],
        defect: Defect {
            read: |at, access, data| {
                if at.within(access, cfg_type::ISR) {
                    let all = at.recall("isr").unwrap_or(0) | u64::from(data[0]);
                    at.remember("isr", all);
                    data[0] = u8::try_from(all).unwrap();
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "no_configuration_bit",
        clauses: &[clause!(isr "D2")],
        defect: Defect {
            read: |at, access, data| without_isr_bit(at, access, data, ISR_CONFIG),
            ..SOUND
        },
    },
    Mutant {
        name: "no_queue_bit",
        clauses: &[clause!(isr "D3")],
        defect: Defect {
            read: |at, access, data| without_isr_bit(at, access, data, ISR_QUEUE),
            ..SOUND
        },
    },
    Mutant {
        name: "no_interrupt_status",
        clauses: &[clause!(isr "D4")],
        defect: Defect {
            config_read: |_, offset, data| {
                if offset == pci::STATUS && data.len() == 2 {
                    data[0] &= !pci::STATUS_INTERRUPT.to_le_bytes()[0];
                }
            },
            ..SOUND
        },
    },
    Mutant {
        name: "changes_its_capacity_in_silence",
        clauses: &[clause!(blk "D2")],
        defect: announcing(|at, vector, real| {
            if vector != 0 {
                return real;
            }
            crooked(at, real, |mind, fired| {
                let configuration = mind.recall("configuration") == Some(0);
                fired && (!configuration || shows(mind, status::NEEDS_RESET))
            })
        }),
    },
    Mutant {
        name: "announces_changes_while_it_is_suspended",
        clauses: &["SUS-13"],
        defect: announcing(|at, vector, real| {
            if vector != 0 {
                return real;
            }
            crooked(at, real, |mind, fired| {
                let configuration = mind.recall("configuration") == Some(0);
                fired || configuration && shows(mind, status::SUSPEND)
            })
        }),
    },
    Mutant {
        name: "notifies_who_does_not_want_it",
        clauses: &[clause!(used_suppression "D2")],
        defect: Defect {
            write: |at, access, value| study(at, access, value).map(|()| true),
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    let split = !is_packed(mind) && !with_event_idx(mind);
                    fired || split && avail_flags(mind) == 1
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "fires_for_a_queue_without_a_vector",
        clauses: &[clause!(used_interrupt "D1")],
        defect: Defect {
            write: |at, access, value| {
                unmaps(at, access, reg::QUEUE_MSIX_VECTOR, value);
                if at.kicked(access) && at.recall("unmapped") == Some(1) {
                    at.remember("due", 1);
                }
                Ok(true)
            },
            ..FIRING
        },
    },
    Mutant {
        name: "fires_for_a_configuration_without_a_vector",
        clauses: &[clause!(config_interrupt "D1")],
        defect: Defect {
            write: |at, access, value| {
                unmaps(at, access, reg::CONFIG_MSIX_VECTOR, value);
                if at.is(access, reg::CONFIG_MSIX_VECTOR) {
                    at.remember("due", at.recall("unmapped").unwrap_or(0));
                }
                Ok(true)
            },
            ..FIRING
        },
    },
];
