//! The page of bug classes says nothing that is not so: its tests are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(root().join(path)).ok()
}

/// The tests that a page names, as file and function.
fn named(page: &str) -> BTreeSet<(String, String)> {
    let quoted = page.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|text| text.split_once(".rs::"))
        .map(|(file, function)| (format!("{file}.rs"), function.to_owned()))
        .collect()
}

/// What is wrong with a test that is named; nothing if it is there.
fn objection(file: &str, function: &str, read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let Some(source) = read(file) else {
        return Some(format!("{file} is not there"));
    };
    let head = format!("fn {function}(");
    let Some(at) = source.find(&head) else {
        return Some(format!("{file} has no function {function}"));
    };
    // Whatever stands between the last item and the function: attributes and comments.
    let before = source[..at].rsplit("\n\n").next().unwrap_or_default();
    let test = before.contains("#[test]");
    (!test).then(|| format!("{function} in {file} is no test"))
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let page = read("docs/src/bug-classes.md").expect("the page");
    let tests = named(&page);
    assert!(tests.len() > 40, "{} tests", tests.len());
    let objections: Vec<_> = tests
        .iter()
        .filter_map(|(file, function)| objection(file, function, read))
        .collect();
    assert!(objections.is_empty(), "{}", objections.join("; "));
}

#[test]
fn a_test_that_is_gone_or_none_is_told() {
    let page = "`a/b.rs::there`, `a/b.rs::gone`, `a/c.rs::there`, `a/b.rs::helper`, `other`";
    let source = "fn helper() {}\n\n#[test]\nfn there() {}\n";
    let read = |path: &str| (path == "a/b.rs").then(|| source.to_owned());
    let told: Vec<_> = named(page)
        .iter()
        .filter_map(|(file, function)| objection(file, function, read))
        .collect();
    assert_eq!(
        told,
        [
            "a/b.rs has no function gone",
            "helper in a/b.rs is no test",
            "a/c.rs is not there",
        ]
    );
}

/// Every row of a table has a class, its cases and a test.
#[test]
fn every_row_has_a_test() {
    let page = read("docs/src/bug-classes.md").expect("the page");
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let rows: Vec<_> = rows.filter(|row| !row.starts_with("| Class ")).collect();
    assert!(rows.len() > 30, "{} rows", rows.len());
    let above = |row: &str| row.ends_with("| As above |");
    let bare = rows.iter().find(|row| named(row).is_empty() && !above(row));
    assert_eq!(bare, None, "a row without a test");
}

/// A crate of the lock file is at least as new as the release that mended it.
fn is_past(lock: &str, name: &str, fixed: [u64; 3]) -> Option<bool> {
    let mut lines = lock.lines();
    lines.find(|line| *line == format!("name = \"{name}\""))?;
    let version = lines.next()?.split('"').nth(1)?;
    let numbers: Vec<u64> = version.split('.').filter_map(|n| n.parse().ok()).collect();
    Some(numbers.as_slice() >= fixed.as_slice())
}

#[test]
fn the_crates_are_past_their_advisories() {
    let lock = read("Cargo.lock").expect("the lock file");
    // CVE-2023-41051 and RUSTSEC-2020-0157 of vm-memory, CVE-2023-50711 of vmm-sys-util.
    for (name, fixed) in [("vm-memory", [0, 12, 2]), ("vmm-sys-util", [0, 12, 0])] {
        assert_eq!(is_past(&lock, name, fixed), Some(true), "{name}");
    }
    let old = "name = \"vm-memory\"\nversion = \"0.12.1\"\n";
    assert_eq!(is_past(old, "vm-memory", [0, 12, 2]), Some(false));
    assert_eq!(is_past(old, "vmm-sys-util", [0, 12, 0]), None);
}
