//! Judging drivers: a function that watches who drives it.
//!
//! [`Judge`] is a virtio-pci function of its own: registers, rings and requests are written here
//! once more, so that nothing of the devices that are judged, and none of their leniency, stands
//! between a driver and its verdict. It is served as any function is
//! ([`device::serve::vfio_user::Served`]), over a socket, or to a driver in this process by
//! [`JudgedBus`].
//!
//! Every access of the driver is judged when it is made; descriptors and rings are judged when they
//! are exposed, and compared with what they were before each buffer is used. Between exposing and
//! using there is time: requests are answered by [`Judge::settle`], which a driver's wait for an
//! interrupt calls, or a thread ([`Judge::work`]) a little after the notification.
//!
//! # Rules
//!
//! A [`Rule`] judges one clause. The rules of a group stand in the module that sees what they are
//! about, in a list `RULES`:
//!
//! | module | what it sees |
//! |---|---|
//! | `pci` | configuration space: ids, capabilities, the window, vendor data, SR-IOV |
//! | `common` | the common configuration: widths, read-only fields, queues, vectors |
//! | `life` | device_status and features: initialisation, suspend, errors |
//! | `config` | the device configuration |
//! | `notify` | doorbells, interrupts, ISR status |
//! | `queue` | what both layouts of rings have in common; `queue::split`, `queue::packed` |
//! | `blk`, `zoned`, `model` | requests of the device types |
//! | `admin` | the administration queue |
//! | `tracker` | the tracker's registers and queue state |
//!
//! To add a rule: a line in `rules!` with clause, name and how it is judged; then
//! `book.check(&RULE, kept, || what was seen)` at the place where the clause's *situation* arises.
//! A clause that is merely not violated is not judged: `check` and `kept` stand only where the
//! driver was in a position to break it and something shows that it did not. What is not observed
//! in ordinary use is provoked: a field of [`Plan`], and where possible by a count of accesses
//! and not by time.
//!
//! Each rule has a mutant driver in `tests/judge/`, and the sound drivers there must exercise it and
//! be found to keep it.

mod admin;
mod blk;
mod bus;
mod chain;
mod common;
mod config;
mod function;
mod ledger;
mod life;
mod memory;
mod model;
mod notify;
mod pci;
mod plan;
mod queue;
mod report;
mod tracker;
mod zoned;

pub use bus::JudgedBus;
pub use function::Judge;
pub use ledger::{Account, Ledger, Rule};
pub use plan::{Kind, Odd, Plan, RESERVED};
pub use report::{explain, list, report};

/// Every rule.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    [
        life::RULES,
        config::RULES,
        queue::RULES,
        queue::split::RULES,
        queue::packed::RULES,
        admin::RULES,
        pci::RULES,
        common::RULES,
        notify::RULES,
        model::RULES,
        blk::RULES,
        zoned::RULES,
        tracker::RULES,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// The ids of the clauses that a driver is judged by.
pub fn judged() -> impl Iterator<Item = &'static str> {
    rules().map(|rule| rule.clause)
}
