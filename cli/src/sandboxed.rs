//! `--sandbox`, the same for every process that stays.

use clap::{Args, ValueEnum};
use sandbox::Mode;

/// What the process gives up once it has begun.
#[derive(Args, Clone, Copy, Debug)]
pub struct SandboxArgs {
    /// What the process gives up once it has begun: system calls, files and descriptors that it does
    /// not need
    #[arg(long, value_enum, value_name = "MODE", default_value_t = SandboxArg::Strict)]
    pub sandbox: SandboxArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxArg {
    /// All of it; a call that is not on the list is named on stderr and ends the process
    Strict,
    /// Nothing; the kernel's log names the calls that are not on the list
    Log,
    /// Nothing
    Off,
}

impl SandboxArgs {
    /// The same, as the library has it.
    pub fn mode(self) -> Mode {
        match self.sandbox {
            SandboxArg::Strict => Mode::Strict,
            SandboxArg::Log => Mode::Log,
            SandboxArg::Off => Mode::Off,
        }
    }
}
