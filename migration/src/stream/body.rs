//! A whole guest as a stream, taken apart and put together without a guest to put it into.

use super::framing::{Bad, StreamError};
use super::intake::Intake;
use super::outgoing::Outgoing;
use super::pages::Entry;
use super::reader::{Format, Reader};
use super::{BATCH_PAGES, Order};
use crate::guest::DeviceRecord;
use std::io::{self, Read, Write};

/// Reads the stream of a guest: what [`super::file::Save`] writes.
#[derive(Debug)]
pub struct BodyReader<R> {
    reader: Reader<R>,
    intake: Intake,
}

impl<R: Read> BodyReader<R> {
    /// A stream that starts here.
    pub fn new(from: R) -> Self {
        Self {
            reader: Reader::new(from, Format::Libxl),
            intake: Intake::default(),
        }
    }

    /// What comes next: the description first, then pages, then devices, then the end.
    ///
    /// # Errors
    /// [`StreamError`]; a stream that has ended is at fault.
    pub fn order(&mut self) -> Result<Order, StreamError> {
        while let Some(item) = self.reader.next_item()? {
            let order = self.intake.order(item);
            let order = order.map_err(|bad| self.reader.bad(self.reader.started(), bad))?;
            if let Some(order) = order {
                return Ok(order);
            }
        }
        let bad = Bad::new(0, "a record", "the end of the stream");
        Err(self.reader.bad(self.reader.started(), bad))
    }

    /// Takes data of the last pages.
    ///
    /// # Errors
    /// As [`Reader::data`].
    pub fn data(&mut self, into: &mut [u8]) -> Result<(), StreamError> {
        self.reader.data(into)
    }

    /// Checks that nothing follows the end.
    ///
    /// # Errors
    /// As [`Reader::finish`].
    pub fn finish(self) -> Result<(), StreamError> {
        self.reader.finish()
    }
}

/// Writes the stream of a guest.
#[derive(Debug)]
pub struct BodyWriter<W>(Outgoing<W>);

impl<W: Write> BodyWriter<W> {
    /// A stream that starts here, with the guest's description.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for a description that is not UTF-8.
    pub fn open(to: W, description: &[u8]) -> io::Result<Self> {
        let mut out = Outgoing::new(to);
        out.open(description)?;
        Ok(Self(out))
    }

    /// Writes pages of memory by number; `data` is that of all of them.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for data of another length.
    pub fn pages(&mut self, pages: &[u64], data: &[u8]) -> io::Result<()> {
        let mut data = data.chunks(BATCH_PAGES * 4096);
        for batch in pages.chunks(BATCH_PAGES) {
            let entries: Vec<Entry> = batch.iter().copied().map(Entry::normal).collect();
            self.0
                .page_data(&entries, data.next().unwrap_or_default())?;
        }
        Ok(())
    }

    /// Writes the state of a device. No pages follow.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for a state that is longer than the format allows.
    pub fn device(&mut self, record: &DeviceRecord) -> io::Result<()> {
        self.0.device(record)
    }

    /// Ends the stream; gives where it went, and its bytes.
    ///
    /// # Errors
    /// What the system says.
    pub fn end(mut self) -> io::Result<(W, u64)> {
        self.0.end()?;
        let bytes = self.0.writer.written();
        Ok((self.0.writer.into_inner(), bytes))
    }
}
