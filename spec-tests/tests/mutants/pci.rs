//! Mutants of configuration space: identity and capabilities.

use super::frame::{Defect, Function, Mutant, SOUND, patch};
use spec_tests::clause;
use spec_tests::constants::{cfg_type, pci, reg, status};

/// Where nothing of configuration space stands.
const NOWHERE: u16 = 0xf000;

/// Where the `nth` capability of a type stands.
fn nth_at(function: &Function, kind: u8, nth: usize) -> u16 {
    let mut all = function
        .caps
        .virtio
        .iter()
        .filter(|cap| cap.cfg_type == kind);
    all.nth(nth).map_or(NOWHERE, |cap| cap.at)
}

/// Where the first capability of a type stands.
fn cap_at(function: &Function, kind: u8) -> u16 {
    nth_at(function, kind, 0)
}

/// Sets the byte `at` of configuration space, in whatever read covers it.
fn set_byte(offset: u16, data: &mut [u8], at: u16, value: u8) {
    patch(offset, data, at, &[value]);
}

/// Whether features are agreed on and the device does not run yet: what is wrong only then leaves
/// every driver on its way.
fn agreed(function: &Function) -> bool {
    let status = function.get(reg::DEVICE_STATUS);
    status.is_ok_and(|status| status == u64::from(status::AGREED))
}

/// Other bytes of configuration space than the sound function's.
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

/// A structure that is announced, and served, at another place.
const fn moved(name: &'static str, clauses: &'static [&'static str], to: (u8, u32)) -> Mutant {
    Mutant {
        name,
        clauses,
        defect: Defect {
            moved: Some(to),
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
    hidden(
        "a_device_id_of_nobody",
        &[clause!(discovery "D2")],
        |at, offset, data| {
            if agreed(at) {
                set_byte(offset, data, 3, 0x11);
            }
        },
    ),
    hidden(
        "no_common_configuration_while_negotiating",
        &[clause!(common "D2")],
        |at, offset, data| {
            if agreed(at) {
                set_byte(offset, data, cap_at(at, cfg_type::COMMON) + 3, 0x77);
            }
        },
    ),
    hidden(
        "no_doorbells_while_negotiating",
        &[clause!(doorbell "D1")],
        |at, offset, data| {
            if agreed(at) {
                set_byte(offset, data, cap_at(at, cfg_type::NOTIFY) + 3, 0x77);
            }
        },
    ),
    moved(
        "common_configuration_between_dwords",
        &[clause!(common "D1")],
        (cfg_type::COMMON, 0x8002),
    ),
    moved(
        "doorbells_at_an_odd_place",
        &[clause!(doorbell "D2"), clause!(doorbell "D7")],
        (cfg_type::NOTIFY, 0x8001),
    ),
    moved(
        "doorbells_with_data_between_dwords",
        &[clause!(doorbell "D7")],
        (cfg_type::NOTIFY, 0x8002),
    ),
    hidden(
        "room_for_one_doorbell",
        &[clause!(doorbell "D4"), clause!(doorbell "D5")],
        |at, offset, data| {
            let length = cap_at(at, cfg_type::NOTIFY) + 12;
            patch(offset, data, length, &4_u32.to_le_bytes());
        },
    ),
    hidden(
        "no_room_for_the_last_doorbells_data",
        &[clause!(doorbell "D8"), clause!(doorbell "D9")],
        |at, offset, data| {
            let Some(cap) = at.caps.first(cfg_type::NOTIFY) else {
                return;
            };
            // Doorbells are 4 bytes apart and 2 bytes wide without the data.
            let length = u32::try_from(cap.region.length - 2).unwrap();
            patch(offset, data, cap.at + 12, &length.to_le_bytes());
        },
    ),
    hidden(
        "shared_memory_beyond_its_bar",
        &[clause!(shared_memory "D1")],
        |at, offset, data| {
            let length = cap_at(at, cfg_type::SHARED_MEMORY) + 12;
            patch(offset, data, length, &0x10_0000_u32.to_le_bytes());
        },
    ),
    hidden(
        "one_id_for_two_regions",
        &[clause!(shared_memory "D2")],
        |at, offset, data| {
            set_byte(offset, data, nth_at(at, cfg_type::SHARED_MEMORY, 1) + 5, 1);
        },
    ),
    hidden(
        "doorbells_in_shared_memory",
        &["basic-facilities-of-a-virtio/D1"],
        |at, offset, data| {
            let doorbells = at.caps.first(cfg_type::NOTIFY).map(|cap| cap.region.offset);
            let start = u32::try_from(doorbells.unwrap_or(0)).unwrap();
            let place = cap_at(at, cfg_type::SHARED_MEMORY) + 8;
            patch(offset, data, place, &start.to_le_bytes());
        },
    ),
    hidden(
        "vendor_data_of_virtio",
        &[clause!(vendor_data "D1")],
        |at, offset, data| {
            let place = cap_at(at, cfg_type::VENDOR) + 4;
            patch(offset, data, place, &pci::VENDOR.to_le_bytes());
        },
    ),
    hidden(
        "vendor_data_with_half_a_dword",
        &[clause!(vendor_data "D2")],
        |at, offset, data| set_byte(offset, data, cap_at(at, cfg_type::VENDOR) + 2, 10),
    ),
    hidden(
        "vendor_data_that_counts_its_readers",
        &[clause!(vendor_data "D3")],
        |at, offset, data| {
            let place = cap_at(at, cfg_type::VENDOR) + 8;
            if offset == place {
                at.remember("readers", at.recall("readers").unwrap_or(0) + 1);
            }
            let readers = at.recall("readers").unwrap_or(0).to_le_bytes();
            set_byte(offset, data, place, readers[0]);
        },
    ),
    Mutant {
        name: "a_window_that_is_not_written",
        clauses: &[clause!(window "D2")],
        defect: Defect {
            config_write: |at, offset| offset != cap_at(at, cfg_type::PCI) + 16,
            ..SOUND
        },
    },
    hidden(
        "a_window_that_is_not_read",
        &[clause!(window "D3")],
        |at, offset, data| {
            patch(offset, data, cap_at(at, cfg_type::PCI) + 16, &[0; 4]);
        },
    ),
    hidden(
        "a_vector_too_few",
        &[clause!(msix "D2")],
        |at, offset, data| {
            if let Some(msix) = at.caps.msix {
                let table = (msix.vectors - 2).to_le_bytes();
                set_byte(offset, data, msix.at + 2, table[0]);
            }
        },
    ),
    hidden(
        "a_common_configuration_without_queue_state",
        &["QL-1"],
        |at, offset, data| set_byte(offset, data, cap_at(at, cfg_type::COMMON) + 12, 64),
    ),
    moved(
        "a_tracker_between_dwords",
        &["TL-1"],
        (cfg_type::TRACKER, 0x8002),
    ),
    hidden(
        "the_revision_of_a_legacy_device",
        &[clause!(discovery "D5")],
        |_, offset, data| set_byte(offset, data, pci::REVISION, 0),
    ),
    hidden(
        "the_subsystem_of_a_legacy_device",
        &[clause!(discovery "D6")],
        |_, offset, data| patch(offset, data, pci::SUBSYSTEM, &2_u16.to_le_bytes()),
    ),
    hidden(
        "one_vector_for_everything",
        &[clause!(msix "D1")],
        |at, offset, data| {
            if let Some(msix) = at.caps.msix {
                set_byte(offset, data, msix.at + 2, 0);
            }
        },
    ),
    hidden(
        "announces_a_tracker_that_it_has_not",
        &["T-F1"],
        |at, offset, data| {
            if at.caps.tracker().is_none() {
                let kind = cap_at(at, cfg_type::PCI) + 3;
                set_byte(offset, data, kind, cfg_type::TRACKER);
            }
        },
    ),
];
