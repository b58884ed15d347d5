//! Pages over several connections at once.
//!
//! The first connection is the stream, whole but for the pages that went elsewhere. Each further
//! one is an image of its own, page data alone. All of them start with JOIN, which says what belongs
//! together. A round is spread over the connections and has ended when every record of it has been
//! answered on every connection: only then does the next one start, so that an older version of a
//! page never comes after a newer one, however the connections lag behind each other.

use super::connection::Connection;
use super::framing::{HEAD_BYTES, Head};
use super::live::{Destination, Source};
use super::session::Message;
use super::vectored::{GatherWrite, ScatterRead};
use super::{BATCH_PAGES, DestinationStream, New, Sent, SourceStream};
use crate::error::MigrationError;
use crate::guest::DeviceRecord;
use crate::receive::Lanes;
use crate::tls::{TLS_CAME, is_tls};
use driver::memory::DmaMemory;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// Most connections of one migration.
pub const CONNECTIONS_MAX: usize = 64;
/// Fewer pages than this are not worth a thread.
const WORTH: usize = 64;

/// The source's end over several connections.
#[derive(Debug)]
pub struct Parallel<S> {
    main: Source<S>,
    lanes: Vec<Source<S>>,
}

fn failed(doing: &str) -> impl FnOnce(io::Error) -> MigrationError {
    let doing = doing.to_owned();
    move |source| MigrationError::Connection { doing, source }
}

fn count_of(sockets: usize) -> Result<u32, MigrationError> {
    u32::try_from(sockets)
        .ok()
        .filter(|_| (2..=CONNECTIONS_MAX).contains(&sockets))
        .ok_or_else(|| {
            let why = format!("expected 2 to {CONNECTIONS_MAX} connections, got {sockets}");
            failed("joining connections")(io::Error::new(io::ErrorKind::InvalidInput, why))
        })
}

impl<S: ScatterRead + GatherWrite + Send> Parallel<S> {
    /// Joins connections to the same destination; the first is the stream's.
    ///
    /// # Errors
    /// [`MigrationError::Connection`] if there are too few or too many, or one of them broke.
    pub fn new(mut sockets: Vec<S>) -> Result<Self, MigrationError> {
        let count = count_of(sockets.len())?;
        let session = Uuid::now_v7();
        for (index, socket) in (0_u32..).zip(&mut sockets) {
            let mut body = session.as_bytes().to_vec();
            body.extend(index.to_le_bytes());
            body.extend(count.to_le_bytes());
            let sent = socket.write_all(&Message::Join.bytes(&body));
            sent.map_err(failed("joining connections"))?;
        }
        let lanes = sockets.split_off(1);
        let main = sockets.pop().map(Source::new);
        let none = || failed("joining connections")(io::ErrorKind::NotConnected.into());
        Ok(Self {
            main: main.ok_or_else(none)?,
            lanes: lanes.into_iter().map(Source::new).collect(),
        })
    }

    /// Waits until the destination has everything that went over the first connection, and says
    /// nothing of the others: no barrier, and not enough to send a page again.
    ///
    /// # Errors
    /// As [`round_end`](SourceStream::round_end).
    pub fn wait_for_first(&mut self) -> Result<(), MigrationError> {
        self.main.round_end(0).map(drop)
    }

    /// Sends on as many connections at once as there are pieces, each by its number; adds up what was
    /// sent.
    fn each(
        &mut self,
        pieces: usize,
        send: impl Fn(&mut Source<S>, usize) -> Result<Sent, MigrationError> + Sync,
    ) -> Result<Sent, MigrationError> {
        let (send, lanes, main) = (&send, &mut self.lanes, &mut self.main);
        let (mine, others) = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..pieces)
                .zip(lanes)
                .map(|(number, lane)| scope.spawn(move || send(lane, number)))
                .collect();
            let mine = send(main, 0);
            let others: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
            (mine, others)
        });
        let mut sum = mine?;
        for done in others {
            let done = done.unwrap_or_else(|_| {
                let why = io::Error::other("the thread that sends pages panicked");
                Err(failed("sending pages")(why))
            });
            sum += done.map_err(|error| self.cause(error))?;
        }
        Ok(sum)
    }

    /// Why a further connection broke: the destination says it on the first.
    fn cause(&mut self, error: MigrationError) -> MigrationError {
        match error {
            MigrationError::PeerVanished { doing, source, .. } => self.main.unsent(&doing, source),
            other => other,
        }
    }
}

/// Cuts pages into pieces for the connections to take, as far as that is worth it.
fn pieces(pages: &[u64], connections: usize) -> Vec<&[u64]> {
    let each = pages.len().div_ceil(connections.max(1));
    pages.chunks(each.clamp(WORTH, BATCH_PAGES)).collect()
}

impl<S: ScatterRead + GatherWrite + Send> SourceStream for Parallel<S> {
    fn open(&mut self, description: &[u8]) -> Result<(), MigrationError> {
        self.main.open(description)?;
        for number in 0..self.lanes.len() {
            let opened = self
                .lanes
                .get_mut(number)
                .map_or(Ok(()), Source::open_image);
            opened.map_err(|error| self.cause(error))?;
        }
        Ok(())
    }

    fn plain_copy(&mut self, memory: &[DmaMemory]) -> Result<Duration, MigrationError> {
        self.main.plain_copy(memory)
    }

    fn pages(
        &mut self,
        memory: &[DmaMemory],
        pages: &[u64],
        new: New,
    ) -> Result<Sent, MigrationError> {
        let connections = self.lanes.len() + 1;
        let pieces = pieces(pages, connections);
        let taken = AtomicUsize::new(connections);
        // Each begins with a piece of its own. Then whoever is free takes the next one: no connection
        // waits for a slower one.
        let run = |source: &mut Source<S>, first: usize| -> Result<Sent, MigrationError> {
            let mut sent = Sent::default();
            let mut next = first;
            while let Some(piece) = pieces.get(next) {
                sent += source.pages(memory, piece, new).inspect_err(|_| {
                    // The others need not go on with a round that has failed.
                    taken.store(pieces.len(), Ordering::Relaxed);
                })?;
                next = taken.fetch_add(1, Ordering::Relaxed);
            }
            Ok(sent)
        };
        self.each(pieces.len(), run)
    }

    fn round_end(&mut self, round: u32) -> Result<Vec<u64>, MigrationError> {
        let mut unchanged = self.main.round_end(round)?;
        for number in 0..self.lanes.len() {
            let lane = self.lanes.get_mut(number);
            let ended = lane.map_or(Ok(Vec::new()), |lane| lane.round_end(round));
            unchanged.extend(ended.map_err(|error| self.cause(error))?);
        }
        Ok(unchanged)
    }

    fn device(&mut self, record: &DeviceRecord) -> Result<(), MigrationError> {
        self.main.device(record)
    }

    fn end(&mut self) -> Result<Duration, MigrationError> {
        for number in 0..self.lanes.len() {
            let ended = self.lanes.get_mut(number).map_or(Ok(()), Source::end_image);
            ended.map_err(|error| self.cause(error))?;
        }
        self.main.end()
    }

    fn go(&mut self) -> Result<(), MigrationError> {
        self.main.go()
    }

    fn abort(&mut self) {
        self.main.abort();
    }
}

/// Takes connections of one source, in any order: the stream, and what comes beside it.
///
/// # Errors
/// [`MigrationError::Connection`] if one of them does not start with JOIN, or they do not belong
/// together.
pub fn join(
    sockets: Vec<Connection>,
) -> Result<(Destination<Connection>, Lanes<'static>), MigrationError> {
    let count = count_of(sockets.len())?;
    let mut places: Vec<Option<Connection>> = sockets.iter().map(|_| None).collect();
    let mut session = None;
    for mut socket in sockets {
        let (of, index, expected) = read_join(&mut socket)?;
        let known = *session.get_or_insert(of);
        let place = usize::try_from(index).ok();
        let place = place.and_then(|index| places.get_mut(index));
        match place {
            Some(place @ None) if known == of && expected == count => *place = Some(socket),
            _ => {
                let why = format!(
                    "expected {count} connections of one source, each once, got number {index} of \
                     {expected}; start both sides with the same --connections"
                );
                let error = io::Error::new(io::ErrorKind::InvalidData, why);
                return Err(failed("joining connections")(error));
            }
        }
    }
    let mut connections = places.into_iter().flatten();
    let none = || failed("joining connections")(io::ErrorKind::NotConnected.into());
    let main = connections.next().ok_or_else(none)?;
    let others: Vec<Connection> = connections.collect();
    let reading = main.clone();
    let stream = |socket: &Connection| {
        Box::new(Destination::lane(socket.clone())) as Box<dyn DestinationStream + Send>
    };
    let lanes = Lanes {
        streams: others.iter().map(stream).collect(),
        wake: Some(Box::new(move || reading.stop_reading())),
        hang_up: Some(Box::new(move || {
            others.iter().for_each(Connection::hang_up)
        })),
    };
    Ok((Destination::new(main), lanes))
}

/// Session, index, and count.
fn read_join(socket: &mut Connection) -> Result<(Uuid, u32, u32), MigrationError> {
    let mut bytes = [0; HEAD_BYTES + 24];
    let read = socket.read_exact(&mut bytes);
    read.map_err(super::connection::explain)
        .map_err(failed("waiting for a connection to say what it belongs to"))?;
    let (head, body) = bytes.split_at(HEAD_BYTES);
    let head: [u8; HEAD_BYTES] = head.try_into().unwrap_or_default();
    if Message::of(Head::from_bytes(head)) != Some(Message::Join) {
        let advice = match is_tls(&head) {
            true => TLS_CAME,
            false => {
                "the source sends over one connection; start both sides with the same --connections"
            }
        };
        let why = format!("expected JOIN, got {head:02x?}: {advice}");
        let error = io::Error::new(io::ErrorKind::InvalidData, why);
        return Err(failed("joining connections")(error));
    }
    let session = body.first_chunk().copied().unwrap_or_default();
    let number = |at: usize| {
        let bytes = body.get(at..at + 4).and_then(|b| b.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    Ok((Uuid::from_bytes(session), number(16), number(20)))
}
