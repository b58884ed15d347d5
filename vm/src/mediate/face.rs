//! What the guest sees of a device, and what is hidden from it.

use crate::mediate::MediateError;
use driver::bus::RelayBus;
use driver::transport::Region;
use driver::{DriverError, Transport};
use spec::features::Features;
use spec::pci::{VirtioPciCap, cfg_type};
use std::mem::{offset_of, size_of};
use std::ops::Range;
use zerocopy::FromBytes;

/// Bytes of configuration space.
pub(super) const CONFIG_SIZE: usize = 4096;
/// Where VIRTIO 1.4's common configuration ends; this project's fields follow.
pub(super) const COMMON_END: usize = 64;
/// Offsets in the header of configuration space (PCI).
const COMMAND: usize = 4;
const STATUS: usize = 6;
const BARS: Range<usize> = 0x10..0x28;
const INTERRUPT_LINE: usize = 0x3c;
/// The lowest bits of a BAR: its kind.
const BAR_TYPE: u8 = 0xf;
const CAPABILITIES: usize = 0x34;
const HEADER_END: usize = 0x40;
/// Where conventional capabilities end.
const CAPS_END: usize = 256;
/// Capability ids (PCI).
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;

/// What the mediator negotiates for itself and the guest does not see.
pub(super) const OURS: Features = Features::SUSPEND.union(Features::QUEUE_STATE);

/// A device as the guest sees it. It does not change when the device is moved.
#[derive(Debug)]
pub(super) struct Face {
    /// Configuration space after a reset, as the guest sees it.
    config: Vec<u8>,
    /// Bytes of configuration space that the guest sees instead of the device's.
    patches: Vec<(usize, u8)>,
    pub bars: [u64; 6],
    pub vectors: u16,
    pub device_id: u16,
    /// The features that the guest sees offered.
    pub visible: Features,
    pub common: Region,
    pub notify: Region,
    pub tracker: Option<Region>,
    /// Largest size of each queue.
    pub queues: Vec<u16>,
    device_config: Vec<u8>,
    /// The window onto the BARs in configuration space.
    pub window: Option<usize>,
    /// The byte of device control whose uppermost bit starts a function level reset.
    pub flr: Option<usize>,
    /// The MSI-X table: BAR and place.
    pub table: Option<(u8, Range<u64>)>,
}

impl Face {
    /// Looks at a device that has just been reset.
    pub fn look(bus: &dyn RelayBus, transport: &Transport) -> Result<Self, DriverError> {
        let mut config = vec![0; CONFIG_SIZE];
        bus.config_read(0, &mut config)?;
        // What is switched on just now is the guest's business, and where BARs and the interrupt
        // line are is the host's, behind VFIO.
        for at in (COMMAND..STATUS).chain(BARS).chain([INTERRUPT_LINE]) {
            let kept = if BARS.contains(&at) && at.is_multiple_of(4) {
                BAR_TYPE
            } else {
                0
            };
            if let Some(byte) = config.get_mut(at) {
                *byte &= kept;
            }
        }
        let caps = transport.capabilities();
        let mut bars = [0; 6];
        for (index, size) in (0..).zip(&mut bars) {
            *size = bus.bar_size(index);
        }
        let mut queues = Vec::new();
        for index in 0..transport.num_queues()? {
            queues.push(transport.queue_max_size(index)?);
        }
        let length = caps.device.map_or(0, |region| region.length);
        let mut device_config = vec![0; usize::try_from(length.min(4096)).unwrap_or(0)];
        if !device_config.is_empty() {
            transport.device_config_read(0, &mut device_config)?;
        }
        let mut face = Self {
            patches: Vec::new(),
            bars,
            vectors: bus.vectors(),
            device_id: transport.device_id(),
            visible: transport.device_features()?.difference(OURS),
            common: caps.common,
            notify: caps.notify,
            tracker: caps.tracker,
            queues,
            device_config,
            window: None,
            flr: None,
            table: None,
            config,
        };
        face.walk();
        for (at, byte) in &face.patches {
            if let Some(there) = face.config.get_mut(*at) {
                *there = *byte;
            }
        }
        Ok(face)
    }

    /// Goes through the capabilities, and takes the tracker's out of the list.
    fn walk(&mut self) {
        let byte = |at: usize| self.config.get(at).copied().unwrap_or(0);
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| byte(at + i)));
        if byte(STATUS) & 0x10 == 0 {
            return;
        }
        let mut patches = Vec::new();
        // Where the pointer to the capability stands that is looked at.
        let mut link = CAPABILITIES;
        let mut at = usize::from(byte(link) & !3);
        for _ in 0..CAPS_END / 4 {
            if !(HEADER_END..CAPS_END).contains(&at) {
                break;
            }
            let next = byte(at + 1);
            let cap = self.config.get(at..).unwrap_or_default();
            let cap = VirtioPciCap::read_from_prefix(cap).ok();
            let mut hidden = false;
            match (byte(at), cap) {
                (VENDOR, Some((cap, _))) if cap.cfg_type == cfg_type::TRACKER => {
                    let end = (at + usize::from(cap.cap_len)).min(CAPS_END);
                    patches.extend((at..end).map(|at| (at, 0)));
                    patches.push((link, next));
                    hidden = true;
                }
                (VENDOR, Some((cap, _))) if cap.cfg_type == cfg_type::COMMON => {
                    let end = u32::try_from(COMMON_END).unwrap_or(u32::MAX);
                    let seen = cap.length.get().min(end).to_le_bytes();
                    let length = at + offset_of!(VirtioPciCap, length);
                    patches.extend((length..).zip(seen));
                }
                (VENDOR, Some((cap, _))) if cap.cfg_type == cfg_type::PCI => self.window = Some(at),
                (EXPRESS, _) => self.flr = Some(at + 9),
                (MSIX, _) => {
                    let place = word(at + 4);
                    let start = u64::from(place & !7);
                    let end = start + 16 * u64::from(self.vectors);
                    let bar = u8::try_from(place & 7).unwrap_or(0);
                    self.table = Some((bar, start..end));
                }
                _ => {}
            }
            if !hidden {
                link = at + 1;
            }
            at = usize::from(next & !3);
        }
        self.patches = patches;
    }

    /// Puts what the guest is to see over what was read at `offset`.
    pub fn hide(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in &self.patches {
            if let Some(there) = at.checked_sub(offset).and_then(|at| data.get_mut(at)) {
                *there = *byte;
            }
        }
    }

    /// What the guest would notice if `other` took this device's place.
    pub fn unlike(&self, other: &Self) -> Option<String> {
        let differ = |what: &str| Some(format!("{what} differs"));
        if self.device_id != other.device_id {
            return Some(format!(
                "it is device type {}, not {}",
                other.device_id, self.device_id
            ));
        }
        if self.queues != other.queues {
            return Some(format!(
                "it has queues of {:?} entries, not {:?}",
                other.queues, self.queues
            ));
        }
        if self.bars != other.bars {
            return differ("the size of its BARs");
        }
        if self.vectors != other.vectors {
            return differ("the number of its interrupt vectors");
        }
        let mut bytes = self.config.iter().zip(&other.config);
        if let Some(at) = bytes.position(|(this, that)| this != that) {
            return differ(&format!("its configuration space at {at:#x}"));
        }
        if (self.common, self.notify) != (other.common, other.notify) {
            return differ("the place of its registers");
        }
        if self.device_config != other.device_config {
            return differ("its device configuration, such as the size of a disk,");
        }
        let missing = self.visible - other.visible;
        (!missing.is_empty()).then(|| format!("it does not offer {missing:?}, which the guest saw"))
    }
}

/// What a device has of what a move needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facilities {
    features: Features,
    tracker: bool,
}

impl Facilities {
    pub fn look(transport: &Transport) -> Result<Self, DriverError> {
        Ok(Self {
            features: transport.device_features()? & OURS,
            tracker: transport.has_tracker(),
        })
    }

    /// The features that the mediator negotiates for itself: all or none, because none of them is
    /// of any use without the other.
    pub fn negotiated(self) -> Features {
        if self.features == OURS {
            OURS
        } else {
            Features::empty()
        }
    }

    pub fn tracker(self) -> bool {
        self.tracker
    }

    /// What keeps a device called `name` from being moved, unless there is nothing.
    pub fn check(self, name: &str, tracker_needed: bool) -> Result<(), MediateError> {
        let mut lacks = Vec::new();
        if !self.features.contains(Features::SUSPEND) {
            lacks.push("SUSPEND (feature bit 43)");
        }
        if !self.features.contains(Features::QUEUE_STATE) {
            lacks.push("queue state (feature bit 44, this project's)");
        }
        let movable = lacks.is_empty();
        if !self.tracker {
            lacks.push("the dirty pages tracker (capability type 0x0a, this project's)");
        }
        if movable && (self.tracker || !tracker_needed) {
            return Ok(());
        }
        Err(MediateError::Lacks {
            name: name.to_owned(),
            what: lacks.join(", "),
        })
    }
}

const _: () = assert!(size_of::<VirtioPciCap>() == 16);
