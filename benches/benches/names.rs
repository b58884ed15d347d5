//! The check of a batch of names: all together, and one by one with the same cursor over the same keys.

use benches::memory::Random;
use benches::{Bound, Line, Mode, Ratio, finish, interleave, settle, wanted};
use migration::names::{Batch, Change, ConflictSet, Cursor, Extent, Mode as Apply, Name, judge};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const STORED: usize = 100_000;
const NEW: usize = 10_000;
const ROUNDS: usize = 51;
/// Epochs that a device has in the store, and gets by a batch.
const EPOCHS: usize = 50;
const NEW_EPOCHS: usize = EPOCHS * NEW / STORED;

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn name(text: &str) -> Name {
    text.parse().expect("well-formed")
}

fn create(names: &[Name]) -> Batch<Name> {
    Batch::new(names.iter().cloned().map(Change::Create).collect())
}

fn stored(names: &[Name]) -> ConflictSet<Name> {
    let mut set = ConflictSet::default();
    let applied = set.apply(create(names), Apply::Atomic);
    assert_eq!(applied.made, names.len());
    set
}

/// What one look by itself needs, made before the clock starts.
struct Single {
    prefixes: Vec<Name>,
    name: Name,
    batch: Batch<Name>,
}

impl Single {
    fn new(key: &Name) -> Self {
        let octets = key.octets();
        let slashes = octets
            .iter()
            .enumerate()
            .filter(|(_, octet)| **octet == b'/');
        let prefix = |(end, _)| Name::new(&octets[..end]).expect("well-formed");
        Self {
            prefixes: slashes.map(prefix).collect(),
            name: key.clone(),
            batch: create(std::slice::from_ref(key)),
        }
    }
}

/// The rule by prefixes: each is looked for, then what is below the name.
fn by_prefixes(set: &ConflictSet<Name>, singles: &[Single]) -> usize {
    let mut cursor = set.cursor();
    let mut refused = 0;
    for Single { prefixes, name, .. } in singles {
        let mut found = |key: &Name| {
            let Ok(()) = cursor.seek(key);
            cursor.at().is_some_and(|at| {
                if key == name {
                    name.reaches(at)
                } else {
                    at == key
                }
            })
        };
        refused += usize::from(prefixes.iter().any(&mut found) || found(name));
    }
    refused
}

/// Our own check, a batch for each name.
fn by_neighbours(set: &ConflictSet<Name>, singles: &[Single]) -> usize {
    let mut cursor = set.cursor();
    let refused = singles.iter().map(|single| {
        let Ok(refused) = judge(&single.batch, &mut cursor);
        refused.len()
    });
    refused.sum()
}

/// How often the peer takes the subject's time.
fn times(ratio: &Ratio) -> (f64, [f64; 2]) {
    let [low, high] = ratio.spread();
    (1.0 / ratio.median(), [1.0 / high, 1.0 / low])
}

fn measure(lines: &mut Vec<Line>, layout: &str, old: &[Name], new: &[Name], bound: Bound) {
    let set = stored(old);
    let batch = create(new);
    let singles: Vec<Single> = new.iter().map(Single::new).collect();
    let taken = RefCell::new(Vec::new());
    let together = || {
        let time = timed(|| assert!(black_box(set.judge(black_box(&batch))).is_empty()));
        taken.borrow_mut().push(time.as_secs_f64() * 1e3);
        time
    };
    let prefixes = || timed(|| assert_eq!(black_box(by_prefixes(&set, black_box(&singles))), 0));
    let neighbours =
        || timed(|| assert_eq!(black_box(by_neighbours(&set, black_box(&singles))), 0));

    let ratio = interleave(ROUNDS, together, prefixes);
    let (figure, spread) = times(&ratio);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let detail = |ratio: &Ratio| {
        let [peer, together] = [ratio.peer, ratio.subject].map(milliseconds);
        format!("{peer:.3} ms : {together:.3} ms")
    };
    let mut line = |name, bound, figure, spread, detail| {
        lines.push(Line {
            name,
            bound,
            figure,
            spread,
            detail,
        });
    };
    let times_taken = taken.take();
    let spread_taken = [
        times_taken.iter().copied().fold(f64::INFINITY, f64::min),
        times_taken.iter().copied().fold(0.0, f64::max),
    ];
    line(
        format!("{NEW} {layout} names against {STORED}, ms"),
        Bound::AtMost(10.0),
        milliseconds(ratio.subject),
        spread_taken,
        String::new(),
    );
    line(
        format!("{layout} names one by one, by prefixes : together"),
        bound,
        figure,
        spread,
        detail(&ratio),
    );
    let ratio = interleave(ROUNDS, together, neighbours);
    let (figure, spread) = times(&ratio);
    line(
        format!("{layout} names one by one, by neighbours : together"),
        Bound::None,
        figure,
        spread,
        detail(&ratio),
    );
}

/// The next epochs of every device: what checkpoints of a fleet ask for.
fn deep() -> [Vec<Name>; 2] {
    let epoch = |device: usize, epoch: usize| {
        let (vm, host) = (device / 4, device % 16);
        name(&format!(
            "vm/{vm:05}/host/{host:03}/dev/disk{}/epoch/{epoch:08}",
            device % 4
        ))
    };
    let devices = STORED / EPOCHS;
    let all = |epochs: std::ops::Range<usize>| {
        let of = move |device| epochs.clone().map(move |number| epoch(device, number));
        (0..devices).flat_map(of).collect()
    };
    [all(0..EPOCHS), all(EPOCHS..EPOCHS + NEW_EPOCHS)]
}

/// No two of a directory, and no order: nothing that one look learns serves the next.
fn scattered() -> [Vec<Name>; 2] {
    let mut seen = BTreeSet::new();
    let numbers = Random(7)
        .map(|number| number >> 16)
        .filter(|number| seen.insert(*number));
    let path = |number: u64| {
        let text = format!("{number:012x}");
        let parts: Vec<&str> = (0..6).map(|part| &text[2 * part..2 * part + 2]).collect();
        name(&parts.join("/"))
    };
    let mut all: Vec<Name> = numbers.take(STORED + NEW).map(path).collect();
    let new = all.split_off(STORED);
    [all, new]
}

fn shuffled(mut names: Vec<Name>) -> Vec<Name> {
    let mut random = Random(11);
    for last in (1..names.len()).rev() {
        let place = random.next().unwrap_or(0) % (last as u64 + 1);
        names.swap(last, usize::try_from(place).expect("64-bit host"));
    }
    names
}

fn main() -> ExitCode {
    let mode = Mode::from_args();
    let mut lines = Vec::new();
    settle();
    if wanted("names") {
        let [old, new] = deep();
        measure(&mut lines, "deep", &old, &new, Bound::AtLeast(4.6));
        measure(
            &mut lines,
            "deep, shuffled",
            &old,
            &shuffled(new),
            Bound::AtLeast(4.6),
        );
        let [old, new] = scattered();
        measure(&mut lines, "scattered", &old, &new, Bound::None);
    }
    lines.iter().for_each(|line| line.print(mode));
    finish(&lines)
}
