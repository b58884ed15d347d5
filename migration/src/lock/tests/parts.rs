//! Sets that are parted, and what a later change says of an earlier one.

use super::sim::*;
use crate::lock::*;

#[test]
fn what_was_parted_has_nothing_to_do_with_the_rest() {
    let world = World::new(1);
    let crash = Fault {
        phase: Phase::Poll,
        kind: Kind::Crash,
        late: false,
    };
    let all = remotes(&world, &[&[], &[], &[crash]]);
    let set = LockedSet::lock(together(&all), terms(&world, 0)).expect("free");
    let (kept, others) = set.part(|name| name != "r02");
    assert_eq!(kept.names().collect::<Vec<_>>(), ["r00", "r01"]);
    assert_eq!(others.names().collect::<Vec<_>>(), ["r02"]);
    let applied = kept.for_each(|_| Ok(NEW)).and_then(LockedSet::apply);
    let applied = applied.expect("the one that would crash is asked nothing");
    let held = |number: usize| all[number].inside().layers.holder().is_some();
    assert_eq!([held(0), held(1), held(2)], [true; 3]);
    assert_eq!(applied.release().stuck, []);
    assert_eq!([held(0), held(1), held(2)], [false, false, true]);
    assert_eq!(others.release().stuck, []);
    assert!(!held(2));
    let running = |number: usize| *all[number].inside().layers.running();
    assert_eq!([running(0), running(1), running(2)], [NEW, NEW, OLD]);
}

#[test]
fn a_change_that_fails_early_says_nothing_of_the_one_before() {
    let world = World::new(1);
    let all = remotes(&world, &[&[], &[]]);
    let applied = LockedSet::lock(together(&all), terms(&world, 0))
        .and_then(|set| set.for_each(|_| Ok(NEW)))
        .and_then(LockedSet::apply)
        .expect("all apply");
    let phases = |report: &Report| {
        let rows = report.rows.iter().filter(|row| row.remote == "r00");
        rows.map(|row| row.phase).collect::<Vec<_>>()
    };
    assert!(phases(&applied.report()).contains(&Phase::Apply));
    let refused = applied.for_each(|_| Err("no".to_owned()));
    let report = refused.expect_err("nobody is asked").report;
    let phases = phases(&report);
    assert!(!phases.contains(&Phase::Apply) && !phases.contains(&Phase::Poll));
}
