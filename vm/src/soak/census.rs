//! What a process has.

use crate::error::VmError;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// What this process has at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Census {
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Mapped regions.
    pub mappings: u64,
    /// Bytes of memory in use.
    pub resident: u64,
}

fn read(path: &str) -> Result<String, VmError> {
    fs::read_to_string(path).map_err(VmError::file("read", Path::new(path)))
}

fn entries(path: &str) -> Result<u64, VmError> {
    let entries = fs::read_dir(path).map_err(VmError::file("list", Path::new(path)))?;
    Ok(entries.count() as u64)
}

impl Census {
    /// Counts.
    ///
    /// # Errors
    /// [`VmError::File`] if `/proc` cannot be read.
    pub fn take() -> Result<Self, VmError> {
        let status = read("/proc/self/status")?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok())
            .ok_or_else(|| VmError::shape("/proc/self/status", "a line VmRSS", "none"))?;
        Ok(Self {
            // One is of the listing itself, each time.
            descriptors: entries("/proc/self/fd")?,
            threads: entries("/proc/self/task")?,
            mappings: read("/proc/self/maps")?.lines().count() as u64,
            resident: kilobytes << 10,
        })
    }

    /// What there is more of than before, in words. `slack` bytes of memory are not counted.
    pub fn grown_from(&self, before: &Self, slack: u64) -> Vec<String> {
        let counted = [
            ("descriptors", self.descriptors, before.descriptors),
            ("threads", self.threads, before.threads),
            (
                "bytes of memory",
                self.resident,
                before.resident.saturating_add(slack),
            ),
        ];
        counted
            .into_iter()
            .filter(|(_, now, before)| now > before)
            .map(|(what, now, before)| format!("{now} {what}, at most {before} expected"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_kept_descriptor_is_seen() {
        let before = Census::take().unwrap();
        // More than other tests of this process open and close meanwhile.
        let kept: Vec<_> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        let now = Census::take().unwrap();
        let grown = now.grown_from(&before, u64::MAX);
        assert!(grown.iter().any(|line| line.contains("descriptors")));
        drop(kept);
    }

    #[test]
    fn what_is_the_same_has_not_grown() {
        let one = Census {
            descriptors: 3,
            threads: 4,
            mappings: 5,
            resident: 1 << 20,
        };
        assert!(one.grown_from(&one, 0).is_empty());
        let more = Census {
            resident: 2 << 20,
            ..one
        };
        assert_eq!(more.grown_from(&one, 0).len(), 1);
        assert!(more.grown_from(&one, 1 << 20).is_empty());
    }
}
