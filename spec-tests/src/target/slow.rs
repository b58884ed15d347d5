//! A device type that takes its time.

use device::dma::Dma;
use device::queue::Virtqueue;
use device::virtio::{Progress, QueueError, VirtioDevice};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

/// How long it does nothing before each step of its work, and again after it: what comes meanwhile
/// finds it at work.
const TAKES: Duration = Duration::from_millis(25);

#[derive(Debug)]
struct Slow(Arc<dyn VirtioDevice>);

/// The device type, slowed down.
pub(super) fn slow(device: Arc<dyn VirtioDevice>) -> Arc<dyn VirtioDevice> {
    Arc::new(Slow(device))
}

impl VirtioDevice for Slow {
    fn device_id(&self) -> u16 {
        self.0.device_id()
    }
    fn pci_class(&self) -> u32 {
        self.0.pci_class()
    }
    fn features(&self) -> u64 {
        self.0.features()
    }
    fn num_queues(&self) -> u16 {
        self.0.num_queues()
    }
    fn queue_max_size(&self, index: u16) -> u16 {
        self.0.queue_max_size(index)
    }
    fn config_len(&self) -> usize {
        self.0.config_len()
    }
    fn config(&self) -> Vec<u8> {
        self.0.config()
    }
    fn config_write(&self, offset: usize, data: &[u8]) -> bool {
        self.0.config_write(offset, data)
    }
    fn negotiated(&self, features: u64) {
        self.0.negotiated(features);
    }
    fn reset(&self) {
        self.0.reset();
    }
    fn process(
        &self,
        index: u16,
        queue: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        sleep(TAKES);
        let progress = self.0.process(index, queue, dma, notify);
        sleep(TAKES);
        progress
    }
}
