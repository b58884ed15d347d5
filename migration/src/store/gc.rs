//! Removing what no name needs.
//!
//! Three steps make it safe beside puts, and against death anywhere. First all objects are listed, so
//! that what is made later is not among them. Then, under the lock of the names, everything goes off
//! the list that a name refers to or that belongs to a put that is announced. What is left is
//! garbage for ever: of a put that is not announced nothing can be committed any more, and an
//! increment is committed only while the name of its base stands. So it can be removed without any
//! lock, by anybody, in any order.

use super::error::StoreError;
use super::layout::Root;
use super::record::{ObjectId, Record, Reference};
use super::{STEPS, Store};
use serde::Serialize;
use std::collections::BTreeSet;

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Objects that were removed.
    pub removed: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Objects that stay.
    pub kept: u64,
}

impl Store {
    /// Removes every object that no name needs and no put is about to name.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is removed if it is not known of every name what it needs.
    pub fn gc(&self) -> Result<Collected, StoreError> {
        let folders = self.bodies.folders()?;
        let listed = self.bodies.list()?;
        tracing::debug!(target: STEPS, "objects listed");
        // Most roots are read before the lock is taken.
        let mut roots = BTreeSet::new();
        let mut needed = BTreeSet::new();
        for (name, value) in self.names.entries(None)? {
            self.need(
                Record::from_bytes(&name, &value)?.root,
                &mut roots,
                &mut needed,
            )?;
        }
        tracing::debug!(target: STEPS, "roots read");
        let mut locked = self.names.lock()?;
        tracing::debug!(target: STEPS, "names locked");
        for (name, value) in locked.entries()? {
            self.need(
                Record::from_bytes(&name, &value)?.root,
                &mut roots,
                &mut needed,
            )?;
        }
        // Last: as long as it can be asked, the lock was never lost, and nobody named anything.
        let announced = locked.announced()?;
        drop(locked);
        tracing::debug!(target: STEPS, "garbage known");
        let is_garbage =
            |(id, _): &&(ObjectId, u64)| !needed.contains(id) && !announced.contains(&id.put);
        let garbage: Vec<(ObjectId, u64)> = listed.iter().filter(is_garbage).copied().collect();
        let ids: Vec<ObjectId> = garbage.iter().map(|(id, _)| *id).collect();
        self.bodies.remove(&ids)?;
        tracing::debug!(target: STEPS, "garbage removed");
        self.bodies.sweep(folders, &announced)?;
        let count = |of: usize| u64::try_from(of).unwrap_or(u64::MAX);
        Ok(Collected {
            removed: count(garbage.len()),
            removed_bytes: garbage.iter().map(|(_, bytes)| bytes).sum(),
            kept: count(listed.len() - garbage.len()),
        })
    }

    /// Adds a root and all that it refers to.
    fn need(
        &self,
        root: Reference,
        roots: &mut BTreeSet<Reference>,
        needed: &mut BTreeSet<ObjectId>,
    ) -> Result<(), StoreError> {
        if !roots.insert(root) {
            return Ok(());
        }
        let parsed = Root::from_bytes(&root.id, &self.bodies.get(&root)?)?;
        needed.insert(root.id);
        needed.extend(parsed.indexes.iter().chain(&parsed.packs).map(|one| one.id));
        Ok(())
    }
}
