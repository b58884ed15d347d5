//! Devices as people name them: `emulated`, `vfio:0000:03:00.0`, `vfio-user:PATH`.

use crate::emulated_bus::EmulatedBus;
use device::blk::{BlkDevice, BlkOptions};
use device::function::{FunctionConfig, PciFunction};
use driver::bus::vfio::{Address, OpenError, VfioBus};
use driver::bus::vfio_user::VfioUserBus;
use driver::bus::{Bus, BusError};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// Bytes of the emulated device's disk, which goes with the device.
const DISK: u64 = 64 << 20;
/// Queues of the emulated device.
const QUEUES: u16 = 4;
/// Where the emulated device's driver has its memory: low, for bitmaps begin at address 0.
const MEMORY: u64 = 16 << 20;

/// A device to drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A block device in this process, made for the occasion, with a disk of 64 MiB of zeroes.
    Emulated,
    /// A PCI function bound to `vfio-pci`.
    Vfio(Address),
    /// What a vfio-user server offers on a socket.
    VfioUser(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "emulated" => Ok(Self::Emulated),
            Some(("vfio", address)) => address.parse().map(Self::Vfio),
            Some(("vfio-user", path)) if !path.is_empty() => Ok(Self::VfioUser(path.into())),
            _ => Err(format!(
                "expected emulated, vfio:0000:03:00.0 or vfio-user:PATH, got '{text}'"
            )),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emulated => f.write_str("emulated"),
            Self::Vfio(address) => write!(f, "vfio:{address}"),
            Self::VfioUser(path) => write!(f, "vfio-user:{}", path.display()),
        }
    }
}

/// Why a device cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// VFIO does not give it.
    #[error(transparent)]
    Vfio(#[from] OpenError),
    /// Its server does not.
    #[error("vfio-user:{}: {source}", path.display())]
    VfioUser {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: BusError,
    },
    /// The system has no room for an emulated one.
    #[error("cannot make an emulated device: {0}")]
    Emulated(String),
}

impl Target {
    /// Takes hold of the device, which nobody else may drive meanwhile.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn open(&self) -> Result<Arc<dyn Bus>, TargetError> {
        match self {
            Self::Emulated => emulated(),
            Self::Vfio(address) => Ok(VfioBus::open(*address)?),
            Self::VfioUser(path) => match VfioUserBus::connect(path) {
                Ok(bus) => Ok(bus),
                Err(source) => Err(TargetError::VfioUser {
                    path: path.clone(),
                    source,
                }),
            },
        }
    }
}

fn emulated() -> Result<Arc<dyn Bus>, TargetError> {
    let failed = |why: &dyn fmt::Display| TargetError::Emulated(why.to_string());
    let disk = tempfile::tempfile().map_err(|error| failed(&error))?;
    disk.set_len(DISK).map_err(|error| failed(&error))?;
    let options = BlkOptions {
        queues: QUEUES,
        ..BlkOptions::default()
    };
    let device = BlkDevice::open(disk, options).map_err(|error| failed(&error))?;
    let function = PciFunction::new(FunctionConfig::default(), device);
    Ok(EmulatedBus::with_memory_at(function, MEMORY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_shown_alike() {
        for text in ["emulated", "vfio:0000:03:00.0", "vfio-user:/run/x.sock"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for bad in ["", "emulate", "vfio:", "vfio:3", "vfio-user:", "unix:/x"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
        let nobody = Target::VfioUser("/nowhere/socket".into());
        assert!(
            nobody
                .open()
                .unwrap_err()
                .to_string()
                .contains("/nowhere/socket")
        );
    }
}
