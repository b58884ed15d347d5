//! Pages over further connections, each taken by a thread of its own.

use super::store::{Store, Taker};
use super::{Received, name};
use crate::error::MigrationError;
use crate::stream::{DestinationStream, Order};
use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};

/// What comes beside the stream.
#[derive(Default)]
pub struct Lanes<'a> {
    /// One for each further connection: pages, and their end.
    pub streams: Vec<Box<dyn DestinationStream + Send + 'a>>,
    /// Ends whatever is waited for on the stream itself, which can still be answered on.
    pub wake: Option<Box<dyn Fn() + Sync + 'a>>,
    /// Hangs up all further connections.
    pub hang_up: Option<Box<dyn Fn() + 'a>>,
}

impl fmt::Debug for Lanes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lanes({})", self.streams.len())
    }
}

type Ended = Result<Received, MigrationError>;

/// The other connections, for whoever takes the stream.
#[derive(Debug)]
pub(super) struct Beside {
    ended: Receiver<Ended>,
    running: usize,
}

impl Beside {
    /// Waits until all have come to their end.
    pub(super) fn end(&mut self) -> Ended {
        let mut received = Received::default();
        while self.running > 0 {
            // Each thread says how it ended, whatever happens.
            let Ok(ended) = self.ended.recv() else { break };
            self.running -= 1;
            received.add(ended?);
        }
        Ok(received)
    }

    /// What happened first, if the stream ended with `error`.
    pub(super) fn cause(&self, error: MigrationError) -> MigrationError {
        let vanished =
            |error: &MigrationError| matches!(error, MigrationError::PeerVanished { .. });
        if !vanished(&error) {
            return error;
        }
        let mut faults = self.ended.try_iter().filter_map(Result::err);
        faults.find(|fault| !vanished(fault)).unwrap_or(error)
    }
}

/// Runs `main` while the lanes are taken.
pub(super) fn beside<T>(
    store: &Store,
    lanes: Lanes<'_>,
    main: impl FnOnce(Beside) -> Result<T, MigrationError>,
) -> Result<T, MigrationError> {
    let Lanes {
        streams,
        wake,
        hang_up,
    } = lanes;
    let (sender, ended) = channel();
    let running = streams.len();
    std::thread::scope(|scope| {
        let wake = wake.as_deref();
        for (number, stream) in (1..).zip(streams) {
            let sender = sender.clone();
            let thread = std::thread::Builder::new().name(format!("connection {number}"));
            let spawned =
                thread.spawn_scoped(scope, move || run(number, stream, store, &sender, wake));
            if let Err(source) = spawned {
                if let Some(hang_up) = &hang_up {
                    hang_up();
                }
                return Err(MigrationError::Connection {
                    doing: format!("taking connection {number}"),
                    source,
                });
            }
        }
        drop(sender);
        let done = main(Beside { ended, running });
        // After a success nobody listens there any more; after a failure nobody shall.
        if let Some(hang_up) = &hang_up {
            hang_up();
        }
        done
    })
}

fn run(
    number: u32,
    mut stream: Box<dyn DestinationStream + Send + '_>,
    store: &Store,
    sender: &Sender<Ended>,
    wake: Option<&(dyn Fn() + Sync)>,
) {
    let mut taker = Taker::new(store);
    let ended = take(stream.as_mut(), &mut taker);
    let failed = ended.is_err();
    if let Err(error) = &ended {
        tracing::info!(number, %error, "a connection ended");
    }
    // Nobody listens who has failed already.
    let told = sender.send(ended.map(|()| taker.received));
    tracing::debug!(number, told = told.is_ok(), "connection");
    if failed && let Some(wake) = wake {
        wake();
    }
}

fn take(stream: &mut dyn DestinationStream, taker: &mut Taker<'_>) -> Result<(), MigrationError> {
    loop {
        match stream.next()? {
            Order::Pages(pages) => taker.pages(stream, &pages)?,
            Order::ZeroPages(pages) => taker.zero_pages(stream, &pages)?,
            Order::End => return Ok(()),
            Order::Abort => return Err(MigrationError::Aborted),
            other => {
                let expected = "pages or the end of them".to_owned();
                return Err(stream.fault(expected, name(&other).to_owned()));
            }
        }
    }
}
