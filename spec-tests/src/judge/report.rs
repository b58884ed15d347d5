//! What was seen of a driver, in the form that all reports have.

use super::{Ledger, Plan, Rule, rules};
use crate::clause::Registry;
use crate::constants::{feature, pci};
use crate::report::{Entry, Identity, Outcome, Report};
use crate::run::select::{matches, named};
use crate::run::{Options, waive};

/// The report on a driver that is called `name`: an entry for each rule that `options` ask for.
/// None if they ask for none.
pub fn report(
    registry: &Registry,
    options: &Options,
    plans: &[Plan],
    name: &str,
    book: &Ledger,
) -> Option<Report> {
    let offered = plans.iter().fold(0, |all, plan| all | plan.features);
    let identity = Identity {
        target: name.to_owned(),
        pci: format!("{:04x}", pci::VENDOR),
        features: feature::names(offered),
        queues: plans
            .iter()
            .map(|plan| u64::from(plan.queues))
            .max()
            .unwrap_or(0),
        ..Identity::default()
    };
    let mut report = Report::new(registry, identity, options);
    for rule in rules() {
        let Some(clause) = registry.get(rule.clause) else {
            continue;
        };
        let asked = |glob: &String| named(glob, clause) || matches(glob, rule.name);
        let globs = &options.globs;
        if options.depth.takes(clause.level) && (globs.is_empty() || globs.iter().any(asked)) {
            let mut entry = entry(rule, registry, book)?;
            waive(&mut entry, clause, options);
            report.push(entry);
        }
    }
    (!report.entries.is_empty()).then_some(report)
}

fn entry(rule: &Rule, registry: &Registry, book: &Ledger) -> Option<Entry> {
    let clause = registry.get(rule.clause)?;
    let account = book.account(rule.name).cloned().unwrap_or_default();
    let (outcome, saw, did) = match (account.broken(), &account.kept) {
        (Some((saw, steps)), _) => (Outcome::Fail, vec![saw.clone()], steps.clone()),
        (None, Some(saw)) => (Outcome::Pass, vec![saw.clone()], Vec::new()),
        (None, None) => (Outcome::NotExercised, Vec::new(), Vec::new()),
    };
    Some(Entry {
        clause: clause.id.clone(),
        short: clause.short.clone(),
        group: clause.group.to_owned(),
        role: clause.role,
        level: clause.level,
        source: clause.source(),
        says: clause.text.clone(),
        case: rule.name.to_owned(),
        outcome,
        note: match account.times {
            0 => "the situation did not arise".to_owned(),
            times => format!("the situation arose {times} times"),
        },
        did,
        saw,
        wants: vec![rule.how.to_owned()],
        milliseconds: 0,
        waiver: None,
    })
}

/// Every rule with its clause, one a line.
pub fn list(registry: &Registry) -> String {
    let mut text = String::new();
    for rule in rules() {
        if let Some(clause) = registry.get(rule.clause) {
            text.push_str(&format!(
                "{:<10} {} [{} {}] {}  {}\n",
                clause.group,
                clause.name(),
                clause.provenance.name(),
                clause.level.name(),
                clause.text,
                rule.name
            ));
        }
    }
    text
}

/// All about a rule, or about the rule of a clause. None if there is neither of this name.
pub fn explain(registry: &Registry, name: &str) -> Option<String> {
    let rule = rules().find(|rule| {
        let clause = registry.get(rule.clause);
        rule.name == name || clause.is_some_and(|clause| clause.is(name))
    })?;
    let told = crate::report::explain(registry, rule.clause)?;
    Some(format!("{told}  rule       {}: {}\n", rule.name, rule.how))
}
