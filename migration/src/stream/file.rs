//! A stream that is a file: a guest put away, and taken up again later.
//!
//! The file grows under another name beside its own and takes its own when it is whole and on the
//! disk: under its name there is a whole guest or nothing new.

use super::framing::{Bad, StreamError, widen};
use super::intake::Intake;
use super::outgoing::Outgoing;
use super::reader::{Format, Reader};
use super::{Answer, BATCH_PAGES, DestinationStream, New, Order, Sent, SourceStream};
use crate::error::{GuestError, MigrationError};
use crate::guest::DeviceRecord;
use crate::zero;
use driver::memory::DmaMemory;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Saves a guest to a file. Nobody answers: no page counts as unchanged.
#[derive(Debug)]
pub struct Save {
    out: Outgoing<File>,
    /// Its name, and the one that it has until it is whole. None if it is no file of ours.
    place: Option<(PathBuf, PathBuf)>,
    whole: bool,
}

impl Save {
    /// Starts a file; one that is there keeps its place until the new one is whole.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut name = path
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        Ok(Self {
            out: Outgoing::new(File::create(&partial)?),
            place: Some((path.to_owned(), partial)),
            whole: false,
        })
    }

    /// Writes to something that is open, a pipe for instance. Whoever reads knows by the stream's
    /// END whether it is whole.
    pub fn over(to: File) -> Self {
        Self {
            out: Outgoing::new(to),
            place: None,
            whole: false,
        }
    }

    fn failed(&self, doing: &str) -> impl FnOnce(io::Error) -> MigrationError {
        let path = self.place.as_ref().map(|(path, _)| path.clone());
        let (doing, path) = (doing.to_owned(), path.unwrap_or_else(|| "-".into()));
        move |source| match source.kind() {
            io::ErrorKind::InvalidInput => GuestError::new(&doing, source).into(),
            _ => MigrationError::File {
                path,
                doing,
                source,
            },
        }
    }

    fn publish(&self) -> io::Result<()> {
        let Some((path, partial)) = &self.place else {
            return Ok(());
        };
        fs::rename(partial, path)?;
        let folder = path.parent().filter(|f| !f.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl SourceStream for Save {
    fn open(&mut self, description: &[u8]) -> Result<(), MigrationError> {
        let done = self.out.open(description);
        done.map_err(self.failed("starting the stream"))
    }

    fn plain_copy(&mut self, _memory: &[DmaMemory]) -> Result<Duration, MigrationError> {
        Err(MigrationError::Refused(
            "a file takes no plain copies: ask for none".to_owned(),
        ))
    }

    fn pages(
        &mut self,
        memory: &[DmaMemory],
        pages: &[u64],
        new: New,
    ) -> Result<Sent, MigrationError> {
        let before = self.out.writer.written();
        let mut zeros = 0;
        for batch in pages.chunks(BATCH_PAGES) {
            let (empty, full) = zero::split(memory, batch, new);
            if !empty.is_empty() {
                let done = self.out.zero_pages(&empty);
                done.map_err(self.failed("saving pages of zeros"))?;
                zeros += widen(empty.len());
            }
            let mut rest = full.as_slice();
            while !rest.is_empty() {
                let done = self.out.pages(memory, rest);
                let written = done.map_err(self.failed("saving pages"))?;
                rest = rest.get(written.pages..).unwrap_or_default();
            }
        }
        let bytes = self.out.writer.written() - before;
        Ok(Sent { bytes, zeros })
    }

    fn round_end(&mut self, _round: u32) -> Result<Vec<u64>, MigrationError> {
        Ok(Vec::new())
    }

    fn device(&mut self, record: &DeviceRecord) -> Result<(), MigrationError> {
        let done = self.out.device(record);
        done.map_err(self.failed("saving the state of a device"))
    }

    fn end(&mut self) -> Result<Duration, MigrationError> {
        let done = self.out.end();
        let done = done.and_then(|()| match &self.place {
            Some(_) => self.out.writer.get_ref().sync_all(),
            None => Ok(()),
        });
        done.map_err(self.failed("ending the stream"))?;
        Ok(Duration::ZERO)
    }

    fn go(&mut self) -> Result<(), MigrationError> {
        let done = self.publish();
        done.map_err(self.failed("giving the file its name"))?;
        self.whole = true;
        Ok(())
    }

    fn abort(&mut self) {
        if let Some((_, partial)) = &self.place {
            let removed = fs::remove_file(partial);
            tracing::debug!(?removed, "abort");
        }
    }
}

impl Drop for Save {
    fn drop(&mut self) {
        if !self.whole {
            self.abort();
        }
    }
}

/// Takes a guest up from a file. Says GO by itself once the stream was whole and nothing followed.
#[derive(Debug)]
pub struct Restore {
    /// Until the end has been seen and checked.
    reader: Option<Reader<File>>,
    intake: Intake,
}

impl Restore {
    /// From a file at its start.
    pub fn new(file: File) -> Self {
        Self {
            reader: Some(Reader::new(file, Format::Libxl)),
            intake: Intake::default(),
        }
    }

    fn reader(&mut self) -> Result<&mut Reader<File>, MigrationError> {
        let ended = MigrationError::Guest(GuestError("the file has ended".to_owned()));
        self.reader.as_mut().ok_or(ended)
    }
}

impl DestinationStream for Restore {
    fn next(&mut self) -> Result<Order, MigrationError> {
        let Some(reader) = &mut self.reader else {
            return Ok(Order::Go);
        };
        while let Some(item) = reader.next_item()? {
            let order = self.intake.order(item);
            let order = order.map_err(|bad| reader.bad(reader.started(), bad))?;
            match order {
                Some(Order::End) => break,
                Some(order) => return Ok(order),
                None => {}
            }
        }
        // Before anybody puts the guest together.
        self.reader.take().map_or(Ok(()), Reader::finish)?;
        Ok(Order::End)
    }

    fn bytes(&mut self, into: &mut [u8]) -> Result<(), MigrationError> {
        Ok(self.reader()?.data(into)?)
    }

    fn bytes_into(
        &mut self,
        memory: &DmaMemory,
        ranges: &[(u64, usize)],
    ) -> Result<(), MigrationError> {
        Ok(self.reader()?.data_into(memory, ranges)?)
    }

    fn fault(&self, expected: String, got: String) -> MigrationError {
        let bad = Bad::new(0, expected, got);
        let at = self.reader.as_ref();
        at.map_or_else(
            || StreamError::from(bad.clone().located(0, "the end".to_owned())),
            |reader| reader.bad(reader.started(), bad.clone()),
        )
        .into()
    }

    fn answer(&mut self, answer: Answer<'_>) -> Result<(), MigrationError> {
        tracing::trace!(?answer, "nobody listens");
        Ok(())
    }
}
