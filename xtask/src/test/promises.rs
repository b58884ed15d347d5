//! The promises of the book: each names what enforces it, which must exist, have run here and
//! have passed.
//!
//! Runs nothing but lists: the part `unit` leaves what its tests said, and each part that passes leaves
//! a mark. So this part comes after them.

mod page;
mod ran;

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};

use super::{Options, PARTS};
use crate::workspace::Workspace;
use page::{Enforcer, Promise};
pub use ran::{KeptTests, mark, unmark};
use ran::{Ran, Tests};

/// The page.
const PAGE: &str = "docs/src/promises.md";

/// Holds every promise against what has run.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let path = workspace.root().join(PAGE);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {PAGE}"))?;
    let promises = page::read(&text).with_context(|| PAGE.to_owned())?;
    let tests = Tests::list(workspace)?;
    let ran = Ran::read(workspace)?;
    let parts: BTreeSet<&str> = PARTS.iter().map(|part| part.name).collect();
    let broken = judge(&promises, &parts, &tests, &ran);
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    let count = |of: fn(&Enforcer) -> bool| {
        let all = promises.iter().flat_map(|promise| &promise.enforcers);
        all.filter(|enforcer| of(enforcer))
            .collect::<BTreeSet<_>>()
            .len()
    };
    Ok(format!(
        "{} promises, enforced by {} tests and {} parts, all of which ran and passed",
        promises.len(),
        count(|enforcer| matches!(enforcer, Enforcer::Test { .. })),
        count(|enforcer| matches!(enforcer, Enforcer::Part(_)))
    ))
}

/// What is wrong, a line for each promise and enforcer.
fn judge(promises: &[Promise], parts: &BTreeSet<&str>, tests: &Tests, ran: &Ran) -> Vec<String> {
    let mut broken = Vec::new();
    for Promise {
        number, enforcers, ..
    } in promises
    {
        for enforcer in enforcers {
            let wrong = match enforcer {
                Enforcer::Part(name) if !parts.contains(name.as_str()) => {
                    Some("there is no such part".to_owned())
                }
                Enforcer::Part(name) if ran.part(name) => None,
                Enforcer::Part(name) => Some(format!(
                    "it has not passed here; run `cargo xtask test --only {name}`"
                )),
                Enforcer::Test { program, name } => match tests.programs_with(program, name) {
                    None => Some("there is no such test".to_owned()),
                    Some(programs) if ran.passes(name) >= programs => None,
                    Some(_) => Some(
                        "it has not run and passed here; run `cargo xtask test --only unit`"
                            .to_owned(),
                    ),
                },
            };
            broken.extend(wrong.map(|wrong| format!("promise {number}: `{enforcer}`: {wrong}")));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# Promises\n\n### 1. One\n\nWords.\n\n\
        - `cargo test -p vm --test moves random_bits`\n- `cargo xtask test --only live`\n";

    fn wrong(
        text: &str,
        listed: &[(&str, &str, &str)],
        said: &str,
        passed: &[&str],
    ) -> Vec<String> {
        let parts = BTreeSet::from(["live", "killed"]);
        judge(
            &page::read(text).expect("a page"),
            &parts,
            &Tests::of(listed),
            &Ran::of(said, passed),
        )
    }

    const LISTED: [(&str, &str, &str); 1] = [("vm", "--test moves", "random_bits")];
    const SAID: &str = "test random_bits ... ok\n";

    #[test]
    fn what_exists_and_ran_is_enforced() {
        assert_eq!(wrong(GOOD, &LISTED, SAID, &["live"]), [""; 0]);
    }

    #[test]
    fn a_missing_test_and_a_missing_part_fail() {
        let text = GOOD
            .replace("random_bits", "random_bats")
            .replace("live", "alive");
        let wrong = wrong(&text, &LISTED, SAID, &["live"]);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].contains("random_bats`: there is no such test"));
        assert!(wrong[1].contains("alive`: there is no such part"));
    }

    #[test]
    fn what_never_ran_or_failed_fails() {
        let never = wrong(GOOD, &LISTED, "test others ... ok\n", &[]);
        assert_eq!(never.len(), 2, "{never:?}");
        let failed = wrong(GOOD, &LISTED, "test random_bits ... FAILED\n", &["live"]);
        assert_eq!(failed.len(), 1, "{failed:?}");
    }

    #[test]
    fn of_two_programs_with_a_test_of_that_name_both_must_have_run() {
        let two = [
            ("vm", "--test moves", "random_bits"),
            ("vm", "--lib", "random_bits"),
        ];
        assert_eq!(wrong(GOOD, &two, SAID, &["live"]).len(), 1);
        assert_eq!(wrong(GOOD, &two, &SAID.repeat(2), &["live"]), [""; 0]);
    }

    #[test]
    fn the_books_own_page_is_one() {
        let text = include_str!("../../../docs/src/promises.md");
        let promises = page::read(text).expect("the page is well formed");
        assert!(promises.len() > 20);
        let names: BTreeSet<&str> = PARTS.iter().map(|part| part.name).collect();
        let parts = promises.iter().flat_map(|promise| &promise.enforcers);
        for enforcer in parts {
            if let Enforcer::Part(name) = enforcer {
                assert!(names.contains(name.as_str()), "{name} is no part");
            }
        }
    }
}
