//! A disk whose writes wait until a secondary knows of them.
//!
//! While it holds, writes stay in memory, by blocks of 4 KiB: reads see them, the storage does not.
//! Two generations are kept: what was written since the last checkpoint, and what that checkpoint
//! took along, which goes to the storage once the secondary has loaded it.
//!
//! A FLUSH, and a write for which there is no room, wait inside of the disk. A device cannot be
//! suspended so. But the guest's CPUs are stopped before its devices are, and see nothing until they
//! run again: so from that [`boundary`](HeldDisk::boundary) on whatever waits is let through, and
//! made true before the CPUs go on, when the checkpoint is whole.

use device::blk::Disk;
use driver::dirty::PAGE_SIZE;
use migration::checkpoint::{Digest, Output, Witness};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of a block.
const BLOCK: usize = 4096;
const _: () = assert!(PAGE_SIZE == 4096);
const SECTOR: usize = 512;
/// Sectors of a block.
const SECTORS: usize = BLOCK / SECTOR;
/// Bytes before each run of written sectors in an encoding: u64 offset, u64 length.
const HEAD: usize = 16;

/// What is to be done when room or a checkpoint is wanted.
type Ask = Arc<dyn Fn() + Send + Sync>;

/// A disk that can hold its writes back. Clones are the same disk.
#[derive(Clone)]
pub struct HeldDisk(Arc<Inner>);

impl fmt::Debug for HeldDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeldDisk").field(&self.0.disk).finish()
    }
}

struct Inner {
    disk: Box<dyn Disk>,
    /// Most bytes of blocks that a running guest may have held.
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// Nothing is held.
    #[default]
    Through,
    /// Writes are held, and bounded.
    Holding,
    /// The CPUs are stopped: nothing waits.
    Boundary,
}

#[derive(Default)]
struct State {
    mode: Mode,
    /// Since the last checkpoint.
    open: BTreeMap<u64, Block>,
    /// What the last checkpoint took along.
    sealed: BTreeMap<u64, Block>,
    /// A FLUSH was let through at the boundary.
    flush_owed: bool,
    ask: Option<Ask>,
    /// Is told of each write that is held, on a lane for each block.
    told: Option<Told>,
}

/// Who is told of writes.
struct Told {
    witness: Arc<dyn Witness>,
    /// Lane of block 0.
    lane: u64,
    /// Writes to each block since the last checkpoint.
    writes: HashMap<u64, u64>,
}

/// Sectors of a block that were written.
#[derive(Clone)]
struct Block {
    written: [bool; SECTORS],
    data: Box<[u8; BLOCK]>,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            written: [false; SECTORS],
            data: Box::new([0; BLOCK]),
        }
    }
}

impl Block {
    /// The written sectors as ranges of bytes, adjacent ones as one.
    fn runs(&self) -> Vec<std::ops::Range<usize>> {
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        for (sector, _) in self.written.iter().enumerate().filter(|(_, w)| **w) {
            let (start, end) = (sector * SECTOR, (sector + 1) * SECTOR);
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        runs
    }

    fn put(&mut self, within: usize, data: &[u8]) {
        if let Some(into) = self.data.get_mut(within..within + data.len()) {
            into.copy_from_slice(data);
        }
        let sectors = within / SECTOR..(within + data.len()).div_ceil(SECTOR);
        for written in self.written.get_mut(sectors).unwrap_or_default() {
            *written = true;
        }
    }

    fn over(&mut self, newer: &Self) {
        for run in newer.runs() {
            self.put(run.start, newer.data.get(run.clone()).unwrap_or_default());
        }
    }
}

impl State {
    fn count_anew(&mut self) {
        if let Some(told) = &mut self.told {
            told.writes.clear();
        }
    }

    fn tell(&mut self, block: u64, within: usize, data: &[u8]) {
        let Some(told) = &mut self.told else { return };
        let index = told.writes.entry(block).or_default();
        *index += 1;
        let place = u64::try_from(within).unwrap_or(u64::MAX);
        told.witness.output(Output {
            lane: told.lane + block,
            index: *index,
            digest: Digest::default().word(place).bytes(data).value(),
        });
    }
}

impl HeldDisk {
    /// Over `disk`, through at first; a running guest may have about `limit` bytes held.
    pub fn new(disk: Box<dyn Disk>, limit: u64) -> Self {
        Self(Arc::new(Inner {
            disk,
            limit: usize::try_from(limit).unwrap_or(usize::MAX).max(BLOCK),
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to do when a checkpoint is wanted at once: a FLUSH waits, or there is no room.
    pub fn on_pressure(&self, ask: impl Fn() + Send + Sync + 'static) {
        self.lock().ask = Some(Arc::new(ask));
    }

    /// Tells somebody of each write that is held from now on, block by block; block 0 is `lane`, and
    /// the others follow.
    pub fn tell(&self, witness: Option<Arc<dyn Witness>>, lane: u64) {
        self.lock().told = witness.map(|witness| Told {
            witness,
            lane,
            writes: HashMap::new(),
        });
    }

    /// Bytes of blocks that are held.
    pub fn held(&self) -> u64 {
        let state = self.lock();
        let blocks = state.open.len() + state.sealed.len();
        u64::try_from(blocks * BLOCK).unwrap_or(u64::MAX)
    }

    /// Holds writes from now on. What is held already stays held: from then on the storage can be
    /// copied.
    pub fn hold(&self) {
        let mut state = self.lock();
        if state.mode == Mode::Through {
            state.mode = Mode::Holding;
        }
    }

    /// The guest's CPUs are stopped, its devices are about to be: whatever waits goes through.
    pub fn boundary(&self) {
        let mut state = self.lock();
        if state.mode == Mode::Holding {
            state.mode = Mode::Boundary;
            self.0.changed.notify_all();
        }
    }

    /// The CPUs are about to run again.
    pub fn go_on(&self) {
        let mut state = self.lock();
        if state.mode == Mode::Boundary {
            state.mode = Mode::Holding;
        }
    }

    /// Takes what is held along with a checkpoint, as bytes; none if nothing holds. It stays held.
    pub fn seal(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        if state.mode == Mode::Through {
            return None;
        }
        state.count_anew();
        for (number, newer) in std::mem::take(&mut state.open) {
            match state.sealed.entry(number) {
                Entry::Vacant(free) => drop(free.insert(newer)),
                Entry::Occupied(mut older) => older.get_mut().over(&newer),
            }
        }
        // Exactly: the guest stands still, and a buffer that grows is copied.
        let runs = state.sealed.values().flat_map(Block::runs);
        let mut bytes = Vec::with_capacity(runs.map(|run| HEAD + run.len()).sum());
        for (number, block) in &state.sealed {
            for run in block.runs() {
                let start = u64::try_from(run.start).unwrap_or(0);
                let len = u64::try_from(run.len()).unwrap_or(0);
                bytes.extend((number * PAGE_SIZE + start).to_le_bytes());
                bytes.extend(len.to_le_bytes());
                bytes.extend(block.data.get(run).unwrap_or_default());
            }
        }
        Some(bytes)
    }

    /// Whether a FLUSH was let through that the guest is to see complete when its CPUs run again.
    pub fn owes(&self) -> bool {
        self.lock().flush_owed
    }

    /// The checkpoint is whole. If a FLUSH waited for it, what it took along goes to the storage and is
    /// durable; else that can come later.
    ///
    /// # Errors
    /// What the storage says; everything is still held then.
    pub fn make_true(&self) -> io::Result<()> {
        let mut state = self.lock();
        if state.flush_owed {
            self.write_out(&mut state, false)?;
        }
        Ok(())
    }

    /// What the last whole checkpoint took along goes to the storage, block by block, while the guest
    /// may run.
    ///
    /// # Errors
    /// What the storage says; what has not been written is still held then.
    pub fn release(&self) -> io::Result<()> {
        loop {
            // A block at a time: who reads it sees it here or there.
            let mut state = self.lock();
            let Some((number, block)) = state.sealed.pop_first() else {
                // A FLUSH with nothing behind it need not wait for another checkpoint.
                self.0.changed.notify_all();
                return Ok(());
            };
            if let Err(error) = self.write_block(number, &block) {
                state.sealed.insert(number, block);
                return Err(error);
            }
        }
    }

    /// There is no secondary: everything goes to the storage, and nothing is held any more.
    ///
    /// # Errors
    /// As [`make_true`](Self::make_true).
    pub fn let_out(&self) -> io::Result<()> {
        let mut state = self.lock();
        self.write_out(&mut state, true)?;
        state.mode = Mode::Through;
        self.0.changed.notify_all();
        Ok(())
    }

    /// Forgets what is held: the guest goes back to where it was before.
    pub fn forget(&self) {
        let mut state = self.lock();
        state.open.clear();
        state.sealed.clear();
        state.flush_owed = false;
        state.count_anew();
    }

    /// Writes what another one [sealed](Self::seal) to the storage. The bytes come from outside.
    ///
    /// # Errors
    /// `InvalidData` for bytes that are no writes to this disk, and then some of them may have been
    /// made; what the storage says.
    pub fn apply(&self, bytes: &[u8]) -> io::Result<()> {
        let size = self.0.disk.size()?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (offset, data, more) = run_of(rest, size)?;
            write_all(&*self.0.disk, data, offset)?;
            rest = more;
        }
        Ok(())
    }

    /// Whether bytes are what another one sealed, for a disk of this size.
    ///
    /// # Errors
    /// `InvalidData` if not.
    pub fn check(&self, bytes: &[u8]) -> io::Result<()> {
        let size = self.0.disk.size()?;
        let mut rest = bytes;
        while !rest.is_empty() {
            (_, _, rest) = run_of(rest, size)?;
        }
        Ok(())
    }

    fn write_block(&self, number: u64, block: &Block) -> io::Result<()> {
        block.runs().into_iter().try_for_each(|run| {
            let start = u64::try_from(run.start).unwrap_or(0);
            let data = block.data.get(run).unwrap_or_default();
            write_all(&*self.0.disk, data, number * PAGE_SIZE + start)
        })
    }

    fn write_out(&self, state: &mut State, all: bool) -> io::Result<()> {
        let write = |blocks: &BTreeMap<u64, Block>| {
            let mut blocks = blocks.iter();
            blocks.try_for_each(|(number, block)| self.write_block(*number, block))
        };
        write(&state.sealed)?;
        if all {
            write(&state.open)?;
        }
        if state.flush_owed {
            self.0.disk.flush()?;
            state.flush_owed = false;
        }
        state.sealed.clear();
        if all {
            state.open.clear();
        }
        self.0.changed.notify_all();
        Ok(())
    }

    /// Waits until nothing has to wait any more; asks for a checkpoint, which brings that about.
    fn wait_while(&self, waits: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while waits(&state) {
            if let Some(ask) = state.ask.clone() {
                drop(state);
                ask();
                state = self.lock();
                if !waits(&state) {
                    break;
                }
            }
            let changed = self.0.changed.wait(state);
            state = changed.unwrap_or_else(PoisonError::into_inner);
        }
        state
    }
}

/// The first run of encoded writes: its offset, its data, and what follows it.
fn run_of(bytes: &[u8], size: u64) -> io::Result<(u64, &[u8], &[u8])> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let (head, rest) = bytes
        .split_first_chunk::<HEAD>()
        .ok_or_else(|| bad("half a head of a held write"))?;
    let head = u128::from_le_bytes(*head);
    let offset = u64::try_from(head & u128::from(u64::MAX)).unwrap_or(u64::MAX);
    let len = u64::try_from(head >> 64).unwrap_or(u64::MAX);
    let end = offset.checked_add(len).filter(|end| *end <= size);
    let data = usize::try_from(len)
        .ok()
        .and_then(|len| rest.split_at_checked(len));
    match (end, data) {
        (Some(_), Some((data, rest))) if !data.is_empty() => Ok((offset, data, rest)),
        _ => Err(bad(&format!(
            "a held write of {len} bytes at {offset} to a disk of {size}"
        ))),
    }
}

fn write_all(disk: &dyn Disk, mut data: &[u8], mut offset: u64) -> io::Result<()> {
    while !data.is_empty() {
        match disk.pwrite(data, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                data = data.get(count..).unwrap_or_default();
                offset = offset.saturating_add(u64::try_from(count).unwrap_or(0));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The parts of a range of bytes that lie in one block each: block, offset within, offset of the
/// range, length.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset.checked_add(u64::try_from(done).ok()?)?;
        let within = usize::try_from(at % PAGE_SIZE).ok()?;
        let now = (BLOCK - within).min(len - done);
        let part = (at / PAGE_SIZE, within, done, now);
        done += now;
        (now > 0).then_some(part)
    })
}

impl Disk for HeldDisk {
    fn size(&self) -> io::Result<u64> {
        self.0.disk.size()
    }

    fn pread(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        // Under the lock: what is written out between the two looks would be in neither.
        let state = self.lock();
        let count = self.0.disk.pread(into, offset)?;
        let into = into.get_mut(..count).unwrap_or_default();
        for (number, within, from, len) in parts(offset, count) {
            for blocks in [&state.sealed, &state.open] {
                let Some(block) = blocks.get(&number) else {
                    continue;
                };
                for run in block.runs() {
                    let (start, end) = (run.start.max(within), run.end.min(within + len));
                    if start < end {
                        let to = from + start - within..from + end - within;
                        let held = block.data.get(start..end).unwrap_or_default();
                        into.get_mut(to).unwrap_or_default().copy_from_slice(held);
                    }
                }
            }
        }
        Ok(count)
    }

    fn pwrite(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let full = |s: &State| s.mode == Mode::Holding && s.open.len() * BLOCK >= self.0.limit;
        let mut state = self.wait_while(full);
        if state.mode == Mode::Through {
            drop(state);
            return self.0.disk.pwrite(data, offset);
        }
        let sectors = data.len().is_multiple_of(SECTOR) && offset.is_multiple_of(512);
        let end = offset.checked_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        let size = self.0.disk.size()?;
        if !sectors || end.is_none_or(|end| end > size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (number, within, from, len) in parts(offset, data.len()) {
            let data = data.get(from..from + len).unwrap_or_default();
            state.tell(number, within, data);
            state.open.entry(number).or_default().put(within, data);
        }
        Ok(data.len())
    }

    fn flush(&self) -> io::Result<()> {
        let waits =
            |s: &State| s.mode == Mode::Holding && !(s.open.is_empty() && s.sealed.is_empty());
        let mut state = self.wait_while(waits);
        if state.mode == Mode::Boundary {
            state.flush_owed = true;
            return Ok(());
        }
        drop(state);
        self.0.disk.flush()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.lock().mode {
            Mode::Through => self.0.disk.punch(offset, len),
            // Done by writing zeroes, or not at all, as the device has it.
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.lock().mode {
            Mode::Through => self.0.disk.zero(offset, len),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
