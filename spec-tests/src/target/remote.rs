//! Functions and backends that are not ours: reached again for every case, restarted if they die.

use super::vhost_user::VhostUserBus;
use super::{Emulated, Subject, Target, Variant};
use crate::cases::Reach;
use crate::constants::{Place, cfg_type, pci, reg};
use crate::harness::{Absent, Caps, Stop};
use driver::bus::{Bus, BusError, Interrupt, VfioBus, VfioUserBus};
use driver::memory::DmaMemory;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a restarted target is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Where a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// In this process.
    Emulated,
    /// A PCI function bound to vfio-pci.
    Vfio(String),
    /// The socket of a vfio-user server.
    VfioUser(PathBuf),
    /// The socket of a vhost-user backend.
    VhostUser(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "emulated" => Ok(Self::Emulated),
            Some(("vfio", address)) if !address.is_empty() => Ok(Self::Vfio(address.to_owned())),
            Some(("vfio-user", path)) if !path.is_empty() => Ok(Self::VfioUser(path.into())),
            Some(("vhost-user", path)) if !path.is_empty() => Ok(Self::VhostUser(path.into())),
            _ => Err(format!(
                "expected emulated, vfio:0000:03:00.0, vfio-user:PATH or vhost-user:PATH, got '{text}'"
            )),
        }
    }
}

impl Address {
    /// What is there, ready to be judged; nothing is reached yet. `limit` is how long it may take for
    /// anything that it must do, `restart` a command for a shell that starts it again after it died
    /// or hung, `allow_write` whether its medium may be written.
    pub fn target(
        self,
        limit: Duration,
        restart: Option<String>,
        allow_write: bool,
    ) -> Arc<dyn Target> {
        match self {
            Self::Emulated => Arc::new(Emulated {
                limit,
                ..Emulated::default()
            }),
            address => Arc::new(Remote::new(address, limit, restart, allow_write)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emulated => f.write_str("emulated"),
            Self::Vfio(address) => write!(f, "vfio:{address}"),
            Self::VfioUser(path) => write!(f, "vfio-user:{}", path.display()),
            Self::VhostUser(path) => write!(f, "vhost-user:{}", path.display()),
        }
    }
}

/// A target that is reached over a bus.
#[derive(Debug)]
pub struct Remote {
    /// Where it is; not [`Address::Emulated`].
    pub address: Address,
    /// Its medium may be written.
    pub allow_write: bool,
    /// How long it may take for anything that it must do.
    pub limit: Duration,
    /// The command, for a shell, that starts it again after it died.
    pub restart: Option<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bus: Option<Arc<Again>>,
    child: Option<Child>,
}

impl Remote {
    /// A target at `address`; nothing is reached yet.
    pub fn new(
        address: Address,
        limit: Duration,
        restart: Option<String>,
        allow_write: bool,
    ) -> Self {
        Self {
            address,
            allow_write,
            limit,
            restart,
            state: Mutex::default(),
        }
    }

    fn open(&self) -> Result<Arc<dyn Bus>, String> {
        match &self.address {
            Address::Emulated => Err("the emulated target is reached in this process".to_owned()),
            Address::Vfio(address) => {
                let address = address.parse()?;
                let bus = VfioBus::open(address).map_err(|error| error.to_string())?;
                Ok(bus)
            }
            Address::VfioUser(path) => {
                let bus = VfioUserBus::connect(path).map_err(|error| error.to_string())?;
                Ok(bus)
            }
            Address::VhostUser(path) => {
                let bus = VhostUserBus::connect(path).map_err(|error| error.to_string())?;
                Ok(Arc::new(bus))
            }
        }
    }

    /// Starts the target by its command, and waits until it answers.
    fn start(&self, state: &mut State) -> Result<Arc<dyn Bus>, String> {
        let Some(command) = &self.restart else {
            return Err("there is no command to restart it (--restart)".to_owned());
        };
        stop(&mut state.child);
        let child = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .spawn();
        state.child =
            Some(child.map_err(|error| format!("'{command}' cannot be started: {error}"))?);
        let begun = Instant::now();
        loop {
            match self.open() {
                Ok(bus) => return Ok(bus),
                Err(error) if begun.elapsed() > self.limit => {
                    return Err(format!(
                        "'{command}' was started, and the target does not answer: {error}"
                    ));
                }
                Err(_) => thread::sleep(ASK_EVERY),
            }
        }
    }

    /// The bus, reached anew if there is none. A backend is connected to anew for every case, since
    /// its protocol has no reset.
    fn bus(&self) -> Result<Arc<Again>, String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.reach() == Reach::Rings {
            state.bus = None;
        }
        if let Some(bus) = &state.bus {
            return Ok(Arc::clone(bus));
        }
        let bus = match self.open() {
            Ok(bus) => bus,
            Err(error) if self.restart.is_none() => return Err(error),
            Err(_) => self.start(&mut state)?,
        };
        let bus = Arc::new(Again {
            bus,
            memory: Mutex::default(),
            over: AtomicBool::new(false),
        });
        state.bus = Some(Arc::clone(&bus));
        Ok(bus)
    }
}

/// Ends a child that this target started.
fn stop(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        // It may have gone by itself, and then there is nothing to be done.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.bus = None;
        stop(&mut state.child);
    }
}

impl Target for Remote {
    fn name(&self) -> String {
        self.address.to_string()
    }

    fn fresh(&self, want: Variant) -> Result<Subject, Stop> {
        if !want.may_be_plain() {
            return Err(Stop::NotApplicable(Absent::Variant(want)));
        }
        let bus = self.bus().map_err(Stop::Lost)?;
        match bus.bus.reset() {
            // Not every function has a function level reset: the device reset has to do then.
            Ok(()) | Err(BusError::Refused { .. } | BusError::Exhausted { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        enable(bus.as_ref())?;
        quiesce(bus.as_ref(), self.limit)?;
        bus.clear()?;
        Ok(Subject {
            bus,
            change_config: None,
            members: Vec::new(),
            limit: self.limit,
        })
    }

    /// Nothing is said about a stranger but by a profile.
    fn claims(&self, _what: Absent) -> bool {
        false
    }

    fn limit(&self) -> Duration {
        self.limit
    }

    fn reach(&self) -> Reach {
        match self.address {
            Address::VhostUser(_) => Reach::Rings,
            _ => Reach::Function,
        }
    }

    fn may_write(&self) -> bool {
        self.allow_write
    }

    fn revive(&self) -> Result<(), String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bus) = state.bus.take() {
            bus.end(self.limit);
        }
        if self.restart.is_some() {
            let bus = self.start(&mut state)?;
            state.bus = Some(Arc::new(Again {
                bus,
                memory: Mutex::default(),
                over: AtomicBool::new(false),
            }));
            return Ok(());
        }
        drop(state);
        self.bus().map(|_| ())
    }
}

/// Lets the function answer at its BARs and reach memory, as the system does before a driver gets
/// it: it may be off after power-on and after a reset.
fn enable(bus: &dyn Bus) -> Result<(), Stop> {
    let mut command = [0; 2];
    bus.config_read(pci::COMMAND, &mut command)?;
    let enabled = u16::from_le_bytes(command) | pci::COMMAND_ENABLED;
    bus.config_write(pci::COMMAND, &enabled.to_le_bytes())?;
    Ok(())
}

/// Writes 0 to the status of a function and waits for it. A function that does not get there is for
/// the cases to judge.
fn quiesce(bus: &dyn Bus, limit: Duration) -> Result<(), Stop> {
    let caps = Caps::walk(bus)?;
    let (Some(common), Place::Common) = (caps.first(cfg_type::COMMON), reg::DEVICE_STATUS.place)
    else {
        return Ok(());
    };
    let at = common.region.offset + reg::DEVICE_STATUS.offset;
    bus.bar_write(common.region.bar, at, &[0])?;
    let begun = Instant::now();
    loop {
        let mut status = [0];
        bus.bar_read(common.region.bar, at, &mut status)?;
        if status == [0] || begun.elapsed() > limit {
            return Ok(());
        }
        thread::yield_now();
    }
}

/// A bus whose memory serves one case after the other: a function is not given more and more.
#[derive(Debug)]
struct Again {
    bus: Arc<dyn Bus>,
    memory: Mutex<Option<DmaMemory>>,
    /// No access gets through any more.
    over: AtomicBool,
}

impl Again {
    /// Ends a case that was given up and goes on: its next access fails. A function is given to one
    /// user at a time, so its end is awaited; one that hangs in an access is not, beyond the limit.
    fn end(self: Arc<Self>, limit: Duration) {
        self.over.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        while Arc::strong_count(&self) > 1 && begun.elapsed() < limit {
            thread::sleep(ASK_EVERY);
        }
    }

    /// The bus, for a case that was not given up.
    fn through(&self) -> Result<&dyn Bus, BusError> {
        match self.over.load(Ordering::SeqCst) {
            false => Ok(self.bus.as_ref()),
            true => Err(BusError::Unreachable {
                doing: "going on with a case that was given up",
                source: io::Error::from(io::ErrorKind::TimedOut),
            }),
        }
    }

    /// Zeroes what the last case had, which the device has been reset away from.
    fn clear(&self) -> Result<(), Stop> {
        if let Some(memory) = &*self.memory.lock().unwrap_or_else(PoisonError::into_inner) {
            let zeroes = vec![0; usize::try_from(memory.len()).unwrap_or(0)];
            memory.write(0, &zeroes)?;
        }
        Ok(())
    }
}

impl Bus for Again {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError> {
        self.through()?.config_read(offset, data)
    }
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), BusError> {
        self.through()?.config_write(offset, data)
    }
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        self.through()?.bar_read(bar, offset, data)
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        self.through()?.bar_write(bar, offset, data)
    }
    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError> {
        let mut kept = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = kept.as_ref().filter(|memory| memory.len() == len) {
            return Ok(memory.clone());
        }
        let memory = self.through()?.dma_alloc(len)?;
        *kept = Some(memory.clone());
        Ok(memory)
    }
    fn interrupt(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        let interrupt = self.through()?.interrupt(vector)?;
        // What fired for an earlier case is none of this one's.
        interrupt.wait(Duration::ZERO);
        Ok(interrupt)
    }
    fn reset(&self) -> Result<(), BusError> {
        self.through()?.reset()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        for text in [
            "emulated",
            "vfio:0000:03:00.0",
            "vfio-user:/run/a",
            "vhost-user:/run/b",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "vfio", "vfio-user:", "scsi:/x"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_target_that_is_not_there_is_lost_and_stays_so() {
        let nowhere = Address::VfioUser("/nonexistent/socket".into());
        let target = Remote::new(nowhere, Duration::from_millis(50), None, false);
        assert!(matches!(target.fresh(Variant::Plain), Err(Stop::Lost(_))));
        assert!(target.revive().is_err());
    }

    #[test]
    fn a_restart_that_does_not_help_says_so() {
        let nowhere = Address::VfioUser("/nonexistent/socket".into());
        let restart = Some("true".to_owned());
        let target = Remote::new(nowhere, Duration::from_millis(50), restart, false);
        let error = target.revive().unwrap_err();
        assert!(error.contains("does not answer"), "{error}");
    }
}
