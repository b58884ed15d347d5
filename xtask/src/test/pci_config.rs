//! A function's configuration space as a guest saw it: which capabilities got through to it.

use anyhow::{Context, Result, ensure};

/// Prints configuration space as hexadecimal digits. Linux gives all 4096 bytes of a function that
/// has the PCI Express capability.
pub const REPORT: &str = "\
fact config \"$(hexdump -ve '1/1 \"%02x\"' /sys/block/vda/device/../config)\"
";

/// Where the list of capabilities begins.
const POINTER: usize = 0x34;
/// Where the list of extended capabilities begins.
const EXTENDED: usize = 0x100;
const VENDOR_SPECIFIC: u8 = 0x09;
/// `cfg_type` of the tracker's capability.
pub const TRACKER: u8 = 0x0a;
/// Id of the PASID extended capability.
pub const PASID: u16 = 0x1b;

/// The capabilities of a function.
#[derive(Debug, Default)]
pub struct Capabilities {
    /// `cfg_type` of the virtio capabilities, in their order.
    pub virtio: Vec<u8>,
    /// Ids of the extended capabilities.
    pub extended: Vec<u16>,
    /// Bytes of configuration space that the guest could read.
    pub bytes: usize,
}

impl Capabilities {
    /// Reads what [`REPORT`] printed.
    pub fn parse(digits: &str) -> Result<Self> {
        let byte = |at: usize| -> Result<u8> {
            let pair = digits.get(at..at + 2).context("an odd number of digits")?;
            u8::from_str_radix(pair, 16).with_context(|| format!("{pair:?} is no byte"))
        };
        let config: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(byte)
            .collect::<Result<_>>()?;
        let mut found = Self {
            bytes: config.len(),
            ..Self::default()
        };
        let mut at = *config.get(POINTER).context("no configuration space")?;
        for _ in 0..config.len() {
            if at == 0 {
                break;
            }
            let capability = config.get(usize::from(at)..).unwrap_or_default();
            ensure!(capability.len() > 3, "a capability at {at:#x}");
            if capability[0] == VENDOR_SPECIFIC {
                found.virtio.push(capability[3]);
            }
            at = capability[1];
        }
        let mut at = EXTENDED;
        while let Some(header) = config.get(at..).and_then(<[u8]>::first_chunk) {
            let header = u32::from_le_bytes(*header);
            let id = u16::try_from(header & 0xffff)?;
            let next = usize::try_from(header >> 20)?;
            if id != 0 {
                found.extended.push(id);
            }
            // The list only leads on: nothing else would end it for certain.
            if next <= at {
                break;
            }
            at = next;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lists_are_followed() {
        let mut config = [0_u8; 0x120];
        config[POINTER] = 0x40;
        config[0x40..0x44].copy_from_slice(&[0x11, 0x50, 0, 0]);
        config[0x50..0x54].copy_from_slice(&[VENDOR_SPECIFIC, 0, 16, 0x0a]);
        config[EXTENDED..0x104].copy_from_slice(&(0x110_u32 << 20 | 0x1_0001).to_le_bytes());
        config[0x110..0x114].copy_from_slice(&0x1_001b_u32.to_le_bytes());
        let digits: String = config.iter().map(|byte| format!("{byte:02x}")).collect();
        let found = Capabilities::parse(&digits).expect("a whole space");
        assert_eq!((found.virtio, found.extended), (vec![0x0a], vec![1, 0x1b]));
        assert_eq!(found.bytes, 0x120);
        assert!(Capabilities::parse("").is_err());
    }
}
