//! The mediator's control socket: one JSON object in, one out.

use super::{InflightLog, MediateError, Mediator};
use crate::asking;
use driver::bus::RelayBus;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt::{self, Debug};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a mediator can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// Moves the guest to another device.
    Move {
        /// The device, as the mediator's opener knows it.
        to: String,
        /// The table of what a device that died had in flight.
        inflight: Option<PathBuf>,
        /// Where the stream is kept in which the device's state went.
        stream: Option<PathBuf>,
    },
    /// Says how things stand.
    Status,
}

/// Why a mediator's answer did not come.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The mediator cannot be reached.
    #[error("cannot ask the mediator at {path}: {error}; its --control socket was expected there")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The mediator could not do it; its own words.
    #[error("{0}")]
    Refused(String),
}

/// Opens the devices that requests name.
type Open = dyn Fn(&str) -> Result<Arc<dyn RelayBus>, String> + Send + Sync;

/// Answers requests.
pub struct Control {
    mediator: Arc<Mediator>,
    open: Box<Open>,
}

impl Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("mediator", &self.mediator)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Answers for a mediator; `open` opens the devices that it is to move to.
    pub fn new(
        mediator: Arc<Mediator>,
        open: impl Fn(&str) -> Result<Arc<dyn RelayBus>, String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            mediator,
            open: Box::new(open),
        }
    }

    /// Answers those who connect, one after the other, for ever.
    pub fn run(&self, listener: &UnixListener) {
        for client in listener.incoming() {
            let answered = client
                .and_then(|client| asking::answer(&client, |request| self.carry_out(request)));
            if let Err(error) = answered {
                tracing::warn!(%error, "a control client was not answered");
            }
        }
    }

    fn carry_out(&self, request: Request) -> Result<Value, String> {
        let value = match request {
            Request::Status => serde_json::to_value(self.mediator.report()),
            Request::Move {
                to,
                inflight,
                stream,
            } => {
                let log = inflight.map(|path| InflightLog::open(&path)).transpose();
                let log = log.map_err(|error| error.to_string())?;
                let moved = (self.open)(&to)
                    .and_then(|bus| {
                        let moved = self.mediator.move_to(&to, bus, log.as_ref());
                        moved.map_err(|error: MediateError| error.to_string())
                    })
                    .inspect_err(|error| tracing::warn!(to, error, "a move failed"))?;
                if let Some(path) = stream {
                    std::fs::write(&path, &moved.stream).map_err(|error| {
                        let path = path.display();
                        format!(
                            "the device was moved; its stream cannot be kept in {path}: {error}"
                        )
                    })?;
                }
                serde_json::to_value(moved)
            }
        };
        value.map_err(|error| error.to_string())
    }
}

/// Asks the mediator whose control socket is at `path`, and waits for its answer.
///
/// # Errors
///
/// [`ControlError`].
pub fn ask(path: &Path, request: &Request) -> Result<Value, ControlError> {
    match asking::ask(path, request, None) {
        Ok(answer) => answer.map_err(ControlError::Refused),
        Err(error) => Err(ControlError::Unreachable {
            path: path.to_owned(),
            error,
        }),
    }
}
