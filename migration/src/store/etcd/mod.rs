//! Names in etcd, for many hosts.
//!
//! | key | holds |
//! |---|---|
//! | `PREFIX/n/NAME` | an entry of two ages ([`value`]); slashes of the name are NUL |
//! | `PREFIX/current` | the last committed generation |
//! | `PREFIX/pending` | the generation that is being written, until nothing is left to tidy |
//! | `PREFIX/lock` | who changes names; under a lease |
//! | `PREFIX/puts/ID` | a body that is being put; under a lease |
//!
//! A batch is written entry by entry, in as many transactions as it takes, with a generation that is
//! not committed: readers see what was there before. One last transaction makes that generation the
//! current one, and so all of the batch visible at once. So etcd's limit to the operations of one
//! transaction bounds nothing. Each of these transactions demands that the lock is still the one
//! that was taken: who lost it writes nothing any more. Who takes the lock next puts back what was
//! written and not committed.

mod session;
mod value;

use super::catalogue::{Announcement, Catalogue, Edit, Entries, Locked};
use super::error::StoreError;
use crate::names::{Batch, Conflict, Cursor, Name, judge};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use session::{Found, Lease, Session};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use uuid::Uuid;
use value::Aged;

/// Seconds for which the lock of a host that fell silent stays taken.
const LOCK_LEASE: i64 = 15;
/// Seconds for which the announcement of a host that fell silent stays.
const PUT_LEASE: i64 = 60;
/// How long to wait for the lock: longer than it outlives its holder.
const PATIENCE: Duration = Duration::from_secs(60);
/// Entries that are read at a time.
const ENTRIES_AT_ONCE: i64 = 1000;
/// Operations of one transaction; etcd allows 128 as it comes.
const OPERATIONS: usize = 100;

/// Names below a prefix of an etcd.
#[derive(Debug)]
pub(super) struct Etcd(Session);

impl Etcd {
    /// Connects.
    pub(super) fn open(
        members: &[String],
        prefix: &str,
        runtime: Arc<Runtime>,
    ) -> Result<Self, StoreError> {
        Ok(Self(Session::connect(members, prefix, runtime)?))
    }

    fn name(&self, key: &[u8]) -> Result<Name, StoreError> {
        let names = self.0.key(b"n/");
        let key = key.strip_prefix(names.as_slice()).unwrap_or(key);
        Name::from_sort_key(key).map_err(|why| StoreError::Name {
            place: self.0.place().to_owned(),
            why,
        })
    }

    fn key_of(&self, name: &Name) -> Vec<u8> {
        [&self.0.key(b"n/"), name.sort_key()].concat()
    }

    fn aged(&self, found: &Found) -> Result<(Name, Aged), StoreError> {
        let name = self.name(&found.key)?;
        let aged = Aged::from_bytes(&format!("the entry of '{name}'"), &found.value)?;
        Ok((name, aged))
    }

    /// The number under a key, and the revision of etcd at which it was read.
    fn number(&self, key: &[u8]) -> Result<(Option<u64>, i64), StoreError> {
        let (found, revision) = self.0.get(&self.0.key(key), None)?;
        let Some(found) = found else {
            return Ok((None, revision));
        };
        let number = found.value.as_slice().try_into().map(u64::from_le_bytes);
        let number = number.map_err(|_| {
            let what = String::from_utf8_lossy(key).into_owned();
            super::error::damaged(what, "8 bytes", found.value.len())
        })?;
        Ok((Some(number), revision))
    }

    /// Every entry, visible or not, as of a revision.
    fn all(&self, within: Option<&Name>, revision: i64) -> Result<Vec<(Name, Aged)>, StoreError> {
        let names = self.0.key(b"n/");
        let mut from = within.map_or_else(|| names.clone(), |name| self.key_of(name));
        let mut all = Vec::new();
        loop {
            let found = self
                .0
                .range(&from, &names, ENTRIES_AT_ONCE, Some(revision))?;
            let Some(last) = found.last() else {
                return Ok(all);
            };
            from = [last.key.as_slice(), &[0]].concat();
            for found in &found {
                let (name, aged) = self.aged(found)?;
                if within.is_some_and(|within| !name.is_within(within)) {
                    return Ok(all);
                }
                all.push((name, aged));
            }
        }
    }

    fn visible(&self, within: Option<&Name>) -> Result<Entries, StoreError> {
        let (current, revision) = self.number(b"current")?;
        let current = current.unwrap_or(0);
        let all = self.all(within, revision)?.into_iter();
        let visible = all.filter_map(|(name, aged)| Some((name, aged.visible(current)?.clone())));
        Ok(visible.collect())
    }
}

impl Catalogue for Etcd {
    fn entries(&self, within: Option<&Name>) -> Result<Entries, StoreError> {
        self.visible(within)
    }

    fn entry(&self, name: &Name) -> Result<Option<Vec<u8>>, StoreError> {
        let (current, revision) = self.number(b"current")?;
        let (found, _) = self.0.get(&self.key_of(name), Some(revision))?;
        let aged = found.map(|found| self.aged(&found)).transpose()?;
        Ok(aged.and_then(|(_, aged)| aged.visible(current.unwrap_or(0)).cloned()))
    }

    fn lock(&self) -> Result<Box<dyn Locked + '_>, StoreError> {
        let lease = self.0.lease(LOCK_LEASE)?;
        let revision = self.0.take(b"lock", &lease, PATIENCE)?;
        let mut held = Held {
            etcd: self,
            revision,
            current: 0,
            _lease: lease,
        };
        held.recover()?;
        Ok(Box::new(held))
    }

    fn announce(&self, put: Uuid) -> Result<Box<dyn Announcement>, StoreError> {
        let lease = self.0.lease(PUT_LEASE)?;
        let key = self.0.key(format!("puts/{put}").as_bytes());
        self.0.put_under(key, &lease)?;
        Ok(Box::new(lease))
    }

    fn check(&self) -> Result<Vec<String>, StoreError> {
        // etcd checks what it reads from its disks itself.
        Ok(Vec::new())
    }
}

impl Announcement for Lease {}

/// The names, with the lock.
#[derive(Debug)]
struct Held<'e> {
    etcd: &'e Etcd,
    /// With which the lock came into being.
    revision: i64,
    current: u64,
    _lease: Lease,
}

impl Held<'_> {
    /// Makes changes if the lock is still ours.
    fn write(&self, operations: Vec<TxnOp>) -> Result<(), StoreError> {
        let lock = self.etcd.0.key(b"lock");
        let ours = Compare::create_revision(lock, CompareOp::Equal, self.revision);
        let done = self
            .etcd
            .0
            .txn(Txn::new().when([ours]).and_then(operations))?;
        done.then_some(()).ok_or(StoreError::LockLost)
    }

    fn write_all(&self, operations: Vec<TxnOp>) -> Result<(), StoreError> {
        let mut operations = operations.into_iter().peekable();
        while operations.peek().is_some() {
            self.write(operations.by_ref().take(OPERATIONS).collect())?;
        }
        Ok(())
    }

    /// Puts away what a holder of the lock left that is gone.
    fn recover(&mut self) -> Result<(), StoreError> {
        let (current, revision) = self.etcd.number(b"current")?;
        self.current = current.unwrap_or(0);
        if self.etcd.number(b"pending")?.0.is_some() {
            let mut operations = Vec::new();
            for (name, aged) in self.etcd.all(None, revision)? {
                let key = self.etcd.key_of(&name);
                let visible = aged.visible(self.current).cloned();
                match visible {
                    None => operations.push(TxnOp::delete(key, None)),
                    Some(_) if aged.generation <= self.current => {}
                    new @ Some(_) => {
                        let aged = Aged {
                            generation: self.current,
                            new,
                            old: None,
                        };
                        operations.push(TxnOp::put(key, aged.to_bytes(), None));
                    }
                }
            }
            self.write_all(operations)?;
            self.write(vec![TxnOp::delete(self.etcd.0.key(b"pending"), None)])?;
        }
        Ok(())
    }
}

impl Locked for Held<'_> {
    fn judge(&mut self, batch: &Batch<Name>) -> Result<Vec<Conflict<Name>>, StoreError> {
        let mut cursor = KeyCursor {
            etcd: self.etcd,
            block: Vec::new(),
            from_start: false,
            to_end: false,
            place: 0,
        };
        judge(batch, &mut cursor)
    }

    fn entry(&mut self, name: &Name) -> Result<Option<Vec<u8>>, StoreError> {
        self.etcd.entry(name)
    }

    fn entries(&mut self) -> Result<Entries, StoreError> {
        self.etcd.visible(None)
    }

    fn announced(&mut self) -> Result<BTreeSet<Uuid>, StoreError> {
        let puts = self.etcd.0.key(b"puts/");
        let mut from = puts.clone();
        let mut alive = BTreeSet::new();
        loop {
            let found = self.etcd.0.range(&from, &puts, ENTRIES_AT_ONCE, None)?;
            let Some(last) = found.last() else {
                return Ok(alive);
            };
            from = [last.key.as_slice(), &[0]].concat();
            let ids = found
                .iter()
                .filter_map(|found| found.key.strip_prefix(puts.as_slice()));
            alive.extend(ids.filter_map(|id| Uuid::try_parse_ascii(id).ok()));
        }
    }

    fn commit(self: Box<Self>, edits: &[Edit]) -> Result<(), StoreError> {
        let generation = self.current + 1;
        let number = generation.to_le_bytes();
        let (current, pending) = (self.etcd.0.key(b"current"), self.etcd.0.key(b"pending"));
        self.write(vec![TxnOp::put(pending.clone(), number, None)])?;
        let (mut entries, mut gone) = (Vec::new(), Vec::new());
        for (name, new) in edits {
            let key = self.etcd.key_of(name);
            let old = match new {
                // Judged: it is not there.
                Some(_) => None,
                None => {
                    gone.push(TxnOp::delete(key.clone(), None));
                    self.etcd.entry(name)?
                }
            };
            let aged = Aged {
                generation,
                new: new.clone(),
                old,
            };
            entries.push(TxnOp::put(key, aged.to_bytes(), None));
        }
        self.write_all(entries)?;
        self.write(vec![TxnOp::put(current, number, None)])?;
        // The batch is visible. Whatever becomes of the rest, the next holder does it.
        let tidy = self.write_all(gone);
        let tidy = tidy.and_then(|()| self.write(vec![TxnOp::delete(pending, None)]));
        tracing::debug!(?tidy, "after a batch");
        Ok(())
    }
}

/// A place among the names, of which a block at a time is here. Everything is visible: the lock
/// was taken, and what was left of others is put away.
struct KeyCursor<'e> {
    etcd: &'e Etcd,
    /// Adjacent names.
    block: Vec<Name>,
    /// Nothing is before the block.
    from_start: bool,
    /// Nothing is behind it.
    to_end: bool,
    place: usize,
}

impl KeyCursor<'_> {
    /// Whether what is right before `key` and at or behind it is in the block.
    fn spans(&self, key: &Name) -> bool {
        let before = self.from_start || self.block.first().is_some_and(|first| first < key);
        let behind = self.to_end || self.block.last().is_some_and(|last| key <= last);
        before && behind
    }
}

impl Cursor for KeyCursor<'_> {
    type Key = Name;
    type Error = StoreError;

    fn seek(&mut self, key: &Name) -> Result<(), StoreError> {
        if !self.spans(key) {
            let names = self.etcd.0.key(b"n/");
            let at = self.etcd.key_of(key);
            let before = self.etcd.0.last_before(&names, &at)?;
            let from_here = self.etcd.0.keys(&at, &names, ENTRIES_AT_ONCE)?;
            self.from_start = before.is_none();
            let full = usize::try_from(ENTRIES_AT_ONCE) == Ok(from_here.len());
            self.to_end = !full;
            let keys = before.iter().chain(&from_here);
            let block: Result<Vec<Name>, StoreError> =
                keys.map(|key| self.etcd.name(key)).collect();
            self.block = block?;
        }
        self.place = self.block.partition_point(|name| name < key);
        Ok(())
    }

    fn step(&mut self) -> Result<(), StoreError> {
        let Some(at) = self.at().cloned() else {
            return Ok(());
        };
        if self.place + 1 < self.block.len() || self.to_end {
            self.place += 1;
            return Ok(());
        }
        // From the last of the block on: it is the first of the next one.
        self.block.clear();
        (self.from_start, self.to_end) = (false, false);
        self.seek(&at)?;
        self.place += 1;
        Ok(())
    }

    fn before(&self) -> Option<&Name> {
        self.block.get(self.place.checked_sub(1)?)
    }

    fn at(&self) -> Option<&Name> {
        self.block.get(self.place)
    }
}
