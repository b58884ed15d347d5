//! A record of every map and unmap, for those who compare memory behind a vIOMMU: the tracker
//! speaks of IOVAs, a memory file is compared by offset, and only the server has seen both.

use super::served::Map;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use vm_memory::Permissions;

/// JSON lines, each written before the message is answered.
///
/// `{"op":"map","iova":I,"size":S,"offset":O,"perm":"rw","dev":D,"ino":N}` maps `S` bytes at IOVA
/// `I` to offset `O` of the memory file with that device and inode; without memory, `offset`, `dev`
/// and `ino` are null. `{"op":"unmap","iova":I,"size":S}` removes what there is in a range, which
/// may wrap around the address space. `{"op":"end"}`: the client has gone, and all maps with it.
/// All numbers are decimal.
#[derive(Debug)]
pub struct DmaLog {
    file: File,
    failed: bool,
}

impl DmaLog {
    /// A log in a new file, or in place of what an old one holds.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path)?,
            failed: false,
        })
    }

    pub(super) fn map(&mut self, map: &Map) {
        let Map { iova, size, .. } = map;
        let perm = match map.perm {
            Permissions::ReadWrite => "rw",
            Permissions::Read => "r",
            Permissions::Write => "w",
            Permissions::No => "",
        };
        let memory = map.memory.as_ref();
        let (offset, dev, ino) = match memory.map(|(file, offset)| (offset, file.metadata())) {
            Some((offset, Ok(meta))) => (
                offset.to_string(),
                meta.dev().to_string(),
                meta.ino().to_string(),
            ),
            _ => ("null".to_owned(), "null".to_owned(), "null".to_owned()),
        };
        self.line(&format!(
            "{{\"op\":\"map\",\"iova\":{iova},\"size\":{size},\"offset\":{offset},\
             \"perm\":\"{perm}\",\"dev\":{dev},\"ino\":{ino}}}\n"
        ));
    }

    pub(super) fn unmap(&mut self, iova: u64, size: u64) {
        self.line(&format!(
            "{{\"op\":\"unmap\",\"iova\":{iova},\"size\":{size}}}\n"
        ));
    }

    pub(super) fn end(&mut self) {
        self.line("{\"op\":\"end\"}\n");
    }

    /// One write for each line: nothing is lost with the process.
    fn line(&mut self, line: &str) {
        if let Err(error) = self.file.write_all(line.as_bytes())
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::error!(%error, "the DMA log is incomplete from here on");
        }
    }
}
