//! The known defects of the system that this one was modelled on, each as a test.

use super::sim::*;
use crate::lock::*;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const fn fault(phase: Phase, kind: Kind) -> Fault {
    Fault {
        phase,
        kind,
        late: false,
    }
}

#[test]
fn an_apply_that_did_not_begin_is_no_success() {
    // L1: only failures of polls counted.
    let world = World::new(1);
    let all = remotes(&world, &[&[], &[fault(Phase::Apply, Kind::Error)]]);
    let set = LockedSet::lock(together(&all), terms(&world, 0)).expect("free");
    let failure = set
        .for_each(|_| Ok(NEW))
        .and_then(LockedSet::apply)
        .expect_err("not all applied");
    assert_eq!(failure.cause, Cause::Incomplete);
}

#[test]
fn an_unknown_name_is_found_before_anything_is_locked() {
    // L2: the locks taken before it were kept.
    let world = World::new(1);
    let all = remotes(&world, &[&[], &[]]);
    let find = |name: &str| {
        let found = all.iter().find(|remote| remote.name() == name);
        found.map(|remote| Arc::clone(remote) as Arc<dyn Remote<u32>>)
    };
    let unknown = Remotes::resolve(&["r00", "r01", "r99"], find);
    assert_eq!(unknown.err(), Some(Selection::Unknown("r99".into())));
    assert!(all.iter().all(|remote| remote.inside().asked.is_empty()));
    let found = Remotes::resolve(&["r01", "r00"], find).expect("they are there");
    assert_eq!(format!("{found:?}"), "[\"r00\", \"r01\"]");
}

#[test]
fn what_cannot_be_released_is_named_and_not_what_failed_before() {
    // L3: the message named the remote that could not be locked.
    let world = World::new(1);
    let release = fault(Phase::Release, Kind::Error);
    let all = remotes(&world, &[&[release], &[fault(Phase::Lock, Kind::Error)]]);
    let failure = LockedSet::lock(together(&all), terms(&world, 0)).expect_err("one refuses");
    assert_eq!(failure.cause, Cause::Lock);
    let stuck: Vec<_> = failure
        .report
        .stuck
        .iter()
        .map(|stuck| (&*stuck.remote, &*stuck.command))
        .collect();
    assert_eq!(stuck, [("r00", "tidemark lock free --force r00")]);
    let text = failure.to_string();
    assert!(
        text.contains("r00              may still be locked (refused: injected)"),
        "{text}"
    );
    assert!(
        text.contains("r01              lock     refused: injected"),
        "{text}"
    );
}

#[test]
fn why_a_rollback_failed_is_kept() {
    // L4: it was dropped.
    let world = World::new(1);
    let all = remotes(
        &world,
        &[
            &[fault(Phase::Rollback, Kind::Error)],
            &[fault(Phase::Stage, Kind::Error)],
        ],
    );
    let set = LockedSet::lock(together(&all), terms(&world, 0)).expect("free");
    let failure = set.for_each(|_| Ok(NEW)).expect_err("one refuses");
    let row = failure
        .report
        .rows
        .iter()
        .find(|row| row.phase == Phase::Rollback && row.remote == "r00");
    assert_eq!(
        row.map(|row| row.outcome.clone()),
        Some(Err(RemoteError::Refused("injected".into())))
    );
    // The release that follows leaves nothing pending all the same.
    assert_eq!(failure.report.stuck, []);
    assert!(
        all.iter()
            .all(|remote| remote.inside().layers.pending().is_none())
    );
}

#[test]
fn nothing_waits_for_ever_and_a_dropped_set_is_released() {
    // L5.
    for phase in [Phase::Lock, Phase::Stage] {
        let world = World::new(1);
        let all = remotes(&world, &[&[fault(phase, Kind::Timeout)], &[]]);
        let result = LockedSet::lock(together(&all), terms(&world, 0))
            .and_then(|set| set.for_each(|_| Ok(NEW)));
        assert!(result.is_err(), "{phase}");
        assert!(
            world.now() < limits().request * 2,
            "{phase}: {:?}",
            world.now()
        );
    }
    let world = World::new(1);
    let all = remotes(&world, &[&[], &[]]);
    let locked = || {
        LockedSet::lock(
            together(&all),
            terms(&world, world.now().as_nanos() as usize),
        )
    };
    drop(locked().expect("free"));
    drop(
        locked()
            .and_then(|set| set.for_each(|_| Ok(NEW)))
            .expect("free again"),
    );
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        locked().map(|set| set.for_each(|_| panic!("in the caller's closure")))
    }));
    assert!(panicked.is_err());
    for remote in &all {
        assert!(remote.inside().layers.holder().is_none());
        assert_eq!(remote.inside().layers.pending(), None);
    }
}

#[test]
fn one_name_twice_is_refused_before_anything_is_locked() {
    // L6: it was refused by its own lock.
    let world = World::new(1);
    let all = remotes(&world, &[&[]]);
    let find = |_: &str| Some(Arc::clone(&all[0]) as Arc<dyn Remote<u32>>);
    assert_eq!(
        Remotes::resolve(&["r00", "r00"], find).err(),
        Some(Selection::Twice("r00".into()))
    );
    assert_eq!(Remotes::<u32>::new(vec![]).err(), Some(Selection::Empty));
    assert!(all[0].inside().asked.is_empty());
}

#[test]
fn a_change_that_cannot_be_made_asks_nobody() {
    let world = World::new(1);
    let all = remotes(&world, &[&[], &[]]);
    let set = LockedSet::lock(together(&all), terms(&world, 0)).expect("free");
    let failure = set.for_each(|name| {
        if name == "r01" {
            Err("no such range".into())
        } else {
            Ok(NEW)
        }
    });
    let failure = failure.expect_err("one has no change");
    assert_eq!(failure.cause, Cause::Stage);
    assert_eq!(
        failure.report.rows[0].outcome,
        Err(RemoteError::Refused("no such range".into()))
    );
    assert!(
        all.iter()
            .all(|remote| remote.inside().asked == [Phase::Lock, Phase::Release])
    );
}

#[test]
fn a_device_that_is_reset_while_locked_is_fenced_off() {
    let world = World::new(1);
    let all = remotes(&world, &[&[], &[]]);
    let set = LockedSet::lock(together(&all), terms(&world, 0)).expect("free");
    let set = set.for_each(|_| Ok(NEW)).expect("they take it");
    all[1].inside().layers.reset(OLD);
    let failure = set.apply().expect_err("one was reset");
    assert_eq!(failure.cause, Cause::Incomplete);
    let row = failure.report.rows.first().expect("a failure");
    assert_eq!(
        row.outcome,
        Err(RemoteError::Fenced("the device was reset since".into()))
    );
    assert_eq!(failure.report.stuck, []);
    assert_eq!(*all[1].inside().layers.running(), OLD);
}

#[test]
fn threads_and_real_time_serve_as_well() {
    let layers: Vec<_> = (0..16)
        .map(|_| Arc::new(Mutex::new(Layers::new(OLD))))
        .collect();
    let remote = |(place, layers): (usize, &Arc<Mutex<Layers<u32>>>)| {
        let layers = Arc::clone(layers);
        let answer = move |request: Request<u32>| {
            let mut layers = layers.lock().expect("whole");
            let begins = matches!(request, Request::Poll { .. });
            let answer = layers.answer(request, std::time::SystemTime::now());
            // The device is done when it was asked once.
            if begins {
                layers.finish(Ok(()));
            }
            answer
        };
        let name = format!("device{place:02}");
        let remote = Threaded::new(&name, "free it", answer).expect("a thread");
        Arc::new(remote) as Arc<dyn Remote<u32>>
    };
    let remotes =
        || Remotes::new(layers.iter().enumerate().map(remote).collect()).expect("16 names");
    let terms = |who| {
        let mut terms = Terms::new(who);
        // However busy the machine is.
        terms.limits.request = Duration::from_secs(60);
        terms.limits.lock = Duration::from_secs(60);
        terms
    };
    let holder = LockedSet::lock(remotes(), terms("the first")).expect("free");
    let mut second = terms("the second");
    // It would pause for longer than it may take: so it gives up when it finds a lock taken.
    second.limits.shortest_pause = second.limits.lock;
    let failure = LockedSet::lock(remotes(), second).expect_err("it is held");
    assert!(
        failure.to_string().contains("locked by the first"),
        "{failure}"
    );
    let report = holder
        .for_each(|_| Ok(NEW))
        .and_then(LockedSet::apply)
        .expect("all apply")
        .release();
    assert_eq!((report.successes(), report.rows.len()), (5 * 16, 5 * 16));
    for layers in &layers {
        let layers = layers.lock().expect("whole");
        assert_eq!((*layers.running(), layers.holder()), (NEW, None));
    }
}
