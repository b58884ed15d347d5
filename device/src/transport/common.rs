//! What the common configuration holds, but for status and vectors.

use super::half;
use super::registers::{Facts, NOTIFY_MULTIPLIER, Reg};
use super::{low16, set_half};
use crate::queue::QueueConfig;
use spec::features::Features;
use spec::parts::VqCfg;
use spec::pci::NO_VECTOR;
use spec::queue_state::QueueState;

/// Where a queue is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// `queue_enable` is 0.
    #[default]
    Off,
    /// `queue_enable` is 1 and the engine does not run it.
    Enabled,
    /// The engine runs it.
    Started,
    /// The engine was asked to stop it and has not yet.
    Stopping,
}

/// One queue as the driver configured it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    max_size: u16,
    /// Entries.
    pub(crate) size: u16,
    desc: u64,
    driver: u64,
    device: u64,
    /// Where it starts, and where it stood when it last stopped; `None` is the beginning.
    pub(crate) state: Option<QueueState>,
    pub(crate) phase: Phase,
    /// `queue_reset` was written and is not finished: reads 1.
    pub(crate) resetting: bool,
}

impl Queue {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            desc: 0,
            driver: 0,
            device: 0,
            state: None,
            phase: Phase::Off,
            resetting: false,
        }
    }
    /// VR-2, PC-7: everything is as after a device reset, `queue_enable` included.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }
    fn enabled(&self) -> bool {
        self.phase != Phase::Off
    }
    /// As a device part.
    pub(crate) fn cfg(&self, vector: u16) -> VqCfg {
        VqCfg {
            queue_size: self.size.into(),
            vector: vector.into(),
            enabled: u16::from(self.enabled()).into(),
            reserved: 0.into(),
            queue_desc: self.desc.into(),
            queue_driver: self.driver.into(),
            queue_device: self.device.into(),
        }
    }
    /// Whether it can have so many entries: up to what was offered, and of a split ring a power
    /// of two.
    fn takes_size(&self, size: u16, packed: bool) -> bool {
        (size.is_power_of_two() || packed && size != 0) && size <= self.max_size
    }
    /// Why a device part is none of this queue's, if it is not. Vectors go up to `vectors`.
    pub(crate) fn refuses(&self, cfg: &VqCfg, vectors: u16, packed: bool) -> Option<String> {
        let (size, vector) = (cfg.queue_size.get(), cfg.vector.get());
        if !self.takes_size(size, packed) {
            let max = self.max_size;
            let what = if packed {
                "at least one"
            } else {
                "a power of two"
            };
            return Some(format!("{size} entries, {what} up to {max} expected"));
        }
        if vector > vectors && vector != NO_VECTOR {
            return Some(format!("vector {vector} of {vectors}"));
        }
        (cfg.enabled.get() > 1).then(|| format!("enabled {}", cfg.enabled))
    }
    /// Takes a device part that is not refused. The queue does not run.
    pub(crate) fn configure(&mut self, cfg: &VqCfg) {
        self.size = cfg.queue_size.get();
        self.desc = cfg.queue_desc.get();
        self.driver = cfg.queue_driver.get();
        self.device = cfg.queue_device.get();
        self.phase = if cfg.enabled.get() == 1 {
            Phase::Enabled
        } else {
            Phase::Off
        };
    }
}

/// The registers behind the common configuration's bytes.
#[derive(Debug)]
pub(crate) struct Common {
    offered: Features,
    driver_features: Features,
    device_feature_select: u32,
    driver_feature_select: u32,
    /// The selected queue; may be one that does not exist.
    pub(crate) select: u16,
    /// The queues, administration queues last.
    pub(crate) queues: Vec<Queue>,
    /// How many of them are administration queues.
    admin_queues: u16,
    /// The configuration as it was when it was last looked at, and the generation it is of.
    seen: Vec<u8>,
    generation: u8,
}

impl Common {
    /// After power-on.
    pub(crate) fn new(
        offered: Features,
        max_sizes: &[u16],
        admin_queues: u16,
        config: Vec<u8>,
    ) -> Self {
        Self {
            offered,
            driver_features: Features::empty(),
            device_feature_select: 0,
            driver_feature_select: 0,
            select: 0,
            queues: max_sizes.iter().map(|max| Queue::new(*max)).collect(),
            admin_queues,
            seen: config,
            generation: 0,
        }
    }
    /// Device reset. The generation goes on counting.
    pub(crate) fn reset(&mut self) {
        self.driver_features = Features::empty();
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.select = 0;
        self.queues.iter_mut().for_each(Queue::reset);
    }
    /// What the driver has accepted so far.
    pub(crate) fn features(&self) -> Features {
        self.driver_features
    }
    /// Puts what another device's driver accepted in their place.
    pub(crate) fn set_features(&mut self, features: Features) {
        self.driver_features = features;
    }
    /// IN-1: a subset of what is offered, with VERSION_1, which a device without legacy interface
    /// insists on.
    pub(crate) fn acceptable(&self) -> bool {
        self.offered.contains(self.driver_features)
            && self.driver_features.contains(Features::VERSION_1)
    }
    /// What is offered.
    pub(crate) fn offered(&self) -> Features {
        self.offered
    }
    /// Number of the device type's queues, which is the index of the first administration queue.
    pub(crate) fn num_queues(&self) -> u16 {
        let all = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        all.saturating_sub(self.admin_queues)
    }
    /// The selected queue, if it exists. Administration queues do not without their feature.
    pub(crate) fn selected(&self) -> Option<&Queue> {
        self.queues.get(self.selection()?)
    }
    fn selected_mut(&mut self) -> Option<&mut Queue> {
        let selection = self.selection()?;
        self.queues.get_mut(selection)
    }
    fn selection(&self) -> Option<usize> {
        let there = self.driver_features.contains(Features::ADMIN_VQ);
        (there || self.select < self.num_queues()).then_some(usize::from(self.select))
    }
    /// What the register table asks for. The tracker's part is the tracker's.
    pub(crate) fn facts(&self) -> Facts {
        let queue = self.selected();
        Facts {
            queue: queue.is_some(),
            queue_on: queue.is_some_and(|queue| queue.enabled() || queue.resetting),
            queue_state: self.driver_features.contains(Features::QUEUE_STATE),
            ring_reset: self.driver_features.contains(Features::RING_RESET),
            tracker_on: false,
        }
    }
    /// Notices a change of the device configuration, whoever made it, before any of it is shown
    /// (PC-4): a driver that reads the same generation twice has read one configuration between.
    pub(crate) fn look(&mut self, config: &[u8]) -> u8 {
        if self.seen != config {
            self.generation = self.generation.wrapping_add(1);
            self.seen.clear();
            self.seen.extend_from_slice(config);
        }
        self.generation
    }
    /// Whether the queues are packed.
    fn packed(&self) -> bool {
        self.driver_features.contains(Features::RING_PACKED)
    }
    /// Where a queue that does not run stands, or would start.
    pub(crate) fn state_of(&self, queue: &Queue) -> QueueState {
        let begin = QueueState::default_of(self.packed());
        queue.state.unwrap_or(begin)
    }
    /// What the engine needs to start a queue.
    pub(crate) fn queue_config(&self, queue: &Queue) -> QueueConfig {
        QueueConfig {
            packed: self.packed(),
            size: queue.size,
            desc: queue.desc,
            driver: queue.driver,
            device: queue.device,
            event_idx: self.driver_features.contains(Features::RING_EVENT_IDX),
            state: self.state_of(queue),
        }
    }

    /// The value of a register that is kept here, or `None`. `live` is where the selected queue
    /// stands in the engine, if it runs.
    pub(crate) fn read(&self, reg: Reg, live: Option<QueueState>) -> Option<u32> {
        let queue = self.selected();
        let low = |field: fn(&Queue) -> u64| queue.map_or(0, |queue| half(field(queue), false));
        let high = |field: fn(&Queue) -> u64| queue.map_or(0, |queue| half(field(queue), true));
        // QS-2: reads 0 unless negotiated.
        let state = || {
            let known = self.driver_features.contains(Features::QUEUE_STATE);
            let queue = queue.filter(|_| known)?;
            Some(live.unwrap_or(self.state_of(queue)))
        };
        Some(match reg {
            Reg::DeviceFeatureSelect => self.device_feature_select,
            Reg::DeviceFeature => window(self.offered, self.device_feature_select),
            Reg::DriverFeatureSelect => self.driver_feature_select,
            Reg::DriverFeature => window(self.driver_features, self.driver_feature_select),
            Reg::NumQueues => u32::from(self.num_queues()),
            Reg::QueueSelect => u32::from(self.select),
            Reg::QueueSize => queue.map_or(0, |queue| u32::from(queue.size)),
            Reg::QueueEnable => queue.map_or(0, |queue| u32::from(queue.enabled())),
            // In units of the multiplier, so that every queue has its own doorbell.
            Reg::QueueNotifyOff => queue.map_or(0, |_| u32::from(self.select)),
            Reg::QueueDescLow => low(|queue| queue.desc),
            Reg::QueueDescHigh => high(|queue| queue.desc),
            Reg::QueueDriverLow => low(|queue| queue.driver),
            Reg::QueueDriverHigh => high(|queue| queue.driver),
            Reg::QueueDeviceLow => low(|queue| queue.device),
            Reg::QueueDeviceHigh => high(|queue| queue.device),
            Reg::QueueReset => queue.map_or(0, |queue| u32::from(queue.resetting)),
            Reg::QueueAvailState => state().map_or(0, |state| u32::from(state.avail)),
            Reg::QueueUsedState => state().map_or(0, |state| u32::from(state.used)),
            Reg::AdminQueueIndex if self.admin_queues != 0 => u32::from(self.num_queues()),
            Reg::AdminQueueNum => u32::from(self.admin_queues),
            // NOTIF_CONFIG_DATA is not offered.
            Reg::QueueNotifConfigData | Reg::AdminQueueIndex => 0,
            _ => return None,
        })
    }

    /// A write that the table has accepted, to a register that is kept here. Enabling and resetting
    /// queues is the function's work.
    pub(crate) fn write(&mut self, reg: Reg, value: u32) {
        match reg {
            Reg::DeviceFeatureSelect => self.device_feature_select = value,
            Reg::DriverFeatureSelect => self.driver_feature_select = value,
            Reg::DriverFeature => {
                let mut bits = self.driver_features.bits();
                // PC-3: beyond bit 63 there is nothing.
                if self.driver_feature_select <= 1 {
                    set_half(&mut bits, self.driver_feature_select == 1, value);
                }
                self.driver_features = Features::from_bits_retain(bits);
            }
            Reg::QueueSelect => self.select = low16(value),
            _ => {
                let packed = self.packed();
                if let Some(queue) = self.selected_mut() {
                    queue.write(reg, value, packed);
                }
            }
        }
    }
}

impl Queue {
    fn write(&mut self, reg: Reg, value: u32, packed: bool) {
        let state = self.state.unwrap_or(QueueState::default_of(packed));
        match reg {
            // PC-8, PC-10: others are ignored.
            Reg::QueueSize => {
                let size = low16(value);
                if self.takes_size(size, packed) {
                    self.size = size;
                }
            }
            Reg::QueueDescLow => set_half(&mut self.desc, false, value),
            Reg::QueueDescHigh => set_half(&mut self.desc, true, value),
            Reg::QueueDriverLow => set_half(&mut self.driver, false, value),
            Reg::QueueDriverHigh => set_half(&mut self.driver, true, value),
            Reg::QueueDeviceLow => set_half(&mut self.device, false, value),
            Reg::QueueDeviceHigh => set_half(&mut self.device, true, value),
            Reg::QueueAvailState => {
                let avail = low16(value);
                self.state = Some(QueueState { avail, ..state });
            }
            Reg::QueueUsedState => {
                let used = low16(value);
                self.state = Some(QueueState { used, ..state });
            }
            _ => {}
        }
    }
}

/// 32 of the 64 feature bits; 0 beyond them (PC-3).
fn window(features: Features, select: u32) -> u32 {
    if select <= 1 {
        half(features.bits(), select == 1)
    } else {
        0
    }
}

const _: () = assert!(
    NOTIFY_MULTIPLIER == 4,
    "queue_notify_off is the queue's index"
);

#[cfg(test)]
mod tests {
    use super::*;

    fn common() -> Common {
        let offered = Features::from_bits_retain(1 << 43 | 1 << 44 | 1 << 32 | 1 << 9);
        Common::new(offered, &[256, 8], 0, vec![1, 2])
    }

    #[test]
    fn features_are_windowed_and_judged() {
        let mut common = common();
        let mut offered = |select| {
            common.write(Reg::DeviceFeatureSelect, select);
            common.read(Reg::DeviceFeature, None)
        };
        assert_eq!(offered(0), Some(1 << 9));
        assert_eq!(offered(1), Some(1 << 12 | 1 << 11 | 1));
        assert_eq!(offered(2), Some(0));
        assert_eq!(offered(u32::MAX), Some(0));
        for (select, value, acceptable) in [
            (0, 1 << 9, false),
            (1, 1, true),
            (1, 1 << 11 | 1, true),
            (2, u32::MAX, true),
            (1, 1 << 13 | 1, false),
            (1, 1 << 12 | 1, true),
            (0, 1 << 10, false),
        ] {
            common.write(Reg::DriverFeatureSelect, select);
            common.write(Reg::DriverFeature, value);
            assert_eq!(common.acceptable(), acceptable, "{value:#x} in {select}");
        }
        assert_eq!(common.features().bits(), 1 << 44 | 1 << 32 | 1 << 10);
    }

    #[test]
    fn queues_beyond_the_last_read_zero() {
        let mut common = common();
        let size = |common: &Common| common.read(Reg::QueueSize, None);
        assert_eq!(size(&common), Some(256));
        common.write(Reg::QueueSelect, 1);
        assert_eq!(
            (size(&common), common.read(Reg::QueueNotifyOff, None)),
            (Some(8), Some(1))
        );
        common.write(Reg::QueueSelect, 2);
        common.write(Reg::QueueSize, 4);
        common.write(Reg::QueueDescLow, 4);
        assert_eq!((size(&common), common.facts().queue), (Some(0), false));
        assert_eq!(common.read(Reg::QueueDescLow, None), Some(0));
    }

    #[test]
    fn queue_sizes_are_powers_of_two() {
        let mut common = common();
        for (value, size) in [
            (64, 64),
            (0, 64),
            (65, 64),
            (512, 64),
            (256, 256),
            (0x1_0008, 8),
        ] {
            common.write(Reg::QueueSize, value);
            assert_eq!(common.queues[0].size, size, "{value}");
        }
    }

    #[test]
    fn packed_queues_have_any_size_and_begin_at_a_wrap_counter_of_one() {
        let mut common = common();
        common.driver_features = Features::RING_PACKED | Features::QUEUE_STATE;
        for (value, size) in [(0, 256), (65, 65), (257, 65), (1, 1), (0x1_0007, 7)] {
            common.write(Reg::QueueSize, value);
            assert_eq!(common.queues[0].size, size, "{value}");
        }
        let state = |common: &Common| {
            [Reg::QueueAvailState, Reg::QueueUsedState].map(|reg| common.read(reg, None))
        };
        assert_eq!(state(&common), [Some(0x8000), Some(0x8000)]);
        common.write(Reg::QueueUsedState, 3);
        assert_eq!(state(&common), [Some(0x8000), Some(3)]);
        let config = common.queue_config(&common.queues[0]);
        assert!(config.packed);
        assert_eq!((config.state.avail, config.state.used), (0x8000, 3));
        common.queues[0].reset();
        assert_eq!(state(&common), [Some(0x8000), Some(0x8000)]);
    }

    #[test]
    fn queue_state_reads_zero_unless_negotiated_and_prefers_the_engine() {
        let mut common = common();
        common.queues[0].state = Some(QueueState { avail: 7, used: 6 });
        assert_eq!(common.read(Reg::QueueAvailState, None), Some(0));
        common.driver_features = Features::QUEUE_STATE;
        assert_eq!(common.read(Reg::QueueAvailState, None), Some(7));
        let live = Some(QueueState { avail: 9, used: 8 });
        assert_eq!(common.read(Reg::QueueAvailState, live), Some(9));
        assert_eq!(common.read(Reg::QueueUsedState, live), Some(8));
        common.write(Reg::QueueSelect, 5);
        assert_eq!(common.read(Reg::QueueUsedState, None), Some(0));
    }

    #[test]
    fn the_generation_counts_changes_that_are_seen() {
        let mut common = common();
        assert_eq!(common.look(&[1, 2]), 0);
        assert_eq!(common.look(&[1, 3]), 1);
        assert_eq!(common.look(&[1, 3]), 1);
        common.reset();
        assert_eq!(common.look(&[1, 3]), 1);
        assert_eq!(common.look(&[]), 2);
    }

    #[test]
    fn reset_forgets_everything_but_the_sizes() {
        let mut common = common();
        common.write(Reg::DriverFeature, 1 << 9);
        common.write(Reg::QueueSize, 16);
        common.write(Reg::QueueDeviceHigh, 3);
        common.queues[0].phase = Phase::Enabled;
        common.queues[0].state = Some(QueueState { avail: 1, used: 1 });
        common.write(Reg::QueueSelect, 1);
        common.reset();
        assert_eq!((common.select, common.features()), (0, Features::empty()));
        let config = common.queue_config(&common.queues[0]);
        assert_eq!(
            config,
            QueueConfig {
                size: 256,
                ..QueueConfig::default()
            }
        );
        assert!(!common.facts().queue_on);
    }
}
