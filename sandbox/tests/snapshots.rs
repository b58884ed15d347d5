//! The lists as they are in force, all that they include taken in, against those that were looked at
//! when they were last changed. `TIDEMARK_SNAPSHOTS=write` writes them anew.

use sandbox::Kind;
use std::fs;
use std::path::Path;

#[test]
fn the_lists_are_those_that_were_looked_at() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let write = std::env::var("TIDEMARK_SNAPSHOTS").is_ok_and(|word| word == "write");
    let mut differ = Vec::new();
    for kind in Kind::ALL {
        let list = kind.profile().unwrap().to_string();
        let path = folder.join(kind.name()).with_extension("txt");
        if write {
            fs::write(&path, &list).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        let more = list
            .lines()
            .filter(|line| !kept.lines().any(|l| l == *line));
        let less = kept
            .lines()
            .filter(|line| !list.lines().any(|l| l == *line));
        let more = more.map(|line| format!("{} now has `{line}`", kind.name()));
        let less = less.map(|line| format!("{} no longer has `{line}`", kind.name()));
        differ.extend(more.chain(less));
    }
    assert!(
        differ.is_empty(),
        "{differ:#?}\nIf that is meant, write them anew with TIDEMARK_SNAPSHOTS=write, and say why."
    );
}
