//! The strict reader: one record at a time, in the order the format allows, and nothing else.
//!
//! It pulls and is never called back, so what a stream holds decides how often its loop turns and
//! never how deep it goes.

use super::framing::{Bad, HEAD_BYTES, Head, Layer, RECORD_MAX, StreamError, widen};
use super::order::{Order, unknown};
use super::pages::{self, COUNT_BYTES, Entry};
use super::vectored::ScatterRead;
use super::{libxc, libxl};
use driver::memory::DmaMemory;
use std::io::{self, Read};

/// How a stream starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// With the outer layer.
    Libxl,
    /// With the image itself: an inner layer alone.
    Libxc,
}

/// What a reader found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The header of the outer layer.
    Stream(libxl::Header),
    /// A record of the outer layer.
    Libxl(libxl::Record),
    /// The headers of an image.
    Image(libxc::Header),
    /// A record of the inner layer.
    Libxc(libxc::Record),
    /// A record of pages. Their data follows, in this order, and is to be taken with
    /// [`Reader::data`] or [`Reader::data_into`] before the next item.
    Pages(Vec<Entry>),
    /// A record that nobody here knows and that may be skipped; it has been.
    Skipped(Layer, Head),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    StreamHeader,
    ImageHeader,
    Record,
}

/// Reads a stream from anything.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    /// Bytes taken.
    at: u64,
    /// What is being read, for messages.
    record: String,
    /// What has been read before it.
    last: String,
    /// Where the last item started.
    started: u64,
    next: Next,
    order: Order,
    /// Data of the last record that has not been taken yet.
    data_left: u64,
}

impl<R: Read> Reader<R> {
    /// A reader of a stream that starts in the given way.
    pub fn new(from: R, format: Format) -> Self {
        let wrapped = format == Format::Libxl;
        Self {
            from,
            at: 0,
            record: String::new(),
            last: String::new(),
            started: 0,
            next: if wrapped {
                Next::StreamHeader
            } else {
                Next::ImageHeader
            },
            order: Order::new(wrapped),
            data_left: 0,
        }
    }

    /// Where it reads from.
    pub fn get_ref(&self) -> &R {
        &self.from
    }

    pub(super) fn into_inner(self) -> R {
        self.from
    }

    pub(super) fn get_mut(&mut self) -> &mut R {
        &mut self.from
    }

    /// Bytes of the stream taken so far.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// Where the last item started.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// What messages call the last item.
    pub fn record(&self) -> &str {
        &self.record
    }

    /// The next item; none once the stream has come to its end, and then for ever.
    ///
    /// # Errors
    /// [`StreamError`]. What follows a fault means nothing: drop the reader, and discard whatever
    /// the stream brought.
    pub fn next_item(&mut self) -> Result<Option<Item>, StreamError> {
        match self.head()? {
            Some(head) => self.item(head).map(Some),
            None if self.next == Next::Record => Ok(None),
            None => {
                let header = self.header()?;
                self.last.clone_from(&self.record);
                Ok(Some(header))
            }
        }
    }

    /// The head of the next record; none where a header stands instead, or nothing any more.
    pub(super) fn head(&mut self) -> Result<Option<Head>, StreamError> {
        if self.data_left != 0 {
            let got = format!("{} bytes of them left", self.data_left);
            return Err(self.bad(
                self.at,
                Bad::new(0, "all data of the last pages taken", got),
            ));
        }
        let (Next::Record, Some(layer)) = (self.next, self.order.layer()) else {
            return Ok(None);
        };
        self.started = self.at;
        self.record = format!(
            "the head of the {} record after {}",
            layer.name(),
            self.last
        );
        let mut bytes = [0; HEAD_BYTES];
        self.take(&mut bytes)?;
        Ok(Some(Head::from_bytes(bytes)))
    }

    fn header(&mut self) -> Result<Item, StreamError> {
        self.started = self.at;
        if self.next == Next::StreamHeader {
            "the libxl header".clone_into(&mut self.record);
            let mut bytes = [0; libxl::HEADER_BYTES];
            self.take(&mut bytes)?;
            let header = libxl::Header::parse(bytes);
            let header = header.map_err(|bad| self.bad(self.started, bad))?;
            self.next = Next::Record;
            return Ok(Item::Stream(header));
        }
        "the libxc headers".clone_into(&mut self.record);
        let mut bytes = [0; libxc::HEADER_BYTES];
        self.take(&mut bytes)?;
        let header = libxc::Header::parse(&bytes);
        let header = header.map_err(|bad| self.bad(self.started, bad))?;
        self.order.image(header);
        self.next = Next::Record;
        Ok(Item::Image(header))
    }

    /// The record that `head` starts.
    pub(super) fn item(&mut self, head: Head) -> Result<Item, StreamError> {
        let Some(layer) = self.order.layer() else {
            return Err(self.bad(self.at, Bad::new(0, "nothing after END", "a record")));
        };
        self.record = layer.record(head.kind);
        self.last.clone_from(&self.record);
        if widen(HEAD_BYTES) + head.padded() > RECORD_MAX {
            let expected = format!("a record of at most {RECORD_MAX} bytes");
            let got = format!("a body of {} bytes", head.length);
            return Err(self.bad(self.started + 4, Bad::new(0, expected, got)));
        }
        if (layer, head.kind) == (Layer::Libxc, libxc::PAGE_DATA) {
            return self.page_data(head);
        }
        let known = layer.record_name(head.kind).is_some();
        if !known && !head.optional() {
            return Err(self.bad(self.started, unknown(layer, head.kind)));
        }
        let start = self.at;
        let body = self.body(head)?;
        if !known {
            return Ok(Item::Skipped(layer, head));
        }
        let record = match layer {
            Layer::Libxl => libxl::Record::parse(head.kind, &body).map(|r| r.map(Item::Libxl)),
            Layer::Libxc => libxc::Record::parse(head.kind, &body).map(|r| r.map(Item::Libxc)),
        };
        let record = record.map_err(|bad| self.bad(start, bad))?;
        let (item, order) = match record {
            Some(Item::Libxl(record)) => {
                let order = self.order.libxl(&record);
                (Item::Libxl(record), order)
            }
            Some(Item::Libxc(record)) => {
                let order = self.order.libxc(&record);
                (Item::Libxc(record), order)
            }
            _ => return Err(self.bad(self.started, unknown(layer, head.kind))),
        };
        order.map_err(|bad| self.bad(self.started, bad))?;
        if item == Item::Libxl(libxl::Record::LibxcContext) {
            self.next = Next::ImageHeader;
        }
        Ok(item)
    }

    fn page_data(&mut self, head: Head) -> Result<Item, StreamError> {
        let start = self.at;
        let order = self.order.pages();
        order.map_err(|bad| self.bad(self.started, bad))?;
        if head.length < 8 {
            let bad = Bad::new(0, "a body of at least 8 bytes", format!("{}", head.length));
            return Err(self.bad(self.started + 4, bad));
        }
        let mut count = [0; COUNT_BYTES];
        self.take(&mut count)?;
        let count = pages::parse_count(count, head.length).map_err(|bad| self.bad(start, bad))?;
        let mut bytes = vec![0; 8 * count];
        self.take(&mut bytes)?;
        let (entries, data) =
            pages::parse_entries(&bytes, head.length).map_err(|bad| self.bad(start, bad))?;
        self.data_left = data;
        Ok(Item::Pages(entries))
    }

    /// A body, and the padding after it, which must be zero.
    fn body(&mut self, head: Head) -> Result<Vec<u8>, StreamError> {
        let mut body = Vec::new();
        // Grows as bytes come: a length that is a lie costs its writer as much as the reader.
        let done = (&mut self.from).take(head.padded()).read_to_end(&mut body);
        let got = done.map_err(|error| self.broken(error))?;
        self.at += widen(got);
        let missing = head.padded() - widen(got);
        if missing != 0 {
            return Err(self.cut(missing));
        }
        let length = usize::try_from(head.length).unwrap_or(usize::MAX);
        let padding = body.split_off(length.min(body.len()));
        if padding.iter().any(|byte| *byte != 0) {
            let offset = self.at - widen(padding.len());
            let bad = Bad::new(0, "zero bytes of padding", format!("{padding:02x?}"));
            return Err(self.bad(offset, bad));
        }
        Ok(body)
    }

    /// Takes data of the last record of pages.
    ///
    /// # Errors
    /// [`StreamError`], also if there is less data than asked for.
    pub fn data(&mut self, into: &mut [u8]) -> Result<(), StreamError> {
        self.claim(widen(into.len()))?;
        self.take(into)
    }

    /// Bytes of data that the last record of pages still has.
    pub fn data_left(&self) -> u64 {
        self.data_left
    }

    /// Checks that nothing follows the end. For a stream that is a file.
    ///
    /// # Errors
    /// [`StreamError`], also if the end has not been reached.
    pub fn finish(mut self) -> Result<(), StreamError> {
        if self.order.layer().is_some() {
            let bad = Bad::new(0, "END", "a stream that goes on");
            return Err(self.bad(self.at, bad));
        }
        let mut byte = [0];
        loop {
            match self.from.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    let got = format!("the byte {:#04x}", byte[0]);
                    let bad = Bad::new(0, "nothing after END", got)
                        .advising("the file holds more than one stream: cut it at this byte");
                    return Err(self.bad(self.at, bad));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    fn claim(&mut self, len: u64) -> Result<(), StreamError> {
        let Some(left) = self.data_left.checked_sub(len) else {
            let got = format!("{}", self.data_left);
            return Err(self.bad(self.at, Bad::new(0, format!("{len} bytes of pages"), got)));
        };
        self.data_left = left;
        Ok(())
    }

    pub(super) fn take(&mut self, into: &mut [u8]) -> Result<(), StreamError> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.from.read(rest) {
                Ok(0) => return Err(self.cut(widen(rest.len()))),
                Ok(count) => {
                    done += count;
                    self.at += widen(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(error)),
            }
        }
        Ok(())
    }

    pub(super) fn bad(&self, from: u64, bad: Bad) -> StreamError {
        bad.located(from, self.record.clone()).into()
    }

    fn cut(&self, missing: u64) -> StreamError {
        StreamError::Cut {
            offset: self.at,
            record: self.record.clone(),
            missing,
        }
    }

    fn broken(&self, source: io::Error) -> StreamError {
        StreamError::Broken {
            offset: self.at,
            record: self.record.clone(),
            source,
        }
    }
}

impl<R: ScatterRead> Reader<R> {
    /// Takes data of the last record of pages straight into ranges (offset, length) of memory.
    ///
    /// # Errors
    /// As [`data`](Self::data).
    pub fn data_into(
        &mut self,
        memory: &DmaMemory,
        ranges: &[(u64, usize)],
    ) -> Result<(), StreamError> {
        let len = ranges.iter().map(|(_, len)| widen(*len)).sum();
        self.claim(len)?;
        match self.from.read_scattered(memory, ranges) {
            Ok(count) => {
                let came = widen(count);
                self.at += came;
                match len.checked_sub(came) {
                    None | Some(0) => Ok(()),
                    Some(missing) => Err(self.cut(missing)),
                }
            }
            Err(error) => Err(self.broken(error)),
        }
    }
}
