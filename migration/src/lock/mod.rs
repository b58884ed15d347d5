//! One change of many remotes, together or not at all.
//!
//! A guest has several devices and a fleet several hosts; tracking that starts on three devices of four is
//! silent corruption. So all are locked, all are staged, and only then all are applied:
//!
//! ```text
//! Remotes --lock--> LockedSet<Locked> --for_each--> LockedSet<Staged> --apply--> LockedSet<Applied>
//!              |                           |  any failure                |  the point of no return is
//!              v                           v                             v  the first that started
//!           released             rolled back, released        whoever started is waited for; Ok iff all
//! ```
//!
//! Each step consumes the set, so one that failed cannot be used on. Every phase asks all remotes at
//! once and has a limit of time; [`Cancel`] ends what can be ended; dropping a set rolls back and
//! releases it. What could not be released stands in the [`Report`], with the command that frees it.
//!
//! An answer that does not come says nothing: the request may have been carried out, or may be yet. So a
//! lock is asked for under a [`Claim`] of the asker's making, releasing a claim also forbids it to lock
//! any more, and every other request names the token that the lock gave. Nothing that arrives late can
//! do harm ([`Layers`] is a remote's side of that).
//!
//! Two managers cannot block each other: of two that each hold what the other wants, the older claim
//! waits and the younger one releases all and comes again later.
//!
//! The coordinator is a plain function of what its [`Clock`] hands it: the same code runs in real time
//! and on a virtual clock, where the tests inject every fault.

mod claim;
mod clock;
mod coordinator;
mod layers;
mod remote;
mod report;
mod set;
mod terms;
#[cfg(test)]
mod tests;
mod threaded;

pub use claim::{Claim, Claimant, Holder, Token};
pub use clock::{Cancel, Clock, Event, Inbox, SystemClock};
pub use layers::Layers;
pub use remote::{Answer, Progress, Remote, RemoteError, Remotes, Reply, Request, Selection};
pub use report::{Cause, Failure, Phase, Report, Row, Stuck};
pub use set::{Applied, Locked, LockedSet, Staged};
pub use terms::{Limits, Terms};
pub use threaded::Threaded;
