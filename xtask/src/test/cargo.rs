//! The parts that are cargo's: formatting, lints, documentation, builds, tests.

use anyhow::{Context, Result, bail, ensure};

use super::Options;
use super::promises::KeptTests;
use crate::process;
use crate::workspace::Workspace;

/// `cargo fmt --check`.
pub fn fmt(workspace: &Workspace, _options: &Options) -> Result<String> {
    component(workspace, "fmt", "rustfmt")?;
    process::stream(workspace.cargo().args(["fmt", "--all", "--check"]))
        .context("the sources are not formatted; run `cargo fmt --all`")?;
    Ok("formatted".into())
}

/// `cargo clippy`, where every warning is an error.
pub fn clippy(workspace: &Workspace, _options: &Options) -> Result<String> {
    component(workspace, "clippy", "clippy")?;
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    process::stream(workspace.cargo().args(arguments))?;
    // Debian's kernels have no iommufd, so that no test runs this code: it must compile at least.
    let iommufd = [
        "clippy",
        "-p",
        "driver",
        "--features",
        "iommufd",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    process::stream(workspace.cargo().args(iommufd))?;
    Ok("no warning".into())
}

/// `cargo doc`, where every warning is an error.
pub fn doc(workspace: &Workspace, _options: &Options) -> Result<String> {
    let mut command = workspace.cargo();
    process::stream(
        command
            .args(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )?;
    Ok("no warning".into())
}

/// `cargo build --release`.
pub fn build(workspace: &Workspace, _options: &Options) -> Result<String> {
    process::stream(workspace.cargo().args(["build", "--release"]))?;
    Ok("built".into())
}

/// All tests of the workspace, counted: an unexpected skip is a failure, and so is no test at all.
///
/// Only the conformance suite leaves tests out: pairs of a clause and a device that lacks its
/// facility, which it names with the reason, holds against its own list, and counts.
pub fn unit(workspace: &Workspace, _options: &Options) -> Result<String> {
    let mut command = workspace.cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    let (text, status) = process::tee(&mut command)?;
    KeptTests::keep(workspace, &text)?;
    let Counts {
        passed,
        failed,
        ignored,
    } = counts(&text);
    let shown = process::shown(&command);
    ensure!(
        status.success() && failed == 0,
        "`{shown}` ended with {status}; {passed} tests passed, {failed} failed"
    );
    ensure!(passed > 0, "`{shown}` ran no test");
    let known = not_applicable(&text);
    ensure!(
        ignored == known,
        "`{shown}` left {ignored} tests out, of which the conformance suite knows {known}"
    );
    Ok(format!("{passed} tests, {ignored} not applicable"))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// Adds up the lines `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn counts(text: &str) -> Counts {
    let mut counts = Counts::default();
    for line in text
        .lines()
        .filter(|line| line.starts_with("test result: "))
    {
        let words: Vec<&str> = line
            .split([' ', ';'])
            .filter(|word| !word.is_empty())
            .collect();
        for pair in words.windows(2) {
            let number = pair[0].parse().unwrap_or(0);
            match pair[1] {
                "passed" => counts.passed += number,
                "failed" => counts.failed += number,
                "ignored" => counts.ignored += number,
                _ => {}
            }
        }
    }
    counts
}

/// What the conformance suite counts: `370 passed, 0 failed, 28 not applicable`.
fn not_applicable(text: &str) -> u64 {
    let counts = text
        .lines()
        .filter_map(|line| line.strip_suffix(" not applicable")?.rsplit(' ').next());
    counts.filter_map(|count| count.parse::<u64>().ok()).sum()
}

/// Says how to get a part of the toolchain that is missing.
fn component(workspace: &Workspace, command: &str, name: &str) -> Result<()> {
    if process::capture(workspace.cargo().args([command, "--version"])).is_err() {
        bail!("`cargo {command}` does not run; get it with `rustup component add {name}`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_programs_are_added_up() {
        let text = "test a ... ok\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(
            counts(text),
            Counts {
                passed: 4,
                failed: 2,
                ignored: 1
            }
        );
    }

    #[test]
    fn the_conformance_suite_s_own_count_is_read() {
        let text = "without a case because not-observable    12\n\
            370 passed, 0 failed, 28 not applicable\n";
        assert_eq!(not_applicable(text), 28);
    }
}
