//! Bugs that the harness has on demand, to prove that fuzzing finds them.

/// What the harness does wrong. None of them shows on every input: the fuzzer has to get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Plant {
    /// Something is written to guest memory and not marked.
    Unmarked,
    /// Something is written where nothing was granted.
    OutsideGrant,
    /// The device gives up on a particular request.
    Panic,
    /// A chain is consumed and never used.
    LostHead,
    /// Work that never gets anywhere is done again and again.
    Livelock,
    /// A reset that never ends.
    NoReset,
    /// Memory is taken by the guest's measure and kept.
    Memory,
    /// An answer that should have come is left out.
    NoAnswer,
    /// What was refused is taken, or what is damaged counts as sound.
    Accepts,
    /// A descriptor is kept that came with a message.
    Descriptors,
}

impl Plant {
    /// All, in their order.
    pub const ALL: [Self; 10] = [
        Self::Unmarked,
        Self::OutsideGrant,
        Self::Panic,
        Self::LostHead,
        Self::Livelock,
        Self::NoReset,
        Self::Memory,
        Self::NoAnswer,
        Self::Accepts,
        Self::Descriptors,
    ];

    /// As it is written on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unmarked => "unmarked",
            Self::OutsideGrant => "outside-grant",
            Self::Panic => "panic",
            Self::LostHead => "lost-head",
            Self::Livelock => "livelock",
            Self::NoReset => "no-reset",
            Self::Memory => "memory",
            Self::NoAnswer => "no-answer",
            Self::Accepts => "accepts",
            Self::Descriptors => "descriptors",
        }
    }

    /// The plant of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plant| plant.name() == name)
    }

    /// What the oracle says when it has found it.
    pub const fn verdict(self) -> &'static str {
        match self {
            Self::Unmarked => "oracle tracking",
            Self::OutsideGrant => "oracle grant",
            Self::Panic => "planted panic",
            Self::LostHead => "oracle progress",
            Self::Livelock => "oracle steps",
            Self::NoReset => "oracle reset",
            Self::Memory => "oracle memory",
            Self::NoAnswer => "oracle answers",
            Self::Accepts => "oracle soundness",
            Self::Descriptors => "oracle descriptors",
        }
    }
}
