//! Every page of both memories, byte by byte.

use crate::error::VmError;
use crate::guest::PageClass;
use driver::dirty::PAGE_SIZE;
use driver::memory::DmaMemory;
use serde::Serialize;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_SIZE == 4096);
const CHUNK: usize = 1 << 20;
/// How many differing pages are named.
const EXAMPLES: usize = 8;

pub(super) fn dump_path(folder: &Path) -> PathBuf {
    folder.join("destination.ram")
}

/// What the comparison found. Pages are of 4 KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryVerdict {
    /// Pages compared: all of them.
    pub compared: u64,
    /// Differing pages that a device writes: the tracker lost them.
    pub lost_device: u64,
    /// Differing pages that only the CPU writes: CpuLog lost them.
    pub lost_cpu: u64,
    /// Differing pages that nobody writes.
    pub lost_unused: u64,
    /// Numbers of the first differing pages.
    pub examples: Vec<u64>,
}

impl MemoryVerdict {
    /// Whether both memories are the same.
    pub fn same(&self) -> bool {
        self.lost_device + self.lost_cpu + self.lost_unused == 0
    }
}

/// Leaves the memory in `folder`, as one file.
///
/// # Errors
/// [`VmError::File`].
pub fn dump_memory(memory: &DmaMemory, folder: &Path) -> Result<(), VmError> {
    let path = dump_path(folder);
    let dump = || VmError::file("write the memory to", &path);
    let mut file = File::create(&path).map_err(dump())?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < memory.len() {
        let left = usize::try_from(memory.len() - at).unwrap_or(CHUNK);
        let part = buffer.get_mut(..left.min(CHUNK)).unwrap_or_default();
        memory.read(at, part)?;
        file.write_all(part).map_err(dump())?;
        at += u64::try_from(part.len()).unwrap_or(u64::MAX);
    }
    Ok(())
}

/// Compares a frozen memory with what the other side left in `folder`. `classes` has one entry
/// for each page.
///
/// # Errors
/// [`VmError::File`] if there is no dump, or one of another size.
pub fn compare_memory(
    memory: &DmaMemory,
    classes: &[PageClass],
    folder: &Path,
) -> Result<MemoryVerdict, VmError> {
    let path = dump_path(folder);
    let mut file = super::open(&path)?;
    let read = || VmError::file("read the memory from", &path);
    let size = file.metadata().map_err(read())?.len();
    if size != memory.len() {
        return Err(VmError::shape(
            "dump of the memory",
            format!("{} bytes", memory.len()),
            size,
        ));
    }
    let mut verdict = MemoryVerdict::default();
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut classes = classes.iter();
    let mut at = 0;
    while at < memory.len() {
        let left = usize::try_from(memory.len() - at)
            .unwrap_or(CHUNK)
            .min(CHUNK);
        let (Some(ours), Some(theirs)) = (ours.get_mut(..left), theirs.get_mut(..left)) else {
            break;
        };
        memory.read(at, ours)?;
        file.read_exact(theirs).map_err(read())?;
        let pages = ours.chunks(PAGE_BYTES).zip(theirs.chunks(PAGE_BYTES));
        for (number, (a, b)) in (at / PAGE_SIZE..).zip(pages) {
            let class = classes.next().copied().unwrap_or(PageClass::Unused);
            verdict.compared += 1;
            if a == b {
                continue;
            }
            match class {
                PageClass::Device => verdict.lost_device += 1,
                PageClass::Cpu => verdict.lost_cpu += 1,
                PageClass::Unused => verdict.lost_unused += 1,
            }
            if verdict.examples.len() < EXAMPLES {
                verdict.examples.push(number);
            }
        }
        at += u64::try_from(left).unwrap_or(u64::MAX);
    }
    Ok(verdict)
}
