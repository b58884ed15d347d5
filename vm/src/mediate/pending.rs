//! What a guest's rings hold, as they stand in its memory.

use super::MediateError;
use super::maps::Maps;
use driver::state::QueueSaved;
use spec::features::Features;
use spec::packed::{self, DESC_F_AVAIL, DESC_F_USED, PackedDescriptor, Position};
use spec::ring::DESC_F_NEXT;
use zerocopy::{FromZeros, IntoBytes};

/// Bytes of an available or used ring up to its index: flags and the index.
const IDX: u64 = 2;

fn read(maps: &Maps, queue: &QueueSaved, at: u64, into: &mut [u8]) -> Result<(), MediateError> {
    maps.read(at, into).map_err(|error| MediateError::Ring {
        queue: queue.index,
        error,
    })
}

/// The index of a split ring.
pub(super) fn index(maps: &Maps, queue: &QueueSaved, ring: u64) -> Result<u16, MediateError> {
    let mut data = [0; 2];
    read(maps, queue, ring.saturating_add(IDX), &mut data)?;
    Ok(u16::from_le_bytes(data))
}

/// Requests that are available from where the queue stands on. A guest that writes nonsense makes
/// it a nonsensical number, of at most a ring's length or what an index can hold.
pub(super) fn pending(maps: &Maps, queue: &QueueSaved, features: u64) -> Result<u64, MediateError> {
    if features & Features::RING_PACKED.bits() == 0 {
        let avail = index(maps, queue, queue.driver)?;
        return Ok(avail.wrapping_sub(queue.avail).into());
    }
    let Some(begin) = Position::from_bits(queue.avail, queue.size) else {
        return Ok(0);
    };
    let mut pending = 0;
    for entry in 0..queue.size {
        let Position { index, wrap } = begin.forward(entry, queue.size);
        let mut descriptor = PackedDescriptor::new_zeroed();
        let at = queue.desc.saturating_add(16 * u64::from(index));
        read(maps, queue, at, descriptor.as_mut_bytes())?;
        let flags = descriptor.flags.get();
        if flags & (DESC_F_AVAIL | DESC_F_USED) != packed::available(wrap) {
            break;
        }
        // A list counts where it ends.
        pending += u64::from(flags & DESC_F_NEXT == 0);
    }
    Ok(pending)
}
