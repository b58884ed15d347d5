//! Mutants of configuration space: identity and capabilities.

use super::frame::{Defect, Function, Mutant, SOUND};
use spec_tests::clause;
use spec_tests::constants::{cfg_type, pci};

/// Where a capability of a type stands.
fn cap_at(function: &Function, kind: u8) -> u16 {
    function.caps.first(kind).map_or(u16::MAX, |cap| cap.at)
}

/// Sets the byte `at` of configuration space, in whatever read covers it.
fn set_byte(offset: u16, data: &mut [u8], at: u16, value: u8) {
    if let Some(byte) = at
        .checked_sub(offset)
        .and_then(|place| data.get_mut(usize::from(place)))
    {
        *byte = value;
    }
}

/// The first capability of a type passes for one of a type that nobody knows.
const fn hidden(
    name: &'static str,
    clauses: &'static [&'static str],
    hide: fn(&Function, u16, &mut [u8]),
) -> Mutant {
    Mutant {
        name,
        clauses,
        defect: Defect {
            config_read: hide,
            ..SOUND
        },
    }
}

pub const MUTANTS: &[Mutant] = &[
    hidden(
        "another_vendor",
        &[clause!(discovery "D1")],
        |_, offset, data| set_byte(offset, data, 0, 0xf5),
    ),
    hidden(
        "a_bridge",
        &["virtio-over-pci-bus/D1"],
        |_, offset, data| {
            set_byte(offset, data, pci::HEADER_TYPE, 1);
        },
    ),
    hidden(
        "a_capability_cut_short",
        &[clause!(caps "D1")],
        |at, offset, data| {
            set_byte(offset, data, cap_at(at, cfg_type::NOTIFY) + 2, 16);
        },
    ),
    hidden("no_isr", &[clause!(isr "D1")], |at, offset, data| {
        set_byte(offset, data, cap_at(at, cfg_type::ISR) + 3, 0x77);
    }),
    hidden("no_window", &[clause!(window "D1")], |at, offset, data| {
        set_byte(offset, data, cap_at(at, cfg_type::PCI) + 3, 0x77);
    }),
];
