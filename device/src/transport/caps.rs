//! The capability list in configuration space (VIRTIO 1.4, "Virtio Structure PCI Capabilities").

use super::registers::{
    BAR0_SIZE, BAR1_SIZE, COMMON, DEVICE, ISR, NOTIFY, NOTIFY_MULTIPLIER, PBA_OFFSET, TRACKER,
};
use crate::pci::ConfigSpace;
use spec::pci::{VirtioPciCap, VirtioPciCfgCap, VirtioPciNotifyCap, cfg_type};
use std::mem::size_of;
use zerocopy::IntoBytes;

/// Whether the function has the PASID extended capability (PCI Express), and how it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pasid {
    /// No such capability: the tracker's `pasid` is ignored (DT-5).
    #[default]
    Absent,
    /// Present and disabled after power-on: ignored until software enables it.
    Disabled,
    /// Present and enabled after power-on.
    Enabled,
}

/// What the capabilities announce.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announce {
    pub(crate) queues: u16,
    /// Bytes of device configuration; without any there is no such capability.
    pub(crate) config_len: usize,
    pub(crate) tracker: bool,
    pub(crate) pasid: Pasid,
    /// Virtual functions; without, there is no SR-IOV capability.
    pub(crate) vfs: Option<Vfs>,
}

/// What the SR-IOV extended capability says of virtual functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vfs {
    /// How many there can be.
    pub(crate) total: u16,
    /// Their PCI device id.
    pub(crate) device_id: u16,
}

/// MSI-X capability.
pub(crate) const MSIX: usize = 0x40;
/// PCI Express capability, 60 bytes.
pub(crate) const EXPRESS: usize = 0x50;
const COMMON_CAP: usize = 0x8c;
const NOTIFY_CAP: usize = 0x9c;
const ISR_CAP: usize = 0xb0;
/// The window onto the BARs, 20 bytes.
pub(crate) const PCI_CFG: usize = 0xc0;
const DEVICE_CAP: usize = 0xd4;
const TRACKER_CAP: usize = 0xe4;
/// PASID extended capability. The list of extended capabilities begins here: with an empty one
/// where PASID is absent and something follows.
pub(crate) const PASID: usize = 0x100;
/// SR-IOV extended capability, 64 bytes.
pub(crate) const SR_IOV: usize = 0x140;
/// VF Enable is bit 0 of SR-IOV Control.
pub(crate) const VF_CONTROL: usize = SR_IOV + 8;
/// NumVFs.
pub(crate) const NUM_VFS: usize = SR_IOV + 0x10;

const _: () = assert!(EXPRESS + 0x3c <= COMMON_CAP);
const _: () = assert!(COMMON_CAP + size_of::<VirtioPciCap>() == NOTIFY_CAP);
const _: () = assert!(NOTIFY_CAP + size_of::<VirtioPciNotifyCap>() == ISR_CAP);
const _: () = assert!(ISR_CAP + size_of::<VirtioPciCap>() == PCI_CFG);
const _: () = assert!(PCI_CFG + size_of::<VirtioPciCfgCap>() == DEVICE_CAP);
const _: () = assert!(DEVICE_CAP + size_of::<VirtioPciCap>() == TRACKER_CAP);
const _: () = assert!(TRACKER_CAP + size_of::<VirtioPciCap>() <= PASID);
const _: () = assert!(PASID + 8 <= SR_IOV);

/// Capability ids (PCI).
const VENDOR_SPECIFIC: u8 = 0x09;
const EXPRESS_ID: u8 = 0x10;
const MSIX_ID: u8 = 0x11;
/// Extended capability id (PCI Express).
const PASID_ID: u32 = 0x1b;
const SR_IOV_ID: u32 = 0x10;

/// Writes the capabilities into `space`, best first (PC-12), and marks what software may write.
pub(crate) fn announce(space: &mut ConfigSpace, what: Announce) {
    let device_next = if what.tracker { TRACKER_CAP } else { 0 };
    let last = if what.config_len > 0 {
        DEVICE_CAP
    } else {
        device_next
    };

    msix(space, what.queues, EXPRESS);
    express(space, COMMON_CAP);
    let common = structure(cfg_type::COMMON, COMMON.offset, COMMON.length, NOTIFY_CAP);
    space.put(COMMON_CAP, common.as_bytes());
    let doorbells = usize::from(what.queues) * 4;
    let mut cap = structure(cfg_type::NOTIFY, NOTIFY.offset, doorbells, ISR_CAP);
    cap.cap_len = length_byte::<VirtioPciNotifyCap>();
    let notify = VirtioPciNotifyCap {
        cap,
        notify_off_multiplier: NOTIFY_MULTIPLIER.into(),
    };
    space.put(NOTIFY_CAP, notify.as_bytes());
    let isr = structure(cfg_type::ISR, ISR.offset, ISR.length, PCI_CFG);
    space.put(ISR_CAP, isr.as_bytes());
    let mut cap = structure(cfg_type::PCI, 0, 0, last);
    cap.cap_len = length_byte::<VirtioPciCfgCap>();
    space.put(
        PCI_CFG,
        VirtioPciCfgCap {
            cap,
            pci_cfg_data: [0; 4],
        }
        .as_bytes(),
    );
    // PC-11: the one capability whose fields the driver writes: bar, offset, length, data.
    space.writable(PCI_CFG + 4, &[0xff]);
    space.writable(PCI_CFG + 8, &[0xff; 12]);
    if what.config_len > 0 {
        let length = what.config_len.min(DEVICE.length);
        let device = structure(cfg_type::DEVICE, DEVICE.offset, length, device_next);
        space.put(DEVICE_CAP, device.as_bytes());
    }
    if what.tracker {
        let tracker = structure(cfg_type::TRACKER, TRACKER.offset, TRACKER.length, 0);
        space.put(TRACKER_CAP, tracker.as_bytes());
    }
    let next = if what.vfs.is_some() {
        u32::try_from(SR_IOV).unwrap_or(0) << 20
    } else {
        0
    };
    // PCI Express: an id of 0 with a link is a capability without content.
    space.put(PASID, &next.to_le_bytes());
    if what.pasid != Pasid::Absent {
        pasid(space, next, what.pasid == Pasid::Enabled);
    }
    if let Some(vfs) = what.vfs {
        sr_iov(space, vfs);
    }
}

/// A structure in BAR 0.
fn structure(cfg_type: u8, offset: usize, length: usize, next: usize) -> VirtioPciCap {
    VirtioPciCap {
        cap_vndr: VENDOR_SPECIFIC,
        cap_next: u8::try_from(next).unwrap_or(0),
        cap_len: length_byte::<VirtioPciCap>(),
        cfg_type,
        bar: 0,
        id: 0,
        padding: [0; 2],
        offset: u32::try_from(offset).unwrap_or(0).into(),
        length: u32::try_from(length).unwrap_or(0).into(),
    }
}

fn length_byte<T>() -> u8 {
    u8::try_from(size_of::<T>()).unwrap_or(u8::MAX)
}

/// One vector per queue and one for the configuration; table and pending bits in BAR 1.
fn msix(space: &mut ConfigSpace, queues: u16, next: usize) {
    const BAR: u32 = 1;
    let pba = u32::try_from(PBA_OFFSET).unwrap_or(0) | BAR;
    space.put(MSIX, &[MSIX_ID, u8::try_from(next).unwrap_or(0)]);
    // Message control: the number of vectors less one.
    space.put(MSIX + 2, &queues.to_le_bytes());
    space.put(MSIX + 4, &BAR.to_le_bytes());
    space.put(MSIX + 8, &pba.to_le_bytes());
    // Enable and function mask.
    space.writable(MSIX + 3, &[0xc0]);
}

/// PCI Express capability, version 2, endpoint. It is there for function level reset.
fn express(space: &mut ConfigSpace, next: usize) {
    const ROLE_BASED_ERRORS: u32 = 1 << 15;
    const FLR: u32 = 1 << 28;
    const GEN1_X1: u16 = 1 << 4 | 1;
    space.put(
        EXPRESS,
        &[EXPRESS_ID, u8::try_from(next).unwrap_or(0), 2, 0],
    );
    space.put(EXPRESS + 4, &(ROLE_BASED_ERRORS | FLR).to_le_bytes());
    space.put(EXPRESS + 0x0c, &GEN1_X1.to_le_bytes());
    space.put(EXPRESS + 0x12, &GEN1_X1.to_le_bytes());
    // Device control but for bit 15, which starts a reset and reads 0.
    space.writable(EXPRESS + 8, &[0xff, 0x7f]);
}

/// PASID extended capability, version 1, with PASIDs of 20 bits.
fn pasid(space: &mut ConfigSpace, next: u32, enabled: bool) {
    const WIDTH: u16 = 20 << 8;
    space.put(PASID, &(PASID_ID | 1 << 16 | next).to_le_bytes());
    space.put(PASID + 4, &WIDTH.to_le_bytes());
    space.put(PASID + 6, &[u8::from(enabled), 0]);
    space.writable(PASID + 6, &[1]);
}

/// SR-IOV extended capability, version 1, without VF migration (so InitialVFs is TotalVFs). Its
/// functions follow the owner's with a stride of 1. What a hypervisor presents of a virtual function
/// stands in the member's own configuration space.
fn sr_iov(space: &mut ConfigSpace, vfs: Vfs) {
    const PAGES_4K: u32 = 1;
    let total = vfs.total.to_le_bytes();
    space.put(SR_IOV, &(SR_IOV_ID | 1 << 16).to_le_bytes());
    // VF Enable and VF Memory Space Enable.
    space.writable(VF_CONTROL, &[1 | 1 << 3]);
    space.put(SR_IOV + 0x0c, &total);
    space.put(SR_IOV + 0x0e, &total);
    space.writable(NUM_VFS, &[0xff; 2]);
    space.put(SR_IOV + 0x14, &1_u16.to_le_bytes());
    space.put(SR_IOV + 0x16, &1_u16.to_le_bytes());
    space.put(SR_IOV + 0x1a, &vfs.device_id.to_le_bytes());
    space.put(SR_IOV + 0x1c, &PAGES_4K.to_le_bytes());
    space.put(SR_IOV + 0x20, &PAGES_4K.to_le_bytes());
    for (bar, size) in [(0, BAR0_SIZE), (1, BAR1_SIZE)] {
        let mask = u32::try_from(size).map_or(0, |size| !(size - 1));
        space.writable(SR_IOV + 0x24 + 4 * bar, &mask.to_le_bytes());
    }
}
