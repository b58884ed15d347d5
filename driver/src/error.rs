//! What can go wrong while driving a function.

use crate::bus::BusError;
use crate::memory::MemoryError;
use spec::features::Features;
use spec::status::DeviceStatus;

/// Why a driver could not do what was asked.
///
/// Nothing a device presents leads to a panic; it leads here. After an error that names the device
/// the only safe continuation is a reset.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The way to the device failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Memory given to the driver is too small or misaligned for its purpose.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The function is not a virtio 1.x device: try another one.
    #[error("PCI function {vendor:04x}:{device:04x} is not a virtio 1.x device")]
    NotVirtio {
        /// PCI vendor id.
        vendor: u16,
        /// PCI device id.
        device: u16,
    },
    /// The device lacks a capability that VIRTIO 1.4 or the caller's purpose requires.
    #[error("the device has no usable {0} capability")]
    NoCapability(&'static str),
    /// The structure that a capability points at is too short for a field that is needed.
    #[error("{what} needs {need} bytes of {capability}, the device gives {have}")]
    StructureTooShort {
        /// The field or access.
        what: &'static str,
        /// Which structure.
        capability: &'static str,
        /// Bytes needed.
        need: u64,
        /// Bytes given.
        have: u64,
    },
    /// The device did not get there in time. It may still do so: reset it before going on.
    #[error("the device has not {what} within {waited:?} (status {status:?})")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: std::time::Duration,
        /// The last status read.
        status: DeviceStatus,
    },
    /// The device set DEVICE_NEEDS_RESET.
    #[error("the device needs a reset while it {doing} (status {status:?})")]
    NeedsReset {
        /// What was asked of it.
        doing: &'static str,
        /// The status read.
        status: DeviceStatus,
    },
    /// The device is not in the state that the operation starts from.
    #[error("cannot {operation} with status {status:?}")]
    WrongStatus {
        /// What was asked for.
        operation: &'static str,
        /// The status read.
        status: DeviceStatus,
    },
    /// The device refuses a set of features by not keeping FEATURES_OK; FAILED has been set.
    #[error("the device refuses the features {0:?}")]
    FeaturesRefused(Features),
    /// The device does not offer features that are needed; FAILED has been set.
    #[error("the device does not offer {0:?}")]
    FeaturesMissing(Features),
    /// The disk must be written zone by zone, and ZONED is not negotiated: it cannot be driven, and
    /// FAILED has been set. Source: VIRTIO 1.4, "Block Device / Device Initialization".
    #[error(
        "the disk has zones that must be written in sequence (model {model}), and ZONED is not \
         negotiated: only a driver of zoned disks can drive it"
    )]
    HostManaged {
        /// `zoned.model` of the configuration.
        model: u8,
    },
    /// A facility was used whose feature was not negotiated.
    #[error("{0:?} is not negotiated")]
    NotNegotiated(Features),
    /// There is no such queue.
    #[error("there is no queue {0}")]
    NoSuchQueue(u16),
    /// The queue cannot have this size: 0, not a power of two, or above what the device takes.
    #[error("queue {queue} cannot have {size} entries, at most {max}")]
    QueueSize {
        /// Queue number.
        queue: u16,
        /// What was asked for.
        size: u16,
        /// What the device takes.
        max: u16,
    },
    /// A part of the queue is not aligned or leaves the address space.
    #[error("queue {queue}: {part} at {address:#x} is misaligned or out of range")]
    QueueAddress {
        /// Queue number.
        queue: u16,
        /// `desc`, `driver` or `device`.
        part: &'static str,
        /// The address (IOVA).
        address: u64,
    },
    /// The queue is enabled already; reset it or the device first.
    #[error("queue {0} is enabled already")]
    QueueEnabled(u16),
    /// The device has not enabled the queue when told to.
    #[error("queue {0} does not read back enabled")]
    QueueNotEnabled(u16),
    /// The device has no resources to map an event to this vector.
    #[error("the device refuses vector {vector} for {event}")]
    VectorRefused {
        /// The vector.
        vector: u16,
        /// `configuration` or `queue`.
        event: &'static str,
    },
    /// The device configuration changed during every one of many attempts to read it.
    #[error("the device configuration does not hold still")]
    ConfigUnstable,
    /// A saved state does not fit: the field and the reason. Nothing has been restored from it.
    #[error("saved state: {field}: {why}")]
    BadState {
        /// The field, with its queue where there is one.
        field: String,
        /// Why it cannot be accepted.
        why: String,
    },
    /// The tracker does not answer as its capability says.
    #[error("dirty page tracker: {0}")]
    Tracker(String),
    /// No room for the request now: reap first.
    #[error("the queue is full")]
    QueueFull,
    /// A request has no buffer, or more than the queue can ever take, or 4 GiB or more of them.
    #[error("a chain of {buffers} buffers does not fit a queue of {size}")]
    BadChain {
        /// Number of buffers.
        buffers: usize,
        /// Queue size.
        size: u16,
    },
    /// The device's used index is further on than there are requests.
    #[error("used index {used} after {last} with {in_flight} requests in flight")]
    UsedIndex {
        /// Index in memory.
        used: u16,
        /// The last one the driver took.
        last: u16,
        /// Requests in flight.
        in_flight: u16,
    },
    /// The device returned a descriptor that was not given to it.
    #[error("used element names descriptor {id}, which is not in flight")]
    UsedId {
        /// What the element holds.
        id: u32,
    },
    /// The device says that it wrote more than the buffers hold.
    #[error("used element of descriptor {id} claims {len} bytes written, {writable} were writable")]
    UsedLength {
        /// Head descriptor.
        id: u16,
        /// Claimed length in bytes.
        len: u32,
        /// Writable bytes of the chain.
        writable: u32,
    },
    /// The device does not have an administration command that is needed: an older one.
    #[error(
        "the device has no administration command {command} for group {group}",
        command = crate::admin::command_name(*opcode)
    )]
    CommandMissing {
        /// Group type.
        group: u16,
        /// The command.
        opcode: u16,
    },
    /// The device refused an administration command. Nothing changed.
    #[error(
        "{command} for member {member} of group {group} is refused: {status}, {qualifier}",
        command = crate::admin::command_name(*opcode),
        group = subject.0,
        member = subject.1,
        status = spec::admin::status::name(*status),
        qualifier = spec::admin::qualifier::name(*qualifier)
    )]
    Refused {
        /// The command.
        opcode: u16,
        /// Group type and member.
        subject: (u16, u64),
        /// `status`, one of [`spec::admin::status`].
        status: u16,
        /// `status_qualifier`, one of [`spec::admin::qualifier`].
        qualifier: u16,
    },
    /// There can not be so many virtual functions.
    #[error("{count} virtual functions, the device has at most {max}")]
    TooManyFunctions {
        /// How many were asked for.
        count: u16,
        /// How many there can be.
        max: u16,
    },
}
