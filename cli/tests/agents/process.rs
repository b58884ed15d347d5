//! An agent in a process of its own.

use migration::agent::{Endpoint, Place};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// An agent. Killed at the latest when it is dropped.
pub struct Agent {
    socket: PathBuf,
    state: PathBuf,
    lease: Duration,
    devices: Vec<String>,
    child: Option<Child>,
}

impl Agent {
    /// Starts one with one emulated device.
    pub fn new(folder: &Path, number: usize, lease: Duration) -> Self {
        let devices = vec!["disk0=emulated".to_owned()];
        Self::of(folder, &number.to_string(), lease, devices)
    }

    /// Starts one with these devices.
    pub fn of(folder: &Path, name: &str, lease: Duration, devices: Vec<String>) -> Self {
        let mut agent = Self {
            socket: folder.join(format!("{name}.sock")),
            state: folder.join(format!("{name}.state")),
            lease,
            devices,
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

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts it, again, and waits until it listens.
    pub fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        command.args(["agent", "--lease"]);
        command.arg(self.lease.as_millis().to_string());
        for device in &self.devices {
            command.arg("--device").arg(device);
        }
        let mut child = command
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

    /// Starts it if it does not run.
    pub fn see_to(&mut self) {
        if self.child.is_none() {
            self.start();
        }
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
