//! What a function owes to PCI itself, and capabilities that few functions have.

use super::{Case, plain, special};
use crate::clause;
use crate::constants::{cfg_type, pci};
use crate::harness::{Absent, Bench, Judged, RawCap, Stop, arose, demand};
use crate::target::Variant;
use std::collections::BTreeSet;

const BUS: &str = "virtio-over-pci-bus/D1";
const WITHIN: &str = clause!(shared_memory "D1");
const UNIQUE: &str = clause!(shared_memory "D2");
const APART: &str = "basic-facilities-of-a-virtio/D1";
const NOT_VIRTIO: &str = clause!(vendor_data "D1");
const SIZE: &str = clause!(vendor_data "D2");
const NO_EFFECT: &str = clause!(vendor_data "D3");

pub(super) const CASES: &[Case] = &[
    plain("it_is_a_pci_function", &[BUS], function),
    special(
        "shared_memory_lies_within_its_bar",
        &[WITHIN],
        Variant::Extras,
        within,
    ),
    special(
        "shared_memory_ids_are_unique",
        &[UNIQUE],
        Variant::Extras,
        unique,
    ),
    special(
        "shared_memory_is_apart_from_what_controls_the_device",
        &[APART],
        Variant::Extras,
        apart,
    ),
    special(
        "vendor_data_is_not_of_virtio",
        &[NOT_VIRTIO],
        Variant::Extras,
        not_virtio,
    ),
    special(
        "vendor_data_is_in_whole_dwords",
        &[SIZE],
        Variant::Extras,
        whole_dwords,
    ),
    special(
        "vendor_data_is_read_without_effect",
        &[NO_EFFECT],
        Variant::Extras,
        no_effect,
    ),
];

/// What every function of PCI has, as far as virtio stands on it.
fn function(bench: &Bench) -> Judged {
    let header = bench.config_word(pci::HEADER_TYPE)? & 0x7f;
    demand(BUS, header == 0, "header type 0", || header.to_string())?;
    let status = bench.config_word(pci::STATUS)?;
    let listed = status & pci::STATUS_CAPABILITIES != 0;
    demand(
        BUS,
        listed,
        "the capabilities bit in the status register",
        || format!("status {status:#x}"),
    )?;
    demand(
        BUS,
        bench.caps.well_formed,
        "a capability list that ends",
        || "it leaves its space or goes in circles".to_owned(),
    )?;
    arose(!bench.caps.virtio.is_empty(), || {
        "no capability of virtio".to_owned()
    })?;
    for cap in &bench.caps.virtio {
        demand(
            BUS,
            cap.at % 4 == 0,
            "capabilities at multiples of 4",
            || format!("one at {:#x}", cap.at),
        )?;
    }
    let ids = [bench.config_word(0)?, bench.config_word(0)?];
    demand(
        BUS,
        ids[0] == ids[1] && ids[0] != 0xffff,
        "a vendor id that stays",
        || format!("{ids:x?}"),
    )?;
    Ok(String::new())
}

/// Every capability of a type.
fn of_type(bench: &Bench, kind: u8) -> Result<Vec<&RawCap>, Stop> {
    let all: Vec<_> = bench
        .caps
        .virtio
        .iter()
        .filter(|cap| cap.cfg_type == kind)
        .collect();
    if all.is_empty() {
        return Err(Stop::NotApplicable(Absent::Capability(kind)));
    }
    Ok(all)
}

/// Bytes of a BAR, found as PCI has it: all ones are written and the register is put back.
fn bar_size(bench: &Bench, bar: u8) -> Result<u64, Stop> {
    let at = pci::BARS + 4 * u16::from(bar);
    let low = bench.config_dword(at)?;
    let wide = low & 0b111 == 0b100;
    let size = |at: u16| -> Result<u32, Stop> {
        let old = bench.config_dword(at)?;
        bench.bus.config_write(at, &u32::MAX.to_le_bytes())?;
        let mask = bench.config_dword(at)?;
        bench.bus.config_write(at, &old.to_le_bytes())?;
        Ok(mask)
    };
    let high = if wide { size(at + 4)? } else { u32::MAX };
    let mask = u64::from(high) << 32 | u64::from(size(at)? & !0xf);
    Ok((!mask).wrapping_add(1))
}

/// Where a region of shared memory begins and how long it is, which 32 bits do not hold.
fn shared(bench: &Bench, cap: &RawCap) -> Result<(u64, u64), Stop> {
    Ok((
        cap.region.offset | u64::from(bench.config_dword(cap.at + 16)?) << 32,
        cap.region.length | u64::from(bench.config_dword(cap.at + 20)?) << 32,
    ))
}

fn within(bench: &Bench) -> Judged {
    for cap in of_type(bench, cfg_type::SHARED_MEMORY)? {
        let (offset, length) = shared(bench, cap)?;
        let size = bar_size(bench, cap.region.bar)?;
        let end = offset.checked_add(length);
        demand(
            WITHIN,
            end.is_some_and(|end| end <= size),
            "the region within its BAR",
            || {
                format!(
                    "{offset:#x}+{length:#x} in BAR {} of {size:#x} bytes",
                    cap.region.bar
                )
            },
        )?;
    }
    Ok(String::new())
}

/// No register and no doorbell, and no table of MSI-X, is to be reached through shared memory.
fn apart(bench: &Bench) -> Judged {
    let mut controls: Vec<_> = bench
        .caps
        .virtio
        .iter()
        .filter(|cap| {
            !matches!(
                cap.cfg_type,
                cfg_type::PCI | cfg_type::SHARED_MEMORY | cfg_type::VENDOR
            )
        })
        .map(|cap| (cap.region.bar, cap.region.offset, cap.region.length))
        .collect();
    if let Some(msix) = bench.caps.msix {
        let at = bench.config_dword(msix.at + 4)?;
        let bar = u8::try_from(at & 7).unwrap_or(0);
        controls.push((bar, u64::from(at & !7), 16 * u64::from(msix.vectors)));
    }
    for cap in of_type(bench, cfg_type::SHARED_MEMORY)? {
        let (offset, length) = shared(bench, cap)?;
        let met = controls.iter().find(|(bar, at, len)| {
            *bar == cap.region.bar && *at < offset.saturating_add(length) && offset < at + len
        });
        demand(
            APART,
            met.is_none(),
            "shared memory that holds nothing that controls the device",
            || {
                let bar = cap.region.bar;
                format!("{offset:#x}+{length:#x} in BAR {bar} meets (BAR, offset, length) {met:x?}")
            },
        )?;
    }
    Ok(String::new())
}

fn unique(bench: &Bench) -> Judged {
    let mut ids = BTreeSet::new();
    for cap in of_type(bench, cfg_type::SHARED_MEMORY)? {
        let [_, id] = bench.config_word(cap.at + 4)?.to_le_bytes();
        demand(UNIQUE, ids.insert(id), "each id once", || {
            format!("id {id} twice")
        })?;
    }
    Ok(format!("ids {ids:?}"))
}

fn not_virtio(bench: &Bench) -> Judged {
    for cap in of_type(bench, cfg_type::VENDOR)? {
        let vendor = bench.config_word(cap.at + 4)?;
        demand(
            NOT_VIRTIO,
            vendor != pci::VENDOR,
            "another vendor than virtio's",
            || format!("{vendor:#x}"),
        )?;
    }
    Ok(String::new())
}

fn whole_dwords(bench: &Bench) -> Judged {
    for cap in of_type(bench, cfg_type::VENDOR)? {
        demand(
            SIZE,
            cap.len % 4 == 0,
            "a length that is a multiple of 4",
            || cap.len.to_string(),
        )?;
    }
    Ok(String::new())
}

/// Reading it changes neither it nor anything else of configuration space.
fn no_effect(bench: &Bench) -> Judged {
    let caps = of_type(bench, cfg_type::VENDOR)?;
    let all = || {
        (0..pci::CAPABILITIES_END / 4)
            .map(|index| bench.config_dword(4 * index))
            .collect::<Result<Vec<_>, _>>()
    };
    let before = all()?;
    for cap in &caps {
        for at in 0..u16::from(cap.len) / 4 {
            bench.config_dword(cap.at + 4 * at)?;
        }
    }
    let after = all()?;
    demand(
        NO_EFFECT,
        before == after,
        "configuration space as it was",
        || "it changed by being read".to_owned(),
    )?;
    Ok(String::new())
}
