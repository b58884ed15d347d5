//! The writer: what it is given, in the order it is given, as the format has it.

use super::framing::{Head, Layer, RECORD_MAX, widen};
use super::pages::{BATCH_PAGES, Entry};
use super::vectored::GatherWrite;
use super::{libxc, libxl};
use driver::dirty::PAGE_SIZE;
use driver::memory::DmaMemory;
use std::io::{self, IoSlice, Write};

/// Bytes of a page, as slices count.
const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_SIZE == 4096);

/// Most runs of adjacent pages in a record: Linux takes 1024 segments in one `writev`, and one is
/// the record's head.
const RUNS_MAX: usize = 1023;

/// Writes a stream to anything. Each record is one write.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    written: u64,
}

/// What [`Writer::pages`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Of the pages given, how many the record took: the first so many.
    pub pages: usize,
    /// Bytes of the record.
    pub bytes: u64,
}

impl<W: Write> Writer<W> {
    /// A writer of a stream that starts here.
    pub fn new(to: W) -> Self {
        Self { to, written: 0 }
    }

    /// Where it writes to.
    pub fn get_ref(&self) -> &W {
        &self.to
    }

    /// Where it writes to. What is written around the writer is no part of the stream.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.to
    }

    /// Where it wrote to.
    pub fn into_inner(self) -> W {
        self.to
    }

    /// Bytes of the stream so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes the header of the outer layer.
    ///
    /// # Errors
    /// What the system says.
    pub fn header(&mut self, header: libxl::Header) -> io::Result<()> {
        self.put(&header.to_bytes())
    }

    /// Writes the headers of an image.
    ///
    /// # Errors
    /// What the system says.
    pub fn image(&mut self, header: libxc::Header) -> io::Result<()> {
        self.put(&header.to_bytes())
    }

    /// Writes a record of the outer layer.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for a record that is longer than the format allows, or
    /// for an option that it cannot hold.
    pub fn libxl(&mut self, record: &libxl::Record) -> io::Result<()> {
        if let libxl::Record::EmulatorXenstoreData(_, options) = record
            && let Some((key, _)) = options.iter().find(|(k, v)| !libxl::is_option(k, v))
        {
            return Err(invalid(format!(
                "the option '{key}' cannot be sent: expected a relative key of letters, digits \
                 and /_@-, and a value without NUL; rename it"
            )));
        }
        self.record(Layer::Libxl, record.kind(), &record.body())
    }

    /// Writes a record of the inner layer.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for a record that is longer than the format allows.
    pub fn libxc(&mut self, record: &libxc::Record) -> io::Result<()> {
        self.record(Layer::Libxc, record.kind(), &record.body())
    }

    /// Writes a record of pages from bytes: `data` is that of all entries that have any.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` if there are no entries, or more than a record takes,
    /// or data of another length.
    pub fn page_data(&mut self, entries: &[Entry], data: &[u8]) -> io::Result<()> {
        let with_data = entries.iter().filter(|entry| entry.kind.has_data()).count();
        if !(1..=BATCH_PAGES).contains(&entries.len()) || data.len() != with_data * PAGE_BYTES {
            return Err(invalid(format!(
                "expected 1 to {BATCH_PAGES} pages and {PAGE_BYTES} bytes of data for each that \
                 has any, got {} pages and {} bytes",
                entries.len(),
                data.len()
            )));
        }
        let head = page_head(entries, data.len());
        let mut parts = [IoSlice::new(&head), IoSlice::new(data)];
        let mut rest = parts.as_mut_slice();
        while rest.iter().any(|part| !part.is_empty()) {
            match self.to.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.written += widen(head.len() + data.len());
        Ok(())
    }

    fn record(&mut self, layer: Layer, kind: u32, body: &[u8]) -> io::Result<()> {
        let head = Head {
            kind,
            length: u32::try_from(body.len()).unwrap_or(u32::MAX),
        };
        if 8 + head.padded() > RECORD_MAX {
            return Err(invalid(format!(
                "{}: expected at most {RECORD_MAX} bytes, got a body of {}",
                layer.record(kind),
                body.len()
            )));
        }
        let mut record = Vec::with_capacity(body.len() + 16);
        record.extend(head.to_bytes());
        record.extend(body);
        record.resize(record.len().next_multiple_of(8), 0);
        self.put(&record)
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.written += widen(bytes.len());
        Ok(())
    }
}

impl<W: GatherWrite> Writer<W> {
    /// Writes one record of as many of the pages, given by number and ascending, as it takes, with
    /// one `writev`; the kernel reads the memory itself.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` if the first page lies outside of `memory`.
    pub fn pages(&mut self, memory: &[DmaMemory], pages: &[u64]) -> io::Result<Written> {
        let Some(window) = pages.first().and_then(|page| window_of(memory, *page)) else {
            return Err(invalid(format!(
                "page {:#x?} is none of the guest's memory",
                pages.first()
            )));
        };
        let (count, runs) = runs_of(window, pages);
        let entries: Vec<Entry> = pages
            .iter()
            .take(count)
            .map(|pfn| Entry::normal(*pfn))
            .collect();
        let head = page_head(&entries, count * PAGE_BYTES);
        self.to.write_gathered(&head, window, &runs)?;
        let bytes = widen(head.len() + count * PAGE_BYTES);
        self.written += bytes;
        Ok(Written {
            pages: count,
            bytes,
        })
    }
}

/// Everything of a record of pages that comes before their data.
fn page_head(entries: &[Entry], data: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(16 + 8 * entries.len());
    let length = 8 + 8 * entries.len() + data;
    head.extend(
        Head {
            kind: libxc::PAGE_DATA,
            length: u32::try_from(length).unwrap_or(u32::MAX),
        }
        .to_bytes(),
    );
    head.extend(widen(entries.len()).to_le_bytes());
    head.extend(entries.iter().flat_map(|entry| entry.to_bytes()));
    head
}

fn window_of(memory: &[DmaMemory], page: u64) -> Option<&DmaMemory> {
    let address = page.checked_mul(PAGE_SIZE)?;
    memory.iter().find(|window| holds(window, address))
}

fn holds(window: &DmaMemory, address: u64) -> bool {
    let most = window.len().checked_sub(PAGE_SIZE);
    address >= window.iova() && most.is_some_and(|most| address - window.iova() <= most)
}

/// How many of the pages go into one record, and their runs as (offset, bytes) of the window.
fn runs_of(window: &DmaMemory, pages: &[u64]) -> (usize, Vec<(u64, usize)>) {
    let mut runs: Vec<(u64, usize)> = Vec::new();
    let mut count = 0;
    for page in pages.iter().take(BATCH_PAGES) {
        let Some(address) = page.checked_mul(PAGE_SIZE).filter(|a| holds(window, *a)) else {
            break;
        };
        let offset = address - window.iova();
        let full = runs.len() == RUNS_MAX;
        match runs.last_mut() {
            Some((start, len)) if *start + widen(*len) == offset => *len += PAGE_BYTES,
            _ if full => break,
            _ => runs.push((offset, PAGE_BYTES)),
        }
        count += 1;
    }
    (count, runs)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
