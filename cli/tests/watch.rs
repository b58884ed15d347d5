//! `tidemark watch` as a process: in a pipe, in a terminal, and behind a migration.

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command};
use tempfile::tempdir;

fn tidemark(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(args);
    command
}

/// The last line as an object, and everything before it.
fn last_object(mut command: Command) -> (Value, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{errors}");
    let (before, last) = match text.trim_end().rsplit_once('\n') {
        Some((before, last)) => (before.to_owned(), last),
        None => (String::new(), text.trim_end()),
    };
    (serde_json::from_str(last).unwrap(), before)
}

fn numbers(value: &Value) -> Vec<u64> {
    let array = value.as_array().unwrap();
    array
        .iter()
        .map(|number| number.as_u64().unwrap())
        .collect()
}

/// What was harvested is what the driver's own requests wrote, cell by cell, in JSON and picture.
#[test]
fn a_watched_device_in_a_pipe() {
    let dir = tempdir().unwrap();
    let (svg, html) = (dir.path().join("w.svg"), dir.path().join("w.html"));
    let mut command = tidemark(&["watch", "--target", "emulated", "--rounds", "5", "--json"]);
    command.arg("--svg").arg(&svg).arg("--html").arg(&html);
    let (view, before) = last_object(command);
    assert_eq!(before, "");
    let rounds = view["rounds"].as_array().unwrap();
    assert_eq!((rounds.len(), view["rounds_total"].as_u64()), (5, Some(5)));
    let (mut pages, mut dirty_cells) = (0, 0);
    for round in rounds {
        let cells = numbers(&round["cells"]);
        let harvested = round["pages"].as_u64().unwrap();
        assert!(harvested > 0);
        assert_eq!(cells.iter().sum::<u64>(), harvested);
        assert_eq!(round["written"], round["pages"]);
        assert_eq!(round["lost"], 0);
        assert_eq!(round["suspended"], true);
        pages += harvested;
        dirty_cells += cells.iter().filter(|cell| **cell != 0).count();
    }
    assert_eq!(view["pages_total"], pages);
    assert_eq!(view["requests"], 10_000);
    assert_eq!(view["suspends"], 5);
    assert_eq!(view["life"], "ended");
    assert_eq!(view["trouble"], Value::Null);
    for picture in [svg, html] {
        let text = fs::read_to_string(picture).unwrap();
        assert_eq!(text.matches("class=\"cell\"").count(), dirty_cells);
    }
}

#[test]
fn lines_for_people_in_a_pipe() {
    let args = [
        "watch",
        "--rounds",
        "3",
        "--requests",
        "200",
        "--memory",
        "1M",
    ];
    let output = tidemark(&args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 3 + 1, "{text}");
    assert!(lines[4].starts_with("3 rounds, "), "{text}");
}

#[test]
fn a_device_that_is_not_there() {
    let output = tidemark(&["watch", "--target", "vfio-user:/nowhere"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let output = tidemark(&["watch", "--events", "/nowhere"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let output = tidemark(&["watch", "--rounds", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// A migration's events give the rounds that its report gives.
#[test]
fn a_migration_is_watched_by_its_events() {
    let dir = tempdir().unwrap();
    let args = ["migrate", "--memory", "32M", "--progress", "json", "--json"];
    let output = tidemark(&args).output().unwrap();
    assert!(output.status.success());
    let events = dir.path().join("events");
    fs::write(&events, &output.stdout).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();

    let (view, _) = last_object(tidemark(&[
        "watch",
        "--json",
        "--events",
        events.to_str().unwrap(),
    ]));
    let told = view["rounds"].as_array().unwrap();
    let made = report["rounds"].as_array().unwrap();
    assert_eq!(told.len(), made.len());
    assert!(told.len() >= 4, "{told:?}");
    for (told, made) in told.iter().zip(made) {
        for member in ["round", "pages", "bytes"] {
            assert_eq!(told[member], made[member]);
        }
        assert_eq!(told["suspended"], made["last"]);
        assert_eq!(
            numbers(&told["cells"]).iter().sum::<u64>(),
            told["pages"].as_u64().unwrap()
        );
    }
    assert_eq!(view["suspends"], 1);
}

/// Killed if a test forgets it.
struct Watching(Child);

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In a terminal it draws, ends on `q` with the device at rest, and leaves the terminal as it was.
#[test]
fn q_ends_it_in_a_terminal() {
    let dir = tempdir().unwrap();
    let svg = dir.path().join("w.svg");
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let size = Winsize {
        ws_row: 30,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&master, size).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let name = OsStr::from_bytes(name.as_bytes());
    let slave = File::options().read(true).write(true).open(name).unwrap();

    let args = [
        "watch",
        "--rounds",
        "4000000000",
        "--requests",
        "200",
        "--svg",
    ];
    let mut command = tidemark(&args);
    command.arg(&svg).env("TERM", "xterm-256color");
    command.stdin(slave.try_clone().unwrap());
    command.stdout(slave.try_clone().unwrap()).stderr(slave);
    let mut watching = Watching(command.spawn().unwrap());
    // The command holds the terminal's other end, too.
    drop(command);

    let mut terminal = File::from(master);
    let (mut shown, mut asked) = (Vec::new(), false);
    let mut part = [0; 4096];
    // EIO: nobody has the other end any more.
    while let Ok(length @ 1..) = terminal.read(&mut part) {
        shown.extend_from_slice(&part[..length]);
        let text = String::from_utf8_lossy(&shown);
        // Only cells that change are drawn: words are whole, what is between them need not be.
        if !asked && text.contains("dirty") && text.contains("suspended:") {
            terminal.write_all(b"q").unwrap();
            asked = true;
        }
    }
    assert!(asked, "{}", String::from_utf8_lossy(&shown));
    assert!(watching.0.wait().unwrap().success());
    let text = String::from_utf8_lossy(&shown);
    let (_, after) = text
        .rsplit_once("\u{1b}[?1049l")
        .expect("still on the other screen");
    assert!(
        after.contains(" rounds, ") && after.contains(" 0 lost"),
        "{after}"
    );
    assert!(fs::read_to_string(svg).unwrap().contains("class=\"cell\""));
}
