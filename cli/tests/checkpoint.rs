//! A pair of processes, of which one is killed.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

fn tidemark(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.arg("checkpoint").args(arguments).arg("--json");
    command.env("RUST_LOG", "info").env("NO_COLOR", "1");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Reads lines until one has `what` in it.
fn until(lines: &mut BufReader<ChildStderr>, what: &str) {
    let mut line = String::new();
    while !line.contains(what) {
        line.clear();
        assert_ne!(
            lines.read_line(&mut line).unwrap(),
            0,
            "no '{what}' before the end"
        );
    }
}

fn disk(folder: &Path, name: &str) -> String {
    let path = folder.join(name);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    path.display().to_string()
}

struct Side {
    process: Child,
    errors: BufReader<ChildStderr>,
}

impl Side {
    fn spawn(arguments: &[&str]) -> Self {
        let mut process = tidemark(arguments).spawn().unwrap();
        let errors = BufReader::new(process.stderr.take().unwrap());
        Self { process, errors }
    }

    /// Waits until it listens, and gives where.
    fn listening(&mut self) -> String {
        let mut byte = [0];
        let mut line = Vec::new();
        // One byte at a time: what follows the line is for the end.
        while byte != *b"\n" {
            self.process
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut byte)
                .unwrap();
            line.extend(byte);
        }
        let line = String::from_utf8(line).unwrap();
        let place = line.trim_end().strip_prefix("listening on ");
        place.unwrap().to_owned()
    }

    fn end(mut self) -> (Output, serde_json::Value) {
        let mut text = String::new();
        self.errors.read_to_string(&mut text).unwrap();
        let output = self.process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}: {text}", output.status);
        let out = String::from_utf8(output.stdout.clone()).unwrap();
        let last = out.lines().last().unwrap_or_default();
        let json = serde_json::from_str(last).unwrap();
        (output, json)
    }
}

fn pair(folder: &Path, then: &[&str]) -> (Side, Side) {
    pair_with(folder, then, &["--period", "5"])
}

/// A pair whose secondary and whose primary are told more.
fn pair_with(folder: &Path, then: &[&str], more: &[&str]) -> (Side, Side) {
    let socket = format!("unix:{}", folder.join("pair").display());
    let (mine, theirs) = (disk(folder, "primary.img"), disk(folder, "secondary.img"));
    let mut arguments = vec![
        "secondary",
        "--listen",
        &socket,
        "--disk",
        &theirs,
        "--format",
    ];
    arguments.extend(["--requests", "2000"]);
    arguments.extend(then);
    let mut secondary = Side::spawn(&arguments);
    assert_eq!(secondary.listening(), socket);
    let mut arguments = vec!["primary", "--to", &socket, "--disk", &mine];
    arguments.extend(["--memory", "32M", "--requests", "2000"]);
    arguments.extend(more);
    (Side::spawn(&arguments), secondary)
}

#[test]
fn the_secondary_goes_on_when_the_primary_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut primary, mut secondary) = pair(folder.path(), &[]);
    until(&mut secondary.errors, "number=3");
    primary.process.kill().unwrap();
    primary.process.wait().unwrap();
    let (_, json) = secondary.end();
    assert!(json["checkpoints"].as_u64().unwrap() >= 3, "{json}");
    assert!(json["requests"].as_u64().unwrap() >= 2000, "{json}");
}

#[test]
fn the_primary_goes_on_when_the_secondary_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (primary, mut secondary) = pair(folder.path(), &[]);
    until(&mut secondary.errors, "number=3");
    secondary.process.kill().unwrap();
    secondary.process.wait().unwrap();
    let (_, json) = primary.end();
    assert!(json["checkpoints"].as_u64().unwrap() >= 2, "{json}");
    assert!(json["drained"].as_bool().unwrap(), "{json}");
}

/// The connection of the pair, and that of its outputs.
#[test]
fn a_pair_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for name in ["primary", "secondary"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        std::fs::write(path(&format!("{name}.pem")), certificate).unwrap();
        std::fs::write(path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let keys = |own: &str, peer: &str| {
        [
            format!("--tls-cert={}", path(&format!("{own}.pem"))),
            format!("--tls-key={}", path(&format!("{own}.key"))),
            format!("--tls-peer={}", path(&format!("{peer}.pem"))),
        ]
    };
    let (mine, theirs) = (
        disk(folder.path(), "primary.img"),
        disk(folder.path(), "secondary.img"),
    );
    let own = keys("secondary", "primary");
    let mut arguments = vec!["secondary", "--listen", "tls:127.0.0.1:0"];
    arguments.extend(["--disk", &theirs, "--format", "--requests", "2000"]);
    arguments.extend(own.iter().map(String::as_str));
    let mut secondary = Side::spawn(&arguments);
    let place = secondary.listening();
    // Somebody else, who is turned away.
    let plain = place.replace("tls:", "tcp:");
    let output = tidemark(&[
        "primary", "--to", &plain, "--disk", &mine, "--memory", "32M",
    ])
    .output()
    .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("no pair"), "{text}");

    let own = keys("primary", "secondary");
    let mut arguments = vec!["primary", "--to", &place, "--disk", &mine];
    arguments.extend(["--memory", "32M", "--requests", "2000", "--period", "5"]);
    arguments.extend(own.iter().map(String::as_str));
    let mut primary = Side::spawn(&arguments);
    until(&mut secondary.errors, "number=3");
    primary.process.kill().unwrap();
    primary.process.wait().unwrap();
    let (_, json) = secondary.end();
    assert!(json["checkpoints"].as_u64().unwrap() >= 3, "{json}");
    assert!(json["requests"].as_u64().unwrap() >= 2000, "{json}");
}

#[test]
fn who_took_over_pairs_with_a_fresh_secondary() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let again = format!("unix:{}", path.join("again").display());
    let then = ["--then", again.as_str(), "--period", "5", "--count", "5"];
    let (mut primary, mut second) = pair(path, &then);
    until(&mut second.errors, "number=2");
    // The same storage as the one that takes over: that one is the only one to have every write.
    let disk = path.join("secondary.img").display().to_string();
    let mut third = Side::spawn(&[
        "secondary",
        "--listen",
        &again,
        "--disk",
        &disk,
        "--on-loss",
        "wait",
    ]);
    assert_eq!(third.listening(), again);
    primary.process.kill().unwrap();
    primary.process.wait().unwrap();
    until(&mut third.errors, "number=5");
    let (_, json) = second.end();
    assert_eq!(json["checkpoints"], 5, "{json}");
    third.process.kill().unwrap();
    third.process.wait().unwrap();
}

/// No timer makes a checkpoint here, and what is held has room.
#[test]
fn outputs_that_differ_make_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let compare = format!("unix:{}", path.join("compare").display());
    let theirs = ["--compare", compare.as_str()];
    let more = ["--compare", &compare, "--period", "3600000", "--count", "1"];
    let (mut primary, mut secondary) = pair_with(path, &theirs, &more);
    until(&mut primary.errors, "when outputs differ");
    // Whatever the copy reads from now on is not what the guest reads.
    let disk = std::fs::File::options()
        .write(true)
        .open(path.join("secondary.img"))
        .unwrap();
    for block in 0..(8 << 20) / 4096 {
        disk.write_all_at(&[0xd1; 8], block * 4096 + 2048).unwrap();
    }
    let (_, json) = primary.end();
    secondary.process.kill().unwrap();
    secondary.process.wait().unwrap();
    assert!(json["compared"]["diverged"].as_u64() >= Some(1), "{json}");
    assert!(json["checkpoints"].as_u64() >= Some(1), "{json}");
}

#[test]
fn wrong_usage_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let holds = folder.path().join("precious");
    std::fs::write(&holds, [1; 8192]).unwrap();
    let holds = holds.display().to_string();
    let output = tidemark(&["primary", "--to", "unix:/nonexistent", "--disk", &holds]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--overwrite"), "{text}");
}
