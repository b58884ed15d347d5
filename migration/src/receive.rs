//! The destination: takes a guest from a stream, tells which pages came for nothing, and runs it
//! when told to.

mod lanes;
mod store;

pub use lanes::Lanes;

use crate::error::MigrationError;
use crate::guest::Incoming;
use crate::stream::{Answer, DestinationStream, Order};
use lanes::Beside;
use store::{Store, Taker};

/// What was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Records of pages taken.
    pub records: u64,
    /// Pages taken, repeats included.
    pub pages: u64,
    /// Of those, pages of zeros that came without their bytes.
    pub zeros: u64,
}

impl Received {
    fn add(&mut self, other: Self) {
        self.records += other.records;
        self.pages += other.pages;
        self.zeros += other.zeros;
    }
}

/// Takes a guest. Returns once it runs.
///
/// # Errors
/// Whatever ends the stream early; the guest in the making must be dropped then and never run. A
/// refusal of the guest's own is told to the source first.
pub fn receive(
    stream: &mut dyn DestinationStream,
    guest: &mut dyn Incoming,
) -> Result<Received, MigrationError> {
    receive_over(stream, Lanes::default(), guest)
}

/// [`receive`], with pages that come over further connections as well.
///
/// # Errors
/// As [`receive`]; a fault on any connection ends them all.
pub fn receive_over(
    stream: &mut dyn DestinationStream,
    lanes: Lanes<'_>,
    guest: &mut dyn Incoming,
) -> Result<Received, MigrationError> {
    let store = Store::default();
    let done = lanes::beside(&store, lanes, |beside| {
        let mut receiver = Receiver {
            taker: Taker::new(&store),
            beside,
        };
        let done = receiver
            .run(stream, guest)
            .map(|()| receiver.taker.received);
        // A fault elsewhere hung up here: that one is what happened.
        let done = done.map_err(|error| receiver.beside.cause(error));
        if let Err(error @ (MigrationError::Guest(_) | MigrationError::Stream(_))) = &done {
            // Best effort: the source may be gone as well.
            let told = stream.answer(Answer::Refused(&error.to_string()));
            tracing::debug!(?told, "refusal");
        }
        done
    })?;
    Ok(done)
}

struct Receiver<'a> {
    taker: Taker<'a>,
    beside: Beside,
}

impl Receiver<'_> {
    fn run(
        &mut self,
        stream: &mut dyn DestinationStream,
        guest: &mut dyn Incoming,
    ) -> Result<(), MigrationError> {
        let mut phase = Phase::Closed;
        loop {
            let order = stream.next()?;
            phase = match (phase, order) {
                (Phase::Closed, Order::Open(description)) => {
                    guest.prepare(&description)?;
                    guest.poison()?;
                    self.taker.store.open(guest.memory());
                    stream.answer(Answer::Opened)?;
                    Phase::Rounds
                }
                (Phase::Rounds, Order::PlainCopy(len)) if self.taker.received.pages == 0 => {
                    self.taker.plain_copy(stream, len, || Ok(guest.poison()?))?;
                    Phase::Rounds
                }
                (Phase::Rounds, Order::Pages(pages)) => {
                    self.taker.pages(stream, &pages)?;
                    Phase::Rounds
                }
                (Phase::Rounds, Order::ZeroPages(pages)) => {
                    self.taker.zero_pages(stream, &pages)?;
                    Phase::Rounds
                }
                (Phase::Rounds, Order::Device(record)) => {
                    guest.restore(record)?;
                    Phase::Rounds
                }
                (Phase::Rounds, Order::End) => {
                    // What still comes on another connection is part of the guest as well.
                    self.taker.received.add(self.beside.end()?);
                    self.taker.store.all_came()?;
                    let evidence = guest.ready()?;
                    stream.answer(Answer::Ready { evidence })?;
                    Phase::Ready
                }
                (Phase::Ready, Order::Go) => {
                    guest.go()?;
                    return stream.answer(Answer::Running);
                }
                (_, Order::Abort) => return Err(MigrationError::Aborted),
                (phase, order) => {
                    return Err(stream.fault(phase.expects().to_owned(), name(&order).to_owned()));
                }
            };
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    Rounds,
    Ready,
}

impl Phase {
    fn expects(self) -> &'static str {
        match self {
            Self::Closed => "the guest's description",
            Self::Rounds => "pages, the state of a device, or the end",
            Self::Ready => "go or abort",
        }
    }
}

fn name(order: &Order) -> &'static str {
    match order {
        Order::Open(_) => "the guest's description",
        Order::PlainCopy(_) => "a plain copy",
        Order::Pages(_) => "pages",
        Order::ZeroPages(_) => "pages of zeros",
        Order::Device(_) => "the state of a device",
        Order::End => "the end",
        Order::Go => "go",
        Order::Abort => "abort",
    }
}
