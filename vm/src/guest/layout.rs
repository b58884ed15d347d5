//! Where things lie in guest memory, and who writes which page.

use super::block::BLOCK_BYTES;
use super::workload::Pattern;
use crate::error::VmError;
use crate::hypervisor::Means;
use crate::machine::MarkingMode;
use driver::dirty::PAGE_SIZE;
use driver::queue::Virtqueue;
use serde::{Deserialize, Serialize};

/// Bytes of a request header.
pub(crate) const HEADER_BYTES: u64 = 16;

/// The shape of a guest: all that the destination must know to make room for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Bytes of memory, a multiple of 4 KiB.
    pub memory: u64,
    /// Block devices, 1 to 64.
    pub devices: u16,
    /// Queues of each device, 1 to 64; each has a virtual CPU of its own.
    pub queues: u16,
    /// Entries of each queue, at least four times the depth; of a split one a power of two.
    pub queue_size: u16,
    /// Requests that each virtual CPU keeps in flight, 1 to 256.
    pub depth: u16,
    /// Blocks of 4 KiB of each disk that the workload uses.
    pub blocks: u64,
    /// What the virtual CPUs do.
    pub pattern: Pattern,
    /// Writes in a hundred requests.
    pub writes_percent: u8,
    /// Seed of everything random.
    pub seed: u64,
    /// How the devices mark.
    pub marking: MarkingMode,
    /// How they are tracked and moved.
    #[serde(default)]
    pub means: Means,
    /// Requests after which the guest's driver resets a device in the middle of its work, by its
    /// status and its function in turn; 0 for never.
    #[serde(default)]
    pub reset_every: u64,
    /// Queues are packed rather than split.
    #[serde(default)]
    pub packed: bool,
}

/// Who writes a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PageClass {
    /// Nobody, after boot.
    Unused,
    /// The CPU: descriptors, available rings, headers, write buffers, its tables.
    Cpu,
    /// A device: data read from disk, used rings, status bytes.
    Device,
}

/// Where one virtual CPU's things lie. Addresses are IOVAs, all multiples of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the virtual CPU.
    pub vcpu: u64,
    /// Its device.
    pub device: u16,
    /// Its queue of that device.
    pub queue: u16,
    /// The ring.
    pub ring: u64,
    /// Request headers.
    pub headers: u64,
    /// Status bytes.
    pub statuses: u64,
    /// Pages to write from.
    pub buffers: u64,
    /// Sequence number of every block, 4 bytes each.
    pub sequences: u64,
    /// Number of its blocks: those of the disk with `block % queues == queue`.
    pub blocks: u64,
    /// Number of its frames.
    pub frames: u64,
}

/// The whole map.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The shape it follows from.
    pub shape: Shape,
    /// One for each virtual CPU.
    pub places: Vec<Place>,
    /// First page of the frames.
    pub frames_at: u64,
}

impl Layout {
    /// Lays a guest out. The shape may come from outside.
    ///
    /// # Errors
    /// [`VmError::Shape`] names the property that cannot be.
    pub fn new(shape: &Shape) -> Result<Self, VmError> {
        check(shape)?;
        let vcpus = u64::from(shape.devices) * u64::from(shape.queues);
        // Page 0 stays free: address 0 means "none" to more than one register.
        let mut next = PAGE_SIZE;
        let mut take = |bytes: u64| {
            let at = next;
            next += bytes.next_multiple_of(PAGE_SIZE);
            at
        };
        let depth = u64::from(shape.depth);
        let mut places = Vec::new();
        for vcpu in 0..vcpus {
            let queues = u64::from(shape.queues);
            let queue = vcpu % queues;
            let blocks = (shape.blocks + queues - 1 - queue) / queues;
            places.push(Place {
                vcpu,
                device: narrow(vcpu / queues),
                queue: narrow(queue),
                ring: take(Virtqueue::bytes_needed(shape.queue_size)),
                headers: take(depth * HEADER_BYTES),
                statuses: take(depth),
                buffers: take(depth * PAGE_SIZE),
                sequences: take(blocks * 4),
                blocks,
                frames: 0,
            });
        }
        let frames = (shape.memory.saturating_sub(next)) / PAGE_SIZE;
        let least = vcpus * depth * 4;
        if frames < least {
            return Err(VmError::shape(
                "memory",
                format!(
                    "at least {} bytes for this many queues and blocks",
                    next + least * PAGE_SIZE
                ),
                shape.memory,
            ));
        }
        for (vcpu, place) in (0..vcpus).zip(&mut places) {
            place.frames = (frames + vcpus - 1 - vcpu) / vcpus;
        }
        Ok(Self {
            shape: shape.clone(),
            places,
            frames_at: next,
        })
    }

    /// Address of a virtual CPU's frame: frames of different CPUs alternate, so that a coarse
    /// tracker's page covers frames of all of them.
    pub fn frame(&self, place: &Place, frame: u64) -> u64 {
        let vcpus = u64::try_from(self.places.len()).unwrap_or(u64::MAX);
        self.frames_at + (frame * vcpus + place.vcpu) * PAGE_SIZE
    }

    /// Who writes each page of memory, given the parts of rings that devices write.
    pub fn classes(&self, written: &[(u64, u64)]) -> Vec<PageClass> {
        let pages = usize::try_from(self.shape.memory / PAGE_SIZE).unwrap_or(0);
        let mut classes = vec![PageClass::Unused; pages];
        let mut paint = |at: u64, bytes: u64, class: PageClass| {
            for page in at / PAGE_SIZE..(at + bytes).div_ceil(PAGE_SIZE) {
                if let Some(slot) = usize::try_from(page).ok().and_then(|p| classes.get_mut(p)) {
                    *slot = class;
                }
            }
        };
        let depth = u64::from(self.shape.depth);
        for place in &self.places {
            paint(place.ring, place.headers - place.ring, PageClass::Cpu);
            paint(place.headers, depth * HEADER_BYTES, PageClass::Cpu);
            paint(place.statuses, depth, PageClass::Device);
            paint(place.buffers, depth * PAGE_SIZE, PageClass::Cpu);
            paint(place.sequences, place.blocks * 4, PageClass::Cpu);
        }
        for &(at, bytes) in written {
            paint(at, bytes, PageClass::Device);
        }
        paint(
            self.frames_at,
            self.shape.memory - self.frames_at,
            PageClass::Device,
        );
        classes
    }
}

fn narrow(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn check(shape: &Shape) -> Result<(), VmError> {
    let whole = shape.memory.is_multiple_of(PAGE_SIZE);
    if !whole || shape.memory == 0 || shape.memory > 1 << 42 {
        return Err(VmError::shape(
            "memory",
            "a multiple of 4 KiB of at most 4 TiB",
            format!("{} bytes", shape.memory),
        ));
    }
    for (what, value) in [("devices", shape.devices), ("queues", shape.queues)] {
        if !(1..=64).contains(&value) {
            return Err(VmError::shape(what, "1 to 64", value));
        }
    }
    if !(1..=256).contains(&shape.depth) {
        return Err(VmError::shape("depth", "1 to 256 requests", shape.depth));
    }
    let least = shape.depth * 4;
    let fits = shape.packed || shape.queue_size.is_power_of_two();
    if !fits || shape.queue_size < least || shape.queue_size > 32768 {
        let what = if shape.packed {
            "a number"
        } else {
            "a power of two"
        };
        return Err(VmError::shape(
            "queue size",
            format!("{what} from {least} to 32768"),
            shape.queue_size,
        ));
    }
    let least = u64::from(shape.queues) * u64::from(shape.depth) * 4;
    if shape.blocks < least || shape.blocks > 1 << 40 {
        return Err(VmError::shape(
            "disk",
            format!(
                "at least {} bytes",
                least * u64::try_from(BLOCK_BYTES).unwrap_or(0)
            ),
            format!("{} bytes", shape.blocks.saturating_mul(PAGE_SIZE)),
        ));
    }
    if shape.writes_percent > 100 {
        return Err(VmError::shape(
            "share of writes",
            "at most 100 %",
            shape.writes_percent,
        ));
    }
    Ok(())
}
