//! A guest with four devices that is checkpointed by its agents.

use crate::process::Agent;
use crate::relay::{Moment, Relay};
use migration::agent::{Agents, Endpoint, Place};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const DEVICES: usize = 4;
const LEASE: Duration = Duration::from_secs(120);

/// One side of a pair. Killed at the latest when it is dropped.
struct Side(Child);

impl Side {
    fn spawn(folder: &Path, name: &str, more: &[String]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        command.args(["checkpoint", name, "--json", "--requests", "2000"]);
        for number in 0..DEVICES {
            let disk = folder.join(format!("{name}{number}.img"));
            let file = std::fs::File::create(&disk).unwrap();
            file.set_len(8 << 20).unwrap();
            command.arg("--disk").arg(disk);
        }
        command.args(more).env("RUST_LOG", "error");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }

    /// What it says at its end.
    fn end(mut self) -> (Value, Option<i32>) {
        let mut text = String::new();
        let mut out = self.0.stdout.take().unwrap();
        out.read_to_string(&mut text).unwrap();
        let code = self.0.wait().unwrap().code();
        let last = text.lines().last().unwrap_or_default();
        (serde_json::from_str(last).unwrap_or_default(), code)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// An agent that a wire would keep.
struct Kept(Arc<Mutex<Agent>>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).kill();
    }
}

/// Five checkpoints of a guest, unless an agent here is killed before. What the primary says, and what
/// the agent there.
fn protect(moment: Option<Moment>) -> (Value, Option<i32>, bool) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let seat = |side: &str, number: usize| {
        let seat = path.join(side).join(format!("{number}.sock"));
        format!("disk{number}=guest:{}", seat.display())
    };
    let all = |side: &str| (0..DEVICES).map(|number| seat(side, number)).collect();
    let here = Agent::of(path, "agent-here", LEASE, all("here"));
    let here = Kept(Arc::new(Mutex::new(here)));
    let there = Agent::of(path, "agent-there", LEASE, all("there"));
    let wire = path.join("wire");
    let relay = Relay::start(&wire, &here.0, moment);
    let socket = format!("unix:{}", path.join("pair").display());
    let control = |side: &str| {
        [
            "--control".to_owned(),
            path.join(side).display().to_string(),
        ]
    };
    let mut more = vec!["--listen".to_owned(), socket.clone(), "--format".to_owned()];
    more.extend(control("there"));
    let mut secondary = Side::spawn(path, "secondary", &more);
    let mut line = String::new();
    let mut out = BufReader::new(secondary.0.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert!(line.starts_with("listening on "), "{line}");
    let place = |number: usize, socket: &Path| {
        let place = Place {
            device: format!("disk{number}"),
            agent: Endpoint::Unix(socket.to_owned()),
        };
        place.to_string()
    };
    let mut more: Vec<String> = ["--to", &socket, "--memory", "32M", "--count", "5"]
        .map(str::to_owned)
        .to_vec();
    more.extend(control("here"));
    for number in 0..DEVICES {
        more.extend(["--agent".to_owned(), place(number, &wire)]);
        more.extend(["--agent-there".to_owned(), place(number, there.socket())]);
    }
    let (said, code) = Side::spawn(path, "primary", &more).end();
    // Nobody holds anything any more, but for an agent that was killed.
    let agents = Agents::new(None).unwrap();
    assert_eq!(
        agents.status(&there.place()).unwrap().holder,
        None,
        "{said:#}"
    );
    let struck = relay.struck();
    if !struck {
        let here = here.0.lock().unwrap().place();
        assert_eq!(agents.status(&here).unwrap().holder, None, "{said:#}");
    }
    (said, code, struck)
}

fn failure<'v>(said: &'v Value, name: &str) -> &'v Value {
    let mut steps = said["agents"]["steps"].as_array().unwrap().iter();
    let step = steps.find(|step| step["step"] == name);
    &step.unwrap_or_else(|| panic!("no {name}: {said:#}"))["failure"]
}

#[test]
fn every_checkpoint_stops_all_devices_together() {
    let (said, code, _) = protect(None);
    assert_eq!(code, Some(0), "{said:#}");
    assert_eq!(said["checkpoints"], 5, "{said:#}");
    for step in ["track", "switch", "resume", "restore", "release"] {
        assert_eq!(failure(&said, step), &Value::Null, "{said:#}");
    }
}

#[test]
fn a_guest_that_loses_an_agent_goes_on_alone() {
    let moment = Moment {
        request: "POST /v1/devices/disk2/apply".to_owned(),
        // One to track; then one to suspend and one to resume for each checkpoint, the first copy included.
        nth: 6,
        before: true,
        returns: false,
    };
    let (said, code, struck) = protect(Some(moment));
    assert!(struck, "{said:#}");
    assert_eq!(code, Some(0), "{said:#}");
    assert!(said["checkpoints"].as_u64() < Some(5), "{said:#}");
    assert!(said["requests"].as_u64() >= Some(2000), "{said:#}");
    assert_eq!(said["drained"], true, "{said:#}");
    assert_ne!(failure(&said, "switch"), &Value::Null, "{said:#}");
}
