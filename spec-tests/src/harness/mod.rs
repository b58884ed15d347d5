//! What cases stand on: the way to the function, memory, rings, waiting, verdicts.

mod admin;
mod bench;
mod caps;
mod live;
mod members;
mod memory;
pub mod objects;
mod outcome;
mod parts;
mod recording;
mod ring;
mod trace;
mod tracker;

pub use admin::{Admin, Answer, Command, Ticket, words};
pub use bench::{Bench, LIMIT, QUIET};
pub use caps::{Caps, Msix, RawCap, Region};
pub use live::Live;
pub use memory::{Span, changed_pages, pages_of};
pub use outcome::{Absent, Clauses, Failure, Judged, Stop, arose, demand, kept};
pub use parts::{Owned, Part, setting};
pub use recording::{EVERYWHERE, Limits, Records, read};
pub use ring::{Ring, Segment};
pub use trace::Trace;
pub use tracker::Bitmap;
