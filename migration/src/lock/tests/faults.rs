//! Every fault in every place: nothing stays locked unsaid, nothing changes unless all may, and Ok
//! means all.

use super::sim::*;
use crate::lock::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

fn all_faults(late: bool) -> Vec<Fault> {
    let of = |phase| KINDS.map(|kind| Fault { phase, kind, late });
    PHASES.into_iter().flat_map(of).collect()
}

/// What a run came to, for the table.
#[derive(Debug, Default, serde::Serialize)]
struct Counts {
    runs: usize,
    applied: usize,
    by_cause: BTreeMap<String, usize>,
    stuck: usize,
    happened: usize,
}

impl Counts {
    /// One line for machines.
    fn print(&self, what: &str, lost: &str) {
        let mut figures = serde_json::json!(self);
        figures["what"] = what.into();
        figures["lost"] = lost.into();
        println!("figures {figures}");
    }
}

/// Lock, stage, apply, release; then everything that is still under way; then the judgement.
fn run(faults: &[&[Fault]], counts: &mut Counts) {
    let world = World::new(1);
    let remotes = remotes(&world, faults);
    let result = LockedSet::lock(together(&remotes), terms(&world, 0))
        .and_then(|set| set.for_each(|_| Ok(NEW)))
        .and_then(LockedSet::apply)
        .map(LockedSet::release);
    let took = world.now();
    world.drain();

    let (cause, report) = match result {
        Ok(report) => (None, report),
        Err(Failure { cause, report }) => (Some(cause), report),
    };
    let shown = || format!("{faults:?}: {cause:?}\n{report}");
    assert!(took < Duration::from_secs(12), "{took:?}; {}", shown());
    let stuck: Vec<&str> = report.stuck.iter().map(|stuck| &*stuck.remote).collect();
    let mut all_applied = true;
    let mut all_up = true;
    for (place, remote) in remotes.iter().enumerate() {
        let inside = remote.inside();
        let listed = stuck.contains(&remote.name());
        assert!(
            inside.layers.holder().is_none() || listed,
            "{} is locked and not listed; {}",
            remote.name(),
            shown()
        );
        if listed {
            let entry = report
                .stuck
                .iter()
                .find(|stuck| stuck.remote == remote.name());
            let command = entry.map(|entry| entry.command.clone());
            assert_eq!(command, Some(remote.free_command()));
            let refuses =
                |fault: &Fault| (fault.phase, fault.kind) == (Phase::Release, Kind::Error);
            assert!(
                inside.down || faults[place].iter().any(refuses),
                "{} is listed for nothing; {}",
                remote.name(),
                shown()
            );
        } else {
            assert_eq!(
                inside.layers.pending(),
                None,
                "{} has a rest; {}",
                remote.name(),
                shown()
            );
        }
        all_applied &= *inside.layers.running() == NEW;
        all_up &= !inside.down;
        let before_apply = cause.is_some_and(|cause| cause != Cause::Incomplete);
        if before_apply {
            assert_eq!(
                *inside.layers.running(),
                OLD,
                "{} has changed; {}",
                remote.name(),
                shown()
            );
        }
        counts.happened += inside.happened;
    }
    match cause {
        None => assert!(all_applied, "Ok, and not all have it; {}", shown()),
        Some(_) => assert!(
            !all_applied || !all_up,
            "all have it, and no Ok; {}",
            shown()
        ),
    }
    let failed = report
        .rows
        .iter()
        .position(|row| row.outcome.is_ok())
        .unwrap_or(report.rows.len());
    assert!(
        report.rows[failed..].iter().all(|row| row.outcome.is_ok()),
        "failures first; {}",
        shown()
    );
    for part in [&report.rows[..failed], &report.rows[failed..]] {
        assert!(
            part.is_sorted_by_key(|row| (row.remote.clone(), row.phase)),
            "{}",
            shown()
        );
    }
    assert_eq!(
        cause.is_some(),
        report.rows.iter().any(|row| {
            row.outcome.is_err() && row.phase != Phase::Release && row.phase != Phase::Rollback
        }),
        "{}",
        shown()
    );

    counts.runs += 1;
    counts.applied += usize::from(cause.is_none());
    counts.stuck += usize::from(!stuck.is_empty());
    let cause = cause.map_or("ok".to_owned(), |cause| format!("{cause:?}"));
    *counts.by_cause.entry(cause).or_default() += 1;
}

/// All multisets of a first fault for each of four remotes, none included.
fn multisets(late: bool) -> Counts {
    let mut choices: Vec<Vec<Fault>> = vec![vec![]];
    choices.extend(all_faults(late).into_iter().map(|fault| vec![fault]));
    let mut counts = Counts::default();
    for a in 0..choices.len() {
        for b in a..choices.len() {
            for c in b..choices.len() {
                for d in c..choices.len() {
                    run(
                        &[a, b, c, d].map(|choice| &choices[choice][..]),
                        &mut counts,
                    );
                }
            }
        }
    }
    counts
}

#[test]
fn every_multiset_of_early_faults() {
    let counts = multisets(false);
    counts.print("multisets", "before it was carried out");
    assert_eq!(counts.runs, 20_475);
    assert!(
        counts.applied > 100 && counts.by_cause.len() >= 4,
        "{counts:?}"
    );
}

#[test]
fn every_multiset_of_late_faults() {
    let counts = multisets(true);
    counts.print("multisets", "after it was carried out");
    assert_eq!(counts.runs, 20_475);
    assert!(
        counts.applied > 100 && counts.by_cause.len() >= 4,
        "{counts:?}"
    );
}

#[test]
fn every_ordered_pair_of_faults() {
    let mut counts = Counts::default();
    for late in [[false, false], [false, true], [true, false], [true, true]] {
        for first in all_faults(late[0]) {
            for second in all_faults(late[1]) {
                // Of one remote, one after the other; and of two, the smaller name first.
                run(&[&[first, second], &[], &[]], &mut counts);
                run(&[&[first], &[second], &[]], &mut counts);
                // A rollback and a release are only met where another remote fails.
                let stage = Fault {
                    phase: Phase::Stage,
                    kind: Kind::Error,
                    late: false,
                };
                run(&[&[first, second], &[stage]], &mut counts);
            }
        }
    }
    counts.print("pairs", "before and after it was carried out");
    assert_eq!(counts.runs, 4 * 576 * 3);
}

#[test]
fn the_point_of_no_return_is_the_first_that_began() {
    // All refuse to begin: back to where all was.
    let refuses = Fault {
        phase: Phase::Apply,
        kind: Kind::Error,
        late: false,
    };
    let world = World::new(1);
    let all = remotes(&world, &[&[refuses], &[refuses]]);
    let set = LockedSet::lock(together(&all), terms(&world, 0)).expect("free");
    let failure = set
        .for_each(|_| Ok(NEW))
        .expect("they take it")
        .apply()
        .expect_err("they refuse");
    assert_eq!(failure.cause, Cause::NotStarted);
    assert_eq!(
        all.iter()
            .map(|remote| *remote.inside().layers.running())
            .collect::<Vec<_>>(),
        [OLD, OLD]
    );

    // One begins: it is waited for, and it has the change.
    let world = World::new(1);
    let all = remotes(&world, &[&[], &[refuses]]);
    let set = LockedSet::lock(together(&all), terms(&world, 0)).expect("free");
    let failure = set
        .for_each(|_| Ok(NEW))
        .expect("they take it")
        .apply()
        .expect_err("one refuses");
    assert_eq!(failure.cause, Cause::Incomplete);
    assert_eq!(
        all.iter()
            .map(|remote| *remote.inside().layers.running())
            .collect::<Vec<_>>(),
        [NEW, OLD]
    );
    let failed: Vec<_> = failure
        .report
        .rows
        .iter()
        .filter(|row| row.outcome.is_err())
        .collect();
    assert_eq!(failed.len(), 1, "{}", failure.report);
    assert_eq!((&*failed[0].remote, failed[0].phase), ("r01", Phase::Apply));
}

#[test]
fn cancelling_ends_every_wait() {
    let slow = |phase| Fault {
        phase,
        kind: Kind::Timeout,
        late: true,
    };
    for (phase, cause) in [
        (Phase::Lock, Cause::Cancelled),
        (Phase::Stage, Cause::Cancelled),
        (Phase::Poll, Cause::Incomplete),
    ] {
        let world = World::new(1);
        let all = remotes(&world, &[&[slow(phase)], &[]]);
        let terms = terms(&world, 0);
        let cancel = terms.cancel.clone();
        world.agenda().after(RTT * 4, move |_| cancel.cancel());
        let failure = LockedSet::lock(together(&all), terms)
            .and_then(|set| set.for_each(|_| Ok(NEW)))
            .and_then(LockedSet::apply)
            .expect_err("it is cancelled");
        assert_eq!(failure.cause, cause);
        assert!(world.now() <= RTT * 8, "{phase}: {:?}", world.now());
        assert_eq!(failure.report.stuck, [], "{phase}");
        world.drain();
        assert!(
            all.iter()
                .all(|remote| remote.inside().layers.holder().is_none()),
            "{phase}"
        );
    }
}

#[test]
fn a_whole_fleet_takes_as_long_as_one_remote() {
    let whole = |count: usize| {
        let world = World::new(1);
        let all = remotes(&world, &vec![&[][..]; count]);
        let set = LockedSet::lock(together(&all), terms(&world, 0)).expect("free");
        let set = set.for_each(|_| Ok(NEW)).expect("they take it");
        let applied = set.apply().expect("they apply");
        let took = world.now();
        assert_eq!(applied.report().successes(), 4 * count);
        assert_eq!(applied.release().stuck, []);
        assert!(
            all.iter()
                .all(|remote| *remote.inside().layers.running() == NEW)
        );
        took
    };
    let (one, all) = (whole(1), whole(256));
    assert_eq!(one, all);
    let own = all.saturating_sub(DEVICE);
    println!(
        "256 simulated remotes: {all:?}, {:.1} RTT without the device's time",
        own.as_secs_f64() / RTT.as_secs_f64()
    );
    assert!(own <= RTT * 10, "{own:?}");
}

#[test]
fn a_set_can_be_changed_again_before_it_is_released() {
    let world = World::new(1);
    let all = remotes(&world, &[&[], &[]]);
    let set = LockedSet::lock(together(&all), terms(&world, 0)).expect("free");
    let set = set
        .for_each(|_| Ok(NEW))
        .and_then(LockedSet::apply)
        .expect("on");
    let set = set
        .for_each(|_| Ok(OLD))
        .expect("staged")
        .for_each(|_| Ok(7))
        .expect("staged again");
    assert_eq!(set.names().collect::<Vec<_>>(), ["r00", "r01"]);
    let report = set.apply().expect("off").release();
    assert_eq!(report.stuck, []);
    let running = |remote: &Arc<SimRemote>| *remote.inside().layers.running();
    assert_eq!(all.iter().map(running).collect::<Vec<_>>(), [7, 7]);
}
