//! The place of a guest's device, as an agent in another process reaches it.
//!
//! The process that runs the guest drives its devices: it harvests what they mark, and it alone knows
//! when nothing more is in flight. So an agent does not drive the device of a running guest itself. It
//! asks that process, over a socket for each device, and every harvest is of the tracker that was started
//! this way.
//!
//! The guest comes first: whoever runs it can [take its devices back](Seat::take_back) at any time, and
//! what was configured before that is void: nothing but a plain device is taken from an agent until it
//! has seen that.

mod tracker;

pub(crate) use tracker::SharedTracker;

use crate::asking;
use driver::{Transport, suspend};
use migration::agent::{Abilities, DeviceConfig, Managed};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the device may take to suspend or to resume.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long whoever runs the guest may take to say how a device is.
const LOOK: Duration = Duration::from_secs(2);
/// How long it may take to configure one: longer than the device may.
const APPLY: Duration = Duration::from_secs(30);

/// What an agent asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    /// To be told how it is.
    Look,
    /// To make it this.
    Apply { config: DeviceConfig },
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Look {
    /// No agent has configured it since it came or was taken back.
    fresh: bool,
}

/// A device that sits here.
#[derive(Clone, Debug)]
struct Seated {
    transport: Arc<Transport>,
    tracker: SharedTracker,
}

#[derive(Debug)]
struct State {
    device: Option<Seated>,
    /// What arrives here may not go on.
    held: bool,
    fresh: bool,
}

/// The place of one device.
#[derive(Debug)]
pub struct Seat(Mutex<State>);

impl Default for Seat {
    fn default() -> Self {
        Self(Mutex::new(State {
            device: None,
            held: false,
            fresh: true,
        }))
    }
}

impl Seat {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is held for a guest that may not go on yet.
    pub(crate) fn is_held(&self) -> bool {
        self.state().held
    }

    /// The device of a guest that goes on here from now on, whoever holds the place.
    pub(crate) fn take(&self, transport: &Arc<Transport>, tracker: SharedTracker) {
        let mut state = self.state();
        state.fresh |= state.held;
        state.held = false;
        state.device = Some(Seated {
            transport: Arc::clone(transport),
            tracker,
        });
    }

    /// The guest has left: whatever is asked for, its device is not touched any more.
    pub(crate) fn leave(&self) {
        let mut state = self.state();
        state.device = None;
        // An agent that is killed and comes back finds nothing to bring back to what it was.
        state.fresh = true;
    }

    /// Lets the device go on untracked, and makes void what was configured.
    pub(crate) fn take_back(&self) -> Result<(), String> {
        let mut state = self.state();
        state.fresh = true;
        state.held = false;
        match &state.device {
            Some(device) => configure(device, &DeviceConfig::default()),
            None => Ok(()),
        }
    }

    fn is_fresh(&self) -> bool {
        let mut state = self.state();
        if let Some(device) = &state.device
            && device.tracker.was_reset(&device.transport)
        {
            // Its driver, the guest's, has begun anew: nothing that was configured holds.
            state.fresh = true;
        }
        state.fresh
    }

    fn apply(&self, config: &DeviceConfig) -> Result<(), String> {
        let mut state = self.state();
        let plain = config.tracking.is_none() && !config.suspended;
        if state.fresh && !plain {
            let why = "whoever runs the guest has taken the device back; lock it anew";
            return Err(why.to_owned());
        }
        match &state.device {
            Some(device) => configure(device, config)?,
            None if config.tracking.is_some() => {
                return Err("no guest is here whose writes could be tracked".to_owned());
            }
            None => state.held = config.suspended,
        }
        state.fresh = false;
        Ok(())
    }

    fn carry_out(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::Look => {
                let look = Look {
                    fresh: self.is_fresh(),
                };
                serde_json::to_value(look).map_err(|error| error.to_string())
            }
            Request::Apply { config } => self.apply(&config).map(|()| Value::Null),
        }
    }
}

fn configure(device: &Seated, config: &DeviceConfig) -> Result<(), String> {
    let failed = |doing: &str, error: &dyn std::fmt::Display| format!("{doing}: {error}");
    let tracked = device.tracker.configure(config.tracking.as_ref());
    tracked.map_err(|error| failed("switching its tracker", &error))?;
    let transport = &device.transport;
    if config.suspended {
        suspend::suspend(transport, SUSPEND_TIMEOUT)
            .map_err(|error| failed("suspending it", &error))
    } else {
        suspend::resume(transport, SUSPEND_TIMEOUT)
            .map_err(|error| failed("letting it go on", &error))
    }
}

/// Answers agents, one after the other, for as long as the program runs.
pub fn serve_seat(listener: &UnixListener, seat: &Seat) {
    for client in listener.incoming() {
        let answered =
            client.and_then(|client| asking::answer(&client, |request| seat.carry_out(request)));
        if let Err(error) = answered {
            tracing::warn!(%error, "an agent was not answered");
        }
    }
}

/// A guest's device, for an agent: at a [`Seat`] that somebody [serves](serve_seat).
///
/// While nobody does there is no guest: nothing of it is tracked or suspended, and nothing can be.
#[derive(Debug)]
pub struct SeatedGuest {
    path: PathBuf,
    /// Nobody was there when it was last configured.
    absent: bool,
}

impl SeatedGuest {
    /// The device at this socket.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            absent: false,
        }
    }
}

/// Whether this says that nobody listens.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}

impl Managed for SeatedGuest {
    fn abilities(&self) -> Abilities {
        // Of every guest's devices here; what one lacks is found out when it is configured.
        Abilities {
            tracking: true,
            pasid: false,
            suspend: true,
        }
    }

    fn apply(&mut self, config: &DeviceConfig) -> Result<(), String> {
        let config = config.clone();
        let plain = config.tracking.is_none() && !config.suspended;
        match asking::ask(&self.path, &Request::Apply { config }, Some(APPLY)) {
            Ok(answer) => {
                self.absent = false;
                answer.map(drop)
            }
            Err(error) if plain && is_absence(&error) => {
                self.absent = true;
                Ok(())
            }
            Err(error) => Err(format!("no guest at {}: {error}", self.path.display())),
        }
    }

    fn was_reset(&mut self) -> bool {
        match asking::ask(&self.path, &Request::Look, Some(LOOK)) {
            Ok(Ok(answer)) => {
                let look: Result<Look, _> = serde_json::from_value(answer);
                !look.is_ok_and(|look| !look.fresh)
            }
            Ok(Err(_)) => true,
            Err(error) if is_absence(&error) => !self.absent,
            // It is there and does not answer: nothing is known to have changed.
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
