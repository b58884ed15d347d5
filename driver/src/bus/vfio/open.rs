//! Finding a function and what stands between it and its use.

use super::iova;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError, VfioOps};

/// Where a PCI function is: `0000:03:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The domain, called segment as well.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device, below 32.
    pub device: u8,
    /// The function, below 8.
    pub function: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl FromStr for Address {
    type Err = String;

    /// The domain may be left out.
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
            let small = |text, end| u8::from_str_radix(text, 16).ok().filter(|n| *n < end);
            Some(Self {
                domain: u32::from_str_radix(domain, 16).ok()?,
                bus: u8::from_str_radix(bus, 16).ok()?,
                device: small(device, 32)?,
                function: small(function, 8)?,
            })
        };
        parse().ok_or_else(|| format!("expected a PCI address such as 0000:03:00.0, got '{text}'"))
    }
}

/// Why a function cannot be driven through VFIO, and what would help.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such function.
    #[error("there is no PCI function {0}; `ls /sys/bus/pci/devices` lists those that there are")]
    NoFunction(Address),
    /// It has another driver, or none.
    #[error(
        "{address} is bound to {driver}, vfio-pci was expected; bind it (its present user loses it) with\n  \
         modprobe vfio-pci\n  \
         echo vfio-pci > /sys/bus/pci/devices/{address}/driver_override\n  \
         {unbind}\
         echo {address} > /sys/bus/pci/drivers_probe",
        unbind = unbind(address, driver)
    )]
    WrongDriver {
        /// The function.
        address: Address,
        /// Its driver, "no driver" if there is none.
        driver: String,
    },
    /// No IOMMU stands before it.
    #[error(
        "{0} is in no IOMMU group: switch the IOMMU on in the firmware and, on Intel, with \
         `intel_iommu=on` on the kernel's command line"
    )]
    NoGroup(Address),
    /// Its group's device is not there.
    #[error(
        "{path} does not exist although {address} is bound to vfio-pci; is /dev complete, and the \
         module vfio_iommu_type1 loaded?",
        path = path.display()
    )]
    NoGroupFile {
        /// The function.
        address: Address,
        /// What is missing.
        path: PathBuf,
    },
    /// Another function of the group is in use, and could be reached through this one.
    #[error(
        "IOMMU group {group} of {address} is not viable: bind these to vfio-pci too, or to no \
         driver: {others}"
    )]
    NotViable {
        /// The function.
        address: Address,
        /// Its group.
        group: String,
        /// Functions of the group with other drivers.
        others: String,
    },
    /// The system refused.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// VFIO refused.
    #[error("cannot {doing} {address}: {source}")]
    Vfio {
        /// What was being done.
        doing: &'static str,
        /// The function.
        address: Address,
        /// What VFIO said.
        source: VfioError,
    },
}

/// The driver of a function that has none.
const NO_DRIVER: &str = "no driver";

fn unbind(address: &Address, driver: &str) -> String {
    if driver == NO_DRIVER {
        return String::new();
    }
    format!("echo {address} > /sys/bus/pci/drivers/{driver}/unbind\n  ")
}

/// A function that can be opened.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) address: Address,
    /// Its folder in sysfs.
    folder: PathBuf,
    /// Name of its group.
    group: String,
    /// Functions of its group that VFIO does not hold.
    others: Vec<String>,
    /// Addresses that the IOMMU keeps for itself.
    pub(super) reserved: Vec<Range<u64>>,
}

fn folder(sys: &Path, address: Address) -> PathBuf {
    sys.join("bus/pci/devices").join(address.to_string())
}

/// The name that a link in a folder points to.
fn linked(folder: &Path, link: &str) -> Option<String> {
    let target = fs::read_link(folder.join(link)).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// Whether Linux can reset a function by itself.
pub(super) fn can_reset(sys: &Path, address: Address) -> bool {
    folder(sys, address).join("reset").exists()
}

/// Looks for everything that is needed, below `/sys` and `/dev`.
pub(super) fn locate(sys: &Path, dev: &Path, address: Address) -> Result<Found, OpenError> {
    let folder = folder(sys, address);
    if !folder.exists() {
        return Err(OpenError::NoFunction(address));
    }
    let driver = linked(&folder, "driver").unwrap_or_else(|| NO_DRIVER.to_owned());
    if driver != "vfio-pci" {
        return Err(OpenError::WrongDriver { address, driver });
    }
    let group = linked(&folder, "iommu_group").ok_or(OpenError::NoGroup(address))?;
    if !cfg!(feature = "iommufd") {
        for path in [dev.join("vfio/vfio"), dev.join("vfio").join(&group)] {
            if !path.exists() {
                return Err(OpenError::NoGroupFile { address, path });
            }
        }
    }
    let failed = |doing| move |source| OpenError::System { doing, source };
    let text = fs::read_to_string(folder.join("iommu_group/reserved_regions"))
        .map_err(failed("read the IOMMU group's reserved regions"))?;
    let reserved = iova::reserved(&text).ok_or_else(|| {
        let odd = io::Error::other(format!("expected two addresses and a kind, got {text:?}"));
        failed("read the IOMMU group's reserved regions")(odd)
    })?;
    let members =
        fs::read_dir(folder.join("iommu_group/devices")).map_err(failed("list the IOMMU group"))?;
    let others = members
        .flatten()
        .filter_map(|member| {
            let driver = linked(&member.path(), "driver")?;
            let name = member.file_name().to_string_lossy().into_owned();
            // Bridges do no DMA of their own.
            let held = matches!(driver.as_str(), "vfio-pci" | "pci-stub" | "pcieport");
            (!held).then(|| format!("{name} ({driver})"))
        })
        .collect();
    Ok(Found {
        address,
        folder,
        group,
        others,
        reserved,
    })
}

/// Opens what was found.
pub(super) fn device(found: &Found) -> Result<(VfioDevice, Arc<dyn VfioOps>), OpenError> {
    let address = found.address;
    let refused = |doing| {
        move |source| match source {
            VfioError::GroupViable => OpenError::NotViable {
                address,
                group: found.group.clone(),
                others: found.others.join(", "),
            },
            source => OpenError::Vfio {
                doing,
                address,
                source,
            },
        }
    };
    let container = container().map_err(refused("make a container for"))?;
    let device =
        VfioDevice::new(&found.folder, Arc::clone(&container), true).map_err(refused("open"))?;
    Ok((device, container))
}

#[cfg(not(feature = "iommufd"))]
fn container() -> Result<Arc<dyn VfioOps>, VfioError> {
    Ok(Arc::new(VfioContainer::new(None)?))
}

/// With iommufd where the kernel has it.
#[cfg(feature = "iommufd")]
fn container() -> Result<Arc<dyn VfioOps>, VfioError> {
    if !Path::new("/dev/iommu").exists() {
        return Ok(Arc::new(VfioContainer::new(None)?));
    }
    let iommufd = iommufd_ioctls::IommuFd::new().map_err(VfioError::NewVfioIommufd)?;
    let container = vfio_ioctls::VfioIommufd::new(Arc::new(iommufd), None, None)?;
    Ok(Arc::new(container))
}

#[cfg(test)]
mod tests;
