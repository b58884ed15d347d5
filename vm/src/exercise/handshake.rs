//! A watcher at the other end of a line: a host that stops the guest and looks at its memory.

use super::track::{RoundReport, RoundStart, Watcher};
use crate::error::VmError;
use driver::dirty::{DirtySet, PAGE_SIZE};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Tells a line for each event and waits for the answer `go`.
///
/// Lines are JSON objects. `{"at":"ready",...}` is a [`RoundStart`]; `{"at":"done",...}` is a
/// [`RoundReport`] with `dirty`, a string of two hexadecimal digits for each eight pages, the first
/// page being bit 0 of the first byte.
#[derive(Debug)]
pub struct Handshake {
    path: PathBuf,
    tell: File,
    hear: BufReader<File>,
    first: u64,
    pages: u64,
}

impl Handshake {
    /// Over a terminal line in raw mode, a FIFO or a socket's file.
    ///
    /// # Errors
    /// [`VmError::File`].
    pub fn open(path: &Path) -> Result<Self, VmError> {
        let failed = |error| VmError::file("open the line", path)(error);
        let mut options = OpenOptions::new();
        let tell = options.read(true).write(true).open(path).map_err(failed)?;
        let hear = tell.try_clone().map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            tell,
            hear: BufReader::new(hear),
            first: 0,
            pages: 0,
        })
    }

    fn exchange(&mut self, at: &str, message: Value) -> Result<(), VmError> {
        let exchanged = (|| {
            let mut message = message;
            message["at"] = at.into();
            writeln!(self.tell, "{message}")?;
            let mut answer = String::new();
            self.hear.read_line(&mut answer)?;
            match answer.trim() {
                "go" => Ok(()),
                other => Err(io::Error::other(format!("expected go, got '{other}'"))),
            }
        })();
        exchanged.map_err(VmError::file("exchange words over", &self.path))
    }
}

impl Watcher for Handshake {
    fn ready(&mut self, start: &RoundStart) -> Result<(), VmError> {
        (self.first, self.pages) = (start.iova / PAGE_SIZE, start.pages);
        self.exchange("ready", json(start)?)
    }

    fn done(&mut self, report: &RoundReport, harvested: &DirtySet) -> Result<(), VmError> {
        let mut message = json(report)?;
        message["dirty"] = hex(harvested, self.first, self.pages).into();
        self.exchange("done", message)
    }
}

fn json(what: &impl serde::Serialize) -> Result<Value, VmError> {
    let failed = |error| VmError::system("write JSON")(io::Error::from(error));
    serde_json::to_value(what).map_err(failed)
}

fn hex(set: &DirtySet, first: u64, pages: u64) -> String {
    let bytes = (0..pages.div_ceil(8)).map(|byte| {
        (0..8_u8).fold(0_u8, |bits, bit| {
            let page = byte * 8 + u64::from(bit);
            bits | u8::from(page < pages && set.contains(first + page)) << bit
        })
    });
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_is_the_lowest_bit() {
        let mut set = DirtySet::new(100);
        for page in [20, 23, 28, 33] {
            set.insert(page);
        }
        assert_eq!(hex(&set, 20, 13), "0901");
        assert_eq!(hex(&set, 20, 14), "0921");
    }
}
