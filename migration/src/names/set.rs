//! Keys in memory that never overlap one another.

use crate::names::{Batch, Change, Conflict, Cursor, Extent, judge};
use std::convert::Infallible;

/// What becomes of a batch of which some changes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// None of it is applied.
    Atomic,
    /// The rest is applied.
    PerItem,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied<K> {
    /// How many changes were made.
    pub made: usize,
    /// Those that cannot be made, sorted by their keys.
    pub refused: Vec<Conflict<K>>,
}

/// Sorted keys of which no two overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictSet<K> {
    keys: Vec<K>,
}

impl<K> Default for ConflictSet<K> {
    fn default() -> Self {
        Self { keys: Vec::new() }
    }
}

impl<K: Extent> ConflictSet<K> {
    /// The keys, sorted.
    pub fn keys(&self) -> &[K] {
        &self.keys
    }

    /// A cursor at the first key.
    pub fn cursor(&self) -> SetCursor<'_, K> {
        SetCursor {
            keys: &self.keys,
            place: 0,
        }
    }

    /// What of a batch cannot be applied; see [`judge`].
    pub fn judge(&self, batch: &Batch<K>) -> Vec<Conflict<K>> {
        match judge(batch, &mut self.cursor()) {
            Ok(refused) => refused,
            Err(never) => match never {},
        }
    }

    /// Judges a batch and applies what its mode lets through. What its skip set names leaves the set
    /// when any change is made: it was said to be replaced.
    pub fn apply(&mut self, batch: Batch<K>, mode: Mode) -> Applied<K> {
        let refused = self.judge(&batch);
        let Batch { mut changes, skip } = batch;
        if mode == Mode::Atomic && !refused.is_empty() {
            return Applied { made: 0, refused };
        }
        let stands = |change: &Change<K>| {
            let place = refused.binary_search_by(|conflict| conflict.key().cmp(change.key()));
            place.is_err()
        };
        changes.retain(stands);
        let made = changes.len();
        if made == 0 {
            return Applied { made, refused };
        }
        let deleted = |change: &Change<K>| matches!(change, Change::Delete(_));
        let mut gone: Vec<&K> = changes
            .iter()
            .filter(|change| deleted(change))
            .map(Change::key)
            .collect();
        gone.extend(&skip);
        gone.sort();
        self.keys.retain(|key| gone.binary_search(&key).is_err());
        let created = changes.into_iter().filter_map(|change| match change {
            Change::Create(key) => Some(key),
            Change::Delete(_) => None,
        });
        self.keys.extend(created);
        // Two sorted runs, which a stable sort merges.
        self.keys.sort();
        Applied { made, refused }
    }
}

/// The longest stride of a cursor, in keys.
const FAR: usize = 32;

/// A cursor over the keys of a [`ConflictSet`]. It finds a place near by in few comparisons.
#[derive(Clone, Debug)]
pub struct SetCursor<'a, K> {
    keys: &'a [K],
    /// Of the key at the cursor; the number of keys at the end.
    place: usize,
}

impl<K: Extent> Cursor for SetCursor<'_, K> {
    type Key = K;
    type Error = Infallible;

    fn seek(&mut self, key: &K) -> Result<(), Infallible> {
        let below = |place: usize| self.keys.get(place).is_some_and(|at| at < key);
        // Doubles its stride away from where it is, until the place is in between or so far away that
        // halving all the rest is as fast.
        let (mut low, mut high, mut stride) = (self.place, self.place, 1);
        if below(self.place) {
            while below(high) {
                low = high + 1;
                high = self.keys.len().min(if stride > FAR {
                    usize::MAX
                } else {
                    high + stride
                });
                stride *= 2;
            }
        } else {
            while low > 0 && !below(low - 1) {
                high = low - 1;
                low = if stride > FAR {
                    0
                } else {
                    low.saturating_sub(stride)
                };
                stride *= 2;
            }
        }
        self.place = low + self.keys[low..high].partition_point(|at| at < key);
        Ok(())
    }

    fn step(&mut self) -> Result<(), Infallible> {
        self.place = (self.place + 1).min(self.keys.len());
        Ok(())
    }

    fn before(&self) -> Option<&K> {
        self.keys.get(self.place.checked_sub(1)?)
    }

    fn at(&self) -> Option<&K> {
        self.keys.get(self.place)
    }
}
