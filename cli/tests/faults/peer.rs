//! Peers on TCP that are none: they talk nonsense, say nothing, stop in the middle, or go away.

use crate::{disk, text};
use migration::faults::Random;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use vm::evidence;

fn tidemark(arguments: &str, folder: &TempDir) -> Command {
    evidence::prepare(folder.path()).unwrap();
    let disk = disk(folder.path(), "disk.img");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command
        .args(arguments.split(' '))
        .args(["--timeout", "1", "--disk", &text(&disk)])
        .args(["--evidence", &text(folder.path())])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn end(process: Child, what: &str, says: &[&str]) {
    let ended = process.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{what}: {told}");
    for text in says {
        assert!(told.contains(text), "{what}: no '{text}' in {told}");
    }
    println!("peer: {what}: {}", told.trim_end());
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let words = std::iter::repeat_with(|| random.next_u64().to_le_bytes());
    words.flatten().take(length).collect()
}

/// What a peer does with its connection.
struct Deed {
    what: &'static str,
    does: fn(&mut TcpStream),
    /// What is said of it.
    says: &'static str,
    /// Keeps the connection until the other side has ended.
    stays: bool,
}

impl Deed {
    fn new(what: &'static str, does: fn(&mut TcpStream), says: &'static str, stays: bool) -> Self {
        Self {
            what,
            does,
            says,
            stays,
        }
    }
}

/// Sends what may still be taken.
fn send(stream: &mut TcpStream, bytes: &[u8]) {
    let sent = stream.write_all(bytes);
    drop(sent);
}

#[test]
fn a_destination_takes_no_guest_from_a_stranger() {
    let deeds = [
        Deed::new(
            "noise",
            |stream| send(stream, &noise(1, 64 << 10)),
            "expected the ident",
            true,
        ),
        Deed::new(
            "a header and noise",
            |stream| {
                send(stream, b"LibxlFmt\0\0\0\x02\0\0\0\0");
                send(stream, &noise(2, 64 << 10));
            },
            "malformed stream at byte",
            true,
        ),
        Deed::new(
            "silence",
            |_| {},
            "nothing moved within the time limit",
            true,
        ),
        Deed::new(
            "half a header and silence",
            |stream| send(stream, b"LibxlFmt\0"),
            "nothing moved within the time limit",
            true,
        ),
        Deed::new(
            "half a header, slowly, and the end",
            |stream| {
                for byte in b"LibxlFmt\0" {
                    send(stream, &[*byte]);
                    std::thread::sleep(Duration::from_millis(5));
                }
            },
            "ends at byte 9",
            false,
        ),
        Deed::new("nothing and the end", |_| {}, "ends at byte 0", false),
    ];
    for deed in deeds {
        let what = deed.what;
        let folder = tempfile::tempdir().unwrap();
        let mut process = tidemark("receive --listen tcp:127.0.0.1:0", &folder)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = process.stdout.as_mut().unwrap();
        BufReader::with_capacity(1, out)
            .read_line(&mut line)
            .unwrap();
        let place = line.trim_end().strip_prefix("listening on tcp:").unwrap();
        let mut stream = TcpStream::connect(place).unwrap();
        (deed.does)(&mut stream);
        let kept = deed.stays.then_some(stream);
        end(process, what, &["no guest arrived", deed.says]);
        drop(kept);
        assert!(evidence::read_after(folder.path()).is_err(), "{what}");
    }
}

#[test]
fn a_source_keeps_its_guest_from_a_stranger() {
    let whole = "the guest runs on at its source, whole";
    let deeds = [
        Deed::new(
            "noise",
            |stream| send(stream, &noise(3, 4 << 10)),
            "expected an answer from the destination, got type",
            true,
        ),
        Deed::new(
            "silence",
            |_| {},
            "nothing moved within the time limit",
            true,
        ),
        Deed::new(
            "an answer, some of the guest, slowly, and silence",
            |stream| {
                // OPENED, then pages are taken as if the memory were slow.
                send(stream, &[4, 0, 0x44, 0x54, 0, 0, 0, 0]);
                let mut chunk = [0; 16 << 10];
                for _ in 0..20 {
                    stream.read_exact(&mut chunk).unwrap();
                    std::thread::sleep(Duration::from_millis(5));
                }
            },
            "nothing moved within the time limit",
            true,
        ),
        Deed::new(
            "an answer to nothing",
            // RUNNING, without a guest.
            |stream| send(stream, &[8, 0, 0x44, 0x54, 0, 0, 0, 0]),
            "got RUNNING",
            true,
        ),
        Deed::new("the end", |_| {}, "the destination vanished", false),
    ];
    for deed in deeds {
        let what = deed.what;
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let how = format!(
            "migrate --to tcp:{to} --memory 16M --queues 2 --plain-copies 0 --seed 1 --overwrite"
        );
        let process = tidemark(&how, &folder).spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        (deed.does)(&mut stream);
        let kept = deed.stays.then_some(stream);
        end(process, what, &[deed.says, whole]);
        drop(kept);
    }
}
