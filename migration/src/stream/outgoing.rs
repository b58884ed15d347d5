//! A guest as records: what every source writes, wherever it goes.

use super::context::Context;
use super::libxl::Emulator;
use super::pages::{Entry, PageType};
use super::vectored::GatherWrite;
use super::writer::{Writer, Written};
use super::{libxc, libxl};
use crate::guest::DeviceRecord;
use driver::memory::DmaMemory;
use std::io::{self, Write};

/// Key of the guest's own option: its description, which is for the destination.
pub(super) const GUEST_KEY: &str = "guest";

/// Writes a guest.
#[derive(Debug)]
pub(super) struct Outgoing<W> {
    pub(super) writer: Writer<W>,
    image: Image,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Image {
    Ahead,
    Open,
    Ended,
}

impl<W: Write> Outgoing<W> {
    pub(super) fn new(to: W) -> Self {
        Self {
            writer: Writer::new(to),
            image: Image::Ahead,
        }
    }

    /// The header, and the guest's description as an option of emulator 0.
    pub(super) fn open(&mut self, description: &[u8]) -> io::Result<()> {
        let Ok(text) = std::str::from_utf8(description) else {
            let why = "the guest's description is not UTF-8, which the stream's options are";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        };
        self.writer.header(libxl::Header::default())?;
        let options = vec![(GUEST_KEY.to_owned(), text.to_owned())];
        let emulator = Emulator::ours(0);
        let record = libxl::Record::EmulatorXenstoreData(emulator, options);
        self.writer.libxl(&record)
    }

    /// One record of as many pages of zeros, none of which was sent before: allocated and never
    /// written, as the format has it, so that they have no data.
    pub(super) fn zero_pages(&mut self, pages: &[u64]) -> io::Result<()> {
        self.begin_image()?;
        let kind = PageType::Allocated;
        let entries: Vec<Entry> = pages.iter().map(|&pfn| Entry { pfn, kind }).collect();
        self.writer.page_data(&entries, &[])
    }

    /// An image alone, without the outer layer: pages that go beside a stream.
    pub(super) fn open_image(&mut self) -> io::Result<()> {
        self.writer.image(libxc::Header::OURS)?;
        self.writer.libxc(&libxc::Record::StaticDataEnd)?;
        self.image = Image::Open;
        Ok(())
    }

    /// One record of pages, from bytes.
    pub(super) fn page_data(&mut self, entries: &[Entry], data: &[u8]) -> io::Result<()> {
        self.begin_image()?;
        self.writer.page_data(entries, data)
    }

    /// A device's options, if it has any, and its state.
    pub(super) fn device(&mut self, record: &DeviceRecord) -> io::Result<()> {
        self.end_image()?;
        let emulator = Emulator::ours(record.id);
        if !record.options.is_empty() {
            let options = record.options.clone();
            let names = libxl::Record::EmulatorXenstoreData(emulator, options);
            self.writer.libxl(&names)?;
        }
        let blob = Context::to_bytes(&record.context);
        self.writer
            .libxl(&libxl::Record::EmulatorContext(emulator, blob))
    }

    /// The end.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.end_image()?;
        self.writer.libxl(&libxl::Record::End)
    }

    pub(super) fn begin_image(&mut self) -> io::Result<()> {
        if self.image == Image::Ahead {
            self.writer.libxl(&libxl::Record::LibxcContext)?;
            self.open_image()?;
        }
        Ok(())
    }

    pub(super) fn end_image(&mut self) -> io::Result<()> {
        self.begin_image()?;
        if self.image == Image::Open {
            self.writer.libxc(&libxc::Record::End)?;
            self.image = Image::Ended;
        }
        Ok(())
    }
}

impl<W: GatherWrite> Outgoing<W> {
    /// One record of as many of the pages as it takes.
    pub(super) fn pages(&mut self, memory: &[DmaMemory], pages: &[u64]) -> io::Result<Written> {
        self.begin_image()?;
        self.writer.pages(memory, pages)
    }
}
