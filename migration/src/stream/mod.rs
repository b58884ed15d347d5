//! The stream a guest travels in: what either end can say, and the format it is said in.
//!
//! The engine knows the traits only; [`simple`] is the one format so far.

pub mod simple;
mod wire;

use crate::error::MigrationError;
use crate::guest::DeviceRecord;
use driver::memory::DmaMemory;
use std::time::Duration;

/// The most pages of one batch.
pub const BATCH_PAGES: usize = 1024;

/// The end that sends a guest. Calls that the destination answers wait for the answer.
pub trait SourceStream {
    /// Opens the stream with the description of the guest; returns when the destination has made
    /// room for it.
    fn open(&mut self, description: &[u8]) -> Result<(), MigrationError>;
    /// Sends all of `memory` as plain bytes, for comparison only; the destination forgets them.
    /// Returns how long it took until the destination had everything.
    fn plain_copy(&mut self, memory: &[DmaMemory]) -> Result<Duration, MigrationError>;
    /// Sends pages by number, at most [`BATCH_PAGES`], ascending; all lie in `memory`. Returns the
    /// bytes put on the wire.
    fn pages(&mut self, memory: &[DmaMemory], pages: &[u64]) -> Result<u64, MigrationError>;
    /// Ends a round. Returns the pages of it whose bytes the destination already had.
    fn round_end(&mut self, round: u32) -> Result<Vec<u64>, MigrationError>;
    /// Sends the state of one device.
    fn device(&mut self, record: &DeviceRecord) -> Result<(), MigrationError>;
    /// Says that everything has been sent. Returns when the destination could run the guest, with
    /// the time that it took for evidence.
    fn end(&mut self) -> Result<Duration, MigrationError>;
    /// Hands the guest over. Returns when the destination runs it.
    fn go(&mut self) -> Result<(), MigrationError>;
    /// Tells the destination, if it is still there, that nothing will come of it.
    fn abort(&mut self);
}

/// What the source said.
#[derive(Debug)]
pub enum Order {
    /// The guest's description.
    Open(Vec<u8>),
    /// That many plain bytes follow, to be taken with [`DestinationStream::bytes`].
    PlainCopy(u64),
    /// The data of these pages follows, in this order, to be taken with
    /// [`DestinationStream::bytes`]. Strictly ascending.
    Pages(Vec<u64>),
    /// A round ended.
    RoundEnd(u32),
    /// The state of a device.
    Device(DeviceRecord),
    /// Everything has been sent.
    End,
    /// Run the guest.
    Go,
    /// Forget the guest.
    Abort,
}

/// What the destination says.
#[derive(Debug)]
pub enum Answer<'a> {
    /// There is room for the guest.
    Opened,
    /// All plain bytes are here.
    PlainCopied,
    /// All pages of the round are here; `unchanged` are those whose bytes were here before.
    Round {
        /// The round.
        round: u32,
        /// Page numbers.
        unchanged: &'a [u64],
    },
    /// The guest could run.
    Ready {
        /// Taken for evidence.
        evidence: Duration,
    },
    /// The guest runs.
    Running,
    /// It cannot be done, and why.
    Refused(&'a str),
}

/// The end that receives a guest.
pub trait DestinationStream {
    /// Waits for what the source says next.
    fn next(&mut self) -> Result<Order, MigrationError>;
    /// Takes bytes that the last order announced.
    fn bytes(&mut self, into: &mut [u8]) -> Result<(), MigrationError>;
    /// Takes bytes that the last order announced, straight into ranges
    /// (offset, length) of guest memory.
    fn bytes_into(
        &mut self,
        memory: &DmaMemory,
        ranges: &[(u64, usize)],
    ) -> Result<(), MigrationError>;
    /// Bytes of the stream taken so far, for error messages.
    fn offset(&self) -> u64;
    /// Answers.
    fn answer(&mut self, answer: Answer<'_>) -> Result<(), MigrationError>;
}
