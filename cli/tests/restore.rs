//! Every checkpoint of a pair is in the store as the primary's guest was then, and a guest that is
//! restored from one goes on from there.

use migration::names::Name;
use migration::store::{Address, Store};
use migration::stream::Order;
use migration::stream::body::BodyReader;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use vm::evidence::{judge_disk, judge_requests, read_marks};
use vm::guest::journal::Journal;
use vm::guest::{Pattern, Shape};
use vm::{MarkingMode, Means};

const DISK: u64 = 4 << 20;
const CHECKPOINTS: u64 = 6;

/// As much of the guest as its judge needs to know.
fn shape() -> Shape {
    Shape {
        memory: 16 << 20,
        devices: 1,
        queues: 2,
        queue_size: 256,
        depth: 32,
        blocks: DISK / 4096,
        pattern: Pattern::Random,
        writes_percent: 30,
        seed: 1,
        marking: MarkingMode::Bits,
        means: Means::default(),
        reset_every: 0,
        packed: false,
    }
}

fn tidemark(words: &str, folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(words.split_whitespace()).current_dir(folder);
    command.env_remove("RUST_LOG").stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for a line that begins so.
fn until(lines: &mut dyn BufRead, what: &str) {
    let mut line = String::new();
    while !line.starts_with(what) {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "no '{what}'");
    }
}

fn ended(output: &Output) -> serde_json::Value {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {told}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

struct Gone(Child);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).unwrap();
    }
}

/// A pair that makes its checkpoints, then parts: the primary goes on alone, and the secondary, whose
/// disk is as it was at the last one, waits until it is killed.
fn pair(folder: &Path) {
    for name in ["primary.img", "secondary.img"] {
        File::create(folder.join(name))
            .unwrap()
            .set_len(DISK)
            .unwrap();
    }
    let common = "--evidence . --hold 1M --on-loss";
    let secondary = format!(
        "checkpoint secondary --listen unix:pair --disk secondary.img --format {common} wait \
         --store store --keep vm/7"
    );
    let mut secondary = Gone(tidemark(&secondary, folder).spawn().unwrap());
    let mut out = BufReader::new(secondary.0.stdout.take().unwrap());
    let mut errors = BufReader::new(secondary.0.stderr.take().unwrap());
    until(&mut out, "listening on");
    let primary = format!(
        "checkpoint primary --to unix:pair --disk primary.img {common} take-over --memory 16M \
         --period 5 --count {CHECKPOINTS} --requests 1000 --json"
    );
    let primary = tidemark(&primary, folder).output().unwrap();
    assert_eq!(ended(&primary)["checkpoints"], CHECKPOINTS);
    until(&mut errors, "waiting for 'failover'");
}

/// A sum of each page of a stored checkpoint, as marks have it.
fn sums(store: &Store, name: &Name) -> Vec<u64> {
    let mut stream = Vec::new();
    store.checkpoint(name).unwrap().write(&mut stream).unwrap();
    let mut reader = BodyReader::new(&stream[..]);
    let mut sums = Vec::new();
    loop {
        match reader.order().unwrap() {
            Order::Pages(pages) => {
                for page in pages {
                    assert_eq!(page, sums.len() as u64, "each page once, in order");
                    let mut bytes = [0; 4096];
                    reader.data(&mut bytes).unwrap();
                    let mut sum = DefaultHasher::new();
                    sum.write(&bytes);
                    sums.push(sum.finish());
                }
            }
            Order::End => return sums,
            _ => {}
        }
    }
}

#[test]
fn checkpoints_are_kept_and_a_guest_goes_on_from_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pair(folder);
    let address = Address::parse(folder.join("store").to_str().unwrap(), None).unwrap();
    let store = Store::open(&address, false).unwrap();
    let marks = read_marks(folder, "primary").unwrap();
    let all = store.list(None).unwrap();
    assert_eq!(all.len() as u64, CHECKPOINTS + 1);
    let mut changes = 0;
    for ((name, record), (number, mark)) in all.iter().zip((0..).zip(&marks)) {
        assert_eq!(name.to_string(), format!("vm/7/epoch/{number:08}"));
        assert_eq!(sums(&store, name), mark.pages, "{name}");
        assert!(
            number == 0 || record.new_pages < record.pages,
            "{name} shares nothing"
        );
        // The control: checkpoints do differ.
        changes += u64::from(number > 0 && mark.differing(&marks[number - 1]) > 0);
    }
    assert!(changes > 0, "the guest wrote nothing");
    assert_eq!(store.verify().unwrap().faults, []);
    drop(store);

    let restore = format!(
        "restore vm/7/epoch/{CHECKPOINTS:08} --store store --disk secondary.img --evidence . \
         --requests 2000 --json"
    );
    let json = ended(&tidemark(&restore, folder).output().unwrap());
    assert_eq!(json["pages"], shape().memory / 4096);
    let last = &marks[usize::try_from(CHECKPOINTS).unwrap()];
    assert_eq!(
        read_marks(folder, "restored").unwrap()[0].differing(last),
        0
    );
    // What the primary did after it has never happened.
    for (vcpu, bytes) in (0..).zip(&last.journals) {
        let file = File::options()
            .write(true)
            .open(Journal::path(folder, "primary", vcpu));
        file.unwrap().set_len(*bytes).unwrap();
    }
    let (verdict, writes) = judge_requests(&shape(), folder, &["primary", "restored"]).unwrap();
    assert!(verdict.clean() && verdict.submitted > 0, "{verdict:?}");
    let disk = judge_disk(&[folder.join("secondary.img")], &writes).unwrap();
    assert!(disk.wrong == 0 && disk.blocks > 0, "{disk:?}");
}

#[test]
fn what_is_not_there_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    File::create(folder.join("disk.img")).unwrap();
    let ask = |words: &str| {
        let output = tidemark(words, folder).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), told)
    };
    let (code, told) = ask("restore vm/7 --store nowhere --disk disk.img");
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("`tidemark store put` makes one"), "{told}");
    let (code, told) = ask("store put vm/7 --from disk.img --store here");
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("the stream ends at byte 0"), "{told}");
    let (code, told) = ask("restore vm/7 --store here --disk disk.img");
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("nothing is stored as 'vm/7'"), "{told}");
    let (code, told) = ask("store put vm//7 --from disk.img --store here");
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("a component is empty"), "{told}");
    for place in [
        "s3://bucket/x --names here",
        "here --names etcd://127.0.0.1:1/x",
    ] {
        let (code, told) = ask(&format!("store list --store {place}"));
        assert!(code == Some(1) || code == Some(2), "{told}");
        assert!(!told.is_empty());
    }
}
