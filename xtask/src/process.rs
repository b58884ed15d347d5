//! Child processes: run to the end with a telling error, or watched with a deadline.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How much of a program's output an error repeats.
const TAIL_LINES: usize = 25;

/// The last lines of a text, for an error message.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// The command as a person would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs to the end without input and gives what it wrote; the error repeats the end of it.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not start `{}`", shown(command)))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`{}` ended with {}\n{}",
        shown(command),
        output.status,
        tail(&format!("{text}{errors}"))
    );
    // Some programs print their version to stderr only.
    Ok(if text.is_empty() {
        errors.into_owned()
    } else {
        text
    })
}

/// Runs to the end with its output on ours.
pub fn stream(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    ensure!(status.success(), "`{}` ended with {status}", shown(command));
    Ok(())
}

/// Runs to the end with its output on ours; the status is for the caller to judge.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("could not start `{}`", shown(command)))
}

/// Runs to the end, shows its standard output as it comes and gives it back with the status.
pub fn tee(command: &mut Command) -> Result<(String, ExitStatus)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start `{}`", shown(command)))?;
    let output = child.stdout.take().context("no standard output to read")?;
    let mut text = String::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        text.push_str(&line);
        text.push('\n');
    }
    std::io::stdout().flush()?;
    let status = child.wait()?;
    Ok((text, status))
}

/// The end of a process, as an event.
pub struct Exit {
    /// Readable when the process has ended.
    pub fd: OwnedFd,
    /// The command as a person would type it.
    pub name: String,
}

impl Exit {
    /// The same end for one more to wait for.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone();
        Ok(Self {
            fd: fd.with_context(|| format!("no second pidfd for `{}`", self.name))?,
            name: self.name.clone(),
        })
    }
}

/// A child process that is waited for with a deadline and never outlives its owner.
pub struct Watched {
    child: Child,
    exit: Exit,
}

impl Watched {
    /// Starts the command without input.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = shown(command);
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("could not start `{name}`"))?;
        // A pidfd becomes readable when the process ends: the end is an event, not a poll loop.
        let exit = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .with_context(|| format!("no pidfd for `{name}`"))?;
        Ok(Self {
            child,
            exit: Exit { fd: exit, name },
        })
    }

    /// The child, to take its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits until the process has ended; `None` when the time is up first.
    pub fn wait(&mut self, at_most: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + at_most;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).context("the time limit is too long")?;
            let mut fds = [PollFd::new(&self.exit.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(Some(self.child.wait()?)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => bail!("cannot wait for `{}`: {error}", self.exit.name),
            }
        }
    }

    /// The process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The end of the process, for another to wait for.
    pub fn exit(&self) -> Result<Exit> {
        self.exit.try_clone()
    }

    /// Asks the process to end.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends the process any signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        pidfd_send_signal(&self.exit.fd, signal)
            .with_context(|| format!("cannot send {signal:?} to `{}`", self.exit.name))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and been waited for, which is the aim.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_repeats_what_the_program_said() {
        let error = capture(Command::new("sh").args(["-c", "echo why >&2; exit 3"]));
        let text = format!("{:#}", error.expect_err("exit 3 is a failure"));
        assert!(text.contains("why") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_deadline_ends_the_wait_and_a_signal_the_process() {
        let mut watched = Watched::spawn(Command::new("sleep").arg("600")).expect("sleep starts");
        assert!(
            watched
                .wait(Duration::from_millis(5))
                .expect("poll works")
                .is_none()
        );
        watched.terminate().expect("the process is there");
        let status = watched.wait(Duration::from_secs(20)).expect("poll works");
        assert!(!status.expect("it ended").success());
    }
}
