//! Where in the guest's memory an IOVA lies, by the maps that the server saw.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

const PAGE: u64 = 4096;

/// A line of the server's log; see `DmaLog` in `device`.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Line {
    Map {
        iova: u64,
        size: u64,
        offset: Option<u64>,
        perm: String,
        ino: Option<u64>,
    },
    Unmap {
        iova: u64,
        size: u64,
    },
    End,
}

/// All that a server saw so far.
pub struct Maps(Vec<Line>);

impl Maps {
    /// Reads a log. A line that is being written is not yet true.
    pub fn read(log: &Path) -> Result<Self> {
        let text = fs::read_to_string(log)
            .with_context(|| format!("cannot read the maps in {}", log.display()))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole
            .lines()
            .map(|line| {
                serde_json::from_str(line).with_context(|| format!("not a map's line: {line}"))
            })
            .collect::<Result<_>>()?;
        Ok(Self(lines))
    }

    /// The offset in the memory file `ino` of a page that the device may write.
    pub fn offset(&self, page: u64, ino: u64) -> Result<u64> {
        // The last word on the page counts. Unmaps may wrap around the address space.
        let within = |iova: u64, size: u64| {
            let (page, iova) = (u128::from(page), u128::from(iova));
            page >= iova && page + u128::from(PAGE) <= iova + u128::from(size)
        };
        let said = self.0.iter().rev().find(|line| match line {
            Line::Map { iova, size, .. } | Line::Unmap { iova, size } => within(*iova, *size),
            Line::End => true,
        });
        let Some(Line::Map {
            iova,
            offset: Some(offset),
            perm,
            ino: Some(file),
            ..
        }) = said
        else {
            anyhow::bail!("the server saw no map of IOVA {page:#x}");
        };
        ensure!(
            perm.contains('w') && *file == ino,
            "IOVA {page:#x} maps to file {file} with {perm:?}, the guest's memory is {ino}"
        );
        Ok(offset + (page - iova))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts() {
        let log = "\
{\"op\":\"map\",\"iova\":0,\"size\":1048576,\"offset\":0,\"perm\":\"rw\",\"dev\":1,\"ino\":5}
{\"op\":\"unmap\",\"iova\":4096,\"size\":18446744073709551615}
{\"op\":\"map\",\"iova\":8192,\"size\":8192,\"offset\":40960,\"perm\":\"rw\",\"dev\":1,\"ino\":5}
{\"op\":\"map\",\"iova\":65536,\"size\":4096,\"offset\":0,\"perm\":\"r\",\"dev\":1,\"ino\":5}
{\"op\":\"map\",\"iova\":8192,\"si";
        let maps = Maps::parse(log).expect("all whole lines are lines");
        assert_eq!(maps.offset(0, 5).ok(), Some(0));
        assert_eq!(maps.offset(12288, 5).ok(), Some(45056));
        assert!(maps.offset(4096, 5).is_err(), "unmapped");
        assert!(maps.offset(0, 6).is_err(), "another file");
        assert!(maps.offset(65536, 5).is_err(), "not for writing");
    }
}
