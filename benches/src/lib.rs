//! What every benchmark of Tidemark shares: interleaved rounds, ratios, bounds, and how they print.
//!
//! A speed is a ratio of two things measured in the same run, round by round in turn; what is
//! judged is the median of the rounds' ratios, printed with the spread.

pub mod agents;
pub mod block;
pub mod claims;
pub mod limit;
pub mod line;
pub mod memory;
pub mod rounds;
pub mod vhost_log;

pub use line::{Bound, Line, Mode, finish, wanted};
pub use rounds::{Ratio, interleave, interleave_until, settle};
