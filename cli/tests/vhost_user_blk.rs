//! `tidemark-vhost-user-blk` as a process, by QEMU's conventions for backend programs.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use tempfile::TempDir;

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tidemark-vhost-user-blk"))
}

/// A folder with a disk in it, and the disk's path.
fn disk() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let disk = disk.to_str().unwrap().to_owned();
    (dir, disk)
}

/// A backend, killed if a test forgets it.
struct Backend {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Backend {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    /// Listens on a path, and is there.
    fn listening(socket: &Path, disk: &str) -> Self {
        let mut command = program();
        command.arg("--socket-path").arg(socket);
        command.args(["--blk-file", disk]).stderr(Stdio::piped());
        let mut backend = Self::start(&mut command);
        let stderr = backend.child.stderr.take().unwrap();
        let mut stderr = BufReader::new(stderr);
        let mut said = String::new();
        while !said.contains("listening on") {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
        }
        backend
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn report(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn end(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// GET_FEATURES, as it goes over the wire, and the answer.
fn features(stream: &mut UnixStream) -> u64 {
    let question: Vec<u8> = [1u32, 1, 0]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    stream.write_all(&question).unwrap();
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).unwrap();
    u64::from_ne_bytes(answer[12..].try_into().unwrap())
}

#[test]
fn it_says_what_it_can_do() {
    let output = program().arg("--print-capabilities").output().unwrap();
    assert!(output.status.success());
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = json!({"type": "block", "features": ["read-only", "blk-file"]});
    assert_eq!(said, expected);
}

#[test]
fn the_descriptor_is_what_qemu_looks_for() {
    let text = include_str!("../share/50-tidemark-vhost-user-blk.json");
    let descriptor: Value = serde_json::from_str(text).unwrap();
    assert_eq!(descriptor["type"], "block");
    let binary = descriptor["binary"].as_str().unwrap();
    assert!(binary.ends_with("/tidemark-vhost-user-blk"));
}

#[test]
fn frontends_come_and_go_until_a_signal() {
    let (dir, disk) = disk();
    let socket = dir.path().join("disk.sock");
    let mut backend = Backend::listening(&socket, &disk);
    for _ in 0..3 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        assert_ne!(features(&mut stream) & 1 << 26, 0, "LOG_ALL");
    }
    backend.signal(Signal::USR1);
    assert_eq!(backend.report()["connections"], 3);
    // With a frontend that stays.
    let mut stays = UnixStream::connect(&socket).unwrap();
    features(&mut stays);
    backend.signal(Signal::TERM);
    let report = backend.report();
    assert_eq!(
        (&report["connections"], &report["errors"]),
        (&json!(4), &json!(0))
    );
    assert!(backend.end().success());
    assert!(!socket.exists(), "the socket's file stays behind");
    assert_eq!(stays.read(&mut [0]).unwrap(), 0);
}

/// What a kill leaves is no obstacle for the next one.
#[test]
fn a_killed_backend_is_replaced_on_its_socket() {
    let (dir, disk) = disk();
    let socket = dir.path().join("disk.sock");
    let first = Backend::listening(&socket, &disk);
    first.signal(Signal::KILL);
    assert!(!first.end().success());
    assert!(socket.exists());
    let second = Backend::listening(&socket, &disk);
    assert_ne!(features(&mut UnixStream::connect(&socket).unwrap()), 0);
    second.signal(Signal::TERM);
    assert!(second.end().success());
}

#[test]
fn an_inherited_socket_may_be_connected_or_listen() {
    let (dir, disk) = disk();
    let start = |socket: OwnedFd| {
        let mut command = program();
        command.args(["--fd", "0", "--blk-file", &disk]);
        Backend::start(command.stdin(socket))
    };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let backend = start(theirs.into());
    assert_ne!(features(&mut ours), 0);
    // The one frontend goes, and so does the backend.
    drop(ours);
    assert!(backend.end().success());

    let path = dir.path().join("inherited.sock");
    let backend = start(UnixListener::bind(&path).unwrap().into());
    for _ in 0..2 {
        assert_ne!(features(&mut UnixStream::connect(&path).unwrap()), 0);
    }
    backend.signal(Signal::TERM);
    assert!(backend.end().success());
}

#[test]
fn a_read_only_disk_is_offered_as_one() {
    let (dir, disk) = disk();
    let socket = dir.path().join("disk.sock");
    let mut command = program();
    command.args(["--read-only", "--once", "--fd", "0", "--blk-file", &disk]);
    let listener = UnixListener::bind(&socket).unwrap();
    let backend = Backend::start(command.stdin(OwnedFd::from(listener)));
    let mut stream = UnixStream::connect(&socket).unwrap();
    assert_ne!(features(&mut stream) & 1 << 5, 0, "VIRTIO_BLK_F_RO");
    drop(stream);
    assert!(backend.end().success());
}

#[test]
fn exit_codes_tell_what_was_wrong() {
    let (dir, disk) = disk();
    let code = |args: &[&str]| {
        let output = program().args(args).stdin(Stdio::null()).output().unwrap();
        assert!(!output.stderr.is_empty(), "nothing is said of {args:?}");
        output.status.code()
    };
    let socket = dir.path().join("disk.sock");
    let socket = socket.to_str().unwrap();
    // Wrong usage.
    assert_eq!(code(&[]), Some(2));
    assert_eq!(code(&["--socket-path", socket]), Some(2));
    assert_eq!(
        code(&["--socket-path", socket, "--fd", "0", "--blk-file", &disk]),
        Some(2)
    );
    let odd = [
        "--socket-path",
        socket,
        "--blk-file",
        &disk,
        "--queue-size",
        "100",
    ];
    assert_eq!(code(&odd), Some(2));
    // No disk; no socket; nothing that is one.
    assert_eq!(
        code(&["--socket-path", socket, "--blk-file", "/nowhere"]),
        Some(1)
    );
    assert_eq!(
        code(&["--socket-path", "/nowhere/at/all", "--blk-file", &disk]),
        Some(3)
    );
    assert_eq!(
        code(&["--socket-path", &disk, "--blk-file", &disk]),
        Some(3)
    );
    assert_eq!(code(&["--fd", "0", "--blk-file", &disk]), Some(3));
    assert_eq!(code(&["--fd", "99", "--blk-file", &disk]), Some(3));
}
