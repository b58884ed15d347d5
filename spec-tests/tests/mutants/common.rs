//! Mutants of the common configuration, of reset and of features.

use super::frame::{Access, Defect, Function, Mutant, SOUND};
use driver::bus::BusError;
use spec_tests::clause;
use spec_tests::constants::{cfg_type, feature, pci, reg, status};
use spec_tests::harness::RawCap;

/// Presents other feature bits 32 to 63 than the sound function.
fn high_features(
    function: &Function,
    access: Access,
    data: &mut [u8],
    change: fn(u32) -> u32,
) -> Result<(), BusError> {
    let selected =
        function.is(access, reg::DEVICE_FEATURE) && function.get(reg::DEVICE_FEATURE_SELECT)? == 1;
    if selected && let Ok(bits) = <[u8; 4]>::try_from(&*data) {
        data.copy_from_slice(&change(u32::from_le_bytes(bits)).to_le_bytes());
    }
    Ok(())
}

/// The last vector that the sound function has.
fn last_vector(function: &Function) -> u64 {
    let vectors = function.caps.msix.map_or(0, |msix| msix.vectors);
    u64::from(vectors).saturating_sub(1)
}

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "loses_reset",
        clauses: &["RS-1", "PC-5"],
        defect: Defect {
            write: |at, access, value| {
                Ok(!(at.is(access, reg::DEVICE_STATUS) && value == 0 && at.suspended()?))
            },
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_queue_enable",
        clauses: &[clause!(common "D8")],
        defect: Defect {
            resetting: |at| {
                at.remember("enabled", at.get(reg::QUEUE_ENABLE)?);
                Ok(())
            },
            read: |at, access, data| {
                if at.is(access, reg::QUEUE_ENABLE) && at.get(reg::DEVICE_STATUS)? == 0 {
                    data[0] |= u8::from(at.recall("enabled") == Some(1));
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_vectors",
        clauses: &[clause!(msix "D7")],
        defect: Defect {
            write: |at, access, value| {
                if at.is(access, reg::CONFIG_MSIX_VECTOR) {
                    at.remember("vector", value);
                }
                Ok(true)
            },
            read: |at, access, data| {
                if at.is(access, reg::CONFIG_MSIX_VECTOR)
                    && at.recall("vector") == Some(0)
                    && data == [0xff, 0xff]
                {
                    data.fill(0);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "accepts_everything",
        clauses: &[clause!(features "D2")],
        defect: Defect {
            write: |at, access, value| {
                if at.is(access, reg::DEVICE_STATUS) {
                    at.remember("status", value);
                }
                Ok(true)
            },
            read: |at, access, data| {
                let agreed = at.recall("status") == Some(u64::from(status::AGREED));
                if at.is(access, reg::DEVICE_STATUS) && agreed {
                    data[0] = status::AGREED;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "offers_reserved",
        clauses: &[clause!(features "D3")],
        defect: Defect {
            read: |at, access, data| {
                high_features(at, access, data, |bits| {
                    bits | (feature::RESERVED >> 32) as u32
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "no_version_1",
        clauses: &[clause!(reserved "D1")],
        defect: Defect {
            read: |at, access, data| high_features(at, access, data, |bits| bits & !1),
            ..SOUND
        },
    },
    Mutant {
        name: "couples_halves",
        clauses: &["PC-1", "TL-4"],
        defect: Defect {
            wrote: |at, access, _| {
                for [low, high] in [reg::QUEUE_DESC, reg::QUEUE_DRIVER, reg::TRACKER_ADDR] {
                    if at.is(access, low) {
                        at.put(high, 0)?;
                    }
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "frozen_generation",
        clauses: &["PC-4"],
        defect: Defect {
            read: |at, access, data| {
                if at.is(access, reg::CONFIG_GENERATION) {
                    data[0] = 0;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "cache_mode_without_flush",
        clauses: &[clause!(features "D1"), clause!(blk_init "D1")],
        defect: Defect {
            read: |at, access, data| {
                if at.is(access, reg::DEVICE_FEATURE) && at.get(reg::DEVICE_FEATURE_SELECT)? == 0 {
                    data[1] &= !2;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "phantom_queues",
        clauses: &[clause!(common "D14")],
        defect: Defect {
            read: |at, access, data| {
                if at.is(access, reg::QUEUE_SIZE) && data == [0, 0] {
                    data[0] = 64;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "doorbells_six_apart",
        clauses: &[clause!(doorbell "D3"), clause!(doorbell "D6")],
        defect: Defect {
            config_read: |at, offset, data| {
                // Whoever has administration queues needs more doorbells than two.
                let two = |cap: &&RawCap| cap.region.length <= 8;
                let cap = at.caps.first(cfg_type::NOTIFY).filter(two);
                if cap.is_some_and(|cap| offset == cap.at + 16) && data.len() == 4 {
                    data.copy_from_slice(&6_u32.to_le_bytes());
                }
            },
            // It hears them where they are said to be.
            write: |at, access, value| match at.doorbell(access, value) {
                Some((distance, own)) if value != 0 && distance == 6 * value => {
                    at.pass(own, &value.to_le_bytes()[..2])?;
                    Ok(false)
                }
                _ => Ok(true),
            },
            ..SOUND
        },
    },
    Mutant {
        name: "odd_device_configuration",
        clauses: &[clause!(device_config "D1")],
        defect: Defect {
            config_read: |at, offset, data| {
                let cap = at.caps.first(cfg_type::DEVICE).map(|cap| cap.at);
                if cap.is_some_and(|cap| offset == cap + 8) {
                    data[0] |= 1;
                }
            },
            ..SOUND
        },
    },
    Mutant {
        name: "low_features_again_beyond_bit_63",
        clauses: &[clause!(common "D3")],
        defect: Defect {
            read: |at, access, data| {
                if at.is(access, reg::DEVICE_FEATURE) && at.get(reg::DEVICE_FEATURE_SELECT)? == 3 {
                    data[3] = 0x10;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "forgets_the_drivers_low_features",
        clauses: &[clause!(common "D4")],
        defect: Defect {
            read: |at, access, data| {
                if at.is(access, reg::DRIVER_FEATURE) && at.get(reg::DRIVER_FEATURE_SELECT)? == 0 {
                    data.fill(0);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "a_size_of_three_quarters",
        clauses: &[clause!(common "D15")],
        defect: Defect {
            read: |at, access, data| {
                // Of the second queue only, until the driver has chosen another.
                let large = data == 256_u16.to_le_bytes() && at.get(reg::QUEUE_SELECT)? == 1;
                if at.is(access, reg::QUEUE_SIZE) && large {
                    data.copy_from_slice(&192_u16.to_le_bytes());
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "no_queue_for_the_last_vector",
        clauses: &[clause!(msix "D4")],
        defect: Defect {
            wrote: |at, access, value| {
                if at.is(access, reg::QUEUE_MSIX_VECTOR) && value == last_vector(at) {
                    at.put(reg::QUEUE_MSIX_VECTOR, pci::NO_VECTOR)?;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "never_unmaps",
        clauses: &[clause!(msix "D5")],
        defect: Defect {
            write: |at, access, value| {
                let unmaps =
                    at.is(access, reg::CONFIG_MSIX_VECTOR) || at.is(access, reg::QUEUE_MSIX_VECTOR);
                Ok(!(unmaps && value == pci::NO_VECTOR))
            },
            ..SOUND
        },
    },
    Mutant {
        name: "shows_another_vector",
        clauses: &[clause!(msix "D6")],
        defect: Defect {
            read: |at, access, data| {
                let last = last_vector(at).to_le_bytes();
                if at.is(access, reg::CONFIG_MSIX_VECTOR) && data == &last[..data.len()] {
                    data[0] -= 1;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "shows_the_vector_that_it_refused",
        clauses: &[clause!(msix "D9")],
        defect: Defect {
            write: |at, access, value| {
                if at.is(access, reg::CONFIG_MSIX_VECTOR) {
                    at.remember("refused", value);
                }
                Ok(true)
            },
            read: |at, access, data| {
                if at.is(access, reg::CONFIG_MSIX_VECTOR)
                    && data == [0xff; 2]
                    && let Some(vector) = at.recall("refused")
                {
                    data.copy_from_slice(&vector.to_le_bytes()[..data.len()]);
                }
                Ok(())
            },
            was_reset: |at| {
                at.remember("refused", pci::NO_VECTOR);
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "no_configuration_before_features_ok",
        clauses: &[clause!(config "D1")],
        defect: Defect {
            read: |at, access, data| {
                let early = at.get(reg::DEVICE_STATUS)? == u64::from(status::NEGOTIATING);
                if at.within(access, cfg_type::DEVICE) && early {
                    data.fill(0);
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "no_configuration_for_the_last_vector",
        clauses: &[clause!(msix "D8")],
        defect: Defect {
            wrote: |at, access, value| {
                if at.is(access, reg::CONFIG_MSIX_VECTOR) && value == last_vector(at) {
                    at.put(reg::CONFIG_MSIX_VECTOR, pci::NO_VECTOR)?;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "offers_sr_iov_without_its_capability",
        clauses: &[clause!(reserved "D9")],
        defect: Defect {
            read: |at, access, data| {
                high_features(at, access, data, |bits| {
                    bits | (feature::SR_IOV >> 32) as u32
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "offers_a_suspend_that_it_has_not",
        clauses: &["SUS-1"],
        defect: Defect {
            read: |at, access, data| {
                high_features(at, access, data, |bits| {
                    bits | (feature::SUSPEND >> 32) as u32
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_a_rich_set_of_features_once_only",
        clauses: &[clause!(features "D4")],
        defect: Defect {
            write: |at, access, value| {
                if at.is(access, reg::DRIVER_FEATURE) && at.get(reg::DRIVER_FEATURE_SELECT)? == 1 {
                    at.remember("high", value);
                }
                if at.is(access, reg::DEVICE_STATUS) {
                    let rich = (feature::RING_PACKED | feature::IN_ORDER | feature::SUSPEND) >> 32;
                    let high = at.recall("high").unwrap_or(0);
                    let agrees = value == u64::from(status::AGREED);
                    let again = agrees && high & rich == rich && at.recall("ran") == Some(high);
                    at.remember("refused", u64::from(again));
                    if value == u64::from(status::RUNNING) {
                        at.remember("ran", high);
                    }
                }
                Ok(true)
            },
            read: |at, access, data| {
                if at.is(access, reg::DEVICE_STATUS) && at.recall("refused") == Some(1) {
                    data[0] &= !status::FEATURES_OK;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "clears_a_low_half_with_its_high_one",
        clauses: &["PC-1"],
        defect: Defect {
            wrote: |at, access, value| {
                for [low, high] in [reg::QUEUE_DESC, reg::QUEUE_DRIVER, reg::QUEUE_DEVICE] {
                    if at.is(access, high) && value != 0 {
                        at.put(low, 0)?;
                    }
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "is_acknowledged_after_a_function_level_reset",
        clauses: &["RS-1"],
        defect: Defect {
            write: |at, access, value| {
                if at.is(access, reg::DEVICE_STATUS) {
                    at.remember("by status", u64::from(value == 0));
                    at.remember("acknowledged", 0);
                }
                Ok(true)
            },
            was_reset: |at| {
                let by_status = at.recall("by status") == Some(1);
                at.remember("acknowledged", u64::from(!by_status));
                at.remember("by status", 0);
                Ok(())
            },
            read: |at, access, data| {
                if at.is(access, reg::DEVICE_STATUS) && at.recall("acknowledged") == Some(1) {
                    data[0] |= status::ACKNOWLEDGE;
                }
                Ok(())
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_no_reset_when_it_needs_one",
        clauses: &["PC-5"],
        defect: Defect {
            write: |at, access, value| {
                let resets = at.is(access, reg::DEVICE_STATUS) && value == 0;
                let needy = at.get(reg::DEVICE_STATUS)? & u64::from(status::NEEDS_RESET) != 0;
                Ok(!(resets && needy))
            },
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_its_errors_to_itself",
        clauses: &["ST-6"],
        defect: Defect {
            write: |at, access, value| {
                if at.is(access, reg::DEVICE_STATUS) {
                    at.remember("status", value);
                }
                Ok(true)
            },
            read: |at, access, data| {
                // An error of its own, rather than a suspend that fails.
                let running = at.recall("status") == Some(u64::from(status::RUNNING));
                if at.is(access, reg::DEVICE_STATUS) && running {
                    data[0] &= !status::NEEDS_RESET;
                }
                Ok(())
            },
            ..SOUND
        },
    },
];
