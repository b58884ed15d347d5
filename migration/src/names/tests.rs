use super::*;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;

fn name(text: &str) -> Name {
    text.parse().expect("well-formed")
}

fn create(text: &str) -> Change<Name> {
    Change::Create(name(text))
}

fn delete(text: &str) -> Change<Name> {
    Change::Delete(name(text))
}

fn store(texts: &[&str]) -> ConflictSet<Name> {
    let mut set = ConflictSet::default();
    let changes = texts.iter().map(|text| create(text)).collect();
    let applied = set.apply(Batch::new(changes), Mode::Atomic);
    assert_eq!(applied.refused, []);
    set
}

/// The names of the changes that are refused.
fn refused(set: &ConflictSet<Name>, changes: impl Into<Vec<Change<Name>>>) -> Vec<String> {
    let refused = set.judge(&Batch::new(changes.into()));
    refused
        .iter()
        .map(|conflict| conflict.key().to_string())
        .collect()
}

#[test]
fn a_name_is_an_object_or_a_directory() {
    let set = store(&["a/b"]);
    assert_eq!(refused(&set, [create("a/b/c")]), ["a/b/c"]);
    assert_eq!(refused(&set, [create("a")]), ["a"]);
    assert_eq!(refused(&set, [create("a/b")]), ["a/b"]);
    assert_eq!(refused(&set, [create("x"), create("x/y")]), ["x"]);
    assert_eq!(refused(&set, [create("x/y"), create("x")]), ["x"]);
    assert_eq!(refused(&set, [delete("a/c")]), ["a/c"]);
    assert_eq!(
        refused(&set, [create("a/c"), create("ab"), delete("a/b")]),
        [""; 0]
    );
}

#[test]
fn two_names_under_one_bad_prefix_are_both_refused() {
    // G1: forgetting that a prefix was bad let the second one through.
    let set = store(&["a/b"]);
    let changes = [
        create("a/b/c"),
        create("a/b/d"),
        create("a/b/d/e"),
        create("k"),
    ];
    assert_eq!(refused(&set, changes), ["a/b/c", "a/b/d", "a/b/d/e"]);
}

#[test]
fn octets_are_compared_without_a_sign() {
    // G2: 0xee beside 'z'.
    let octets = |octets: &[u8]| Name::new(octets).expect("well-formed");
    assert!(octets(b"z") < octets(b"\xee"));
    let mut set = ConflictSet::default();
    let changes =
        [&b"z"[..], b"\xee/a", b"\xf0\x9f\x8c\x8a"].map(|text| Change::Create(octets(text)));
    let applied = set.apply(Batch::new(changes.into()), Mode::Atomic);
    assert_eq!(applied.made, 3);
    let changes =
        [&b"\xee"[..], b"\xf0\x9f\x8c\x8a/x", b"\xff"].map(|text| Change::Create(octets(text)));
    let refused = set.judge(&Batch::new(changes.to_vec()));
    let keys: Vec<_> = refused
        .iter()
        .map(|conflict| conflict.key().octets())
        .collect();
    assert_eq!(keys, [&b"\xee"[..], b"\xf0\x9f\x8c\x8a/x"]);
    assert_eq!(
        refused[0].to_string(),
        "'\\xee' is refused: '\\xee/a' exists and excludes it"
    );
}

#[test]
fn a_deletion_counts_in_its_batch_unless_it_is_skipped() {
    // G3.
    let mut set = store(&["a/b", "c"]);
    let changes = vec![delete("a/b"), create("a"), create("a/b/x")];
    assert_eq!(refused(&set, changes.clone()), ["a", "a/b/x"]);
    let mut batch = Batch::new(vec![delete("a/b"), create("a/b/x")]);
    batch.skip = BTreeSet::from([name("a/b")]);
    assert_eq!(set.judge(&batch), []);
    // Without the deletion it is the same: what is skipped is replaced.
    batch.changes = vec![create("a")];
    assert_eq!(set.apply(batch, Mode::Atomic).made, 1);
    assert_eq!(set.keys(), [name("a"), name("c")]);
    // A creation cannot be skipped: both would be there.
    let mut batch = Batch::new(vec![create("m"), create("m/n")]);
    batch.skip = BTreeSet::from([name("m")]);
    assert_eq!(set.judge(&batch).len(), 1);
}

#[test]
fn what_sorts_before_the_slash_is_no_directory() {
    // G4: as octets, "a-b" is between "a" and "a/b".
    let set = store(&["a/b"]);
    assert_eq!(refused(&set, [create("a-b"), create("ab")]), [""; 0]);
    assert_eq!(refused(&store(&[]), [create("a"), create("a-b")]), [""; 0]);
    assert_eq!(refused(&store(&["a", "a-b"]), [create("a/b")]), ["a/b"]);
}

#[test]
fn one_name_twice_is_refused_whatever_is_asked_for_it() {
    // G5.
    let set = store(&["a"]);
    assert_eq!(refused(&set, [create("q"), create("q")]), ["q"]);
    assert_eq!(refused(&set, [delete("a"), create("a")]), ["a"]);
}

#[test]
fn per_item_what_can_be_applied_is() {
    // As git --batch-updates was seen to decide.
    let mut set = store(&["a/b"]);
    let changes = ["k1", "a/b/c", "a", "m", "m/n"].map(create);
    let applied = set.apply(Batch::new(changes.to_vec()), Mode::PerItem);
    let texts: Vec<_> = applied
        .refused
        .iter()
        .map(|conflict| conflict.to_string())
        .collect();
    assert_eq!(
        texts,
        [
            "'a' is refused: 'a/b' exists and excludes it",
            "'a/b/c' is refused: 'a/b' exists and excludes it",
            "'m' is refused: 'm/n' is in the same batch and excludes it",
        ]
    );
    assert_eq!(applied.made, 2);
    assert_eq!(set.keys(), [name("a/b"), name("k1"), name("m/n")]);
    let applied = set.apply(Batch::new(vec![create("z"), delete("y")]), Mode::Atomic);
    assert_eq!(
        (applied.made, applied.refused),
        (0, vec![Conflict::Absent(name("y"))])
    );
    assert!(!set.keys().contains(&name("z")), "all or nothing");
}

#[test]
fn seeks_find_the_same_from_wherever_they_start() {
    // G6: from every place to every place, the end included.
    let texts: Vec<String> = (0..40).map(|n| format!("n{:02}", 2 * n)).collect();
    let set = store(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    for from in 0..=81 {
        for to in 0..=81 {
            let mut cursor = set.cursor();
            let seek = |cursor: &mut SetCursor<'_, Name>, n: usize| {
                let Ok(()) = cursor.seek(&name(&format!("n{n:02}")));
            };
            seek(&mut cursor, from);
            seek(&mut cursor, to);
            let mut fresh = set.cursor();
            seek(&mut fresh, to);
            assert_eq!(cursor.at(), fresh.at(), "{from} to {to}");
            assert_eq!(cursor.before(), fresh.before(), "{from} to {to}");
            assert_eq!(cursor.at(), set.keys().get(to.div_ceil(2)));
        }
    }
    let mut cursor = set.cursor();
    (0..100).for_each(|_| match cursor.step() {
        Ok(()) => {}
    });
    assert_eq!((cursor.at(), cursor.before()), (None, set.keys().last()));
}

/// Counts what it is asked for, and fails when told to.
struct Counting<'a> {
    inner: SetCursor<'a, Name>,
    seeks: &'a Cell<usize>,
    fail_at: usize,
}

impl Cursor for Counting<'_> {
    type Key = Name;
    type Error = &'static str;

    fn seek(&mut self, key: &Name) -> Result<(), &'static str> {
        self.seeks.set(self.seeks.get() + 1);
        if self.seeks.get() == self.fail_at {
            return Err("the disk is gone");
        }
        let Ok(()) = self.inner.seek(key);
        Ok(())
    }

    fn step(&mut self) -> Result<(), &'static str> {
        let Ok(()) = self.inner.step();
        Ok(())
    }

    fn before(&self) -> Option<&Name> {
        self.inner.before()
    }

    fn at(&self) -> Option<&Name> {
        self.inner.at()
    }
}

#[test]
fn an_error_of_the_store_ends_the_whole_batch() {
    // G7.
    let set = store(&["a", "b", "c"]);
    let seeks = Cell::new(0);
    let mut cursor = Counting {
        inner: set.cursor(),
        seeks: &seeks,
        fail_at: 2,
    };
    let batch = Batch::new(["a/x", "b/x", "c/x"].map(create).to_vec());
    assert_eq!(judge(&batch, &mut cursor), Err("the disk is gone"));
}

#[test]
fn names_of_one_gap_cost_one_seek() {
    let set = store(&["vm/1/epoch/1", "vm/9/epoch/1"]);
    let seeks = Cell::new(0);
    let mut cursor = Counting {
        inner: set.cursor(),
        seeks: &seeks,
        fail_at: 0,
    };
    let changes = (0..1000)
        .map(|n| create(&format!("vm/7/disk0/epoch/{n}")))
        .collect();
    assert_eq!(judge(&Batch::new(changes), &mut cursor), Ok(vec![]));
    assert_eq!(seeks.get(), 1);
}

#[test]
fn malformed_names_are_told_apart() {
    let cases: [(&[u8], Malformed); 17] = [
        (b"", Malformed::EmptyComponent),
        (b"/a", Malformed::EmptyComponent),
        (b"a/", Malformed::EmptyComponent),
        (b"a//b", Malformed::EmptyComponent),
        (b"a/.b", Malformed::LeadingDot),
        (b"a.lock/b", Malformed::LockSuffix),
        (b"z.lock", Malformed::LockSuffix),
        (b"x..y", Malformed::TwoDots),
        (b"a.", Malformed::TrailingDot),
        (b"a@{b", Malformed::AtBrace),
        (b"@", Malformed::At),
        (b"a b", Malformed::Octet(b' ')),
        (b"a\0b", Malformed::Octet(0)),
        (b"a\x7f", Malformed::Octet(0x7f)),
        (b"a\\b", Malformed::Octet(b'\\')),
        (b"a:b", Malformed::Octet(b':')),
        (
            &[b'a'; NAME_OCTETS + 1],
            Malformed::TooLong(NAME_OCTETS + 1),
        ),
    ];
    for (octets, expected) in cases {
        assert_eq!(
            Name::new(octets),
            Err(expected),
            "{}",
            octets.escape_ascii()
        );
    }
    for octets in [
        &b"a./b"[..],
        b"@/a",
        b"a.lockx",
        b"a@",
        b"\xff\x80",
        b"{a}",
        &[b'a'; NAME_OCTETS],
    ] {
        let name = Name::new(octets).expect("well-formed");
        assert_eq!(name.octets(), octets);
    }
}

#[test]
fn a_range_that_is_none_is_refused() {
    let device: Arc<str> = "disk0".into();
    let range = |pasid, start, end| TrackedRange::new(&device, pasid, &(start..end));
    assert_eq!(
        range(None, 5, 5),
        Err(MalformedRange::Empty { start: 5, end: 5 })
    );
    assert_eq!(
        range(Some(1 << 20), 0, 5),
        Err(MalformedRange::Pasid(1 << 20))
    );
    let all = range(Some(0xf_ffff), 0, u64::MAX).expect("a range");
    assert_eq!(
        all.to_string(),
        "disk0 PASID 0xfffff 0x0..0xffffffffffffffff"
    );
    assert_eq!(
        (all.device(), all.pasid(), all.addresses()),
        ("disk0", Some(0xf_ffff), 0..u64::MAX)
    );
}
