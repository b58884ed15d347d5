//! What a judging function offers, and how it provokes.

use crate::constants::feature;
use std::path::PathBuf;

/// What kind of device is offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A disk.
    #[default]
    Block,
    /// A host-managed zoned disk.
    Zoned,
    /// A source of entropy.
    Entropy,
}

/// Layouts of capabilities that the standard allows and drivers seldom meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Odd {
    /// A capability with a reserved `cfg_type` comes first.
    pub reserved_type: bool,
    /// A common configuration in a reserved BAR comes before the real one.
    pub reserved_bar: bool,
    /// The capability of the common configuration is longer than specified.
    pub long_capability: bool,
    /// The structures are larger than specified, and so is the device configuration.
    pub large_structures: bool,
    /// A second common configuration comes after the real one.
    pub second_common: bool,
}

impl Odd {
    /// All of them.
    pub const ALL: Self = Self {
        reserved_type: true,
        reserved_bar: true,
        long_capability: true,
        large_structures: true,
        second_common: true,
    };
    /// None of them.
    pub const NONE: Self = Self {
        reserved_type: false,
        reserved_bar: false,
        long_capability: false,
        large_structures: false,
        second_common: false,
    };
}

/// What is offered and what is provoked. Counts stand where a judge of devices would wait: a driver
/// meets the same on a slow machine as on a fast one.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it is called.
    pub name: &'static str,
    /// What kind of device.
    pub kind: Kind,
    /// The disk's file; 8 MiB of zeroes if there is none.
    pub disk: Option<PathBuf>,
    /// Features of transport and rings that are offered.
    pub features: u64,
    /// Queues of the device type, 1 to 8.
    pub queues: u16,
    /// Size of each, and most descriptors of a chain.
    pub queue_size: u16,
    /// Odd layouts of capabilities.
    pub odd: Odd,
    /// The disk is read-only, and RO is offered.
    pub read_only: bool,
    /// It has the transitional device id.
    pub transitional: bool,
    /// PCI revision id.
    pub revision: u8,
    /// MSI-X vectors, if not one for each queue and one more.
    pub vectors: Option<u16>,
    /// It has the SR-IOV capability.
    pub sr_iov: bool,
    /// How many reads still show the old state of a reset, a queue reset, a suspend, a resume.
    pub slow_reads: u32,
    /// FEATURES_OK does not stay.
    pub refuse_features: bool,
    /// After how many requests DEVICE_NEEDS_RESET is set, once.
    pub needs_reset_after: Option<u64>,
    /// After how many requests the capacity changes, once.
    pub change_config_after: Option<u64>,
    /// The configuration changes between two reads of a wide field, once.
    pub tear_config: bool,
    /// After how many requests an interrupt comes for which there is no reason, once.
    pub spurious_after: Option<u64>,
    /// One request is answered only after others that came later.
    pub reorder: bool,
    /// The used ring's suppression fields say what the negotiated feature makes the driver ignore.
    pub lie_in_used_ring: bool,
    /// LIST_USE is answered with a status that is reserved.
    pub reserved_status: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            name: "watch",
            kind: Kind::Block,
            disk: None,
            features: feature::VERSION_1
                | feature::INDIRECT_DESC
                | feature::EVENT_IDX
                | feature::RING_RESET
                | feature::NOTIFICATION_DATA
                | feature::SUSPEND
                | feature::QUEUE_STATE
                | RESERVED,
            queues: 1,
            queue_size: 64,
            odd: Odd::ALL,
            read_only: false,
            transitional: false,
            revision: 0x5a,
            vectors: None,
            sr_iov: false,
            slow_reads: 2,
            refuse_features: false,
            needs_reset_after: None,
            change_config_after: Some(6),
            tear_config: true,
            spurious_after: Some(3),
            reorder: true,
            lie_in_used_ring: true,
            reserved_status: false,
        }
    }
}

/// Features for which no text has a meaning: bits 46 to 49, and SR_IOV, which only a function with
/// that capability has.
pub const RESERVED: u64 = 0xf << 46 | feature::SR_IOV;

impl Plan {
    /// Every plan that drivers are run against, the plain one first.
    pub fn all() -> Vec<Self> {
        let base = Self::default;
        let without = |bits: u64| base().features & !bits;
        vec![
            base(),
            Self {
                name: "plain-rings",
                features: without(
                    feature::INDIRECT_DESC | feature::EVENT_IDX | feature::NOTIFICATION_DATA,
                ) | feature::ORDER_PLATFORM,
                ..base()
            },
            Self {
                name: "plain-layout",
                features: without(feature::NOTIFICATION_DATA),
                odd: Odd::NONE,
                ..base()
            },
            Self {
                name: "notify-data",
                features: without(feature::NOTIFICATION_DATA) | feature::NOTIF_CONFIG_DATA,
                ..base()
            },
            Self {
                name: "both-data",
                features: base().features | feature::NOTIF_CONFIG_DATA,
                vectors: Some(1),
                ..base()
            },
            Self {
                name: "in-order",
                features: without(feature::EVENT_IDX) | feature::IN_ORDER,
                reorder: false,
                ..base()
            },
            Self {
                name: "packed",
                features: base().features | feature::RING_PACKED,
                ..base()
            },
            Self {
                name: "packed-plain",
                features: without(feature::INDIRECT_DESC | feature::EVENT_IDX)
                    | feature::RING_PACKED,
                ..base()
            },
            Self {
                name: "transitional",
                transitional: true,
                revision: 0,
                ..base()
            },
            Self {
                name: "refuse",
                refuse_features: true,
                ..base()
            },
            Self {
                name: "needs-reset",
                needs_reset_after: Some(4),
                ..base()
            },
            Self {
                name: "admin",
                features: base().features | feature::ADMIN_VQ,
                sr_iov: true,
                ..base()
            },
            Self {
                name: "reserved-status",
                features: base().features | feature::ADMIN_VQ,
                reserved_status: true,
                ..base()
            },
            Self {
                name: "zoned",
                kind: Kind::Zoned,
                ..base()
            },
            Self {
                name: "read-only",
                read_only: true,
                ..base()
            },
            Self {
                name: "entropy",
                kind: Kind::Entropy,
                ..base()
            },
        ]
    }

    /// The plan of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|plan| plan.name == name)
    }

    /// Whether it offers a feature of transport and rings.
    pub fn offers(&self, bit: u64) -> bool {
        self.features & bit != 0
    }
}
