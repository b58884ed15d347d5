//! The guest's initramfs: a cpio archive in the kernel's `newc` form.
//!
//! Written here and not by `cpio`, which a bare host lacks: files keep their places on the host
//! instead of being staged, and a device node needs no root. Left uncompressed, since
//! unpacking costs an emulated CPU more than reading does.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// What is at one path of the archive.
enum Entry {
    Directory {
        mode: u32,
    },
    Device {
        major: u32,
        minor: u32,
    },
    Bytes {
        kind: u32,
        mode: u32,
        content: Vec<u8>,
    },
    File {
        source: PathBuf,
    },
}

/// An archive before it is written. Sorted by path, so that a folder precedes what is in it.
#[derive(Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// A folder.
    pub fn dir(&mut self, path: &str) {
        self.insert(path, Entry::Directory { mode: 0o755 });
    }

    /// A character device by major and minor number.
    pub fn device(&mut self, path: &str, (major, minor): (u32, u32)) {
        self.insert(path, Entry::Device { major, minor });
    }

    /// An executable text.
    pub fn text(&mut self, path: &str, content: &str) {
        self.bytes(path, content.into());
    }

    /// An executable file with the given content.
    pub fn bytes(&mut self, path: &str, content: Vec<u8>) {
        self.insert(
            path,
            Entry::Bytes {
                kind: REGULAR,
                mode: 0o755,
                content,
            },
        );
    }

    /// A copy of a host's file, with its permissions. It is read when the archive is written.
    pub fn file(&mut self, path: &str, source: PathBuf) {
        self.insert(path, Entry::File { source });
    }

    /// A copy of a host's folder: folders, files and symbolic links, with their permissions.
    pub fn tree(&mut self, path: &str, source: &Path) -> Result<()> {
        let mode = fs::symlink_metadata(source)?.permissions().mode() & 0o7777;
        self.insert(path, Entry::Directory { mode });
        let entries =
            fs::read_dir(source).with_context(|| format!("cannot list {}", source.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name
                .to_str()
                .with_context(|| format!("{name:?} is not UTF-8"))?;
            let path = format!("{path}/{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.tree(&path, &entry.path())?;
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path())?
                    .into_os_string()
                    .into_encoded_bytes();
                self.insert(
                    &path,
                    Entry::Bytes {
                        kind: SYMLINK,
                        mode: 0o777,
                        content: target,
                    },
                );
            } else if kind.is_file() {
                self.file(&path, entry.path());
            } else {
                bail!(
                    "{} is no folder, file or symbolic link",
                    entry.path().display()
                );
            }
        }
        Ok(())
    }

    /// Writes the archive.
    pub fn write(&self, output: impl Write) -> Result<()> {
        let mut writer = Writer {
            output,
            written: 0,
            inode: 1,
        };
        for (path, entry) in &self.entries {
            match entry {
                Entry::Directory { mode } => {
                    writer.member(path, DIRECTORY | mode, (0, 0), 0, io::empty())?;
                }
                Entry::Device { major, minor } => {
                    let mode = CHARACTER_DEVICE | 0o600;
                    writer.member(path, mode, (*major, *minor), 0, io::empty())?;
                }
                Entry::Bytes {
                    kind,
                    mode,
                    content,
                } => {
                    let size = content.len() as u64;
                    writer.member(path, kind | mode, (0, 0), size, content.as_slice())?;
                }
                Entry::File { source } => {
                    let file = fs::File::open(source)
                        .with_context(|| format!("cannot open {}", source.display()))?;
                    let metadata = file.metadata()?;
                    let mode = REGULAR | (metadata.permissions().mode() & 0o7777);
                    writer.member(path, mode, (0, 0), metadata.len(), file)?;
                }
            }
        }
        writer.member("TRAILER!!!", 0, (0, 0), 0, io::empty())?;
        writer.output.flush()?;
        Ok(())
    }

    /// Adds an entry and the folders above it.
    fn insert(&mut self, path: &str, entry: Entry) {
        let path = path.trim_start_matches('/');
        for (slash, _) in path.match_indices('/') {
            let parent = path[..slash].to_owned();
            self.entries
                .entry(parent)
                .or_insert(Entry::Directory { mode: 0o755 });
        }
        self.entries.insert(path.to_owned(), entry);
    }
}

struct Writer<W> {
    output: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Writer<W> {
    fn member(
        &mut self,
        path: &str,
        mode: u32,
        (major, minor): (u32, u32),
        size: u64,
        content: impl Read,
    ) -> Result<()> {
        let size = u32::try_from(size).with_context(|| format!("{path} is too long for cpio"))?;
        let name_size = u32::try_from(path.len() + 1)?;
        // inode, mode, uid, gid, links, mtime, size, device (2), device of a node (2), name, check
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0,
        ];
        self.inode += 1;
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        let copied = io::copy(&mut content.take(u64::from(size)), &mut self.output)?;
        self.written += copied;
        if copied != u64::from(size) {
            bail!("{path} shrank while it was read");
        }
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Header and content start at multiples of 4.
    fn pad(&mut self) -> Result<()> {
        while !self.written.is_multiple_of(4) {
            self.put(&[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_aligned_and_folders_come_first() -> Result<()> {
        let mut archive = Archive::default();
        archive.text("/a/b/c", "12345");
        archive.device("/dev/console", (5, 1));
        let mut bytes = Vec::new();
        archive.write(&mut bytes)?;
        assert_eq!(bytes.len() % 4, 0);

        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let header = std::str::from_utf8(&bytes[at..at + 110])?;
            assert!(header.starts_with("070701"), "{header}");
            let field =
                |index: usize| usize::from_str_radix(&header[6 + 8 * index..14 + 8 * index], 16);
            let name_end = at + 110 + field(11)?;
            names.push(String::from_utf8(bytes[at + 110..name_end - 1].to_vec())?);
            let content = name_end.next_multiple_of(4);
            if names.last().is_some_and(|name| name == "a/b/c") {
                assert_eq!(&bytes[content..content + field(6)?], b"12345");
            }
            at = (content + field(6)?).next_multiple_of(4);
        }
        assert_eq!(
            names,
            ["a", "a/b", "a/b/c", "dev", "dev/console", "TRAILER!!!"]
        );
        Ok(())
    }
}
