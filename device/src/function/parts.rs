//! A function's state as device parts (VIRTIO 1.4, "Device parts"), and how it takes them.

use super::inner::{Core, Registers, lock};
use crate::status::{Event, State};
use crate::transport::common::Phase;
use crate::transport::low16;
use crate::transport::registers::Reg;
use spec::features::Features;
use spec::parts::{self, Broken, PartHeader, Reader, VqCfg, VqNotifyCfg, VqState};
use spec::pci::CommonCfg;
use spec::queue_state::QueueState;
use spec::status::DeviceStatus;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use zerocopy::{FromBytes, IntoBytes};

/// One part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) header: PartHeader,
    pub(crate) value: Vec<u8>,
}

/// Why parts are not taken; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PartsError {
    #[error("the function is not stopped")]
    NotStopped,
    #[error("{part}: {why}")]
    Bad { part: String, why: String },
    #[error("{0}")]
    Broken(Broken),
}

impl From<Broken> for PartsError {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// Fields of the common configuration that travel: what a driver may be in the middle of, and what
/// both sides must agree on.
const FIELDS: [(usize, Reg, usize); 5] = [
    (
        offset_of!(CommonCfg, device_feature_select),
        Reg::DeviceFeatureSelect,
        4,
    ),
    (
        offset_of!(CommonCfg, driver_feature_select),
        Reg::DriverFeatureSelect,
        4,
    ),
    (
        offset_of!(CommonCfg, config_msix_vector),
        Reg::ConfigMsixVector,
        2,
    ),
    (offset_of!(CommonCfg, num_queues), Reg::NumQueues, 2),
    (offset_of!(CommonCfg, queue_select), Reg::QueueSelect, 2),
];

/// What a set of parts comes to, judged before anything is done.
#[derive(Debug, Default)]
struct Plan {
    features: Option<Features>,
    fields: Vec<(Reg, u32)>,
    status: Option<DeviceStatus>,
    queues: BTreeMap<u16, (Option<VqCfg>, Option<QueueState>)>,
}

impl Plan {
    /// The status goes with the features, which stay as they are `now` unless they come along.
    fn judge_status(&self, now: Features) -> Result<(), PartsError> {
        let features = self.features.unwrap_or(now);
        let status = self.status.unwrap_or_default();
        let suspend = status.contains(DeviceStatus::SUSPEND);
        let why = if !status.contains(DeviceStatus::FEATURES_OK) {
            return Ok(());
        } else if !features.contains(Features::VERSION_1) {
            "FEATURES_OK without VERSION_1"
        } else if suspend && !features.contains(Features::SUSPEND) {
            "SUSPEND without its feature"
        } else {
            return Ok(());
        };
        Err(PartsError::Bad {
            part: "DEVICE_STATUS".to_owned(),
            why: why.to_owned(),
        })
    }

    /// A split queue has at most all its entries in flight. What memory says of it is judged where
    /// the queue starts, and so is all of a packed one's position.
    fn judge_positions(&self, now: Features) -> Result<(), PartsError> {
        let features = self.features.unwrap_or(now);
        for (index, queue) in &self.queues {
            let (Some(cfg), Some(state)) = queue else {
                continue;
            };
            let (size, flying) = (cfg.queue_size.get(), state.avail.wrapping_sub(state.used));
            let split = cfg.enabled.get() == 1 && !features.contains(Features::RING_PACKED);
            if split && flying > size {
                return Err(PartsError::Bad {
                    part: format!("VQ_STATE of queue {index}"),
                    why: format!("{flying} buffers in flight of {size}"),
                });
            }
        }
        Ok(())
    }
}

fn header(part_type: u16, selector: [u8; 8], value: &[u8]) -> PartHeader {
    PartHeader {
        part_type: part_type.into(),
        flags: 0,
        reserved: 0,
        selector,
        length: u32::try_from(value.len()).unwrap_or(u32::MAX).into(),
    }
}

fn of_queue(index: u16) -> [u8; 8] {
    let [a, b] = index.to_le_bytes();
    [a, b, 0, 0, 0, 0, 0, 0]
}

fn bad(header: &PartHeader, why: impl Into<String>) -> PartsError {
    PartsError::Bad {
        part: header.to_string(),
        why: why.into(),
    }
}

/// The value, if it has exactly the length that this part has here (DP-4).
fn exactly<T: FromBytes>(header: &PartHeader, value: &[u8]) -> Result<T, PartsError> {
    T::read_from_bytes(value).map_err(|_| {
        let (got, expected) = (value.len(), size_of::<T>());
        bad(header, format!("{got} bytes, {expected} expected"))
    })
}

impl Core {
    /// The state in parts, in the order of the standard's table (DP-2), which every member of it
    /// precedes that has to (D-6).
    pub(crate) fn parts(&self) -> Vec<Part> {
        let live: Vec<Option<QueueState>> = {
            let running: Vec<bool> = {
                let registers = self.registers();
                let runs = |phase| matches!(phase, Phase::Started | Phase::Stopping);
                let queues = registers.common.queues.iter();
                queues.map(|queue| runs(queue.phase)).collect()
            };
            (0..)
                .zip(running)
                .map(|(index, runs)| runs.then(|| self.machinery.state(index)).flatten())
                .collect()
        };
        let config = self.config_now();
        let registers = self.registers();
        let interrupts = lock(&self.interrupts);
        let common = &registers.common;
        let mut all = Vec::new();
        let mut add = |part_type: u16, selector: [u8; 8], value: &[u8]| {
            let header = header(part_type, selector, value);
            let value = value.to_vec();
            all.push(Part { header, value });
        };
        let offered = common.offered().bits().to_le_bytes();
        add(parts::DEV_FEATURES, [0; 8], &offered);
        let accepted = common.features().bits().to_le_bytes();
        add(parts::DRV_FEATURES, [0; 8], &accepted);
        for (offset, reg, width) in FIELDS {
            let value = match reg {
                Reg::ConfigMsixVector => u32::from(interrupts.config_vector()),
                reg => common.read(reg, None).unwrap_or(0),
            };
            let mut selector = [0; 8];
            let offset = u32::try_from(offset).unwrap_or(0);
            selector[..4].copy_from_slice(&offset.to_le_bytes());
            let value = value.to_le_bytes();
            add(parts::PCI_COMMON_CFG, selector, &value[..width]);
        }
        let status = registers.state.status().bits();
        add(parts::DEVICE_STATUS, [0; 8], &[status]);
        for (index, queue) in (0..).zip(&common.queues) {
            let cfg = queue.cfg(interrupts.queue_vector(index));
            add(parts::VQ_CFG, of_queue(index), cfg.as_bytes());
        }
        for (index, _) in (0..).zip(&common.queues) {
            let cfg = notify_cfg(index);
            add(parts::VQ_NOTIFY_CFG, of_queue(index), cfg.as_bytes());
        }
        for ((index, queue), live) in (0..).zip(&common.queues).zip(&live) {
            let state = live.unwrap_or_else(|| common.state_of(queue));
            let state = VqState {
                avail: state.avail.into(),
                used: state.used.into(),
                reserved: 0.into(),
            };
            add(parts::VQ_STATE, of_queue(index), state.as_bytes());
        }
        if !config.is_empty() {
            add(parts::DEV_CFG, [0; 8], &config);
        }
        for Part { header, .. } in &mut all {
            if [parts::DEV_FEATURES, parts::DEV_CFG].contains(&header.part_type.get()) {
                header.flags = parts::OPTIONAL;
            }
        }
        all
    }

    /// The device configuration, as the driver can read it. The device type is asked, so no lock is
    /// held.
    fn config_now(&self) -> Vec<u8> {
        let mut config = self.device.config();
        config.truncate(self.device.config_len());
        config
    }

    /// Takes parts, all of them or none. False if that has to wait for a reset (DP-12).
    pub(crate) fn set_parts(&self, bytes: &[u8]) -> Result<bool, PartsError> {
        let _door = lock(&self.door);
        let config = self.config_now();
        let plan = {
            let mut registers = self.registers();
            if matches!(registers.state, State::Resetting { .. }) {
                return Ok(false);
            }
            if !registers.mode.is_stopped() {
                return Err(PartsError::NotStopped);
            }
            let plan = Self::judge(&registers, &config, bytes)?;
            self.apply(&mut registers, &plan);
            plan
        };
        if let Some(status) = plan.status {
            if !status.contains(DeviceStatus::FEATURES_OK) {
                self.device.reset();
            }
            self.post(Event::Restore(status));
        }
        Ok(true)
    }

    fn judge(registers: &Registers, config: &[u8], bytes: &[u8]) -> Result<Plan, PartsError> {
        let mut plan = Plan::default();
        let mut seen = BTreeSet::new();
        let mut last = 0;
        for part in Reader::new(bytes) {
            let (header, value) = part?;
            let part_type = header.part_type.get();
            if !Self::judge_part(registers, config, &header, value, &mut plan)? {
                tracing::debug!(part_type, "optional part skipped");
                continue;
            }
            // DP-17 binds the driver; a device that applied parts out of order would hide it.
            if part_type < last {
                return Err(bad(&header, "after a part that it precedes"));
            }
            last = part_type;
            if !seen.insert((part_type, header.selector)) {
                return Err(bad(&header, "a second time"));
            }
        }
        plan.judge_status(registers.common.features())?;
        plan.judge_positions(registers.common.features())?;
        Ok(plan)
    }

    /// Adds one part to the plan. False if it is skipped.
    fn judge_part(
        registers: &Registers,
        config: &[u8],
        header: &PartHeader,
        value: &[u8],
        plan: &mut Plan,
    ) -> Result<bool, PartsError> {
        let common = &registers.common;
        let number = |value: [u8; 8]| Features::from_bits_retain(u64::from_le_bytes(value));
        let part_type = header.part_type.get();
        let of_queue = matches!(
            part_type,
            parts::VQ_CFG | parts::VQ_NOTIFY_CFG | parts::VQ_STATE
        );
        let queue = common.queues.get(usize::from(header.queue()));
        if of_queue && queue.is_none() {
            return Err(bad(header, format!("there are {}", common.queues.len())));
        }
        match (part_type, queue) {
            // DP-5: compared, never set.
            (parts::DEV_FEATURES, _) => {
                let theirs = number(exactly(header, value)?);
                if theirs != common.offered() {
                    let ours = common.offered();
                    return Err(bad(header, format!("{theirs:?}, {ours:?} here")));
                }
            }
            (parts::DRV_FEATURES, _) => {
                let theirs = number(exactly(header, value)?);
                let missing = theirs.difference(common.offered());
                if !missing.is_empty() {
                    return Err(bad(header, format!("{missing:?} is not offered here")));
                }
                plan.features = Some(theirs);
            }
            (parts::PCI_COMMON_CFG, _) => return Self::judge_field(registers, header, value, plan),
            (parts::DEVICE_STATUS, _) => {
                let [byte] = exactly(header, value)?;
                let status = DeviceStatus::from_bits(byte)
                    .filter(|status| State::restored(*status).is_some())
                    .ok_or_else(|| bad(header, format!("{byte:#04x} is no status")))?;
                plan.status = Some(status);
            }
            (parts::VQ_CFG, Some(queue)) => {
                let cfg: VqCfg = exactly(header, value)?;
                let vectors = u16::try_from(common.queues.len()).unwrap_or(u16::MAX);
                // They come before the queues.
                let features = plan.features.unwrap_or(common.features());
                queue
                    .refuses(&cfg, vectors, features.contains(Features::RING_PACKED))
                    .map_or(Ok(()), |why| Err(bad(header, why)))?;
                plan.queues.entry(header.queue()).or_default().0 = Some(cfg);
            }
            // The driver has mapped it: it must be the same here.
            (parts::VQ_NOTIFY_CFG, Some(_)) => {
                let cfg: VqNotifyCfg = exactly(header, value)?;
                if cfg != notify_cfg(header.queue()) {
                    return Err(bad(header, format!("{cfg:?} is not so here")));
                }
            }
            (parts::VQ_STATE, Some(_)) => {
                let state: VqState = exactly(header, value)?;
                plan.queues.entry(header.queue()).or_default().1 = Some(QueueState {
                    avail: state.avail.get(),
                    used: state.used.get(),
                });
            }
            (parts::DEV_CFG, _) if !config.is_empty() => {
                let (got, expected) = (value.len(), config.len());
                if got != expected {
                    return Err(bad(header, format!("{got} bytes, {expected} expected")));
                }
                let at = (config.iter().zip(value)).position(|(mine, theirs)| mine != theirs);
                if let Some(at) = at {
                    return Err(bad(header, format!("not as here, from offset {at} on")));
                }
            }
            _ if header.flags & parts::OPTIONAL != 0 => return Ok(false),
            _ => return Err(bad(header, "mandatory and unknown here")),
        }
        Ok(true)
    }

    fn judge_field(
        registers: &Registers,
        header: &PartHeader,
        value: &[u8],
        plan: &mut Plan,
    ) -> Result<bool, PartsError> {
        let offset = header.offset();
        let field = FIELDS
            .iter()
            .find(|(at, _, _)| u32::try_from(*at) == Ok(offset));
        let Some((_, reg, width)) = field else {
            if header.flags & parts::OPTIONAL != 0 {
                return Ok(false);
            }
            return Err(bad(header, "mandatory and unknown here"));
        };
        let number = match (*width, value) {
            (4, &[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
            (2, &[a, b]) => u32::from(u16::from_le_bytes([a, b])),
            _ => {
                let got = value.len();
                return Err(bad(header, format!("{got} bytes, {width} expected")));
            }
        };
        match reg {
            // DP-16: what a driver cannot write is only compared.
            Reg::NumQueues => {
                let here = registers.common.num_queues();
                if number != u32::from(here) {
                    return Err(bad(header, format!("{number}, {here} here")));
                }
            }
            // What it can write has to travel, or the driver's next access would go astray.
            reg => plan.fields.push((*reg, number)),
        }
        Ok(true)
    }

    fn apply(&self, registers: &mut Registers, plan: &Plan) {
        let mut interrupts = lock(&self.interrupts);
        if let Some(features) = plan.features {
            registers.common.set_features(features);
        }
        for &(reg, value) in &plan.fields {
            match reg {
                Reg::ConfigMsixVector => interrupts.map_config(low16(value)),
                reg => registers.common.write(reg, value),
            }
        }
        for (&index, (cfg, state)) in &plan.queues {
            let Some(queue) = registers.common.queues.get_mut(usize::from(index)) else {
                continue;
            };
            if let Some(cfg) = cfg {
                queue.configure(cfg);
                interrupts.map_queue(index, cfg.vector.get());
            }
            queue.state = state.or(queue.state);
        }
    }
}

fn notify_cfg(index: u16) -> VqNotifyCfg {
    VqNotifyCfg {
        queue_notify_off: index.into(),
        ..VqNotifyCfg::default()
    }
}
