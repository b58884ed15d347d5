//! What is served is what is described, and what is refused says why.

use super::bed::*;
use crate::agent::host::Caller;
use crate::agent::routes::{ROUTES, answer};
use crate::agent::*;
use crate::lock::{Cause, LockedSet, RemoteError, Terms};
use hyper::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where the book keeps the document.
const KEPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/src/agent-openapi.json"
);

#[test]
fn the_document_is_what_is_served_and_what_is_kept() {
    let kept = std::fs::read_to_string(KEPT).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(
        kept,
        document(),
        "docs/src/agent-openapi.json is not /openapi.json: put that in its place"
    );

    let folder = tempfile::tempdir().unwrap();
    let inside = Arc::default();
    let host = host(folder.path(), LONG, &[("disk0", &inside)]);
    let ask = |method: &Method, path: &str| {
        let path = path.replace("{device}", "disk0").replace("{task}", "x");
        answer(&host, &Caller::Local, method, &path, b"{}")
    };
    let mut described = BTreeSet::new();
    for (path, operations) in document()["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let (status, body) = ask(&method, path);
            assert_ne!(status, 405, "{method} {path}");
            let nothing = body["message"].as_str().unwrap_or_default();
            assert!(!nothing.contains("there is nothing at"), "{method} {path}");
            described.insert((method.to_string(), path.clone()));
        }
    }
    let served = ROUTES
        .iter()
        .map(|route| (route.method.to_string(), route.path.to_owned()))
        .collect();
    assert_eq!(described, served);
    // What is not described is not served.
    for (_, path) in &described {
        for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE] {
            if !described.contains(&(method.to_string(), path.clone())) {
                assert_eq!(ask(&method, path).0, 405, "{method} {path}");
            }
        }
    }
    assert_eq!(ask(&Method::GET, "/v2").0, 404);
    // Every schema that is named is there.
    let document = document();
    let text = document.to_string();
    let named = text.split("#/components/schemas/").skip(1);
    for name in named.map(|rest| rest.split('"').next().unwrap()) {
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name}"
        );
    }
}

#[test]
fn a_wrong_token_is_told_who_has_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let inside = Arc::default();
    let host = host(folder.path(), LONG, &[("disk0", &inside)]);
    let post = |what: &str, body: &Value| {
        let path = format!("/v1/devices/disk0/{what}");
        answer(
            &host,
            &Caller::Local,
            &Method::POST,
            &path,
            body.to_string().as_bytes(),
        )
    };
    let claim = |last: char| {
        let id = format!("01890000-0000-7000-8000-00000000000{last}");
        json!({ "id": id, "attempt": 1 })
    };
    let (status, _) = post("apply", &json!({}));
    assert_eq!(status, 400, "no token");
    let (status, locked) = post("lock", &json!({ "claim": claim('1'), "who": "first" }));
    assert_eq!(status, 200, "{locked}");
    assert_eq!(locked["token"]["id"].as_str().unwrap().as_bytes()[14], b'7');
    let (status, refused) = post("lock", &json!({ "claim": claim('2'), "who": "second" }));
    assert_eq!((status.as_u16(), &refused["error"]), (423, &json!("held")));
    assert_eq!(refused["holder"]["claimant"]["who"], "first");
    assert!(
        refused["holder"]["since"].as_u64() > Some(1_600_000_000_000),
        "{refused}"
    );
    let other = json!({ "token": { "id": claim('3')["id"], "generation": 0 } });
    for what in ["rollback", "apply", "poll", "renew"] {
        let (status, refused) = post(what, &other);
        assert_eq!(status, 423, "{what}: {refused}");
        assert_eq!(refused["holder"]["claimant"]["who"], "first", "{what}");
    }
    let (status, _) = post("release", &json!({ "claim": claim('1') }));
    assert_eq!(status, 200);
    let (status, refused) = post("renew", &json!({ "token": locked["token"] }));
    assert_eq!(
        (status.as_u16(), &refused["error"]),
        (412, &json!("fenced"))
    );
}

#[test]
fn of_two_managers_one_wins_and_the_other_is_told_who() {
    let insides: Vec<Arc<Inside>> = (0..4).map(|_| Arc::default()).collect();
    let running: Vec<_> = insides
        .iter()
        .map(|inside| Running::new(inside, LONG, Limits::default()))
        .collect();
    let agents = Agents::new(None).unwrap();
    for _ in 0..8 {
        let barrier = std::sync::Barrier::new(2);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let managers: Vec<_> = ["left", "right"]
                .into_iter()
                .map(|who| {
                    let (running, agents, barrier) = (&running, &agents, &barrier);
                    scope.spawn(move || {
                        let remote = |agent: &Running| {
                            Arc::new(agents.remote(agent.place()))
                                as Arc<dyn crate::lock::Remote<_>>
                        };
                        let mut terms = Terms::new(who);
                        terms.limits.lock = std::time::Duration::from_secs(1);
                        let remotes =
                            crate::lock::Remotes::new(running.iter().map(remote).collect());
                        barrier.wait();
                        // Whoever has it keeps it until the other has given up.
                        let locked = LockedSet::lock(remotes.unwrap(), terms);
                        barrier.wait();
                        locked.map(|set| (who, set.release()))
                    })
                })
                .collect();
            let outcomes = managers.into_iter().map(|manager| manager.join().unwrap());
            outcomes.collect()
        });
        let (mut won, mut lost) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok((who, report)) => {
                    assert_eq!(report.stuck, []);
                    won.push(who);
                }
                Err(failure) => lost.push(failure),
            }
        }
        let ([winner], [loser]) = (&won[..], &lost[..]) else {
            panic!("{won:?}, {lost:?}");
        };
        assert_eq!(loser.cause, Cause::Lock);
        let told = loser.report.rows.iter().any(|row| {
            matches!(&row.outcome, Err(RemoteError::Held(holder)) if holder.claimant.who == *winner)
        });
        assert!(told, "{loser}");
    }
    for agent in &running {
        assert_eq!(agents.status(&agent.place()).unwrap().holder, None);
    }
}
