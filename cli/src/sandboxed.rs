//! `--sandbox`, the same for every process that stays.

use clap::ValueEnum;
use sandbox::Mode;

/// What the process gives up once it has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxArg {
    /// All of it; a call that is not on the list is named on stderr and ends the process
    Strict,
    /// Nothing; the kernel's log names the calls that are not on the list
    Log,
    /// Nothing
    Off,
}

impl SandboxArg {
    /// The same, as the library has it.
    pub fn mode(self) -> Mode {
        match self {
            Self::Strict => Mode::Strict,
            Self::Log => Mode::Log,
            Self::Off => Mode::Off,
        }
    }
}
