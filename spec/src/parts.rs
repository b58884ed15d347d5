//! Device parts: a device's state in pieces (VIRTIO 1.4, "Device parts").
//!
//! A part is a [`PartHeader`] and `length` bytes, the next one follows without a gap. What the
//! standard's parts do not hold is where queues stand, and the device configuration; [`VQ_STATE`] and
//! [`DEV_CFG`] add that (project rules).

use crate::{Le16, Le32, Le64};
use core::fmt;
use core::mem::{offset_of, size_of};
use zerocopy::FromBytes;

/// `part_type`: features offered; optional. VIRTIO 1.4.
pub const DEV_FEATURES: u16 = 0x100;
/// `part_type`: features that the driver accepted. VIRTIO 1.4.
pub const DRV_FEATURES: u16 = 0x101;
/// `part_type`: one field of the common configuration, by its offset. VIRTIO 1.4.
pub const PCI_COMMON_CFG: u16 = 0x102;
/// `part_type`: the device status byte. VIRTIO 1.4.
pub const DEVICE_STATUS: u16 = 0x103;
/// `part_type`: [`VqCfg`] of one queue. VIRTIO 1.4.
pub const VQ_CFG: u16 = 0x104;
/// `part_type`: [`VqNotifyCfg`] of one queue. VIRTIO 1.4.
pub const VQ_NOTIFY_CFG: u16 = 0x105;
/// `part_type`: [`VqState`] of one queue. **Project rule**: a value that VIRTIO 1.4 reserves in the
/// range of common parts, far from its own.
pub const VQ_STATE: u16 = 0x1f0;
/// `part_type`: the device configuration, whole; optional. Compared, never set: what a driver has read
/// of it has to be true of the device that it finds itself with. **Project rule**: VIRTIO 1.4 speaks of
/// a part of this name and defines none (D-5).
pub const DEV_CFG: u16 = 0x1f1;
/// The first `part_type` that belongs to a device type: the prose's reading; the table reserves up
/// to 0x2ff (D-7).
pub const DEVICE_TYPE: u16 = 0x200;
/// The first `part_type` that belongs to nobody. VIRTIO 1.4.
pub const RESERVED: u16 = 0x600;

/// Bit of [`PartHeader::flags`]: a receiver that does not know the part skips it. The standard's
/// macro is the bit's number, 0. VIRTIO 1.4.
pub const OPTIONAL: u8 = 1;

/// METADATA_GET: the most bytes that all parts take. VIRTIO 1.4.
pub const METADATA_SIZE: u8 = 0;
/// METADATA_GET: how many parts there are. VIRTIO 1.4.
pub const METADATA_COUNT: u8 = 1;
/// METADATA_GET: their headers. VIRTIO 1.4.
pub const METADATA_LIST: u8 = 2;
/// PARTS_GET: the parts whose headers follow. VIRTIO 1.4.
pub const GET_SELECTED: u8 = 0;
/// PARTS_GET: all parts. VIRTIO 1.4.
pub const GET_ALL: u8 = 1;

wire! {
    /// `struct virtio_dev_part_hdr`.
    pub struct PartHeader {
        /// What it is.
        pub part_type: Le16,
        /// [`OPTIONAL`] or 0.
        pub flags: u8,
        /// 0.
        pub reserved: u8,
        /// Which one of its type: an offset ([`PCI_COMMON_CFG`]: le32), a queue ([`VQ_CFG`] and the
        /// others of queues: le16), or the device type's own.
        pub selector: [u8; 8],
        /// Bytes that follow.
        pub length: Le32,
    }
}

impl PartHeader {
    /// The selector as a queue's index.
    pub const fn queue(&self) -> u16 {
        u16::from_le_bytes([self.selector[0], self.selector[1]])
    }

    /// The selector as an offset into the common configuration.
    pub const fn offset(&self) -> u32 {
        let [a, b, c, d, ..] = self.selector;
        u32::from_le_bytes([a, b, c, d])
    }
}

/// What it is, for messages.
impl fmt::Display for PartHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.part_type.get();
        let name = match number {
            DEV_FEATURES => "DEV_FEATURES",
            DRV_FEATURES => "DRV_FEATURES",
            PCI_COMMON_CFG => return write!(f, "PCI_COMMON_CFG of offset {}", self.offset()),
            DEVICE_STATUS => "DEVICE_STATUS",
            DEV_CFG => "DEV_CFG",
            VQ_CFG => return write!(f, "VQ_CFG of queue {}", self.queue()),
            VQ_NOTIFY_CFG => return write!(f, "VQ_NOTIFY_CFG of queue {}", self.queue()),
            VQ_STATE => return write!(f, "VQ_STATE of queue {}", self.queue()),
            _ => return write!(f, "part {number:#x}"),
        };
        f.write_str(name)
    }
}

/// Why bytes are no parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A part's value ends before its length does.
    CutOff {
        /// The part.
        header: PartHeader,
        /// Bytes that there are of it.
        got: usize,
    },
    /// What follows the last part is neither a part nor padding.
    Rest(usize),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutOff { header, got } => {
                let expected = header.length.get();
                write!(f, "{header}: {expected} bytes expected, {got} came")
            }
            Self::Rest(got) => write!(
                f,
                "{got} bytes behind the last part: a header of 16 or zeroes expected"
            ),
        }
    }
}

/// Goes through parts in bytes of any origin. The result of a command is padded to whole words: what
/// is too short for a header may be zeroes.
#[derive(Clone, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Over bytes that begin with a part, or are empty.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(PartHeader, &'a [u8]), Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        let Ok((header, after)) = PartHeader::read_from_prefix(self.0) else {
            let rest = core::mem::take(&mut self.0);
            let padding = rest.iter().all(|byte| *byte == 0);
            return (!padding).then_some(Err(Broken::Rest(rest.len())));
        };
        let length = usize::try_from(header.length.get()).unwrap_or(usize::MAX);
        let Some((value, after)) = after.split_at_checked(length) else {
            self.0 = &[];
            let got = after.len();
            return Some(Err(Broken::CutOff { header, got }));
        };
        self.0 = after;
        Some(Ok((header, value)))
    }
}

wire! {
    /// Data of METADATA_GET and PARTS_GET after the resource's header.
    pub struct Wanted {
        /// [`METADATA_SIZE`] and its like, or [`GET_SELECTED`] and [`GET_ALL`].
        pub what: u8,
        /// 0.
        pub reserved: [u8; 7],
    }
}

wire! {
    /// Result of METADATA_GET; headers may follow.
    pub struct Metadata {
        /// Bytes, or the number of parts.
        pub value: Le32,
        /// 0.
        pub reserved: Le32,
    }
}

wire! {
    /// `struct virtio_dev_part_vq_cfg`.
    pub struct VqCfg {
        /// Entries.
        pub queue_size: Le16,
        /// MSI-X vector.
        pub vector: Le16,
        /// 1 if the queue is enabled.
        pub enabled: Le16,
        /// 0.
        pub reserved: Le16,
        /// Address of the descriptor area (IOVA).
        pub queue_desc: Le64,
        /// Address of the driver area (IOVA).
        pub queue_driver: Le64,
        /// Address of the device area (IOVA).
        pub queue_device: Le64,
    }
}

wire! {
    /// `struct virtio_dev_part_vq_notify_data`.
    pub struct VqNotifyCfg {
        /// As in the common configuration.
        pub queue_notify_off: Le16,
        /// As in the common configuration.
        pub queue_notif_config_data: Le16,
        /// 0.
        pub reserved: [u8; 4],
    }
}

wire! {
    /// Where a queue stands, as [`crate::queue_state`] has it. Project rule.
    pub struct VqState {
        /// Available state.
        pub avail: Le16,
        /// Used state.
        pub used: Le16,
        /// 0.
        pub reserved: Le32,
    }
}

const _: () = assert!(size_of::<PartHeader>() == 16);
const _: () = assert!(offset_of!(PartHeader, flags) == 2);
const _: () = assert!(offset_of!(PartHeader, selector) == 4);
const _: () = assert!(offset_of!(PartHeader, length) == 12);
const _: () = assert!(size_of::<Wanted>() == 8);
const _: () = assert!(size_of::<Metadata>() == 8);
const _: () = assert!(size_of::<VqCfg>() == 32);
const _: () = assert!(offset_of!(VqCfg, enabled) == 4);
const _: () = assert!(offset_of!(VqCfg, queue_desc) == 8);
const _: () = assert!(offset_of!(VqCfg, queue_driver) == 16);
const _: () = assert!(offset_of!(VqCfg, queue_device) == 24);
const _: () = assert!(size_of::<VqNotifyCfg>() == 8);
const _: () = assert!(size_of::<VqState>() == 8);
