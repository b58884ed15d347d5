//! Mutants of disks with zones: what the configuration says.

use super::frame::{Access, Defect, Function, Mutant};
use super::requests::{agreed_byte, answers, config_byte};
use super::split::LEARNING;
use driver::bus::BusError;
use spec_tests::clause;
use spec_tests::constants::blk::{self, zone};
use spec_tests::constants::{feature, reg, status};
use spec_tests::target::Medium;

/// A defect of a disk with zones.
pub const ZONED: Defect = Defect {
    medium: Medium::Zoned,
    ..LEARNING
};

/// Changes one byte of the configuration, once features are agreed on.
fn says(
    at: &Function,
    access: Access,
    data: &mut [u8],
    place: usize,
    change: fn(u8) -> u8,
) -> Result<(), BusError> {
    if agreed_byte(at, access, data)? == Some(place) {
        data[0] = change(data[0]);
    }
    Ok(())
}

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "zone_fields_for_a_driver_without_zoned",
        clauses: &[clause!(blk_init "D6")],
        defect: Defect {
            read: |at, access, data| {
                let without = at.recall("features").unwrap_or(0) & feature::BLK_ZONED == 0;
                if without && agreed_byte(at, access, data)? == Some(zone::SECTORS) {
                    data[0] = 128;
                }
                Ok(())
            },
            ..ZONED
        },
    },
    Mutant {
        name: "host_managed_for_everybody",
        clauses: &[clause!(blk_init "D7")],
        defect: Defect {
            wrote: |at, access, value| {
                if at.is(access, reg::DEVICE_STATUS) {
                    at.remember("status", value);
                }
                Ok(())
            },
            read: |at, access, data| {
                let without = at.recall("features").unwrap_or(0) & feature::BLK_ZONED == 0;
                let agreed = at.recall("status") == Some(u64::from(status::AGREED));
                if at.is(access, reg::DEVICE_STATUS) && agreed && without {
                    data[0] = status::AGREED;
                }
                Ok(())
            },
            ..ZONED
        },
    },
    Mutant {
        name: "host_managed_and_says_host_aware",
        clauses: &[clause!(blk_init "D8")],
        defect: Defect {
            read: |at, access, data| says(at, access, data, zone::MODEL, |_| zone::HOST_AWARE),
            ..ZONED
        },
    },
    Mutant {
        name: "zones_of_another_size",
        clauses: &[clause!(blk_init "D9")],
        defect: Defect {
            read: |at, access, data| says(at, access, data, zone::SECTORS, |size| size / 2),
            ..ZONED
        },
    },
    Mutant {
        name: "fewer_open_zones_than_it_says",
        clauses: &[clause!(blk_init "D11")],
        defect: Defect {
            read: |at, access, data| says(at, access, data, zone::MAX_OPEN, |most| most + 1),
            ..ZONED
        },
    },
    Mutant {
        name: "more_active_zones_than_it_says",
        clauses: &[clause!(blk_init "D12")],
        defect: Defect {
            read: |at, access, data| {
                says(at, access, data, zone::MAX_ACTIVE, |most| {
                    most.saturating_sub(1)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "smaller_appends_than_it_says",
        clauses: &[clause!(blk_init "D13")],
        defect: Defect {
            read: |at, access, data| says(at, access, data, zone::MAX_APPEND, |most| most + 8),
            ..ZONED
        },
    },
    Mutant {
        name: "appends_larger_than_any_request",
        clauses: &[clause!(blk_init "D14")],
        defect: Defect {
            read: |at, access, data| says(at, access, data, zone::MAX_APPEND + 3, |_| 0x80),
            ..ZONED
        },
    },
    Mutant {
        name: "takes_less_than_a_granule",
        clauses: &[clause!(blk_init "D16")],
        defect: Defect {
            wrote: |at, access, _| {
                answers(at, access, &[blk::OUT], |_, request| {
                    let odd = request.sectors() % 8 != 0;
                    (odd && request.status == blk::ZONE_UNALIGNED_WP).then_some(blk::OK)
                })
            },
            ..ZONED
        },
    },
    Mutant {
        name: "something_in_the_padding_of_zones",
        clauses: &[clause!(blk_init "D17")],
        defect: Defect {
            read: |at, access, data| {
                if config_byte(at, access, data) == Some(zone::UNUSED2 + 1) {
                    data[0] = 1;
                }
                Ok(())
            },
            ..ZONED
        },
    },
    Mutant {
        name: "erases_half_zones_by_its_account",
        clauses: &[clause!(blk "D37")],
        defect: Defect {
            read: |at, access, data| says(at, access, data, blk::ERASE_ALIGNMENT, |size| size / 2),
            ..ZONED
        },
    },
];
