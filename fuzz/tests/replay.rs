//! Kept inputs as ordinary tests, and for each plant the input that finds it.
//!
//! `corpus/TARGET/` holds inputs that reach what others do not, and every input that ever made an
//! oracle speak, which it must not do again. `plants/TARGET/PLANT` is an input that a fuzzer found:
//! with the plant its oracle must speak, without it none may.

use std::fs;
use std::path::{Path, PathBuf};

use fuzz::{Plant, TARGETS, Target, oracle};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let mut trials = vec![Trial::test("every_target_has_inputs", complete)];
    for target in TARGETS {
        for file in files(&folder("corpus", target)) {
            let name = format!("{}::{}", target.name, shown(&file));
            trials.push(Trial::test(name, move || replay(target, &file, None)));
        }
        for &plant in target.plants {
            let name = format!("{}::finds_planted_{}", target.name, plant.name());
            trials.push(Trial::test(name, move || found(target, plant)));
        }
    }
    let mut arguments = Arguments::from_args();
    // Oracles count the descriptors and the memory of this process: one input at a time.
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, trials).exit();
}

fn folder(kind: &str, target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(kind)
        .join(target.name)
}

fn shown(file: &Path) -> String {
    file.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The files of a folder, in the order of their names; none if there is no folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn complete() -> Result<(), Failed> {
    for target in TARGETS {
        if files(&folder("corpus", target)).is_empty() {
            return Err(format!("no inputs are kept for {}", target.name).into());
        }
    }
    Ok(())
}

fn replay(target: &Target, file: &Path, plant: Option<Plant>) -> Result<(), Failed> {
    let data = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let run = target.run;
    oracle::judge(move || run(&data, plant)).map_err(Failed::from)
}

/// Runs of an input with its plant. A worker that has not come to the request when a session ends has
/// written nothing that could be found.
const RUNS: usize = 20;

/// With the plant its oracle speaks; without it the same input is nothing.
fn found(target: &Target, plant: Plant) -> Result<(), Failed> {
    let file = folder("plants", target).join(plant.name());
    replay(target, &file, None)?;
    let mut runs = (0..RUNS).map(|_| replay(target, &file, Some(plant)));
    let Some(Err(said)) = runs.find(Result::is_err) else {
        return Err(format!("the planted bug was not found in {RUNS} runs").into());
    };
    let said = said.message().unwrap_or_default().to_owned();
    let found = said.contains(plant.verdict());
    found
        .then_some(())
        .ok_or_else(|| format!("another oracle spoke: {said}").into())
}
