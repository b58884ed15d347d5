//! A guest that goes through a pipe, which is cut or garbled on its way: whoever reads refuses what
//! is not whole, and whoever writes keeps the guest if it cannot get rid of it.

use crate::{disk, text};
use migration::faults::Random;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use vm::evidence;

const CUTS: u64 = 16;
const FLIPS: u64 = 24;

fn tidemark(arguments: &[&str], folder: &Path, disk: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(arguments).env_remove("RUST_LOG");
    command.args(["--disk", &text(disk), "--evidence", &text(folder)]);
    command
}

fn source(folder: &Path, disk: &Path) -> Command {
    let all = [
        "migrate",
        "--to",
        "-",
        "--memory",
        "16M",
        "--queues",
        "2",
        "--seed",
        "1",
        "--overwrite",
    ];
    tidemark(&all, folder, disk)
}

/// Lets a process take a guest up from these bytes.
fn take_up(folder: &Path, disk: &Path, bytes: &[u8]) -> Output {
    let mut command = tidemark(&["receive", "--json", "--from", "-"], folder, disk);
    command.args(["--requests", "500"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    // Whoever has refused reads no further.
    let written = process.stdin.take().unwrap().write_all(bytes);
    drop(written);
    process.wait_with_output().unwrap()
}

/// Where the heads of a stream's records are, by the format's documents.
fn heads(stream: &[u8]) -> Vec<usize> {
    let word = |at: usize| u32::from_le_bytes(stream[at..at + 4].try_into().unwrap());
    // The outer header; an image has 40 bytes of headers.
    let (mut at, mut inside, mut heads) = (16, false, Vec::new());
    while at < stream.len() {
        heads.push(at);
        let (kind, length) = (word(at), word(at + 4));
        at += 8 + usize::try_from(length).unwrap().next_multiple_of(8);
        if !inside && kind == 1 {
            inside = true;
            at += 40;
        } else if inside && kind == 0 {
            inside = false;
        }
    }
    assert_eq!(at, stream.len());
    heads
}

#[test]
fn a_pipe_that_is_cut_or_garbled_brings_no_guest() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    evidence::prepare(folder).unwrap();
    let whole_disk = disk(folder, "disk.img");
    let sent = source(folder, &whole_disk).output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
    let stream = sent.stdout;
    let heads = heads(&stream);
    assert!(heads.len() > 8, "{heads:?}");

    let mut random = Random::new(6);
    let below = |random: &mut Random, end: usize| {
        usize::try_from(random.below(u64::try_from(end).unwrap())).unwrap()
    };
    let mut spoiled = Vec::new();
    for _ in 0..CUTS {
        let at = below(&mut random, stream.len());
        spoiled.push((format!("cut at {at}"), stream[..at].to_vec()));
    }
    for number in 0..FLIPS {
        let mut bytes = stream.clone();
        // The last ones are the rarest.
        let head = match number % 2 {
            0 => heads[below(&mut random, heads.len())],
            _ => heads[heads.len() - 1 - below(&mut random, 8)],
        };
        // Bit 31 says that a record may be skipped: nothing in the format protects it.
        let bit = match below(&mut random, 64) {
            31 => 30,
            other => other,
        };
        bytes[head + bit / 8] ^= 1 << (bit % 8);
        spoiled.push((format!("bit {bit} of the head at {head}"), bytes));
    }
    for place in [0, 16, heads[heads.len() / 2]] {
        let mut bytes = stream.clone();
        for byte in &mut bytes[place..] {
            *byte = u8::try_from(random.below(256)).unwrap();
        }
        spoiled.push((format!("noise from {place} on"), bytes));
    }
    let mut more = stream.clone();
    more.push(0);
    spoiled.push(("a byte behind the end".to_owned(), more));
    for (what, bytes) in spoiled {
        let scratch = tempfile::tempdir().unwrap();
        evidence::prepare(scratch.path()).unwrap();
        let disk = disk(scratch.path(), "disk.img");
        let ended = take_up(scratch.path(), &disk, &bytes);
        let told = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{what}: {told}");
        assert!(
            told.contains("no guest arrived") && told.contains("byte"),
            "{what}: {told}"
        );
        assert!(evidence::read_after(scratch.path()).is_err(), "{what}");
        println!("pipe: {what}: {}", told.trim_end());
    }
    // The same, untouched, is the guest.
    let ended = take_up(folder, &whole_disk, &stream);
    assert!(ended.status.success(), "{ended:?}");
}

#[test]
fn a_source_whose_pipe_is_closed_keeps_its_guest() {
    let mut random = Random::new(7);
    for most in [0, 16, 4096, 1 << 20, 3 << 20] {
        let count = random.below(most);
        let folder = tempfile::tempdir().unwrap();
        evidence::prepare(folder.path()).unwrap();
        let disk = disk(folder.path(), "disk.img");
        let mut command = source(folder.path(), &disk);
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = piped.spawn().unwrap();
        let mut taken = Vec::new();
        let out = process.stdout.take().unwrap();
        out.take(count).read_to_end(&mut taken).unwrap();
        assert_eq!(u64::try_from(taken.len()).unwrap(), count);
        let ended = process.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{count} bytes: {told}");
        assert!(
            told.contains("the guest runs on at its source, whole"),
            "{count} bytes: {told}"
        );
    }
}
