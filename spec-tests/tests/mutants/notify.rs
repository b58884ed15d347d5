//! Mutants of notifications and interrupts.

use super::frame::{Access, Defect, Function, Mutant, SOUND};
use driver::bus::{BusError, Interrupt};
use spec_tests::clause;
use spec_tests::constants::{ISR_CONFIG, ISR_QUEUE, cfg_type, pci};
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
];
