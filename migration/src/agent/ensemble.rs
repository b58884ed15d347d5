//! The devices of one guest, here and where it is to go on: started, suspended and let go on together.
//!
//! ```text
//! track    lock all; here: tracked       there: held for a guest that arrives
//! switch            here: suspended      there: may go on, if the guest moves
//! resume            here: running again  there: apart, if it was to move; or held as before
//! end               here: as before, unless the guest has left; release all
//! ```
//!
//! Each line is one change of all, in one [`LockedSet`] that holds its locks from the first to the last.
//! When one fails the locks are gone, and nobody's devices are changed by this any more: whoever runs the
//! guest takes its devices back itself.

use crate::agent::{Agents, DeviceConfig, Mode, Place, Tracking};
use crate::lock::{
    Applied, Cause, Failure, Limits, Locked, LockedSet, Remote, Remotes, Report, Selection, Staged,
    Terms,
};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How long things may take while a guest waits for them.
const LIMITS: Limits = Limits {
    lock: Duration::from_secs(5),
    request: Duration::from_secs(5),
    apply: Duration::from_secs(5),
    release: Duration::from_secs(2),
    shortest_pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(200),
};

/// What an ensemble does with all its devices at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Locks them and turns tracking on.
    Track,
    /// Suspends those here, and lets those there go on if the guest moves there.
    Switch,
    /// Lets those here go on.
    Resume,
    /// Makes them what they were before the first step.
    Restore,
    /// Releases them.
    Release,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Track => "track",
            Self::Switch => "switch",
            Self::Resume => "resume",
            Self::Restore => "restore",
            Self::Release => "release",
        })
    }
}

/// The last time that a step was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What it failed at, if it failed.
    pub cause: Option<Cause>,
    /// What became of every remote: of a set's later step, of the earlier ones as well.
    pub report: Report,
}

/// What becomes of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It stays, and its devices are to be what they were.
    Stays,
    /// It has left, or may have: its devices stay as they are.
    Left,
}

/// Why not all devices were changed.
#[derive(Debug, thiserror::Error)]
pub enum EnsembleError {
    /// No set can be made of these.
    #[error("{0}")]
    Selection(#[from] Selection),
    /// One or more failed: what became of all is in [`Ensemble::steps`].
    #[error("{step}: {cause}: {why}")]
    Step {
        /// At this step.
        step: Step,
        /// In this way.
        cause: Cause,
        /// Which remotes, in which phase, and why.
        why: String,
    },
    /// What a device was could not be learnt.
    #[error("track: what {place} is cannot be learnt: {why}")]
    Unknown {
        /// The device.
        place: Place,
        /// Why not.
        why: String,
    },
    /// There are no locks, or there are already.
    #[error("{0}: the devices are not locked for that; the guest has them back")]
    NotLocked(Step),
}

/// The devices of one guest.
#[derive(Debug)]
pub struct Ensemble {
    agents: Agents,
    who: String,
    here: Vec<Place>,
    there: Vec<Place>,
    moves: bool,
    mode: Mode,
    limits: Limits,
    /// What they were before the first step, by their names.
    before: BTreeMap<String, DeviceConfig>,
    tracking: Option<Tracking>,
    held: Held,
    /// Some may be other than they were.
    changed: bool,
    /// Those there, once they have nothing to do with those here any more.
    there_held: Held,
    steps: BTreeMap<Step, Taken>,
}

#[derive(Debug)]
enum Held {
    Nothing,
    Staged(LockedSet<DeviceConfig, Staged>),
    Applied(LockedSet<DeviceConfig, Applied>),
}

impl Held {
    fn release(self) -> Option<Report> {
        match self {
            Self::Nothing => None,
            Self::Staged(set) => Some(set.release()),
            Self::Applied(set) => Some(set.release()),
        }
    }
}

impl Ensemble {
    /// The devices of a guest, in their order, and those that are to hold it `there`, if anyone answers for
    /// them. If it `moves`, they may go on when those here are suspended; a standby's are held until it
    /// takes its devices itself. `who` is what the holder of the locks is called, `mode` how the devices
    /// mark.
    pub fn new(
        agents: Agents,
        who: String,
        here: Vec<Place>,
        there: Vec<Place>,
        moves: bool,
        mode: Mode,
    ) -> Self {
        Self {
            agents,
            who,
            here,
            there,
            moves,
            mode,
            limits: LIMITS,
            before: BTreeMap::new(),
            tracking: None,
            held: Held::Nothing,
            changed: false,
            there_held: Held::Nothing,
            steps: BTreeMap::new(),
        }
    }

    /// What became of each step that was taken, the last time.
    pub fn steps(&self) -> &BTreeMap<Step, Taken> {
        &self.steps
    }

    /// The names of the devices here, in their order; then those of the devices there.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.here.iter().chain(&self.there).map(Place::to_string)
    }

    /// Whether all are locked.
    pub fn holds(&self) -> bool {
        !matches!(self.held, Held::Nothing)
    }

    /// Whether some may be other than they were before the first step.
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// Locks all, tracks those here and holds those there.
    ///
    /// # Errors
    /// [`EnsembleError`]; nothing is held then but what the report lists.
    pub fn track(&mut self, ranges: &[Range<u64>], granularity: u64) -> Result<(), EnsembleError> {
        if self.holds() {
            return Err(EnsembleError::NotLocked(Step::Track));
        }
        self.tracking = Some(Tracking {
            ranges: ranges.to_vec(),
            granularity,
            pasid: None,
            mode: self.mode,
        });
        let mut terms = Terms::new(&self.who);
        terms.limits = self.limits;
        let set = LockedSet::lock(self.remotes()?, terms);
        let set: LockedSet<_, Locked> = set.map_err(|failure| self.failed(Step::Track, failure))?;
        // Under the locks: nobody else changes them any more.
        self.before = self.learn()?;
        let staged = set.for_each(|name| Ok(self.config(name, false)));
        let staged = staged.map_err(|failure| self.failed(Step::Track, failure))?;
        self.apply(Step::Track, staged)
    }

    /// Makes the switch ready, while the guest still runs: [`switch`](Self::switch) takes less then.
    ///
    /// # Errors
    /// [`EnsembleError`]; the locks are gone.
    pub fn stage_switch(&mut self) -> Result<(), EnsembleError> {
        let staged = self.stage(Step::Switch, |this, name| this.config(name, true))?;
        self.held = Held::Staged(staged);
        Ok(())
    }

    /// Suspends those here, and lets those there go on if the guest moves.
    ///
    /// # Errors
    /// [`EnsembleError`]; the locks are gone, and those here may be of two minds.
    pub fn switch(&mut self) -> Result<(), EnsembleError> {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Staged(staged) => self.apply(Step::Switch, staged),
            held => {
                self.held = held;
                Err(EnsembleError::NotLocked(Step::Switch))
            }
        }
    }

    /// Lets those here go on, tracked. A guest that was to move stays here then, and those there, who may
    /// be gone with the room for it, have no part in that any more; a standby's are held as before.
    ///
    /// # Errors
    /// [`EnsembleError`]; the locks are gone, and those here may be of two minds.
    pub fn resume(&mut self) -> Result<(), EnsembleError> {
        if self.moves {
            self.part();
        }
        let staged = self.stage(Step::Resume, |this, name| this.config(name, false))?;
        self.apply(Step::Resume, staged)
    }

    /// Lets go of all. Those there are what their guest's room makes of them, if that is still there.
    ///
    /// # Errors
    /// [`EnsembleError`]: not all of those here are what they were. They are released all the same, but for those in the
    /// report.
    pub fn end(&mut self, end: End) -> Result<(), EnsembleError> {
        let mut done = Ok(());
        if end == End::Stays && self.holds() {
            let was = |this: &Self, name: &str| this.before.get(name).cloned().unwrap_or_default();
            self.part();
            done = self
                .stage(Step::Restore, was)
                .and_then(|staged| self.apply(Step::Restore, staged));
            self.changed &= done.is_err();
        }
        let released = [&mut self.held, &mut self.there_held]
            .map(|held| std::mem::replace(held, Held::Nothing).release());
        let report = released.into_iter().flatten().reduce(Report::and);
        if let Some(report) = report {
            let cause = None;
            self.steps.insert(Step::Release, Taken { cause, report });
        }
        done
    }

    /// What becomes of those there has nothing to do with those here any more.
    fn part(&mut self) {
        let here: Vec<String> = self.here.iter().map(Place::to_string).collect();
        let keep = |name: &str| here.iter().any(|here| here == name);
        if !matches!(self.there_held, Held::Nothing) {
            return;
        }
        (self.held, self.there_held) = match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => (Held::Nothing, Held::Nothing),
            Held::Staged(set) => {
                let (here, there) = set.part(keep);
                (Held::Staged(here), Held::Staged(there))
            }
            Held::Applied(set) => {
                let (here, there) = set.part(keep);
                (Held::Applied(here), Held::Applied(there))
            }
        };
    }

    fn remotes(&self) -> Result<Remotes<DeviceConfig>, Selection> {
        let places = self.here.iter().chain(&self.there);
        let remote = |place: &Place| {
            Arc::new(self.agents.remote(place.clone())) as Arc<dyn Remote<DeviceConfig>>
        };
        Remotes::new(places.map(remote).collect())
    }

    /// What each is now: all are asked at once.
    fn learn(&self) -> Result<BTreeMap<String, DeviceConfig>, EnsembleError> {
        let places = self.here.iter().chain(&self.there);
        let agents = &self.agents;
        thread::scope(|scope| {
            let asked: Vec<_> = places
                .map(|place| (place, scope.spawn(|| agents.status(place))))
                .collect();
            let answered = asked.into_iter().map(|(place, asked)| {
                let unknown = |why: String| EnsembleError::Unknown {
                    place: place.clone(),
                    why,
                };
                let status = asked
                    .join()
                    .map_err(|_| unknown("nobody asked it".to_owned()))?
                    .map_err(|error| unknown(error.to_string()))?;
                Ok((place.to_string(), status.running))
            });
            answered.collect()
        })
    }

    /// What a device is to be before the switch, or after it.
    fn config(&self, name: &str, switched: bool) -> DeviceConfig {
        let managers = self.before.get(name).map(|config| config.managers.clone());
        let here = self.here.iter().any(|place| place.to_string() == name);
        DeviceConfig {
            tracking: self.tracking.clone().filter(|_| here),
            suspended: if here {
                switched
            } else {
                !(switched && self.moves)
            },
            managers: managers.unwrap_or_default(),
        }
    }

    fn stage(
        &mut self,
        step: Step,
        config: impl Fn(&Self, &str) -> DeviceConfig,
    ) -> Result<LockedSet<DeviceConfig, Staged>, EnsembleError> {
        let staged = match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => return Err(EnsembleError::NotLocked(step)),
            Held::Staged(set) => set.for_each(|name| Ok(config(self, name))),
            Held::Applied(set) => set.for_each(|name| Ok(config(self, name))),
        };
        staged.map_err(|failure| self.failed(step, failure))
    }

    fn apply(
        &mut self,
        step: Step,
        staged: LockedSet<DeviceConfig, Staged>,
    ) -> Result<(), EnsembleError> {
        match staged.apply() {
            Ok(set) => {
                self.changed = true;
                let (cause, report) = (None, set.report());
                self.steps.insert(step, Taken { cause, report });
                self.held = Held::Applied(set);
                Ok(())
            }
            Err(failure) => Err(self.failed(step, failure)),
        }
    }

    fn failed(&mut self, step: Step, failure: Failure) -> EnsembleError {
        let Failure { cause, report } = failure;
        self.changed |= cause == Cause::Incomplete;
        let why = report.rows.iter().filter_map(|row| {
            let error = row.outcome.as_ref().err()?;
            Some(format!("{} at {}: {error}", row.remote, row.phase))
        });
        let why = why.collect::<Vec<_>>().join("; ");
        let taken = Taken {
            cause: Some(cause),
            report,
        };
        self.steps.insert(step, taken);
        EnsembleError::Step { step, cause, why }
    }
}
