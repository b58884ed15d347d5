//! The simple format: typed records with checked lengths, one `writev` for each batch of pages.

use super::wire::{
    DESCRIPTION_MAX, DEVICE_MAX, HEAD_BYTES, Head, MAGIC, Prologue, REFUSAL_MAX, VERSION, kind,
};
use super::{Answer, BATCH_PAGES, DestinationStream, Order, SourceStream};
use crate::error::MigrationError;
use crate::guest::DeviceRecord;
use driver::dirty::PAGE_SIZE;
use driver::memory::DmaMemory;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of a page, as slices count.
const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_SIZE == 4096);
/// Bytes that a plain copy hands to the kernel at a time: where a socket's throughput peaks.
const CHUNK: usize = 1 << 20;

/// One end of a stream in the simple format over anything that has bytes both ways.
#[derive(Debug)]
pub struct Simple<S> {
    socket: S,
    peer: &'static str,
    taken: u64,
    /// Bytes of the current record's body that [`DestinationStream::bytes`] may still take.
    body_left: u64,
    started: bool,
    /// Most page numbers an answer may hold: what was sent in this round.
    round_pages: u64,
}

impl<S: Read + Write + AsFd> Simple<S> {
    /// The source's end.
    pub fn source(socket: S) -> Self {
        Self::new(socket, "destination")
    }

    /// The destination's end.
    pub fn destination(socket: S) -> Self {
        Self::new(socket, "source")
    }

    fn new(socket: S, peer: &'static str) -> Self {
        Self {
            socket,
            peer,
            taken: 0,
            body_left: 0,
            started: false,
            round_pages: 0,
        }
    }

    fn vanished(&self, doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> MigrationError {
        let (peer, doing) = (self.peer, doing.into());
        move |source| MigrationError::PeerVanished {
            peer,
            doing,
            source,
        }
    }

    fn malformed(&self, expected: impl Into<String>, got: impl Into<String>) -> MigrationError {
        MigrationError::Malformed {
            offset: self.taken,
            expected: expected.into(),
            got: got.into(),
        }
    }

    fn take(&mut self, into: &mut [u8], doing: &str) -> Result<(), MigrationError> {
        let done = self.socket.read_exact(into);
        done.map_err(self.vanished(format!("{doing} at byte {}", self.taken)))?;
        self.taken += widen(into.len());
        Ok(())
    }

    /// Takes a head and checks its length against `limit`, which knows every kind.
    fn head(
        &mut self,
        doing: &str,
        limit: impl FnOnce(u32, u32) -> Option<(u64, u64)>,
    ) -> Result<(u32, u32, u64), MigrationError> {
        let mut bytes = [0; size_of::<Head>()];
        self.take(&mut bytes, doing)?;
        let head = Head::read_from_bytes(&bytes)
            .map_err(|_| self.malformed("a record's head", "something else"))?;
        let (kind, arg, length) = (head.kind.get(), head.arg.get(), head.length.get());
        let Some((least, most)) = limit(kind, arg) else {
            return Err(self.malformed(
                "a known record",
                format!("type {kind:#x} with argument {arg:#x}"),
            ));
        };
        if length < least || length > most {
            return Err(self.malformed(
                format!("a body of {least} to {most} bytes for record type {kind:#x}"),
                format!("{length} bytes"),
            ));
        }
        Ok((kind, arg, length))
    }

    fn body(&mut self, length: u64, doing: &str) -> Result<Vec<u8>, MigrationError> {
        let len = usize::try_from(length)
            .map_err(|_| self.malformed("a length this machine can hold", length.to_string()))?;
        let mut body = vec![0; len];
        self.take(&mut body, doing)?;
        Ok(body)
    }

    fn put(&mut self, head: Head, body: &[u8], doing: &str) -> Result<(), MigrationError> {
        let mut record = Vec::with_capacity(size_of::<Head>() + body.len());
        record.extend_from_slice(head.as_bytes());
        record.extend_from_slice(body);
        let done = self.socket.write_all(&record);
        done.map_err(self.vanished(doing))
    }

    /// Waits for the answer of the given kind with a body of `least` to `most` bytes.
    fn expect(
        &mut self,
        wanted: u32,
        least: u64,
        most: u64,
        doing: &str,
    ) -> Result<(u32, Vec<u8>), MigrationError> {
        let (kind, arg, length) = self.head(doing, |kind, _| match kind {
            kind::REFUSED => Some((0, REFUSAL_MAX)),
            kind if kind == wanted => Some((least, most)),
            _ => None,
        })?;
        let body = self.body(length, doing)?;
        if kind == kind::REFUSED {
            let why = String::from_utf8_lossy(&body).into_owned();
            return Err(MigrationError::Refused(why));
        }
        Ok((arg, body))
    }

    fn send_pages(
        &mut self,
        memory: &[DmaMemory],
        header: &[u8],
        runs: &[(u64, usize)],
    ) -> Result<u64, MigrationError> {
        // A batch lies in one window nearly always; where it does not, each window's part goes
        // by a writev of its own.
        let mut header = header;
        let mut sent = widen(header.len());
        let mut rest = runs;
        while let Some(&(first, _)) = rest.first() {
            let window = window_of(memory, first).ok_or_else(|| {
                self.malformed(
                    "a page of the guest's memory",
                    format!("address {first:#x}"),
                )
            })?;
            let end = window.iova() + window.len();
            let here = rest.iter().take_while(|(start, _)| *start < end).count();
            let (mine, others) = rest.split_at(here);
            let parts: Vec<(u64, usize)> = mine
                .iter()
                .map(|&(start, len)| (start - window.iova(), len))
                .collect();
            let done = window.write_all_to(self.socket.as_fd(), header, &parts);
            done.map_err(self.vanished("sending pages"))?;
            sent += parts.iter().map(|(_, len)| widen(*len)).sum::<u64>();
            header = &[];
            rest = others;
        }
        Ok(sent)
    }
}

fn widen(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn window_of(memory: &[DmaMemory], address: u64) -> Option<&DmaMemory> {
    memory
        .iter()
        .find(|w| address >= w.iova() && address - w.iova() < w.len())
}

/// Joins ascending pages into runs of (address, bytes); a run ends at its window's end.
fn runs_of(memory: &[DmaMemory], pages: &[u64]) -> Vec<(u64, usize)> {
    let mut runs: Vec<(u64, usize)> = Vec::new();
    for page in pages {
        let address = page.saturating_mul(PAGE_SIZE);
        let starts_window = memory.iter().any(|window| window.iova() == address);
        match runs.last_mut() {
            Some((start, len)) if *start + widen(*len) == address && !starts_window => {
                *len += PAGE_BYTES;
            }
            _ => runs.push((address, PAGE_BYTES)),
        }
    }
    runs
}

impl<S: Read + Write + AsFd> SourceStream for Simple<S> {
    fn open(&mut self, description: &[u8]) -> Result<(), MigrationError> {
        let doing = "opening the stream";
        let prologue = Prologue {
            magic: MAGIC,
            version: VERSION.into(),
            reserved: 0.into(),
        };
        let done = self.socket.write_all(prologue.as_bytes());
        done.map_err(self.vanished(doing))?;
        self.put(
            Head::new(kind::OPEN, 0, widen(description.len())),
            description,
            doing,
        )?;
        self.expect(kind::OPENED, 0, 0, doing).map(drop)
    }

    fn plain_copy(&mut self, memory: &[DmaMemory]) -> Result<Duration, MigrationError> {
        let doing = "copying memory plainly";
        let total = memory.iter().map(DmaMemory::len).sum();
        let started = Instant::now();
        self.put(Head::new(kind::PLAIN, 0, total), &[], doing)?;
        for window in memory {
            let mut at = 0;
            while at < window.len() {
                let len = usize::try_from(window.len() - at).map_or(CHUNK, |left| left.min(CHUNK));
                let done = window.write_all_to(self.socket.as_fd(), &[], &[(at, len)]);
                done.map_err(self.vanished(doing))?;
                at += widen(len);
            }
        }
        self.expect(kind::PLAIN_COPIED, 0, 0, doing)?;
        Ok(started.elapsed())
    }

    fn pages(&mut self, memory: &[DmaMemory], pages: &[u64]) -> Result<u64, MigrationError> {
        let mut sent = 0;
        for batch in pages.chunks(BATCH_PAGES) {
            let runs = runs_of(memory, batch);
            let count = widen(batch.len());
            let mut header = Vec::with_capacity(size_of::<Head>() + 8 * batch.len());
            let head = Head::new(
                kind::PAGES,
                u32::try_from(count).unwrap_or(u32::MAX),
                count * (8 + PAGE_SIZE),
            );
            header.extend_from_slice(head.as_bytes());
            for page in batch {
                header.extend_from_slice(&page.to_le_bytes());
            }
            sent += self.send_pages(memory, &header, &runs)?;
            self.round_pages += count;
        }
        Ok(sent)
    }

    fn round_end(&mut self, round: u32) -> Result<Vec<u64>, MigrationError> {
        let doing = format!("ending round {round}");
        self.put(Head::new(kind::ROUND, round, 0), &[], &doing)?;
        let most = self.round_pages.saturating_mul(8);
        let (got, body) = self.expect(kind::ROUND_TAKEN, 0, most, &doing)?;
        if got != round {
            return Err(self.malformed(format!("an answer to round {round}"), format!("{got}")));
        }
        self.round_pages = 0;
        numbers(&body).ok_or_else(|| self.malformed("whole page numbers", "a part of one"))
    }

    fn device(&mut self, record: &DeviceRecord) -> Result<(), MigrationError> {
        let doing = format!("sending the state of device {}", record.id);
        let length = widen(record.state.len());
        self.put(
            Head::new(kind::DEVICE, record.id, length),
            &record.state,
            &doing,
        )
    }

    fn end(&mut self) -> Result<Duration, MigrationError> {
        let doing = "waiting until the destination is ready";
        self.put(Head::new(kind::END, 0, 0), &[], doing)?;
        let (_, body) = self.expect(kind::READY, 8, 8, doing)?;
        let nanos = numbers(&body).and_then(|all| all.first().copied());
        Ok(Duration::from_nanos(nanos.unwrap_or(0)))
    }

    fn go(&mut self) -> Result<(), MigrationError> {
        let doing = "handing the guest over";
        let handed = self.put(Head::new(kind::GO, 0, 0), &[], doing);
        let answered = handed.and_then(|()| self.expect(kind::RUNNING, 0, 0, doing).map(drop));
        // From the first byte of GO on, the destination may run the guest, and only its own
        // word can say that it does not.
        answered.map_err(|error| match error {
            MigrationError::Refused(why) => MigrationError::Refused(why),
            other => MigrationError::Uncertain(other.to_string()),
        })
    }

    fn abort(&mut self) {
        // The destination may be gone already, which serves as well.
        let told = self.put(Head::new(kind::ABORT, 0, 0), &[], "aborting");
        tracing::debug!(?told, "abort");
    }
}

impl<S: Read + Write + AsFd> DestinationStream for Simple<S> {
    fn next(&mut self) -> Result<Order, MigrationError> {
        if self.body_left != 0 {
            return Err(self.malformed(
                "the announced bytes to be taken first",
                format!("{} bytes left", self.body_left),
            ));
        }
        if !self.started {
            let mut bytes = [0; size_of::<Prologue>()];
            self.take(&mut bytes, "waiting for the prologue")?;
            let prologue = Prologue::read_from_bytes(&bytes)
                .map_err(|_| self.malformed("a prologue", "something else"))?;
            if prologue.magic != MAGIC {
                return Err(self.malformed(
                    format!("the magic {MAGIC:02x?}"),
                    format!("{:02x?}", prologue.magic),
                ));
            }
            if (prologue.version.get(), prologue.reserved.get()) != (VERSION, 0) {
                return Err(self.malformed(
                    format!("version {VERSION}"),
                    format!("{} / {}", prologue.version, prologue.reserved),
                ));
            }
            self.started = true;
        }
        let (kind, arg, length) = self.head("waiting for a record", limits)?;
        Ok(match kind {
            kind::OPEN => Order::Open(self.body(length, "taking the guest's description")?),
            kind::PLAIN => {
                self.body_left = length;
                Order::PlainCopy(length)
            }
            kind::PAGES => {
                let count = u64::from(arg);
                let body = self.body(8 * count, "taking page numbers")?;
                let pages = numbers(&body).unwrap_or_default();
                if let Some(pair) = pages.windows(2).find(|pair| pair[0] >= pair[1]) {
                    return Err(self.malformed(
                        "page numbers in ascending order",
                        format!("{:#x} before {:#x}", pair[0], pair[1]),
                    ));
                }
                self.body_left = count * PAGE_SIZE;
                Order::Pages(pages)
            }
            kind::ROUND => Order::RoundEnd(arg),
            kind::DEVICE => Order::Device(DeviceRecord {
                id: arg,
                state: self.body(length, "taking the state of a device")?,
            }),
            kind::END => Order::End,
            kind::GO => Order::Go,
            _ => Order::Abort,
        })
    }

    fn bytes(&mut self, into: &mut [u8]) -> Result<(), MigrationError> {
        self.body_left = self.left_after(widen(into.len()))?;
        self.take(into, "taking pages")
    }

    fn bytes_into(
        &mut self,
        memory: &DmaMemory,
        ranges: &[(u64, usize)],
    ) -> Result<(), MigrationError> {
        let len = ranges.iter().map(|(_, len)| widen(*len)).sum();
        self.body_left = self.left_after(len)?;
        let done = memory.read_exact_from(self.socket.as_fd(), ranges);
        done.map_err(self.vanished(format!("taking pages at byte {}", self.taken)))?;
        self.taken += len;
        Ok(())
    }

    fn offset(&self) -> u64 {
        self.taken
    }

    fn answer(&mut self, answer: Answer<'_>) -> Result<(), MigrationError> {
        let (kind, arg, body): (u32, u32, Vec<u8>) = match answer {
            Answer::Opened => (kind::OPENED, 0, Vec::new()),
            Answer::PlainCopied => (kind::PLAIN_COPIED, 0, Vec::new()),
            Answer::Round { round, unchanged } => (
                kind::ROUND_TAKEN,
                round,
                unchanged
                    .iter()
                    .flat_map(|page| page.to_le_bytes())
                    .collect(),
            ),
            Answer::Ready { evidence } => {
                let nanos = u64::try_from(evidence.as_nanos()).unwrap_or(u64::MAX);
                (kind::READY, 0, nanos.to_le_bytes().to_vec())
            }
            Answer::Running => (kind::RUNNING, 0, Vec::new()),
            Answer::Refused(why) => {
                let most = usize::try_from(REFUSAL_MAX).unwrap_or(usize::MAX);
                let why = &why.as_bytes()[..why.floor_char_boundary(most)];
                (kind::REFUSED, 0, why.to_vec())
            }
        };
        self.put(Head::new(kind, arg, widen(body.len())), &body, "answering")
    }
}

impl<S: Read + Write + AsFd> Simple<S> {
    fn left_after(&self, len: u64) -> Result<u64, MigrationError> {
        self.body_left.checked_sub(len).ok_or_else(|| {
            self.malformed(
                format!("{len} bytes of body"),
                format!("{}", self.body_left),
            )
        })
    }
}

/// The lengths a record of the source may have.
fn limits(kind: u32, arg: u32) -> Option<(u64, u64)> {
    let pages = u64::from(arg) * (8 + PAGE_SIZE);
    match (kind, arg) {
        (kind::OPEN, 0) => Some((0, DESCRIPTION_MAX)),
        (kind::PLAIN, 0) => Some((0, u64::MAX - HEAD_BYTES)),
        (kind::PAGES, 1..) if widen(BATCH_PAGES) >= u64::from(arg) => Some((pages, pages)),
        (kind::ROUND, _) | (kind::END | kind::GO | kind::ABORT, 0) => Some((0, 0)),
        (kind::DEVICE, _) => Some((0, DEVICE_MAX)),
        _ => None,
    }
}

fn numbers(body: &[u8]) -> Option<Vec<u64>> {
    let (whole, rest) = body.as_chunks::<8>();
    rest.is_empty().then(|| {
        whole
            .iter()
            .map(|bytes| u64::from_le_bytes(*bytes))
            .collect()
    })
}
