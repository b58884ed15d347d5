//! How the program ends.

use std::process::ExitCode;
use vm::VmError;

/// What exit codes mean, for help and man pages.
pub const CODES: &str = "Exit codes: 0 done; 1 it was done and the answer is no, or it failed; 2 wrong \
    usage; 3 the other side cannot be reached.\nRUST_LOG=debug (or info, or CRATE=debug) makes it say more.";

/// What was asked was done, and it turned out badly: the line is for people, the run has been
/// reported already.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(pub String);

/// The arguments do not make sense together or with what is on this machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The other side cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

/// A damaged database makes redb panic, on page after page: the store catches that and says it in an error.
pub fn leave_caught_panics_to_their_errors() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !migration::store::catches_panics() {
            report(panic);
        }
    }));
}

/// Prints an error as one line and chooses the exit code: 0 done, 1 failed, 2 wrong usage, 3 target
/// unreachable.
pub fn report(done: anyhow::Result<()>) -> ExitCode {
    let Err(error) = done else {
        return ExitCode::SUCCESS;
    };
    eprintln!("tidemark: {error:#}");
    if error.is::<Unreachable>() {
        return ExitCode::from(3);
    }
    let usage = error.is::<Usage>()
        || matches!(
            error.downcast_ref(),
            Some(VmError::Shape { .. } | VmError::Device(_))
        );
    ExitCode::from(if usage { 2 } else { 1 })
}
