//! The judge must be able to say no: every broken device is failed, by a case of the clause that it
//! breaks, and passes nearly everything else.
//!
//! `cargo test -p spec-tests --test mutants` prints killed / total; `-- NAME` tries one, and tells
//! which cases it failed. See "Mutants" in the documentation of `spec_tests`.

mod admin;
mod blk;
mod commands;
mod common;
mod frame;
mod marks;
mod notify;
mod objects;
mod packed;
mod packed_state;
mod parts;
mod parts_mode;
mod pci;
mod queue;
mod recording;
mod requests;
mod rng;
mod split;
mod suspend;
mod tracker;
mod zoned;
mod zoned_requests;

use frame::{Mutant, Sound, Trial};
use libtest_mimic::Arguments;
use spec_tests::cases;
use spec_tests::clause::{Registry, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Mutants are tried side by side: most of their time goes into waiting for what does not come.
const THREADS: usize = 12;

fn all() -> impl Iterator<Item = &'static Mutant> {
    [
        admin::MUTANTS,
        common::MUTANTS,
        marks::MUTANTS,
        notify::MUTANTS,
        objects::MUTANTS,
        packed::MUTANTS,
        packed_state::MUTANTS,
        pci::MUTANTS,
        queue::MUTANTS,
        parts::MUTANTS,
        parts_mode::MUTANTS,
        recording::MUTANTS,
        split::MUTANTS,
        suspend::MUTANTS,
        tracker::MUTANTS,
        blk::MUTANTS,
        rng::MUTANTS,
        zoned::MUTANTS,
        zoned_requests::MUTANTS,
    ]
    .into_iter()
    .flatten()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let registry = match Registry::load() {
        Ok(registry) => Arc::new(registry),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let media = all().map(|mutant| mutant.defect.medium);
    let sound = Arc::new(Sound::new(media));
    let (killed, tried) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let least = Arc::new(Mutex::new((1.0_f64, "")));
    let mut trials = vec![libtest_mimic::Trial::test("every_must_has_a_mutant", {
        let registry = Arc::clone(&registry);
        move || accounted_for(&registry)
    })];
    for mutant in all() {
        let (registry, sound) = (Arc::clone(&registry), Arc::clone(&sound));
        let (killed, tried, least) = (Arc::clone(&killed), Arc::clone(&tried), Arc::clone(&least));
        trials.push(libtest_mimic::Trial::test(mutant.name, move || {
            tried.fetch_add(1, Ordering::SeqCst);
            let Trial {
                dead,
                share,
                verdict,
            } = frame::try_out(mutant, &registry, &sound);
            killed.fetch_add(usize::from(dead), Ordering::SeqCst);
            let mut least = least.lock().unwrap();
            if share < least.0 {
                *least = (share, mutant.name);
            }
            verdict.map_err(libtest_mimic::Failed::from)
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        let (killed, tried) = (killed.load(Ordering::SeqCst), tried.load(Ordering::SeqCst));
        println!("{killed} of {tried} mutants killed");
        let (share, name) = *least.lock().unwrap();
        println!(
            "the least sound of them, {name}, passes {:.1} % of the cases of other clauses",
            100.0 * share
        );
    }
    conclusion.exit_code()
}

/// Every device MUST with a case has a mutant that breaks it, but for as many as its group states;
/// and there are at least as many mutants as clauses with cases that bind devices or nobody.
fn accounted_for(registry: &Registry) -> Result<(), libtest_mimic::Failed> {
    let mut broken = BTreeSet::new();
    for mutant in all() {
        for name in mutant.clauses {
            let clause = registry.get(name).ok_or_else(|| {
                libtest_mimic::Failed::from(format!(
                    "{} breaks {name}, which is no clause",
                    mutant.name
                ))
            })?;
            broken.insert(clause.id.clone());
        }
    }
    let named = cases::all().flat_map(|case| case.clauses);
    let mut without: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let mut judged = BTreeSet::new();
    for clause in named.filter_map(|name| registry.get(name)) {
        if clause.role != Role::Driver {
            judged.insert(clause.id.as_str());
        }
        let counts = clause.binds_device() && clause.hash.is_some();
        if counts && !broken.contains(&clause.id) {
            without
                .entry(clause.group)
                .or_default()
                .insert(clause.name());
        }
    }
    let mut wrong = Vec::new();
    let (mutants, judged) = (all().count(), judged.len());
    if mutants < judged {
        wrong.push(format!(
            "there are {mutants} mutants and {judged} clauses of the device with cases: {} more are \
             needed in tests/mutants/, for clauses that no mutant names or that share one",
            judged - mutants
        ));
    }
    for (group, stated) in registry.groups() {
        let found = without.remove(group).unwrap_or_default();
        if found.len() != stated.mutants {
            wrong.push(format!(
                "clauses/{group}.json: {} clauses are without a mutant, {} are stated: {found:?}",
                found.len(),
                stated.mutants
            ));
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n").into())
    }
}
