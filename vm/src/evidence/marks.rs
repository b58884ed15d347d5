//! What a checkpointed guest was at each moment that it could be brought back to.
//!
//! A mark has a sum of every page, and how long the guest's journals were: so it tells, long after
//! the process is gone, what a survivor must have gone on from.

use crate::error::VmError;
use crate::guest::journal::Journal;
use driver::dirty::PAGE_SIZE;
use driver::memory::DmaMemory;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_SIZE == 4096);

/// A guest at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Bytes of the journal of each virtual CPU.
    pub journals: Vec<u64>,
    /// A sum of each page of 4 KiB.
    pub pages: Vec<u64>,
}

impl Mark {
    /// How many pages differ, those included that only one of both has.
    pub fn differing(&self, other: &Self) -> u64 {
        let same = self.pages.iter().zip(&other.pages).filter(|(a, b)| a == b);
        let most = self.pages.len().max(other.pages.len());
        u64::try_from(most - same.count()).unwrap_or(u64::MAX)
    }
}

fn path(folder: &Path, side: &str) -> PathBuf {
    folder.join(format!("{side}.marks"))
}

/// Where one side leaves its marks, one line each.
#[derive(Debug)]
pub(crate) struct Marks {
    folder: PathBuf,
    side: String,
    file: File,
}

impl Marks {
    pub(crate) fn create(folder: &Path, side: &str) -> Result<Self, VmError> {
        let path = path(folder, side);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let file = options.open(&path);
        Ok(Self {
            folder: folder.to_owned(),
            side: side.to_owned(),
            file: file.map_err(VmError::file("create the marks", &path))?,
        })
    }

    /// Adds a mark of a stopped guest with so many virtual CPUs, whose journals are written out.
    pub(crate) fn add(&mut self, memory: &DmaMemory, vcpus: u64) -> Result<(), VmError> {
        let mut mark = Mark::default();
        for vcpu in 0..vcpus {
            let path = Journal::path(&self.folder, &self.side, vcpu);
            let known = std::fs::metadata(&path).map_err(VmError::file("look at", &path))?;
            mark.journals.push(known.len());
        }
        let mut page = [0; PAGE_BYTES];
        for number in 0..memory.len() / PAGE_SIZE {
            memory.read(number * PAGE_SIZE, &mut page)?;
            let mut sum = DefaultHasher::new();
            sum.write(&page);
            mark.pages.push(sum.finish());
        }
        let mut line = crate::guest::encode("a mark", &mark)?;
        line.push(b'\n');
        // At once: whoever is killed in the middle leaves half a line at most.
        let written = self.file.write_all(&line);
        let path = path(&self.folder, &self.side);
        written.map_err(VmError::file("write the marks", &path))
    }
}

/// The marks that a side left. Half a line at the end is none.
///
/// # Errors
/// [`VmError::File`] if there is no file; [`VmError::BadState`] for a line that is no mark.
pub fn read_marks(folder: &Path, side: &str) -> Result<Vec<Mark>, VmError> {
    let path = path(folder, side);
    let mut lines = BufReader::new(super::open(&path)?);
    let mut marks = Vec::new();
    loop {
        let mut line = Vec::new();
        let read = lines.read_until(b'\n', &mut line);
        read.map_err(VmError::file("read the marks", &path))?;
        if line.pop() != Some(b'\n') {
            return Ok(marks);
        }
        marks.push(crate::guest::decode("a mark", &line)?);
    }
}
