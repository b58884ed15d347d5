//! The capability walk.

use super::outcome::{Stop, demand};
use crate::constants::{cfg_type, pci};
use driver::bus::Bus;

/// A part of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// BAR number.
    pub bar: u8,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A virtio capability as it stands in configuration space.
#[derive(Clone, Debug)]
pub struct RawCap {
    /// Where it is.
    pub at: u16,
    /// `cap_len`.
    pub len: u8,
    /// `cfg_type`.
    pub cfg_type: u8,
    /// Where it points.
    pub region: Region,
    /// The 32 bits after the header, which `cap_len` may or may not cover.
    pub extra: u32,
}

/// The MSI-X capability.
#[derive(Clone, Copy, Debug)]
pub struct Msix {
    /// Where it is.
    pub at: u16,
    /// Vectors.
    pub vectors: u16,
}

/// What the walk found.
#[derive(Clone, Debug)]
pub struct Caps {
    /// PCI vendor id.
    pub vendor: u16,
    /// PCI device id.
    pub device: u16,
    /// Every virtio capability, in the order of the list.
    pub virtio: Vec<RawCap>,
    /// MSI-X.
    pub msix: Option<Msix>,
    /// Where the PASID extended capability is.
    pub pasid: Option<u16>,
    /// Where the SR-IOV extended capability is.
    pub sr_iov: Option<u16>,
    /// The list ends with a zero pointer, within its space, without going in circles.
    pub well_formed: bool,
}

fn bytes<const N: usize>(bus: &dyn Bus, at: u16) -> Result<[u8; N], Stop> {
    let mut data = [0; N];
    bus.config_read(at, &mut data)?;
    Ok(data)
}

/// 16 bits of configuration space.
pub(super) fn word(bus: &dyn Bus, at: u16) -> Result<u16, Stop> {
    Ok(u16::from_le_bytes(bytes(bus, at)?))
}

/// 32 bits of configuration space.
pub(super) fn dword(bus: &dyn Bus, at: u16) -> Result<u32, Stop> {
    Ok(u32::from_le_bytes(bytes(bus, at)?))
}

fn byte(bus: &dyn Bus, at: u16) -> Result<u8, Stop> {
    Ok(bytes::<1>(bus, at)?[0])
}

impl Caps {
    /// Walks the lists of a function.
    ///
    /// # Errors
    /// The bus's. A list that cannot be followed is no error here: see `well_formed`.
    pub fn walk(bus: &dyn Bus) -> Result<Self, Stop> {
        let mut caps = Self {
            vendor: word(bus, 0)?,
            device: word(bus, 2)?,
            virtio: Vec::new(),
            msix: None,
            pasid: None,
            sr_iov: None,
            well_formed: false,
        };
        if word(bus, pci::STATUS)? & pci::STATUS_CAPABILITIES != 0 {
            caps.conventional(bus)?;
        }
        caps.extended(bus)?;
        Ok(caps)
    }

    fn conventional(&mut self, bus: &dyn Bus) -> Result<(), Stop> {
        let mut at = u16::from(byte(bus, pci::CAPABILITIES)? & !3);
        for _ in 0..(pci::CAPABILITIES_END - pci::CAPABILITIES_BEGIN) / 4 {
            if at == 0 {
                self.well_formed = true;
                return Ok(());
            }
            if at < pci::CAPABILITIES_BEGIN {
                return Ok(());
            }
            let [id, next] = bytes(bus, at)?;
            match id {
                pci::ID_VENDOR => self.virtio.push(raw(bus, at)?),
                pci::ID_MSIX => {
                    let vectors = (word(bus, at + 2)? & 0x7ff) + 1;
                    self.msix = Some(Msix { at, vectors });
                }
                _ => {}
            }
            at = u16::from(next & !3);
        }
        Ok(())
    }

    fn extended(&mut self, bus: &dyn Bus) -> Result<(), Stop> {
        let mut at = pci::CAPABILITIES_END;
        for _ in 0..960 {
            let header = dword(bus, at)?;
            let [low, high, ..] = header.to_le_bytes();
            if header == 0 || header == u32::MAX {
                return Ok(());
            }
            match u16::from_le_bytes([low, high]) {
                pci::EXTENDED_PASID => self.pasid = Some(at),
                pci::EXTENDED_SR_IOV => self.sr_iov = Some(at),
                _ => {}
            }
            let Ok(next) = u16::try_from(header >> 20) else {
                return Ok(());
            };
            if !(pci::CAPABILITIES_END..=0xffc).contains(&next) {
                return Ok(());
            }
            at = next & !3;
        }
        Ok(())
    }

    /// The first capability of this type, which is the device's preferred one.
    pub fn first(&self, cfg_type: u8) -> Option<&RawCap> {
        self.virtio
            .iter()
            .find(|cap| cap.cfg_type == cfg_type && cap.region.bar < 6)
    }

    /// The first region of this type.
    ///
    /// # Errors
    /// A failure of `clause` if there is none.
    pub fn region(&self, cfg_type: u8, clause: &'static str) -> Result<Region, Stop> {
        let region = self.first(cfg_type).map(|cap| cap.region);
        demand(
            clause,
            region.is_some(),
            "at least one such capability",
            || format!("no virtio capability with cfg_type {cfg_type}"),
        )?;
        region.ok_or_else(|| Stop::Inconclusive("no region".to_owned()))
    }

    /// The virtio device id, if the PCI device id is one of VIRTIO 1.x.
    pub fn virtio_id(&self) -> Option<u16> {
        self.device.checked_sub(pci::DEVICE_BASE)
    }

    /// The tracker's registers.
    pub fn tracker(&self) -> Option<Region> {
        self.first(cfg_type::TRACKER).map(|cap| cap.region)
    }
}

fn raw(bus: &dyn Bus, at: u16) -> Result<RawCap, Stop> {
    let [_, _, len, cfg_type, bar, ..] = bytes::<8>(bus, at)?;
    let offset = u64::from(dword(bus, at + 8)?);
    let length = u64::from(dword(bus, at + 12)?);
    let extra = if at + 20 <= pci::CAPABILITIES_END {
        dword(bus, at + 16)?
    } else {
        0
    };
    Ok(RawCap {
        at,
        len,
        cfg_type,
        region: Region {
            bar,
            offset,
            length,
        },
        extra,
    })
}
