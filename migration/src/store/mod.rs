//! Named checkpoints: bodies that share what they have in common, and names that cannot clash.
//!
//! A body is the stream of a guest ([`crate::stream`]), put away in three kinds of objects that are
//! written once and never changed: *packs* of pages, each page once, whichever checkpoint it came
//! with; an *index*, which says where each page is and what its SHA-256 is; and a *root*, which lists
//! the indexes and holds the rest of the stream. An increment adds an index of what changed and shares
//! the others with what it builds on. It needs their objects, not their names: each checkpoint can be
//! restored alone.
//!
//! A name stands for a root. [`Store::commit`] judges a batch of names ([`crate::names`]) and makes it
//! visible, whole and durable or not at all, under one lock. So a body is there before its name,
//! whenever anybody dies; what has no name is garbage, which [`Store::gc`] removes.
//!
//! Every reference holds the digest of what it refers to, up to the entry behind the name:
//! [`Store::verify`] finds a flipped bit anywhere below a name, and nothing is ever restored unseen.

mod address;
mod bodies;
mod catalogue;
mod caught;
mod checkpoint;
mod deposit;
mod error;
#[cfg(feature = "etcd")]
mod etcd;
mod folder;
mod gc;
mod layout;
mod pages;
mod record;
#[cfg(test)]
mod tests;
mod verify;

pub use address::{Address, BodiesAt, NamesAt};
pub use caught::catches_panics;
pub use checkpoint::Checkpoint;
pub use deposit::{Base, Deposit, Extent, Sealed};
pub use error::StoreError;
pub use gc::Collected;
pub use record::{Hash, Kind, ObjectId, Record, Reference};
pub use verify::{Fault, Verified};

use crate::names::{Applied, Batch, Change, Mode, Name};
use bodies::Bodies;
use catalogue::{Catalogue, Edit};
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};

/// The target under which each step of a put, a removal and a collection is told, when it is done:
/// with `RUST_LOG=store=debug` it can be seen where a process stands, or died.
const STEPS: &str = "store";

/// A store of named checkpoints.
#[derive(Debug)]
pub struct Store {
    bodies: Bodies,
    names: Box<dyn Catalogue>,
}

/// What is wanted for a name.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// It is to stand for this body; it must not be there.
    Put(&'a Sealed),
    /// It is to go; it must be there. Its body stays for whoever shares it, until gc.
    Remove,
}

impl Store {
    /// Opens a store; `make` makes one where there is none.
    ///
    /// # Errors
    /// [`StoreError::NoStore`] if there is none, and what the places of bodies and names say.
    pub fn open(address: &Address, make: bool) -> Result<Self, StoreError> {
        let runtime = Arc::new(runtime()?);
        // First: without names there is no store.
        let names: Box<dyn Catalogue> = match &address.names {
            NamesAt::Folder(folder) => Box::new(folder::Folder::open(folder, make)?),
            #[cfg(feature = "etcd")]
            NamesAt::Etcd {
                members,
                prefix,
                lease,
            } => Box::new(etcd::Etcd::open(
                members,
                prefix,
                *lease,
                Arc::clone(&runtime),
            )?),
            #[cfg(not(feature = "etcd"))]
            NamesAt::Etcd { members, .. } => {
                return Err(without("etcd", "names", members.join(",")));
            }
        };
        let bodies = match &address.bodies {
            BodiesAt::Folder(folder) => Bodies::in_folder(folder, runtime)?,
            #[cfg(feature = "s3")]
            BodiesAt::Bucket {
                bucket,
                prefix,
                endpoint,
            } => Bodies::in_bucket(bucket, prefix, endpoint.as_deref(), runtime)?,
            #[cfg(not(feature = "s3"))]
            BodiesAt::Bucket { bucket, .. } => {
                return Err(without("s3", "bodies", bucket.clone()));
            }
        };
        Ok(Self { bodies, names })
    }

    /// Starts to put a body, which may build on another checkpoint.
    ///
    /// # Errors
    /// What the place of names says.
    pub fn deposit(&self, base: Option<&Base>) -> Result<Deposit<'_>, StoreError> {
        Deposit::new(self, base)
    }

    /// Gives names to bodies and takes names away: all that is wanted or none, or what can be done,
    /// visibly at once. What is refused is told, sorted by name; see [`crate::names::judge`].
    ///
    /// # Errors
    /// [`StoreError::BaseGone`] and [`StoreError::Expired`] if a body may have lost what it needs, and
    /// what the place of names says. Nothing has changed then, or, if the error came with the last
    /// step, all that was wanted.
    pub fn commit(
        &self,
        wanted: &[(Name, Wanted<'_>)],
        mode: Mode,
    ) -> Result<Applied<Name>, StoreError> {
        let changes = wanted.iter().map(|(name, wanted)| match wanted {
            Wanted::Put(_) => Change::Create(name.clone()),
            Wanted::Remove => Change::Delete(name.clone()),
        });
        let batch = Batch::new(changes.collect());
        let bodies = || {
            wanted.iter().filter_map(|(_, wanted)| match wanted {
                Wanted::Put(sealed) => Some(*sealed),
                Wanted::Remove => None,
            })
        };
        let mut locked = self.names.lock()?;
        tracing::debug!(target: STEPS, "names locked");
        if bodies().next().is_some() {
            let announced = locked.announced()?;
            if bodies().any(|sealed| !announced.contains(&sealed.put)) {
                return Err(StoreError::Expired);
            }
        }
        let mut bases: Vec<&(Name, Record)> = bodies().filter_map(|s| s.base.as_ref()).collect();
        bases.dedup();
        for (name, record) in bases {
            if locked.entry(name)? != Some(record.to_bytes(name)) {
                return Err(StoreError::BaseGone(name.clone()));
            }
        }
        let refused = locked.judge(&batch)?;
        tracing::debug!(target: STEPS, "batch judged");
        if mode == Mode::Atomic && !refused.is_empty() {
            return Ok(Applied { made: 0, refused });
        }
        let stands = |name: &Name| {
            let place = refused.binary_search_by(|conflict| conflict.key().cmp(name));
            place.is_err()
        };
        let edits: Vec<Edit> = wanted
            .iter()
            .filter(|(name, _)| stands(name))
            .map(|(name, wanted)| match wanted {
                Wanted::Put(sealed) => (name.clone(), Some(sealed.record.to_bytes(name))),
                Wanted::Remove => (name.clone(), None),
            })
            .collect();
        if !edits.is_empty() {
            locked.commit(&edits)?;
            tracing::debug!(target: STEPS, "batch committed");
        }
        Ok(Applied {
            made: edits.len(),
            refused,
        })
    }

    /// All names with what stands behind them, sorted; with a directory, what is within it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for an entry that was not put there so, and what the place of names
    /// says.
    pub fn list(&self, within: Option<&Name>) -> Result<Vec<(Name, Record)>, StoreError> {
        let entries = self.names.entries(within)?;
        let read = |(name, value): (Name, Vec<u8>)| {
            let record = Record::from_bytes(&name, &value)?;
            Ok((name, record))
        };
        entries.into_iter().map(read).collect()
    }

    /// Opens a checkpoint.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], and [`StoreError::Damaged`] if what it consists of is not what was
    /// put.
    pub fn checkpoint(&self, name: &Name) -> Result<Checkpoint<'_>, StoreError> {
        Checkpoint::open(self, name)
    }

    /// The checkpoint on which one with this name would best build: the youngest of its directory.
    ///
    /// # Errors
    /// As [`list`](Self::list) and [`checkpoint`](Self::checkpoint).
    pub fn neighbour(&self, name: &Name) -> Result<Option<Base>, StoreError> {
        let Some(directory) = name.directory() else {
            return Ok(None);
        };
        let all = self.list(Some(&directory))?;
        let beside = all
            .into_iter()
            .filter(|(other, _)| other.directory().as_ref() == Some(&directory) && other != name);
        let youngest = beside.max_by_key(|(_, record)| record.created_ms);
        let base = youngest.map(|(other, _)| Ok(self.checkpoint(&other)?.into_base()));
        base.transpose()
    }
}

fn runtime() -> Result<Runtime, StoreError> {
    let mut builder = Builder::new_multi_thread();
    // It waits for files and for the network; nothing is computed on it.
    builder.worker_threads(1).enable_io().enable_time();
    builder
        .build()
        .map_err(error::file("starting threads for", "the store"))
}

#[cfg(not(all(feature = "etcd", feature = "s3")))]
fn without(feature: &str, what: &'static str, text: String) -> StoreError {
    StoreError::Address {
        text,
        what,
        why: format!(
            "this program was built without {feature}; build it with `cargo build --release \
             --features {feature}`"
        ),
    }
}
