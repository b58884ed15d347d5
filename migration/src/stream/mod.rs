//! The stream a guest travels in: Xen's libxl stream, version 2, around its image stream, version 3.
//!
//! Both layers are sequences of typed records with the same framing ([`framing`]). The outer one
//! ([`libxl`]) holds the guest's description, then the whole inner one ([`libxc`]), which holds its
//! memory, then each device as a blob of our own ([`context`]). A [`Reader`] takes records apart
//! and refuses what the format does not allow; a [`Writer`] puts them together.
//!
//! The engine knows the traits only. What stands behind them is a socket ([`live`]) or a file
//! ([`mod@file`]): the bytes of the stream are the same.

pub mod body;
mod connection;
pub mod context;
pub mod devices;
pub mod epoch;
pub mod file;
pub mod framing;
pub mod inspect;
mod intake;
pub mod libxc;
pub mod libxl;
pub mod live;
mod order;
mod outgoing;
pub mod pages;
pub mod parallel;
pub mod reader;
mod session;
mod vectored;
pub mod writer;

pub use connection::Connection;
pub use context::{Context, SectionKind};
pub use framing::{Layer, Malformed, StreamError};
pub use pages::BATCH_PAGES;
pub use reader::{Format, Item, Reader};
pub use vectored::{GatherWrite, ScatterRead};
pub use writer::Writer;

use crate::error::MigrationError;
use crate::guest::DeviceRecord;
use driver::memory::DmaMemory;
use std::time::Duration;

/// The end that sends a guest. Calls that the destination answers wait for the answer.
pub trait SourceStream {
    /// Opens the stream with the description of the guest; returns when the destination has made
    /// room for it.
    fn open(&mut self, description: &[u8]) -> Result<(), MigrationError>;
    /// Sends all of `memory` as plain bytes, for comparison only; the destination forgets them.
    /// Returns how long it took until the destination had everything.
    fn plain_copy(&mut self, memory: &[DmaMemory]) -> Result<Duration, MigrationError>;
    /// Sends pages by number, ascending; all lie in `memory`. Of those that are `new`, those that hold
    /// nothing but zeros go without their bytes.
    fn pages(
        &mut self,
        memory: &[DmaMemory],
        pages: &[u64],
        new: New,
    ) -> Result<Sent, MigrationError>;
    /// Ends a round: waits until the destination has all its pages. Returns those whose bytes it
    /// already had.
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

/// Whether pages are sent for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum New {
    /// None of them has been sent before: over there is nothing in their place.
    All,
    /// Any of them may have been sent before.
    Unknown,
}

/// What went out for pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes put on the wire.
    pub bytes: u64,
    /// Pages of zeros that went without their bytes.
    pub zeros: u64,
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.zeros += other.zeros;
    }
}

/// What the source said.
#[derive(Debug)]
pub enum Order {
    /// The guest's description.
    Open(Vec<u8>),
    /// That many plain bytes follow, to be taken with [`DestinationStream::bytes_into`].
    PlainCopy(u64),
    /// The data of these pages follows, in this order, to be taken with
    /// [`DestinationStream::bytes`]. At most [`BATCH_PAGES`].
    Pages(Vec<u64>),
    /// These pages, none of which has come before, hold zeros. At most [`BATCH_PAGES`].
    ZeroPages(Vec<u64>),
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
    /// The last pages are here; `unchanged` are those whose bytes were here before.
    Taken {
        /// Page numbers, in the order they came.
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
    /// The error for an order that the receiver cannot follow: names the record and its place.
    fn fault(&self, expected: String, got: String) -> MigrationError;
    /// Answers.
    fn answer(&mut self, answer: Answer<'_>) -> Result<(), MigrationError>;
}
