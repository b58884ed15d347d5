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
//!
//! Every value is sealed with its key, so that a flipped bit is damage and never another generation.

mod session;
mod value;

use super::STEPS;
use super::catalogue::{Announcement, Catalogue, Edit, Entries, Locked};
use super::error::StoreError;
use crate::names::{Batch, Conflict, Cursor, Name, judge};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use session::{Found, Lease, Session};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use uuid::Uuid;
use value::{Aged, opened, sealed};

/// The lease of an announcement, in those of the lock: who is cut off for a while may still put.
const PUT_LEASES: u32 = 4;
/// How long to wait for the lock, at least: longer than it outlives its holder.
const PATIENCE: Duration = Duration::from_secs(60);
/// Entries that are read at a time.
const ENTRIES_AT_ONCE: i64 = 1000;
/// Operations of one transaction; etcd allows 128 as it comes.
const OPERATIONS: usize = 100;

/// Names below a prefix of an etcd.
#[derive(Debug)]
pub(super) struct Etcd {
    session: Session,
    lease: u32,
}

impl Etcd {
    /// Connects; the lock of a host that falls silent stays taken for `lease` seconds.
    pub(super) fn open(
        members: &[String],
        prefix: &str,
        lease: u32,
        runtime: Arc<Runtime>,
    ) -> Result<Self, StoreError> {
        let session = Session::connect(members, prefix, runtime)?;
        Ok(Self { session, lease })
    }

    fn name(&self, key: &[u8]) -> Result<Name, StoreError> {
        let names = self.session.key(b"n/");
        let key = key.strip_prefix(names.as_slice()).unwrap_or(key);
        Name::from_sort_key(key).map_err(|why| StoreError::Name {
            place: self.session.place().to_owned(),
            why,
        })
    }

    fn key_of(&self, name: &Name) -> Vec<u8> {
        [self.session.key(b"n/").as_slice(), name.sort_key()].concat()
    }

    fn aged(&self, found: &Found) -> Result<(Name, Aged), StoreError> {
        let name = self.name(&found.key)?;
        let what = format!("the entry of '{name}'");
        let bytes = opened(name.sort_key(), &found.value, &what)?;
        let aged = Aged::from_bytes(&what, bytes)?;
        Ok((name, aged))
    }

    /// The number under a key, and the revision of etcd at which it was read.
    fn number(&self, key: &[u8]) -> Result<(Option<u64>, i64), StoreError> {
        let (found, revision) = self.session.get(&self.session.key(key), None)?;
        let Some(found) = found else {
            return Ok((None, revision));
        };
        let what = format!("the generation '{}'", String::from_utf8_lossy(key));
        let bytes = opened(key, &found.value, &what)?;
        let number = bytes.try_into().map(u64::from_le_bytes);
        let number = number.map_err(|_| super::error::damaged(what, "8 bytes", bytes.len()))?;
        Ok((Some(number), revision))
    }

    /// Makes a generation the one under a key.
    fn put_number(&self, key: &[u8], number: u64) -> TxnOp {
        let value = sealed(key, number.to_le_bytes().to_vec());
        TxnOp::put(self.session.key(key), value, None)
    }

    fn put_entry(&self, name: &Name, aged: &Aged) -> TxnOp {
        let value = sealed(name.sort_key(), aged.to_bytes());
        TxnOp::put(self.key_of(name), value, None)
    }

    /// Every entry, visible or not, as of a revision.
    fn all(&self, within: Option<&Name>, revision: i64) -> Result<Vec<(Name, Aged)>, StoreError> {
        let names = self.session.key(b"n/");
        let mut from = within.map_or_else(|| names.clone(), |name| self.key_of(name));
        let mut all = Vec::new();
        loop {
            let found = self
                .session
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
        let (found, _) = self.session.get(&self.key_of(name), Some(revision))?;
        let aged = found.map(|found| self.aged(&found)).transpose()?;
        Ok(aged.and_then(|(_, aged)| aged.visible(current.unwrap_or(0)).cloned()))
    }

    fn lock(&self) -> Result<Box<dyn Locked + '_>, StoreError> {
        let patience = PATIENCE.max(Duration::from_secs(self.lease.into()) * PUT_LEASES);
        let (lease, revision) = self.session.take(b"lock", self.lease, patience)?;
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
        let lease = self.session.lease(self.lease.saturating_mul(PUT_LEASES))?;
        let key = self.session.key(format!("puts/{put}").as_bytes());
        self.session.put_under(key, &lease)?;
        Ok(Box::new(lease))
    }

    fn check(&self) -> Result<Vec<String>, StoreError> {
        // etcd checks what it reads from its disks itself, and each value has its seal.
        let (_, revision) = self.number(b"current")?;
        self.number(b"pending")?;
        self.all(None, revision)?;
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
    /// Does something if the lock is still ours: then nobody has changed a name since we took it.
    fn ask(&self, operations: Vec<TxnOp>) -> Result<Vec<Found>, StoreError> {
        let lock = self.etcd.session.key(b"lock");
        let ours = Compare::create_revision(lock, CompareOp::Equal, self.revision);
        let txn = Txn::new().when([ours]).and_then(operations);
        self.etcd.session.txn(txn)?.ok_or(StoreError::LockLost)
    }

    /// Makes changes if the lock is still ours.
    fn write(&self, operations: Vec<TxnOp>) -> Result<(), StoreError> {
        self.ask(operations).map(drop)
    }

    fn write_all(&self, operations: Vec<TxnOp>) -> Result<(), StoreError> {
        let mut operations = operations.into_iter().peekable();
        while operations.peek().is_some() {
            self.write(operations.by_ref().take(OPERATIONS).collect())?;
            tracing::debug!(target: STEPS, "part of the batch written");
        }
        Ok(())
    }

    /// What stands behind names, of those that are visible.
    fn visible_of(&self, names: &[&Name]) -> Result<BTreeMap<Name, Vec<u8>>, StoreError> {
        let mut visible = BTreeMap::new();
        for some in names.chunks(OPERATIONS) {
            let asked = some.iter().map(|name| self.etcd.key_of(name));
            let asked = asked.map(|key| TxnOp::get(key, None)).collect();
            for found in self.ask(asked)? {
                let (name, aged) = self.etcd.aged(&found)?;
                let value = aged.visible(self.current).cloned();
                visible.extend(value.map(|value| (name, value)));
            }
        }
        Ok(visible)
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
                        operations.push(self.etcd.put_entry(&name, &aged));
                    }
                }
            }
            self.write_all(operations)?;
            self.write(vec![TxnOp::delete(self.etcd.session.key(b"pending"), None)])?;
            tracing::debug!(target: STEPS, "another's batch put back");
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
        let puts = self.etcd.session.key(b"puts/");
        let mut from = puts.clone();
        let mut alive = BTreeSet::new();
        loop {
            let found = self.ask(vec![self.etcd.session.range_of(
                &from,
                &puts,
                ENTRIES_AT_ONCE,
            )])?;
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
        self.write(vec![self.etcd.put_number(b"pending", generation)])?;
        tracing::debug!(target: STEPS, "batch begun");
        let removed = edits.iter().filter(|(_, new)| new.is_none());
        let removed: Vec<&Name> = removed.map(|(name, _)| name).collect();
        let mut before = self.visible_of(&removed)?;
        let entry = |(name, new): &Edit| {
            // What comes was judged: it was not there.
            let aged = Aged {
                generation,
                new: new.clone(),
                old: before.remove(name),
            };
            self.etcd.put_entry(name, &aged)
        };
        let entries = edits.iter().map(entry).collect();
        let gone = removed.into_iter();
        let gone = gone.map(|name| TxnOp::delete(self.etcd.key_of(name), None));
        let gone = gone.collect();
        self.write_all(entries)?;
        self.write(vec![self.etcd.put_number(b"current", generation)])?;
        tracing::debug!(target: STEPS, "generation current");
        // The batch is visible. Whatever becomes of the rest, the next holder does it.
        let tidy = self.write_all(gone);
        let pending = TxnOp::delete(self.etcd.session.key(b"pending"), None);
        let tidy = tidy.and_then(|()| self.write(vec![pending]));
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
            let names = self.etcd.session.key(b"n/");
            let at = self.etcd.key_of(key);
            let before = self.etcd.session.last_before(&names, &at)?;
            let from_here = self.etcd.session.keys(&at, &names, ENTRIES_AT_ONCE)?;
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
