//! Mutants of notifications and interrupts.

use super::frame::{Defect, Mutant, SOUND};
use driver::bus::Interrupt;
use spec_tests::clause;
use spec_tests::constants::cfg_type;
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
];
