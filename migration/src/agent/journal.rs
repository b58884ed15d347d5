//! What an agent has promised, on disk.
//!
//! One file for each device. It is written beside the old one, flushed, and put in its place before the
//! answer goes out: whoever was answered finds the answer kept after a kill or a loss of power.

use crate::agent::DeviceConfig;
use crate::lock::Layers;
use rustix::fs::fsync;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Longest file that is taken for a journal: far above what the limits of a configuration allow.
const LENGTH_MAX: u64 = 1 << 20;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refuses.
    #[error("{}: cannot {doing}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// It is no journal.
    #[error("{}: expected the journal of a device, got {why}; move the file away to begin anew, with the device unlocked", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Where the layers of one device are kept.
#[derive(Debug)]
pub struct Journal {
    folder: File,
    path: PathBuf,
    temporary: PathBuf,
}

impl Journal {
    /// That of a device, in a folder that is there. The device's name is a file name.
    pub fn open(folder: &Path, device: &str) -> Result<Self, JournalError> {
        Ok(Self {
            folder: File::open(folder).map_err(failed(folder, "open the folder"))?,
            path: folder.join(format!("{device}.json")),
            temporary: folder.join(format!("{device}.tmp")),
        })
    }

    /// What was kept last; `None` if nothing ever was.
    pub fn read(&self) -> Result<Option<Layers<DeviceConfig>>, JournalError> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed(&self.path, "open it"))?,
        };
        let mut text = Vec::new();
        let read = file.take(LENGTH_MAX + 1).read_to_end(&mut text);
        read.map_err(failed(&self.path, "read it"))?;
        let damaged = |why: String| JournalError::Damaged {
            path: self.path.clone(),
            why,
        };
        if text.len() as u64 > LENGTH_MAX {
            return Err(damaged(format!("more than {LENGTH_MAX} octets")));
        }
        let layers = serde_json::from_slice(&text);
        layers.map(Some).map_err(|error| damaged(error.to_string()))
    }

    /// Keeps this in place of what was kept.
    pub fn write(&self, layers: &Layers<DeviceConfig>) -> Result<(), JournalError> {
        let text = serde_json::to_vec(layers).map_err(|error| JournalError::Damaged {
            path: self.path.clone(),
            why: error.to_string(),
        })?;
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true);
        options
            .open(&self.temporary)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_data()
            })
            .map_err(failed(&self.temporary, "write it"))?;
        fs::rename(&self.temporary, &self.path).map_err(failed(&self.path, "replace it"))?;
        fsync(&self.folder)
            .map_err(io::Error::from)
            .map_err(failed(&self.path, "make its replacement durable"))
    }
}

fn failed(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |error| JournalError::Io { path, doing, error }
}
