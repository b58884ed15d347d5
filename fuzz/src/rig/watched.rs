//! The block device in a wrapper that counts, and that can be made to do wrong.

use super::QUEUE_SIZE;
use crate::Plant;
use device::blk::{BlkDevice, BlkOptions, Disk};
use device::dma::Dma;
use device::queue::Virtqueue;
use device::virtio::{Progress, QueueError, VirtioDevice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the device and the disk were called for.
#[derive(Debug, Default)]
pub struct Counts {
    /// Steps of work on queues.
    pub calls: AtomicU64,
    /// Calls of the disk.
    pub disk: AtomicU64,
    /// Bytes that the disk was to read, write or zero.
    pub bytes: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Watched {
    inner: Arc<BlkDevice>,
    counts: Arc<Counts>,
    plant: Option<Plant>,
    /// The plant has been met.
    met: AtomicBool,
    /// It is to act.
    acts: AtomicBool,
}

impl Watched {
    pub(super) fn new(
        disk: Box<dyn Disk>,
        queues: u16,
        counts: Arc<Counts>,
        plant: Option<Plant>,
    ) -> Arc<Self> {
        let options = BlkOptions {
            queues,
            queue_size: QUEUE_SIZE,
            ..BlkOptions::default()
        };
        Arc::new(Self {
            inner: BlkDevice::with_disk(disk, options).expect("a disk of whole sectors"),
            counts,
            plant,
            met: AtomicBool::new(false),
            acts: AtomicBool::new(false),
        })
    }

    /// What the plants do before the device has its turn; `Some` in its place.
    fn planted(
        &self,
        plant: Plant,
        queue: &mut Virtqueue,
        dma: &Dma,
    ) -> Result<Option<Progress>, QueueError> {
        if self.acts.load(Ordering::Relaxed) {
            return Ok(Some(Progress::Idle));
        }
        let mem = dma.enter();
        let Some(chain) = queue.pop(&mem)? else {
            return Ok(None);
        };
        // Popped again, and used, by the device itself.
        let met = chain.descriptors == 6;
        match plant {
            Plant::LostHead if met => return Ok(Some(Progress::Idle)),
            Plant::Livelock if met => {
                queue.unpop();
                return Ok(Some(Progress::More));
            }
            Plant::NoReset if met => self.met.store(true, Ordering::Relaxed),
            _ => {}
        }
        queue.unpop();
        Ok(None)
    }
}

impl VirtioDevice for Watched {
    fn device_id(&self) -> u16 {
        self.inner.device_id()
    }
    fn pci_class(&self) -> u32 {
        self.inner.pci_class()
    }
    fn features(&self) -> u64 {
        self.inner.features()
    }
    fn num_queues(&self) -> u16 {
        self.inner.num_queues()
    }
    fn queue_max_size(&self, index: u16) -> u16 {
        self.inner.queue_max_size(index)
    }
    fn config_len(&self) -> usize {
        self.inner.config_len()
    }
    fn config(&self) -> Vec<u8> {
        self.inner.config()
    }
    fn config_write(&self, offset: usize, data: &[u8]) -> bool {
        self.inner.config_write(offset, data)
    }
    fn accepts(&self, features: u64) -> bool {
        self.inner.accepts(features)
    }
    fn negotiated(&self, features: u64) {
        self.inner.negotiated(features);
    }
    fn reset(&self) {
        if self.met.load(Ordering::Relaxed) {
            self.acts.store(true, Ordering::Relaxed);
        }
        self.inner.reset();
    }
    fn process(
        &self,
        index: u16,
        queue: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        if let Some(plant) = self.plant
            && let Some(progress) = self.planted(plant, queue, dma)?
        {
            return Ok(progress);
        }
        self.inner.process(index, queue, dma, notify)
    }
}
