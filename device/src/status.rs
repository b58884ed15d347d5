//! The life of a device: one enum, and one pure function that moves it.
//!
//! The status byte that the driver reads is a function of [`State`] alone, so no other code can
//! present a bit. [`transition`] does no I/O: what is to be done comes back as [`Effects`], which
//! [`crate::function`] carries out.

use bitflags::bitflags;
use spec::status::DeviceStatus;

#[cfg(test)]
mod tests;

/// Where a device is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// After power-on or a finished reset. Presents 0x00.
    #[default]
    Reset,
    /// The guest has found the device. Presents 0x01.
    Acknowledged,
    /// The guest can drive the device; features are being chosen. Presents 0x03.
    Driver,
    /// Features are agreed; queues are being set up. Presents 0x0B.
    FeaturesOk,
    /// Live. Presents 0x0F.
    Running,
    /// SUSPEND was asked for and queues are still draining. Presents 0x0F (VIRTIO 1.4, "Device
    /// Suspend": the bits change once the device is suspended).
    Suspending {
        /// The configuration changed meanwhile; the announcement waits for the resume.
        changed: bool,
    },
    /// Nothing moves. Presents 0x1B.
    Suspended {
        /// The configuration changed meanwhile; the announcement waits for the resume.
        changed: bool,
    },
    /// DRIVER_OK was written again and queues are being started. Presents 0x1B.
    Resuming {
        /// The configuration changed meanwhile.
        changed: bool,
    },
    /// The device met an error. Presents `shown`, which holds DEVICE_NEEDS_RESET.
    NeedsReset {
        /// The byte presented.
        shown: DeviceStatus,
    },
    /// The driver gave up. Presents `shown`, which holds FAILED.
    Failed {
        /// The byte presented.
        shown: DeviceStatus,
    },
    /// A reset goes on. Presents `shown`, never 0, until it is done.
    Resetting {
        /// The byte presented: what was presented before.
        shown: DeviceStatus,
        /// A function level reset, which also resets configuration space.
        flr: bool,
        /// The queues have stopped and registers are being cleared.
        clearing: bool,
    },
}

impl State {
    /// The device status byte that the driver reads.
    pub const fn status(self) -> DeviceStatus {
        const ACKNOWLEDGED: DeviceStatus = DeviceStatus::ACKNOWLEDGE;
        const DRIVER: DeviceStatus = ACKNOWLEDGED.union(DeviceStatus::DRIVER);
        const FEATURES_OK: DeviceStatus = DRIVER.union(DeviceStatus::FEATURES_OK);
        match self {
            Self::Reset => DeviceStatus::empty(),
            Self::Acknowledged => ACKNOWLEDGED,
            Self::Driver => DRIVER,
            Self::FeaturesOk => FEATURES_OK,
            Self::Running | Self::Suspending { .. } => FEATURES_OK.union(DeviceStatus::DRIVER_OK),
            Self::Suspended { .. } | Self::Resuming { .. } => {
                FEATURES_OK.union(DeviceStatus::SUSPEND)
            }
            Self::NeedsReset { shown } | Self::Failed { shown } | Self::Resetting { shown, .. } => {
                shown
            }
        }
    }

    /// Names of all states, each at its [`State::number`].
    pub const NAMES: [&str; 11] = [
        "reset",
        "acknowledged",
        "driver",
        "features_ok",
        "running",
        "suspending",
        "suspended",
        "resuming",
        "needs_reset",
        "failed",
        "resetting",
    ];

    /// Its number, in the order of a device's life; for tools that watch it.
    pub const fn number(self) -> u8 {
        match self {
            Self::Reset => 0,
            Self::Acknowledged => 1,
            Self::Driver => 2,
            Self::FeaturesOk => 3,
            Self::Running => 4,
            Self::Suspending { .. } => 5,
            Self::Suspended { .. } => 6,
            Self::Resuming { .. } => 7,
            Self::NeedsReset { .. } => 8,
            Self::Failed { .. } => 9,
            Self::Resetting { .. } => 10,
        }
    }

    /// The state of a device that presents `status` and is between two steps of its life, for a
    /// device that takes another's place. `None` if no device presents that.
    pub fn restored(shown: DeviceStatus) -> Option<Self> {
        if shown.contains(DeviceStatus::FAILED) {
            return Some(Self::Failed { shown });
        }
        if shown.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return Some(Self::NeedsReset { shown });
        }
        [
            Self::Reset,
            Self::Acknowledged,
            Self::Driver,
            Self::FeaturesOk,
            Self::Running,
            Self::Suspended { changed: false },
        ]
        .into_iter()
        .find(|state| state.status() == shown)
    }
}

/// What a driver's status write is judged against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiation {
    /// The features written are a subset of those offered and include VERSION_1.
    pub acceptable: bool,
    /// VIRTIO_F_SUSPEND (bit 43) is among them.
    pub suspend: bool,
}

/// What happens to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The driver writes the status byte; any of the 256 values.
    Write(u8, Negotiation),
    /// Every queue has stopped: nothing is in flight, all marks and interrupts are out.
    Drained,
    /// The queues cannot be stopped in an orderly way.
    DrainFailed,
    /// Every enabled queue has been started again.
    Resumed,
    /// A queue could not be started again.
    ResumeFailed,
    /// The device met an error from which only a reset recovers.
    DeviceError,
    /// Everything has been cleared.
    ResetDone,
    /// Function level reset (PCI Express), or the front door's reset of the whole function.
    Flr,
    /// The device configuration changed.
    ConfigChanged,
    /// An owner gives the device the status of another, whose place it takes (VIRTIO 1.4,
    /// DEV_PARTS_SET). No queue runs.
    Restore(DeviceStatus),
}

bitflags! {
    /// What is to be done because of a transition.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Effects: u8 {
        /// Tell the device type which features were agreed.
        const NEGOTIATED = 1;
        /// Start every enabled queue. From [`State::Resuming`], report the outcome.
        const START_QUEUES = 1 << 1;
        /// Ask every started queue to stop; [`Event::Drained`] follows when all have.
        const STOP_QUEUES = 1 << 2;
        /// Everything the driver configured goes back to default, tracking included, then
        /// [`Event::ResetDone`] follows.
        const CLEAR = 1 << 3;
        /// With [`Effects::CLEAR`]: configuration space and the MSI-X table too.
        const CLEAR_PCI = 1 << 4;
        /// Send a configuration change notification.
        const NOTIFY_CONFIG = 1 << 5;
    }
}

/// Why an event changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// ST-2. The whole write is ignored (project rule; VIRTIO 1.4 only forbids the driver).
    #[error("status write {written:#04x} clears bits of {shown:#04x} (ST-2)")]
    ClearsBits {
        /// What the driver wrote.
        written: u8,
        /// What the device presents.
        shown: u8,
    },
    /// ST-1. Bits come in the order ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK.
    #[error("status write {written:#04x} skips a step after {shown:#04x} (ST-1)")]
    OutOfOrder {
        /// What the driver wrote.
        written: u8,
        /// What the device presents.
        shown: u8,
    },
    /// The driver's features are not a subset of those offered, or lack VERSION_1: FEATURES_OK
    /// stays clear (VIRTIO 1.4, "Device Initialization", step 6).
    #[error("the driver's features are not acceptable")]
    FeaturesRefused,
    /// SUS-10: SUSPEND before DRIVER_OK.
    #[error("SUSPEND before DRIVER_OK (SUS-4, SUS-10)")]
    SuspendTooEarly,
    /// SUS-4: SUSPEND without VIRTIO_F_SUSPEND.
    #[error("SUSPEND without VIRTIO_F_SUSPEND (SUS-4)")]
    SuspendNotNegotiated,
    /// ST-3, ST-4: after FAILED or DEVICE_NEEDS_RESET only a reset (or FAILED) counts.
    #[error("status write {written:#04x} where only a reset counts (ST-3)")]
    AfterError {
        /// What the driver wrote.
        written: u8,
    },
    /// PC-10: the driver waits until status reads 0 (project rule: what it writes earlier is
    /// ignored).
    #[error("status write {written:#04x} during a reset (PC-10)")]
    DuringReset {
        /// What the driver wrote.
        written: u8,
    },
    /// No device presents this status between two steps of its life.
    #[error("status {0:?} belongs to no state")]
    NoSuchState(DeviceStatus),
    /// An event of the machinery that this state does not wait for: late, and harmless.
    #[error("{event:?} is not awaited in {state:?}")]
    NotAwaited {
        /// Where the device is.
        state: State,
        /// What came.
        event: Event,
    },
}

/// Moves a device from one state to the next.
///
/// `Err` means that nothing changes, and names the rule that says so. Clause ids are those of
/// `reference/virtio-facilities.md`.
pub fn transition(state: State, event: Event) -> Result<(State, Effects), Violation> {
    use State::{
        Acknowledged, Driver, Failed, FeaturesOk, NeedsReset, Reset, Resetting, Resuming, Running,
        Suspended, Suspending,
    };
    let stay = Ok((state, Effects::empty()));
    let not_awaited = Err(Violation::NotAwaited { state, event });

    match (event, state) {
        (Event::Write(value, negotiation), _) => write(state, value, negotiation),

        (Event::Restore(status), State::Resetting { .. }) => Err(Violation::DuringReset {
            written: status.bits(),
        }),
        (Event::Restore(status), _) => {
            let next = State::restored(status).ok_or(Violation::NoSuchState(status))?;
            let mut effects = Effects::empty();
            let agreed = status.contains(DeviceStatus::FEATURES_OK);
            effects.set(Effects::NEGOTIATED, agreed);
            effects.set(Effects::START_QUEUES, next == Running);
            Ok((next, effects))
        }

        // DT-6, PCI Express "Function Level Reset".
        (Event::Flr, _) => Ok(reset(state, true)),

        // SUS-2, SUS-17: presented once everything has drained.
        (Event::Drained, Suspending { changed }) => Ok((Suspended { changed }, Effects::empty())),
        // PC-5, RS-2: a reset completes only when no queue is touched any more.
        (
            Event::Drained,
            Resetting {
                shown,
                flr,
                clearing: false,
            },
        ) => {
            let mut effects = Effects::CLEAR;
            effects.set(Effects::CLEAR_PCI, flr);
            Ok((
                Resetting {
                    shown,
                    flr,
                    clearing: true,
                },
                effects,
            ))
        }
        (Event::Drained, Failed { .. } | NeedsReset { .. }) => stay,
        (
            Event::Drained,
            Reset
            | Acknowledged
            | Driver
            | FeaturesOk
            | Running
            | Suspended { .. }
            | Resuming { .. }
            | Resetting { clearing: true, .. },
        ) => not_awaited,

        // SUS-15 "or set DEVICE_NEEDS_RESET"; DRIVER_OK is presented, so ST-7 applies.
        (Event::DrainFailed, Suspending { .. }) => Ok(needs_reset(state)),
        (
            Event::DrainFailed,
            Reset
            | Acknowledged
            | Driver
            | FeaturesOk
            | Running
            | Suspended { .. }
            | Resuming { .. }
            | NeedsReset { .. }
            | Failed { .. }
            | Resetting { .. },
        ) => not_awaited,

        // SUS-3; SUS-14 for what changed meanwhile.
        (Event::Resumed, Resuming { changed }) => {
            let mut effects = Effects::empty();
            effects.set(Effects::NOTIFY_CONFIG, changed);
            Ok((Running, effects))
        }
        // SUS-16 "or set DEVICE_NEEDS_RESET"; DRIVER_OK is clear, so ST-7 asks for nothing (D-17),
        // and queues that did start must not go on (ST-5).
        (Event::ResumeFailed, Resuming { .. }) => {
            let (next, effects) = needs_reset(state);
            Ok((next, effects | Effects::STOP_QUEUES))
        }
        (
            Event::Resumed | Event::ResumeFailed,
            Reset
            | Acknowledged
            | Driver
            | FeaturesOk
            | Running
            | Suspending { .. }
            | Suspended { .. }
            | NeedsReset { .. }
            | Failed { .. }
            | Resetting { .. },
        ) => not_awaited,

        // ST-6, ST-7.
        (
            Event::DeviceError,
            Acknowledged
            | Driver
            | FeaturesOk
            | Running
            | Suspending { .. }
            | Suspended { .. }
            | Resuming { .. },
        ) => Ok(needs_reset(state)),
        (Event::DeviceError, NeedsReset { .. } | Failed { .. }) => stay,
        // RS-1: a reset device presents 0 whatever it met.
        (Event::DeviceError, Reset | Resetting { .. }) => not_awaited,

        // RS-1. From `Reset` when the driver wrote 0 to a device that was already reset.
        (Event::ResetDone, Reset | Resetting { clearing: true, .. }) => {
            Ok((Reset, Effects::empty()))
        }
        (
            Event::ResetDone,
            Acknowledged
            | Driver
            | FeaturesOk
            | Running
            | Suspending { .. }
            | Suspended { .. }
            | Resuming { .. }
            | NeedsReset { .. }
            | Failed { .. }
            | Resetting {
                clearing: false, ..
            },
        ) => not_awaited,

        (Event::ConfigChanged, Running) => Ok((Running, Effects::NOTIFY_CONFIG)),
        // SUS-13, SUS-14. While draining as well, so that no notification can overtake SUSPEND.
        (Event::ConfigChanged, Suspending { .. }) => {
            Ok((Suspending { changed: true }, Effects::empty()))
        }
        (Event::ConfigChanged, Suspended { .. }) => {
            Ok((Suspended { changed: true }, Effects::empty()))
        }
        (Event::ConfigChanged, Resuming { .. }) => {
            Ok((Resuming { changed: true }, Effects::empty()))
        }
        // ST-5: nothing is sent before DRIVER_OK; after an error only the reset matters.
        (
            Event::ConfigChanged,
            Reset
            | Acknowledged
            | Driver
            | FeaturesOk
            | NeedsReset { .. }
            | Failed { .. }
            | Resetting { .. },
        ) => stay,
    }
}

/// The driver's write to the status byte.
fn write(state: State, value: u8, negotiation: Negotiation) -> Result<(State, Effects), Violation> {
    let stay = Ok((state, Effects::empty()));
    let shown = state.status();
    // Reserved bits, and the bit that is the device's own, say nothing.
    let written =
        DeviceStatus::from_bits_truncate(value).difference(DeviceStatus::DEVICE_NEEDS_RESET);

    // PC-5: reset always wins.
    if value == 0 {
        return Ok(reset(state, false));
    }
    if matches!(state, State::Resetting { .. }) {
        return Err(Violation::DuringReset { written: value });
    }
    // A driver that gives up is believed even if it drops the other bits, which stay.
    if written.contains(DeviceStatus::FAILED) {
        return match state {
            State::Failed { .. } => stay,
            _ => Ok((
                State::Failed {
                    shown: shown.union(DeviceStatus::FAILED),
                },
                Effects::STOP_QUEUES,
            )),
        };
    }
    if matches!(state, State::NeedsReset { .. } | State::Failed { .. }) {
        return Err(Violation::AfterError { written: value });
    }
    if !written.contains(shown) {
        return Err(Violation::ClearsBits {
            written: value,
            shown: shown.bits(),
        });
    }

    match state {
        State::Reset | State::Acknowledged | State::Driver => {
            initialise(state, written, value, negotiation)
        }
        // SUS-10: a SUSPEND that comes with DRIVER_OK comes too early and is ignored.
        State::FeaturesOk if written.contains(DeviceStatus::DRIVER_OK) => {
            Ok((State::Running, Effects::START_QUEUES))
        }
        State::FeaturesOk if written.contains(DeviceStatus::SUSPEND) => {
            Err(Violation::SuspendTooEarly)
        }
        // SUS-2. The driver may not clear DRIVER_OK, so 0x1F is a suspend here ...
        State::Running if written.contains(DeviceStatus::SUSPEND) => {
            if negotiation.suspend {
                Ok((State::Suspending { changed: false }, Effects::STOP_QUEUES))
            } else {
                Err(Violation::SuspendNotNegotiated)
            }
        }
        // ... and a resume here (SUS-3).
        State::Suspended { changed } if written.contains(DeviceStatus::DRIVER_OK) => {
            Ok((State::Resuming { changed }, Effects::START_QUEUES))
        }
        // D-15: the same byte again during a transition is idempotent.
        State::FeaturesOk
        | State::Running
        | State::Suspending { .. }
        | State::Suspended { .. }
        | State::Resuming { .. }
        | State::NeedsReset { .. }
        | State::Failed { .. }
        | State::Resetting { .. } => stay,
    }
}

/// Steps up to FEATURES_OK. SeaBIOS takes two in one write, Linux one at a time (ST-1): a write
/// carries the device as far as its bits reach without a gap.
///
/// DRIVER_OK is never reached from here: VIRTIO 1.4, "Device Initialization", step 6 has the
/// driver read FEATURES_OK back first.
fn initialise(
    state: State,
    written: DeviceStatus,
    value: u8,
    negotiation: Negotiation,
) -> Result<(State, Effects), Violation> {
    let shown = state.status();
    let wants_features = written.contains(
        DeviceStatus::ACKNOWLEDGE
            .union(DeviceStatus::DRIVER)
            .union(DeviceStatus::FEATURES_OK),
    );
    let (reached, effects) = if wants_features && negotiation.acceptable {
        (State::FeaturesOk, Effects::NEGOTIATED)
    } else if written.contains(DeviceStatus::ACKNOWLEDGE.union(DeviceStatus::DRIVER)) {
        (State::Driver, Effects::empty())
    } else if written.contains(DeviceStatus::ACKNOWLEDGE) {
        (State::Acknowledged, Effects::empty())
    } else {
        (State::Reset, Effects::empty())
    };
    if reached == state && written != shown {
        return Err(if wants_features {
            Violation::FeaturesRefused
        } else {
            Violation::OutOfOrder {
                written: value,
                shown: shown.bits(),
            }
        });
    }
    Ok((reached, effects))
}

/// A reset by status write or FLR.
fn reset(state: State, flr: bool) -> (State, Effects) {
    match state {
        // No queue runs, so there is nothing to wait for and status may read 0 throughout.
        State::Reset => {
            let mut effects = Effects::CLEAR;
            effects.set(Effects::CLEAR_PCI, flr);
            (State::Reset, effects)
        }
        // One reset serves both; an FLR that comes later than the clearing began starts over.
        State::Resetting {
            shown,
            flr: was,
            clearing,
        } => {
            let over = clearing && flr && !was;
            let effects = if over {
                Effects::STOP_QUEUES
            } else {
                Effects::empty()
            };
            let clearing = clearing && !over;
            (
                State::Resetting {
                    shown,
                    flr: flr || was,
                    clearing,
                },
                effects,
            )
        }
        _ => (
            State::Resetting {
                shown: state.status(),
                flr,
                clearing: false,
            },
            Effects::STOP_QUEUES,
        ),
    }
}

/// ST-6, and ST-7: the notification is due exactly if DRIVER_OK is presented.
fn needs_reset(state: State) -> (State, Effects) {
    let shown = state.status();
    let mut effects = Effects::empty();
    effects.set(
        Effects::NOTIFY_CONFIG,
        shown.contains(DeviceStatus::DRIVER_OK),
    );
    (
        State::NeedsReset {
            shown: shown.union(DeviceStatus::DEVICE_NEEDS_RESET),
        },
        effects,
    )
}
