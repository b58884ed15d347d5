//! The processes that stay are in the sandbox, by default and as long as they listen.
//!
//! What the sandbox stops is tried in `sandbox/tests/stopped`. Here are the programs themselves: how the
//! kernel holds them, and that they do their work so. That they do all of it is what every other test of
//! these programs shows, which start them without `--sandbox` too.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const TIDEMARK: &str = env!("CARGO_BIN_EXE_tidemark");
const VHOST_USER_BLK: &str = env!("CARGO_BIN_EXE_tidemark-vhost-user-blk");

/// A process that listens, killed if a test forgets it.
struct Process {
    child: Child,
    /// What it said on stderr until it listened.
    said: String,
    _back: Option<Box<Self>>,
}

impl Process {
    fn start(program: &str, args: &[&str], more: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(args)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        if args[0] == "agent" {
            // It says so on the standard output.
            let mut line = String::new();
            let mut out = BufReader::new(child.stdout.take().unwrap());
            out.read_line(&mut line).unwrap();
            assert!(line.starts_with("listening on"), "'{line}'");
        } else {
            while !said.contains("listening on") {
                assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{args:?}: {said}");
            }
        }
        std::thread::spawn(move || {
            stderr
                .lines()
                .map_while(Result::ok)
                .for_each(|l| eprintln!("{l}"))
        });
        Self {
            child,
            said,
            _back: None,
        }
    }

    /// A line of the kernel's on the process.
    fn told(&self, file: &str, name: &str) -> String {
        let path = format!("/proc/{}/{file}", self.child.id());
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Ends it. Whether it ended well.
    fn end(mut self) -> bool {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        if let Some(mut out) = self.child.stdout.take() {
            out.read_to_string(&mut String::new()).unwrap();
        }
        self.child.wait().unwrap().success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For what has to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Each kind of process, its socket, and the most descriptors that it may hold.
const KINDS: [(&str, u64); 4] = [
    ("vfio-user", 1152),
    ("vhost-user-blk", 1152),
    ("mediate", 3200),
    ("agent", 1664),
];

fn start(dir: &TempDir, kind: &str, more: &[&str]) -> Process {
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (disk, socket) = (path("disk"), path("socket"));
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let device = |socket: &str, more: &[&str]| {
        let args = [
            "device",
            "vfio-user",
            "--socket-path",
            socket,
            "--disk",
            &disk,
        ];
        Process::start(TIDEMARK, &args, more)
    };
    match kind {
        "vfio-user" => device(&socket, more),
        "vhost-user-blk" => {
            let args = ["--socket-path", &socket, "--blk-file", &disk];
            Process::start(VHOST_USER_BLK, &args, more)
        }
        "mediate" => {
            let back = device(&path("back"), &[]);
            let (front, back_at) = (
                format!("vfio-user:{socket}"),
                format!("vfio-user:{}", path("back")),
            );
            let args = ["mediate", "--front", &front, "--back", &back_at];
            let mut mediator = Process::start(TIDEMARK, &args, more);
            mediator._back = Some(Box::new(back));
            mediator
        }
        _ => {
            let state = path("state");
            let args = [
                "agent",
                "--socket-path",
                &socket,
                "--device",
                "disk0=emulated",
                "--state",
                &state,
            ];
            Process::start(TIDEMARK, &args, more)
        }
    }
}

#[test]
fn each_is_in_the_sandbox_when_it_listens() {
    for (kind, most) in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let process = start(&dir, kind, &[]);
        // A filter decides, and no program that is started could have more rights.
        assert_eq!(process.told("status", "Seccomp:"), "2", "{kind}");
        assert_eq!(process.told("status", "NoNewPrivs:"), "1", "{kind}");
        assert_eq!(
            process.told("limits", "Max open files"),
            format!("{most} {most} files"),
            "{kind}"
        );
        assert!(process.end(), "{kind}");
        let socket = dir.path().join("socket");
        assert!(!socket.exists(), "{kind}: the socket's file stays behind");
    }
}

#[test]
fn all_threads_are_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let process = start(&dir, "vfio-user", &[]);
    let tasks = format!("/proc/{}/task", process.child.id());
    let began = Instant::now();
    // Some threads begin after it has said where it listens.
    let threads: Vec<_> = loop {
        let threads: Vec<_> = fs::read_dir(&tasks).unwrap().collect();
        if threads.len() > 1 {
            break threads;
        }
        assert!(began.elapsed() < PATIENCE, "one thread only");
        std::thread::yield_now();
    };
    for task in threads {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
}

/// The control: the same looks find nothing where it is off.
#[test]
fn off_is_off() {
    for (kind, most) in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let process = start(&dir, kind, &["--sandbox", "off"]);
        assert_eq!(process.told("status", "Seccomp:"), "0", "{kind}");
        assert_eq!(process.told("status", "NoNewPrivs:"), "0", "{kind}");
        let limits = process.told("limits", "Max open files");
        assert!(
            !limits.ends_with(&format!(" {most} files")),
            "{kind}: {limits}"
        );
        assert!(process.end(), "{kind}");
    }
}

#[test]
fn log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let process = start(&dir, "vfio-user", &["--sandbox", "log"]);
    assert!(process.said.contains("sandbox: log:"), "{}", process.said);
    assert_eq!(process.told("status", "Seccomp:"), "2");
    assert!(process.end());
}

/// What a client takes, it gives back: descriptors do not grow with clients.
#[test]
fn clients_that_come_and_go_leave_no_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let process = start(&dir, "vhost-user-blk", &[]);
    let socket = dir.path().join("socket");
    // While a client is served, after its first answer: whatever was of the one before is closed then.
    let open = || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let get_features = [1u32, 1, 0].map(u32::to_ne_bytes).concat();
        std::io::Write::write_all(&mut stream, &get_features).unwrap();
        stream.read_exact(&mut [0; 20]).unwrap();
        let folder = format!("/proc/{}/fd", process.child.id());
        fs::read_dir(folder).unwrap().count()
    };
    let visit = |socket: &Path| {
        let mut stream = UnixStream::connect(socket).unwrap();
        // A message that is longer than any may be: the backend hangs up.
        let message = [1u32, 1, 1 << 20].map(u32::to_ne_bytes).concat();
        std::io::Write::write_all(&mut stream, &message).unwrap();
        assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0);
    };
    visit(&socket);
    let before = open();
    (0..200).for_each(|_| visit(&socket));
    assert_eq!(open(), before);
    assert!(process.end());
}
