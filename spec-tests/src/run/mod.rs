//! Carries out cases and says how each clause fared.

mod attempt;
pub mod profile;
pub mod select;
mod suite;

pub use attempt::{Attempt, Finding, Verdict, judge};
pub(crate) use suite::waive;
pub use suite::{Options, Setup, SetupError, run};
