//! The claims of the debate of 2023, measured: what was said, what the figures are, and what they
//! decide.
//!
//! Three steps that know nothing of each other but [`Figures`]: measuring, judging (a pure function
//! of the figures), and showing.

pub mod figures;
pub mod measure;
pub mod model;
mod plots;
mod report;
#[cfg(test)]
mod tests;
mod text;
mod verdicts;

pub use figures::{Figure, Figures};
pub use measure::{Effort, Error, Result};
pub use report::{Machine, Run, page};
pub use verdicts::{Judgement, Verdict, judge};
