//! Which names may be created, and which ranges may be tracked: the conflict set.
//!
//! Two kinds of key, one rule. A [`Name`] is an object or a directory, never both: `vm/7` and
//! `vm/7/disk0` exclude each other. A [`TrackedRange`] of guest memory belongs to one tracker: two
//! that overlap exclude each other. Both are [`Extent`]s of a line on which the keys are sorted (a
//! name covers all that begins with it and a slash), and a conflict is an overlap.
//!
//! The keys of a store never overlap one another. So a new key can only overlap the one stored key
//! right before its place, or a run of those right after it: one look at its place decides, where a
//! rule by prefixes looks for every prefix and then for what is below. [`judge`] takes a batch in the
//! order of its keys and remembers the gap between two stored keys that it looked at last, so that the
//! keys that fall into the same gap cost no further look. That is what a set of prefixes already checked
//! does, in the space of one.
//!
//! What a batch touches excludes each other as well, deletions included: `vm/7` cannot be deleted and
//! `vm/7/disk0` be created by the same batch. What is to be replaced goes into the batch's skip set.
//!
//! [`judge`] serves both ways to apply a batch ([`Mode`]): all or nothing, or each change by itself.
//! The caller holds the lock of what it judges ([`crate::lock`]) until the batch is applied.

mod judge;
mod name;
mod range;
mod set;
#[cfg(test)]
mod tests;

pub use judge::{Batch, Change, Conflict, Cursor, Extent, judge};
pub use name::{Malformed, NAME_OCTETS, Name};
pub use range::{MalformedRange, PASID_BITS, TrackedRange};
pub use set::{Applied, ConflictSet, Mode, SetCursor};
