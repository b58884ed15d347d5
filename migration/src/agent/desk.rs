//! One device of an agent: its layers, its lease, and the thread that configures it.

use crate::agent::host::HostError;
use crate::agent::{Abilities, DeviceConfig, Journal, JournalError, Status};
use crate::lock::{Answer, Claim, Claimant, Holder, Layers, RemoteError, Request, Token};
use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use uuid::Uuid;

/// A device that an agent configures.
pub trait Managed: Send {
    /// What it can be configured to do. Does not change.
    fn abilities(&self) -> Abilities;

    /// Makes it what the configuration says, whatever it was before; may take long. It has been
    /// [checked](DeviceConfig::check).
    ///
    /// # Errors
    /// Why not, in words; it may be anything then.
    fn apply(&mut self, config: &DeviceConfig) -> Result<(), String>;

    /// Whether somebody else has reset it since it was last applied to.
    fn was_reset(&mut self) -> bool;
}

/// What is known of the device, all of it under one lock.
struct State {
    layers: Layers<DeviceConfig>,
    /// When the holder was last heard of.
    heard: Instant,
    /// Why the device cannot be configured any more.
    lost: Option<String>,
}

/// What the thread that configures it shares with those who answer.
struct Shared {
    name: String,
    journal: Journal,
    state: Mutex<State>,
    /// Held while it is configured.
    device: Mutex<Box<dyn Managed>>,
}

/// One device.
pub(super) struct Desk {
    shared: Arc<Shared>,
    abilities: Abilities,
    lease: Duration,
    work: Sender<()>,
}

impl Desk {
    /// Takes up what the journal has of it, brings it back to that, and goes on with an apply that had
    /// begun.
    pub(super) fn open(
        name: &str,
        mut device: Box<dyn Managed>,
        journal: Journal,
        lease: Duration,
    ) -> Result<Self, HostError> {
        let kept = journal.read()?;
        let mut layers = kept.unwrap_or_else(|| Layers::new(DeviceConfig::default()));
        let unable = |reason| HostError::Device {
            device: name.to_owned(),
            reason,
        };
        if device.was_reset() {
            // While this agent was not there: whoever held it holds nothing any more.
            layers.reset(untouched(&layers));
            journal.write(&layers)?;
        }
        device.apply(layers.running()).map_err(unable)?;
        let abilities = device.abilities();
        let applying = layers.is_applying();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            journal,
            state: Mutex::new(State {
                layers,
                heard: Instant::now(),
                lost: None,
            }),
            device: Mutex::new(device),
        });
        let (work, orders) = channel();
        let worker = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("device {name}"))
            .spawn(move || worker.work(&orders))
            .map_err(|error: io::Error| unable(format!("no thread for it: {error}")))?;
        let desk = Self {
            shared,
            abilities,
            lease,
            work,
        };
        if applying {
            desk.order();
        }
        Ok(desk)
    }

    /// Answers a request, and has kept what that promises.
    pub(super) fn ask(&self, request: Request<DeviceConfig>) -> Result<Answer, HostError> {
        let mut state = self.current();
        if let Request::Lock { who, .. } = &request {
            admitted(&state, &who.who)?;
        }
        if let Request::Stage { change, .. } = &request {
            if let Some(why) = &state.lost {
                let why = format!("the device is lost until the agent begins anew: {why}");
                return Err(RemoteError::Refused(why).into());
            }
            let fit = change.check(&self.shared.name, self.abilities);
            fit.map_err(|unfit| RemoteError::Refused(unfit.to_string()))?;
        }
        let was_applying = state.layers.is_applying();
        // Whoever locks or shows a token that is valid is the holder.
        let holder = !matches!(request, Request::Release { .. });
        let answer = self.change(&mut state, |layers| layers.answer(request, now()))?;
        if holder {
            state.heard = Instant::now();
        }
        if state.layers.is_applying() && !was_applying {
            self.order();
        }
        Ok(answer)
    }

    /// Hears of the holder of this token.
    pub(super) fn renew(&self, token: Token) -> Result<(), HostError> {
        self.ask(Request::Poll { token }).map(|_| ())
    }

    /// Frees it by force and says whom that hit.
    pub(super) fn free(&self, by: &str) -> Result<Option<Holder>, HostError> {
        let mut state = self.current();
        let freed = self.change(&mut state, |layers| {
            // What is being applied cannot be called back: its lock ends with it.
            Ok(if layers.is_applying() {
                layers.expire()
            } else {
                layers.force()
            })
        })?;
        let device = &self.shared.name;
        match &freed {
            Some(holder) => tracing::warn!(device, by, %holder, "unlocked by force"),
            None => tracing::warn!(device, by, "to be unlocked by force, and was not locked"),
        }
        Ok(freed)
    }

    /// Gives an apply that runs to another manager.
    pub(super) fn take_over(
        &self,
        task: Uuid,
        claim: Claim,
        who: Claimant,
        force: bool,
    ) -> Result<Token, HostError> {
        let mut state = self.current();
        admitted(&state, &who.who)?;
        let name = who.who.clone();
        let token = self.change(&mut state, |layers| {
            layers.take_over(task, claim, who, now(), force)
        })?;
        state.heard = Instant::now();
        tracing::warn!(device = self.shared.name, by = name, %task, "apply taken over");
        Ok(token)
    }

    /// What anyone may know.
    pub(super) fn status(&self) -> Status {
        let state = self.current();
        let layers = &state.layers;
        let left = self.lease.saturating_sub(state.heard.elapsed());
        Status {
            name: self.shared.name.clone(),
            abilities: self.abilities,
            running: layers.running().clone(),
            pending: layers.pending().cloned(),
            holder: layers.holder().cloned(),
            lease_left_ms: layers
                .holder()
                // Rounded up: 0 is said only when it has run out.
                .map(|_| u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)),
            generation: layers.generation(),
            task: layers.task().map(|(id, _)| id),
            progress: layers.task().map(|(_, progress)| progress.clone()),
        }
    }

    /// Ends the lease if it has run out.
    pub(super) fn sweep(&self) {
        drop(self.current());
    }

    /// How long a holder may be silent.
    pub(super) fn lease(&self) -> Duration {
        self.lease
    }

    /// The state as it is now: after the end of a lease that has run out, and of a reset.
    fn current(&self) -> MutexGuard<'_, State> {
        let mut state = self.shared.state();
        if state.layers.holder().is_some() && state.heard.elapsed() >= self.lease {
            let gone = self.change(&mut state, |layers| Ok(layers.expire()));
            match gone {
                Ok(Some(holder)) => tracing::warn!(
                    device = self.shared.name, %holder, lease = ?self.lease,
                    "not heard of for a whole lease: its lock is void"
                ),
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "a lease that ran out cannot be kept"),
            }
        }
        let device = match self.shared.device.try_lock() {
            // It is being configured.
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Ok(device) => Some(device),
        };
        if let Some(mut device) =
            device.filter(|_| !state.layers.is_applying() && state.lost.is_none())
            && device.was_reset()
        {
            tracing::warn!(device = self.shared.name, "it was reset: its lock is void");
            let reset = self.change(&mut state, |layers| {
                layers.reset(untouched(layers));
                Ok(())
            });
            // It is a device again, and nothing more.
            let applied = device.apply(state.layers.running());
            if let Err(error) = reset.map_err(|error| error.to_string()).and(applied) {
                tracing::error!(device = self.shared.name, error, "it is lost");
                state.lost = Some(error);
            }
        }
        state
    }

    /// Changes the layers and keeps the change; without that nothing changes.
    fn change<T>(
        &self,
        state: &mut State,
        change: impl FnOnce(&mut Layers<DeviceConfig>) -> Result<T, RemoteError>,
    ) -> Result<T, HostError> {
        let before = state.layers.clone();
        let done = change(&mut state.layers)?;
        if state.layers != before
            && let Err(error) = self.shared.journal.write(&state.layers)
        {
            state.layers = before;
            return Err(error.into());
        }
        Ok(done)
    }

    fn order(&self) {
        // The thread ends only after this is gone.
        let _ = self.work.send(());
    }
}

/// The time as it is kept and told: in whole milliseconds, so that an end changes nothing.
fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let millis = u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

/// What a device is that was reset: who may migrate it stays.
fn untouched(layers: &Layers<DeviceConfig>) -> DeviceConfig {
    DeviceConfig {
        managers: layers.running().managers.clone(),
        ..DeviceConfig::default()
    }
}

/// Whether this manager may lock the device.
fn admitted(state: &State, who: &str) -> Result<(), RemoteError> {
    if state.layers.running().admits(who) {
        return Ok(());
    }
    let managers = state.layers.running().managers.join(", ");
    Err(RemoteError::Refused(format!(
        "{who} may not migrate this device; {managers} may"
    )))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies what is pending, each time it is told to.
    fn work(&self, orders: &Receiver<()>) {
        for () in orders {
            let (running, pending) = {
                let state = self.state();
                let pending = state
                    .layers
                    .pending()
                    .filter(|_| state.layers.is_applying());
                (state.layers.running().clone(), pending.cloned())
            };
            let Some(pending) = pending else { continue };
            let result = self.configure(&running, &pending);
            if let Err(error) = self.finish(result) {
                // In memory it is as it is; after a kill it is applied again.
                tracing::error!(device = self.name, %error, "the end of an apply cannot be kept");
            }
        }
    }

    fn configure(&self, running: &DeviceConfig, pending: &DeviceConfig) -> Result<(), String> {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = match device.apply(pending) {
            Ok(()) => return Ok(()),
            Err(reason) => reason,
        };
        match device.apply(running) {
            Ok(()) => Err(reason),
            Err(second) => Err(format!("{reason}; and it cannot be put back: {second}")),
        }
    }

    fn finish(&self, result: Result<(), String>) -> Result<(), JournalError> {
        let mut state = self.state();
        state.layers.finish(result);
        self.journal.write(&state.layers)
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk")
            .field("name", &self.shared.name)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}
