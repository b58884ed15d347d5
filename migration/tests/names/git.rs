//! The differential test: generated batches, judged by us and made by stock git.

use crate::Random;
use crate::stock::{Git, Repository};
use migration::names::{Batch, Change, Conflict, ConflictSet, Malformed, Mode, Name};
use std::collections::BTreeMap;
use std::thread;

/// Batches of each reference format, unless `TIDEMARK_BATCHES` says otherwise.
const BATCHES: usize = 500;
/// Batches that one repository sees.
const OF_ONE: usize = 250;

/// What comes under `refs/t/` in the names.
const PARTS: [&[u8]; 9] = [
    b"a",
    b"b",
    b"c",
    b"a-b",
    b"a!",
    b"ab",
    b"z",
    b"\xee",
    b"\xf0\x9f\x8c\x8a",
];
const BAD: [&[u8]; 14] = [
    b"x..y",
    b"z.lock",
    b".a",
    b"a.lock/b",
    b"a b",
    b"a~",
    b"a^b",
    b"a:b",
    b"a?",
    b"a*",
    b"a[b",
    b"a\\b",
    b"a//b",
    b"a.",
];

/// How often each way to be refused was met.
type Kinds = BTreeMap<&'static str, usize>;

fn octets(random: &mut Random) -> Vec<u8> {
    let mut octets = b"refs/t".to_vec();
    for _ in 0..1 + random.below(4) {
        octets.push(b'/');
        octets.extend(random.pick(&PARTS));
    }
    if random.once_in(60) {
        octets.push(b'/');
        octets.extend(random.pick(&BAD));
    }
    octets
}

/// Names as octets, each with whether it is to be created.
fn generate(random: &mut Random, stored: &[Name]) -> Vec<(Vec<u8>, bool)> {
    let count = 1 + random.below(3);
    let change = |_| {
        let delete = random.below(100) < if stored.len() < 24 { 15 } else { 60 };
        let of_store = delete && !stored.is_empty() && !random.once_in(12);
        let octets = if of_store {
            stored[random.below(stored.len())].octets()
        } else {
            octets(random)
        };
        let mut changes = vec![(octets, !delete)];
        if of_store && random.once_in(8) {
            // What only the deletion of the same batch would make room for.
            let mut octets = changes[0].0.clone();
            if random.once_in(2) {
                octets.extend(b"/new");
            } else {
                let slash = octets.iter().rposition(|octet| *octet == b'/');
                octets.truncate(slash.unwrap_or(0).max(b"refs/t".len()));
            }
            changes.push((octets, true));
        } else if !delete && random.once_in(20) {
            changes.push(([&changes[0].0[..], b"/new"].concat(), true));
        }
        changes
    };
    (0..count).flat_map(change).collect()
}

fn judged(changes: &[(Vec<u8>, bool)]) -> Result<Batch<Name>, Malformed> {
    let change = |(octets, create): &(Vec<u8>, bool)| {
        let name = Name::new(octets)?;
        Ok(if *create {
            Change::Create(name)
        } else {
            Change::Delete(name)
        })
    };
    let changes: Result<Vec<_>, _> = changes.iter().map(change).collect();
    Ok(Batch::new(changes?))
}

fn kind(batch: &Batch<Name>, conflict: &Conflict<Name>) -> &'static str {
    match conflict {
        Conflict::Exists(_) => "exists",
        Conflict::Absent(_) => "absent",
        Conflict::Twice(_) => "twice",
        Conflict::Stored { key, with } => {
            let goes = batch.changes.contains(&Change::Delete(with.clone()));
            match (with < key, goes) {
                (true, true) => "below a name that goes",
                (true, false) => "below a stored name",
                (false, true) => "above a name that goes",
                (false, false) => "above a stored name",
            }
        }
        // The upper one of two is refused, so that the lower one stands.
        Conflict::Touched { .. } => "above a created name",
    }
}

/// Runs the batches over repositories of one format. How many were refused, and why.
fn compare(git: &Git, format: &str, batches: usize) -> (usize, Kinds) {
    let (mut refused, mut kinds) = (0, Kinds::new());
    for first in (0..batches).step_by(OF_ONE) {
        let dir = tempfile::tempdir().expect("a folder");
        let mut repository = Repository::new(git, dir.path(), format);
        let mut set = ConflictSet::<Name>::default();
        for seed in first..(first + OF_ONE).min(batches) {
            let mut random = Random(seed as u64);
            let changes = generate(&mut random, set.keys());
            let before = set.clone();
            let ours = match judged(&changes) {
                Err(_) => {
                    *kinds.entry("malformed").or_default() += 1;
                    false
                }
                Ok(batch) => {
                    let applied = set.apply(batch.clone(), Mode::Atomic);
                    for conflict in &applied.refused {
                        *kinds.entry(kind(&batch, conflict)).or_default() += 1;
                    }
                    applied.refused.is_empty()
                }
            };
            let shown = || {
                let name = |(octets, create): &(Vec<u8>, bool)| {
                    format!(
                        "{} {}",
                        if *create { "create" } else { "delete" },
                        octets.escape_ascii()
                    )
                };
                let changes: Vec<_> = changes.iter().map(name).collect();
                format!(
                    "{format}, seed {seed}: {changes:?} over {:?}",
                    before.keys()
                )
            };
            let theirs = repository.update(
                changes
                    .iter()
                    .map(|(octets, create)| (&octets[..], *create)),
            );
            assert_eq!(ours, theirs, "we say {ours}, git {theirs}; {}", shown());
            let mut names: Vec<_> = set.keys().iter().map(Name::octets).collect();
            names.sort();
            assert_eq!(names, repository.names(), "{}", shown());
            refused += usize::from(!ours);
            if random.once_in(20) {
                repository.pack();
            }
        }
    }
    (refused, kinds)
}

#[test]
fn batches_end_as_stock_git_ends_them() {
    let git = Git::find();
    let batches =
        std::env::var("TIDEMARK_BATCHES").map_or(BATCHES, |text| text.parse().expect("a number"));
    let formats = ["files", "reftable"];
    let results = thread::scope(|scope| {
        let threads = formats.map(|format| {
            let git = &git;
            scope.spawn(move || compare(git, format, batches))
        });
        threads.map(|thread| thread.join().expect("it compares"))
    });
    for (format, (refused, kinds)) in formats.iter().zip(&results) {
        println!(
            "{}",
            serde_json::json!({"format": format, "batches": batches, "refused": refused, "kinds": kinds})
        );
        let share = refused * 100 / batches;
        assert!(
            (30..=70).contains(&share),
            "{share} % of the batches are refused"
        );
        assert_eq!(kinds.len(), 9, "every kind is met: {kinds:?}");
    }
}

#[test]
fn names_are_well_formed_if_stock_git_says_so() {
    let git = Git::find();
    let dir = tempfile::tempdir().expect("a folder");
    let pieces: [&[u8]; 16] = [
        b"a", b"/", b".", b"@", b"{", b".lock", b"lock", b"-", b"\xee", b"~", b" ", b"\x1f",
        b"\x7f", b"*", b"\\", b"b",
    ];
    let mut random = Random(45);
    let mut well_formed = 0;
    for round in 0..400 {
        // Mostly from the pieces that are allowed in some places.
        let of = if round % 4 == 0 { pieces.len() } else { 9 };
        let octets: Vec<u8> = (0..1 + random.below(5))
            .flat_map(|_| pieces[random.below(of)].to_vec())
            .collect();
        let octets = match octets.strip_prefix(b"-") {
            // Git would take it for an option.
            Some(rest) => [b"a-", rest].concat(),
            None => octets,
        };
        let ours = Name::new(&octets);
        assert_eq!(
            ours.is_ok(),
            git.takes(dir.path(), &octets),
            "{}: {ours:?}",
            octets.escape_ascii()
        );
        well_formed += usize::from(ours.is_ok());
    }
    assert!((80..=320).contains(&well_formed), "{well_formed} of 400");
}
