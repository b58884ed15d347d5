//! What every block must hold: the write that was acknowledged last, or one that failed since.

use super::report::Counts;
use super::sector::{Content, SECTOR_BYTES, Stamp, read};
use crate::guest::block::splitmix;

/// Sectors of a block at most: what has been reported of each is a bit.
pub(super) const SECTORS_MAX: usize = 128;
/// Random blocks that are tried before the next free one is taken.
const TRIES: u32 = 64;

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// Sequence of the last acknowledged write.
    acknowledged: u64,
    /// Sequence of the last write issued. Above `acknowledged` while one is in flight, or after
    /// one failed: then nobody knows whether it reached the disk.
    issued: u64,
    /// The newest sequence that a read has shown.
    seen: u64,
    /// Sectors whose fault has been counted; cleared by the next write.
    reported: u128,
    readers: u16,
    writing: bool,
}

/// The state of all blocks of the span.
#[derive(Debug)]
pub(super) struct Ledger {
    seed: u64,
    random: u64,
    sectors: usize,
    blocks: Vec<Block>,
    /// What reads have shown to be wrong.
    pub(super) counts: Counts,
}

impl Ledger {
    /// `count` blocks of `sectors` sectors, freshly formatted.
    pub(super) fn new(seed: u64, count: usize, sectors: usize) -> Self {
        Self {
            seed,
            random: splitmix(seed),
            sectors,
            blocks: vec![Block::default(); count],
            counts: Counts::default(),
        }
    }

    /// The next number of the run's random sequence.
    pub(super) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        splitmix(self.random)
    }

    /// A random block that may be read now, or written: a write shares its block with no request.
    fn pick(&mut self, free: impl Fn(&Block) -> bool) -> Option<usize> {
        let count = self.blocks.len();
        let mut at = 0;
        for _ in 0..TRIES {
            at = usize::try_from(self.random() % (count.max(1) as u64)).unwrap_or(0);
            if self.blocks.get(at).is_some_and(&free) {
                return Some(at);
            }
        }
        (at..count)
            .chain(0..at)
            .find(|at| self.blocks.get(*at).is_some_and(&free))
    }

    /// Claims a block for a read.
    pub(super) fn begin_read(&mut self) -> Option<usize> {
        let at = self.pick(|block| !block.writing)?;
        self.blocks.get_mut(at)?.readers += 1;
        Some(at)
    }

    /// Claims a block for a write; gives its number and the sequence to write.
    pub(super) fn begin_write(&mut self) -> Option<(usize, u64)> {
        let at = self.pick(|block| !block.writing && block.readers == 0)?;
        let block = self.blocks.get_mut(at)?;
        block.writing = true;
        block.issued += 1;
        Some((at, block.issued))
    }

    /// A write was answered. One that failed leaves its block holding either content.
    pub(super) fn end_write(&mut self, at: usize, done: bool) {
        if let Some(block) = self.blocks.get_mut(at) {
            block.writing = false;
            block.reported = 0;
            if done {
                block.acknowledged = block.issued;
            }
        }
    }

    /// A read was answered, with `data` or with an error.
    pub(super) fn end_read(&mut self, at: usize, data: Option<&[u8]>) {
        if let Some(data) = data {
            self.judge(at, data);
        }
        if let Some(block) = self.blocks.get_mut(at) {
            block.readers = block.readers.saturating_sub(1);
        }
    }

    /// Holds what a block was found to hold against what it must.
    ///
    /// Older content than acknowledged is *lost* if nothing newer was ever seen there: the write
    /// never arrived. It is *stale* if something newer was seen: an old write came again. If other
    /// sectors of the block are as they must be, the write arrived in part and the block is *torn*.
    pub(super) fn judge(&mut self, at: usize, data: &[u8]) {
        let Self {
            seed,
            sectors,
            blocks,
            counts,
            ..
        } = self;
        let Some(block) = blocks.get_mut(at) else {
            return;
        };
        let first = (at * *sectors) as u64;
        let mut older = 0_u128;
        let mut newest = None;
        for (index, bytes) in (0_u32..).zip(data.chunks_exact(SECTOR_BYTES)) {
            let place = 1_u128.checked_shl(index).unwrap_or(0);
            let fault = match read(bytes) {
                Content::Broken => &mut counts.torn,
                Content::Blank => &mut counts.lost,
                Content::Whole(stamp) if stamp.seed != *seed => &mut counts.lost,
                Content::Whole(stamp) if stamp.sector != first + u64::from(index) => {
                    &mut counts.misplaced
                }
                Content::Whole(Stamp { sequence, .. }) => {
                    if sequence > block.issued {
                        // Nobody has written that yet: another run with the same seed has.
                        &mut counts.misplaced
                    } else if sequence >= block.acknowledged {
                        newest = newest.max(Some(sequence));
                        continue;
                    } else if sequence >= block.seen {
                        older |= place;
                        continue;
                    } else {
                        &mut counts.stale
                    }
                }
            };
            if block.reported & place == 0 {
                block.reported |= place;
                *fault += 1;
                tell(first + u64::from(index), bytes, block.acknowledged);
            }
        }
        let fresh = older & !block.reported;
        let fault = if newest.is_some() {
            &mut counts.torn
        } else {
            &mut counts.lost
        };
        *fault += u64::from(fresh.count_ones());
        if fresh != 0 {
            let index = fresh.trailing_zeros();
            let start = usize::try_from(index).unwrap_or(0) * SECTOR_BYTES;
            let bytes = data.get(start..start + SECTOR_BYTES).unwrap_or_default();
            tell(first + u64::from(index), bytes, block.acknowledged);
        }
        block.reported |= older;
        block.seen = block.seen.max(newest.unwrap_or(0));
    }
}

fn tell(sector: u64, bytes: &[u8], acknowledged: u64) {
    tracing::warn!(sector, acknowledged, found = ?read(bytes), "not what the sector must hold");
}
