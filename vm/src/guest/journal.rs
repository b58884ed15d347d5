//! Which requests were submitted and which completed: written by each virtual CPU into a file of
//! its own, which never travels with the guest.

use crate::error::VmError;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A read was made available to the device.
    ReadSubmitted,
    /// A write was made available to the device.
    WriteSubmitted,
    /// The device completed it, and what was read is what was written last.
    Completed,
    /// The device reported a failure.
    Failed,
    /// The device completed a read, and the data is not what was written last.
    Corrupt,
}

impl Event {
    fn byte(self) -> u8 {
        match self {
            Self::ReadSubmitted => 1,
            Self::WriteSubmitted => 2,
            Self::Completed => 3,
            Self::Failed => 4,
            Self::Corrupt => 5,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let all = [
            Self::ReadSubmitted,
            Self::WriteSubmitted,
            Self::Completed,
            Self::Failed,
            Self::Corrupt,
        ];
        all.into_iter().find(|event| event.byte() == byte)
    }
}

/// One line of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub event: Event,
    /// The request, counted from 0 by its virtual CPU over its whole life on both hosts.
    pub id: u64,
    /// The block of the disk.
    pub block: u64,
    /// The sequence number read or written.
    pub sequence: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    id: U64,
    block: U64,
    sequence: U32,
    event: u8,
    reserved: [u8; 3],
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Journal {
    /// The path of the journal of `vcpu` on the side called `side`.
    pub fn path(folder: &Path, side: &str, vcpu: u64) -> PathBuf {
        folder.join(format!("{side}-{vcpu}.journal"))
    }

    /// Starts a journal, replacing one of the same name.
    ///
    /// # Errors
    /// [`VmError::File`].
    pub fn create(path: &Path) -> Result<Self, VmError> {
        let file = File::create(path).map_err(VmError::file("create the journal", path))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(256 << 10, file),
        })
    }

    /// Goes on with a journal that there is.
    ///
    /// # Errors
    /// [`VmError::File`].
    pub(crate) fn go_on(path: &Path) -> Result<Self, VmError> {
        let file = File::options().append(true).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file.map_err(VmError::file("open the journal", path))?),
        })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// [`VmError::File`].
    pub fn add(&mut self, entry: Entry) -> Result<(), VmError> {
        let wire = Wire {
            id: entry.id.into(),
            block: entry.block.into(),
            sequence: entry.sequence.into(),
            event: entry.event.byte(),
            reserved: [0; 3],
        };
        let written = self.file.write_all(wire.as_bytes());
        written.map_err(VmError::file("write the journal", &self.path))
    }

    /// Forgets every line: what it told of has been undone.
    ///
    /// # Errors
    /// [`VmError::File`].
    pub fn restart(&mut self) -> Result<(), VmError> {
        self.flush()?;
        let file = self.file.get_mut();
        let emptied = file.set_len(0).and_then(|()| file.rewind());
        emptied.map_err(VmError::file("restart the journal", &self.path))
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// [`VmError::File`].
    pub fn flush(&mut self) -> Result<(), VmError> {
        let flushed = self.file.flush();
        flushed.map_err(VmError::file("write the journal", &self.path))
    }
}

/// Reads a journal to its end.
///
/// # Errors
/// [`VmError::File`], also for a line that is none.
pub fn read(path: &Path, mut each: impl FnMut(Entry)) -> Result<(), VmError> {
    let file = File::open(path).map_err(VmError::file("open the journal", path))?;
    let mut file = BufReader::with_capacity(256 << 10, file);
    let mut bytes = [0; size_of::<Wire>()];
    loop {
        match file.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(VmError::file("read the journal", path)(error)),
        }
        let wire = Wire::read_from_bytes(&bytes).ok();
        let entry = wire.and_then(|wire| {
            Some(Entry {
                event: Event::from_byte(wire.event)?,
                id: wire.id.get(),
                block: wire.block.get(),
                sequence: wire.sequence.get(),
            })
        });
        let Some(entry) = entry else {
            let error =
                std::io::Error::new(std::io::ErrorKind::InvalidData, "not a journal's line");
            return Err(VmError::file("read the journal", path)(error));
        };
        each(entry);
    }
}
