//! A device type with administration queues behind its own.

use super::Admin;
use crate::dma::Dma;
use crate::queue::Virtqueue;
use crate::virtio::{Progress, QueueError, VirtioDevice};
use std::sync::Arc;

/// What the engine runs for a function that has administration queues.
#[derive(Debug)]
struct Carrier {
    device: Arc<dyn VirtioDevice>,
    admin: Arc<Admin>,
}

/// The device type, with what `admin` does behind its queues.
pub(crate) fn carry(device: Arc<dyn VirtioDevice>, admin: Arc<Admin>) -> Arc<dyn VirtioDevice> {
    Arc::new(Carrier { device, admin })
}

impl VirtioDevice for Carrier {
    fn device_id(&self) -> u16 {
        self.device.device_id()
    }
    fn pci_class(&self) -> u32 {
        self.device.pci_class()
    }
    fn features(&self) -> u64 {
        self.device.features()
    }
    fn num_queues(&self) -> u16 {
        self.admin.first + self.admin.queues()
    }
    fn queue_max_size(&self, index: u16) -> u16 {
        if index < self.admin.first {
            self.device.queue_max_size(index)
        } else {
            Admin::QUEUE_SIZE
        }
    }
    fn config_len(&self) -> usize {
        self.device.config_len()
    }
    fn config(&self) -> Vec<u8> {
        self.device.config()
    }
    fn config_write(&self, offset: usize, data: &[u8]) -> bool {
        self.device.config_write(offset, data)
    }
    fn accepts(&self, features: u64) -> bool {
        self.device.accepts(features)
    }
    fn negotiated(&self, features: u64) {
        self.device.negotiated(features);
    }
    fn reset(&self) {
        self.device.reset();
    }
    fn process(
        &self,
        index: u16,
        queue: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        match index.checked_sub(self.admin.first) {
            Some(queue_number) => self.admin.process(queue_number, queue, dma, notify),
            None => self.device.process(index, queue, dma, notify),
        }
    }
}
