//! The rule as it is stated, every key held against every other: what the conflict set must decide.

use crate::Random;
use migration::names::{Batch, Change, Conflict, ConflictSet, Extent, Mode, Name, TrackedRange};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

const BATCHES: usize = 10_000;

/// The keys whose changes are refused.
fn refused<K: Ord + Clone>(
    batch: &Batch<K>,
    stored: &[K],
    overlap: impl Fn(&K, &K) -> bool,
) -> BTreeSet<K> {
    let Batch { changes, skip } = batch;
    let own = |change: &Change<K>| {
        let key = change.key();
        let twice = changes.iter().filter(|other| other.key() == key).count() > 1;
        let excludes = |other: &&K| !skip.contains(*other) && overlap(key, other);
        twice
            || match change {
                Change::Create(_) => {
                    stored.contains(key) || stored.iter().any(|other| excludes(&other))
                }
                Change::Delete(_) => !stored.contains(key),
            }
    };
    let mut refused: BTreeSet<K> = changes
        .iter()
        .filter(|change| own(change))
        .map(|change| change.key().clone())
        .collect();
    let mut sorted: Vec<&Change<K>> = changes
        .iter()
        .filter(|change| !refused.contains(change.key()))
        .collect();
    sorted.sort_by_key(|change| change.key());
    for change in &sorted {
        let excludes = |other: &&&Change<K>| {
            let key = other.key();
            let skipped = matches!(other, Change::Delete(_)) && skip.contains(key);
            key != change.key() && !skipped && !refused.contains(key) && overlap(change.key(), key)
        };
        if matches!(change, Change::Create(_)) && sorted.iter().any(|other| excludes(&other)) {
            refused.insert(change.key().clone());
        }
    }
    refused
}

fn kind<K>(conflict: &Conflict<K>) -> &'static str {
    match conflict {
        Conflict::Exists(_) => "exists",
        Conflict::Absent(_) => "absent",
        Conflict::Twice(_) => "twice",
        Conflict::Stored { .. } => "stored",
        Conflict::Touched { .. } => "touched",
    }
}

/// Runs generated batches over growing and shrinking sets, in both modes.
fn compare<K: Extent + Debug>(
    key: impl Fn(&mut Random) -> K,
    overlap: impl Fn(&K, &K) -> bool + Copy,
) {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut refusals = 0;
    let mut set = ConflictSet::<K>::default();
    for seed in 0..BATCHES {
        let mut random = Random(seed as u64);
        if seed % 50 == 0 {
            set = ConflictSet::default();
        }
        let stored = set.keys().to_vec();
        let any = |random: &mut Random| {
            if stored.is_empty() || random.once_in(8) {
                key(random)
            } else {
                stored[random.below(stored.len())].clone()
            }
        };
        let mut batch = Batch::new(Vec::new());
        while random.once_in(3) {
            batch.skip.insert(any(&mut random));
        }
        let deletions = random.below(3);
        batch
            .changes
            .extend((0..deletions).map(|_| Change::Delete(any(&mut random))));
        let creations = random.below(4);
        batch.changes.extend((0..creations).map(|_| {
            Change::Create(if random.once_in(12) {
                any(&mut random)
            } else {
                key(&mut random)
            })
        }));
        let mode = if random.once_in(2) {
            Mode::Atomic
        } else {
            Mode::PerItem
        };
        let expected = refused(&batch, &stored, overlap);
        let applied = set.apply(batch.clone(), mode);
        let keys: BTreeSet<K> = applied
            .refused
            .iter()
            .map(|conflict| conflict.key().clone())
            .collect();
        assert_eq!(keys, expected, "seed {seed}: {batch:?} over {stored:?}");
        assert!(
            applied
                .refused
                .is_sorted_by_key(|conflict| conflict.key().clone())
        );
        for conflict in &applied.refused {
            *kinds.entry(kind(conflict)).or_default() += 1;
            if let Conflict::Stored { key, with } | Conflict::Touched { key, with } = conflict {
                assert!(overlap(key, with), "seed {seed}: {conflict:?}");
            }
        }
        refusals += usize::from(!expected.is_empty());

        let mut model: BTreeSet<K> = stored.into_iter().collect();
        let stands = |change: &&Change<K>| !expected.contains(change.key());
        let made: Vec<_> = batch.changes.iter().filter(stands).collect();
        if !made.is_empty() && (mode == Mode::PerItem || expected.is_empty()) {
            model.retain(|key| !batch.skip.contains(key));
            made.iter().for_each(|change| match change {
                Change::Create(key) => _ = model.insert(key.clone()),
                Change::Delete(key) => _ = model.remove(key),
            });
            assert_eq!(applied.made, made.len(), "seed {seed}");
        } else {
            assert_eq!(applied.made, 0, "seed {seed}");
        }
        assert!(set.keys().iter().eq(&model), "seed {seed}: {batch:?}");
        for (place, one) in set.keys().iter().enumerate() {
            let clean = set.keys()[place + 1..]
                .iter()
                .all(|other| !overlap(one, other));
            assert!(clean, "seed {seed}: {:?}", set.keys());
        }
    }
    println!("{refusals} of {BATCHES} batches refused: {kinds:?}");
    assert!(
        (BATCHES * 3 / 10..=BATCHES * 7 / 10).contains(&refusals),
        "{refusals}"
    );
    assert_eq!(kinds.len(), 5, "{kinds:?}");
    assert!(
        kinds.values().all(|count| *count >= BATCHES / 100),
        "{kinds:?}"
    );
}

#[test]
fn ranges_are_judged_as_the_plain_rule_does() {
    let devices: [Arc<str>; 2] = ["disk0".into(), "net0".into()];
    let key = |random: &mut Random| {
        let start = random.below(250) as u64;
        let end = start + 1 + random.below(24) as u64;
        let pasid = [None, Some(0), Some(7)][random.below(3)];
        TrackedRange::new(&devices[random.below(2)], pasid, &(start..end)).expect("a range")
    };
    compare(key, |one, other| {
        let (a, b) = (one.addresses(), other.addresses());
        one.device() == other.device()
            && one.pasid() == other.pasid()
            && (a.start..a.end).any(|address| b.contains(&address))
    });
}

#[test]
fn names_are_judged_as_the_plain_rule_does() {
    let key = |random: &mut Random| {
        let depth = 1 + random.below(4);
        let parts: Vec<&str> = (0..depth)
            .map(|_| random.pick(&["a", "b", "c", "a-b", "a!", "ab", "é"]))
            .collect();
        parts.join("/").parse::<Name>().expect("well-formed")
    };
    compare(key, |one, other| {
        let (one, other) = (one.to_string(), other.to_string());
        let below = |name: &str, dir: &str| name.starts_with(&format!("{dir}/"));
        one == other || below(&one, &other) || below(&other, &one)
    });
}
