//! The SR-IOV extended capability of a physical function (PCI Express, "Single Root I/O
//! Virtualization").

use crate::bus::Bus;
use crate::error::DriverError;

const ID: u16 = 0x10;
/// Where extended capabilities begin and end.
const FIRST: u16 = 0x100;
const END: u16 = 0x1000;
const CONTROL: u16 = 0x08;
const TOTAL_VFS: u16 = 0x0e;
const NUM_VFS: u16 = 0x10;
/// VF Enable and VF Memory Space Enable.
const ENABLE: u16 = 1 | 1 << 3;

fn read16(bus: &dyn Bus, at: u16) -> Result<u16, DriverError> {
    let mut data = [0; 2];
    bus.config_read(at, &mut data)?;
    Ok(u16::from_le_bytes(data))
}

/// Where the capability stands, if there is one.
fn find(bus: &dyn Bus) -> Result<Option<u16>, DriverError> {
    let mut at = FIRST;
    // As many as there is room for: a longer list goes in circles.
    for _ in 0..(END - FIRST) / 4 {
        let mut data = [0; 4];
        bus.config_read(at, &mut data)?;
        let header = u32::from_le_bytes(data);
        if header == 0 || header == u32::MAX {
            break;
        }
        let [a, b, ..] = data;
        if u16::from_le_bytes([a, b]) == ID {
            return Ok(Some(at));
        }
        at = u16::try_from(header >> 20 & 0xffc).unwrap_or(0);
        if at < FIRST {
            break;
        }
    }
    Ok(None)
}

/// Makes `count` virtual functions; the ones there were before are gone, with all they did. 0 makes
/// none.
///
/// # Errors
/// [`DriverError::NoCapability`]; [`DriverError::TooManyFunctions`]; or what the bus says.
pub fn enable(bus: &dyn Bus, count: u16) -> Result<(), DriverError> {
    let at = find(bus)?.ok_or(DriverError::NoCapability("SR-IOV"))?;
    let max = read16(bus, at + TOTAL_VFS)?;
    if count > max {
        return Err(DriverError::TooManyFunctions { count, max });
    }
    let control = read16(bus, at + CONTROL)? & !ENABLE;
    bus.config_write(at + CONTROL, &control.to_le_bytes())?;
    if count != 0 {
        bus.config_write(at + NUM_VFS, &count.to_le_bytes())?;
        let control = control | ENABLE;
        bus.config_write(at + CONTROL, &control.to_le_bytes())?;
    }
    Ok(())
}
