//! The claims of the debate of 2023, measured: what was said, what the figures are, and what they
//! decide.
//!
//! Three steps that know nothing of each other but [`Figures`]: measuring, judging (a pure function
//! of the figures), and showing (a pure function of the JSON file).

mod contests;
pub mod crossing;
pub mod figures;
mod judge;
pub mod measure;
pub mod model;
mod page;
mod plots;
mod run;
#[cfg(test)]
mod tests;
mod text;
pub mod topics;
mod verdicts;

pub use contests::{Contest, contests};
pub use figures::{Figure, Figures};
pub use judge::{Judgement, Verdict};
pub use measure::{Effort, Error, Result};
pub use page::page;
pub use run::{Machine, Run};
pub use verdicts::judge;
