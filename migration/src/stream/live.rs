//! A stream between two processes: the records one way, answers the other.

use super::connection::explain;
use super::framing::{HEAD_BYTES, Head, StreamError, widen};
use super::intake::Intake;
use super::outgoing::Outgoing;
use super::reader::{Format, Reader};
use super::session::{Message, REFUSAL_MAX, bits, of_bits};
use super::vectored::{GatherWrite, ScatterRead};
use super::{Answer, BATCH_PAGES, DestinationStream, New, Order, Sent, SourceStream};
use crate::error::{GuestError, MigrationError};
use crate::guest::DeviceRecord;
use crate::tls::{TLS_CAME, is_tls};
use crate::zero;
use driver::memory::DmaMemory;
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

/// Bytes that a plain copy hands to the kernel at a time: where a socket's throughput peaks.
const CHUNK: usize = 1 << 20;
/// Records of pages that may be under way unanswered. Their answers, which nobody reads
/// meanwhile, fit into any socket's buffer, so the two ends never wait for each other.
const WINDOW: usize = 32;

/// The source's end over anything that has bytes both ways.
#[derive(Debug)]
pub struct Source<S> {
    out: Outgoing<S>,
    /// Pages of the records that have not been answered.
    pending: VecDeque<Vec<u64>>,
    /// Pages of this round that the destination had already.
    unchanged: Vec<u64>,
}

impl<S: ScatterRead + GatherWrite> Source<S> {
    /// Over a connected socket.
    pub fn new(socket: S) -> Self {
        Self {
            out: Outgoing::new(socket),
            pending: VecDeque::new(),
            unchanged: Vec::new(),
        }
    }

    /// Starts an image of its own, beside a stream.
    pub(super) fn open_image(&mut self) -> Result<(), MigrationError> {
        let opened = self.out.open_image();
        opened.map_err(|error| vanished("opening an image", error))
    }

    /// Ends it.
    pub(super) fn end_image(&mut self) -> Result<(), MigrationError> {
        let ended = self.out.end_image();
        ended.map_err(|error| vanished("ending an image", error))
    }

    fn socket(&mut self) -> &mut S {
        self.out.writer.get_mut()
    }

    /// What a failed write means: what the destination said before it hung up, if it said why.
    pub(super) fn unsent(&mut self, doing: &str, error: io::Error) -> MigrationError {
        if error.kind() == io::ErrorKind::InvalidInput {
            return GuestError::new(doing, error).into();
        }
        // Answers that had come before are at most those that were under way.
        for _ in 0..=WINDOW + 1 {
            match self.message(doing) {
                Err(refused @ MigrationError::Refused(_)) => return refused,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        vanished(doing, error)
    }

    /// The head of a message. An end that wants TLS answers with fewer bytes than a head has.
    fn head(&mut self) -> io::Result<[u8; HEAD_BYTES]> {
        let mut head = [0; HEAD_BYTES];
        let mut got = 0;
        while let Some(rest) = head.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match self.socket().read(rest) {
                Ok(0) if is_tls(head.get(..got).unwrap_or_default()) => {
                    let why = format!("expected an answer, got TLS's: {TLS_CAME}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(head)
    }

    /// The next message from the destination, refusals excepted.
    fn message(&mut self, doing: &str) -> Result<(Message, Vec<u8>), MigrationError> {
        let head = self.head().map_err(|error| vanished(doing, error))?;
        let head = Head::from_bytes(head);
        let message = Message::of(head).filter(|message| fits(*message, head));
        let Some(message) = message else {
            let got = format!("type {:#x} with {} bytes", head.kind, head.length);
            return Err(unexpected(doing, "an answer", got));
        };
        let mut body = vec![0; usize::try_from(head.length).unwrap_or(0)];
        let done = self.socket().read_exact(&mut body);
        done.map_err(|error| vanished(doing, error))?;
        if message == Message::Refused {
            let why = String::from_utf8_lossy(&body).into_owned();
            return Err(MigrationError::Refused(why));
        }
        Ok((message, body))
    }

    fn expect(&mut self, wanted: Message, doing: &str) -> Result<Vec<u8>, MigrationError> {
        match self.message(doing)? {
            (got, body) if got == wanted => Ok(body),
            (got, _) => Err(unexpected(doing, wanted.name(), got.name())),
        }
    }

    /// A record of these pages has been sent; waits for an older one if too many are unanswered.
    fn under_way(&mut self, record: &[u64]) -> Result<(), MigrationError> {
        self.pending.push_back(record.to_vec());
        if self.pending.len() > WINDOW {
            self.taken()?;
        }
        Ok(())
    }

    /// Waits until the oldest record under way has been taken.
    fn taken(&mut self) -> Result<(), MigrationError> {
        let doing = "waiting until pages have been taken";
        let bits = self.expect(Message::Taken, doing)?;
        let pages = self.pending.pop_front().unwrap_or_default();
        let Some(unchanged) = of_bits(&pages, &bits) else {
            let expected = format!("bits of {} pages", pages.len());
            return Err(unexpected(doing, &expected, "bits of more"));
        };
        self.unchanged.extend(unchanged);
        Ok(())
    }

    fn tell(&mut self, message: Message, doing: &str) -> Result<(), MigrationError> {
        let sent = self.socket().write_all(&message.bytes(&[]));
        sent.map_err(|error| vanished(doing, error))
    }

    fn plain(&mut self, memory: &[DmaMemory]) -> io::Result<()> {
        let total: u64 = memory.iter().map(DmaMemory::len).sum();
        let message = Message::Plain.bytes(&total.to_le_bytes());
        self.socket().write_all(&message)?;
        for window in memory {
            let mut at = 0;
            while at < window.len() {
                let len = usize::try_from(window.len() - at).map_or(CHUNK, |left| left.min(CHUNK));
                self.socket().write_gathered(&[], window, &[(at, len)])?;
                at += widen(len);
            }
        }
        Ok(())
    }
}

fn fits(message: Message, head: Head) -> bool {
    let (least, most) = message.lengths();
    usize::try_from(head.length).is_ok_and(|length| (least..=most).contains(&length))
}

fn vanished(doing: &str, source: io::Error) -> MigrationError {
    MigrationError::PeerVanished {
        peer: "destination",
        doing: doing.to_owned(),
        source: explain(source),
    }
}

fn unexpected(doing: &str, expected: &str, got: impl Into<String>) -> MigrationError {
    MigrationError::Answer {
        doing: doing.to_owned(),
        expected: expected.to_owned(),
        got: got.into(),
    }
}

impl<S: ScatterRead + GatherWrite> SourceStream for Source<S> {
    fn open(&mut self, description: &[u8]) -> Result<(), MigrationError> {
        let doing = "opening the stream";
        let sent = self.out.open(description);
        sent.map_err(|error| self.unsent(doing, error))?;
        self.expect(Message::Opened, doing).map(drop)
    }

    fn plain_copy(&mut self, memory: &[DmaMemory]) -> Result<Duration, MigrationError> {
        let doing = "copying memory plainly";
        let started = Instant::now();
        let sent = self.plain(memory);
        sent.map_err(|error| self.unsent(doing, error))?;
        self.expect(Message::PlainCopied, doing)?;
        Ok(started.elapsed())
    }

    fn pages(
        &mut self,
        memory: &[DmaMemory],
        pages: &[u64],
        new: New,
    ) -> Result<Sent, MigrationError> {
        let before = self.out.writer.written();
        let mut zeros = 0;
        for batch in pages.chunks(BATCH_PAGES) {
            let (empty, full) = zero::split(memory, batch, new);
            if !empty.is_empty() {
                let sent = self.out.zero_pages(&empty);
                sent.map_err(|error| self.unsent("sending pages of zeros", error))?;
                zeros += widen(empty.len());
                self.under_way(&empty)?;
            }
            let mut rest = full.as_slice();
            while !rest.is_empty() {
                let written = self.out.pages(memory, rest);
                let written = written.map_err(|error| self.unsent("sending pages", error))?;
                let (record, others) = rest.split_at(written.pages);
                self.under_way(record)?;
                rest = others;
            }
        }
        let bytes = self.out.writer.written() - before;
        Ok(Sent { bytes, zeros })
    }

    fn round_end(&mut self, _round: u32) -> Result<Vec<u64>, MigrationError> {
        while !self.pending.is_empty() {
            self.taken()?;
        }
        Ok(std::mem::take(&mut self.unchanged))
    }

    fn device(&mut self, record: &DeviceRecord) -> Result<(), MigrationError> {
        let sent = self.out.device(record);
        let doing = format!("sending the state of device {}", record.id);
        sent.map_err(|error| self.unsent(&doing, error))
    }

    fn end(&mut self) -> Result<Duration, MigrationError> {
        let doing = "waiting until the destination is ready";
        let sent = self.out.end();
        sent.map_err(|error| self.unsent(doing, error))?;
        let body = self.expect(Message::Ready, doing)?;
        let nanos = body
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok(Duration::from_nanos(nanos))
    }

    fn go(&mut self) -> Result<(), MigrationError> {
        let doing = "handing the guest over";
        let handed = self.tell(Message::Go, doing);
        let answered = handed.and_then(|()| self.expect(Message::Running, doing).map(drop));
        // From the first byte of GO on, the destination may run the guest, and only its own
        // word can say that it does not.
        answered.map_err(|error| match error {
            MigrationError::Refused(why) => MigrationError::Refused(why),
            other => MigrationError::Uncertain(other.to_string()),
        })
    }

    fn abort(&mut self) {
        // The destination may be gone already, which serves as well.
        let told = self.tell(Message::Abort, "aborting");
        tracing::debug!(?told, "abort");
    }
}

/// The destination's end over anything that has bytes both ways.
#[derive(Debug)]
pub struct Destination<S> {
    reader: Reader<S>,
    intake: Intake,
    ended: bool,
    /// It brings pages alone, beside a stream.
    lane: bool,
    /// Plain bytes that are still to be taken.
    plain_left: u64,
    /// Pages of the record under way, for its answer.
    pages: Vec<u64>,
}

impl<S: ScatterRead + GatherWrite> Destination<S> {
    /// Over a connected socket.
    pub fn new(socket: S) -> Self {
        Self {
            reader: Reader::new(socket, Format::Libxl),
            intake: Intake::default(),
            ended: false,
            lane: false,
            plain_left: 0,
            pages: Vec::new(),
        }
    }

    /// Over a further connection of a source: an image of its own.
    pub(super) fn lane(socket: S) -> Self {
        Self {
            reader: Reader::new(socket, Format::Libxc),
            intake: Intake::of_pages(),
            ended: false,
            lane: true,
            plain_left: 0,
            pages: Vec::new(),
        }
    }

    /// After the stream's end a message is all that may come.
    fn after_end(&mut self) -> Result<Order, MigrationError> {
        let mut head = [0; HEAD_BYTES];
        let done = self.reader.get_mut().read_exact(&mut head);
        done.map_err(gone("waiting for the hand-over"))?;
        match Message::of(Head::from_bytes(head)) {
            Some(Message::Go) => Ok(Order::Go),
            Some(Message::Abort) => Ok(Order::Abort),
            _ => Err(self.fault("GO or ABORT".to_owned(), format!("{head:02x?}"))),
        }
    }

    /// A message in the place of a record, if it is one.
    fn message(&mut self, head: Head) -> Result<Option<Order>, MigrationError> {
        match Message::of(head).filter(|message| fits(*message, head)) {
            Some(Message::Abort) => Ok(Some(Order::Abort)),
            Some(Message::Plain) => {
                let mut len = [0; 8];
                let done = self.reader.get_mut().read_exact(&mut len);
                done.map_err(gone("announcing plain bytes"))?;
                self.plain_left = u64::from_le_bytes(len);
                Ok(Some(Order::PlainCopy(self.plain_left)))
            }
            _ => Ok(None),
        }
    }
}

fn gone(doing: &str) -> impl FnOnce(io::Error) -> MigrationError {
    let doing = doing.to_owned();
    move |source| MigrationError::PeerVanished {
        peer: "source",
        doing,
        source: explain(source),
    }
}

/// On a socket a stream that ends early is a source that is gone.
fn of_peer(error: StreamError) -> MigrationError {
    let source = match error {
        StreamError::Malformed(_) => return MigrationError::Stream(error),
        StreamError::Cut { .. } => io::ErrorKind::UnexpectedEof.into(),
        StreamError::Broken { ref source, .. } => io::Error::from(source.kind()),
    };
    let doing = format!("sending the guest: {error}");
    gone(&doing)(source)
}

impl<S: ScatterRead + GatherWrite> DestinationStream for Destination<S> {
    fn next(&mut self) -> Result<Order, MigrationError> {
        if self.plain_left != 0 {
            let got = format!("{} bytes left", self.plain_left);
            return Err(self.fault("the plain bytes to be taken first".to_owned(), got));
        }
        while !self.ended {
            let head = self.reader.head().map_err(of_peer)?;
            let item = match head {
                Some(head) => match self.message(head)? {
                    Some(order) => return Ok(order),
                    None => self.reader.item(head).map(Some),
                },
                None => self.reader.next_item(),
            };
            let Some(item) = item.map_err(of_peer)? else {
                break;
            };
            let order = self.intake.order(item);
            let order = order.map_err(|bad| self.reader.bad(self.reader.started(), bad));
            if let Some(order) = order? {
                self.ended = matches!(order, Order::End);
                if let Order::Pages(pages) | Order::ZeroPages(pages) = &order {
                    self.pages.clone_from(pages);
                }
                return Ok(order);
            }
        }
        if self.lane {
            return Ok(Order::End);
        }
        self.after_end()
    }

    fn bytes(&mut self, into: &mut [u8]) -> Result<(), MigrationError> {
        self.reader.data(into).map_err(of_peer)
    }

    fn bytes_into(
        &mut self,
        memory: &DmaMemory,
        ranges: &[(u64, usize)],
    ) -> Result<(), MigrationError> {
        if self.plain_left == 0 {
            return self.reader.data_into(memory, ranges).map_err(of_peer);
        }
        let len: u64 = ranges.iter().map(|(_, len)| widen(*len)).sum();
        self.plain_left = self.plain_left.saturating_sub(len);
        match self.reader.get_mut().read_scattered(memory, ranges) {
            Ok(count) if widen(count) == len => Ok(()),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(error),
        }
        .map_err(gone("sending plain bytes"))
    }

    fn fault(&self, expected: String, got: String) -> MigrationError {
        let bad = super::framing::Bad::new(0, expected, got);
        self.reader.bad(self.reader.started(), bad).into()
    }

    fn answer(&mut self, answer: Answer<'_>) -> Result<(), MigrationError> {
        let bytes = match answer {
            Answer::Opened => Message::Opened.bytes(&[]),
            Answer::PlainCopied => Message::PlainCopied.bytes(&[]),
            Answer::Taken { unchanged } => Message::Taken.bytes(&bits(&self.pages, unchanged)),
            Answer::Ready { evidence } => {
                let nanos = u64::try_from(evidence.as_nanos()).unwrap_or(u64::MAX);
                Message::Ready.bytes(&nanos.to_le_bytes())
            }
            Answer::Running => Message::Running.bytes(&[]),
            Answer::Refused(why) => {
                let why = why
                    .get(..why.floor_char_boundary(REFUSAL_MAX))
                    .unwrap_or(why);
                Message::Refused.bytes(why.as_bytes())
            }
        };
        let sent = self.reader.get_mut().write_all(&bytes);
        sent.map_err(gone("being answered"))
    }
}
