//! Who takes over, decided once: a state that changes by compare-and-swap only.
//!
//! ```text
//! none -> require -> active -> completed
//! active -> relaunch            (the secondary is loading a checkpoint)
//! relaunch -> none -> require   (after that load)
//! ```
//!
//! Whether a checkpoint is being loaded stands in the same word: a load that begins or ends while
//! a failover is decided is seen by one of the two, always.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// Where a failover stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nobody asked for one.
    None,
    /// Somebody asked.
    Require,
    /// It is being carried out.
    Active,
    /// This side runs the guest, alone.
    Completed,
    /// It is to be asked for again as soon as the checkpoint under way is loaded.
    Relaunch,
}

impl State {
    const ALL: [Self; 5] = [
        Self::None,
        Self::Require,
        Self::Active,
        Self::Completed,
        Self::Relaunch,
    ];

    fn bits(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Require => 1,
            Self::Active => 2,
            Self::Completed => 3,
            Self::Relaunch => 4,
        }
    }

    fn from_bits(bits: u8) -> Self {
        let mut all = Self::ALL.into_iter();
        // No other bits are ever stored.
        all.find(|state| state.bits() == bits & !LOADING)
            .unwrap_or(Self::Completed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Require => "require",
            Self::Active => "active",
            Self::Completed => "completed",
            Self::Relaunch => "relaunch",
        })
    }
}

/// A checkpoint is being loaded.
const LOADING: u8 = 0x80;

/// A step that the state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailoverError {
    /// A second request: the first one is under way or done.
    #[error("failover already activated: it is {0}; nothing more is to be asked for")]
    AlreadyActivated(State),
    /// The step does not follow from the state.
    #[error("failover: expected state {expected}, got {got}")]
    Wrong {
        /// The state that the step starts from.
        expected: State,
        /// The state there was.
        got: State,
    },
    /// A checkpoint cannot be loaded: a failover is under way.
    #[error("a failover is {0}: the checkpoint is not loaded")]
    Pending(State),
}

/// What [`Failover::begin`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// This caller carries the failover out, and nobody else.
    Active,
    /// A checkpoint is being loaded: the one who loads it asks again when that is done.
    Deferred,
}

/// A word that is changed by compare-and-swap.
pub trait Word {
    /// The word now.
    fn load(&self) -> u8;
    /// Stores `new` if the word is `old`, and says whether it did; else what the word is.
    ///
    /// # Errors
    /// What the word is instead.
    fn swap_if(&self, old: u8, new: u8) -> Result<(), u8>;
}

impl Word for AtomicU8 {
    fn load(&self) -> u8 {
        self.load(Ordering::Acquire)
    }

    fn swap_if(&self, old: u8, new: u8) -> Result<(), u8> {
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }
}

/// The state of one side.
#[derive(Debug, Default)]
pub struct Failover<W = AtomicU8>(W);

impl<W: Word> Failover<W> {
    /// A state in a word that is 0.
    pub fn in_word(word: W) -> Self {
        Self(word)
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        State::from_bits(self.0.load())
    }

    /// Whether anybody asked for a failover.
    pub fn pending(&self) -> bool {
        self.state() != State::None
    }

    /// From one state to another, with or without a load under way.
    fn change(&self, from: State, to: State) -> Result<(), State> {
        let mut seen = self.0.load();
        loop {
            if State::from_bits(seen) != from {
                return Err(State::from_bits(seen));
            }
            match self.0.swap_if(seen, seen & LOADING | to.bits()) {
                Ok(()) => return Ok(()),
                // Only a load that begins or ends goes round here.
                Err(other) => seen = other,
            }
        }
    }

    fn expect(&self, from: State, to: State) -> Result<(), FailoverError> {
        let changed = self.change(from, to);
        changed.map_err(|got| FailoverError::Wrong {
            expected: from,
            got,
        })
    }

    /// Asks for a failover: none to require.
    ///
    /// # Errors
    /// [`FailoverError::AlreadyActivated`] for everybody but the first.
    pub fn request(&self) -> Result<(), FailoverError> {
        self.change(State::None, State::Require)
            .map_err(FailoverError::AlreadyActivated)
    }

    /// Begins it: require to active, and to relaunch if a checkpoint is being loaded.
    ///
    /// # Errors
    /// [`FailoverError::Wrong`] if nobody asked, or somebody else has begun.
    pub fn begin(&self) -> Result<Begun, FailoverError> {
        self.expect(State::Require, State::Active)?;
        let mut seen = self.0.load();
        // Active is left by this caller alone, so only the bit may differ from what was seen.
        while seen & LOADING != 0 {
            match self.0.swap_if(seen, LOADING | State::Relaunch.bits()) {
                Ok(()) => return Ok(Begun::Deferred),
                Err(other) => seen = other,
            }
        }
        Ok(Begun::Active)
    }

    /// Ends it: active to completed. The guest runs here, alone.
    ///
    /// # Errors
    /// [`FailoverError::Wrong`] unless it is active.
    pub fn complete(&self) -> Result<(), FailoverError> {
        self.expect(State::Active, State::Completed)
    }

    /// A load begins: from here until [`end_load`](Self::end_load) no failover begins.
    ///
    /// # Errors
    /// [`FailoverError::Pending`] if somebody asked for a failover before.
    pub fn begin_load(&self) -> Result<(), FailoverError> {
        let none = State::None.bits();
        self.0
            .swap_if(none, none | LOADING)
            .map_err(|seen| FailoverError::Pending(State::from_bits(seen)))
    }

    /// A load has ended. True if a failover was put off meanwhile: it has been asked for again,
    /// and is to be begun.
    pub fn end_load(&self) -> bool {
        let mut seen = self.0.load();
        loop {
            // Relaunch goes through none to require in one step: nobody can come in between.
            let state = State::from_bits(seen);
            let next = if state == State::Relaunch {
                State::Require
            } else {
                state
            };
            match self.0.swap_if(seen, next.bits()) {
                Ok(()) => return next == State::Require,
                Err(other) => seen = other,
            }
        }
    }
}

#[cfg(test)]
#[path = "failover_tests.rs"]
mod tests;
