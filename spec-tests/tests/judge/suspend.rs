//! Drivers that break the etiquette of suspend, of queue state and of the tracker.

use crate::raw::Raw;
use crate::{Mutant, WANTED, mutant, watch};
use spec_tests::clause;
use spec_tests::constants::{feature, status};

fn suspended(d: &mut Raw, meanwhile: impl Fn(&mut Raw)) {
    d.up(WANTED);
    d.suspend();
    meanwhile(d);
    d.resume();
}

pub const MUTANTS: &[Mutant] = &[
    mutant("suspends_without_the_feature", &["SUS-4"], watch, |d| {
        d.up(WANTED & !feature::SUSPEND);
        d.set_status(status::SUSPEND_OR_RESUME);
    }),
    mutant("suspends_before_features_ok", &["S23-2"], watch, |d| {
        d.begin();
        d.set_status(status::NEGOTIATING | status::SUSPEND);
    }),
    mutant("does_not_wait_for_the_suspend", &["SUS-5"], watch, |d| {
        d.up(WANTED);
        d.set_status(status::SUSPEND_OR_RESUME);
        d.status();
        d.set_status(status::SUSPEND_OR_RESUME);
    }),
    mutant("does_not_read_after_suspend", &["S23-3"], watch, |d| {
        d.up(WANTED);
        d.set_status(status::SUSPEND_OR_RESUME);
        d.reset();
    }),
    mutant("exposes_while_suspended", &["SUS-6"], watch, |d| {
        suspended(d, |d| {
            let pieces = d.request(0, 0, &[], 512);
            d.expose(0, &pieces);
        });
    }),
    mutant(
        "exposes_packed_while_suspended",
        &["SUS-6"],
        || crate::named("packed"),
        |d| {
            suspended(d, |d| {
                let pieces = d.request(0, 0, &[], 512);
                d.expose(0, &pieces);
            });
        },
    ),
    mutant("notifies_while_suspended", &["SUS-7"], watch, |d| {
        suspended(d, |d| d.notify(0));
    }),
    mutant("configures_while_suspended", &["SUS-8"], watch, |d| {
        suspended(d, |d| d.set_bar(d.at.device + 32, 1, 0));
    }),
    mutant("does_not_wait_for_the_resume", &["SUS-9"], watch, |d| {
        d.up(WANTED);
        d.suspend();
        d.set_status(status::SUSPEND_OR_RESUME);
        d.notify(0);
    }),
    mutant("touches_state_without_the_feature", &["QS-1"], watch, |d| {
        d.up(WANTED & !feature::QUEUE_STATE);
        d.suspend();
        d.select(0);
        d.get(64, 2);
        d.resume();
    }),
    mutant("reads_state_of_a_running_queue", &["QS-4"], watch, |d| {
        d.up(WANTED);
        d.select(0);
        d.get(64, 2);
    }),
    mutant("enables_the_tracker_first", &["DT-7"], watch, |d| {
        d.up(WANTED);
        d.set_bar(d.at.tracker, 1, 1);
    }),
    mutant("takes_buffers_away", &[clause!(cleanup "R2")], watch, |d| {
        use device::serve::vfio_user::Served;
        d.up(WANTED);
        let pieces = d.request(0, 0, &[], 512);
        d.expose(0, &pieces);
        d.notify(0);
        d.bus.judge().unmap(d.area.iova(), d.area.len());
        d.bus.judge().settle(true);
    }),
];
