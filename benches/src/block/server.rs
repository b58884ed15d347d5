//! The processes that serve the disk.

use serde_json::Value;
use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io;
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
    /// As the system has it.
    pub fn start(command: &mut Command, socket: &Path) -> io::Result<Self> {
        let child = command.stdin(Stdio::null()).spawn()?;
        Ok(Self {
            child,
            socket: socket.to_owned(),
            command: shown(command),
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
    program: Vec<PathBuf>,
    modules: Option<PathBuf>,
    /// What it says its version is.
    pub version: String,
}

impl StorageDaemon {
    /// The one at `$QEMU_STORAGE_DAEMON`, otherwise the test bed's.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn find() -> Result<Self, String> {
        let (program, modules) = match env::var_os("QEMU_STORAGE_DAEMON") {
            Some(program) => (vec![program.into()], None),
            None => in_testbed()?,
        };
        let mut found = Self {
            program,
            modules,
            version: String::new(),
        };
        let output = found.command().arg("--version").output();
        let output = output.map_err(|error| format!("{}: {error}; {MEND}", found.shown()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = text.lines().next().filter(|_| output.status.success()) else {
            return Err(format!("{} --version failed; {MEND}", found.shown()));
        };
        found.version = version.to_owned();
        Ok(found)
    }

    fn shown(&self) -> String {
        shown(&self.command())
    }

    fn command(&self) -> Command {
        let mut parts = self.program.iter();
        let mut command = Command::new(parts.next().map_or(OsStr::new(""), |p| p.as_os_str()));
        command.args(parts);
        if let Some(modules) = &self.modules {
            command.env("QEMU_MODULE_DIR", modules);
        }
        command
    }

    /// Serves `disk` with `aio`, from an I/O thread of its own as a busy export has.
    ///
    /// # Errors
    /// As the system has it.
    pub fn serve(&self, disk: &Path, cache: Cache, aio: &str, socket: &Path) -> io::Result<Server> {
        let mut command = self.command();
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

/// The program in the test bed, which runs through the bed's own loader, and QEMU's modules.
fn in_testbed() -> Result<(Vec<PathBuf>, Option<PathBuf>), String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let bed = env::var_os("TIDEMARK_TESTBED").map_or_else(
        || workspace.join("target/testbed"),
        |dir| workspace.join(dir),
    );
    let manifest = bed.join("testbed.json");
    let missing = |why: String| format!("no qemu-storage-daemon in the test bed: {why}; {MEND}");
    let text = fs::read_to_string(&manifest)
        .map_err(|error| missing(format!("{}: {error}", manifest.display())))?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| missing(format!("{}: {error}", manifest.display())))?;
    let root = value["qemu_backports"]["files"]["root"]
        .as_str()
        .map(PathBuf::from)
        .ok_or_else(|| missing(format!("{} is of an older version", manifest.display())))?;
    let program = root.join("usr/bin/qemu-storage-daemon");
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|dir| root.join(dir));
    let loader = libraries
        .iter()
        .map(|dir| dir.join("ld-linux-x86-64.so.2"))
        .find(|path| path.is_file())
        .filter(|_| program.is_file())
        .ok_or_else(|| missing(format!("{} or its loader is missing", program.display())))?;
    let [first, second] = libraries.map(|dir| dir.display().to_string());
    let path = PathBuf::from(format!("{first}:{second}"));
    let command = vec![
        loader,
        "--inhibit-cache".into(),
        "--library-path".into(),
        path,
        program,
    ];
    Ok((command, Some(root.join("usr/lib/x86_64-linux-gnu/qemu"))))
}

/// Our own server: the release build beside this benchmark, brought up to date first.
///
/// # Errors
/// A sentence that says what to do.
pub fn tidemark(disk: &Path, cache: Cache, socket: &Path) -> Result<Server, String> {
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
        });
    Server::start(&mut command, socket).map_err(|error| error.to_string())
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
    let executables = text.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name)
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executables
        .last()
        .filter(|_| output.status.success())
        .ok_or_else(|| format!("`cargo build --release --package cli --bin {name}` failed"))
}
