//! An agent in a process of its own.

use migration::agent::{Endpoint, Place};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// An agent with one emulated device. Killed at the latest when it is dropped.
pub struct Agent {
    socket: PathBuf,
    state: PathBuf,
    lease: Duration,
    child: Option<Child>,
}

impl Agent {
    /// Starts it.
    pub fn new(folder: &Path, number: usize, lease: Duration) -> Self {
        let mut agent = Self {
            socket: folder.join(format!("{number}.sock")),
            state: folder.join(format!("{number}.state")),
            lease,
            child: None,
        };
        agent.start();
        agent
    }

    /// Its device.
    pub fn place(&self) -> Place {
        Place {
            device: "disk0".to_owned(),
            agent: Endpoint::Unix(self.socket.clone()),
        }
    }

    /// Starts it, again, and waits until it listens.
    pub fn start(&mut self) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidemark"))
            .args(["agent", "--device", "disk0=emulated", "--lease"])
            .arg(self.lease.as_millis().to_string())
            .arg("--socket-path")
            .arg(&self.socket)
            .arg("--state")
            .arg(&self.state)
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).unwrap();
        self.child = Some(child);
        assert!(line.starts_with("listening on unix:"), "'{line}'");
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}
