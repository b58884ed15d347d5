//! The stream of a checkpointed pair: the first copy of a guest, then one epoch for every
//! checkpoint, without an end. What is said between the records is no part of it.

use super::context::Context;
use super::framing::{Bad, StreamError};
use super::intake::Intake;
use super::libxl::Emulator;
use super::outgoing::Outgoing;
use super::pages::Entry;
use super::reader::{Format, Item, Reader};
use super::vectored::GatherWrite;
use super::writer::{Writer, Written};
use super::{Order, libxc, libxl};
use crate::guest::DeviceRecord;
use driver::memory::DmaMemory;
use std::io::{self, Read};

/// Writes the stream of a pair.
#[derive(Debug)]
pub struct EpochWriter<W>(Outgoing<W>);

impl<W: GatherWrite> EpochWriter<W> {
    /// A stream that starts here.
    pub fn new(to: W) -> Self {
        Self(Outgoing::new(to))
    }

    /// Where it writes to.
    pub fn get_mut(&mut self) -> &mut W {
        self.0.writer.get_mut()
    }

    /// Where it wrote to.
    pub fn into_inner(self) -> W {
        self.0.writer.into_inner()
    }

    /// Bytes of the stream so far.
    pub fn written(&self) -> u64 {
        self.0.writer.written()
    }

    /// Starts it with the guest's description.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for a description that is not UTF-8.
    pub fn open(&mut self, description: &[u8]) -> io::Result<()> {
        self.0.open(description)?;
        self.0.begin_image()
    }

    /// Writes one record of as many of the pages as it takes.
    ///
    /// # Errors
    /// As [`Writer::pages`].
    pub fn pages(&mut self, memory: &[DmaMemory], pages: &[u64]) -> io::Result<Written> {
        self.0.writer.pages(memory, pages)
    }

    /// Writes one record of pages, at most [`BATCH_PAGES`](super::BATCH_PAGES), with this data.
    ///
    /// # Errors
    /// As [`Writer::page_data`].
    pub fn page_data(&mut self, pages: &[u64], data: &[u8]) -> io::Result<()> {
        let entries: Vec<Entry> = pages.iter().copied().map(Entry::normal).collect();
        self.0.page_data(&entries, data)
    }

    /// Ends the memory of an epoch.
    ///
    /// # Errors
    /// What the system says.
    pub fn memory_end(&mut self) -> io::Result<()> {
        self.0.writer.libxc(&libxc::Record::Checkpoint)
    }

    /// Writes what [`devices`] made.
    ///
    /// # Errors
    /// What the system says.
    pub fn put(&mut self, devices: &[u8]) -> io::Result<()> {
        self.0.writer.put(devices)
    }
}

/// The devices of an epoch and its end, as bytes: their number is told before they are sent.
///
/// # Errors
/// `InvalidInput` for a state that is longer than the format allows.
pub fn devices(records: &[DeviceRecord]) -> io::Result<Vec<u8>> {
    let mut writer = Writer::new(Vec::new());
    for record in records {
        let emulator = Emulator::ours(record.id);
        if !record.options.is_empty() {
            let names = libxl::Record::EmulatorXenstoreData(emulator, record.options.clone());
            writer.libxl(&names)?;
        }
        let blob = Context::to_bytes(&record.context);
        writer.libxl(&libxl::Record::EmulatorContext(emulator, blob))?;
    }
    writer.libxl(&libxl::Record::CheckpointEnd)?;
    Ok(writer.into_inner())
}

/// What the stream of a pair brings.
#[derive(Debug)]
pub enum Part {
    /// The guest's description.
    Open(Vec<u8>),
    /// Pages by number; their data is to be taken with [`EpochReader::data`] or
    /// [`crate::stream::Reader::data_into`].
    Pages(Vec<u64>),
    /// The memory of the epoch has come.
    MemoryEnd,
    /// The state of a device.
    Device(DeviceRecord),
    /// The epoch has come.
    End,
}

impl Part {
    /// What messages call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open(_) => "the guest's description",
            Self::Pages(_) => "pages",
            Self::MemoryEnd => "the end of memory",
            Self::Device(_) => "the state of a device",
            Self::End => "the end of the epoch",
        }
    }
}

/// Reads the stream of a pair.
#[derive(Debug)]
pub struct EpochReader<R> {
    reader: Reader<R>,
    intake: Intake,
}

impl<R: Read> EpochReader<R> {
    /// A stream that starts here.
    pub fn new(from: R) -> Self {
        Self {
            reader: Reader::new(from, Format::Libxl),
            intake: Intake::default(),
        }
    }

    /// Where it reads from. What is said between records is no part of the stream.
    pub fn get_mut(&mut self) -> &mut R {
        self.reader.get_mut()
    }

    /// Where it read from.
    pub fn into_inner(self) -> R {
        self.reader.into_inner()
    }

    /// Bytes of the stream taken so far.
    pub fn offset(&self) -> u64 {
        self.reader.offset()
    }

    /// The next part.
    ///
    /// # Errors
    /// [`StreamError`]; what came of the epoch is to be discarded.
    pub fn part(&mut self) -> Result<Part, StreamError> {
        loop {
            let item = self.reader.next_item()?;
            let part = match item {
                Some(Item::Libxc(libxc::Record::Checkpoint)) => Some(Part::MemoryEnd),
                Some(Item::Libxl(libxl::Record::CheckpointEnd)) => Some(Part::End),
                None
                | Some(
                    Item::Libxl(libxl::Record::End | libxl::Record::CheckpointState(_))
                    | Item::Libxc(libxc::Record::End),
                ) => {
                    let bad = Bad::new(0, "an epoch", "the end of the stream");
                    return Err(self.reader.bad(self.reader.started(), bad));
                }
                Some(item) => {
                    let order = self.intake.order(item);
                    let order = order.map_err(|bad| self.reader.bad(self.reader.started(), bad))?;
                    match order {
                        Some(Order::Open(description)) => Some(Part::Open(description)),
                        Some(Order::Pages(pages)) => Some(Part::Pages(pages)),
                        Some(Order::Device(record)) => Some(Part::Device(record)),
                        Some(Order::ZeroPages(_)) => {
                            // An epoch is laid over memory that holds another.
                            let bad = Bad::new(0, "pages with data", "pages without");
                            return Err(self.reader.bad(self.reader.started(), bad));
                        }
                        _ => None,
                    }
                }
            };
            if let Some(part) = part {
                return Ok(part);
            }
        }
    }

    /// Takes data of the last pages.
    ///
    /// # Errors
    /// As [`Reader::data`].
    pub fn data(&mut self, into: &mut [u8]) -> Result<(), StreamError> {
        self.reader.data(into)
    }
}
