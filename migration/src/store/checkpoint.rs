//! A stored checkpoint, opened.

use super::bodies::Bodies;
use super::error::{StoreError, damaged};
use super::layout::{PAGE_BYTES, Root};
use super::pages::Pages;
use super::record::{Record, hash};
use super::{Base, Store};
use crate::checkpoint::Standby;
use crate::error::GuestError;
use crate::guest::DeviceRecord;
use crate::names::Name;
use crate::stream::body::{BodyReader, BodyWriter};
use crate::stream::{BATCH_PAGES, Order};
use driver::dirty::PAGE_SIZE;
use driver::memory::DmaMemory;
use std::io::Write;

/// A checkpoint of a store. It can be read for as long as it keeps its name.
#[derive(Debug)]
pub struct Checkpoint<'s> {
    bodies: &'s Bodies,
    name: Name,
    record: Record,
    pages: Pages,
    description: Vec<u8>,
    devices: Vec<DeviceRecord>,
}

/// The guest's description and device states, from its stream without pages.
pub(super) fn parts(what: &str, rest: &[u8]) -> Result<(Vec<u8>, Vec<DeviceRecord>), StoreError> {
    let mut reader = BodyReader::new(rest);
    let (mut description, mut devices) = (Vec::new(), Vec::new());
    loop {
        match reader.order()? {
            Order::Open(bytes) => description = bytes,
            Order::Device(record) => devices.push(record),
            Order::End => break,
            _ => return Err(damaged(what, "a stream without pages", "one with some")),
        }
    }
    reader.finish()?;
    Ok((description, devices))
}

impl<'s> Checkpoint<'s> {
    pub(super) fn open(store: &'s Store, name: &Name) -> Result<Self, StoreError> {
        let entry = store.names.entry(name)?;
        let entry = entry.ok_or_else(|| StoreError::Unknown(name.clone()))?;
        let record = Record::from_bytes(name, &entry)?;
        let what = record.root.id.to_string();
        let root = Root::from_bytes(&what, &store.bodies.get(&record.root)?)?;
        let (description, devices) = parts(&what, &root.rest)?;
        Ok(Self {
            bodies: &store.bodies,
            name: name.clone(),
            record,
            pages: Pages::read(&store.bodies, &root, &what)?,
            description,
            devices,
        })
    }

    /// What stands behind its name.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The states of its devices.
    pub fn devices(&self) -> &[DeviceRecord] {
        &self.devices
    }

    /// For another checkpoint to build on.
    pub fn into_base(self) -> Base {
        Base {
            name: self.name,
            record: self.record,
            pages: self.pages,
        }
    }

    /// Gives all pages to `take`, ascending, some at a time, with their data. Each is what was put.
    fn each_batch(
        &self,
        mut take: impl FnMut(&[u64], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for batch in self.pages.entries.chunks(BATCH_PAGES) {
            let data = self.pages.fetch(self.bodies, batch)?;
            let pages: Vec<u64> = batch.iter().map(|entry| entry.page).collect();
            take(&pages, &data)?;
        }
        Ok(())
    }

    /// Writes it as the stream of a guest, each page once; returns the bytes of it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a page is not what was put, and [`StoreError::Out`]. What was
    /// written until then has no end, and so no reader takes it for whole.
    pub fn write(&self, to: impl Write) -> Result<u64, StoreError> {
        let out = BodyWriter::open(to, &self.description);
        let mut out = out.map_err(StoreError::Out)?;
        self.each_batch(|pages, data| out.pages(pages, data).map_err(StoreError::Out))?;
        for record in &self.devices {
            out.device(record).map_err(StoreError::Out)?;
        }
        let (_, bytes) = out.end().map_err(StoreError::Out)?;
        Ok(bytes)
    }

    /// Brings the guest to life where it is to be: memory first, then the devices; then every page
    /// of the memory is held against what was put. Returns how many. Nothing runs yet.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a page is not what was put, and [`StoreError::Guest`] if the guest
    /// is none for this place: it must not be run then.
    pub fn restore(&self, standby: &mut dyn Standby) -> Result<u64, StoreError> {
        standby.prepare(&self.description)?;
        let memory = standby.memory();
        let expected: u64 = memory.iter().map(|window| window.len() / PAGE_SIZE).sum();
        if expected != self.record.pages {
            return Err(StoreError::Body {
                expected: "all pages of the guest's memory",
                got: format!("{} of {expected}", self.record.pages),
            });
        }
        self.each_batch(|pages, data| {
            for (page, bytes) in pages.iter().zip(data.chunks(PAGE_BYTES)) {
                let (window, offset) = place_of(&memory, *page)?;
                let stored = window.write(offset, bytes);
                stored.map_err(|error| GuestError::new("storing a page", error))?;
            }
            Ok(())
        })?;
        // Before the devices: putting them together may write memory.
        let mut bytes = [0; PAGE_BYTES];
        for entry in &self.pages.entries {
            let (window, offset) = place_of(&memory, entry.page)?;
            let read = window.read(offset, &mut bytes);
            read.map_err(|error| GuestError::new("reading a page", error))?;
            if hash(&bytes) != entry.hash {
                let what = format!("page {:#x} in memory", entry.page);
                return Err(damaged(what, "the bytes that were put", "others"));
            }
        }
        standby.load(&self.devices)?;
        Ok(self.record.pages)
    }
}

fn place_of(memory: &[DmaMemory], page: u64) -> Result<(&DmaMemory, u64), GuestError> {
    let at = page.saturating_mul(PAGE_SIZE);
    let holds = |window: &&DmaMemory| at >= window.iova() && at - window.iova() < window.len();
    let found = memory.iter().find(holds);
    let found = found.map(|window| (window, at - window.iova()));
    found.ok_or_else(|| GuestError(format!("page {page:#x} is none of the guest's memory")))
}
