//! Our own function, in this process.

use super::extras::Extras;
use super::slow::Slow;
use super::zoned::{Make, ZonedDisk};
use super::{DMA_PASID, Subject, Target, Variant};
use crate::constants::{blk, cfg_type, feature, parts, rng};
use crate::harness::{Absent, LIMIT, Stop};
use device::blk::{BlkDevice, BlkOptions};
use device::dma::Dma;
use device::function::{FunctionConfig, Pasid, PciFunction, SuspendBehaviour};
use device::queue::Virtqueue;
use device::rng::RngDevice;
use device::tracker::Marking;
use device::virtio::{Progress, QueueError, VirtioDevice};
use driver::bus::{Bus, BusError, Interrupt};
use driver::memory::DmaMemory;
use rustix::fs::MemfdFlags;
use spec::features::Features;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;
use vm::EmulatedBus;
use vm_memory::Permissions;

/// First address of a case's memory: low, so that a bitmap from page 0 on stays small, and not 0.
const FIRST_IOVA: u64 = 1 << 20;
/// Bytes of the disk: few, for every case has one of its own.
const DISK: usize = 256 << 10;
/// What a disk holds: every byte differs from what buffers are filled with and from zero.
static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let bytes: Vec<u8> = (0..=255_u8)
        .filter(|byte| !matches!(byte, 0 | 0x5a))
        .collect();
    bytes.iter().copied().cycle().take(DISK).collect()
});
/// How long a slow device takes to suspend.
const DELAY: Duration = Duration::from_millis(60);
/// What the raising device raises `gra_power` to.
const COARSE: u8 = 3;

/// Administration queues of a function that has some.
const ADMIN_QUEUES: u16 = 2;
/// Functions that an owner owns.
const MEMBERS: u16 = 2;
/// Records that an owner of few holds.
const RECORDS: u32 = 16;

/// What kind of device the emulated function is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Medium {
    /// A disk, whose capacity can change and whose write cache can be switched.
    #[default]
    Block,
    /// A source of entropy.
    Entropy,
    /// A disk with zones, in memory. It is the suite's own: nobody's data is on it.
    Zoned,
}

impl Medium {
    /// Features of device types that it does not offer.
    fn lacks(self) -> u64 {
        let disk = feature::BLK_RO
            | feature::BLK_SIZE_MAX
            | feature::BLK_LIFETIME
            | feature::BLK_SECURE_ERASE
            | feature::BLK_ZONED;
        let zoned = feature::BLK_RO
            | feature::BLK_CONFIG_WCE
            | feature::BLK_DISCARD
            | feature::BLK_WRITE_ZEROES;
        match self {
            Self::Block => disk,
            Self::Entropy => disk | zoned | feature::BLK_FLUSH | feature::BLK_SEG_MAX,
            Self::Zoned => zoned,
        }
    }

    /// Whether it can be made so.
    fn has(self, variant: Variant) -> bool {
        match variant {
            Variant::ReadOnly => self == Self::Block,
            Variant::HostAware | Variant::NoAppend => self == Self::Zoned,
            _ => true,
        }
    }
}

/// The emulated function.
#[derive(Clone, Copy, Debug)]
pub struct Emulated {
    /// What kind of device.
    pub medium: Medium,
    /// Where it can be broken.
    pub seams: Seams,
    /// How long cases wait for it.
    pub limit: Duration,
}

/// Stands between a function and its device type.
type Wrap = fn(Arc<dyn VirtioDevice>) -> Arc<dyn VirtioDevice>;

/// Where a mutant may change the function from inside; the sound one changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Seams {
    /// Changes how the function is made.
    pub config: fn(&mut FunctionConfig),
    /// Changes how the functions are made that it owns.
    pub member: fn(&mut FunctionConfig),
    /// Stands between the function and its device type.
    pub device: Wrap,
}

impl Default for Seams {
    fn default() -> Self {
        Self {
            config: |_| (),
            member: |_| (),
            device: |device| device,
        }
    }
}

impl Default for Emulated {
    fn default() -> Self {
        Self {
            medium: Medium::default(),
            seams: Seams::default(),
            limit: LIMIT,
        }
    }
}

impl Target for Emulated {
    fn name(&self) -> String {
        match self.medium {
            Medium::Block => "emulated".to_owned(),
            Medium::Entropy => "emulated entropy".to_owned(),
            Medium::Zoned => "emulated zones".to_owned(),
        }
    }
    fn limit(&self) -> Duration {
        self.limit
    }
    fn fresh(&self, want: Variant) -> Result<Subject, Stop> {
        if want == Variant::Extras {
            let plain = self.fresh(Variant::Plain)?;
            let bus = Extras::add(plain.bus)?;
            return Ok(Subject { bus, ..plain });
        }
        if !self.medium.has(want) {
            return Err(Stop::NotApplicable(Absent::Variant(want)));
        }
        let mut config = FunctionConfig {
            dma_pasid: DMA_PASID,
            ..FunctionConfig::default()
        };
        config.features |= Features::RING_PACKED | Features::IN_ORDER;
        let mut without = 0;
        match want {
            Variant::Plain
            | Variant::Extras
            | Variant::ReadOnly
            | Variant::HostAware
            | Variant::NoAppend => {}
            Variant::NoSuspend => without = feature::SUSPEND,
            Variant::SuspendFails => config.suspend.fails = true,
            Variant::ResumeFails => config.suspend.resume_fails = true,
            Variant::SuspendDelayed => {
                config.suspend = SuspendBehaviour {
                    delay: DELAY,
                    ..SuspendBehaviour::default()
                };
            }
            Variant::Coarse => config.min_gra_power = COARSE,
            Variant::ByteMarking => config.marking = Marking::Byte,
            Variant::PasidDisabled => config.pasid = Pasid::Disabled,
            Variant::PasidEnabled => config.pasid = Pasid::Enabled,
            Variant::NoTracker => config.tracker = false,
            Variant::Admin | Variant::Owner | Variant::SlowMembers => {
                config.admin.queues = ADMIN_QUEUES;
            }
            Variant::TableOpcodes => {
                config.admin.queues = ADMIN_QUEUES;
                config.admin.table_opcodes = true;
            }
            Variant::FewRecords => {
                config.admin.queues = ADMIN_QUEUES;
                config.admin.max_records = RECORDS;
            }
        }
        for bit in config
            .features
            .iter()
            .filter(|bit| bit.bits() & without != 0)
        {
            config.features.remove(bit);
        }
        (self.seams.config)(&mut config);
        let mut owned = Vec::new();
        if want.owns() {
            let mut config = FunctionConfig::default();
            (self.seams.member)(&mut config);
            for _ in 0..MEMBERS {
                owned.push(match want {
                    Variant::SlowMembers => Made {
                        function: PciFunction::new(config, Arc::new(Slow)),
                        change_config: None,
                    },
                    _ => self.made(Variant::Plain, config, Vec::new())?,
                });
            }
        }
        let functions = owned.iter().map(|made| Arc::clone(&made.function));
        let owner = self.made(want, config, functions.collect())?;
        Ok(Subject {
            members: owned.into_iter().map(|made| self.subject(made)).collect(),
            ..self.subject(owner)
        })
    }

    fn claims(&self, what: Absent) -> bool {
        let absent = feature::ACCESS_PLATFORM;
        match what {
            Absent::Features(bits) => bits & (absent | self.medium.lacks()) == 0,
            Absent::Variant(variant) => self.medium.has(variant),
            Absent::Tracker | Absent::Msix => true,
            Absent::Members(count) => count <= MEMBERS,
            Absent::Command(_) | Absent::Status(_) | Absent::FunctionReset => true,
            Absent::Part(kind) => kind != parts::DEV_CFG || self.medium == Medium::Block,
            Absent::ConfigChange | Absent::Queues(_) | Absent::WritableConfig => {
                self.medium == Medium::Block
            }
            Absent::DeviceType(id) => match self.medium {
                Medium::Block | Medium::Zoned => id == blk::ID,
                Medium::Entropy => id == rng::ID,
            },
            Absent::UNZONED => false,
            Absent::Own(_) => self.medium != Medium::Entropy,
            Absent::Capability(kind) => matches!(kind, cfg_type::VENDOR | cfg_type::SHARED_MEMORY),
            Absent::Function | Absent::Permission | Absent::Header => false,
        }
    }
}

/// A function that was made, and how its configuration changes.
struct Made {
    function: Arc<PciFunction>,
    change_config: Option<Box<dyn Fn()>>,
}

impl Emulated {
    /// A function of this medium in the variant that is wanted, which owns `members`.
    fn made(
        &self,
        want: Variant,
        config: FunctionConfig,
        members: Vec<Arc<PciFunction>>,
    ) -> Result<Made, Stop> {
        let function = |device: Arc<dyn VirtioDevice>| {
            let device = (self.seams.device)(device);
            if members.is_empty() {
                return Ok(PciFunction::new(config, device));
            }
            let owner = PciFunction::owner(config, device, members.clone());
            owner.map_err(|error| unreachable(io::Error::other(error)))
        };
        Ok(match self.medium {
            Medium::Block => {
                let disk = Changing::new(want == Variant::ReadOnly).map_err(unreachable)?;
                let function = function(Arc::clone(&disk) as Arc<dyn VirtioDevice>)?;
                let teller = Arc::clone(&function);
                Made {
                    function,
                    change_config: Some(Box::new(move || {
                        disk.more.fetch_add(1, Ordering::SeqCst);
                        teller.notify_config_change();
                    })),
                }
            }
            Medium::Entropy => Made {
                function: function(RngDevice::seeded(1))?,
                change_config: None,
            },
            Medium::Zoned => {
                let make = match want {
                    Variant::HostAware => Make::HostAware,
                    Variant::NoAppend => Make::NoAppend,
                    _ => Make::HostManaged,
                };
                Made {
                    function: function(ZonedDisk::new(make))?,
                    change_config: None,
                }
            }
        })
    }

    fn subject(&self, made: Made) -> Subject {
        Subject {
            bus: Low::plug(EmulatedBus::new(made.function)),
            change_config: made.change_config,
            members: Vec::new(),
            limit: self.limit,
        }
    }
}

fn unreachable(source: io::Error) -> Stop {
    BusError::Unreachable {
        doing: "making the function",
        source,
    }
    .into()
}

/// The emulated bus, with memory at low addresses.
#[derive(Debug)]
struct Low {
    bus: Arc<EmulatedBus>,
    next: Mutex<u64>,
}

impl Low {
    fn plug(bus: Arc<EmulatedBus>) -> Arc<dyn Bus> {
        Arc::new(Self {
            bus,
            next: Mutex::new(FIRST_IOVA),
        })
    }
}

impl Bus for Low {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError> {
        self.bus.config_read(offset, data)
    }
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), BusError> {
        self.bus.config_write(offset, data)
    }
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        self.bus.bar_read(bar, offset, data)
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        self.bus.bar_write(bar, offset, data)
    }
    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError> {
        let refused = |why: &dyn std::fmt::Display| BusError::Exhausted {
            what: format!("{len} bytes of memory"),
            why: why.to_string(),
        };
        let len = len
            .checked_next_multiple_of(4096)
            .ok_or_else(|| refused(&"too long"))?;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = rustix::fs::memfd_create("tidemark-case", MemfdFlags::CLOEXEC);
        let file = File::from(memory.map_err(|error| refused(&error))?);
        file.set_len(len).map_err(|error| refused(&error))?;
        let window = DmaMemory::from_file(&file, 0, len, *next).map_err(|error| refused(&error))?;
        let dma = self.bus.function().dma();
        dma.map(*next, len, &file, 0, Permissions::ReadWrite)
            .map_err(|error| refused(&error))?;
        *next = next.saturating_add(len);
        Ok(window)
    }
    fn interrupt(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        self.bus.interrupt(vector)
    }
    fn reset(&self) -> Result<(), BusError> {
        self.bus.reset()
    }
}

/// A disk with two queues that can grow, and whose `writeback` a driver may write.
#[derive(Debug)]
struct Changing {
    disk: Arc<BlkDevice>,
    /// Sectors that have come since.
    more: AtomicU64,
    writeback: AtomicU8,
}

impl Changing {
    fn new(read_only: bool) -> io::Result<Arc<Self>> {
        let memory = rustix::fs::memfd_create("tidemark-disk", MemfdFlags::CLOEXEC);
        let mut file = File::from(memory?);
        file.write_all(&CONTENT)?;
        let options = BlkOptions {
            queues: 2,
            read_only,
            ..BlkOptions::default()
        };
        let disk = BlkDevice::open(file, options).map_err(io::Error::other)?;
        Ok(Arc::new(Self {
            disk,
            more: AtomicU64::new(0),
            writeback: AtomicU8::new(1),
        }))
    }
}

impl VirtioDevice for Changing {
    fn device_id(&self) -> u16 {
        self.disk.device_id()
    }
    fn pci_class(&self) -> u32 {
        self.disk.pci_class()
    }
    fn features(&self) -> u64 {
        self.disk.features() | feature::BLK_CONFIG_WCE
    }
    fn num_queues(&self) -> u16 {
        self.disk.num_queues()
    }
    fn queue_max_size(&self, index: u16) -> u16 {
        self.disk.queue_max_size(index)
    }
    fn config_len(&self) -> usize {
        self.disk.config_len()
    }
    fn config(&self) -> Vec<u8> {
        let mut config = self.disk.config();
        if let Some((capacity, _)) = config.split_first_chunk_mut::<8>() {
            let sectors = u64::from_le_bytes(*capacity);
            *capacity = (sectors + self.more.load(Ordering::SeqCst)).to_le_bytes();
        }
        let at = usize::try_from(blk::WRITEBACK).unwrap_or(0);
        if let Some(byte) = config.get_mut(at) {
            *byte = self.writeback.load(Ordering::SeqCst);
        }
        config
    }
    fn config_write(&self, offset: usize, data: &[u8]) -> bool {
        match (u64::try_from(offset), data) {
            (Ok(blk::WRITEBACK), &[value @ (0 | 1)]) => {
                self.writeback.swap(value, Ordering::SeqCst) != value
            }
            _ => false,
        }
    }
    fn negotiated(&self, features: u64) {
        // A driver that cannot flush gets a cache that needs no flushes.
        let both = feature::BLK_CONFIG_WCE | feature::BLK_FLUSH;
        if features & both == feature::BLK_CONFIG_WCE {
            self.writeback.store(0, Ordering::SeqCst);
        }
        self.disk.negotiated(features);
    }
    fn reset(&self) {
        self.writeback.store(1, Ordering::SeqCst);
        self.disk.reset();
    }
    fn process(
        &self,
        index: u16,
        queue: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        self.disk.process(index, queue, dma, notify)
    }
}
