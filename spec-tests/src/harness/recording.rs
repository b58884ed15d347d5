//! Page-write recording by hand: what is said to the owner of a member, and what it answers.

use super::admin::Answer;
use super::outcome::{Stop, arose};
use super::parts::Owned;
use crate::constants::admin::ANSWER;
use crate::constants::records::{CAP_QUERY, COUNT, MORE, OVERFLOW, READ, START, STOP};

/// Everything that an IOVA of a case can be.
pub const EVERYWHERE: (u64, u64) = (0, 1 << 46);
/// Bytes of an answer that holds more records than a case makes.
const ROOM: usize = 16 << 10;
/// Reads that are enough for all records of a case, whatever a device gives at once.
const READS_MAX: usize = 4096;

/// What a device says that it can record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bit n: pages of 2^n bytes.
    pub page_sizes: u64,
    /// Most ranges of one START.
    pub ranges: u32,
    /// Records that it surely holds.
    pub records: u32,
}

/// What a READ returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Addresses of pages, in the order in which they came.
    pub pages: Vec<u64>,
    /// There are more.
    pub more: bool,
    /// Records were lost.
    pub overflow: bool,
}

/// Data of START: pages of this size within these ranges, each an address and a length.
pub fn start(page_size: u64, ranges: &[(u64, u64)]) -> Vec<u8> {
    let mut data = page_size.to_le_bytes().to_vec();
    data.extend(u32::try_from(ranges.len()).unwrap_or(0).to_le_bytes());
    data.extend([0; 4]);
    for (start, length) in ranges {
        data.extend(start.to_le_bytes());
        data.extend(length.to_le_bytes());
    }
    data
}

/// Data of READ: the records of this range, of the page size of START.
pub fn read((start, length): (u64, u64)) -> Vec<u8> {
    let mut data = start.to_le_bytes().to_vec();
    data.extend(length.to_le_bytes());
    data.extend([0; 8]);
    data
}

impl Records {
    /// What an answer to READ says.
    ///
    /// # Errors
    /// Inconclusive if it is none, or its count is not that of the records that it has.
    pub fn of(answer: &Answer) -> Result<Self, Stop> {
        arose(answer.is_ok(), || {
            format!("records are not read: {:?}", answer.codes())
        })?;
        let word = answer.written().get(4..ANSWER).unwrap_or_default();
        let word = word.try_into().map_or(0, u32::from_le_bytes);
        let (records, _) = answer.result().as_chunks::<8>();
        let pages: Vec<u64> = records
            .iter()
            .map(|page| u64::from_le_bytes(*page))
            .collect();
        arose(u32::try_from(pages.len()) == Ok(word & COUNT), || {
            format!("{} records, the output is {word:#x}", pages.len())
        })?;
        Ok(Self {
            pages,
            more: word & MORE != 0,
            overflow: word & OVERFLOW != 0,
        })
    }
}

impl Owned<'_> {
    /// What the device can record.
    ///
    /// # Errors
    /// Inconclusive if it does not say.
    pub fn limits(&self) -> Result<Limits, Stop> {
        let answer = self.command(CAP_QUERY, Vec::new(), ROOM)?;
        let result = answer.result().first_chunk::<16>();
        let result = result.filter(|_| answer.is_ok()).ok_or_else(|| {
            Stop::Inconclusive(format!("no limits of recording: {:?}", answer.codes()))
        })?;
        let mut sizes = [0; 8];
        sizes.copy_from_slice(&result[..8]);
        let number = |at: usize| {
            u32::from_le_bytes([result[at], result[at + 1], result[at + 2], result[at + 3]])
        };
        Ok(Limits {
            page_sizes: u64::from_le_bytes(sizes),
            ranges: number(8),
            records: number(12),
        })
    }

    /// Asks for recording.
    ///
    /// # Errors
    /// Those of the queue.
    pub fn try_record(&self, page_size: u64, ranges: &[(u64, u64)]) -> Result<Answer, Stop> {
        self.command(START, start(page_size, ranges), ANSWER)
    }

    /// Starts recording.
    ///
    /// # Errors
    /// Inconclusive if that fails.
    pub fn record(&self, page_size: u64, ranges: &[(u64, u64)]) -> Result<(), Stop> {
        let answer = self.try_record(page_size, ranges)?;
        arose(answer.is_ok(), || {
            format!("recording does not start: {:?}", answer.codes())
        })
    }

    /// Asks for the end of recording.
    ///
    /// # Errors
    /// Those of the queue.
    pub fn end_recording(&self) -> Result<Answer, Stop> {
        self.command(STOP, Vec::new(), ANSWER)
    }

    /// One READ of this range with so many bytes for the answer.
    ///
    /// # Errors
    /// Those of the queue.
    pub fn read_once(&self, range: (u64, u64), room: usize) -> Result<Answer, Stop> {
        self.command(READ, read(range), room)
    }

    /// Reads until there are no more records of this range.
    ///
    /// # Errors
    /// Inconclusive if there is no end, or a read fails.
    pub fn records(&self, range: (u64, u64)) -> Result<Records, Stop> {
        self.records_by(range, ROOM)
    }

    /// The same with so many bytes for each answer.
    ///
    /// # Errors
    /// As [`Owned::records`].
    pub fn records_by(&self, range: (u64, u64), room: usize) -> Result<Records, Stop> {
        let mut all = Records::default();
        for _ in 0..READS_MAX {
            let read = Records::of(&self.read_once(range, room)?)?;
            all.pages.extend(read.pages);
            all.overflow |= read.overflow;
            if !read.more {
                return Ok(all);
            }
        }
        Err(Stop::Inconclusive(format!(
            "after {READS_MAX} reads there are more records"
        )))
    }
}
