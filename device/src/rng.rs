//! The entropy device (VIRTIO 1.4, "Entropy Device").

use crate::dma::Dma;
use crate::queue::{Cursor, Virtqueue};
use crate::virtio::{Progress, QueueError, VirtioDevice};
use spec::rng::DEVICE_ID;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

/// PCI class code: other.
const PCI_CLASS: u32 = 0xff_00_00;
const QUEUE_SIZE: u16 = 256;
/// Chains served in one step.
const CHAINS_MAX: usize = 32;
/// Descriptors after which no more chains are taken into a step.
const DESCRIPTORS_MAX: u32 = 4096;
/// Most bytes given to one chain; a device may give fewer than asked for.
const BYTES_MAX: usize = 4096;

/// A source of entropy for guests.
#[derive(Debug)]
pub struct RngDevice {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The kernel's generator, which never blocks once the system is up.
    System(File),
    /// SplitMix64, the same bytes every time: for tests that compare memories.
    Seeded(Mutex<u64>),
}

impl RngDevice {
    /// Entropy of this system.
    ///
    /// # Errors
    ///
    /// If `/dev/urandom` cannot be opened.
    pub fn system() -> io::Result<Arc<Self>> {
        let source = Source::System(File::open("/dev/urandom")?);
        Ok(Arc::new(Self { source }))
    }

    /// Bytes that follow from `seed` alone. Not random: for tests.
    pub fn seeded(seed: u64) -> Arc<Self> {
        let source = Source::Seeded(Mutex::new(seed));
        Arc::new(Self { source })
    }

    fn fill(&self, into: &mut [u8]) -> io::Result<()> {
        match &self.source {
            Source::System(urandom) => (&mut &*urandom).read_exact(into),
            Source::Seeded(state) => {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                for chunk in into.chunks_mut(8) {
                    let word = split_mix(&mut state).to_le_bytes();
                    chunk.copy_from_slice(&word[..chunk.len()]);
                }
                Ok(())
            }
        }
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl VirtioDevice for RngDevice {
    fn device_id(&self) -> u16 {
        DEVICE_ID
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

    fn queue_max_size(&self, _index: u16) -> u16 {
        QUEUE_SIZE
    }

    fn config_len(&self) -> usize {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn config_write(&self, _offset: usize, _data: &[u8]) -> bool {
        false
    }

    fn negotiated(&self, _features: u64) {}

    fn reset(&self) {}

    /// Gives every chain up to 4096 bytes; a chain without a writable, mapped buffer gets none.
    fn process(
        &self,
        _index: u16,
        queue: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        let mut used = false;
        let progress = self.step(queue, dma, &mut used);
        if used {
            notify();
        }
        progress
    }
}

impl RngDevice {
    /// One step; sets `used` if the driver is to be told.
    fn step(
        &self,
        queue: &mut Virtqueue,
        dma: &Dma,
        used: &mut bool,
    ) -> Result<Progress, QueueError> {
        let mut chains = Vec::new();
        let mut end = Ok(None);
        {
            let mem = dma.enter();
            queue.disable_notification(&mem)?;
            let mut descriptors: u32 = 0;
            while chains.len() < CHAINS_MAX && descriptors < DESCRIPTORS_MAX {
                match queue.pop(&mem) {
                    Ok(Some(chain)) => {
                        descriptors = descriptors.saturating_add(chain.descriptors);
                        chains.push(chain);
                    }
                    Ok(None) => {
                        end = Ok(Some(Progress::Idle));
                        break;
                    }
                    Err(error) => {
                        end = Err(error);
                        break;
                    }
                }
            }
        }

        let wanted = |len: u64| usize::try_from(len).map_or(BYTES_MAX, |len| len.min(BYTES_MAX));
        let total = chains.iter().map(|c| wanted(c.writable_len())).sum();
        let mut entropy = vec![0; total];
        if let Err(error) = self.fill(&mut entropy) {
            tracing::error!(%error, "no entropy");
            entropy.clear();
        }

        let mem = dma.enter();
        let mut rest = entropy.as_slice();
        let mut burst = mem.burst();
        let mut filled = Vec::with_capacity(chains.len());
        for chain in chains {
            let len = wanted(chain.writable_len()).min(rest.len());
            let (now, later) = rest.split_at(len);
            rest = later;
            let written = Cursor::new(chain.writable).write(&mut burst, now);
            filled.push((chain.head, u32::try_from(written).unwrap_or(0)));
        }
        burst.commit();
        let mut pushed = Ok(());
        for (head, len) in filled {
            pushed = queue.push(&mem, head, len);
            if pushed.is_err() {
                break;
            }
        }
        *used |= queue.needs_notification(&mem)?;
        pushed?;
        match end? {
            Some(Progress::Idle) if !queue.enable_notification(&mem)? => Ok(Progress::Idle),
            _ => Ok(Progress::More),
        }
    }
}

#[cfg(test)]
#[path = "rng_tests.rs"]
mod tests;
