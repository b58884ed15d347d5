//! The destination: takes a guest from a stream, tells which pages came for nothing, and runs it
//! when told to.

use crate::error::{GuestError, MigrationError};
use crate::guest::Incoming;
use crate::stream::{Answer, DestinationStream, Order};
use driver::dirty::{DirtySet, PAGE_SIZE};
use driver::memory::DmaMemory;

const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_SIZE == 4096);

/// What was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Records of pages taken.
    pub records: u64,
    /// Pages taken, repeats included.
    pub pages: u64,
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
    let mut receiver = Receiver::default();
    let done = receiver.run(stream, guest);
    if let Err(error @ (MigrationError::Guest(_) | MigrationError::Stream(_))) = &done {
        // Best effort: the source may be gone as well.
        let told = stream.answer(Answer::Refused(&error.to_string()));
        tracing::debug!(?told, "refusal");
    }
    done.map(|()| receiver.received)
}

#[derive(Debug, Default)]
struct Receiver {
    received: Received,
    memory: Vec<DmaMemory>,
    /// Pages that have come at least once.
    seen: DirtySet,
    /// Pages of this record that came a second time with the bytes they already had.
    unchanged: Vec<u64>,
    buffer: Vec<u8>,
    held: Vec<u8>,
}

impl Receiver {
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
                    self.memory = guest.memory();
                    let end = self.memory.iter().map(|w| w.iova() + w.len()).max();
                    self.seen = DirtySet::new(end.unwrap_or(0).div_ceil(PAGE_SIZE));
                    stream.answer(Answer::Opened)?;
                    Phase::Rounds
                }
                (Phase::Rounds, Order::PlainCopy(len)) if self.received.pages == 0 => {
                    self.plain_copy(stream, len)?;
                    stream.answer(Answer::PlainCopied)?;
                    guest.poison()?;
                    Phase::Rounds
                }
                (Phase::Rounds, Order::Pages(pages)) => {
                    self.pages(stream, &pages)?;
                    let unchanged = &self.unchanged;
                    stream.answer(Answer::Taken { unchanged })?;
                    self.unchanged.clear();
                    Phase::Rounds
                }
                (Phase::Rounds, Order::Device(record)) => {
                    guest.restore(record)?;
                    Phase::Rounds
                }
                (Phase::Rounds, Order::End) => {
                    self.all_came()?;
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

    fn plain_copy(
        &self,
        stream: &mut dyn DestinationStream,
        len: u64,
    ) -> Result<(), MigrationError> {
        let total: u64 = self.memory.iter().map(DmaMemory::len).sum();
        if len != total {
            let expected = format!("a plain copy of {total} bytes");
            return Err(stream.fault(expected, format!("{len} bytes")));
        }
        for window in &self.memory {
            let mut at = 0;
            while at < window.len() {
                let chunk = (window.len() - at).min(1 << 20);
                let bytes = usize::try_from(chunk).unwrap_or(PAGE_BYTES);
                stream.bytes_into(window, &[(at, bytes)])?;
                at += chunk;
            }
        }
        Ok(())
    }

    /// Takes a batch: what comes for the first time goes straight into memory, what comes again
    /// is compared with what is held.
    fn pages(
        &mut self,
        stream: &mut dyn DestinationStream,
        pages: &[u64],
    ) -> Result<(), MigrationError> {
        let mut rest = pages;
        while let Some(&first) = rest.first() {
            let window = self.window(stream, first)?.clone();
            let again = self.seen.contains(first);
            let inside = |page: &u64| {
                let address = page.saturating_mul(PAGE_SIZE);
                address - window.iova() < window.len() && self.seen.contains(*page) == again
            };
            let count = rest.iter().take_while(|page| inside(page)).count();
            let (mine, others) = rest.split_at(count);
            if again {
                self.compare(stream, &window, mine)?;
            } else {
                self.fill(stream, &window, mine)?;
            }
            rest = others;
        }
        self.received.records += 1;
        self.received.pages += u64::try_from(pages.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    fn fill(
        &mut self,
        stream: &mut dyn DestinationStream,
        window: &DmaMemory,
        pages: &[u64],
    ) -> Result<(), MigrationError> {
        let mut ranges: Vec<(u64, usize)> = Vec::new();
        let mut next = None;
        for &page in pages {
            match ranges.last_mut() {
                Some((_, len)) if next == Some(page) => *len += PAGE_BYTES,
                _ => ranges.push((page * PAGE_SIZE - window.iova(), PAGE_BYTES)),
            }
            next = page.checked_add(1);
        }
        stream.bytes_into(window, &ranges)?;
        for &page in pages {
            self.seen.insert(page);
        }
        Ok(())
    }

    fn compare(
        &mut self,
        stream: &mut dyn DestinationStream,
        window: &DmaMemory,
        pages: &[u64],
    ) -> Result<(), MigrationError> {
        self.held.resize(PAGE_BYTES, 0);
        self.buffer.resize(pages.len() * PAGE_BYTES, 0);
        stream.bytes(&mut self.buffer)?;
        for (&page, came) in pages.iter().zip(self.buffer.chunks_exact(PAGE_BYTES)) {
            let offset = page * PAGE_SIZE - window.iova();
            window.read(offset, &mut self.held).map_err(beyond)?;
            if self.held == came {
                self.unchanged.push(page);
            } else {
                window.write(offset, came).map_err(beyond)?;
            }
        }
        Ok(())
    }

    fn window(
        &self,
        stream: &dyn DestinationStream,
        page: u64,
    ) -> Result<&DmaMemory, MigrationError> {
        let address = page.checked_mul(PAGE_SIZE);
        let holds = |w: &&DmaMemory| {
            address
                .is_some_and(|a| a >= w.iova() && a - w.iova() <= w.len().saturating_sub(PAGE_SIZE))
        };
        self.memory.iter().find(holds).ok_or_else(|| {
            let expected = "a page of the guest's memory".to_owned();
            stream.fault(expected, format!("page {page:#x}"))
        })
    }

    fn all_came(&self) -> Result<(), GuestError> {
        let total: u64 = self.memory.iter().map(|w| w.len() / PAGE_SIZE).sum();
        if self.seen.count() == total {
            return Ok(());
        }
        Err(GuestError(format!(
            "{} of {total} pages of memory have come",
            self.seen.count()
        )))
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
        Order::Device(_) => "the state of a device",
        Order::End => "the end",
        Order::Go => "go",
        Order::Abort => "abort",
    }
}

fn beyond(error: driver::memory::MemoryError) -> GuestError {
    GuestError::new("storing a page", error)
}
