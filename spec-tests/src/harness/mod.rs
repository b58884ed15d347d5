//! What cases stand on: the way to the function, memory, rings, waiting, verdicts.

mod admin;
mod bench;
mod caps;
mod disk;
mod live;
mod members;
mod memory;
pub mod objects;
mod outcome;
mod packed;
mod packed_live;
mod parts;
mod recording;
mod ring;
mod trace;
mod tracker;
mod zones;

pub use admin::{Admin, Answer, Command, Ticket, words};
pub use bench::{Bench, LIMIT, QUIET};
pub use caps::{Caps, Msix, RawCap, Region};
pub use disk::{Disk, Reply, range};
pub use live::{Live, Requests};
pub use memory::{Span, changed_pages, pages_of};
pub use outcome::{Absent, Clauses, Failure, Judged, Stop, arose, demand, kept};
pub use packed::{Entry, PackedRing, Spot, Staged, Used};
pub use packed_live::PackedLive;
pub use parts::{Owned, Part, setting};
pub use recording::{EVERYWHERE, Limits, Records, read};
pub use ring::{Layout, Ring, Segment};
pub use trace::Trace;
pub use tracker::Bitmap;
pub use zones::{Traits, Zone, Zoned};
