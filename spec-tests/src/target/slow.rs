//! A source of entropy that takes its time.

use crate::constants::rng;
use device::dma::Dma;
use device::queue::{Cursor, Virtqueue};
use device::virtio::{Progress, QueueError, VirtioDevice};
use std::thread::sleep;
use std::time::Duration;

/// How long it has buffers before it writes them, and how long it goes on after that without doing
/// anything: what comes meanwhile finds it at work. All functions share few workers.
const TAKES: Duration = Duration::from_millis(15);
/// Most bytes for one buffer.
const BYTES_MAX: usize = 4096;
const QUEUE_SIZE: u16 = 64;
/// PCI class code: other.
const PCI_CLASS: u32 = 0xff_00_00;

#[derive(Debug)]
pub(super) struct Slow;

impl VirtioDevice for Slow {
    fn device_id(&self) -> u16 {
        rng::ID
    }
    fn pci_class(&self) -> u32 {
        PCI_CLASS
    }
    fn features(&self) -> u64 {
        0
    }
    fn num_queues(&self) -> u16 {
        1
    }
    fn queue_max_size(&self, _: u16) -> u16 {
        QUEUE_SIZE
    }
    fn config_len(&self) -> usize {
        0
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn config_write(&self, _: usize, _: &[u8]) -> bool {
        false
    }
    fn negotiated(&self, _: u64) {}
    fn reset(&self) {}
    fn process(
        &self,
        _: u16,
        queue: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        let mut chains = Vec::new();
        {
            let mem = dma.enter();
            // At most as many as the queue has.
            while let Some(chain) = queue.pop(&mem)? {
                chains.push(chain);
            }
            if chains.is_empty() && !queue.enable_notification(&mem)? {
                return Ok(Progress::Idle);
            }
        }
        sleep(TAKES);
        {
            let mem = dma.enter();
            for chain in chains {
                let len = usize::try_from(chain.writable_len()).unwrap_or(BYTES_MAX);
                let bytes = vec![0xa5; len.min(BYTES_MAX)];
                let mut burst = mem.burst();
                let written = Cursor::new(chain.writable).write(&mut burst, &bytes);
                burst.commit();
                queue.push(&mem, chain.head, u32::try_from(written).unwrap_or(0))?;
            }
            if queue.needs_notification(&mem)? {
                notify();
            }
        }
        sleep(TAKES);
        Ok(Progress::More)
    }
}
