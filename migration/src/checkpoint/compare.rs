//! Comparison of what both sides put out: a pair whose secondary runs its copy of the guest makes a
//! checkpoint when the two put out different things, and needs none as long as they do not.
//!
//! What a guest's devices show, writes to disks and completions of requests, is told by each side as
//! an [`Output`]: which lane it is on, which on that lane since the last checkpoint or ever, and a
//! digest of all there is to it. The order between lanes says nothing, so two sides that run at
//! different speeds agree. The secondary sends what it sees on a connection of its own; what
//! the primary sees is held against it there. A difference asks for a checkpoint, and so does a side
//! that is too far ahead of the other: what cannot be compared counts as different.
//!
//! The format is a project rule: 8 bytes that name it, then 32 bytes an output, of which each field
//! is a big-endian u64: epoch, lane, index, digest. Epochs are counted from the first copy's, 0.

use super::link::Switch;
use super::message::Side;
use serde::Serialize;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What the connection starts with.
pub const MAGIC: [u8; 8] = *b"TDMKCMP1";
/// Bytes of an output.
const RECORD: usize = 32;
/// Outputs of one side that wait for the other's; one more asks for a checkpoint.
pub const AHEAD_MAX: usize = 1 << 16;
/// Bytes that wait to be sent; what comes when there are as many is left out.
const WAITING_MAX: usize = AHEAD_MAX * RECORD;

/// One thing that a guest's device showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Output {
    /// Where outputs have an order among each other, such as a block of a disk.
    pub lane: u64,
    /// Which on its lane.
    pub index: u64,
    /// What it was.
    pub digest: u64,
}

/// Is told of everything that a guest puts out.
pub trait Witness: Send + Sync + fmt::Debug {
    /// The guest is at a checkpoint, and stopped: what comes from now on comes after it.
    fn checkpoint(&self);
    /// Something came out.
    fn output(&self, output: Output);
}

/// A digest of words and bytes: what both sides compute must be the same whoever built them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// With a word more.
    #[must_use]
    pub fn word(self, word: u64) -> Self {
        let mut z = (self.0 ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(z ^ (z >> 31))
    }

    /// With bytes more, and their number.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let folded = words
            .iter()
            .fold(self, |sum, word| sum.word(u64::from_le_bytes(*word)));
        let folded = rest
            .iter()
            .fold(folded, |sum, byte| sum.word(u64::from(*byte)));
        folded.word(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
    }

    /// The digest.
    pub fn value(self) -> u64 {
        self.0
    }
}

/// What a comparison has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Outputs that both sides put out alike.
    pub alike: u64,
    /// Checkpoints asked for because an output differed.
    pub diverged: u64,
    /// Checkpoints asked for because one side was too far ahead of the other.
    pub ahead: u64,
    /// Outputs of the secondary that came after the checkpoint that undid them.
    pub late: u64,
}

/// Why nothing is compared any more. The checkpoints go on: their period bounds them.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The connection broke, or ended within an output.
    #[error("comparing outputs: the secondary's connection broke: {0}")]
    Lost(#[from] io::Error),
    /// It starts with something else.
    #[error("comparing outputs: expected {MAGIC:02x?} first, got {0:02x?}; is it a secondary?")]
    Magic([u8; 8]),
    /// It tells of a checkpoint that has not been made.
    #[error("comparing outputs: expected epoch {now} at most, got {got}")]
    Epoch {
        /// The primary's.
        now: u64,
        /// What came.
        got: u64,
    },
}

#[derive(Debug, Default)]
struct Open {
    /// None before the first copy.
    epoch: Option<u64>,
    /// Outputs of one side that the other has not put out yet.
    waiting: HashMap<(u64, u64), (Side, u64)>,
    /// A checkpoint has been asked for: what comes before it says nothing.
    asked: bool,
    figures: Compared,
}

/// The primary's end: holds the outputs of both sides against each other.
#[derive(Debug)]
pub struct Comparison {
    open: Mutex<Open>,
    switch: Switch,
}

impl Comparison {
    /// One that asks for checkpoints by this switch.
    pub fn new(switch: Switch) -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            switch,
        })
    }

    /// What has come of it so far.
    pub fn figures(&self) -> Compared {
        self.lock().figures
    }

    /// Takes the secondary's outputs, which are untrusted, until the connection ends between two.
    ///
    /// # Errors
    /// [`CompareError`].
    pub fn hear(&self, mut from: impl Read) -> Result<(), CompareError> {
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(CompareError::Magic(magic));
        }
        let mut from = io::BufReader::with_capacity(64 << 10, from);
        loop {
            if io::BufRead::fill_buf(&mut from)?.is_empty() {
                return Ok(());
            }
            let mut bytes = [0; RECORD];
            from.read_exact(&mut bytes)?;
            let (fields, _) = bytes.as_chunks::<8>();
            if let [epoch, lane, index, digest] = *fields {
                let [epoch, lane, index, digest] =
                    [epoch, lane, index, digest].map(u64::from_be_bytes);
                let output = Output {
                    lane,
                    index,
                    digest,
                };
                self.theirs(epoch, output)?;
            }
        }
    }

    fn theirs(&self, epoch: u64, output: Output) -> Result<(), CompareError> {
        let mut open = self.lock();
        let now = open.epoch.unwrap_or(0);
        if epoch > now {
            return Err(CompareError::Epoch { now, got: epoch });
        }
        if epoch < now {
            open.figures.late += 1;
            return Ok(());
        }
        self.take(open, Side::Secondary, output);
        Ok(())
    }

    fn take(&self, mut open: MutexGuard<'_, Open>, side: Side, output: Output) {
        if open.asked {
            return;
        }
        let place = open.waiting.entry((output.lane, output.index));
        let alike = match place {
            Entry::Vacant(place) => {
                place.insert((side, output.digest));
                None
            }
            Entry::Occupied(place) => {
                let (first, digest) = place.remove();
                Some(first != side && digest == output.digest)
            }
        };
        match alike {
            Some(true) => open.figures.alike += 1,
            Some(false) => {
                open.figures.diverged += 1;
                tracing::info!(?output, epoch = open.epoch, "outputs differ");
                self.ask(open);
            }
            None if open.waiting.len() > AHEAD_MAX => {
                open.figures.ahead += 1;
                self.ask(open);
            }
            None => {}
        }
    }

    fn ask(&self, mut open: MutexGuard<'_, Open>) {
        open.asked = true;
        open.waiting.clear();
        drop(open);
        self.switch.ask();
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness for Comparison {
    fn checkpoint(&self) {
        let mut open = self.lock();
        open.epoch = Some(open.epoch.map_or(0, |epoch| epoch + 1));
        open.waiting.clear();
        open.asked = false;
    }

    fn output(&self, output: Output) {
        let open = self.lock();
        if open.epoch.is_some() {
            self.take(open, Side::Primary, output);
        }
    }
}

#[derive(Debug, Default)]
struct Outbox {
    epoch: Option<u64>,
    bytes: Vec<u8>,
    left_out: u64,
    closed: bool,
}

/// The secondary's end: sends what its copy of the guest puts out. Never holds the copy up.
#[derive(Debug, Default)]
pub struct Reporter {
    outbox: Mutex<Outbox>,
    changed: Condvar,
}

impl Reporter {
    /// One that has nothing to tell yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Sends until it is [closed](Self::close).
    ///
    /// # Errors
    /// What the system says; then nothing is sent any more.
    pub fn run(&self, mut to: impl Write) -> io::Result<()> {
        let mut send = || {
            to.write_all(&MAGIC)?;
            while let Some(bytes) = self.next() {
                to.write_all(&bytes)?;
            }
            to.flush()
        };
        let sent = send();
        self.close();
        sent
    }

    /// Everything to send, once there is anything; none when it is closed.
    fn next(&self) -> Option<Vec<u8>> {
        let mut outbox = self.lock();
        while outbox.bytes.is_empty() && !outbox.closed {
            let changed = self.changed.wait(outbox);
            outbox = changed.unwrap_or_else(PoisonError::into_inner);
        }
        (!outbox.closed).then(|| std::mem::take(&mut outbox.bytes))
    }

    /// Nothing is to be told any more: the guest runs here, alone.
    pub fn close(&self) {
        let mut outbox = self.lock();
        outbox.closed = true;
        outbox.bytes = Vec::new();
        if outbox.left_out > 0 {
            tracing::info!(outbox.left_out, "outputs that could not be compared");
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness for Reporter {
    fn checkpoint(&self) {
        let mut outbox = self.lock();
        outbox.epoch = Some(outbox.epoch.map_or(0, |epoch| epoch + 1));
        // What has not been sent has never happened.
        outbox.bytes.clear();
    }

    fn output(&self, output: Output) {
        let mut outbox = self.lock();
        let Some(epoch) = outbox.epoch.filter(|_| !outbox.closed) else {
            return;
        };
        if outbox.bytes.len() >= WAITING_MAX {
            outbox.left_out += 1;
            return;
        }
        for field in [epoch, output.lane, output.index, output.digest] {
            outbox.bytes.extend(field.to_be_bytes());
        }
        self.changed.notify_all();
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
