//! What the disks hold in the end.

use super::requests::LastWrites;
use crate::error::VmError;
use crate::guest::block::{BLOCK_BYTES, Page, Stamp};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const BUFFER: usize = 1 << 20;

/// What the disks hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskVerdict {
    /// Blocks read.
    pub blocks: u64,
    /// Of those, blocks that were written during the run.
    pub written: u64,
    /// Blocks that do not hold the last acknowledged write.
    pub wrong: u64,
}

/// Writes the formatted content of blocks `0..blocks` of disk number `disk` to an existing file.
///
/// # Errors
/// [`VmError::File`].
pub fn format_disk(path: &Path, disk: u16, blocks: u64) -> Result<(), VmError> {
    let opened = OpenOptions::new().write(true).open(path);
    let file = opened.map_err(VmError::file("open the disk", path))?;
    let mut file = BufWriter::with_capacity(BUFFER, file);
    let mut page: Page = [0; BLOCK_BYTES];
    for block in 0..blocks {
        Stamp::of(disk, block, 0).fill(&mut page);
        let written = file.write_all(&page);
        written.map_err(VmError::file("format the disk", path))?;
    }
    file.flush().map_err(VmError::file("format the disk", path))
}

/// Whether a file may be overwritten without regret: its first block, if it has one, holds
/// nothing or a block of ours.
///
/// # Errors
/// [`VmError::File`].
pub fn is_ours(path: &Path) -> Result<bool, VmError> {
    let mut file = File::open(path).map_err(VmError::file("open the disk", path))?;
    let mut page: Page = [0; BLOCK_BYTES];
    if let Err(error) = file.read_exact(&mut page) {
        return match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Ok(true),
            _ => Err(VmError::file("read the disk", path)(error)),
        };
    }
    let (block, sequence) = Stamp::head(&page);
    let ours =
        u32::try_from(sequence).is_ok_and(|sequence| Stamp { block, sequence }.matches(&page));
    Ok(ours || page.iter().all(|byte| *byte == 0))
}

/// Reads the disks and holds every block to its last acknowledged write.
///
/// # Errors
/// [`VmError::File`].
pub fn judge_disk(disks: &[PathBuf], last: &LastWrites) -> Result<DiskVerdict, VmError> {
    let mut verdict = DiskVerdict::default();
    for ((number, path), sequences) in (0_u16..).zip(disks).zip(&last.0) {
        let file = File::open(path).map_err(VmError::file("open the disk", path))?;
        let mut file = BufReader::with_capacity(BUFFER, file);
        let mut page: Page = [0; BLOCK_BYTES];
        for (block, sequence) in (0_u64..).zip(sequences) {
            let read = file.read_exact(&mut page);
            read.map_err(VmError::file("read the disk", path))?;
            verdict.blocks += 1;
            verdict.written += u64::from(*sequence > 0);
            let right = Stamp::of(number, block, *sequence).matches(&page);
            verdict.wrong += u64::from(!right);
        }
    }
    Ok(verdict)
}
