//! The one rule: which changes of a batch exclude each other, or are excluded by what is stored.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;

/// A key that covers a stretch of the line on which the keys are sorted, from its own place on.
///
/// One that reaches a place covers all places from its own to there. So among keys that do not overlap
/// one another, only the last one before a place can reach it.
pub trait Extent: Ord + Clone {
    /// Whether `later`, which is not sorted before this one, begins within this one's stretch.
    fn reaches(&self, later: &Self) -> bool;

    /// Whether this one's stretch ends behind that of `earlier`, which is not sorted behind this one.
    fn outlasts(&self, earlier: &Self) -> bool;
}

/// A place among sorted keys, movable to any other at any time.
///
/// A seek gives the same from wherever it starts, the end included. Errors are the store's own; the
/// first one ends the check of the whole batch.
pub trait Cursor {
    /// What is sorted.
    type Key: Extent;
    /// What a store may fail with.
    type Error;

    /// Moves to the first key that is not below this one, or to the end.
    fn seek(&mut self, key: &Self::Key) -> Result<(), Self::Error>;

    /// Moves on by one key; at the end, stays.
    fn step(&mut self) -> Result<(), Self::Error>;

    /// The last key before the place.
    fn before(&self) -> Option<&Self::Key>;

    /// The key at the place; none at the end.
    fn at(&self) -> Option<&Self::Key>;
}

/// What is asked for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<K> {
    /// It is to come into being; it must not be there.
    Create(K),
    /// It is to go; it must be there.
    Delete(K),
}

impl<K> Change<K> {
    /// The key.
    pub fn key(&self) -> &K {
        let (Self::Create(key) | Self::Delete(key)) = self;
        key
    }
}

/// Changes that are judged together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<K> {
    /// In any order.
    pub changes: Vec<Change<K>>,
    /// Stored keys that exclude nobody, and whose deletion by the batch does not either: they are
    /// about to be replaced.
    pub skip: BTreeSet<K>,
}

impl<K> Batch<K> {
    /// Changes, with nothing to skip.
    pub fn new(changes: Vec<Change<K>>) -> Self {
        Self {
            changes,
            skip: BTreeSet::new(),
        }
    }
}

/// Why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict<K> {
    /// To be created, and there already.
    Exists(K),
    /// To be deleted, and not there.
    Absent(K),
    /// More than one change of the batch is about it. All of them are refused.
    Twice(K),
    /// A stored key overlaps it.
    Stored {
        /// What was to be created.
        key: K,
        /// The stored key: the one before it, or the smallest behind it.
        with: K,
    },
    /// Another key that the batch touches overlaps it.
    Touched {
        /// What was to be created.
        key: K,
        /// The other: the one before it, or the smallest behind it.
        with: K,
    },
}

impl<K> Conflict<K> {
    /// The key whose change is refused.
    pub fn key(&self) -> &K {
        match self {
            Self::Exists(key)
            | Self::Absent(key)
            | Self::Twice(key)
            | Self::Stored { key, .. }
            | Self::Touched { key, .. } => key,
        }
    }
}

impl<K: fmt::Display> fmt::Display for Conflict<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(key) => write!(f, "'{key}' is refused: it exists already"),
            Self::Absent(key) => write!(f, "'{key}' is refused: it is to go and does not exist"),
            Self::Twice(key) => write!(f, "'{key}' is refused: the batch names it more than once"),
            Self::Stored { key, with } => {
                write!(f, "'{key}' is refused: '{with}' exists and excludes it")
            }
            Self::Touched { key, with } => write!(
                f,
                "'{key}' is refused: '{with}' is in the same batch and excludes it"
            ),
        }
    }
}

/// The changes of a batch that cannot be made, sorted by their keys; none if it can be applied whole.
///
/// First every change is held against the store, then those that stand against each other: each is
/// refused if it overlaps a smaller one that stands or a larger one not yet refused. What is left can
/// be applied. An error of the store is passed on, and then nothing is known.
pub fn judge<C: Cursor>(
    batch: &Batch<C::Key>,
    store: &mut C,
) -> Result<Vec<Conflict<C::Key>>, C::Error> {
    let mut sorted: Vec<&Change<C::Key>> = batch.changes.iter().collect();
    sorted.sort_by_key(|change| change.key());
    let mut refused = Vec::new();
    let mut standing: Vec<&Change<C::Key>> = Vec::with_capacity(sorted.len());
    let mut placed = false;
    for same in sorted.chunk_by(|one, other| one.key() == other.key()) {
        let change = same[0];
        if same.len() > 1 {
            refused.push(Conflict::Twice(change.key().clone()));
            continue;
        }
        match against_store(change, &batch.skip, store, &mut placed)? {
            Some(conflict) => refused.push(conflict),
            None => standing.push(change),
        }
    }
    let skipped = |key| batch.skip.contains(key);
    standing.retain(|change| !matches!(change, Change::Delete(key) if skipped(key)));
    // Of those that stand, the one whose stretch ends last.
    let mut reach: Option<&C::Key> = None;
    for (place, change) in standing.iter().enumerate() {
        let key = change.key();
        let before = reach.filter(|reach| reach.reaches(key));
        let behind = standing.get(place + 1).map(|next| next.key());
        let with = before.or_else(|| behind.filter(|next| key.reaches(next)));
        match (change, with) {
            (Change::Create(key), Some(with)) => refused.push(Conflict::Touched {
                key: key.clone(),
                with: with.clone(),
            }),
            _ if reach.is_none_or(|reach| key.outlasts(reach)) => reach = Some(key),
            _ => {}
        }
    }
    refused.sort_by(|one, other| one.key().cmp(other.key()));
    Ok(refused)
}

/// `placed`: the cursor was moved before, so that the gap it is in may serve again.
fn against_store<C: Cursor>(
    change: &Change<C::Key>,
    skip: &BTreeSet<C::Key>,
    store: &mut C,
    placed: &mut bool,
) -> Result<Option<Conflict<C::Key>>, C::Error> {
    let key = change.key();
    let in_gap = *placed
        && store.before().is_none_or(|before| before < key)
        && store.at().is_none_or(|at| key <= at);
    if !in_gap {
        store.seek(key)?;
        *placed = true;
    }
    let key = match (change, store.at().map(|at| at.cmp(key))) {
        (Change::Create(key), Some(Ordering::Equal)) => {
            return Ok(Some(Conflict::Exists(key.clone())));
        }
        (Change::Delete(_), Some(Ordering::Equal)) => return Ok(None),
        (Change::Delete(key), _) => return Ok(Some(Conflict::Absent(key.clone()))),
        (Change::Create(key), _) => key,
    };
    // Only the last one before: another that reaches as far would overlap it.
    let before = store.before().filter(|before| before.reaches(key));
    if let Some(before) = before.filter(|before| !skip.contains(*before)) {
        return Ok(Some(stored(key, before)));
    }
    while let Some(at) = store.at().filter(|at| key.reaches(at)) {
        if !skip.contains(at) {
            return Ok(Some(stored(key, at)));
        }
        store.step()?;
    }
    Ok(None)
}

fn stored<K: Clone>(key: &K, with: &K) -> Conflict<K> {
    Conflict::Stored {
        key: key.clone(),
        with: with.clone(),
    }
}
