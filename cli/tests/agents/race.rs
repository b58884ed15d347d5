//! Two managers, as two processes, that want the same four devices.
//!
//! `TIDEMARK_RACES` says how often. The last line has the figures as one JSON object.

use crate::process::Agent;
use migration::agent::Agents;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

const AGENTS: usize = 4;
const RACES: u64 = 3;
/// How long each waits for the other, in milliseconds.
const WAIT: &str = "3000";

struct Manager {
    name: String,
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Manager {
    fn start(name: &str, places: &[String]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidemark"))
            .args(["lock", "set", "--suspend", "--hold", "--wait", WAIT])
            .args(["--who", name, "--manager", "anna", "--manager", "bert"])
            .args(places)
            .env("RUST_LOG", "error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let name = name.to_owned();
        Self { name, child, out }
    }

    /// Its first line: that it holds all, or why not.
    fn first(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }

    /// What it says at its end, and its exit code.
    fn end(mut self) -> (String, Option<i32>) {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.out.read_to_string(&mut text).unwrap();
        let mut errors = self.child.stderr.take().unwrap();
        errors.read_to_string(&mut text).unwrap();
        (text, self.child.wait().unwrap().code())
    }
}

#[test]
fn of_two_managers_one_has_all_and_the_other_is_told_who() {
    let told = std::env::var("TIDEMARK_RACES").ok();
    let races = told.map_or(RACES, |told| told.parse().expect("a number of races"));
    let folder = tempfile::tempdir().unwrap();
    let lease = Duration::from_secs(60);
    let agents: Vec<Agent> = (0..AGENTS)
        .map(|number| Agent::new(folder.path(), number, lease))
        .collect();
    let places: Vec<String> = agents.iter().map(|one| one.place().to_string()).collect();
    let client = Agents::new(None).unwrap();
    let mut won = [0_u64; 2];
    for race in 0..races {
        let mut managers = [
            Manager::start("anna", &places),
            Manager::start("bert", &places),
        ];
        let first = managers.each_mut().map(Manager::first);
        let held = first.each_ref().map(|line| line.starts_with("held"));
        let shown = format!("race {race}: {first:?}");
        assert_eq!(held.iter().filter(|held| **held).count(), 1, "{shown}");
        let winner = usize::from(held[1]);
        won[winner] += 1;
        let name = managers[winner].name.clone();
        for agent in &agents {
            let status = client.status(&agent.place()).unwrap();
            let holder = status.holder.map(|holder| holder.claimant.who);
            assert_eq!(holder.as_ref(), Some(&name), "{shown}");
        }
        let [anna, bert] = managers;
        let (winner, loser) = if held[0] { (anna, bert) } else { (bert, anna) };
        let (text, code) = loser.end();
        let text = format!("{}{}{text}", first[0], first[1]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(&format!("locked by {name} (")), "{text}");
        let (text, code) = winner.end();
        assert_eq!(code, Some(0), "{text}");
        for agent in &agents {
            let status = client.status(&agent.place()).unwrap();
            assert_eq!(status.holder, None, "{shown}");
            assert!(status.running.suspended, "{shown}");
        }
    }
    let figures = serde_json::json!({ "races": races, "won": won });
    println!("figures {figures}");
}
