//! The host's part of a guest: its memory, its disks, its functions.

use crate::cpu_log::CpuLog;
use crate::emulated_bus::{EmulatedBus, memory_file};
use crate::error::VmError;
use crate::faulty::{DiskFault, FaultyDisk};
use crate::guest::{Layout, Shape, ring_format};
use crate::held::HeldDisk;
use crate::hypervisor::{Limits, Owner};
use device::blk::{BlkDevice, BlkOptions, Disk};
use device::function::{AdminConfig, FunctionConfig, PciFunction};
use device::rng::RngDevice;
use device::tracker::Marking;
use driver::dirty::PAGE_SIZE;
use driver::dirty::harvest::HarvestWidth;
use driver::memory::DmaMemory;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use vm_memory::Permissions;

/// How devices mark the pages that they write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkingMode {
    /// One bit for each page.
    #[default]
    Bits,
    /// The whole byte that holds the bit.
    Bytes,
    /// Not at all: the negative control.
    Off,
}

impl MarkingMode {
    fn marking(self) -> Marking {
        match self {
            Self::Bits => Marking::Bit,
            Self::Bytes => Marking::Byte,
            Self::Off => Marking::Off,
        }
    }

    pub(crate) fn width(self) -> HarvestWidth {
        match self {
            // Stores of bytes and swaps of words on one location have no defined meaning in one
            // process: both sides use bytes then.
            Self::Bytes => HarvestWidth::Byte,
            Self::Bits | Self::Off => HarvestWidth::Word,
        }
    }
}

/// What a host gives a guest; no part of the guest, and not told to the other host.
#[derive(Clone, Debug, Default)]
pub struct Hosting {
    /// The disk of each device.
    pub disks: Vec<PathBuf>,
    /// Where journals and other evidence go; none without.
    pub evidence: Option<PathBuf>,
    /// What this side is called in the evidence.
    pub side: String,
    /// What its devices lack.
    pub limits: Limits,
    /// Its disks can hold writes, about so many bytes each while the guest runs.
    pub hold: Option<u64>,
    /// One write to the first of those fails.
    pub disk_fault: Option<DiskFault>,
}

/// Memory and devices, before anything runs.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) layout: Arc<Layout>,
    /// All of memory; stores are logged.
    pub(crate) memory: DmaMemory,
    pub(crate) cpu_log: Arc<CpuLog>,
    pub(crate) buses: Vec<Arc<EmulatedBus>>,
    /// The disk of each device, if they can hold writes.
    pub(crate) held: Vec<HeldDisk>,
    /// Their owner, if they have one.
    pub(crate) owner: Option<Owner>,
    file: Arc<File>,
}

/// Edits the maps through which a guest's devices reach its memory, while they do.
#[derive(Clone, Debug)]
pub struct Remapper {
    buses: Vec<Arc<EmulatedBus>>,
    file: Arc<File>,
}

impl Remapper {
    /// Maps `size` bytes of guest memory from `offset` on at IOVA `iova`, for every device, in
    /// place of what was there. Multiples of 4 KiB.
    ///
    /// # Errors
    /// [`VmError::Device`] if the numbers fit neither the memory nor the address space.
    pub fn map(&self, iova: u64, size: u64, offset: u64) -> Result<(), VmError> {
        for bus in &self.buses {
            let dma = bus.function().dma();
            dma.map(iova, size, &self.file, offset, Permissions::ReadWrite)
                .map_err(|error| VmError::Device(error.to_string()))?;
        }
        Ok(())
    }

    /// Removes the maps of a range, for every device.
    pub fn unmap(&self, iova: u64, size: u64) {
        for bus in &self.buses {
            bus.function().dma().unmap(iova, size);
        }
    }
}

impl Machine {
    /// Builds a machine. The shape may come from outside.
    pub(crate) fn build(shape: &Shape, hosting: &Hosting) -> Result<Self, VmError> {
        let layout = Arc::new(Layout::new(shape)?);
        if hosting.disks.len() != usize::from(shape.devices) {
            return Err(VmError::shape(
                "disks",
                format!("{} (one for each device)", shape.devices),
                hosting.disks.len(),
            ));
        }
        let file = memory_file("tidemark-guest", shape.memory)
            .map_err(VmError::system("allocate guest memory"))?;
        let cpu_log = CpuLog::new(shape.memory);
        let memory = DmaMemory::from_file(&file, 0, shape.memory, 0)
            .map_err(VmError::system("map guest memory"))?
            .with_log(Arc::clone(&cpu_log) as Arc<dyn driver::memory::WriteLog>);
        let mut buses = Vec::new();
        let mut held = Vec::new();
        for disk in &hosting.disks {
            let size = std::fs::metadata(disk)
                .map_err(VmError::file("open the disk", disk))?
                .len();
            let needed = shape.blocks * PAGE_SIZE;
            if size < needed {
                return Err(VmError::shape(
                    "disk",
                    format!("at least {needed} bytes in {}", disk.display()),
                    format!("{size} bytes"),
                ));
            }
            let limits = hosting.limits;
            // What a device offers is a power of two as long as nothing is negotiated.
            let size = shape.queue_size.next_power_of_two();
            let options = BlkOptions {
                queues: shape.queues,
                queue_size: limits.queue_size_max.map_or(size, |max| max.min(size)),
                ..BlkOptions::default()
            };
            let device = match hosting.hold {
                None => BlkDevice::open_path(disk, options),
                Some(limit) => {
                    let file = File::options().read(true).write(true).open(disk);
                    let file = file.map_err(VmError::file("open the disk", disk))?;
                    let first = held.is_empty();
                    let disk: Box<dyn Disk> = match hosting.disk_fault.filter(|_| first) {
                        Some(fault) => Box::new(FaultyDisk::new(file, fault)),
                        None => Box::new(file),
                    };
                    let disk = HeldDisk::new(disk, limit);
                    held.push(disk.clone());
                    BlkDevice::with_disk(Box::new(disk), options)
                }
            };
            let device = device.map_err(|error| VmError::Device(error.to_string()))?;
            let config = FunctionConfig {
                features: (FunctionConfig::default().features | ring_format(shape.packed))
                    - limits.features_off,
                marking: shape.marking.marking(),
                ..FunctionConfig::default()
            };
            let function = PciFunction::new(config, device);
            function
                .dma()
                .map(0, shape.memory, &file, 0, Permissions::ReadWrite)
                .map_err(|error| VmError::Device(error.to_string()))?;
            buses.push(EmulatedBus::new(function));
        }
        let owner = Self::owner(shape, hosting, &buses)?;
        Ok(Self {
            layout,
            memory,
            cpu_log,
            buses,
            held,
            owner,
            file: Arc::new(file),
        })
    }

    /// A function that does nothing but own the devices.
    fn owner(
        shape: &Shape,
        hosting: &Hosting,
        buses: &[Arc<EmulatedBus>],
    ) -> Result<Option<Owner>, VmError> {
        let means = shape.means;
        if !means.owned() {
            return Ok(None);
        }
        let defaults = AdminConfig::default();
        let config = FunctionConfig {
            tracker: false,
            admin: AdminConfig {
                queues: 2,
                max_records: means.records.unwrap_or(defaults.max_records),
                parts: !hosting.limits.no_parts,
                ..defaults
            },
            ..FunctionConfig::default()
        };
        let members = buses.iter().map(|bus| Arc::clone(bus.function())).collect();
        let owner = PciFunction::owner(config, RngDevice::seeded(0), members)
            .map_err(|error| VmError::Device(error.to_string()))?;
        let bus = EmulatedBus::new(owner);
        Owner::boot(bus, shape.devices, means).map(Some)
    }

    pub(crate) fn remapper(&self) -> Remapper {
        Remapper {
            buses: self.buses.clone(),
            file: Arc::clone(&self.file),
        }
    }
}
