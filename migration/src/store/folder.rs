//! Names in a folder: a redb database, under a lock of the file system.
//!
//! `lock` is locked by whoever uses the names, for as long as that takes; `puts` has a file for each
//! body that is being put, locked by who puts it. The system unlocks the files of a process that dies.

use super::STEPS;
use super::catalogue::{Announcement, Catalogue, Edit, Entries, Locked};
use super::caught::caught;
use super::error::{StoreError, file};
use crate::names::{Batch, Conflict, Cursor, Name, judge};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const NAMES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("names");
const FILE: &str = "names.redb";

/// Names in a folder of this host.
#[derive(Debug)]
pub(super) struct Folder {
    folder: PathBuf,
}

impl Folder {
    /// Opens it; makes it first, if it is to be made.
    pub(super) fn open(folder: &Path, make: bool) -> Result<Self, StoreError> {
        let this = Self {
            folder: folder.to_owned(),
        };
        if !make && !this.path().exists() {
            return Err(StoreError::NoStore(folder.display().to_string()));
        }
        let puts = this.puts();
        fs::create_dir_all(&puts).map_err(file("making the folder", &puts))?;
        let lock = this.locked()?;
        if !this.path().exists() {
            // Under another name first: half a database must never be found under its own.
            let partial = folder.join("names.redb.partial");
            match fs::remove_file(&partial) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(file("removing", partial)(error));
                }
                _ => {}
            }
            this.guarded("making", || {
                let database = Database::create(&partial).map_err(this.failed("making"))?;
                let write = database.begin_write().map_err(this.failed("making"))?;
                write.open_table(NAMES).map_err(this.failed("making"))?;
                write.commit().map_err(this.failed("making"))
            })?;
            fs::rename(&partial, this.path()).map_err(file("naming", this.path()))?;
            let opened = File::open(folder).and_then(|folder| folder.sync_all());
            opened.map_err(file("syncing", folder))?;
        }
        drop(lock);
        Ok(this)
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    fn puts(&self) -> PathBuf {
        self.folder.join("puts")
    }

    /// The lock, once it is ours.
    fn locked(&self) -> Result<File, StoreError> {
        let path = self.folder.join("lock");
        let opened = File::options().create(true).append(true).open(&path);
        let lock = opened.map_err(file("opening", &path))?;
        lock.lock().map_err(file("locking", &path))?;
        Ok(lock)
    }

    /// The database. The caller has the lock.
    fn database(&self) -> Result<Database, StoreError> {
        // Of a process that dies the system may unlock our file a moment before redb's, which redb
        // does not wait for. Unlocked, not only closed: a child that another thread is just starting
        // has the descriptor too.
        let path = self.path();
        let free = File::open(&path).and_then(|file| file.lock().and_then(|()| file.unlock()));
        free.map_err(file("opening", path))?;
        self.guarded("opening", || {
            let mut builder = Database::builder();
            // Names are short: what a batch needs, not what a server would.
            builder.set_cache_size(64 << 20);
            builder.open(self.path()).map_err(self.failed("opening"))
        })
    }

    fn failed<E: std::fmt::Display>(&self, doing: &'static str) -> impl FnOnce(E) -> StoreError {
        let place = self.path().display().to_string();
        move |error| StoreError::Names {
            doing,
            place,
            cause: error.to_string(),
        }
    }

    /// redb takes its own pages for sound: a damaged one can make it panic, which is an error here.
    fn guarded<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        caught(work).unwrap_or_else(|text| {
            let damaged = format!("the database is damaged: {text}");
            Err(self.failed(doing)(damaged))
        })
    }

    fn name(&self, key: &[u8]) -> Result<Name, StoreError> {
        Name::from_sort_key(key).map_err(|why| StoreError::Name {
            place: self.path().display().to_string(),
            why,
        })
    }

    fn all(
        &self,
        table: &impl ReadableTable<&'static [u8], &'static [u8]>,
        within: Option<&Name>,
    ) -> Result<Entries, StoreError> {
        let from = within.map_or(&[][..], Name::sort_key);
        let range = table
            .range::<&[u8]>(from..)
            .map_err(self.failed("reading"))?;
        let mut all = Entries::new();
        for entry in range {
            let (key, value) = entry.map_err(self.failed("reading"))?;
            let name = self.name(key.value())?;
            if within.is_some_and(|within| !name.is_within(within)) {
                break;
            }
            all.push((name, value.value().to_vec()));
        }
        Ok(all)
    }

    /// Reads, with the names locked.
    fn reading<T>(
        &self,
        read: impl FnOnce(redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let lock = self.locked()?;
        let done = self.guarded("reading", || {
            let database = self.database()?;
            let reading = database.begin_read().map_err(self.failed("reading"))?;
            let table = reading.open_table(NAMES).map_err(self.failed("reading"))?;
            read(table)
        });
        drop(lock);
        done
    }
}

impl Catalogue for Folder {
    fn entries(&self, within: Option<&Name>) -> Result<Entries, StoreError> {
        self.reading(|table| self.all(&table, within))
    }

    fn entry(&self, name: &Name) -> Result<Option<Vec<u8>>, StoreError> {
        self.reading(|table| {
            let found = table.get(name.sort_key()).map_err(self.failed("reading"))?;
            Ok(found.map(|value| value.value().to_vec()))
        })
    }

    fn lock(&self) -> Result<Box<dyn Locked + '_>, StoreError> {
        let lock = self.locked()?;
        let database = self.database()?;
        Ok(Box::new(Opened {
            folder: self,
            database,
            _lock: lock,
        }))
    }

    fn announce(&self, put: Uuid) -> Result<Box<dyn Announcement>, StoreError> {
        // Under the lock: whoever looks for the dead finds it locked or not at all.
        let lock = self.locked()?;
        let path = self.puts().join(put.to_string());
        let made = File::create_new(&path).and_then(|made| made.lock().map(|()| made));
        let made = made.map_err(file("announcing in", &path))?;
        drop(lock);
        Ok(Box::new(Announced { path, _held: made }))
    }

    fn check(&self) -> Result<Vec<String>, StoreError> {
        let lock = self.locked()?;
        let sound = self.guarded("checking", || {
            let mut database = self.database()?;
            database.check_integrity().map_err(self.failed("checking"))
        });
        drop(lock);
        Ok(match sound {
            Ok(true) => Vec::new(),
            Ok(false) => vec![format!(
                "{} was damaged; redb went back to what was sound",
                self.path().display()
            )],
            Err(error) => vec![error.to_string()],
        })
    }
}

/// A file in `puts`, locked.
#[derive(Debug)]
struct Announced {
    path: PathBuf,
    _held: File,
}

impl Announcement for Announced {}

impl Drop for Announced {
    fn drop(&mut self) {
        // One that stays is unlocked, and the next gc removes it.
        let removed = fs::remove_file(&self.path);
        tracing::debug!(?removed, "announcement");
    }
}

/// The database, with the lock. Closed before the lock goes.
struct Opened<'f> {
    folder: &'f Folder,
    database: Database,
    _lock: File,
}

impl Opened<'_> {
    fn reading<T>(
        &self,
        read: impl FnOnce(redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let failed = || self.folder.failed("reading");
        self.folder.guarded("reading", || {
            let reading = self.database.begin_read().map_err(failed())?;
            read(
                reading
                    .open_table(NAMES)
                    .map_err(self.folder.failed("reading"))?,
            )
        })
    }
}

impl Locked for Opened<'_> {
    fn judge(&mut self, batch: &Batch<Name>) -> Result<Vec<Conflict<Name>>, StoreError> {
        self.reading(|table| {
            let mut cursor = TableCursor {
                folder: self.folder,
                table,
                before: None,
                at: None,
            };
            judge(batch, &mut cursor)
        })
    }

    fn entry(&mut self, name: &Name) -> Result<Option<Vec<u8>>, StoreError> {
        self.reading(|table| {
            let found = table.get(name.sort_key());
            let found = found.map_err(self.folder.failed("reading"))?;
            Ok(found.map(|value| value.value().to_vec()))
        })
    }

    fn entries(&mut self) -> Result<Entries, StoreError> {
        self.reading(|table| self.folder.all(&table, None))
    }

    fn announced(&mut self) -> Result<BTreeSet<Uuid>, StoreError> {
        let puts = self.folder.puts();
        let mut alive = BTreeSet::new();
        for entry in fs::read_dir(&puts).map_err(file("listing", &puts))? {
            let entry = entry.map_err(file("listing", &puts))?;
            let name = entry.file_name();
            let Some(put) = name.to_str().and_then(|name| Uuid::try_parse(name).ok()) else {
                continue;
            };
            let path = entry.path();
            let held = match File::open(&path) {
                Ok(held) => held,
                // Withdrawn just now: its names are in the database, which we have locked, or
                // nowhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(file("opening", path)(error)),
            };
            match held.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    alive.insert(put);
                }
                Err(TryLockError::Error(error)) => return Err(file("locking", path)(error)),
                Ok(()) => match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(file("removing", path)(error));
                    }
                    _ => {}
                },
            }
        }
        Ok(alive)
    }

    fn commit(self: Box<Self>, edits: &[Edit]) -> Result<(), StoreError> {
        let folder = self.folder;
        folder.guarded("writing", || {
            let mut write = self
                .database
                .begin_write()
                .map_err(folder.failed("writing"))?;
            let durable = write.set_durability(Durability::Immediate);
            durable.map_err(folder.failed("writing"))?;
            {
                let mut table = write.open_table(NAMES).map_err(folder.failed("writing"))?;
                for (name, value) in edits {
                    edit(&mut table, name, value.as_deref()).map_err(folder.failed("writing"))?;
                }
            }
            tracing::debug!(target: STEPS, "batch written");
            write.commit().map_err(folder.failed("writing"))
        })
    }
}

fn edit(
    table: &mut Table<'_, &'static [u8], &'static [u8]>,
    name: &Name,
    value: Option<&[u8]>,
) -> Result<(), redb::StorageError> {
    match value {
        Some(value) => table.insert(name.sort_key(), value).map(drop),
        None => table.remove(name.sort_key()).map(drop),
    }
}

/// A place among the names of the database.
struct TableCursor<'f> {
    folder: &'f Folder,
    table: redb::ReadOnlyTable<&'static [u8], &'static [u8]>,
    before: Option<Name>,
    at: Option<Name>,
}

impl TableCursor<'_> {
    fn first(&self, from: Bound<&[u8]>) -> Result<Option<Name>, StoreError> {
        let range = self.table.range::<&[u8]>((from, Bound::Unbounded));
        let mut range = range.map_err(self.folder.failed("reading"))?;
        let first = range.next().transpose();
        let first = first.map_err(self.folder.failed("reading"))?;
        first
            .map(|(key, _)| self.folder.name(key.value()))
            .transpose()
    }
}

impl Cursor for TableCursor<'_> {
    type Key = Name;
    type Error = StoreError;

    fn seek(&mut self, key: &Name) -> Result<(), StoreError> {
        self.at = self.first(Bound::Included(key.sort_key()))?;
        let range = self.table.range::<&[u8]>(..key.sort_key());
        let mut range = range.map_err(self.folder.failed("reading"))?;
        let last = range.next_back().transpose();
        let last = last.map_err(self.folder.failed("reading"))?;
        let name = |key: &[u8]| self.folder.name(key);
        self.before = last.map(|(key, _)| name(key.value())).transpose()?;
        Ok(())
    }

    fn step(&mut self) -> Result<(), StoreError> {
        if let Some(at) = self.at.take() {
            self.at = self.first(Bound::Excluded(at.sort_key()))?;
            self.before = Some(at);
        }
        Ok(())
    }

    fn before(&self) -> Option<&Name> {
        self.before.as_ref()
    }

    fn at(&self) -> Option<&Name> {
        self.at.as_ref()
    }
}
