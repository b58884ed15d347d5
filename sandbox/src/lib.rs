//! What a process that faces guests or a network gives up once it has begun.
//!
//! A guest that breaks out of the device's code is then in a process that can still serve the disk
//! and not much else: no other program, no other file, no network, no memory that is made code. Two
//! parts of Linux do it, and each stands where the other does not reach. Landlock says which files
//! there are; it has to come [first](Sandbox::confine), while the process has one thread, because
//! threads that are there already do not get it. seccomp says which system calls there are; it is
//! put on all threads at once, at the [end](Sandbox::seal) of what the process does only once.
//!
//! What is not on a kind of process's list does not happen. The call's name is written to stderr
//! before the process ends, so that whoever runs it knows what to report.

mod calls;
mod files;
mod limits;
mod profile;
mod stop;

pub use files::Grant;
pub use limits::{agent_descriptors, descriptors, mediator_descriptors};
pub use profile::{Kind, Profile, ProfileError};
pub use stop::EXIT;

use std::fs;
use std::io;
use std::path::PathBuf;

/// How much of it is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// What is not allowed does not happen, and ends the process.
    #[default]
    Strict,
    /// System calls that are not allowed pass, and the kernel writes them down; files and
    /// descriptors are not limited. For finding out what a list lacks.
    Log,
    /// Nothing is given up.
    Off,
}

/// Why a process cannot give up what it was to give up. It must not go on as if it had.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is more than one thread already, and the others would keep all files.
    #[error(
        "{count} threads run already: files have to be given up while there is one, or the others keep them"
    )]
    Threads {
        /// How many there are.
        count: usize,
    },
    /// The lists are of another processor's system calls.
    #[error(
        "there is no list of system calls for {arch}, only for x86_64; --sandbox off goes without"
    )]
    Arch {
        /// This processor.
        arch: &'static str,
    },
    /// A file that was to be kept is not there.
    #[error("{path} is to be kept and cannot be found: {error}")]
    Path {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Landlock is there and refuses.
    #[error("files cannot be given up (landlock): {0}; --sandbox off goes without")]
    Landlock(#[from] landlock::RulesetError),
    /// A list is wrong: a mistake in this program.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// seccomp refuses: a kernel without it, above all.
    #[error("system calls cannot be given up (seccomp): {0}; --sandbox off goes without")]
    Seccomp(#[from] seccompiler::Error),
    /// The limits or the handler cannot be set.
    #[error("the sandbox cannot be set up: {0}")]
    System(#[from] io::Error),
}

/// A process on its way into the sandbox.
#[derive(Debug)]
#[must_use = "system calls are given up by `seal`"]
pub struct Sandbox {
    mode: Mode,
    kind: Kind,
}

impl Sandbox {
    /// Gives up all files but those that are granted, which includes making sockets, TCP, and signals
    /// to other processes as far as the kernel's landlock goes. What is open already stays open.
    ///
    /// A kernel without landlock is said on stderr, and in the strict mode system calls are still
    /// given up.
    ///
    /// # Errors
    ///
    /// [`SandboxError`]: the process must end.
    pub fn confine(mode: Mode, kind: Kind, grants: &[Grant]) -> Result<Self, SandboxError> {
        if mode == Mode::Strict {
            let count = threads();
            if count > 1 {
                return Err(SandboxError::Threads { count });
            }
            files::give_up(kind, grants)?;
        }
        Ok(Self { mode, kind })
    }

    /// Gives up all system calls but those of the kind's list, on all threads, and descriptors beyond
    /// `most`. The rights of a program that is started can never again be more than these.
    ///
    /// # Errors
    ///
    /// [`SandboxError`]: the process must end.
    pub fn seal(self, most: u64) -> Result<(), SandboxError> {
        if self.mode == Mode::Off {
            return Ok(());
        }
        if !cfg!(target_arch = "x86_64") {
            let arch = std::env::consts::ARCH;
            return Err(SandboxError::Arch { arch });
        }
        let filters = self.kind.profile()?.compile(self.mode)?;
        if self.mode == Mode::Strict {
            settle_allocator();
            limits::lower_descriptors(most)?;
            stop::name_what_is_stopped()?;
        } else {
            eprintln!(
                "tidemark: sandbox: log: system calls that `{}` does not need pass, and the kernel's log has \
                 them (type=1326); files and descriptors are not limited",
                self.kind.name()
            );
        }
        for filter in &filters {
            seccompiler::apply_filter_all_threads(filter)?;
        }
        tracing::debug!(kind = self.kind.name(), mode = ?self.mode, "sealed");
        Ok(())
    }
}

/// Threads of this process; one if nobody can tell.
fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// glibc's allocator reads a file of /proc when it first gives memory of a thread back, and keeps what
/// it read: let that be now. Later it would be refused, which harms nothing, and be named on stderr
/// for nothing.
fn settle_allocator() {
    let worked = std::thread::spawn(|| {
        let blocks: Vec<_> = (0..64).map(|_| vec![1u8; 64 << 10]).collect();
        drop(std::hint::black_box(blocks));
    });
    // It cannot fail but by a panic, and then the file is refused later.
    let _ = worked.join();
}
