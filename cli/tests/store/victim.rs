//! Processes of the store that tell their steps, and are killed at one of them.

use crate::place::Place;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What comes before the first step that a process tells.
pub const STARTED: &str = "started";

/// A command of `tidemark store`.
pub fn tidemark(place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    let (first, rest) = arguments.split_at(1);
    command.arg("store").args(first).args(place.arguments());
    command.args(rest).arg("--json").stdin(Stdio::null());
    command.env("RUST_LOG", "store=debug").env("NO_COLOR", "1");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// When to kill: so long after a step was told for the so-manyth time, from 1.
#[derive(Clone, Debug)]
pub struct Moment {
    pub step: String,
    pub time: usize,
    pub delay: Duration,
}

/// A process that is heard.
pub struct Victim {
    child: Child,
    lines: Receiver<(Instant, String)>,
    heard: Vec<(Instant, String)>,
    told: String,
}

/// What became of one.
pub struct End {
    pub status: ExitStatus,
    /// All steps that it told, with when they were heard.
    pub steps: Vec<(Instant, String)>,
    /// What it printed.
    pub out: Vec<u8>,
    /// What else it told.
    pub told: String,
}

impl End {
    /// Whether it died before its own end.
    pub fn was_killed(&self) -> bool {
        self.status.code().is_none()
    }

    /// The last step that was done.
    pub fn last(&self) -> &str {
        self.steps.last().map_or(STARTED, |(_, step)| step)
    }

    /// What it printed, if it did what it was asked.
    pub fn done(&self) -> Result<Value, String> {
        if !self.status.success() {
            return Err(format!("{}: {}", self.status, self.told));
        }
        serde_json::from_slice(&self.out).map_err(|error| format!("{error}: {}", self.told))
    }
}

impl Victim {
    pub fn start(mut command: Command) -> Self {
        let began = Instant::now();
        let mut child = command.spawn().unwrap();
        let errors = child.stderr.take().unwrap();
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                // Who no longer listens has its answer.
                drop(send.send((Instant::now(), line)));
            }
        });
        Self {
            child,
            lines,
            heard: vec![(began, STARTED.to_owned())],
            told: String::new(),
        }
    }

    /// Hears one more line; nothing when there are no more.
    fn hear(&mut self) -> Option<()> {
        let (when, line) = self.lines.recv().ok()?;
        match line.split_once(" DEBUG store: ") {
            Some((_, step)) => {
                let step = step.split(" path=").next().unwrap_or(step);
                self.heard.push((when, step.to_owned()));
            }
            None => self.told += &(line + "\n"),
        }
        Some(())
    }

    /// Lets it run to that moment, and kills it, unless it ends before.
    pub fn kill_at(mut self, moment: &Moment) -> End {
        let at = |(_, step): &&(Instant, String)| *step == moment.step;
        while self.heard.iter().filter(at).count() < moment.time {
            if self.hear().is_none() {
                return self.end();
            }
        }
        // Not waiting for anything: the moment is what is tried out.
        sleep(moment.delay);
        self.child.kill().unwrap();
        self.end()
    }

    /// Waits until it tells that step.
    #[cfg(feature = "etcd")]
    pub fn until(&mut self, step: &str) {
        while self.heard.iter().all(|(_, heard)| heard != step) {
            let heard = self.hear();
            assert!(heard.is_some(), "ended before '{step}': {}", self.told);
        }
    }

    /// Stops it where it is, or lets it go on.
    #[cfg(feature = "etcd")]
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        let id = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Waits until it ends by itself.
    pub fn end(mut self) -> End {
        let mut out = Vec::new();
        let mut pipe = self.child.stdout.take().unwrap();
        pipe.read_to_end(&mut out).unwrap();
        while self.hear().is_some() {}
        End {
            status: self.child.wait().unwrap(),
            steps: self.heard,
            out,
            told: self.told,
        }
    }
}
