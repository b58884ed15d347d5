//! A pair of which one side is to go on.

use crate::process::Event;
use crate::script::{AtStep, Follow, What};
use crate::tally::{Aim, Result, Tally};
use crate::{all_turns, disk, object, random, requests, shape, text, tidemark};
use migration::checkpoint::checker::{Checker, LibxcMemory};
use migration::checkpoint::{Kind, Side};
use migration::faults::{Way, relay};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;
use vm::evidence::read_marks;
use vm::guest::block::Stamp;
use vm::guest::journal::{Event as Journaled, Journal, read};

const SIDES: [(&str, Side); 2] = [("primary", Side::Primary), ("secondary", Side::Secondary)];
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Checkpoints from a fault that did no harm to the end of the victim.
const LATER: u64 = 3;
/// The step of a fault that hits no message but a disk.
const STORAGE: &str = "storage";

/// The messages of a pair.
struct Messages(Checker<LibxcMemory>);

impl Follow for Messages {
    fn steps(&mut self, way: Way, bytes: &[u8]) -> Vec<(&'static str, u64, u64)> {
        let from = match way {
            Way::Forth => Side::Primary,
            Way::Back => Side::Secondary,
        };
        // What a side says that was lied to is not judged here.
        let seen = self.0.feed(from, bytes).unwrap_or_default();
        let step = |seen: &migration::checkpoint::checker::Seen| {
            (seen.message.kind().name(), seen.nth, seen.at)
        };
        seen.iter().map(step).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    step: Kind,
    nth: u64,
    victim: usize,
    what: What,
}

impl Plan {
    /// Every step and side in turn, and each with every fault in turn.
    fn of(turn: u64, attempt: u64) -> Self {
        let mut random = random(turn, attempt);
        let turn = |n: usize| usize::try_from(turn).unwrap() / n;
        let step = Kind::ALL[turn(1) % 7];
        let victim = turn(7) % 2;
        let head = if step == Kind::Size { 12 } else { 4 };
        let reach = if step == Kind::Send { 64 << 10 } else { head };
        let name = What::ALL[turn(14) % 7];
        let mut what = What::seeded(name, &mut random, reach, head);
        // Whoever has not heard READY is no primary of a pair: nobody may take its guest from it
        // but by its end.
        let harmless = matches!(what, What::Short(_) | What::Delay | What::Disk(_));
        if step == Kind::Ready && victim == 0 && !harmless {
            what = What::Kill;
        }
        let nth = if step == Kind::Ready {
            1
        } else {
            1 + random.below(5)
        };
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
            _ => self.step.name(),
        }
    }
}

fn run(plan: Plan) -> Result {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let disks = SIDES.map(|(name, _)| disk(folder, &format!("{name}.img")));
    let [near, far] = ["near", "far"].map(|name| folder.join(name));
    let arguments = |side: usize, place: &Path| {
        let (name, _) = SIDES[side];
        let (way, rest) = match side {
            0 => ("--to", "--memory 16M --period 3 --overwrite"),
            _ => ("--listen", "--format"),
        };
        let place = format!("unix:{}", text(place));
        let mut all = vec![
            "checkpoint".to_owned(),
            name.to_owned(),
            way.to_owned(),
            place,
        ];
        all.extend(["--disk".to_owned(), text(&disks[side])]);
        all.extend(["--evidence".to_owned(), text(folder)]);
        all.extend(rest.split(' ').map(str::to_owned));
        let common = "--json --on-loss wait --patience 1500 --requests 1000 --hold 1M";
        all.extend(common.split(' ').map(str::to_owned));
        if let (What::Disk(nth), true) = (plan.what, side == plan.victim) {
            let error = ["enospc", "eio"][usize::from(nth.is_multiple_of(2))];
            all.extend(["--disk-fault".to_owned(), format!("{error}:{nth}")]);
        }
        all
    };
    let (events, happens) = channel();
    let mut secondary = tidemark(&arguments(1, &far));
    secondary.watch(1, true, &events);
    let listener = UnixListener::bind(&near).unwrap();
    let mut primary = tidemark(&arguments(0, &near));
    primary.watch(0, false, &events);
    drop(events);
    let (here, _) = listener.accept().unwrap();
    let there = UnixStream::connect(&far).unwrap();
    let mut sides = [primary, secondary];
    let victim = sides[plan.victim].killer();
    let way = match plan.step.sender() {
        Side::Primary => Way::Forth,
        Side::Secondary => Way::Back,
    };
    let harmless = matches!(plan.what, What::Short(_) | What::Delay);
    let last = harmless.then_some((Kind::Request.name(), plan.nth + LATER));
    let follow = Messages(Checker::new(LibxcMemory::default()));
    let at = (plan.step.name(), plan.nth, plan.what, way);
    let at = match plan.what {
        // Never: the disk has its fault already.
        What::Disk(_) => (STORAGE, 0, plan.what, way),
        _ => at,
    };
    let mut script = AtStep::new(follow, at, last, victim.clone());
    let happened = script.happened();
    let relay = relay(here, there, script).unwrap();

    let survivor = 1 - plan.victim;
    let (mut stalled, mut spoiled) = (false, false);
    loop {
        match happens.recv_timeout(PATIENCE) {
            Ok(Event::Said(who, line)) => {
                spoiled |= who == plan.victim && line.contains("os error");
                if !line.contains("waiting for 'failover'") {
                    continue;
                }
                // Somebody sees to it that the lost side stays lost, then says who goes on.
                victim.kill();
                if who == survivor {
                    sides[survivor].order("failover");
                }
            }
            Ok(Event::Ended(who)) if who == survivor => break,
            Ok(Event::Ended(_)) => {}
            Err(_) => {
                stalled = true;
                break;
            }
        }
    }
    victim.kill();
    if stalled {
        sides[survivor].killer().kill();
    }
    let [primary, secondary] = sides.map(crate::process::Guarded::end);
    relay.join();
    let (status, out, told) = [primary, secondary].into_iter().nth(survivor).unwrap();
    let mut result = Result {
        fired: happened() || (spoiled && matches!(plan.what, What::Disk(_))),
        ended: SIDES[survivor].0,
        ..Result::default()
    };
    let judged = match (stalled, survivor) {
        (true, _) => Err(format!("the {} stands still: {told}", SIDES[survivor].0)),
        (_, 0) => went_on(folder, &disks[0], status.code(), &told, &mut result),
        _ => took_over(folder, &disks, &out, &mut result).map_err(|why| format!("{why}: {told}")),
    };
    result.wrong.extend(judged.err());
    result
}

/// The primary went on alone, or was never paired.
fn went_on(
    folder: &Path,
    disk: &Path,
    code: Option<i32>,
    told: &str,
    result: &mut Result,
) -> std::result::Result<(), String> {
    match code {
        Some(0) => {}
        Some(1) if told.contains("no pair") => result.ended = "primary, never paired",
        code => return Err(format!("the primary ended with {code:?}: {told}")),
    }
    result.requests = requests(folder, &["primary"], disk)?;
    Ok(())
}

/// The secondary went on from a checkpoint: its memory was the primary's then, every request is
/// carried out once on the two of them, and the primary's disk shows no write that it does not know.
fn took_over(
    folder: &Path,
    disks: &[std::path::PathBuf; 2],
    out: &str,
    result: &mut Result,
) -> std::result::Result<(), String> {
    let epochs = object(out)["checkpoints"]
        .as_u64()
        .ok_or("no checkpoint was told of")?;
    let bad = |error: vm::VmError| error.to_string();
    let marks = read_marks(folder, "primary").map_err(bad)?;
    let mine = marks.get(usize::try_from(epochs).unwrap_or(usize::MAX));
    let mine = mine.ok_or_else(|| format!("the primary never made checkpoint {epochs}"))?;
    let theirs = read_marks(folder, "secondary").map_err(bad)?;
    let theirs = theirs.first().ok_or("the secondary left no mark")?;
    result.compared = u64::try_from(mine.pages.len()).unwrap();
    result.lost = mine.differing(theirs);
    if result.lost > 0 {
        return Err(format!(
            "{} pages are not those of checkpoint {epochs}",
            result.lost
        ));
    }
    // The control: from the checkpoint before, it would have shown.
    let before = epochs.checked_sub(1).and_then(|n| usize::try_from(n).ok());
    let before = before.and_then(|before| marks.get(before));
    result.controls += u64::from(before.is_some_and(|before| before.differing(theirs) > 0));
    // What the primary did after it has never happened.
    let mut known = BTreeMap::new();
    for (vcpu, bytes) in (0..).zip(&mine.journals) {
        let path = Journal::path(folder, "primary", vcpu);
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(*bytes))
            .map_err(|error| error.to_string())?;
        let read = read(&path, |entry| {
            if entry.event == Journaled::WriteSubmitted {
                known.insert(entry.block, entry.sequence);
            }
        });
        read.map_err(bad)?;
    }
    let shown = std::fs::read(&disks[0]).map_err(|error| error.to_string())?;
    for (block, page) in (0..shape().blocks).zip(shown.as_chunks::<4096>().0) {
        let (_, sequence) = Stamp::head(page);
        if sequence > u64::from(known.get(&block).copied().unwrap_or(0)) {
            return Err(format!(
                "block {block} shows write {sequence}, which nobody knows"
            ));
        }
    }
    result.requests = requests(folder, &["primary", "secondary"], &disks[1])?;
    Ok(())
}

#[test]
fn checkpoints_under_faults() {
    let steps: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let sides = SIDES.map(|(name, _)| name);
    let tally = Tally::of(&[&steps[..], &[STORAGE]].concat(), &sides);
    let figures = all_turns("checkpoint", tally, |turn, attempt| {
        let plan = Plan::of(turn, attempt);
        let aim = Aim {
            step: (plan.step(), plan.nth),
            side: sides[plan.victim],
            what: plan.what.name(),
        };
        (aim, run(plan))
    });
    assert_ne!(figures["controls_that_differ"], 0);
}
