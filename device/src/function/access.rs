//! Reads and writes of configuration space and BARs.

use super::inner::{Core, count, lock};
use crate::pci::DATA;
use crate::status::{Event, Negotiation};
use crate::transport::common::Phase;
use crate::transport::notify::notified;
use crate::transport::registers::{self, BAR0_SIZE, BAR1_SIZE, DEVICE, NOTIFY, Reg};
use crate::transport::registers::{Facts, States};
use crate::transport::{low16, number, overlay};
use spec::features::Features;
use spec::queue_state::QueueState;

impl Core {
    // Configuration space.

    pub(super) fn config_read(&self, offset: usize, data: &mut [u8]) {
        if offset < DATA.end && DATA.start < offset.saturating_add(data.len()) {
            let window = self.registers().pci.window();
            if let Some(window) = window {
                let mut buffer = [0; 4];
                let read = &mut buffer[..window.length];
                self.bar_read(window.bar, window.offset, read);
                self.registers().pci.set_window_data(read);
            }
        }
        let intx = lock(&self.interrupts).intx();
        self.registers().pci.read(offset, data, intx);
    }

    pub(super) fn config_write(&self, offset: usize, data: &[u8]) {
        let _door = lock(&self.door);
        let (asked, window) = {
            let mut registers = self.registers();
            let asked = registers.pci.write(offset, data);
            if asked.msix {
                let (enabled, masked) = registers.pci.msix_control();
                lock(&self.interrupts).control(enabled, masked);
            }
            (asked, registers.pci.window())
        };
        if asked.pasid {
            self.put_tracker_in_force();
        }
        if asked.vfs {
            self.follow_vfs();
        }
        if asked.window
            && let Some(window) = window
        {
            self.write(window.bar, window.offset, &window.data[..window.length]);
        }
        if asked.flr {
            self.post(Event::Flr);
        }
    }

    // BARs.

    pub(super) fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match (bar, within(offset, data.len(), bar)) {
            (0, Some(offset)) => self.read_registers(offset, data),
            (1, Some(offset)) => lock(&self.interrupts).read(offset, data),
            _ => {}
        }
    }

    fn read_registers(&self, offset: usize, data: &mut [u8]) {
        self.settle_if_held();
        data.fill(0);
        let rows: Vec<_> = registers::touched(offset, data.len()).collect();
        let has = |reg| rows.iter().any(|row| row.reg == reg);
        let in_config = offset < DEVICE.end() && DEVICE.offset < offset + data.len();

        // What others know is asked for before the lock is taken.
        let config = (in_config || has(Reg::ConfigGeneration)).then(|| self.device.config());
        let live = if has(Reg::QueueAvailState) || has(Reg::QueueUsedState) {
            self.live_state()
        } else {
            None
        };

        let mut registers = self.registers();
        if let Some(config) = &config {
            registers.common.look(config);
            let len = config
                .len()
                .min(self.device.config_len())
                .min(DEVICE.length);
            overlay(data, offset, &config[..len], DEVICE.offset);
        }
        for row in rows {
            let value = match row.reg {
                Reg::DeviceStatus => u32::from(registers.state.status().bits()),
                Reg::ConfigGeneration => u32::from(
                    config
                        .as_ref()
                        .map_or(0, |config| registers.common.look(config)),
                ),
                Reg::ConfigMsixVector => u32::from(lock(&self.interrupts).config_vector()),
                Reg::QueueMsixVector => {
                    u32::from(lock(&self.interrupts).queue_vector(registers.common.select))
                }
                Reg::IsrStatus => u32::from(lock(&self.interrupts).take_isr()),
                reg => {
                    let tracker = registers.tracker.read(reg).filter(|_| self.config.tracker);
                    tracker
                        .or_else(|| registers.common.read(reg, live))
                        .unwrap_or(0)
                }
            };
            overlay(data, offset, &value.to_le_bytes()[..row.width], row.offset);
        }
    }

    /// Where the selected queue stands, if it runs.
    fn live_state(&self) -> Option<QueueState> {
        let index = {
            let registers = self.registers();
            let running = |phase| matches!(phase, Phase::Started | Phase::Stopping);
            let queue = registers.common.selected()?;
            running(queue.phase).then_some(registers.common.select)?
        };
        self.machinery.state(index)
    }

    pub(super) fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        // A doorbell changes no register, so it does not wait for those who do.
        if bar == 0
            && let Some(position) =
                within(offset, data.len(), 0).and_then(|at| NOTIFY.position(at, data.len()))
        {
            return self.notify(position, data);
        }
        let _door = lock(&self.door);
        self.write(bar, offset, data);
    }

    /// A write to a BAR, with the door held.
    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        let Some(offset) = within(offset, data.len(), bar) else {
            return count(&self.counters.ignored);
        };
        if bar == 1 {
            lock(&self.interrupts).write(offset, data);
        } else if let Some(position) = NOTIFY.position(offset, data.len()) {
            self.notify(position, data);
        } else if let Some(position) = DEVICE.position(offset, data.len()) {
            self.write_config(position, data);
        } else {
            self.write_register(offset, data);
        }
    }

    fn notify(&self, position: usize, data: &[u8]) {
        let queue = {
            let registers = self.registers();
            let with_data = registers
                .common
                .features()
                .contains(Features::NOTIFICATION_DATA);
            let heard = States::DOORBELLS.contains(States::of(registers.state));
            notified(position, data, with_data)
                .filter(|_| heard)
                .filter(|index| {
                    let queue = registers.common.queues.get(usize::from(*index));
                    queue.is_some_and(|queue| queue.phase == Phase::Started)
                })
        };
        match queue {
            Some(index) => {
                count(&self.counters.notifications);
                self.machinery.kick(index);
            }
            None => count(&self.counters.ignored),
        }
    }

    fn write_config(&self, position: usize, data: &[u8]) {
        self.settle_if_held();
        let inside = position.saturating_add(data.len()) <= self.device.config_len();
        let state = self.registers().state;
        if inside && States::DEVICE_CONFIG.contains(States::of(state)) {
            // A change shows in the generation when it is next read.
            self.device.config_write(position, data);
        } else {
            count(&self.counters.ignored);
        }
    }

    fn write_register(&self, offset: usize, data: &[u8]) {
        self.settle_if_held();
        let value = number(data);
        let (Some(row), Some(value)) = (registers::exact(offset, data.len()), value) else {
            return count(&self.counters.ignored);
        };
        let mut registers = self.registers();
        let facts = Facts {
            tracker_on: registers.tracker.is_on(),
            ..registers.common.facts()
        };
        if !row.accepts(registers.state, facts) {
            return count(&self.counters.ignored);
        }
        let select = registers.common.select;
        match row.reg {
            Reg::DeviceStatus => {
                let features = registers.common.features();
                let negotiation = Negotiation {
                    acceptable: registers.common.acceptable()
                        && self.device.accepts(features.bits()),
                    suspend: features.contains(Features::SUSPEND),
                };
                drop(registers);
                let [byte, ..] = value.to_le_bytes();
                self.post(Event::Write(byte, negotiation));
            }
            Reg::ConfigMsixVector => lock(&self.interrupts).map_config(low16(value)),
            Reg::QueueMsixVector => lock(&self.interrupts).map_queue(select, low16(value)),
            // PC-10: the driver never writes 0; other values have no meaning.
            Reg::QueueEnable if value == 1 => {
                if let Some(queue) = registers.common.queues.get_mut(usize::from(select)) {
                    queue.phase = Phase::Enabled;
                }
                drop(registers);
                if !self.start(select) {
                    self.post(Event::DeviceError);
                }
            }
            Reg::QueueReset if value == 1 => {
                drop(registers);
                self.reset_queue(select);
            }
            Reg::QueueEnable | Reg::QueueReset => count(&self.counters.ignored),
            reg if registers.tracker.read(reg).is_some() => {
                if self.config.tracker {
                    let pasid = self.pasid(&registers);
                    registers.tracker.write(reg, value, pasid);
                    drop(registers);
                    self.put_tracker_in_force();
                }
            }
            reg => registers.common.write(reg, value),
        }
    }
}

/// The offset of an access that lies entirely within a BAR.
fn within(offset: u64, len: usize, bar: u8) -> Option<usize> {
    let size = match bar {
        0 => BAR0_SIZE,
        1 => BAR1_SIZE,
        _ => return None,
    };
    let end = offset.checked_add(u64::try_from(len).ok()?)?;
    if end <= size {
        usize::try_from(offset).ok()
    } else {
        None
    }
}
