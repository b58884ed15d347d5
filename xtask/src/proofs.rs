//! `cargo xtask proofs`: every interleaving of the models, and AddressSanitizer over what is unsafe.
//!
//! Each model that holds is explored to its end within its bounds, and each wrong variant must fail. The
//! sanitizer first has to find three planted bugs; then it may find nothing.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use crate::figures;
use crate::process;
use crate::workspace::Workspace;

/// The programs that hold the models.
const MODELS: [&str; 3] = ["loom", "loom_records", "loom_moves"];
/// The crates that hold the unsafe modules, the rings and the front doors.
const SANITIZED: [&str; 2] = ["device", "driver"];
/// Sanitizers need the target named, or build scripts and procedural macros get them too.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Bugs in `driver/src/memory/raw.rs`, and what the sanitizer calls them.
const PLANTED: [(&str, &str); 3] = [
    ("out_of_bounds", "heap-buffer-overflow"),
    ("use_after_free", "heap-use-after-free"),
    ("use_after_unmap", "SEGV on unknown address"),
];

/// A model, as its program told of it.
#[derive(Debug, PartialEq, Serialize)]
struct Model {
    program: String,
    name: String,
    /// Whether it holds in all executions; else it failed after so many, as it must.
    holds: bool,
    executions: u64,
}

/// Both.
pub fn run(workspace: &Workspace) -> Result<()> {
    let (models, figures) = models(workspace)?;
    let sanitized = sanitize(workspace)?;
    println!("\n{}", table(&models));
    figures::keep(
        workspace,
        "proofs",
        &json!({"models": figures, "sanitizer": sanitized}),
    )
}

/// The models alone, which take seconds: the sum of what they did, in words.
pub fn interleavings(workspace: &Workspace) -> Result<String> {
    let (models, figures) = models(workspace)?;
    figures::keep(workspace, "models", &figures)?;
    let executions: u64 = models.iter().map(|model| model.executions).sum();
    let holding = models.iter().filter(|model| model.holds).count();
    Ok(format!(
        "{holding} models hold, {} wrong ones fail, {executions} executions",
        models.len() - holding
    ))
}

fn models(workspace: &Workspace) -> Result<(Vec<Model>, Value)> {
    let mut models = Vec::new();
    for program in MODELS {
        let mut command = workspace.cargo();
        command.args(["test", "--workspace", "--test", program, "--"]);
        command.args(["--nocapture", "--test-threads=1"]);
        let (text, status) = process::tee(&mut command)?;
        ensure!(
            status.success(),
            "{program}: a model does not do what it must"
        );
        let before = models.len();
        models.extend(text.lines().filter_map(|line| model(program, line)));
        let new = models.get(before..).unwrap_or_default();
        for holds in [true, false] {
            ensure!(
                new.iter().any(|model| model.holds == holds),
                "{program} told of no model that {}",
                if holds { "holds" } else { "fails" }
            );
        }
    }
    let figures = serde_json::to_value(&models)?;
    Ok((models, figures))
}

/// A line `proof holds 79 two bursts of one page`. libtest may have begun the line.
fn model(program: &str, line: &str) -> Option<Model> {
    let (_, told) = line.split_once("proof ")?;
    let mut words = told.splitn(3, ' ');
    let holds = match words.next()? {
        "holds" => true,
        "fails" => false,
        _ => return None,
    };
    Some(Model {
        program: program.to_owned(),
        holds,
        executions: words.next()?.parse().ok()?,
        name: words.next()?.to_owned(),
    })
}

fn table(models: &[Model]) -> String {
    let mut text = String::from("| model | outcome | executions |\n|---|---|---|\n");
    for model in models {
        let outcome = if model.holds {
            "holds in all"
        } else {
            "fails, as it must, after"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {outcome} | {} |",
            model.name, model.executions
        );
    }
    text
}

/// A cargo command that builds with the sanitizer, in a folder of its own.
fn sanitized(workspace: &Workspace) -> std::process::Command {
    let mut command = workspace.cargo();
    command
        .env("CARGO_TARGET_DIR", workspace.target().join("sanitizer"))
        // The sanitizer is not stable, the compiler is: this lets it take the flag.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        // What a program still holds at its end is not what is looked for.
        .env("ASAN_OPTIONS", "detect_leaks=0");
    command
}

fn sanitize(workspace: &Workspace) -> Result<Value> {
    for (bug, called) in PLANTED {
        planted(workspace, bug, called)?;
    }
    let mut command = sanitized(workspace);
    command.args(["test", "--lib", "--target", TARGET]);
    for package in SANITIZED {
        command.args(["-p", package]);
    }
    let (text, status) = process::tee(&mut command)?;
    ensure!(
        status.success(),
        "AddressSanitizer found something, or a test failed"
    );
    let tests: u64 = text.lines().filter_map(passed).sum();
    ensure!(tests > 0, "no test ran under AddressSanitizer");
    println!(
        "AddressSanitizer: {tests} tests, nothing found; {} planted bugs found",
        PLANTED.len()
    );
    Ok(json!({
        "sanitizer": "address",
        "packages": SANITIZED,
        "tests": tests,
        "found": 0,
        "planted": PLANTED.map(|(bug, _)| bug),
    }))
}

/// The tests of a line `test result: ok. 300 passed; …`.
fn passed(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("test result: ok. ")?;
    rest.split(' ').next()?.parse().ok()
}

/// One bug, which must be found. Only the crate that has it is built again.
fn planted(workspace: &Workspace, bug: &str, called: &str) -> Result<()> {
    let mut build = sanitized(workspace);
    build.args(["rustc", "-p", "driver", "--lib", "--profile", "test"]);
    build.args(["--target", TARGET, "--message-format", "json"]);
    build.args(["--", "--cfg", "planted"]);
    let messages = process::capture(&mut build)?;
    let program = messages.lines().rev().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(str::to_owned)
    });
    let program = program.context("cargo named no test program of `driver`")?;
    let output = std::process::Command::new(&program)
        .args(["--exact", &format!("memory::raw::planted::{bug}")])
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .output()
        .with_context(|| format!("{program} does not start"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success()
        || !said.contains("ERROR: AddressSanitizer")
        || !said.contains(called)
    {
        bail!(
            "the planted bug `{bug}` was not found as {called}: {}\n{}",
            output.status,
            process::tail(&said)
        );
    }
    println!("AddressSanitizer: planted {bug}: found ({called})");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_read_from_what_their_programs_say() {
        let told = "test a ... proof fails 4 mark first";
        let expected = Model {
            program: "loom".to_owned(),
            name: "mark first".to_owned(),
            holds: false,
            executions: 4,
        };
        assert_eq!(model("loom", told), Some(expected));
        assert_eq!(model("loom", "test a ... ok"), None);
        assert_eq!(model("loom", "proof holds many"), None);
    }

    #[test]
    fn only_good_results_count() {
        assert_eq!(passed("test result: ok. 12 passed; 0 failed;"), Some(12));
        assert_eq!(passed("test result: FAILED. 12 passed; 1 failed;"), None);
    }
}
