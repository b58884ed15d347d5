//! The processes that serve the disk.

use serde_json::Value;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use driver::vhost_user::Frontend;

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether the page cache is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// As the host's other files: `cache.direct=off`.
    Page,
    /// O_DIRECT: `cache.direct=on`.
    Direct,
}

impl std::fmt::Display for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Page => "page cache",
            Self::Direct => "O_DIRECT",
        })
    }
}

impl Cache {
    /// How QEMU's option has it.
    pub fn direct(self) -> &'static str {
        match self {
            Self::Page => "off",
            Self::Direct => "on",
        }
    }

    /// The ways to do I/O among which QEMU may choose.
    pub fn aio(self) -> &'static [&'static str] {
        match self {
            // QEMU refuses aio=native without O_DIRECT.
            Self::Page => &["threads", "io_uring"],
            Self::Direct => &["native", "threads", "io_uring"],
        }
    }
}

/// A process that serves one disk on one socket. Dropped, it is killed.
#[derive(Debug)]
pub struct Server {
    child: Child,
    socket: PathBuf,
    /// The command, as one would type it.
    pub command: String,
}

impl Server {
    /// Starts a server that will listen at `socket`.
    ///
    /// # Errors
    /// What the system says, with the command.
    fn start(command: &mut Command, socket: &Path) -> Result<Self, String> {
        let shown = shown(command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self {
            child: child.map_err(|error| format!("`{shown}`: {error}"))?,
            socket: socket.to_owned(),
            command: shown,
        })
    }

    /// Connects to it as soon as it listens.
    ///
    /// # Errors
    /// A sentence if it ends, or does not listen in time.
    pub fn connect(&mut self) -> Result<Frontend, String> {
        let began = Instant::now();
        loop {
            match Frontend::connect(&self.socket) {
                Ok(frontend) => return Ok(frontend),
                Err(error) if began.elapsed() > START_TIMEOUT => {
                    return Err(format!("{error}; the server is `{}`", self.command));
                }
                Err(_) => {}
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("`{}` ended with {status}", self.command));
            }
            // A server says nowhere that it listens.
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        // Writing to a string does not fail.
        let _ = write!(text, " {}", argument.to_string_lossy());
    }
    text
}

/// QEMU's storage daemon: the peer.
#[derive(Debug)]
pub struct StorageDaemon {
    program: PathBuf,
    /// What it says its version is.
    pub version: String,
}

impl StorageDaemon {
    /// The one at `$QEMU_STORAGE_DAEMON`, otherwise the test bed's.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn find() -> Result<Self, String> {
        let program = match env::var_os("QEMU_STORAGE_DAEMON") {
            Some(program) => program.into(),
            None => in_testbed()?,
        };
        let mut found = Self {
            program,
            version: String::new(),
        };
        let output = Command::new(&found.program).arg("--version").output();
        let output =
            output.map_err(|error| format!("{}: {error}; {MEND}", found.program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = text.lines().next().filter(|_| output.status.success()) else {
            return Err(format!(
                "{} --version failed; {MEND}",
                found.program.display()
            ));
        };
        found.version = version.to_owned();
        Ok(found)
    }

    /// Its name and version's number.
    pub fn name(&self) -> String {
        let number = self.version.split_whitespace().nth(2).unwrap_or_default();
        format!("qemu-storage-daemon {number}")
    }

    /// Serves `disk` with `aio`, from an I/O thread of its own as a busy export has.
    ///
    /// # Errors
    /// As [`Server::connect`].
    pub fn serve(
        &self,
        disk: &Path,
        cache: Cache,
        aio: &str,
        socket: &Path,
    ) -> Result<Server, String> {
        let mut command = Command::new(&self.program);
        command
            .args(["--object", "iothread,id=io0"])
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=disk,filename={},aio={aio},cache.direct={},locking=off",
                disk.display(),
                cache.direct()
            ))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,iothread=io0,writable=on,\
                 num-queues=1,addr.type=unix,addr.path={}",
                socket.display()
            ));
        Server::start(&mut command, socket)
    }
}

const MEND: &str = "`cargo xtask setup` gets it, or set QEMU_STORAGE_DAEMON to a program";

/// The test bed's program, as its manifest names it.
fn in_testbed() -> Result<PathBuf, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let bed = env::var_os("TIDEMARK_TESTBED").map_or_else(
        || workspace.join("target/testbed"),
        |dir| workspace.join(dir),
    );
    let manifest = bed.join("testbed.json");
    let missing = |why: String| format!("{}: {why}; {MEND}", manifest.display());
    let text = fs::read_to_string(&manifest).map_err(|error| missing(error.to_string()))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| missing(error.to_string()))?;
    let program = value["qemu_backports"]["storage_daemon"].as_str();
    program
        .map(PathBuf::from)
        .ok_or_else(|| missing("it names no qemu-storage-daemon".to_owned()))
}

/// Our own server: the release build beside this benchmark, brought up to date first.
///
/// # Errors
/// A sentence that says what to do.
pub fn tidemark(disk: &Path, cache: Cache, socket: &Path, more: &[&str]) -> Result<Server, String> {
    let program = program("tidemark-vhost-user-blk")?;
    let mut command = Command::new(program);
    command
        .arg("--socket-path")
        .arg(socket)
        .arg("--blk-file")
        .arg(disk)
        .args(match cache {
            Cache::Page => ["--cache", "writeback"],
            Cache::Direct => ["--cache", "none"],
        })
        .args(more);
    Server::start(&mut command, socket)
}

/// A program of this workspace, built with the profile that benchmarks have.
fn program(name: &str) -> Result<PathBuf, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "cli",
            "--bin",
            name,
        ])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut executables = text.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name)
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executables
        .next_back()
        .filter(|_| output.status.success())
        .ok_or_else(|| format!("`cargo build --release --package cli --bin {name}` failed"))
}
