//! A device of ours in a process of its own, served over vfio-user.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::guest::Run;
use crate::process::{self, Watched};

const START: Duration = Duration::from_secs(20);
const END: Duration = Duration::from_secs(20);

/// A running `tidemark device vfio-user`.
pub struct Served {
    process: Watched,
    lines: Receiver<String>,
    stdout: JoinHandle<std::io::Result<String>>,
    stderr: JoinHandle<String>,
}

impl Served {
    /// Starts the device and waits until it says that it listens. Nobody connects to find out: the
    /// server serves one connection, and QEMU's is to be that one.
    pub fn vfio_user(tidemark: &Path, socket: &Path, disk: &Path, more: &[&str]) -> Result<Self> {
        let mut command = Command::new(tidemark);
        command
            .args(["device", "vfio-user", "--socket-path"])
            .arg(socket);
        command.arg("--disk").arg(disk).args(more);
        Self::spawn(&mut command)
    }

    /// The process, for a guest to watch.
    pub fn process(&self) -> &Watched {
        &self.process
    }

    /// The same for any server that says `listening on PATH`, and reports at its end, as
    /// `tidemark device` does.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let shown = process::shown(command);
        let mut process = Watched::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let mut stdout = process
            .child()
            .stdout
            .take()
            .context("the device has no stdout")?;
        let stderr = process
            .child()
            .stderr
            .take()
            .context("the device has no stderr")?;

        let (send, lines) = mpsc::channel();
        let stdout = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text)
        });
        let stderr = thread::spawn(move || forward(stderr, &send));
        let served = Self {
            process,
            lines,
            stdout,
            stderr,
        };
        served.listens().with_context(|| format!("`{shown}`"))?;
        Ok(served)
    }

    /// Waits until it says that it listens, which one that serves several clients in turn does again.
    pub fn listens(&self) -> Result<()> {
        wait_for_listening(&self.lines)
    }

    /// The device's report beside the run of the guest that had it. What the device says at its end
    /// explains a failed guest, so both are awaited.
    pub fn finish_with(self, run: Result<Run>) -> Result<(Run, Value)> {
        match (run, self.finish()) {
            (Err(guest), Err(device)) => {
                Err(guest.context(format!("the device failed too: {device:#}")))
            }
            (run, report) => Ok((run?, report?)),
        }
    }

    /// Kills it, at whatever it is, and waits for its end.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        let ended = self.process.wait(END)?;
        ended.map(drop).context("a killed process lives")
    }

    /// Ends one that would go on, and gives what it reports.
    pub fn stop(self) -> Result<Value> {
        self.process.terminate()?;
        self.finish()
    }

    /// What the device reports at its end.
    pub fn finish(self) -> Result<Value> {
        let (status, text, errors) = self.end()?;
        ensure!(
            status.success(),
            "the device ended with {status}\n{}",
            process::tail(&errors)
        );
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last)
            .with_context(|| format!("the device's last line is {last:?}, not a JSON object"))
    }

    /// Its end, which the client's disconnect brings about; SIGTERM does when that was not enough.
    /// Gives its status and what it said on stdout and stderr.
    pub fn end(mut self) -> Result<(ExitStatus, String, String)> {
        let mut status = self.process.wait(END)?;
        if status.is_none() {
            self.process.terminate()?;
            status = self.process.wait(END)?;
        }
        let Some(status) = status else {
            bail!("the device ends neither when its client disconnects nor on SIGTERM");
        };
        let text = self
            .stdout
            .join()
            .ok()
            .context("the reader of stdout panicked")??;
        let errors = self
            .stderr
            .join()
            .ok()
            .context("the reader of stderr panicked")?;
        Ok((status, text, errors))
    }
}

/// Shows lines and passes them on as they come, and gives all of them at the end.
pub(super) fn forward(stderr: ChildStderr, lines: &mpsc::Sender<String>) -> String {
    let mut all = String::new();
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        eprintln!("device: {line}");
        all.push_str(&line);
        all.push('\n');
        // After the start nobody listens any more.
        let _ = lines.send(line);
    }
    all
}

pub(super) fn wait_for_listening(lines: &Receiver<String>) -> Result<()> {
    let deadline = Instant::now() + START;
    let mut seen = String::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains("listening on ") => return Ok(()),
            Ok(line) => {
                seen.push_str(&line);
                seen.push('\n');
            }
            Err(RecvTimeoutError::Timeout) => bail!(
                "no line `listening on PATH` on stderr within {} s; it said\n{seen}",
                START.as_secs()
            ),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("ended before it listened; it said\n{seen}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn(script: &str) -> Result<Served> {
        Served::spawn(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn the_report_is_the_last_line() -> Result<()> {
        let served =
            spawn("echo warm >&2; echo listening on s >&2; echo x; echo '{\"requests\":7}'")?;
        assert_eq!(served.finish()?["requests"], 7);
        Ok(())
    }

    #[test]
    fn a_device_that_dies_first_is_quoted() {
        let error = spawn("echo no such disk >&2; exit 1")
            .err()
            .expect("it never listened");
        assert!(format!("{error:#}").contains("no such disk"), "{error:#}");
    }

    #[test]
    fn a_device_without_a_report_fails() -> Result<()> {
        let error = spawn("echo listening on s >&2; echo done")?
            .finish()
            .expect_err("no JSON");
        assert!(error.to_string().contains("done"), "{error}");
        Ok(())
    }
}
