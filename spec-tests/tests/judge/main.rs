//! The judge of drivers must be able to say yes and no: sound drivers exercise every rule and keep
//! it, and every broken one is found to break the clause that it breaks, and little else.
//!
//! `cargo test -p spec-tests --test judge` prints killed / total; `-- NAME` tries one.

mod admin;
mod disk;
mod init;
mod packed;
mod pci;
mod raw;
mod ring;
mod sound;
mod split;
mod suspend;
mod zoned;

use libtest_mimic::{Arguments, Failed, Trial};
use raw::Raw;
use spec_tests::clause::Registry;
use spec_tests::constants::feature;
use spec_tests::judge::{Odd, Plan, RESERVED, rules};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the driver here takes if it is offered.
pub const WANTED: u64 = !RESERVED & !feature::BLK_ZONED;
/// A mutant may break this share of the other clauses besides.
const SHARE: usize = 10;

/// A driver that breaks a sentence.
#[derive(Debug)]
pub struct Mutant {
    /// What it does, in a few words.
    pub name: &'static str,
    /// The clauses that it breaks, each of which must be found broken.
    pub clauses: &'static [&'static str],
    /// What it is run against.
    pub plan: fn() -> Plan,
    /// What it does, from the capabilities on.
    pub act: fn(&mut Raw),
}

/// Short for a mutant.
pub const fn mutant(
    name: &'static str,
    clauses: &'static [&'static str],
    plan: fn() -> Plan,
    act: fn(&mut Raw),
) -> Mutant {
    Mutant {
        name,
        clauses,
        plan,
        act,
    }
}

/// The first plan.
pub fn watch() -> Plan {
    Plan::default()
}

/// A plan that provokes nothing in the layout, and offers nothing reserved.
pub fn quiet() -> Plan {
    Plan {
        odd: Odd::NONE,
        revision: 0,
        features: watch().features & !RESERVED,
        ..watch()
    }
}

/// The plan of a name.
pub fn named(name: &str) -> Plan {
    Plan::named(name).unwrap()
}

fn all() -> impl Iterator<Item = &'static Mutant> {
    [
        pci::MUTANTS,
        init::MUTANTS,
        suspend::MUTANTS,
        split::MUTANTS,
        packed::MUTANTS,
        disk::MUTANTS,
        zoned::MUTANTS,
        admin::MUTANTS,
    ]
    .into_iter()
    .flatten()
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let registry = match Registry::load() {
        Ok(registry) => Arc::new(registry),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let (killed, tried) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut trials = vec![
        Trial::test("every_rule_has_a_mutant", {
            let registry = Arc::clone(&registry);
            move || accounted_for(&registry)
        }),
        Trial::test("sound_drivers_keep_every_rule", sound::keeps_every_rule),
        Trial::test("our_driver_is_sound", sound::ours),
    ];
    for mutant in all() {
        let registry = Arc::clone(&registry);
        let (killed, tried) = (Arc::clone(&killed), Arc::clone(&tried));
        trials.push(Trial::test(mutant.name, move || {
            tried.fetch_add(1, Ordering::SeqCst);
            let verdict = try_out(mutant, &registry);
            killed.fetch_add(usize::from(verdict.is_ok()), Ordering::SeqCst);
            verdict
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        let (killed, tried) = (killed.load(Ordering::SeqCst), tried.load(Ordering::SeqCst));
        println!("{killed} of {tried} mutant drivers killed");
    }
    conclusion.exit_code()
}

fn try_out(mutant: &'static Mutant, registry: &Registry) -> Result<(), Failed> {
    let mut driver = Raw::new((mutant.plan)());
    (mutant.act)(&mut driver);
    driver.gone();
    let (mut broken, mut told) = (BTreeSet::new(), Vec::new());
    driver.bus.judge().book(|book| {
        for rule in rules() {
            if let Some((saw, _)) = book.account(rule.name).and_then(|account| account.broken()) {
                broken.insert(registry.get(rule.clause).map(|clause| clause.id.clone()));
                told.push(format!("{}: {saw}", rule.name));
            }
        }
    });
    for name in mutant.clauses {
        let id = registry.get(name).map(|clause| clause.id.clone());
        if !broken.contains(&id) {
            return Err(format!("it survives: {name} is not found broken, but {told:#?}").into());
        }
    }
    let besides = broken.len() - mutant.clauses.len();
    if besides * SHARE > rules().count() {
        return Err(format!("it is no mutant but a ruin: {told:#?}").into());
    }
    Ok(())
}

/// Every rule has a clause of its own that binds drivers, and a mutant that breaks it.
fn accounted_for(registry: &Registry) -> Result<(), Failed> {
    let mut wrong = Vec::new();
    let id = |name: &str| registry.get(name).map(|clause| clause.id.clone());
    let mutants: BTreeSet<_> = all()
        .flat_map(|mutant| mutant.clauses)
        .map(|name| id(name))
        .collect();
    for rule in rules() {
        if id(rule.clause).is_none() {
            wrong.push(format!(
                "{} judges {}, which is no clause",
                rule.name, rule.clause
            ));
        }
        if !mutants.contains(&id(rule.clause)) {
            wrong.push(format!("{} has no mutant", rule.name));
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n").into())
    }
}
