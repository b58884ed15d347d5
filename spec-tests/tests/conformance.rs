//! Runs every case for every clause that it judges, on the emulated disk and on the emulated
//! source of entropy, and checks the registry.
//!
//! `cargo test -p spec-tests --test conformance -- SUS-` runs what matches; the word in brackets
//! says with what authority a clause stands.

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use spec_tests::clause::Registry;
use spec_tests::clause::coverage::Coverage;
use spec_tests::report::{Entry, Outcome, explain};
use spec_tests::run::{Attempt, judge};
use spec_tests::target::{Emulated, Medium, Target};
use spec_tests::{cases, judge::RULES};
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let registry = match Registry::load() {
        Ok(registry) => Arc::new(registry),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let coverage = Coverage::new(&registry, cases::all(), RULES.iter().copied());
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
    let disk = Emulated::default();
    trials.extend(pairs(&registry, Arc::new(disk), ""));
    // What needs no particular device is judged on another one as well.
    let entropy = Emulated {
        medium: Medium::Entropy,
        ..disk
    };
    trials.extend(pairs(&registry, Arc::new(entropy), " (entropy)"));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!("{account}");
        println!(
            "{} passed, {} failed, {} not applicable",
            conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored
        );
    }
    conclusion.exit_code()
}

/// One trial for every case and clause that it judges.
fn pairs(registry: &Arc<Registry>, target: Arc<dyn Target>, suffix: &str) -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in cases::all() {
        for id in case.clauses {
            let Some(clause) = registry.get(id).cloned() else {
                continue;
            };
            let target = Arc::clone(&target);
            let kind = clause.provenance.name();
            let trial = Trial::ignorable_test(format!("{id} {}{suffix}", case.name), move || {
                let (attempt, finding): (Attempt, _) = judge(&target, case, &clause);
                let entry = Entry::new(&clause, case, Some(&attempt), finding);
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
