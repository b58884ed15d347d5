//! Queues as the common configuration shows them: sizes, addresses, state, notification, reset.

use super::regs::common;
use super::{Region, Transport};
use crate::bus::Bus;
use crate::error::DriverError;
use crate::state::QueueSaved;
use spec::features::Features;
use spec::pci::NO_VECTOR;
use spec::queue_state::QueueState;
use spec::ring;
use std::sync::Arc;
use std::time::Duration;

/// What a queue needs before it can be enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Entries; for a split queue a power of two.
    pub size: u16,
    /// MSI-X vector, [`NO_VECTOR`] for none.
    pub vector: u16,
    /// Descriptor area (IOVA), 16-aligned.
    pub desc: u64,
    /// Driver area (IOVA): available ring, 2-aligned (packed: event suppression, 4-aligned).
    pub driver: u64,
    /// Device area (IOVA): used ring, 4-aligned.
    pub device: u64,
}

impl QueueSetup {
    /// Checks what VIRTIO 1.4 demands of sizes and addresses.
    pub(crate) fn check(&self, queue: u16, max: u16, packed: bool) -> Result<(), DriverError> {
        let shape = packed || self.size.is_power_of_two();
        if self.size == 0 || self.size > max.min(ring::QUEUE_SIZE_MAX) || !shape {
            return Err(DriverError::QueueSize {
                queue,
                size: self.size,
                max,
            });
        }
        let (driver, device) = if packed {
            ((4, 4), (4, 4))
        } else {
            (
                (ring::avail_bytes(self.size), ring::AVAIL_ALIGN),
                (ring::used_bytes(self.size), ring::USED_ALIGN),
            )
        };
        let parts = [
            (
                "desc",
                self.desc,
                (ring::desc_bytes(self.size), ring::DESC_ALIGN),
            ),
            ("driver", self.driver, driver),
            ("device", self.device, device),
        ];
        for (part, address, (bytes, align)) in parts {
            if !address.is_multiple_of(align) || address.checked_add(bytes).is_none() {
                return Err(DriverError::QueueAddress {
                    queue,
                    part,
                    address,
                });
            }
        }
        Ok(())
    }
}

/// The doorbell of one queue. Cheap to use: one access to the device for each notification.
#[derive(Clone, Debug)]
pub struct Notifier {
    bus: Arc<dyn Bus>,
    bar: u8,
    offset: u64,
    id: u16,
    with_data: bool,
}

impl Notifier {
    /// Tells the device that buffers are available (VIRTIO 1.4, "Available Buffer Notifications").
    ///
    /// `next` is where the driver will make the next buffer available: the available index of a
    /// split queue; of a packed one the ring offset with the wrap counter in bit 15. It goes out
    /// when NOTIFICATION_DATA is negotiated.
    ///
    /// # Errors
    /// What the bus says.
    pub fn notify(&self, next: u16) -> Result<(), DriverError> {
        let ([a, b], [c, d]) = (self.id.to_le_bytes(), next.to_le_bytes());
        if self.with_data {
            self.bus.bar_write(self.bar, self.offset, &[a, b, c, d])?;
        } else {
            self.bus.bar_write(self.bar, self.offset, &[a, b])?;
        }
        Ok(())
    }
}

impl Transport {
    /// Number of queues, administration queues not counted.
    ///
    /// # Errors
    /// What the bus says.
    pub fn num_queues(&self) -> Result<u16, DriverError> {
        self.read16(common!(num_queues))
    }

    /// Index of the first administration queue, and how many there are: none without ADMIN_VQ.
    ///
    /// # Errors
    /// [`DriverError::StructureTooShort`] if the device has the feature and not the registers, or
    /// what the bus says.
    pub fn admin_queues(&self) -> Result<(u16, u16), DriverError> {
        if !self.features().contains(Features::ADMIN_VQ) {
            return Ok((0, 0));
        }
        Ok((
            self.read16(common!(admin_queue_index))?,
            self.read16(common!(admin_queue_num))?,
        ))
    }

    /// Largest size of a queue that is not set up; 0 if there is no such queue. Once a queue has
    /// been set up this is its size.
    ///
    /// # Errors
    /// What the bus says.
    pub fn queue_max_size(&self, queue: u16) -> Result<u16, DriverError> {
        let _selected = self.select();
        self.write16(common!(queue_select), queue)?;
        self.read16(common!(queue_size))
    }

    /// Sets a queue up and enables it. With `state` the device starts from there instead of from
    /// the beginning: written after FEATURES_OK and before `queue_enable`, as the project rules.
    ///
    /// # Errors
    /// [`DriverError::NoSuchQueue`], [`DriverError::QueueEnabled`], [`DriverError::QueueSize`],
    /// [`DriverError::QueueAddress`], [`DriverError::VectorRefused`],
    /// [`DriverError::NotNegotiated`] for a state without QUEUE_STATE,
    /// [`DriverError::QueueNotEnabled`], or what the bus says. The queue is not enabled then.
    pub fn setup_queue(
        &self,
        queue: u16,
        setup: &QueueSetup,
        state: Option<QueueState>,
    ) -> Result<(), DriverError> {
        if state.is_some() {
            self.require(Features::QUEUE_STATE)?;
        }
        let packed = self.features().contains(Features::RING_PACKED);
        let _selected = self.select();
        self.write16(common!(queue_select), queue)?;
        let max = self.read16(common!(queue_size))?;
        if max == 0 {
            return Err(DriverError::NoSuchQueue(queue));
        }
        if self.read16(common!(queue_enable))? != 0 {
            return Err(DriverError::QueueEnabled(queue));
        }
        setup.check(queue, max, packed)?;
        self.write16(common!(queue_size), setup.size)?;
        self.write16(common!(queue_msix_vector), setup.vector)?;
        if setup.vector != NO_VECTOR && self.read16(common!(queue_msix_vector))? != setup.vector {
            return Err(DriverError::VectorRefused {
                vector: setup.vector,
                event: "a queue",
            });
        }
        self.write64(common!(queue_desc), setup.desc)?;
        self.write64(common!(queue_driver), setup.driver)?;
        self.write64(common!(queue_device), setup.device)?;
        if let Some(state) = state {
            self.write16(common!(queue_avail_state), state.avail)?;
            self.write16(common!(queue_used_state), state.used)?;
        }
        self.write16(common!(queue_enable), 1)?;
        if self.read16(common!(queue_enable))? != 1 {
            return Err(DriverError::QueueNotEnabled(queue));
        }
        Ok(())
    }

    /// What the device shows of a queue, its state included if QUEUE_STATE is negotiated. The state
    /// means something only while the device is suspended or the queue is disabled.
    ///
    /// # Errors
    /// [`DriverError::NoSuchQueue`] or what the bus says.
    pub fn queue(&self, queue: u16) -> Result<QueueSaved, DriverError> {
        let with_state = self.features().contains(Features::QUEUE_STATE);
        let _selected = self.select();
        self.write16(common!(queue_select), queue)?;
        let size = self.read16(common!(queue_size))?;
        if size == 0 {
            return Err(DriverError::NoSuchQueue(queue));
        }
        let (avail, used) = if with_state {
            (
                self.read16(common!(queue_avail_state))?,
                self.read16(common!(queue_used_state))?,
            )
        } else {
            (0, 0)
        };
        Ok(QueueSaved {
            index: queue,
            size,
            vector: self.read16(common!(queue_msix_vector))?,
            enabled: self.read16(common!(queue_enable))? == 1,
            desc: self.read64(common!(queue_desc))?,
            driver: self.read64(common!(queue_driver))?,
            device: self.read64(common!(queue_device))?,
            avail,
            used,
        })
    }

    /// Resets one queue and waits until it is disabled (VIRTIO 1.4, "Virtqueue Reset").
    ///
    /// # Errors
    /// [`DriverError::NotNegotiated`] without RING_RESET, [`DriverError::NoSuchQueue`],
    /// [`DriverError::Timeout`], or what the bus says.
    pub fn reset_queue(&self, queue: u16, timeout: Duration) -> Result<(), DriverError> {
        self.require(Features::RING_RESET)?;
        if self.queue_max_size(queue)? == 0 {
            return Err(DriverError::NoSuchQueue(queue));
        }
        {
            let _selected = self.select();
            self.write16(common!(queue_select), queue)?;
            self.write16(common!(queue_reset), 1)?;
        }
        // The lock is taken for each look, so that a slow queue holds nobody up.
        self.wait(timeout, "completed the queue's reset", |_| {
            let _selected = self.select();
            self.write16(common!(queue_select), queue)?;
            let busy = self.read16(common!(queue_reset))? != 0;
            Ok(!busy && self.read16(common!(queue_enable))? == 0)
        })
    }

    /// The doorbell of a queue.
    ///
    /// # Errors
    /// [`DriverError::StructureTooShort`] if the device places it outside its notification area,
    /// [`DriverError::NoSuchQueue`], or what the bus says.
    pub fn notifier(&self, queue: u16) -> Result<Notifier, DriverError> {
        let features = self.features();
        let with_data = features.contains(Features::NOTIFICATION_DATA);
        let _selected = self.select();
        self.write16(common!(queue_select), queue)?;
        if self.read16(common!(queue_size))? == 0 {
            return Err(DriverError::NoSuchQueue(queue));
        }
        let offset = self.read16(common!(queue_notify_off))?;
        let id = if features.contains(Features::NOTIF_CONFIG_DATA) {
            self.read16(common!(queue_notif_config_data))?
        } else {
            queue
        };
        let region: &Region = &self.caps.notify;
        // At most 2^16 times 2^32.
        let offset = u64::from(offset) * u64::from(self.caps.notify_multiplier);
        Ok(Notifier {
            bus: Arc::clone(&self.bus),
            bar: region.bar,
            offset: region.at(offset, if with_data { 4 } else { 2 })?,
            id,
            with_data,
        })
    }

    /// Notifies once; see [`Notifier::notify`]. Looks the doorbell up each time.
    ///
    /// # Errors
    /// As [`notifier`](Self::notifier).
    pub fn notify(&self, queue: u16, next: u16) -> Result<(), DriverError> {
        self.notifier(queue)?.notify(next)
    }

    /// # Errors
    /// [`DriverError::NotNegotiated`].
    pub(crate) fn require(&self, feature: Features) -> Result<(), DriverError> {
        if self.features().contains(feature) {
            Ok(())
        } else {
            Err(DriverError::NotNegotiated(feature))
        }
    }
}
