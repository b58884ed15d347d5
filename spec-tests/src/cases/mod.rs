//! What is done to find out whether clauses are kept.

mod admin;
mod admin_queue;
mod blk;
mod blk_ranges;
mod capabilities;
mod common_cfg;
mod features;
mod init;
mod notify_irq;
mod objects;
mod packed;
mod packed_events;
mod packed_lists;
mod packed_marks;
mod packed_state;
mod parts;
mod parts_mode;
mod pci;
mod pci_caps;
mod queue_state;
mod recording;
mod recording_limits;
mod reset;
mod rng;
mod split;
mod status;
mod suspend;
mod suspend_queues;
mod tracker;
mod tracker_limits;
mod zoned;
mod zoned_commands;
mod zoned_writes;

use crate::constants::reg;
use crate::harness::{Absent, Bench, Judged, Stop};
use crate::target::Variant;

/// What of a target a case acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A PCI function: its registers, interrupts and life.
    Function,
    /// Rings, requests and features only, which a vhost-user backend has too.
    Rings,
}

/// One thing that is done, and the clauses that it judges.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name, unique in the suite.
    pub name: &'static str,
    /// Ids of the clauses, in either form.
    pub clauses: &'static [&'static str],
    /// The function that it needs.
    pub variant: Variant,
    /// What of it.
    pub reach: Reach,
    /// It writes to the medium: a stranger's is spared unless that is allowed.
    pub writes: bool,
    /// What is done, on a function that nobody has touched.
    pub run: fn(&Bench) -> Judged,
}

impl Case {
    /// The same, for rings alone: it stands on nothing that a vhost-user backend has not.
    const fn rings(mut self) -> Self {
        self.reach = Reach::Rings;
        self
    }
}

/// A case on the plain function.
const fn plain(
    name: &'static str,
    clauses: &'static [&'static str],
    run: fn(&Bench) -> Judged,
) -> Case {
    special(name, clauses, Variant::Plain, run)
}

/// A case on a variant.
const fn special(
    name: &'static str,
    clauses: &'static [&'static str],
    variant: Variant,
    run: fn(&Bench) -> Judged,
) -> Case {
    Case {
        name,
        clauses,
        variant,
        reach: Reach::Function,
        writes: false,
        run,
    }
}

/// Every case.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [
        status::CASES,
        reset::CASES,
        init::CASES,
        features::CASES,
        split::CASES,
        packed::CASES,
        packed_lists::CASES,
        packed_events::CASES,
        packed_state::CASES,
        packed_marks::CASES,
        suspend::CASES,
        suspend_queues::CASES,
        queue_state::CASES,
        tracker::CASES,
        tracker_limits::CASES,
        pci::CASES,
        pci_caps::CASES,
        common_cfg::CASES,
        notify_irq::CASES,
        parts::CASES,
        parts_mode::CASES,
        recording::CASES,
        recording_limits::CASES,
        admin::CASES,
        admin_queue::CASES,
        capabilities::CASES,
        objects::CASES,
        blk::CASES,
        blk_ranges::CASES,
        rng::CASES,
        zoned::CASES,
        zoned_commands::CASES,
        zoned_writes::CASES,
    ]
    .into_iter()
    .flatten()
}

/// Not applicable if there are fewer queues than `count`.
fn at_least_queues(bench: &Bench, count: u16) -> Result<(), Stop> {
    if bench.get(reg::NUM_QUEUES)? >= u64::from(count) {
        Ok(())
    } else {
        Err(Stop::NotApplicable(Absent::Queues(count)))
    }
}
