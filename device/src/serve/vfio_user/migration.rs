//! The states of VFIO's migration protocol, version 2, and the device's data that goes with them.

use super::message::{MigrationData, MigrationState};
use super::served::{Migrates, Refusal};
use rustix::io::Errno;
use zerocopy::IntoBytes;

/// Most bytes of a device's state.
pub const STATE_MAX: usize = 256 << 10;

/// Where the device is. The numbers are VFIO's; the states that it knows beside these are for what is
/// not offered: PRE_COPY and P2P.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    Error,
    Stop,
    #[default]
    Running,
    StopCopy,
    Resuming,
}

impl State {
    fn number(self) -> u32 {
        match self {
            Self::Error => 0,
            Self::Stop => 1,
            Self::Running => 2,
            Self::StopCopy => 3,
            Self::Resuming => 4,
        }
    }

    /// The state that a client may ask for by this number.
    fn asked(number: u32) -> Result<Self, Refusal> {
        let states = [Self::Stop, Self::Running, Self::StopCopy, Self::Resuming];
        let state = states.into_iter().find(|state| state.number() == number);
        state.ok_or_else(|| {
            Refusal::invalid(format!(
                "migration state {number}; STOP 1, RUNNING 2, STOP_COPY 3 or RESUMING 4 expected"
            ))
        })
    }
}

/// A device's migration, as its client steers it.
#[derive(Debug, Default)]
pub(super) struct Migration {
    state: State,
    /// What is read in STOP_COPY, or was written in RESUMING.
    data: Vec<u8>,
    /// How far it was read.
    read: usize,
}

impl Migration {
    /// The state as it is: a reset makes the device run, whichever way it was asked for.
    fn state(&mut self, device: &dyn Migrates) -> State {
        if self.state != State::Running && !device.is_stopped() {
            self.enter(State::Running, Vec::new());
        }
        self.state
    }

    fn enter(&mut self, state: State, data: Vec<u8>) {
        self.state = state;
        self.data = data;
        self.read = 0;
    }

    /// MIG_DEVICE_STATE, to be told.
    pub(super) fn get(&mut self, device: &dyn Migrates) -> MigrationState {
        MigrationState {
            state: self.state(device).number().into(),
            // No descriptor: the data goes in messages.
            data_fd: u32::MAX.into(),
        }
    }

    /// MIG_DEVICE_STATE, to be changed: step by step, and as far as it goes. No path leads through a
    /// state in which data is read, and all but one arc begins or ends with STOP.
    pub(super) fn set(
        &mut self,
        device: &dyn Migrates,
        ask: &MigrationState,
    ) -> Result<(), Refusal> {
        let wanted = State::asked(ask.state.get())?;
        while self.state(device) != wanted {
            self.step(device, wanted)?;
        }
        Ok(())
    }

    fn step(&mut self, device: &dyn Migrates, wanted: State) -> Result<(), Refusal> {
        match (self.state, wanted) {
            (State::Error, _) => {
                let why = "the device has failed; only a reset makes it run again";
                return Err(Refusal::new(Errno::IO, why));
            }
            (State::Running, _) => {
                // What was asked to stop stops some time: nothing but a reset undoes that.
                let stopped = device.stop();
                stopped.inspect_err(|_| self.enter(State::Error, Vec::new()))?;
                self.enter(State::Stop, Vec::new());
            }
            (State::Stop, State::StopCopy) => {
                let data = device.save()?;
                self.enter(State::StopCopy, data);
            }
            (State::Stop, State::Resuming) => self.enter(State::Resuming, Vec::new()),
            (State::Stop, _) => {
                device.start()?;
                self.enter(State::Running, Vec::new());
            }
            (State::StopCopy, _) => self.enter(State::Stop, Vec::new()),
            (State::Resuming, _) => {
                let data = std::mem::take(&mut self.data);
                let loaded = if data.is_empty() {
                    Ok(())
                } else {
                    device.load(&data)
                };
                // Nothing of a state that is refused is in force.
                self.enter(State::Stop, Vec::new());
                loaded?;
            }
        }
        Ok(())
    }

    /// MIG_DATA_READ.
    pub(super) fn read(
        &mut self,
        device: &dyn Migrates,
        ask: &MigrationData,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        if self.state(device) != State::StopCopy {
            return Err(Refusal::invalid("migration data is read in STOP_COPY only"));
        }
        let size = usize::try_from(ask.size.get()).unwrap_or(usize::MAX);
        let room = usize::try_from(ask.argsz.get()).unwrap_or(usize::MAX);
        if room
            .checked_sub(size_of::<MigrationData>())
            .is_none_or(|room| room < size)
        {
            let why = format!("argsz {room} has no room for {size} bytes of migration data");
            return Err(Refusal::invalid(why));
        }
        let rest = self.data.get(self.read..).unwrap_or_default();
        let now = rest.get(..size).unwrap_or(rest);
        let count = u32::try_from(now.len()).unwrap_or(u32::MAX);
        let answer = MigrationData {
            argsz: count.saturating_add(8).into(),
            size: count.into(),
        };
        out.extend_from_slice(answer.as_bytes());
        out.extend_from_slice(now);
        self.read += now.len();
        Ok(())
    }

    /// MIG_DATA_WRITE.
    pub(super) fn write(
        &mut self,
        device: &dyn Migrates,
        ask: &MigrationData,
        data: &[u8],
    ) -> Result<(), Refusal> {
        if self.state(device) != State::Resuming {
            return Err(Refusal::invalid(
                "migration data is written in RESUMING only",
            ));
        }
        if usize::try_from(ask.size.get()) != Ok(data.len()) {
            let (size, got) = (ask.size.get(), data.len());
            let why = format!("{got} bytes of migration data, {size} expected");
            return Err(Refusal::invalid(why));
        }
        if self.data.len() + data.len() > STATE_MAX {
            let why = format!("more than {STATE_MAX} bytes of migration data");
            return Err(Refusal::new(Errno::NOSPC, why));
        }
        self.data.extend_from_slice(data);
        Ok(())
    }
}
