//! A guest that runs: what it says, lines to and from it, its monitor, its memory, its end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use super::hub::{self, Hub};
use super::qmp::{self, Qmp, Sender};
use super::serial::{self, Serial};
use super::{Guest, SERIAL_LOG};
use crate::process::{self, Exit, Watched};

/// QEMU connects to its channels before it makes any device.
const START: Duration = Duration::from_secs(60);
/// From `quit`, or from the end of all channels, to the end of the process.
const END: Duration = Duration::from_secs(60);

/// A guest from its start on. Dropped, it is killed.
pub struct Running {
    // In this order: what reads ends when QEMU has ended, and its sockets go last.
    qemu: Watched,
    readers: Vec<JoinHandle<()>>,
    hub: Arc<Hub>,
    monitor: Mutex<Sender>,
    line: Mutex<UnixStream>,
    /// The kernel that must have come up; none where the guest came up elsewhere.
    kernel: Option<String>,
    ram_bytes: u64,
    serial_log: PathBuf,
    qemu_log: PathBuf,
    began: Instant,
    _sockets: TempDir,
}

/// A guest that ran to its end.
pub struct Run {
    /// What it said.
    pub serial: Serial,
    /// From QEMU's start to its end.
    pub seconds: f64,
}

impl Running {
    pub(super) fn start(guest: &Guest<'_>, dir: &Path) -> Result<Self> {
        let began = Instant::now();
        // A socket's path is limited to 108 bytes, which a deep workspace would exceed.
        let sockets = tempfile::tempdir()?;
        let initrd = dir.join("initrd.cpio");
        if !guest.firmware {
            guest.write_initrd(&initrd)?;
        }
        let (serial_log, qemu_log) = (dir.join(SERIAL_LOG), dir.join("qemu.log"));
        let mut command = guest.command(&initrd)?;
        // Here listens who wants the channel, so that no one has to look for a socket to appear.
        let mut listen = |name: &str| -> Result<UnixListener> {
            let path = sockets.path().join(name);
            let listener = UnixListener::bind(&path)
                .with_context(|| format!("cannot listen on {}", path.display()))?;
            let mut chardev = OsString::from(format!("socket,id={name},path="));
            chardev.push(&path);
            command.arg("-chardev").arg(chardev);
            Ok(listener)
        };
        let (monitor, line) = (listen("monitor")?, listen("line")?);
        command.args(["-mon", "chardev=monitor,mode=control"]);
        command.args(["-chardev", "stdio,id=console,signal=off"]);
        command.args(["-serial", "chardev:console", "-serial", "chardev:line"]);
        command
            .stdout(Stdio::piped())
            .stderr(File::create(&qemu_log)?);

        let mut qemu = Watched::spawn(&mut command)?;
        let console = qemu.child().stdout.take().context("QEMU has no stdout")?;
        let hub = Arc::new(Hub::default());
        let mut log = File::create(&serial_log)?;
        let mut readers = vec![hub.read(console, move |state, line| {
            // A log that cannot be written shows in the error that repeats its end.
            let _ = log.write_all(line);
            state.serial.extend_from_slice(line);
            state
                .facts
                .extend(serial::facts(&String::from_utf8_lossy(line)));
        })];
        let connected = accept(&monitor, &qemu).and_then(|monitor| {
            let line = accept(&line, &qemu)?;
            readers.push(hub.read(monitor.try_clone()?, qmp::take));
            readers.push(hub.read(line.try_clone()?, |state, line| {
                state.lines.push_back(hub::text(line));
            }));
            Ok((monitor, line))
        });
        let (monitor, line) = connected.with_context(|| said("QEMU", &qemu_log))?;
        let watched = guest.watched.iter().map(Exit::try_clone);
        readers.push(hub.watch(qemu.exit()?, watched.collect::<Result<_>>()?));
        let running = Self {
            qemu,
            readers,
            hub,
            monitor: Sender::new(monitor),
            line: Mutex::new(line),
            kernel: (!guest.incoming).then(|| guest.platform.kernel.release.clone()),
            ram_bytes: guest.ram_bytes(),
            serial_log,
            qemu_log,
            began,
            _sockets: sockets,
        };
        let negotiated = running.qmp().negotiate();
        negotiated.map_err(|error| running.explained(error))?;
        // All devices are made by now, and the kernel's files have been read.
        if !guest.firmware {
            fs::remove_file(initrd)?;
        }
        Ok(running)
    }

    /// Waits until the guest has reported a fact.
    pub fn fact(&self, name: &str, at_most: Duration) -> Result<String> {
        let fact = self
            .hub
            .wait(&format!("the fact {name}"), at_most, |state| {
                state.facts.get(name).cloned()
            });
        fact.map_err(|error| self.explained(error))
    }

    /// Waits until the guest has written a line to its console that holds some words; gives it.
    pub fn console(&self, words: &str, at_most: Duration) -> Result<String> {
        let line = self
            .hub
            .wait(&format!("{words:?} on the console"), at_most, |state| {
                let text = String::from_utf8_lossy(&state.serial);
                let line = text.lines().find(|line| line.contains(words));
                line.map(|line| line.trim_end().to_owned())
            });
        line.map_err(|error| self.explained(error))
    }

    /// What the guest has said so far.
    pub fn serial(&self) -> Serial {
        Serial::new(&self.hub.lock().serial)
    }

    /// Waits for the next line that the guest sends through `ask` or `/dev/ttyS1`.
    pub fn line(&self, at_most: Duration) -> Result<String> {
        let line = self.hub.wait("a line from the guest", at_most, |state| {
            state.lines.pop_front()
        });
        line.map_err(|error| self.explained(error))
    }

    /// Forgets the lines that have come and that nobody has asked for.
    pub fn forget_lines(&self) {
        self.hub.lock().lines.clear();
    }

    /// Sends a line to the guest.
    pub fn send(&self, line: &str) -> Result<()> {
        let mut stream = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let line = format!("{line}\n");
        stream
            .write_all(line.as_bytes())
            .context("the guest's line is closed")
    }

    /// QEMU's monitor.
    pub fn qmp(&self) -> Qmp<'_> {
        Qmp::new(&self.hub, &self.monitor)
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.qemu.id()
    }

    /// Bytes of the guest's memory: what was asked for, or a little more.
    pub fn ram_bytes(&self) -> u64 {
        self.ram_bytes
    }

    /// The guest's memory as the file that QEMU shares with devices in other processes. With less
    /// than 2 GiB a guest-physical address is the offset in it.
    pub fn ram(&self) -> Result<File> {
        let dir = format!("/proc/{}/fd", self.pid());
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {dir}"))? {
            let path = entry?.path();
            // A descriptor may be closed between the listing and here.
            let name = fs::read_link(&path).unwrap_or_default();
            if name
                .to_string_lossy()
                .starts_with("/memfd:memory-backend-memfd")
            {
                let file = File::options().read(true).write(true).open(&path);
                return file.with_context(|| format!("cannot open {}", path.display()));
            }
        }
        bail!("QEMU has no descriptor of the guest's memory in {dir}")
    }

    /// Waits for the guest's own end and requires the end of its script, the kernel that was
    /// asked for, that the guest powered off, and that QEMU ended well.
    pub fn finish(mut self, at_most: Duration) -> Result<Run> {
        let ended = self.hub.wait("the guest's end", at_most, |state| {
            state.ended().then_some(())
        });
        ended
            .and_then(|()| self.end())
            .map_err(|error| self.explained(error))?;
        // A processor that gives up ends QEMU as peacefully as a guest that powers off.
        let shutdown = self.qmp().event("SHUTDOWN", END);
        let reason = shutdown.map_err(|error| self.explained(error))?["data"]["reason"].clone();
        if reason != "guest-shutdown" {
            return Err(self.explained(anyhow::anyhow!("the guest ended by {reason}")));
        }
        let serial = self.serial();
        let judged = match &self.kernel {
            Some(kernel) => serial.booted(kernel).and_then(|()| serial.finished()),
            None => serial.finished(),
        };
        judged.map_err(|error| self.explained(error))?;
        self.run(serial)
    }

    /// Ends QEMU, whatever the guest does, and requires that QEMU ended well.
    pub fn quit(mut self) -> Result<Run> {
        let ended = self.qmp().quit().and_then(|()| self.end());
        ended.map_err(|error| self.explained(error))?;
        let serial = self.serial();
        self.run(serial)
    }

    fn end(&mut self) -> Result<()> {
        let status = self.qemu.wait(END)?.context("QEMU does not end")?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    fn run(mut self, serial: Serial) -> Result<Run> {
        let seconds = self.began.elapsed().as_secs_f64();
        self.readers.drain(..).try_for_each(hub::join)?;
        Ok(Run { serial, seconds })
    }

    /// An error with what QEMU and the guest said last.
    pub fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        let (qemu, guest) = (
            said("QEMU", &self.qemu_log),
            said("the guest", &self.serial_log),
        );
        anyhow::anyhow!("{error:#}\n{qemu}\n{guest}")
    }
}

fn said(who: &str, log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let tail = process::tail(&String::from_utf8_lossy(&text).replace('\r', ""));
    format!("{who} said (all of it in {}):\n{tail}", log.display())
}

/// Waits for QEMU to connect, or to end.
fn accept(listener: &UnixListener, qemu: &Watched) -> Result<UnixStream> {
    let exit: Exit = qemu.exit()?;
    let deadline = Instant::now() + START;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).context("the time limit is too long")?;
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(&exit.fd, PollFlags::IN),
        ];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => bail!(
                "QEMU has not connected its channels after {} s",
                START.as_secs()
            ),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(listener.accept()?.0),
            Ok(_) => bail!("QEMU ended before it connected its channels"),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("cannot wait for QEMU: {error}"),
        }
    }
}
