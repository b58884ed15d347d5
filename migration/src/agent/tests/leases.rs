//! Locks across silence, kills, resets, force and other managers.

use super::bed::*;
use crate::agent::*;
use crate::lock::{
    Answer, Cause, Claim, Claimant, LockedSet, Progress, RemoteError, Request, Terms,
};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Long enough for the few requests that come within it, and short enough to be waited for.
const SHORT: Duration = Duration::from_secs(2);

#[test]
fn who_is_silent_for_a_lease_loses_the_lock_and_what_it_staged() {
    let folder = tempfile::tempdir().unwrap();
    let inside = Arc::default();
    let host = host(folder.path(), SHORT, &[("disk0", &inside)]);
    let (claim, token) = lock(&host, "disk0", "gone");
    let change = suspended();
    ask(&host, "disk0", Request::Stage { token, change }).unwrap();
    assert_eq!(host.statuses()[0].pending, Some(suspended()));
    until("the end of the lease", || {
        host.sweep();
        host.statuses()[0].holder.is_none()
    });
    assert_eq!(host.statuses()[0].pending, None);
    for request in [
        Request::Apply { token },
        Request::Poll { token },
        Request::Rollback { token },
        Request::Stage {
            token,
            change: suspended(),
        },
    ] {
        let answer = ask(&host, "disk0", request);
        assert!(matches!(answer, Err(RemoteError::Fenced(_))), "{answer:?}");
    }
    // A request of it that was on its way does not lock either.
    let who = Claimant {
        id: claim.id,
        who: "gone".into(),
    };
    let late = ask(&host, "disk0", Request::Lock { claim, who });
    assert!(matches!(late, Err(RemoteError::Fenced(_))), "{late:?}");
    assert_eq!(inside.config(), DeviceConfig::default());
    lock(&host, "disk0", "next");
}

#[test]
fn a_client_that_lives_renews_its_lease() {
    let inside = Arc::default();
    let agent = Running::new(&inside, SHORT, Limits::default());
    let agents = Agents::new(None).unwrap();
    let place = agent.place();
    let set = LockedSet::lock(alone(&agents, &place), Terms::new("lives")).unwrap();
    let held = std::time::Instant::now();
    // Longer than its lease several times over.
    until("some leases", || {
        let holder = agents.status(&place).unwrap().holder;
        assert_eq!(holder.unwrap().claimant.who, "lives");
        held.elapsed() > SHORT * 2
    });
    let report = set.release();
    assert_eq!(report.stuck, []);
    assert_eq!(agents.status(&place).unwrap().holder, None);
}

#[test]
fn what_was_promised_is_kept_across_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let inside: Arc<Inside> = Arc::default();
    let first = host(folder.path(), LONG, &[("disk0", &inside)]);
    let (claim, token) = lock(&first, "disk0", "patient");
    let change = suspended();
    ask(&first, "disk0", Request::Stage { token, change }).unwrap();
    let before = first.statuses();
    drop(first);
    let second = host(folder.path(), LONG, &[("disk0", &inside)]);
    let mut after = second.statuses();
    after[0].lease_left_ms = before[0].lease_left_ms;
    assert_eq!(after, before);
    // Begun, and not ended: whoever comes after ends it.
    inside.hold(true);
    ask(&second, "disk0", Request::Apply { token }).unwrap();
    let text = std::fs::read(folder.path().join("disk0.json")).unwrap();
    inside.hold(false);
    let done = |host: &Host| {
        until("the end of the apply", || {
            ask(host, "disk0", Request::Poll { token }) == Ok(Answer::Applying(Progress::Finished))
        });
    };
    done(&second);
    drop(second);
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("disk0.json"), text).unwrap();
    let other = Arc::default();
    let third = host(elsewhere.path(), LONG, &[("disk0", &other)]);
    done(&third);
    assert_eq!(other.config(), suspended());
    assert_eq!(
        ask(&third, "disk0", Request::Release { claim }),
        Ok(Answer::Done)
    );
    assert_eq!(third.statuses()[0].holder, None);
}

#[test]
fn a_damaged_journal_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("disk0.json"), "{\"running\":").unwrap();
    let opened = Host::open(
        vec![("disk0".to_owned(), Box::new(Nothing) as Box<dyn Managed>)],
        folder.path(),
        LONG,
    );
    let error = opened.unwrap_err();
    assert!(
        matches!(error, HostError::Journal(JournalError::Damaged { .. })),
        "{error}"
    );
}

struct Nothing;

impl Managed for Nothing {
    fn abilities(&self) -> Abilities {
        Abilities {
            tracking: false,
            pasid: false,
            suspend: false,
        }
    }
    fn apply(&mut self, _: &DeviceConfig) -> Result<(), String> {
        Ok(())
    }
    fn was_reset(&mut self) -> bool {
        false
    }
}

#[test]
fn one_folder_has_one_agent() {
    let folder = tempfile::tempdir().unwrap();
    let first = Host::open(Vec::new(), folder.path(), LONG).unwrap();
    let second = Host::open(Vec::new(), folder.path(), LONG);
    assert!(second.is_err(), "two agents keep one folder");
    drop(first);
    Host::open(Vec::new(), folder.path(), LONG).unwrap();
}

#[test]
fn a_reset_voids_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let inside: Arc<Inside> = Arc::default();
    let host = host(folder.path(), LONG, &[("disk0", &inside)]);
    let (_, token) = lock(&host, "disk0", "unlucky");
    let change = suspended();
    ask(&host, "disk0", Request::Stage { token, change }).unwrap();
    inside.reset.store(true, Ordering::SeqCst);
    let applied = ask(&host, "disk0", Request::Apply { token });
    assert!(
        matches!(applied, Err(RemoteError::Fenced(_))),
        "{applied:?}"
    );
    let status = &host.statuses()[0];
    assert_eq!((status.generation, &status.holder), (1, &None));
    assert_eq!(status.running, DeviceConfig::default());
}

#[test]
fn an_apply_that_was_left_is_taken_over() {
    let inside: Arc<Inside> = Arc::default();
    let agent = Running::new(&inside, SHORT, Limits::default());
    let agents = Agents::new(None).unwrap();
    let place = agent.place();
    let next = Claimant::new("next");
    let nothing = agents.take_over(&place, &next, false).unwrap_err();
    assert!(
        nothing.to_string().contains("nothing was ever applied"),
        "{nothing}"
    );

    // A manager that goes in the middle: without release, and without renewal.
    inside.hold(true);
    let gone = Claimant::new("gone");
    let claim = json!({ "id": gone.id, "attempt": 1 });
    let locked = post(
        &agent,
        "POST",
        "lock",
        &json!({ "claim": claim, "who": gone.who }),
    );
    let token = &locked["token"];
    let stage = json!({ "token": token, "config": suspended() });
    post(&agent, "PUT", "pending", &stage);
    let task = post(&agent, "POST", "apply", &json!({ "token": token }));
    assert_eq!(task["progress"]["state"], "running", "{task}");
    until("the end of the lease", || {
        agents.status(&place).unwrap().lease_left_ms == Some(0)
    });
    std::thread::scope(|scope| {
        let taken = scope.spawn(|| agents.take_over(&place, &next, false));
        until("the new holder", || {
            let holder = agents.status(&place).unwrap().holder;
            holder.is_some_and(|holder| holder.claimant.who == "next")
        });
        inside.hold(false);
        assert_eq!(taken.join().unwrap().unwrap(), Progress::Finished);
    });
    assert_eq!(inside.config(), suspended());
    assert_eq!(agents.status(&place).unwrap().holder, None);
}

#[test]
fn what_is_being_applied_is_not_taken_from_who_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let inside: Arc<Inside> = Arc::default();
    let host = host(folder.path(), LONG, &[("disk0", &inside)]);
    let (_, token) = lock(&host, "disk0", "there");
    let change = suspended();
    ask(&host, "disk0", Request::Stage { token, change }).unwrap();
    inside.hold(true);
    ask(&host, "disk0", Request::Apply { token }).unwrap();
    let who = Claimant::new("eager");
    let claim = Claim {
        id: who.id,
        attempt: 1,
    };
    let desk = host.desk("disk0").unwrap();
    let refused = desk.take_over(token.id, claim, who.clone(), false);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("locked by there"), "{error}");
    // Its lock ends with it, even by force.
    assert!(desk.free("admin").unwrap().is_some());
    assert!(host.statuses()[0].holder.is_some());
    let forced = desk.take_over(token.id, claim, who, true).unwrap();
    let stale = ask(&host, "disk0", Request::Poll { token });
    assert!(matches!(stale, Err(RemoteError::Held(_))), "{stale:?}");
    inside.hold(false);
    until("the end of the apply", || {
        let asked = ask(&host, "disk0", Request::Poll { token: forced });
        asked == Ok(Answer::Applying(Progress::Finished))
    });
    assert_eq!(inside.config(), suspended());
}

#[test]
fn force_frees_and_fences() {
    let inside = Arc::default();
    let agent = Running::new(&inside, LONG, Limits::default());
    let agents = Agents::new(None).unwrap();
    let place = agent.place();
    let set = LockedSet::lock(alone(&agents, &place), Terms::new("stubborn")).unwrap();
    let set = set.for_each(|_| Ok(suspended())).unwrap();
    let freed = agents.free(&place, "admin").unwrap();
    assert_eq!(freed.unwrap().claimant.who, "stubborn");
    assert_eq!(agents.free(&place, "admin").unwrap(), None);
    let failure = set.apply().unwrap_err();
    assert_eq!(failure.cause, Cause::NotStarted);
    assert_eq!(inside.config(), DeviceConfig::default());
}

#[test]
fn only_those_named_may_lock() {
    let inside = Arc::default();
    let agent = Running::new(&inside, LONG, Limits::default());
    let agents = Agents::new(None).unwrap();
    let place = agent.place();
    let config = DeviceConfig {
        managers: vec!["fleet".to_owned()],
        ..DeviceConfig::default()
    };
    change(&agents, &place, &config);
    let failure = LockedSet::lock(alone(&agents, &place), Terms::new("test")).unwrap_err();
    assert!(
        failure
            .to_string()
            .contains("test may not migrate this device; fleet may"),
        "{failure}"
    );
    LockedSet::lock(alone(&agents, &place), Terms::new("fleet")).unwrap();
}
