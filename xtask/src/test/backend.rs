//! `tidemark-vhost-user-blk` in a process of its own, which can be asked, killed and ended.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use tempfile::TempDir;

use super::served::{forward, wait_for_listening};
use crate::guest::{Guest, Running};
use crate::process::{self, Watched};
use crate::testbed::{Platform, TestBed};
use crate::workspace::Workspace;

/// Answers come at once, the end when nothing is in flight any more.
const ANSWER: Duration = Duration::from_secs(30);
/// How long anything in a guest may take.
pub const AT_MOST: Duration = Duration::from_secs(120);
const MEGABYTES: u32 = 256;
/// VIRTIO_F_RING_PACKED, as a place in what Linux prints of the features it took.
pub const RING_PACKED: usize = 34;

/// The programs that every run needs, built once.
pub struct Programs {
    tidemark: PathBuf,
    backend: PathBuf,
}

impl Programs {
    /// Builds them.
    pub fn new(workspace: &Workspace) -> Result<Self> {
        Ok(Self {
            tidemark: workspace.tidemark_static()?,
            backend: workspace.program("tidemark-vhost-user-blk")?,
        })
    }
}

/// A place for QEMUs and backends that share one disk.
pub struct Bench<'a> {
    bed: &'a TestBed,
    platform: Platform<'a>,
    programs: &'a Programs,
    dir: PathBuf,
    sockets: TempDir,
    /// The disk's queues are packed.
    packed: bool,
}

impl<'a> Bench<'a> {
    /// A place with an empty disk of so many bytes.
    pub fn new(
        bed: &'a TestBed,
        platform: Platform<'a>,
        programs: &'a Programs,
        name: &str,
        disk: u64,
    ) -> Result<Self> {
        let dir = bed.run_dir(&format!("{name}-{}", platform.name()))?;
        File::create(dir.join("disk.img"))?.set_len(disk)?;
        Ok(Self {
            bed,
            platform,
            programs,
            dir,
            sockets: tempfile::tempdir()?,
            packed: false,
        })
    }

    /// The same with packed queues.
    pub fn packed(self) -> Self {
        Self {
            packed: true,
            ..self
        }
    }

    /// Whether the guest's driver took the queues that it was to take, by the features it names.
    pub fn judge_ring(&self, features: &str) -> Result<()> {
        let packed = features.as_bytes().get(RING_PACKED) == Some(&b'1');
        ensure!(
            packed == self.packed,
            "packed queues were taken: {packed}; the guest took the features {features}"
        );
        Ok(())
    }

    /// What QEMU and which kernel.
    pub fn name(&self) -> String {
        let ring = if self.packed { ", packed queues" } else { "" };
        self.platform.name() + ring
    }

    /// A socket's path, short enough to be one.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path().join(name)
    }

    /// An empty folder for one guest.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir(&dir)?;
        Ok(dir)
    }

    /// A backend on the disk, listening.
    pub fn backend(&self, socket: &str, more: &[&str]) -> Result<Backend> {
        let disk = self.dir.join("disk.img");
        let ring = if self.packed { "packed" } else { "split" };
        let more = [&["--ring", ring], more].concat();
        Backend::start(&self.programs.backend, &self.socket(socket), &disk, &more)
    }

    /// A guest with the disk of the backend at a socket, and the journal's program.
    pub fn guest(
        &self,
        socket: &str,
        script: &str,
        reconnect: Option<Duration>,
    ) -> Result<Guest<'a>> {
        let mut guest = Guest::new(self.bed, self.platform, script);
        guest.modules(&["virtio_pci", "virtio_blk"])?;
        guest.file("/bin/tidemark", &self.programs.tidemark);
        guest.memory(MEGABYTES);
        guest.vhost_user_blk(&self.socket(socket), 1, self.packed, reconnect);
        Ok(guest)
    }

    /// Removes what only a failure would make worth keeping.
    pub fn clean(self) -> Result<()> {
        fs::remove_dir_all(&self.dir).context("cannot remove a run's folder")
    }
}

/// What a backend says of itself.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Report {
    /// Requests of all kinds.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// Rings that broke.
    pub rings_broken: u64,
    /// Requests taken over from a backend that was killed.
    pub resubmitted: u64,
    /// Times that the log of data was switched on.
    pub log_starts: u64,
    /// Pages of data written while they were logged.
    pub pages_logged: u64,
}

/// A running backend. Dropped, it is killed.
pub struct Backend {
    process: Watched,
    lines: Receiver<String>,
    stderr: JoinHandle<String>,
}

impl Backend {
    /// Starts a backend and waits until QEMU can connect to it.
    fn start(program: &Path, socket: &Path, disk: &Path, more: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("--socket-path").arg(socket);
        command.arg("--blk-file").arg(disk).args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = process::shown(&command);
        let mut process = Watched::spawn(&mut command)?;
        let stdout = process.child().stdout.take().context("no stdout")?;
        let stderr = process.child().stderr.take().context("no stderr")?;
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            let all = BufReader::new(stdout).lines().map_while(Result::ok);
            all.take_while(|line| send.send(line.clone()).is_ok())
                .for_each(drop);
        });
        let (told, started) = mpsc::channel();
        let stderr = thread::spawn(move || forward(stderr, &told));
        wait_for_listening(&started).with_context(|| format!("`{shown}`"))?;
        Ok(Self {
            process,
            lines,
            stderr,
        })
    }

    /// The process, whose end ends a guest's waits.
    pub fn process(&self) -> &Watched {
        &self.process
    }

    /// What it has done so far.
    pub fn report(&self) -> Result<Report> {
        self.process.signal(Signal::USR1)?;
        self.next()
    }

    fn next(&self) -> Result<Report> {
        let line = self.lines.recv_timeout(ANSWER);
        let line = line.context("the backend says nothing")?;
        serde_json::from_str(&line).with_context(|| format!("the backend says {line:?}"))
    }

    /// Waits until it has carried out so many requests; the lines of the guest that makes them are
    /// the clock.
    pub fn at_work(&self, vm: &Running, requests: u64) -> Result<()> {
        while self.report()?.requests < requests {
            vm.line(AT_MOST)?;
        }
        Ok(())
    }

    /// Kills it, at whatever it is, and waits for its end.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process
            .wait(ANSWER)?
            .context("a killed process lives")?;
        Ok(())
    }

    /// Ends it, which must go well, and gives what it did.
    pub fn finish(mut self) -> Result<Report> {
        self.process.terminate()?;
        let status = self
            .process
            .wait(ANSWER)?
            .context("the backend does not end")?;
        let errors = self.stderr.join().ok().context("a reader panicked")?;
        ensure!(
            status.success(),
            "the backend ended with {status}\n{}",
            process::tail(&errors)
        );
        let line = self
            .lines
            .iter()
            .last()
            .context("the backend reports nothing")?;
        serde_json::from_str(&line).with_context(|| format!("the backend says {line:?}"))
    }
}
