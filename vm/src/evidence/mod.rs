//! Evidence that reaches the judge apart from the stream, and the judge.
//!
//! Each side leaves files in a folder; nothing in them came through the stream or through a
//! tracker.

mod disk;
mod marks;
mod memory;
mod requests;

pub use disk::{DiskVerdict, format_disk, is_ours, judge_disk};
pub(crate) use marks::Marks;
pub use marks::{Mark, read_marks};
pub use memory::{MemoryVerdict, compare_memory, dump_memory};
pub use requests::{LastWrites, RequestVerdict, judge_requests};

use crate::error::VmError;
use crate::incoming::After;
use std::fs::File;
use std::path::{Path, PathBuf};

fn after_path(folder: &Path) -> PathBuf {
    folder.join("destination.json")
}

/// Leaves what became of the guest at the destination.
pub(crate) fn leave_after(folder: &Path, after: &After) -> Result<(), VmError> {
    let path = after_path(folder);
    let written = std::fs::write(&path, crate::guest::encode("what came after", after)?);
    written.map_err(VmError::file("write", &path))
}

/// Makes `folder` ready for a run: there, and without what a destination of an earlier run left.
///
/// # Errors
/// [`VmError::File`].
pub fn prepare(folder: &Path) -> Result<(), VmError> {
    std::fs::create_dir_all(folder).map_err(VmError::file("make the folder", folder))?;
    for path in [after_path(folder), memory::dump_path(folder)] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(VmError::file("remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What became of the guest at the destination.
///
/// # Errors
/// [`VmError::File`] if the destination left nothing.
pub fn read_after(folder: &Path) -> Result<After, VmError> {
    let path = after_path(folder);
    let bytes = std::fs::read(&path).map_err(VmError::file("read", &path))?;
    crate::guest::decode("what came after", &bytes)
}

fn open(path: &Path) -> Result<File, VmError> {
    File::open(path).map_err(VmError::file("open", path))
}
