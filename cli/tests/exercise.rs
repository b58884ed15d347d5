//! `tidemark probe`, `track`, `suspend` and `queue-state` as people and machines call them.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn tidemark(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(arguments).output().unwrap()
}

fn object(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// A device in a process of its own, for one client after the other.
struct Served(Child);

impl Served {
    fn start(socket: &Path, disk: &Path, marking: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        command.args(["device", "vfio-user", "--queues", "2", "--keep"]);
        command.args(["--marking", marking, "--socket-path"]);
        command.arg(socket).arg("--disk").arg(disk);
        let spawned = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut child = spawned.unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut said).unwrap();
        assert!(said.contains("listening on"), "{said}");
        // Whatever it says later goes nowhere, and must not stop it.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self(child)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn an_emulated_device_is_probed_tracked_and_suspended() {
    let target = ["--target", "emulated", "--json"];
    let run = |command: &str, more: &[&str]| {
        let output = tidemark(&[&[command], &target[..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
        object(&output)
    };
    assert_eq!(run("probe", &[])["virtio_type"], "block");
    let queues = run("queue-state", &["--queues", "3"]);
    assert_eq!(
        queues["suspensions"][0]["queues"].as_array().unwrap().len(),
        3
    );
    let suspended = run("suspend", &["--times", "2", "--comeback", "restore"]);
    assert_eq!(suspended["suspensions"].as_array().unwrap().len(), 2);
    let tracked = run("track", &["--rounds", "1", "--suspend", "restore"]);
    assert_eq!(tracked["rounds"][0]["lost"], 0);
    assert_eq!(tracked["rounds"][0]["falsely_dirty"], 0);
}

#[test]
fn a_served_device_is_tracked_and_one_that_marks_nothing_fails() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    for (marking, code) in [("bit", 0), ("byte", 0), ("off", 1)] {
        let socket = folder.path().join(marking);
        let _served = Served::start(&socket, &disk, marking);
        let target = format!("vfio-user:{}", socket.display());
        let tracked = tidemark(&[
            "track",
            "--target",
            &target,
            "--rounds",
            "1",
            "--writes",
            "10",
            "--suspend",
            "resume",
            "--suspend",
            "restore",
            "--json",
        ]);
        assert_eq!(tracked.status.code(), Some(code), "{marking}: {tracked:?}");
        let round = &object(&tracked)["rounds"][0];
        if code == 0 {
            assert_eq!(round["lost"], 0, "{marking}");
        } else {
            assert_eq!(round["lost"], round["written"], "{marking}");
        }
        assert_eq!(object(&tracked)["unannounced"], 0);
    }
}

#[test]
fn what_cannot_be_reached_is_told_from_wrong_usage() {
    let code = |target: &str| tidemark(&["probe", "--target", target]).status.code();
    assert_eq!(code("vfio-user:/nowhere/socket"), Some(3));
    assert_eq!(code("vfio:ffff:ff:1f.7"), Some(3));
    assert_eq!(code("something"), Some(2));
}
