//! Runs every case for every clause that it judges, on the emulated disk, and checks the registry.
//!
//! `cargo test -p spec-tests --test conformance -- SUS-` runs what matches; the word in brackets
//! says with what authority a clause stands.

use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use spec_tests::cases;
use spec_tests::clause::{Area, NoCase, Provenance, Registry};
use spec_tests::run::{Verdict, judge};
use spec_tests::target::{Emulated, Medium, Target};
use std::collections::{BTreeMap, BTreeSet};
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
    let mut trials = vec![Trial::test("registry", {
        let registry = Arc::clone(&registry);
        move || check_registry(&registry)
    })];
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
        summary(&registry, &conclusion);
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
            let trial = Trial::test(format!("{id} {}{suffix}", case.name), move || {
                match judge(target.as_ref(), case, &clause) {
                    Verdict::Pass(note) => {
                        if !note.is_empty() && std::env::var_os("SPEC_NOTES").is_some() {
                            println!("note: {} {}: {note}", clause.id, case.name);
                        }
                        Ok(())
                    }
                    Verdict::NotApplicable(_) => Ok(()),
                    Verdict::Fail(report) => Err(Failed::from(report)),
                    Verdict::Inconclusive(why) => {
                        Err(Failed::from(format!("{} inconclusive: {why}", clause.id)))
                    }
                }
            });
            trials.push(trial.with_kind(kind));
        }
    }
    trials
}

/// Areas in which every clause needs a case or a reason.
const COMPLETE: [Area; 10] = [
    Area::Status,
    Area::Reset,
    Area::Init,
    Area::Features,
    Area::Suspend,
    Area::QueueState,
    Area::Tracker,
    Area::Pci,
    Area::CommonCfg,
    Area::Notify,
];

fn check_registry(registry: &Registry) -> Result<(), Failed> {
    let mut wrong = Vec::new();
    let mut judged = BTreeSet::new();
    let mut names = BTreeSet::new();
    for case in cases::all() {
        if case.clauses.is_empty() {
            wrong.push(format!("case {} judges nothing", case.name));
        }
        for id in case.clauses {
            if registry.get(id).is_none() {
                wrong.push(format!("case {} names {id}, which is no clause", case.name));
            }
            if !names.insert((id, case.name)) {
                wrong.push(format!("{id} {} stands twice", case.name));
            }
            judged.insert(*id);
        }
    }
    for clause in registry.iter() {
        let id = clause.id.as_str();
        match (judged.contains(id), clause.no_case) {
            (true, Some(reason)) => wrong.push(format!("{id} has a case and {reason:?}")),
            (false, None) if COMPLETE.contains(&clause.area) => {
                wrong.push(format!("{id} has neither a case nor a reason"));
            }
            _ => {}
        }
        let binds_drivers = clause.role == spec_tests::clause::Role::Driver;
        if binds_drivers != (clause.no_case == Some(NoCase::BindsDrivers)) && binds_drivers {
            wrong.push(format!("{id} binds drivers and has another reason"));
        }
        if clause.provenance == Provenance::Virtio14 && clause.section.contains("facilities.md") {
            wrong.push(format!(
                "{id} is presented as text of OASIS and cites the project"
            ));
        }
        if clause.provenance != Provenance::Virtio14 && !clause.statements.is_empty() {
            wrong.push(format!("{id} is no text of OASIS and cites its statements"));
        }
    }
    if judged.len() < 60 {
        wrong.push(format!("only {} statements are judged", judged.len()));
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Failed::from(wrong.join("\n")))
    }
}

/// Clauses, judged clauses and trials by authority.
fn summary(registry: &Registry, conclusion: &Conclusion) {
    let mut counts: BTreeMap<Provenance, [usize; 3]> = BTreeMap::new();
    let mut judged = BTreeSet::new();
    for case in cases::all() {
        for id in case.clauses {
            if let Some(clause) = registry.get(id) {
                let count = counts.entry(clause.provenance).or_default();
                count[1] += usize::from(judged.insert(*id));
                count[2] += 1;
            }
        }
    }
    for clause in registry.iter() {
        counts.entry(clause.provenance).or_default()[0] += 1;
    }
    println!(
        "{:<26}{:>9}{:>9}{:>9}",
        "authority", "clauses", "judged", "pairs"
    );
    for (provenance, [clauses, judged, pairs]) in counts {
        println!("{:<26}{clauses:>9}{judged:>9}{pairs:>9}", provenance.name());
    }
    println!(
        "{} passed, {} failed",
        conclusion.num_passed, conclusion.num_failed
    );
}
