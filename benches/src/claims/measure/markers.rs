//! Everything here that marks a page as dirty, ours and others'.

use super::bed::{Recorded, Tracked, mark};
use super::{PAGE, Result, ensure};
use crate::vhost_log::VhostLog;
use device::tracker::Marking;
use driver::dirty::DirtySet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};

/// With the version of vm-memory that the workspace's manifest has.
pub const ATOMIC_BITMAP: &str = "vm-memory 0.18 AtomicBitmap";
/// And that of vhost-user-backend.
pub const VHOST_LOG: &str = "vhost-user-backend 0.24 log";

/// One of them, for memory up to a certain address.
#[derive(Debug)]
pub enum Marker {
    /// The tracker's bitmap, marked in bursts.
    Bitmap(Tracked),
    /// Page-write recording, marked in bursts.
    Records(Recorded),
    /// vm-memory's.
    AtomicBitmap(AtomicBitmap),
    /// vhost-user-backend's.
    VhostLog(VhostLog),
    /// One atomic OR on a word: as little as any of them can do.
    PlainOr(Vec<AtomicU64>),
}

impl Marker {
    /// All of them, by name, for memory up to `end`.
    pub fn all(end: u64) -> Result<Vec<(&'static str, Self)>> {
        let page = NonZeroUsize::new(usize::try_from(PAGE)?).ok_or("no page")?;
        let words = end / PAGE / 64;
        let capacity = 1 << 24;
        Ok(vec![
            ("bitmap", Self::Bitmap(Tracked::new(end, 0, Marking::Bit)?)),
            (
                "records",
                Self::Records(Recorded::new(std::slice::from_ref(&(0..end)), capacity)?),
            ),
            (
                ATOMIC_BITMAP,
                Self::AtomicBitmap(AtomicBitmap::new(usize::try_from(end)?, page)),
            ),
            (VHOST_LOG, Self::VhostLog(VhostLog::new(end)?)),
            (
                "plain atomic OR",
                Self::PlainOr((0..words).map(|_| AtomicU64::new(0)).collect()),
            ),
        ])
    }

    /// Marks pages, of which none is beyond the end.
    pub fn mark(&self, pages: &[u64]) {
        let at = |page: u64| usize::try_from(page).unwrap_or(usize::MAX);
        match self {
            Self::Bitmap(tracked) => mark(&tracked.dma, pages),
            Self::Records(recorded) => mark(&recorded.dma, pages),
            Self::AtomicBitmap(bitmap) => {
                for page in pages {
                    bitmap.mark_dirty(at(page * PAGE), at(PAGE));
                }
            }
            Self::VhostLog(log) => {
                for page in pages {
                    log.mark(at(page * PAGE), at(PAGE));
                }
            }
            Self::PlainOr(words) => {
                for page in pages {
                    words[at(page / 64)].fetch_or(1 << (page % 64), Ordering::Relaxed);
                }
            }
        }
    }

    /// Takes all marks away; how many there were.
    pub fn take(&mut self, into: &mut DirtySet) -> Result<u64> {
        into.clear();
        match self {
            Self::Bitmap(tracked) => tracked.harvest(into)?,
            Self::Records(recorded) => {
                let lost = recorded.drain(|page| _ = into.insert(page));
                ensure(!lost, || "records were lost".to_owned())?;
            }
            Self::AtomicBitmap(bitmap) => {
                for (index, word) in bitmap.get_and_reset().into_iter().enumerate() {
                    into.or_word(index as u64, word);
                }
            }
            Self::VhostLog(log) => log.take(into)?,
            Self::PlainOr(words) => {
                for (index, word) in words.iter().enumerate() {
                    into.or_word(index as u64, word.swap(0, Ordering::Relaxed));
                }
            }
        }
        Ok(into.count())
    }
}
