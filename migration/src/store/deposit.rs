//! Putting a body: its new pages into packs, where all are into an index, the rest into a root.

use super::bodies::Writes;
use super::catalogue::Announcement;
use super::error::StoreError;
use super::layout::{Entry, PAGE_BYTES, Root};
use super::pages::{Pages, laid_over};
use super::record::{Hash, Kind, ObjectId, Record, hash};
use super::{STEPS, Store};
use crate::guest::DeviceRecord;
use crate::names::Name;
use crate::stream::body::{BodyReader, BodyWriter};
use crate::stream::{BATCH_PAGES, Order};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Pages of a pack: so many that objects are worth their while, and few enough to be held.
const PACK_PAGES: usize = 2048;

/// A checkpoint that another is to build on.
#[derive(Clone, Debug)]
pub struct Base {
    pub(super) name: Name,
    pub(super) record: Record,
    pub(super) pages: Pages,
}

impl Base {
    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }
}

/// Which pages a body tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All that the guest has.
    Whole,
    /// Those that may differ from the base's.
    Increment,
}

/// A body that is being put. Nothing of it is visible, and if it is dropped it is garbage.
#[derive(Debug)]
pub struct Deposit<'s> {
    announcement: Box<dyn Announcement>,
    put: Uuid,
    number: u32,
    writes: Writes<'s>,
    base: Option<(Name, Record)>,
    /// The base's pages, with the packs of this put.
    pages: Pages,
    /// Where bytes with this hash are.
    places: HashMap<Hash, (u32, u32)>,
    /// The pack that is being filled.
    pack: Vec<u8>,
    fresh: BTreeMap<u64, Entry>,
    new_pages: u64,
}

/// A body that is in the store, whole and durable, and has no name yet. Garbage if it is dropped
/// without.
#[derive(Debug)]
pub struct Sealed {
    pub(super) put: Uuid,
    pub(super) record: Record,
    pub(super) base: Option<(Name, Record)>,
    pages: Pages,
    _announcement: Box<dyn Announcement>,
}

impl Sealed {
    /// What will stand behind its name.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// For the next checkpoint to build on, once this one has the name.
    pub fn into_base(self, name: Name) -> Base {
        Base {
            name,
            record: self.record,
            pages: self.pages,
        }
    }
}

impl<'s> Deposit<'s> {
    pub(super) fn new(store: &'s Store, base: Option<&Base>) -> Result<Self, StoreError> {
        let put = Uuid::now_v7();
        let pages = base.map(|base| base.pages.clone()).unwrap_or_default();
        let places = pages.entries.iter();
        let places = places.map(|entry| (entry.hash, (entry.pack, entry.place)));
        let announcement = store.names.announce(put)?;
        tracing::debug!(target: STEPS, "put announced");
        Ok(Self {
            announcement,
            put,
            number: 0,
            writes: store.bodies.writes(),
            base: base.map(|base| (base.name.clone(), base.record)),
            places: places.collect(),
            pages,
            pack: Vec::new(),
            fresh: BTreeMap::new(),
            new_pages: 0,
        })
    }

    fn id(&mut self, kind: Kind) -> ObjectId {
        let number = self.number;
        self.number += 1;
        ObjectId {
            put: self.put,
            number,
            kind,
        }
    }

    /// Takes pages by number, in any order, with the data of all of them. One that comes again
    /// replaces itself.
    ///
    /// # Errors
    /// [`StoreError::Bodies`] if a pack could not be written; [`StoreError::Body`] for data of
    /// another length.
    pub fn pages(&mut self, pages: &[u64], data: &[u8]) -> Result<(), StoreError> {
        let (data, rest) = data.as_chunks::<PAGE_BYTES>();
        if data.len() != pages.len() || !rest.is_empty() {
            return Err(StoreError::Body {
                expected: "4096 bytes for each page",
                got: format!("{} pages of data for {}", data.len(), pages.len()),
            });
        }
        for (page, bytes) in pages.iter().zip(data) {
            let hash = hash(bytes);
            let (pack, place) = match self.places.get(&hash) {
                Some(place) => *place,
                None => self.keep(hash, bytes)?,
            };
            let entry = Entry {
                page: *page,
                pack,
                place,
                hash,
            };
            self.fresh.insert(*page, entry);
        }
        Ok(())
    }

    /// Puts new bytes into the pack, and says where they are.
    fn keep(&mut self, hash: Hash, bytes: &[u8]) -> Result<(u32, u32), StoreError> {
        if self.pack.len() >= PACK_PAGES * PAGE_BYTES {
            self.close_pack()?;
        }
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        let at = (
            count(self.pages.packs.len()),
            count(self.pack.len() / PAGE_BYTES),
        );
        self.pack.extend(bytes);
        self.places.insert(hash, at);
        self.new_pages += 1;
        Ok(at)
    }

    fn close_pack(&mut self) -> Result<(), StoreError> {
        if !self.pack.is_empty() {
            let id = self.id(Kind::Pack);
            let pack = self.writes.put(id, std::mem::take(&mut self.pack))?;
            self.pages.packs.push(pack);
        }
        Ok(())
    }

    /// Writes whatever is left; returns when all of it is durable.
    ///
    /// # Errors
    /// [`StoreError::Bodies`] if that failed; [`StoreError::Body`] for states that no stream can
    /// hold, or an increment on nothing.
    pub fn seal(
        mut self,
        extent: Extent,
        description: &[u8],
        devices: &[DeviceRecord],
    ) -> Result<Sealed, StoreError> {
        if extent == Extent::Increment && self.base.is_none() {
            return Err(StoreError::Body {
                expected: "a base under an increment",
                got: "none".to_owned(),
            });
        }
        let rest = without_pages(description, devices)?;
        self.close_pack()?;
        let fresh = std::mem::take(&mut self.fresh);
        let known = &self.pages;
        let differs = |entry: &&Entry| {
            let known = known.find(entry.page);
            known.is_none_or(|known| known.hash != entry.hash)
        };
        let changed: Vec<Entry> = fresh.values().filter(differs).copied().collect();
        let before = known.entries.len();
        let worn = self.base.is_none() || known.is_worn(changed.len());
        let mut entries = laid_over(std::mem::take(&mut self.pages.entries), &changed);
        if extent == Extent::Whole {
            entries.retain(|entry| fresh.contains_key(&entry.page));
        }
        let gone = entries.len() < before;
        self.pages.entries = entries;
        if worn || gone {
            let index = self.pages.index_of(&self.pages.entries);
            let reference = self.write_index(&index.to_bytes())?;
            self.pages.indexes = vec![reference];
            self.pages.increments = 0;
            self.pages.packs = index.packs;
            self.pages.entries = index.entries;
        } else if !changed.is_empty() {
            let index = self.pages.index_of(&changed);
            let reference = self.write_index(&index.to_bytes())?;
            self.pages.indexes.push(reference);
            self.pages.increments += changed.len();
        }
        let root = Root {
            indexes: self.pages.indexes.clone(),
            packs: self.pages.packs.clone(),
            pages: u64::try_from(self.pages.entries.len()).unwrap_or(u64::MAX),
            rest,
        };
        let id = self.id(Kind::Root);
        let reference = self.writes.put(id, root.to_bytes())?;
        let new_bytes = self.writes.finish()?;
        tracing::debug!(target: STEPS, "body durable");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let record = Record {
            root: reference,
            created_ms: now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
            pages: root.pages,
            new_pages: self.new_pages,
            new_bytes,
        };
        Ok(Sealed {
            put: self.put,
            record,
            base: self.base,
            pages: self.pages,
            _announcement: self.announcement,
        })
    }

    fn write_index(&mut self, bytes: &[u8]) -> Result<super::record::Reference, StoreError> {
        let id = self.id(Kind::Index);
        self.writes.put(id, bytes.to_vec())
    }

    /// Takes a whole guest from its stream.
    ///
    /// # Errors
    /// [`StoreError::Stream`] if it is none; else as [`pages`](Self::pages) and
    /// [`seal`](Self::seal).
    pub fn stream(mut self, from: impl Read) -> Result<Sealed, StoreError> {
        let mut reader = BodyReader::new(from);
        let mut description = None;
        let mut devices = Vec::new();
        let mut buffer = vec![0; BATCH_PAGES * PAGE_BYTES];
        loop {
            match reader.order()? {
                Order::Open(bytes) => description = Some(bytes),
                Order::Pages(pages) => {
                    let data = buffer.get_mut(..pages.len() * PAGE_BYTES);
                    let data = data.unwrap_or_default();
                    reader.data(data)?;
                    self.pages(&pages, data)?;
                }
                Order::ZeroPages(pages) => {
                    let data = vec![0; pages.len() * PAGE_BYTES];
                    self.pages(&pages, &data)?;
                }
                Order::Device(record) => devices.push(record),
                Order::End => break,
                order @ (Order::PlainCopy(_) | Order::Go | Order::Abort) => {
                    return Err(StoreError::Body {
                        expected: "the stream of a guest",
                        got: format!("{order:?}"),
                    });
                }
            }
        }
        reader.finish()?;
        let description = description.unwrap_or_default();
        self.seal(Extent::Whole, &description, &devices)
    }
}

/// The guest's stream without its pages.
fn without_pages(description: &[u8], devices: &[DeviceRecord]) -> Result<Vec<u8>, StoreError> {
    let write = || -> io::Result<Vec<u8>> {
        let mut writer = BodyWriter::open(Vec::new(), description)?;
        for record in devices {
            writer.device(record)?;
        }
        Ok(writer.end()?.0)
    };
    write().map_err(|error| StoreError::Body {
        expected: "states that a stream can hold",
        got: error.to_string(),
    })
}
