//! Runs every case for every clause that it judges, on the emulated disk, on the emulated source of
//! entropy and on the suite's own disk with zones, and checks the registry.
//!
//! `cargo test -p spec-tests --test conformance -- SUS-` runs what matches; the word in brackets
//! says with what authority a clause stands.

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use spec_tests::clause::Registry;
use spec_tests::clause::coverage::Coverage;
use spec_tests::report::{Entry, Outcome, explain};
use spec_tests::run::{Attempt, judge};
use spec_tests::target::{Emulated, Medium, Target};
use spec_tests::{cases, judge::judged};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// What none of our devices has, so that its cases run on others' devices and on mutants only.
/// A case that is not here and runs on no device is a failure, and so is one that is here
/// and runs.
const NOWHERE: [&str; 0] = [];

/// Whether each case was applicable to at least one device.
type Ran = Arc<Mutex<BTreeMap<&'static str, bool>>>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let registry = match Registry::load() {
        Ok(registry) => Arc::new(registry),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let coverage = Coverage::new(&registry, cases::all(), judged());
    let account = coverage.to_string();
    let mut trials = vec![
        Trial::test("registry", move || match coverage.wrong.as_slice() {
            [] => Ok(()),
            wrong => Err(Failed::from(wrong.join("\n"))),
        }),
        Trial::test("explanations", {
            let registry = Arc::clone(&registry);
            move || explanations(&registry)
        }),
    ];
    let ran = Ran::default();
    let disk = Emulated::default();
    trials.extend(pairs(&registry, &ran, Arc::new(disk), ""));
    // What needs no particular device is judged on the others as well.
    let entropy = Emulated {
        medium: Medium::Entropy,
        ..disk
    };
    trials.extend(pairs(&registry, &ran, Arc::new(entropy), " (entropy)"));
    let zoned = Emulated {
        medium: Medium::Zoned,
        ..disk
    };
    trials.extend(pairs(&registry, &ran, Arc::new(zoned), " (zoned)"));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let whole = arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.ignored;
    if !arguments.list {
        println!("{account}");
        println!(
            "{} passed, {} failed, {} not applicable",
            conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored
        );
    }
    let unexpected = unexpected(&ran.lock().unwrap_or_else(PoisonError::into_inner));
    if whole && !arguments.list && !unexpected.is_empty() {
        eprintln!("{}", unexpected.join("\n"));
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// What ran and was not to, or was to and did not.
fn unexpected(ran: &BTreeMap<&str, bool>) -> Vec<String> {
    let wrong = ran
        .iter()
        .filter(|(name, ran)| NOWHERE.contains(name) == **ran);
    wrong
        .map(|(name, ran)| match ran {
            true => format!("{name} ran: take it from the list of what no device has"),
            false => format!("{name} ran on no device and is not on the list of such cases"),
        })
        .collect()
}

/// One trial for every case and clause that it judges.
fn pairs(registry: &Arc<Registry>, ran: &Ran, target: Arc<dyn Target>, suffix: &str) -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in cases::all() {
        for id in case.clauses {
            let Some(clause) = registry.get(id).cloned() else {
                continue;
            };
            let target = Arc::clone(&target);
            let ran = Arc::clone(ran);
            let kind = clause.provenance.name();
            let trial = Trial::ignorable_test(format!("{id} {}{suffix}", case.name), move || {
                let (attempt, finding): (Attempt, _) = judge(&target, case, &clause);
                let entry = Entry::new(&clause, case, Some(&attempt), finding);
                let mut ran = ran.lock().unwrap_or_else(PoisonError::into_inner);
                *ran.entry(case.name).or_default() |= entry.outcome != Outcome::NotApplicable;
                drop(ran);
                match entry.outcome {
                    Outcome::Pass => Ok(Completion::Completed),
                    outcome if outcome.is_failure() => Err(Failed::from(entry.at_length())),
                    _ => Ok(Completion::ignored_with(entry.note)),
                }
            });
            trials.push(trial.with_kind(kind));
        }
    }
    trials
}

/// Every clause and every case can be explained, and no explanation is the standard's own text.
fn explanations(registry: &Registry) -> Result<(), Failed> {
    for clause in registry.iter() {
        let words = clause.text.split_whitespace().count();
        if words > 40 {
            return Err(Failed::from(format!(
                "{}: {words} words are no paraphrase",
                clause.id
            )));
        }
        if explain(registry, &clause.id).is_none() {
            return Err(Failed::from(format!("{} is not explained", clause.id)));
        }
    }
    for case in cases::all() {
        if explain(registry, case.name).is_none() {
            return Err(Failed::from(format!("{} is not explained", case.name)));
        }
    }
    Ok(())
}
