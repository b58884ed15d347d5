//! The probes that the binaries carry are those that the book names, with as many arguments.

use object::{Object, ObjectSection};
use std::collections::{BTreeMap, BTreeSet};

/// Number of arguments by name.
type Probes = BTreeMap<String, usize>;

/// What the table in the book says.
fn documented() -> Probes {
    let page = include_str!("../../docs/src/probes.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let probes = rows.map(|row| {
        let (name, rest) = row.split_once("` | ").unwrap();
        let (arguments, _) = rest.split_once(" | ").unwrap();
        (name.to_owned(), arguments.split(", ").count())
    });
    probes.collect()
}

fn word(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes.try_into().unwrap())
        .try_into()
        .unwrap()
}

/// Reads SystemTap's notes: three sizes, an owner, and a descriptor of three addresses and three
/// strings. A probe that was inlined has several notes, which must agree.
fn carried(binary: &str) -> Probes {
    let bytes = std::fs::read(binary).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let section = file.section_by_name(".note.stapsdt");
    let notes = section.expect("no probes in the binary").data().unwrap();
    let mut probes = Probes::new();
    let mut rest = notes;
    while !rest.is_empty() {
        let (owner, length, kind) = (word(&rest[..4]), word(&rest[4..8]), word(&rest[8..12]));
        assert_eq!((&rest[12..12 + owner], kind), (&b"stapsdt\0"[..], 3));
        let start = 12 + owner.next_multiple_of(4);
        // Location, base, semaphore.
        let strings = &rest[start + 24..start + length];
        let mut strings = strings.split(|byte| *byte == 0);
        let mut next = || str::from_utf8(strings.next().unwrap()).unwrap();
        assert_eq!(next(), "tidemark");
        let name = next().to_owned();
        let arguments = next().split_whitespace().count();
        assert_eq!(*probes.entry(name).or_insert(arguments), arguments);
        rest = &rest[start + length.next_multiple_of(4)..];
    }
    probes
}

#[test]
fn the_binary_carries_what_the_book_names() {
    let (documented, carried) = (documented(), carried(env!("CARGO_BIN_EXE_tidemark")));
    assert!(documented.len() >= 6, "{documented:?}");
    assert_eq!(carried, documented);
}

/// A vhost-user backend has queues and marks, and nothing else to tell.
#[test]
fn the_backend_carries_its_part() {
    let carried = carried(env!("CARGO_BIN_EXE_tidemark-vhost-user-blk"));
    let documented = documented();
    for (name, arguments) in &carried {
        assert_eq!(documented.get(name), Some(arguments), "{name}");
    }
    let names: BTreeSet<_> = carried.keys().map(String::as_str).collect();
    for name in ["queue_pop", "queue_push", "mark"] {
        assert!(names.contains(name), "{names:?}");
    }
}
