//! The table of every register in BAR 0: where it is, how wide, who may write it and when.
//!
//! Every access goes through it, so that a late or misplaced write is a miss here and not a
//! forgotten `if` elsewhere.
//!
//! **Widths** (VIRTIO 1.4, "PCI Device Layout", PC-2: the driver uses the natural width, and 32
//! bits for the halves of 64-bit fields). What the standard leaves open is a project rule: a read
//! of any other width or alignment returns the bytes of the registers that it covers, and 0 between
//! them; a write of any other width or alignment is ignored.
//!
//! **Places** are a project choice that SeaBIOS, Linux and EDK2 accept; the capabilities announce
//! them.

use crate::status::State;
use bitflags::bitflags;
use spec::pci::CommonCfg;
use spec::tracker::TrackerRegs;
use std::mem::{offset_of, size_of};

#[cfg(test)]
mod tests;

/// Bytes of BAR 0.
pub const BAR0_SIZE: u64 = 16 << 10;
/// Bytes of BAR 1: the MSI-X table at 0 and the pending bits at [`PBA_OFFSET`].
pub const BAR1_SIZE: u64 = 8 << 10;
/// Where the MSI-X pending bit array begins in BAR 1.
pub const PBA_OFFSET: usize = 0x1000;
/// Most queues of a function (project rule: what the notify region and the MSI-X table hold).
pub const MAX_QUEUES: u16 = 64;

/// Common configuration, in BAR 0.
pub const COMMON: Region = Region {
    offset: 0,
    length: size_of::<CommonCfg>(),
};
/// ISR status, in BAR 0.
pub const ISR: Region = Region {
    offset: 0x1000,
    length: 1,
};
/// Device configuration, in BAR 0. The part in use is as long as the device type's structure.
pub const DEVICE: Region = Region {
    offset: 0x2000,
    length: 0x1000,
};
/// Doorbells, in BAR 0. The part in use has one for each queue.
pub const NOTIFY: Region = Region {
    offset: 0x3000,
    length: 4 * MAX_QUEUES as usize,
};
/// The dirty pages tracker, in BAR 0.
pub const TRACKER: Region = Region {
    offset: 0x3800,
    length: size_of::<TrackerRegs>(),
};
/// `notify_off_multiplier`: bytes between two queues' doorbells. A multiple of 4, as
/// NOTIFICATION_DATA demands (VIRTIO 1.4, "Notification capability").
pub const NOTIFY_MULTIPLIER: u32 = 4;

/// A part of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub length: usize,
}

impl Region {
    /// The byte after the last.
    pub const fn end(self) -> usize {
        self.offset + self.length
    }
    /// The position within the region of an access that lies in it entirely.
    pub fn position(self, offset: usize, len: usize) -> Option<usize> {
        let position = offset.checked_sub(self.offset)?;
        (position.checked_add(len)? <= self.length).then_some(position)
    }
}

/// A register's name. 64-bit fields are two registers (PC-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each is documented as a field of CommonCfg or TrackerRegs"
)]
pub enum Reg {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigMsixVector,
    NumQueues,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueMsixVector,
    QueueEnable,
    QueueNotifyOff,
    QueueDescLow,
    QueueDescHigh,
    QueueDriverLow,
    QueueDriverHigh,
    QueueDeviceLow,
    QueueDeviceHigh,
    QueueNotifConfigData,
    QueueReset,
    AdminQueueIndex,
    AdminQueueNum,
    QueueAvailState,
    QueueUsedState,
    IsrStatus,
    TrackerEnable,
    TrackerGraPower,
    TrackerPasid,
    TrackerAddrLow,
    TrackerAddrHigh,
    TrackerLengthLow,
    TrackerLengthHigh,
}

/// Which way a register goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Writes are ignored.
    ReadOnly,
    /// A read returns what was written, or what became of it.
    ReadWrite,
    /// A read returns the value and clears it; writes are ignored.
    ReadClears,
}

bitflags! {
    /// A set of the states of [`State`], without what they carry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct States: u16 {
        /// [`State::Reset`].
        const RESET = 1;
        /// [`State::Acknowledged`].
        const ACKNOWLEDGED = 1 << 1;
        /// [`State::Driver`].
        const DRIVER = 1 << 2;
        /// [`State::FeaturesOk`].
        const FEATURES_OK = 1 << 3;
        /// [`State::Running`].
        const RUNNING = 1 << 4;
        /// [`State::Suspending`].
        const SUSPENDING = 1 << 5;
        /// [`State::Suspended`].
        const SUSPENDED = 1 << 6;
        /// [`State::Resuming`].
        const RESUMING = 1 << 7;
        /// [`State::NeedsReset`].
        const NEEDS_RESET = 1 << 8;
        /// [`State::Failed`].
        const FAILED = 1 << 9;
        /// [`State::Resetting`].
        const RESETTING = 1 << 10;
    }
}

impl States {
    /// No state: a read-only register.
    pub const NEVER: Self = Self::empty();
    /// Every state.
    pub const ALWAYS: Self = Self::all();
    /// Every state but a reset in progress, when only status is heard.
    pub const UNLESS_RESETTING: Self = Self::all().difference(Self::RESETTING);
    /// SUS-11, read to cover the common configuration (D-16): not from the moment SUSPEND was
    /// accepted until the device runs again.
    pub const UNLESS_SUSPENDED: Self = Self::UNLESS_RESETTING
        .difference(Self::SUSPENDING)
        .difference(Self::SUSPENDED)
        .difference(Self::RESUMING);
    /// Features are open: after ACKNOWLEDGE, before FEATURES_OK.
    pub const NEGOTIATING: Self = Self::ACKNOWLEDGED.union(Self::DRIVER);
    /// Queues can be set up: after FEATURES_OK, and again after a queue reset.
    pub const SET_UP: Self = Self::FEATURES_OK.union(Self::RUNNING);

    /// The device configuration: once there is a driver, SUS-11 while suspended.
    pub const DEVICE_CONFIG: Self = Self::DRIVER.union(Self::SET_UP);
    /// Doorbells: only while the device is live (IN-1, SUS-7).
    pub const DOORBELLS: Self = Self::RUNNING;

    /// The set that holds just this state.
    pub const fn of(state: State) -> Self {
        match state {
            State::Reset => Self::RESET,
            State::Acknowledged => Self::ACKNOWLEDGED,
            State::Driver => Self::DRIVER,
            State::FeaturesOk => Self::FEATURES_OK,
            State::Running => Self::RUNNING,
            State::Suspending { .. } => Self::SUSPENDING,
            State::Suspended { .. } => Self::SUSPENDED,
            State::Resuming { .. } => Self::RESUMING,
            State::NeedsReset { .. } => Self::NEEDS_RESET,
            State::Failed { .. } => Self::FAILED,
            State::Resetting { .. } => Self::RESETTING,
        }
    }
}

/// What else must hold for a write to be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The selected queue exists.
    Queue,
    /// The selected queue exists, is not enabled and is not being reset.
    QueueOff,
    /// As `QueueOff`, and VIRTIO_F_QUEUE_STATE was negotiated.
    QueueState,
    /// The selected queue exists and VIRTIO_F_RING_RESET was negotiated.
    RingReset,
    /// The tracker is off.
    TrackerOff,
}

/// What [`Needs`] is judged against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The selected queue exists.
    pub queue: bool,
    /// The selected queue is enabled, or being reset.
    pub queue_on: bool,
    /// VIRTIO_F_QUEUE_STATE was negotiated.
    pub queue_state: bool,
    /// VIRTIO_F_RING_RESET was negotiated.
    pub ring_reset: bool,
    /// The tracker is on.
    pub tracker_on: bool,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    /// Which register.
    pub reg: Reg,
    /// Offset in BAR 0 in bytes.
    pub offset: usize,
    /// Natural width in bytes: 1, 2 or 4.
    pub width: usize,
    /// Which way it goes.
    pub access: Access,
    /// States in which a write is accepted.
    pub states: States,
    /// What else must hold.
    pub needs: Needs,
    /// The clause, as `reference/virtio-facilities.md` names it.
    pub clause: &'static str,
}

impl Register {
    /// Whether a write is accepted now.
    pub fn accepts(&self, state: State, facts: Facts) -> bool {
        let met = match self.needs {
            Needs::Nothing => true,
            Needs::Queue => facts.queue,
            Needs::QueueOff => facts.queue && !facts.queue_on,
            Needs::QueueState => facts.queue && !facts.queue_on && facts.queue_state,
            Needs::RingReset => facts.queue && facts.ring_reset,
            Needs::TrackerOff => !facts.tracker_on,
        };
        met && self.access == Access::ReadWrite && self.states.contains(States::of(state))
    }
    /// Whether an access of `len` bytes at `offset` touches it.
    pub const fn touched(&self, offset: usize, len: usize) -> bool {
        self.offset < offset.saturating_add(len) && offset < self.offset + self.width
    }
}

/// The rows that an access of `len` bytes at `offset` touches.
pub fn touched(offset: usize, len: usize) -> impl Iterator<Item = &'static Register> {
    REGISTERS.iter().filter(move |row| row.touched(offset, len))
}

/// The row whose place and natural width are exactly these.
pub fn exact(offset: usize, len: usize) -> Option<&'static Register> {
    REGISTERS
        .iter()
        .find(|row| row.offset == offset && row.width == len)
}

const fn ro(reg: Reg, offset: usize, width: usize, clause: &'static str) -> Register {
    let (access, states, needs) = (Access::ReadOnly, States::NEVER, Needs::Nothing);
    Register {
        reg,
        offset,
        width,
        access,
        states,
        needs,
        clause,
    }
}

const fn rw(
    reg: Reg,
    offset: usize,
    width: usize,
    states: States,
    needs: Needs,
    clause: &'static str,
) -> Register {
    let access = Access::ReadWrite;
    Register {
        reg,
        offset,
        width,
        access,
        states,
        needs,
        clause,
    }
}

/// Offset of a field of the common configuration in BAR 0.
macro_rules! common {
    ($field:ident) => {
        COMMON.offset + offset_of!(CommonCfg, $field)
    };
}

/// Offset of a field of the tracker in BAR 0.
macro_rules! tracker {
    ($field:ident) => {
        TRACKER.offset + offset_of!(TrackerRegs, $field)
    };
}

/// The table, in the order of offsets.
#[rustfmt::skip]
pub const REGISTERS: [Register; 33] = {
    use Needs::{Nothing, Queue, QueueOff, QueueState, RingReset, TrackerOff};
    const OPEN: States = States::UNLESS_SUSPENDED;
    const UP: States = States::SET_UP;
    // DT-6: the tracker is no part of the device's life but its reset. It can be switched on before
    // the driver starts and off after the device was suspended.
    const ANY: States = States::UNLESS_RESETTING;
    [
        rw(Reg::DeviceFeatureSelect, common!(device_feature_select), 4, OPEN, Nothing, "PC-3"),
        ro(Reg::DeviceFeature, common!(device_feature), 4, "PC-3"),
        rw(Reg::DriverFeatureSelect, common!(driver_feature_select), 4, OPEN, Nothing, "PC-3"),
        rw(Reg::DriverFeature, common!(driver_feature), 4, States::NEGOTIATING, Nothing, "IN-1"),
        rw(Reg::ConfigMsixVector, common!(config_msix_vector), 2, OPEN, Nothing, "PC-14"),
        ro(Reg::NumQueues, common!(num_queues), 2, "PC-10"),
        rw(Reg::DeviceStatus, common!(device_status), 1, States::ALWAYS, Nothing, "SUS-11"),
        ro(Reg::ConfigGeneration, common!(config_generation), 1, "PC-4"),
        rw(Reg::QueueSelect, common!(queue_select), 2, ANY, Nothing, "D-16"),
        rw(Reg::QueueSize, common!(queue_size), 2, UP, QueueOff, "PC-10"),
        rw(Reg::QueueMsixVector, common!(queue_msix_vector), 2, OPEN, Queue, "PC-14"),
        rw(Reg::QueueEnable, common!(queue_enable), 2, UP, QueueOff, "PC-10"),
        ro(Reg::QueueNotifyOff, common!(queue_notify_off), 2, "PC-10"),
        rw(Reg::QueueDescLow, common!(queue_desc), 4, UP, QueueOff, "PC-10"),
        rw(Reg::QueueDescHigh, common!(queue_desc) + 4, 4, UP, QueueOff, "PC-10"),
        rw(Reg::QueueDriverLow, common!(queue_driver), 4, UP, QueueOff, "PC-10"),
        rw(Reg::QueueDriverHigh, common!(queue_driver) + 4, 4, UP, QueueOff, "PC-10"),
        rw(Reg::QueueDeviceLow, common!(queue_device), 4, UP, QueueOff, "PC-10"),
        rw(Reg::QueueDeviceHigh, common!(queue_device) + 4, 4, UP, QueueOff, "PC-10"),
        ro(Reg::QueueNotifConfigData, common!(queue_notif_config_data), 2, "PC-10"),
        rw(Reg::QueueReset, common!(queue_reset), 2, UP, RingReset, "PC-7"),
        ro(Reg::AdminQueueIndex, common!(admin_queue_index), 2, "PC-9"),
        ro(Reg::AdminQueueNum, common!(admin_queue_num), 2, "PC-9"),
        rw(Reg::QueueAvailState, common!(queue_avail_state), 2, UP, QueueState, "QS-3, QS-8"),
        rw(Reg::QueueUsedState, common!(queue_used_state), 2, UP, QueueState, "QS-3, QS-8"),
        Register {
            reg: Reg::IsrStatus,
            offset: ISR.offset,
            width: 1,
            access: Access::ReadClears,
            states: States::NEVER,
            needs: Nothing,
            clause: "PC-13",
        },
        rw(Reg::TrackerEnable, tracker!(enable), 1, ANY, Nothing, "T-F5"),
        rw(Reg::TrackerGraPower, tracker!(gra_power), 1, ANY, TrackerOff, "DT-7"),
        rw(Reg::TrackerPasid, tracker!(pasid), 4, ANY, TrackerOff, "DT-5"),
        rw(Reg::TrackerAddrLow, tracker!(bitmap_addr), 4, ANY, TrackerOff, "DT-7"),
        rw(Reg::TrackerAddrHigh, tracker!(bitmap_addr) + 4, 4, ANY, TrackerOff, "DT-7"),
        rw(Reg::TrackerLengthLow, tracker!(bitmap_length), 4, ANY, TrackerOff, "DT-7"),
        rw(Reg::TrackerLengthHigh, tracker!(bitmap_length) + 4, 4, ANY, TrackerOff, "DT-7"),
    ]
};

/// Rows are in order, aligned to their width, and do not overlap.
const _: () = {
    let mut end = 0;
    let mut i = 0;
    while i < REGISTERS.len() {
        let row = &REGISTERS[i];
        assert!(row.width == 1 || row.width == 2 || row.width == 4);
        assert!(row.offset.is_multiple_of(row.width));
        assert!(row.offset >= end);
        end = row.offset + row.width;
        i += 1;
    }
    assert!(end <= 16 << 10);
};

/// The rows of the common configuration cover every byte of it.
const _: () = {
    let mut bytes = 0;
    let mut i = 0;
    while i < REGISTERS.len() {
        if REGISTERS[i].offset < COMMON.end() {
            bytes += REGISTERS[i].width;
        }
        i += 1;
    }
    assert!(bytes == COMMON.length);
};

const _: () = assert!(COMMON.end() <= ISR.offset);
const _: () = assert!(ISR.end() <= DEVICE.offset);
const _: () = assert!(DEVICE.end() <= NOTIFY.offset);
const _: () = assert!(NOTIFY.end() <= TRACKER.offset);
const _: () = assert!(TRACKER.end() <= 16 << 10);
// One vector per queue and one for the configuration, 16 bytes each.
const _: () = assert!((MAX_QUEUES as usize + 1) * 16 <= PBA_OFFSET);
