//! PCI identity, virtio capabilities, the window in configuration space.

use super::{Case, plain};
use crate::clause;
use crate::constants::{Field, Place, cfg_type, feature, pci, reg, status};
use crate::harness::{Absent, Bench, Caps, Judged, RawCap, Region, Stop, arose, demand};

macro_rules! layout {
    ($tail:literal) => {
        concat!("virtio-over-pci-bus-pci-device-layout-", $tail)
    };
}

const COVERS: &str = clause!(caps "D1");
const VENDOR: &str = "virtio-over-pci-bus-pci-device-discovery/D1";
const DEVICE: &str = "virtio-over-pci-bus-pci-device-discovery/D2";
const RANGE: &str = "virtio-over-pci-bus-pci-device-discovery/D4";
const REVISION: &str = "virtio-over-pci-bus-pci-device-discovery/D5";
const SUBSYSTEM: &str = "virtio-over-pci-bus-pci-device-discovery/D6";
const COMMON_ALIGNED: &str = layout!("common-configuration-structure-layout/D1");
const COMMON_PRESENT: &str = layout!("common-configuration-structure-layout/D2");
const NOTIFY_PRESENT: &str = layout!("notification-capability/D1");
const NOTIFY_ALIGNED: &str = layout!("notification-capability/D2");
const NOTIFY_MULTIPLIER: &str = layout!("notification-capability/D3");
const NOTIFY_LENGTH: &str = layout!("notification-capability/D4");
const NOTIFY_FORMULA: &str = layout!("notification-capability/D5");
const DATA_MULTIPLIER: &str = layout!("notification-capability/D6");
const DATA_ALIGNED: &str = layout!("notification-capability/D7");
const DATA_LENGTH: &str = layout!("notification-capability/D8");
const DATA_FORMULA: &str = layout!("notification-capability/D9");
const ISR_PRESENT: &str = layout!("isr-status-capability/D1");
const CONFIG_ALIGNED: &str = layout!("device-specific-configuration/D1");
const WINDOW_PRESENT: &str = layout!("pci-configuration-access-capability/D1");
const WINDOW_WRITES: &str = layout!("pci-configuration-access-capability/D2");
const WINDOW_READS: &str = layout!("pci-configuration-access-capability/D3");
const MSIX_COUNT: &str = "virtio-over-pci-bus-pci-specific-initialization-and-device-operation-device-initialization-msi-x-vector-configuration/D1";

pub(super) const CASES: &[Case] = &[
    plain("vendor_id", &[VENDOR], vendor),
    plain("device_id", &[DEVICE], device),
    plain("device_id_of_a_modern_device", &[RANGE], device_range),
    plain("revision_id", &[REVISION], revision),
    plain("subsystem_id", &[SUBSYSTEM], subsystem),
    plain("capabilities_cover_their_structures", &[COVERS], lengths),
    plain("common_config", &[COMMON_PRESENT, COMMON_ALIGNED], common),
    plain("notifications", &[NOTIFY_PRESENT, NOTIFY_ALIGNED], notify),
    plain(
        "doorbells",
        &[NOTIFY_MULTIPLIER, NOTIFY_LENGTH, NOTIFY_FORMULA],
        doorbells,
    ),
    plain(
        "doorbells_with_data",
        &[DATA_MULTIPLIER, DATA_ALIGNED, DATA_LENGTH, DATA_FORMULA],
        doorbells_with_data,
    ),
    plain("isr_status", &[ISR_PRESENT], isr),
    plain("device_config", &[CONFIG_ALIGNED], device_config),
    plain("window_is_present", &[WINDOW_PRESENT], window_present),
    plain("window_reads", &[WINDOW_READS], window_reads),
    plain("window_writes", &[WINDOW_WRITES], window_writes),
    plain("msix_vectors", &[MSIX_COUNT], msix),
];

fn vendor(bench: &Bench) -> Judged {
    let id = bench.caps.vendor;
    demand(VENDOR, id == pci::VENDOR, "vendor id 0x1af4", || {
        format!("{id:#06x}")
    })?;
    Ok(String::new())
}

/// What the function announces, to begin with and to a driver that is at work.
fn announced(bench: &Bench) -> Result<[Caps; 2], Stop> {
    bench.to_features_ok(0)?;
    Ok([bench.caps.clone(), Caps::walk(bench.bus.as_ref())?])
}

fn device(bench: &Bench) -> Judged {
    for caps in announced(bench)? {
        let id = caps.device;
        let modern = (pci::DEVICE_BASE..=pci::DEVICE_LAST).contains(&id);
        let transitional = (0x1000..0x1040).contains(&id);
        demand(
            DEVICE,
            modern || transitional,
            "0x1040 + type, or a transitional id",
            || format!("{id:#06x}"),
        )?;
    }
    Ok(format!("{:#06x}", bench.caps.device))
}

fn device_range(bench: &Bench) -> Judged {
    modern(bench)?;
    let id = bench.caps.device;
    demand(RANGE, id <= pci::DEVICE_LAST, "0x1040 to 0x107f", || {
        format!("{id:#06x}")
    })?;
    Ok(String::new())
}

fn modern(bench: &Bench) -> Result<(), Stop> {
    arose(bench.caps.device >= pci::DEVICE_BASE, || {
        "a transitional device".to_owned()
    })
}

fn revision(bench: &Bench) -> Judged {
    modern(bench)?;
    let [revision, _] = bench.config_word(pci::REVISION)?.to_le_bytes();
    demand(REVISION, revision >= 1, "revision 1 or higher", || {
        revision.to_string()
    })?;
    Ok(String::new())
}

fn subsystem(bench: &Bench) -> Judged {
    modern(bench)?;
    let id = bench.config_word(pci::SUBSYSTEM)?;
    demand(SUBSYSTEM, id >= 0x40, "subsystem id 0x40 or higher", || {
        format!("{id:#x}")
    })?;
    Ok(String::new())
}

fn lengths(bench: &Bench) -> Judged {
    demand(COVERS, bench.caps.well_formed, "a list that ends", || {
        format!("{:x?}", bench.caps.virtio)
    })?;
    arose(!bench.caps.virtio.is_empty(), || {
        "no virtio capability".to_owned()
    })?;
    for cap in &bench.caps.virtio {
        let least = match cap.cfg_type {
            cfg_type::NOTIFY | cfg_type::PCI => 20,
            cfg_type::SHARED_MEMORY => 24,
            9 => 6,
            _ => 16,
        };
        let end = cap.at + u16::from(cap.len);
        let fits = cap.len >= least && end <= pci::CAPABILITIES_END;
        demand(
            COVERS,
            fits,
            "cap_len covers the structure and its extra data",
            || {
                format!(
                    "cfg_type {} at {:#x} has cap_len {}",
                    cap.cfg_type, cap.at, cap.len
                )
            },
        )?;
    }
    // What a capability points at can be read from its first byte to its last.
    for cap in bench
        .caps
        .virtio
        .iter()
        .filter(|cap| cap.cfg_type != cfg_type::PCI)
    {
        let Region {
            bar,
            offset,
            length,
        } = cap.region;
        if bar < 6 && length > 0 && cap.cfg_type != cfg_type::ISR && cap.cfg_type != 9 {
            bench.bus.bar_read(bar, offset, &mut [0])?;
            bench.bus.bar_read(bar, offset + length - 1, &mut [0])?;
        }
    }
    Ok(format!("{} capabilities", bench.caps.virtio.len()))
}

fn common(bench: &Bench) -> Judged {
    for caps in announced(bench)? {
        let region = caps.region(cfg_type::COMMON, COMMON_PRESENT)?;
        let aligned = region.offset.is_multiple_of(4);
        demand(COMMON_ALIGNED, aligned, "a multiple of 4", || {
            format!("{region:x?}")
        })?;
    }
    Ok(String::new())
}

fn notify(bench: &Bench) -> Judged {
    for caps in announced(bench)? {
        let region = caps.region(cfg_type::NOTIFY, NOTIFY_PRESENT)?;
        let aligned = region.offset.is_multiple_of(2);
        demand(NOTIFY_ALIGNED, aligned, "a multiple of 2", || {
            format!("{region:x?}")
        })?;
    }
    Ok(String::new())
}

/// Checks that every queue's doorbell of `width` bytes lies within the capability.
fn every_doorbell(
    bench: &Bench,
    cap: &RawCap,
    width: u64,
    at_least: &'static str,
    formula: &'static str,
) -> Judged {
    let length = cap.region.length;
    let queues = bench.get(reg::NUM_QUEUES)?;
    arose(queues > 0, || "there are no queues".to_owned())?;
    demand(
        at_least,
        length >= width,
        "room for one notification",
        || length.to_string(),
    )?;
    for queue in 0..queues {
        bench.put(reg::QUEUE_SELECT, queue)?;
        let end = bench.get(reg::QUEUE_NOTIFY_OFF)? * u64::from(cap.extra) + width;
        demand(
            [formula, at_least],
            length >= end,
            "room for every queue's notification",
            || format!("queue {queue} needs {end} bytes, there are {length}"),
        )?;
    }
    Ok(format!("{queues} queues"))
}

fn doorbells(bench: &Bench) -> Judged {
    bench.to_features_ok(0)?;
    let cap = bench.cap(cfg_type::NOTIFY, NOTIFY_PRESENT)?;
    let multiplier = cap.extra;
    // "An even power of 2": a power of two other than 1.
    let even = multiplier == 0 || multiplier.is_power_of_two() && multiplier != 1;
    demand(NOTIFY_MULTIPLIER, even, "0 or an even power of 2", || {
        multiplier.to_string()
    })?;
    every_doorbell(bench, cap, 2, NOTIFY_LENGTH, NOTIFY_FORMULA)
}

fn doorbells_with_data(bench: &Bench) -> Judged {
    bench.to_features_ok(feature::NOTIFICATION_DATA)?;
    let cap = bench.cap(cfg_type::NOTIFY, NOTIFY_PRESENT)?;
    let multiplier = cap.extra;
    let fours = multiplier == 0 || multiplier.is_power_of_two() && multiplier.is_multiple_of(4);
    demand(
        DATA_MULTIPLIER,
        fours,
        "0, or a power of 2 and a multiple of 4",
        || multiplier.to_string(),
    )?;
    let aligned = cap.region.offset.is_multiple_of(4);
    demand(DATA_ALIGNED, aligned, "a multiple of 4", || {
        format!("{:x?}", cap.region)
    })?;
    every_doorbell(bench, cap, 4, DATA_LENGTH, DATA_FORMULA)
}

fn isr(bench: &Bench) -> Judged {
    let cap = bench.cap(cfg_type::ISR, ISR_PRESENT)?;
    demand(ISR_PRESENT, cap.region.length >= 1, "one byte", || {
        format!("{:x?}", cap.region)
    })?;
    Ok(String::new())
}

fn device_config(bench: &Bench) -> Judged {
    let region = bench.device_region()?;
    let aligned = region.offset.is_multiple_of(4);
    demand(CONFIG_ALIGNED, aligned, "a multiple of 4", || {
        format!("{region:x?}")
    })?;
    Ok(String::new())
}

fn window_present(bench: &Bench) -> Judged {
    let cap = bench.cap(cfg_type::PCI, WINDOW_PRESENT)?;
    demand(WINDOW_PRESENT, cap.len >= 20, "20 bytes", || {
        cap.len.to_string()
    })?;
    Ok(String::new())
}

/// Points the window at a register of the common configuration; returns where its data is.
fn aim(bench: &Bench, field: Field) -> Result<u16, Stop> {
    arose(field.place == Place::Common, || {
        "not in the common configuration".to_owned()
    })?;
    let common = bench.caps.region(cfg_type::COMMON, COMMON_PRESENT)?;
    let cap = bench.cap(cfg_type::PCI, WINDOW_PRESENT)?;
    let offset = u32::try_from(common.offset + field.offset).unwrap_or(0);
    let length = u32::try_from(field.width).unwrap_or(0);
    bench.step(format!("point the window at {}", field.name));
    bench.bus.config_write(cap.at + 4, &[common.bar])?;
    bench.bus.config_write(cap.at + 8, &offset.to_le_bytes())?;
    bench.bus.config_write(cap.at + 12, &length.to_le_bytes())?;
    Ok(cap.at + 16)
}

fn window_reads(bench: &Bench) -> Judged {
    bench.to_features_ok(0)?;
    bench.put(reg::DEVICE_FEATURE_SELECT, 1)?;
    for field in [reg::DEVICE_STATUS, reg::NUM_QUEUES, reg::DEVICE_FEATURE] {
        let at = aim(bench, field)?;
        let mut data = [0; 8];
        bench.bus.config_read(at, &mut data[..field.width])?;
        let through = u64::from_le_bytes(data);
        let direct = bench.get(field)?;
        arose(direct != 0, || format!("{} reads 0", field.name))?;
        demand(
            WINDOW_READS,
            through == direct,
            "what a read of the BAR gives",
            || {
                format!(
                    "{}: {through:#x} through the window, {direct:#x} from the BAR",
                    field.name
                )
            },
        )?;
    }
    Ok(String::new())
}

fn window_writes(bench: &Bench) -> Judged {
    bench.reset()?;
    let writes = [
        (reg::DEVICE_STATUS, u64::from(status::ACKNOWLEDGE)),
        (reg::QUEUE_SELECT, 1),
        (reg::DRIVER_FEATURE_SELECT, 1),
    ];
    for (field, value) in writes {
        let before = bench.get(field)?;
        arose(before != value, || {
            format!("{} is {value} already", field.name)
        })?;
        let at = aim(bench, field)?;
        bench.step(format!(
            "write {value:#x} to {} through the window",
            field.name
        ));
        bench
            .bus
            .config_write(at, &value.to_le_bytes()[..field.width])?;
        let after = bench.get(field)?;
        demand(
            WINDOW_WRITES,
            after == value,
            "the write reaches the BAR",
            || format!("{} reads {after:#x}", field.name),
        )?;
    }
    Ok(String::new())
}

fn msix(bench: &Bench) -> Judged {
    let msix = bench.caps.msix.ok_or(Stop::NotApplicable(Absent::Msix))?;
    let range = 2..=pci::VECTORS_MAX;
    demand(
        MSIX_COUNT,
        range.contains(&msix.vectors),
        "2 to 0x800 vectors",
        || msix.vectors.to_string(),
    )?;
    Ok(format!("{} vectors", msix.vectors))
}
