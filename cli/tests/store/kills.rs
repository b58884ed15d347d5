//! Processes that put, remove and collect, killed at a moment that a seed chooses.

use crate::guest::{Guest, Random};
use crate::place::Place;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Runs without a word about it.
const RUNS: u64 = 12;
const GUESTS: u64 = 4;
/// Names of a batch: all or none.
const BATCH: u64 = 300;

struct Bed<'p> {
    place: &'p Place,
    random: Random,
    /// The streams, and what `get` must give for them.
    streams: Vec<(PathBuf, Vec<u8>)>,
    /// Names that are there for sure, with the number of their stream.
    named: BTreeMap<String, usize>,
    /// How long what can be killed takes.
    usual: Duration,
    kills: u64,
    in_time: u64,
}

fn tidemark(place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    let (first, rest) = arguments.split_at(1);
    command
        .arg("store")
        .args(first)
        .args(place.arguments())
        .args(rest)
        .arg("--json");
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn done(output: &Output) -> Value {
    let (out, told) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {told}", output.status);
    serde_json::from_slice(out).unwrap_or_else(|error| panic!("{error}: {told}"))
}

impl Bed<'_> {
    fn ask(&self, arguments: &[&str]) -> Value {
        done(&tidemark(self.place, arguments).output().unwrap())
    }

    fn names(&self) -> Vec<String> {
        let listed = self.ask(&["list"]);
        let names = listed["names"].as_array().unwrap().iter();
        names
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Lets it run for a while that the seed chooses, then kills it. Whether it had ended by itself.
    fn kill(&mut self, mut child: Child) -> bool {
        let most = u64::try_from(self.usual.as_micros()).unwrap() * 5 / 4;
        // Not waiting for anything: the moment is what is tried out.
        std::thread::sleep(Duration::from_micros(self.random.below(most)));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        self.kills += 1;
        let ended = output.status.code().is_some();
        if ended {
            done(&output);
        } else {
            self.in_time += 1;
        }
        ended
    }

    /// Holds the store against what is known, and `unsure`: a batch of which all is there, or none.
    fn settle(&mut self, run: u64, unsure: &[String], stream: Option<usize>) {
        let verified = self.ask(&["verify"]);
        assert_eq!(verified["faults"], json!([]), "run {run}");
        let mut names = self.names();
        let there = names.iter().filter(|name| unsure.contains(name)).count();
        assert!(
            there == 0 || there == unsure.len(),
            "run {run}: {there} of {}",
            unsure.len()
        );
        for name in unsure {
            match stream {
                Some(stream) if there > 0 => self.named.insert(name.clone(), stream),
                _ if there == 0 => self.named.remove(name),
                _ => None,
            };
        }
        names.sort();
        let known: Vec<String> = self.named.keys().cloned().collect();
        assert_eq!(names, known, "run {run}");
        let Some(name) = (match known.len() as u64 {
            0 => None,
            count => known.get(usize::try_from(self.random.below(count)).unwrap()),
        }) else {
            return;
        };
        self.check(name);
    }

    fn check(&self, name: &str) {
        let to = self.place.file("got");
        self.ask(&["get", name, "--to", to.to_str().unwrap()]);
        let got = std::fs::read(&to).unwrap();
        assert!(
            got == self.streams[self.named[name]].1,
            "{name} is not what was put"
        );
    }
}

pub fn run(what: &str, place: &Place) {
    let told = std::env::var("TIDEMARK_STORE_KILLS").ok();
    let runs = told.map_or(RUNS, |told| told.parse().expect("a number of runs"));
    let mut random = Random::new(42);
    let mut guest = Guest::new(&mut random, 2500);
    let mut streams = Vec::new();
    for number in 0..GUESTS {
        let path = place.file(&format!("{number}.stream"));
        let stream = guest.stream();
        std::fs::write(&path, &stream).unwrap();
        streams.push((path, stream));
        guest.run(&mut random, 300);
    }
    let mut bed = Bed {
        place,
        random,
        streams,
        named: BTreeMap::new(),
        usual: Duration::ZERO,
        kills: 0,
        in_time: 0,
    };
    let first = bed.streams[0].0.display().to_string();
    let began = Instant::now();
    bed.ask(&["put", "vm/0/epoch/00000-0", "--from", &first]);
    bed.usual = began.elapsed();
    bed.named.insert("vm/0/epoch/00000-0".to_owned(), 0);
    for run in 1..=runs {
        one(&mut bed, run);
    }
    // Whatever the killed ones left goes, and all that has a name stays.
    bed.ask(&["gc"]);
    assert_eq!(bed.ask(&["verify"])["unnamed"], 0);
    let names: Vec<String> = bed.named.keys().cloned().collect();
    for name in names.iter().step_by(names.len() / 20 + 1) {
        bed.check(name);
    }
    let figures = json!({
        "place": what, "runs": runs, "kills": bed.kills, "killed_in_time": bed.in_time,
        "names_at_the_end": bed.named.len(), "damaged": 0,
    });
    println!("figures {figures}");
    assert!(bed.in_time > 0, "nobody was killed before the end");
}

fn one(bed: &mut Bed<'_>, run: u64) {
    let stream = usize::try_from(bed.random.below(GUESTS)).unwrap();
    let from = bed.streams[stream].0.display().to_string();
    let list = bed.place.file("list");
    let list_text = list.display().to_string();
    let put = ["put", "--list", &list_text, "--from", &from];
    match bed.random.below(4) {
        // A batch is removed.
        0 if bed.named.len() > 1 => {
            let place = bed.random.below(bed.named.len() as u64);
            let place = usize::try_from(place).unwrap();
            let one = bed.named.keys().nth(place).unwrap();
            let batch = format!("{}-", one.rsplit_once('-').unwrap().0);
            let names = bed.named.keys().filter(|name| name.starts_with(&batch));
            let names: Vec<String> = names.cloned().collect();
            let stream = bed.named[&names[0]];
            std::fs::write(&list, names.join("\n") + "\n").unwrap();
            let child = tidemark(bed.place, &["rm", "--list", &list_text])
                .spawn()
                .unwrap();
            bed.kill(child);
            bed.settle(run, &names, Some(stream));
        }
        // A collection.
        1 => {
            let child = tidemark(bed.place, &["gc"]).spawn().unwrap();
            bed.kill(child);
            bed.settle(run, &[], None);
        }
        // A batch is put, beside a collection or not; either may be the one that dies.
        choice => {
            // Few directories: most puts find a checkpoint to share with.
            let epoch = format!("vm/{}/epoch/{run:05}", run % 5);
            let names: Vec<String> = match bed.random.below(3) {
                0 => (0..BATCH).map(|n| format!("{epoch}-{n}")).collect(),
                _ => vec![format!("{epoch}-0")],
            };
            std::fs::write(&list, names.join("\n") + "\n").unwrap();
            let putting = tidemark(bed.place, &put).spawn().unwrap();
            let gc = (choice == 2).then(|| tidemark(bed.place, &["gc"]).spawn().unwrap());
            let ended = match gc {
                Some(gc) if bed.random.below(2) == 0 => {
                    bed.kill(gc);
                    done(&putting.wait_with_output().unwrap());
                    true
                }
                gc => {
                    let ended = bed.kill(putting);
                    if let Some(gc) = gc {
                        done(&gc.wait_with_output().unwrap());
                    }
                    ended
                }
            };
            bed.settle(run, &names, Some(stream));
            if ended {
                assert!(
                    names.iter().all(|name| bed.named.contains_key(name)),
                    "run {run}"
                );
            }
        }
    }
}
