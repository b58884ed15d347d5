//! A guest with four devices that is moved by its agents, one of which is killed at each phase: as
//! processes, all of them.
//!
//! `TIDEMARK_MOVES` says how many moves. The last line has the figures as one JSON object.

use crate::Random;
use crate::process::Agent;
use crate::relay::{Moment, Relay};
use migration::agent::{Agents, DeviceConfig, Endpoint, Place};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const DEVICES: usize = 4;
/// Moves without a word about it: one for each phase.
const MOVES: usize = PHASES.len();
/// Longer than a move on a busy machine.
const LEASE: Duration = Duration::from_secs(120);

/// The phases of a move, the request that each consists of, and which of those it is.
const PHASES: [(&str, &str, &str, u32); 6] = [
    ("lock", "POST", "lock", 1),
    ("stage", "PUT", "pending", 1),
    ("apply", "POST", "apply", 1),
    ("stage of the switch", "PUT", "pending", 2),
    ("switch", "POST", "apply", 2),
    ("release", "POST", "release", 1),
];

fn tidemark() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.env("RUST_LOG", "error").stdin(Stdio::null());
    command
}

fn last(text: &[u8]) -> Value {
    let text = std::str::from_utf8(text).unwrap();
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A destination. Killed at the latest when it is dropped.
struct Receiver(Child);

impl Drop for Receiver {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// Both hosts: five agents, and the wires to them.
struct Hosts {
    folder: PathBuf,
    agents: Vec<Arc<Mutex<Agent>>>,
    relays: Vec<Relay>,
}

/// The wires would keep them.
impl Drop for Hosts {
    fn drop(&mut self) {
        for agent in &self.agents {
            agent.lock().unwrap_or_else(PoisonError::into_inner).kill();
        }
    }
}

/// Which agent has a device: one for each here, and one for all there.
fn agent_of(place: usize) -> usize {
    place.min(DEVICES)
}

impl Hosts {
    /// With an agent that is killed at a moment; `wrong` lets the last agent here answer for another device
    /// than the guest's.
    fn new(folder: &Path, victim: Option<(usize, &Moment)>, wrong: bool) -> Self {
        let device = |side: &str, number: usize| {
            let seat = folder.join(side).join(format!("{number}.sock"));
            format!("disk{number}=guest:{}", seat.display())
        };
        let mut agents = Vec::new();
        for number in 0..DEVICES {
            let devices = if wrong && number == DEVICES - 1 {
                vec![format!("disk{number}=emulated")]
            } else {
                vec![device("here", number)]
            };
            agents.push(Agent::of(folder, &format!("here{number}"), LEASE, devices));
        }
        let devices = (0..DEVICES).map(|number| device("there", number)).collect();
        agents.push(Agent::of(folder, "there", LEASE, devices));
        let agents: Vec<_> = agents
            .into_iter()
            .map(|one| Arc::new(Mutex::new(one)))
            .collect();
        let relay = |(number, agent): (usize, &Arc<Mutex<Agent>>)| {
            let moment = victim.filter(|(victim, _)| agent_of(*victim) == number);
            let path = folder.join(format!("wire{number}"));
            Relay::start(&path, agent, moment.map(|(_, moment)| moment.clone()))
        };
        Self {
            folder: folder.to_owned(),
            relays: agents.iter().enumerate().map(relay).collect(),
            agents,
        }
    }

    /// Where a device is, of those here and then those there.
    fn place(&self, number: usize) -> Place {
        Place {
            device: format!("disk{}", number % DEVICES),
            agent: Endpoint::Unix(self.folder.join(format!("wire{}", agent_of(number)))),
        }
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        (0..2 * DEVICES).map(|number| self.place(number))
    }

    /// Moves a guest; what the source says, and its exit code.
    fn move_guest(&self, more: &[&str]) -> (Value, Option<i32>, String) {
        let at = |name: &str| self.folder.join(name);
        let mut disks = Vec::new();
        for number in 0..DEVICES {
            let disk = at(&format!("disk{number}.img"));
            std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
            disks.push("--disk".to_owned());
            disks.push(disk.display().to_string());
        }
        std::fs::create_dir(at("evidence")).unwrap();
        let socket = format!("unix:{}", at("socket").display());
        let mut receiver = Receiver(
            tidemark()
                .args(["receive", "--listen", &socket, "--requests", "2000"])
                .args(&disks)
                .arg("--evidence")
                .arg(at("evidence"))
                .arg("--control")
                .arg(at("there"))
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let mut out = BufReader::new(receiver.0.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on "), "{line}");
        let mut command = tidemark();
        command
            .args(["migrate", "--json", "--memory", "64M", "--devices", "4"])
            .args(["--queues", "1", "--plain-copies", "0", "--to", &socket])
            .args(&disks)
            .arg("--evidence")
            .arg(at("evidence"))
            .arg("--control")
            .arg(at("here"))
            .args(more);
        for (number, place) in self.places().enumerate() {
            command.arg(if number < DEVICES {
                "--agent"
            } else {
                "--agent-there"
            });
            command.arg(place.to_string());
        }
        let output = command.output().unwrap();
        let mut rest = Vec::new();
        out.read_to_end(&mut rest).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!errors.contains("panicked"), "{errors}");
        (last(&output.stdout), output.status.code(), errors)
    }
}

/// The rows of a step, if it was taken.
fn step<'v>(figures: &'v Value, name: &str) -> Option<&'v Value> {
    let mut steps = figures["agents"]["steps"].as_array()?.iter();
    steps.find(|step| step["step"] == name)
}

/// The guest runs on where it was, as it was, and lost nothing.
fn stayed(figures: &Value, shown: &str) {
    assert_eq!(figures["source_whole"], true, "{shown}");
    assert_eq!(figures["requests"]["lost"], 0, "{shown}");
    let devices = figures["devices_at_source"].as_array().unwrap();
    assert_eq!(devices.len(), DEVICES, "{shown}");
    for device in devices {
        assert_eq!(device["tracking"], false, "{shown}");
        assert_eq!(device["suspended"], false, "{shown}");
    }
}

/// The guest runs there, and nothing was lost on the way.
fn moved(figures: &Value, shown: &str) {
    assert_eq!(figures["moved"], true, "{shown}");
    let memory = &figures["memory"];
    assert_eq!(memory["compared"], 64 << 8, "{shown}");
    for lost in ["lost_device", "lost_cpu", "lost_unused"] {
        assert_eq!(memory[lost], 0, "{shown}");
    }
    let requests = &figures["requests"];
    for bad in ["lost", "doubled", "failed", "corrupt"] {
        assert_eq!(requests[bad], 0, "{shown}");
    }
    assert!(
        figures["requests_at_destination"].as_u64() > Some(0),
        "{shown}"
    );
}

/// One move in which somebody is killed at a phase; whether the guest has moved.
fn killed(seed: usize) -> (&'static str, bool) {
    let (phase, method, what, nth) = PHASES[seed % PHASES.len()];
    let mut random = Random(seed as u64);
    let victim = usize::try_from(random.below(2 * DEVICES as u64)).unwrap();
    let moment = Moment {
        request: format!("{method} /v1/devices/disk{}/{what}", victim % DEVICES),
        nth,
        before: (seed + seed / PHASES.len()).is_multiple_of(2),
        // Nobody in the first two rounds of the phases, everybody in the third.
        returns: seed / PHASES.len() % 3 == 2,
    };
    let folder = tempfile::tempdir().unwrap();
    let hosts = Hosts::new(folder.path(), Some((victim, &moment)), false);
    let (figures, code, errors) = hosts.move_guest(&[]);
    let shown = format!("seed {seed}: {victim} killed at {phase}: {moment:?}: {errors}{figures:#}");
    assert!(
        hosts.relays[agent_of(victim)].struck(),
        "nobody was killed; {shown}"
    );
    let has_moved = figures["moved"] == true;
    if has_moved {
        moved(&figures, &shown);
    } else {
        assert_eq!(code, Some(1), "{shown}");
        stayed(&figures, &shown);
    }
    let name = hosts.place(victim).to_string();
    let failed_at = |wanted: &str, phases: &[&str]| {
        let step = step(&figures, wanted).unwrap_or_else(|| panic!("no {wanted}; {shown}"));
        assert_ne!(step["failure"], Value::Null, "{shown}");
        let mut rows = step["rows"].as_array().unwrap().iter();
        let named = rows.any(|row| {
            let phase = row["phase"].as_str().unwrap_or_default();
            row["remote"] == name && row["error"] != Value::Null && phases.contains(&phase)
        });
        assert!(
            named,
            "the report does not name {name} in {phases:?}; {shown}"
        );
    };
    if !moment.returns {
        assert_eq!(has_moved, phase == "release", "{shown}");
        match phase {
            "lock" => failed_at("track", &["lock"]),
            "stage" => failed_at("track", &["stage"]),
            "apply" => failed_at("track", &["apply", "poll"]),
            "stage of the switch" => failed_at("switch", &["stage"]),
            "switch" => failed_at("switch", &["apply", "poll"]),
            _ => {
                let stuck = figures["agents"]["stuck"].as_array().unwrap();
                assert!(stuck.iter().any(|stuck| stuck["remote"] == name), "{shown}");
                assert_eq!(code, Some(1), "{shown}");
            }
        }
        if matches!(phase, "lock" | "stage") {
            assert!(step(&figures, "switch").is_none(), "{shown}");
        }
    }
    freed(&hosts, &figures, &shown);
    (phase, has_moved)
}

/// What the report says that it may still be locked is free after its command, and nothing else is locked.
fn freed(hosts: &Hosts, figures: &Value, shown: &str) {
    for agent in &hosts.agents {
        agent.lock().unwrap().see_to();
    }
    for stuck in figures["agents"]["stuck"].as_array().unwrap() {
        let command = stuck["command"].as_str().unwrap();
        let mut words = command.split(' ');
        assert_eq!(words.next(), Some("tidemark"), "{shown}");
        let output = tidemark().args(words).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{command}: {output:?}; {shown}"
        );
    }
    let agents = Agents::new(None).unwrap();
    for place in hosts.places() {
        let status = agents.status(&place).unwrap();
        assert_eq!(status.holder, None, "{place}; {shown}");
        assert_eq!(status.pending, None, "{place}; {shown}");
        assert_eq!(status.running, DeviceConfig::default(), "{place}; {shown}");
    }
}

#[test]
fn a_guest_whose_agents_are_killed_is_whole_wherever_it_is() {
    let told = std::env::var("TIDEMARK_MOVES").ok();
    let moves = told.map_or(MOVES, |told| told.parse().expect("a number of moves"));
    let mut phases: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for seed in 0..moves {
        let (phase, moved) = killed(seed);
        phases.entry(phase).or_default()[usize::from(moved)] += 1;
    }
    let phases: BTreeMap<_, _> = phases
        .into_iter()
        .map(|(phase, [stayed, moved])| {
            (phase, serde_json::json!({"stayed": stayed, "moved": moved}))
        })
        .collect();
    let figures = serde_json::json!({ "moves": moves, "killed": moves, "phases": phases });
    println!("figures {figures}");
}

#[test]
fn four_devices_are_tracked_moved_and_released_together() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = Hosts::new(folder.path(), None, false);
    let (figures, code, errors) = hosts.move_guest(&[]);
    let shown = format!("{errors}{figures:#}");
    assert_eq!(code, Some(0), "{shown}");
    assert_eq!(figures["verified"], true, "{shown}");
    moved(&figures, &shown);
    for (name, phases) in [
        ("track", &["lock", "stage", "apply", "poll"][..]),
        ("switch", &["stage", "apply", "poll"]),
        ("release", &["release"]),
    ] {
        let step = step(&figures, name).unwrap();
        assert_eq!(step["failure"], Value::Null, "{shown}");
        let rows = step["rows"].as_array().unwrap();
        for phase in phases {
            let of = |row: &&Value| row["phase"] == *phase && row["error"] == Value::Null;
            assert_eq!(
                rows.iter().filter(of).count(),
                2 * DEVICES,
                "{phase}; {shown}"
            );
        }
    }
    freed(&hosts, &figures, &shown);
}

/// Marking switched off: agents or not, pages are lost, that is seen, and the guest is let go on by its
/// agents.
#[test]
fn without_marks_pages_are_lost_and_all_devices_are_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = Hosts::new(folder.path(), None, false);
    let (figures, code, errors) = hosts.move_guest(&["--tracker", "off"]);
    let shown = format!("{errors}{figures:#}");
    assert_eq!(code, Some(1), "{shown}");
    assert!(figures["lost_pages"].as_u64() > Some(0), "{shown}");
    stayed(&figures, &shown);
    for name in ["resume", "restore"] {
        assert_eq!(
            step(&figures, name).unwrap()["failure"],
            Value::Null,
            "{shown}"
        );
    }
    freed(&hosts, &figures, &shown);
}

/// All agents say that all is well, and three devices of four are tracked: nothing is moved.
#[test]
fn three_devices_of_four_are_not_enough() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = Hosts::new(folder.path(), None, true);
    let (figures, code, errors) = hosts.move_guest(&[]);
    let shown = format!("{errors}{figures:#}");
    assert_eq!(code, Some(1), "{shown}");
    assert_eq!(
        step(&figures, "track").unwrap()["failure"],
        Value::Null,
        "{shown}"
    );
    assert!(
        errors.contains("its agent was to turn tracking on and has not"),
        "{shown}"
    );
    stayed(&figures, &shown);
}
