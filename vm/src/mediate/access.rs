//! The guest's accesses on their way to the device.

use super::face::{COMMON_END, OURS};
use super::{Back, Inner, Mediator, is_gone};
use device::serve::vfio_user::{IrqRequest, Map, Refusal, Served};
use driver::DriverError;
use driver::bus::{Access, BusError};
use driver::transport::Region;
use spec::features::Features;
use spec::pci::VirtioPciCap;
use spec::status::DeviceStatus;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use vm_memory::Permissions;

/// How long an access waits for a device to take over. VMMs wait less; this is for those that do
/// not give up.
const HOLD: Duration = Duration::from_secs(60);

/// Offsets of fields of the common configuration.
mod field {
    use spec::pci::CommonCfg;
    use std::mem::offset_of;

    pub const DEVICE_FEATURE_SELECT: usize = offset_of!(CommonCfg, device_feature_select);
    pub const DEVICE_FEATURE: usize = offset_of!(CommonCfg, device_feature);
    pub const DRIVER_FEATURE_SELECT: usize = offset_of!(CommonCfg, driver_feature_select);
    pub const DRIVER_FEATURE: usize = offset_of!(CommonCfg, driver_feature);
    pub const CONFIG_MSIX_VECTOR: usize = offset_of!(CommonCfg, config_msix_vector);
    pub const DEVICE_STATUS: usize = offset_of!(CommonCfg, device_status);
    pub const QUEUE_SELECT: usize = offset_of!(CommonCfg, queue_select);
    pub const QUEUE_SIZE: usize = offset_of!(CommonCfg, queue_size);
    pub const QUEUE_MSIX_VECTOR: usize = offset_of!(CommonCfg, queue_msix_vector);
    pub const QUEUE_ENABLE: usize = offset_of!(CommonCfg, queue_enable);
    pub const QUEUE_DESC: usize = offset_of!(CommonCfg, queue_desc);
    pub const QUEUE_DESC_HIGH: usize = QUEUE_DESC + 4;
    pub const QUEUE_DRIVER: usize = offset_of!(CommonCfg, queue_driver);
    pub const QUEUE_DRIVER_HIGH: usize = QUEUE_DRIVER + 4;
    pub const QUEUE_DEVICE: usize = offset_of!(CommonCfg, queue_device);
    pub const QUEUE_DEVICE_HIGH: usize = QUEUE_DEVICE + 4;
    pub const QUEUE_RESET: usize = offset_of!(CommonCfg, queue_reset);
}

/// The registers that a guest may write, with their natural widths; 64-bit fields are two.
const WRITABLE: [(usize, usize); 16] = [
    (field::DEVICE_FEATURE_SELECT, 4),
    (field::DRIVER_FEATURE_SELECT, 4),
    (field::DRIVER_FEATURE, 4),
    (field::CONFIG_MSIX_VECTOR, 2),
    (field::DEVICE_STATUS, 1),
    (field::QUEUE_SELECT, 2),
    (field::QUEUE_SIZE, 2),
    (field::QUEUE_MSIX_VECTOR, 2),
    (field::QUEUE_ENABLE, 2),
    (field::QUEUE_DESC, 4),
    (field::QUEUE_DESC_HIGH, 4),
    (field::QUEUE_DRIVER, 4),
    (field::QUEUE_DRIVER_HIGH, 4),
    (field::QUEUE_DEVICE, 4),
    (field::QUEUE_DEVICE_HIGH, 4),
    (field::QUEUE_RESET, 2),
];

/// Whether an access touches a region.
fn touches(region: &Region, bar: u8, offset: u64, len: usize) -> bool {
    let end = offset.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
    region.bar == bar && offset < region.offset + region.length && region.offset < end
}

/// The position within a region of an access that begins in it.
fn position(region: &Region, bar: u8, offset: u64, len: usize) -> Option<usize> {
    let touched = touches(region, bar, offset, len);
    let position = offset.checked_sub(region.offset).filter(|_| touched)?;
    usize::try_from(position).ok()
}

/// Puts `bytes`, which belong at `at`, over `data`, which was read from `offset` on.
fn overlay(data: &mut [u8], offset: usize, bytes: &[u8], at: usize) {
    for (at, byte) in (at..).zip(bytes) {
        if let Some(there) = at.checked_sub(offset).and_then(|at| data.get_mut(at)) {
            *there = *byte;
        }
    }
}

fn half(features: Features, select: u32) -> u32 {
    let shift = match select {
        0 => 0,
        1 => 32,
        _ => return 0,
    };
    u32::try_from(features.bits() >> shift & u64::from(u32::MAX)).unwrap_or(0)
}

fn number(data: &[u8]) -> u32 {
    let mut bytes = [0; 4];
    for (to, from) in bytes.iter_mut().zip(data) {
        *to = *from;
    }
    u32::from_le_bytes(bytes)
}

/// The value of a register of two bytes.
fn short(data: &[u8]) -> u16 {
    u16::try_from(number(data) & 0xffff).unwrap_or(0)
}

/// Where the window onto the BARs points.
struct Window {
    bar: u8,
    offset: u64,
    length: usize,
}

impl Mediator {
    /// Does something with the device. If it turns out to be gone, waits for the one that takes
    /// over and does it again: all that is done here can be done twice.
    fn attempt<T>(
        &self,
        mut act: impl FnMut(&mut Inner, &Back) -> Result<T, BusError>,
    ) -> Option<T> {
        let mut inner = self.lock();
        let until = Instant::now() + HOLD;
        loop {
            let Some(back) = inner.back.clone() else {
                let left = until.saturating_duration_since(Instant::now());
                if !self.options.hold || left.is_zero() {
                    return None;
                }
                let waited = self.moved.wait_timeout(inner, left);
                (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            match act(&mut inner, &back) {
                Ok(done) => return Some(done),
                Err(error) if is_gone(&error) => {
                    tracing::warn!(%error);
                    inner.lost(&back);
                }
                Err(error) => {
                    tracing::warn!(%error, "an access was in vain");
                    return None;
                }
            }
        }
    }

    /// Does something that needs no device if there is none.
    fn unless_gone(&self, act: impl FnOnce(&mut Inner, Option<&Back>) -> Result<(), BusError>) {
        let mut inner = self.lock();
        let back = inner.back.clone();
        if let Err(error) = act(&mut inner, back.as_deref()) {
            tracing::warn!(%error);
            if let Some(back) = back.filter(|_| is_gone(&error)) {
                inner.lost(&back);
            }
        }
    }

    fn common_read(&self, inner: &Inner, at: usize, data: &mut [u8]) {
        let shadow = &inner.shadow;
        let offered = half(self.face.visible, shadow.device_select).to_le_bytes();
        let accepted = half(shadow.accepted(), shadow.driver_select).to_le_bytes();
        overlay(data, at, &offered, field::DEVICE_FEATURE);
        overlay(data, at, &accepted, field::DRIVER_FEATURE);
        let status = field::DEVICE_STATUS;
        if let Some(there) = status.checked_sub(at).and_then(|at| data.get_mut(at)) {
            *there &= !DeviceStatus::SUSPEND.bits();
        }
        // What lies behind VIRTIO 1.4's fields is not there.
        let hidden = COMMON_END.saturating_sub(at).min(data.len());
        data.iter_mut().skip(hidden).for_each(|byte| *byte = 0);
    }

    fn common_write(&self, bar: u8, offset: u64, at: usize, data: &[u8]) {
        // PCI lets a CPU write both halves at once.
        if data.len() == 8
            && at.is_multiple_of(8)
            && (field::QUEUE_DESC..=field::QUEUE_DEVICE).contains(&at)
        {
            let (low, high) = data.split_at(4);
            self.common_write(bar, offset, at, low);
            return self.common_write(bar, offset + 4, at + 4, high);
        }
        if !WRITABLE.contains(&(at, data.len())) {
            tracing::debug!(at, len = data.len(), "a write that no register takes");
            return;
        }
        self.attempt(|inner, back| {
            inner.counters.accesses += 1;
            let mut data = data.to_vec();
            if at == field::DRIVER_FEATURE {
                self.accept(inner, back, &mut data);
            } else if at == field::DEVICE_STATUS {
                return self.status_write(inner, back, offset, &data);
            }
            back.bus.bar_write(bar, offset, &data)?;
            self.note(inner, back, at, &data)
        });
    }

    /// Notes the features that the guest accepts, and adds those that it knows nothing of.
    fn accept(&self, inner: &mut Inner, back: &Back, data: &mut Vec<u8>) {
        let select = inner.shadow.driver_select;
        let slot = usize::try_from(select).ok();
        let Some(word) = slot.and_then(|slot| inner.shadow.features.get_mut(slot)) else {
            return;
        };
        // It was offered no other; a device would not let it accept them.
        *word = number(data) & !half(OURS, select);
        let whole = *word | half(back.facilities.negotiated(), select);
        *data = whole.to_le_bytes().to_vec();
    }

    fn status_write(
        &self,
        inner: &mut Inner,
        back: &Back,
        offset: u64,
        data: &[u8],
    ) -> Result<(), BusError> {
        let [byte, ..] = number(data).to_le_bytes();
        // The guest has not negotiated SUSPEND, so the bit means nothing when it writes it.
        let status = DeviceStatus::from_bits_retain(byte) - DeviceStatus::SUSPEND;
        let starts = status.contains(DeviceStatus::DRIVER_OK)
            && !inner.shadow.status.contains(DeviceStatus::DRIVER_OK);
        if starts && inner.tracking.is_some() {
            // Before the device can write anything.
            if let Err(error) = inner.start_tracking(back) {
                tracing::error!(%error, "pages are not tracked");
            }
        }
        let bar = self.face.common.bar;
        back.bus.bar_write(bar, offset, &[status.bits()])?;
        if status.is_empty() {
            inner.shadow.reset(&self.face);
        } else {
            inner.shadow.status = status;
        }
        Ok(())
    }

    /// Notes what the guest wrote to a register.
    fn note(&self, inner: &mut Inner, back: &Back, at: usize, data: &[u8]) -> Result<(), BusError> {
        let shadow = &mut inner.shadow;
        let value = number(data);
        let low = |whole: u64| whole & !u64::from(u32::MAX) | u64::from(value);
        let high = |whole: u64| whole & u64::from(u32::MAX) | u64::from(value) << 32;
        match at {
            field::DEVICE_FEATURE_SELECT => shadow.device_select = value,
            field::DRIVER_FEATURE_SELECT => shadow.driver_select = value,
            field::CONFIG_MSIX_VECTOR => shadow.config_vector = short(data),
            field::QUEUE_SELECT => shadow.queue_select = short(data),
            field::QUEUE_RESET if value == 1 => shadow.reset_queue(&self.face),
            _ => {
                let Some(queue) = shadow.queue() else {
                    return Ok(());
                };
                // What a running queue has does not change.
                let off = !queue.enabled;
                match at {
                    field::QUEUE_MSIX_VECTOR => queue.vector = short(data),
                    field::QUEUE_SIZE if off => queue.size = short(data),
                    field::QUEUE_ENABLE if off && value == 1 => {
                        queue.enabled = true;
                        // What the guest left as it was, or the device did not take.
                        let mut there = [0; 4];
                        let common = &self.face.common;
                        let field = u64::try_from(field::QUEUE_SIZE).unwrap_or(0);
                        back.bus
                            .bar_read(common.bar, common.offset + field, &mut there[..2])?;
                        back.bus.bar_read(
                            common.bar,
                            common.offset + field + 2,
                            &mut there[2..],
                        )?;
                        queue.size = short(&there[..2]);
                        queue.vector = short(&there[2..]);
                    }
                    _ if !off => {}
                    field::QUEUE_DESC => queue.desc = low(queue.desc),
                    field::QUEUE_DESC_HIGH => queue.desc = high(queue.desc),
                    field::QUEUE_DRIVER => queue.driver = low(queue.driver),
                    field::QUEUE_DRIVER_HIGH => queue.driver = high(queue.driver),
                    field::QUEUE_DEVICE => queue.device = low(queue.device),
                    field::QUEUE_DEVICE_HIGH => queue.device = high(queue.device),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The function was reset: nothing that the guest configured is left.
    fn power_on(&self, inner: &mut Inner) {
        inner.shadow = super::Shadow::new(&self.face);
    }

    /// The part of an access to configuration space that falls on the window's fields.
    fn in_window(&self, offset: usize, len: usize) -> Option<usize> {
        let start = self.face.window?;
        let fields = start + 4..start + super::shadow::WINDOW;
        (offset < fields.end && fields.start < offset + len).then_some(start)
    }

    /// Where the window points, if an access touches its data and it points anywhere.
    fn window(&self, start: usize, offset: usize, len: usize) -> Option<Window> {
        let data = start + size_of::<VirtioPciCap>();
        if offset + len <= data {
            return None;
        }
        let window = self.lock().shadow.window;
        let word = |at: usize| number(window.get(at..at + 4).unwrap_or_default());
        let length = usize::try_from(word(12)).ok()?;
        let offset = word(8);
        let aligned = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(word(12));
        let [bar, ..] = word(4).to_le_bytes();
        let size = self.face.bars.get(usize::from(bar)).copied().unwrap_or(0);
        (aligned && u64::from(offset) + u64::from(word(12)) <= size).then_some(Window {
            bar,
            offset: offset.into(),
            length,
        })
    }
}

impl Served for Mediator {
    fn bar_size(&self, bar: u8) -> u64 {
        self.face.bars.get(usize::from(bar)).copied().unwrap_or(0)
    }

    fn vectors(&self) -> u16 {
        self.face.vectors
    }

    /// The device is as after power-on for the next client, and reaches nothing of this one's.
    fn end(&self) {
        self.unless_gone(|inner, back| {
            self.power_on(inner);
            inner.vectors.iter_mut().for_each(|vector| *vector = None);
            let maps = std::mem::take(&mut inner.maps);
            let Some(back) = back else { return Ok(()) };
            quietly(back.reset())?;
            for vector in 0..self.face.vectors {
                back.bus.connect_vector(vector, None)?;
            }
            for (iova, entry) in maps.iter() {
                back.bus.unmap(iova, entry.size)?;
            }
            Ok(())
        });
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let at = usize::from(offset);
        let window = self.in_window(at, data.len());
        let points = window.and_then(|start| self.window(start, at, data.len()));
        let mut shown = [0; 4];
        if let Some(Window {
            bar,
            offset,
            length,
        }) = &points
        {
            self.bar_read(*bar, *offset, &mut shown[..*length]);
        }
        let read = self.attempt(|inner, back| {
            inner.counters.accesses += 1;
            back.bus.config_read(offset, data)?;
            self.face.hide(at, data);
            if let Some(start) = window {
                if points.is_some() {
                    overlay(&mut inner.shadow.window, 0, &shown, 16);
                }
                let window = inner.shadow.window;
                overlay(data, at, &window[4..], start + 4);
            }
            Ok(())
        });
        if read.is_none() {
            data.fill(0xff);
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let at = usize::from(offset);
        if let Some(start) = self.in_window(at, data.len()) {
            // A window's access is the mediator's own: through the device's it would be unseen.
            let mut inner = self.lock();
            for (at, byte) in (at..).zip(data) {
                // The bar, the offset, the length and the data.
                if let Some(field) = at.checked_sub(start)
                    && (field == 4 || (8..super::shadow::WINDOW).contains(&field))
                    && let Some(there) = inner.shadow.window.get_mut(field)
                {
                    *there = *byte;
                }
            }
            let value = inner.shadow.window[16..].to_vec();
            drop(inner);
            if let Some(window) = self.window(start, at, data.len()) {
                let value = value.get(..window.length).unwrap_or_default();
                self.bar_write(window.bar, window.offset, value);
            }
            return;
        }
        let flr = self.face.flr.and_then(|flr| flr.checked_sub(at));
        let flr = flr.and_then(|n| data.get(n)).is_some_and(|b| b & 0x80 != 0);
        self.attempt(|inner, back| {
            inner.counters.accesses += 1;
            back.bus.config_write(offset, data)?;
            if flr {
                self.power_on(inner);
            } else {
                inner.shadow.config_written(at, data);
            }
            Ok(())
        });
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let len = data.len();
        if let Some(tracker) = &self.face.tracker
            && touches(tracker, bar, offset, len)
        {
            return data.fill(0);
        }
        let read = self.attempt(|inner, back| {
            inner.counters.accesses += 1;
            back.bus.bar_read(bar, offset, data)?;
            if let Some(at) = position(&self.face.common, bar, offset, len) {
                self.common_read(inner, at, data);
            }
            Ok(())
        });
        if read.is_none() {
            data.fill(0xff);
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        let len = data.len();
        let tracker = self.face.tracker.as_ref();
        if tracker.is_some_and(|tracker| touches(tracker, bar, offset, len)) {
            return;
        }
        if touches(&self.face.notify, bar, offset, len) {
            // A device that takes over looks into every queue when it starts it, so there is nothing
            // to keep of a doorbell that nobody hears.
            return self.unless_gone(|inner, back| {
                inner.counters.doorbells += 1;
                back.map_or(Ok(()), |back| back.bus.bar_post(bar, offset, data))
            });
        }
        if touches(&self.face.common, bar, offset, len) {
            if let Some(at) = position(&self.face.common, bar, offset, len) {
                self.common_write(bar, offset, at, data);
            }
            return;
        }
        let table = self.face.table.as_ref();
        let table = table.is_some_and(|(b, place)| *b == bar && place.contains(&offset));
        self.attempt(|inner, back| {
            inner.counters.accesses += 1;
            back.bus.bar_write(bar, offset, data)?;
            if table {
                inner.shadow.table_written(offset, data);
            }
            Ok(())
        });
    }

    fn map(&self, map: Map) -> Result<(), Refusal> {
        let Map { iova, size, .. } = map;
        let access = match map.perm {
            Permissions::ReadWrite => Access::ReadWrite,
            Permissions::Write => Access::Write,
            Permissions::Read | Permissions::No => Access::Read,
        };
        let Some((file, offset)) = map.memory else {
            return Ok(());
        };
        if iova.saturating_add(size) > super::OWN_MEMORY {
            let why =
                format!("a map of {size:#x} bytes at {iova:#x}: beyond what a guest can address");
            return Err(Refusal::invalid(why));
        }
        let mut refused = Ok(());
        self.unless_gone(|inner, back| {
            inner.counters.dma_maps += 1;
            let entry = match inner.maps.insert(iova, size, access, file, offset) {
                Ok(entry) => entry.clone(),
                Err(error) => {
                    refused = Err(Refusal::invalid(error.to_string()));
                    return Ok(());
                }
            };
            let Some(back) = back else { return Ok(()) };
            let fd = entry.memory.file.as_fd();
            match back.bus.map(iova, size, access, fd, offset) {
                // The device that takes over is given the map.
                Err(error) if is_gone(&error) => return Err(error),
                Err(error) => {
                    // As the device has it: nothing is there.
                    inner.maps.remove(iova, size);
                    refused = Err(Refusal::invalid(error.to_string()));
                    return Ok(());
                }
                Ok(()) => {}
            }
            inner.track_up_to(iova.saturating_add(size), back);
            Ok(())
        });
        refused
    }

    fn unmap(&self, iova: u64, size: u64) {
        // The mediator's own memory stays, whatever the guest unmaps.
        let size = size.min(super::OWN_MEMORY.saturating_sub(iova));
        self.unless_gone(|inner, back| {
            inner.counters.dma_unmaps += 1;
            // A device that has nothing there need not be told; a VMM unmaps far more than it maps.
            if !inner.maps.remove(iova, size) {
                return Ok(());
            }
            back.map_or(Ok(()), |back| back.bus.unmap(iova, size))
        });
    }

    fn reset(&self) -> Result<(), Refusal> {
        let reset = self.attempt(|inner, back| {
            quietly(back.reset())?;
            self.power_on(inner);
            Ok(())
        });
        reset.ok_or_else(|| Refusal::gone("the device to be reset is gone"))
    }

    fn interrupts(&self, request: IrqRequest, eventfds: Vec<File>) {
        self.unless_gone(|inner, back| {
            let vectors = usize::from(self.face.vectors);
            let (range, mut eventfds) = match request {
                IrqRequest::DisableAll => (0..vectors, Vec::new().into_iter()),
                IrqRequest::Connect(range) => {
                    (range.start..range.end.min(vectors), eventfds.into_iter())
                }
                IrqRequest::Trigger(range) => {
                    let raised = inner.vectors.iter().skip(range.start).take(range.len());
                    raised.flatten().for_each(signal);
                    return Ok(());
                }
            };
            let mut result = Ok(());
            for vector in range {
                let event = eventfds.next();
                if let (Some(back), Ok(number)) = (back, u16::try_from(vector)) {
                    let event = event.as_ref().map(AsFd::as_fd);
                    result = result.and(back.bus.connect_vector(number, event));
                }
                if let Some(slot) = inner.vectors.get_mut(vector) {
                    *slot = event;
                }
            }
            result
        });
    }
}

/// Raises a vector as the device would.
pub(super) fn signal(event: &File) {
    let mut event = event;
    if let Err(error) = event.write_all(&1_u64.to_ne_bytes()) {
        tracing::warn!(%error, "an interrupt could not be sent");
    }
}

/// A reset of which nobody hears that it failed but by what the device does next.
fn quietly(reset: Result<(), DriverError>) -> Result<(), BusError> {
    match reset {
        Err(DriverError::Bus(error)) => Err(error),
        Err(error) => {
            tracing::warn!(%error, "the device does not reset");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}
