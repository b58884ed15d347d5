//! A move between two processes. There is one guest before it and one after it, whatever happens.

use crate::process::Event;
use crate::script::{AtStep, Follow, What};
use crate::tally::{Aim, Result, Tally};
use crate::{all_turns, disk, object, random, requests, text, tidemark};
use migration::faults::{Way, relay};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;
use vm::evidence;

const SIDES: [&str; 2] = ["source", "destination"];
/// What the destination says, by the low half of its type, and the source's GO.
const STEPS: [(&str, u64); 6] = [
    ("opened", 1),
    ("bulk", 4),
    ("round", 6),
    ("ready", 1),
    ("go", 1),
    ("running", 1),
];
/// Records of pages in the first round.
const BULK: u64 = 4;
/// How long a move may stand still before it is ended from outside.
const STILL: Duration = Duration::from_secs(10);
/// The step of a fault that hits nothing but a file.
const STORAGE: &str = "storage";

/// Follows the answers of a destination, and the word of the source after them.
#[derive(Default)]
struct Answers {
    at: u64,
    head: Vec<u8>,
    body: u64,
    taken: u64,
    forth: u64,
    ready: bool,
    go: bool,
}

impl Answers {
    fn answer(&mut self, kind: u32) -> Option<(&'static str, u64)> {
        // {u32 type, u32 length}, and the types count from 0x54440001: PLAIN, GO, ABORT, OPENED,
        // PLAIN_COPIED, TAKEN, READY, RUNNING, REFUSED.
        match kind.checked_sub(0x5444_0000) {
            Some(4) => Some(("opened", 1)),
            Some(6) => {
                self.taken += 1;
                Some(match self.taken.checked_sub(BULK) {
                    None | Some(0) => ("bulk", self.taken),
                    Some(more) => ("round", more),
                })
            }
            Some(7) => {
                self.ready = true;
                Some(("ready", 1))
            }
            Some(8) => Some(("running", 1)),
            _ => None,
        }
    }
}

impl Follow for Answers {
    fn steps(&mut self, way: Way, bytes: &[u8]) -> Vec<(&'static str, u64, u64)> {
        if way == Way::Forth {
            let begin = self.forth;
            self.forth += u64::try_from(bytes.len()).unwrap();
            let go = self.ready && !std::mem::replace(&mut self.go, self.ready);
            return if go {
                vec![("go", 1, begin)]
            } else {
                Vec::new()
            };
        }
        let mut steps = Vec::new();
        for byte in bytes {
            if self.body > 0 {
                self.body -= 1;
            } else {
                self.head.push(*byte);
                if let Ok([a, b, c, d, e, f, g, h]) = <[u8; 8]>::try_from(self.head.as_slice()) {
                    self.head.clear();
                    self.body = u64::from(u32::from_le_bytes([e, f, g, h]));
                    let begin = self.at.saturating_sub(7);
                    let step = self.answer(u32::from_le_bytes([a, b, c, d]));
                    steps.extend(step.map(|(name, nth)| (name, nth, begin)));
                }
            }
            self.at += 1;
        }
        steps
    }
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    step: &'static str,
    nth: u64,
    victim: usize,
    what: What,
}

impl Plan {
    /// Every step and side in turn, and each with every fault in turn. What happens to a connection
    /// happens to the bytes that the victim is to get.
    fn of(turn: u64, attempt: u64) -> Self {
        let mut random = random(turn, attempt);
        let turn = |n: usize| usize::try_from(turn).unwrap() / n;
        let (step, most) = STEPS[turn(1) % 6];
        let victim = turn(6) % 2;
        let name = What::ALL[turn(12) % 7];
        let reach = match (victim, step) {
            (0, _) | (_, "go") => 8,
            (_, "ready" | "running") => 1,
            _ => 64 << 10,
        };
        let mut what = What::seeded(name, &mut random, reach, 8);
        // A page and a state have no sums: what changes bytes changes what has a head only. Behind
        // the last word nothing comes.
        let bytes = matches!(what, What::Flip(..) | What::Duplicate(_));
        if victim == 1 && (step == "running" || (bytes && step != "go")) {
            what = if step == "running" {
                What::Kill
            } else {
                What::Cut(random.below(reach))
            };
        }
        let nth = 1 + random.below(most);
        Self {
            step,
            nth,
            victim,
            what,
        }
    }

    fn step(&self) -> &'static str {
        match self.what {
            What::Disk(_) => STORAGE,
            _ => self.step,
        }
    }
}

fn source(folder: &Path, disk: &Path, to: &str) -> Vec<String> {
    let rest = "migrate --json --overwrite --memory 16M --queues 2 --plain-copies 0 --seed 1";
    let mut all: Vec<String> = rest.split(' ').map(str::to_owned).collect();
    all.extend(
        [
            "--disk",
            &text(disk),
            "--evidence",
            &text(folder),
            "--to",
            to,
        ]
        .map(str::to_owned),
    );
    all
}

fn run(plan: Plan) -> Result {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let disk = disk(folder, "disk.img");
    evidence::prepare(folder).unwrap();
    if matches!(plan.what, What::Disk(_)) {
        return saved_to_full_disk(folder, &disk);
    }
    let [near, far] = ["near", "far"].map(|name| folder.join(name));
    let (events, happens) = channel();
    let mut arguments: Vec<String> = vec!["receive".to_owned(), "--listen".to_owned()];
    arguments.extend([
        format!("unix:{}", text(&far)),
        "--disk".to_owned(),
        text(&disk),
    ]);
    arguments.extend(["--evidence".to_owned(), text(folder)]);
    arguments.extend("--json --requests 1000".split(' ').map(str::to_owned));
    let mut destination = tidemark(&arguments);
    destination.watch(1, true, &events);
    let listener = UnixListener::bind(&near).unwrap();
    let to = format!("unix:{}", text(&near));
    let mut origin = tidemark(&source(folder, &disk, &to));
    origin.watch(0, false, &events);
    drop(events);
    let (here, _) = listener.accept().unwrap();
    let there = UnixStream::connect(&far).unwrap();
    let sides = [origin, destination];
    let victim = sides[plan.victim].killer();
    let to = [Way::Back, Way::Forth][plan.victim];
    let at = (plan.step, plan.nth, plan.what, to);
    let mut script = AtStep::new(Answers::default(), at, None, victim.clone());
    let happened = script.happened();
    let relay = relay(here, there, script).unwrap();
    let mut open = 2;
    let mut stood_still = false;
    while open > 0 {
        match happens.recv_timeout(STILL) {
            Ok(Event::Ended(_)) => open -= 1,
            Ok(Event::Said(..)) => {}
            // Nobody hears what it waits for: somebody ends it.
            Err(_) if !stood_still => {
                stood_still = true;
                victim.kill();
            }
            Err(_) => break,
        }
    }
    sides.iter().for_each(|side| side.killer().kill());
    let [origin, destination] = sides.map(crate::process::Guarded::end);
    relay.join();
    let mut result = Result {
        fired: happened(),
        ..Result::default()
    };
    let killed = (stood_still || plan.what == What::Kill) && result.fired;
    let judged = judge(
        folder,
        &disk,
        &origin.1,
        killed.then_some(plan.victim),
        &mut result,
    );
    let why = judged
        .err()
        .map(|why| format!("{why}: {} {}", origin.2, destination.2));
    result.wrong.extend(why);
    result
}

/// Where the guest was in the end, and whether it was there once and whole.
fn judge(
    folder: &Path,
    disk: &Path,
    printed: &str,
    killed: Option<usize>,
    result: &mut Result,
) -> std::result::Result<(), String> {
    let told = object(printed);
    let came = evidence::read_after(folder).is_ok();
    let began = (0..2).any(|vcpu| {
        let path = vm::guest::journal::Journal::path(folder, SIDES[1], vcpu);
        std::fs::metadata(path).is_ok_and(|known| known.len() > 0)
    });
    result.lost = match told["lost_pages"].as_u64() {
        Some(lost) => {
            result.compared = told["memory"]["compared"].as_u64().unwrap_or(0);
            lost
        }
        None => 0,
    };
    if result.lost > 0 {
        return Err(format!("{} pages are lost", result.lost));
    }
    if told["resumed_at_source"] == true {
        result.ended = "source, whole";
        if came || began {
            return Err("the guest ran at its source and at its destination".to_owned());
        }
        if told["source_whole"] != true {
            return Err("the guest at its source is not whole".to_owned());
        }
        result.requests = requests(folder, &SIDES[..1], disk)?;
        return Ok(());
    }
    if came {
        result.ended = "destination";
        result.requests = requests(folder, &SIDES, disk)?;
        return Ok(());
    }
    match killed {
        Some(0) if !began => {
            result.ended = "nobody: the source was killed before it handed over";
            Ok(())
        }
        Some(1) => {
            result.ended = "nobody: the destination was killed when it had been handed over";
            let judged = evidence::judge_requests(&crate::shape(), folder, &SIDES[..1]);
            let (verdict, _) = judged.map_err(|error| error.to_string())?;
            if verdict.doubled + verdict.failed + verdict.corrupt > 0 {
                return Err(format!("{verdict:?}"));
            }
            Ok(())
        }
        _ if told["resumed_at_source"] == false && !began => {
            result.ended = "source, paused: only the destination could say that it does not run it";
            Ok(())
        }
        _ => Err(format!("nobody has the guest: {told}")),
    }
}

/// A file that finds no room: the guest stays.
fn saved_to_full_disk(folder: &Path, disk: &Path) -> Result {
    let path = folder.join("guest.xl");
    std::os::unix::fs::symlink("/dev/full", folder.join("guest.xl.partial")).unwrap();
    let (events, _) = channel();
    let mut origin = tidemark(&source(folder, disk, &format!("file:{}", text(&path))));
    origin.watch(0, false, &events);
    let (_, printed, told) = origin.end();
    let mut result = Result {
        fired: told.contains("os error 28"),
        ..Result::default()
    };
    let judged = judge(folder, disk, &printed, None, &mut result);
    result
        .wrong
        .extend(judged.err().map(|why| format!("{why}: {told}")));
    result
}

#[test]
fn moves_under_faults() {
    let steps: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
    let tally = Tally::of(&[&steps[..], &[STORAGE]].concat(), &SIDES);
    all_turns("migrate", tally, |turn, attempt| {
        let plan = Plan::of(turn, attempt);
        let aim = Aim {
            step: (plan.step(), plan.nth),
            side: SIDES[plan.victim],
            what: plan.what.name(),
        };
        (aim, run(plan))
    });
}
