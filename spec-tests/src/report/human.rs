//! For people: the list, the explanation of a clause, the report.

use super::{Entry, Outcome, Report};
use crate::cases::{self, Reach};
use crate::clause::coverage::Coverage;
use crate::clause::{Clause, Provenance, Registry};
use crate::judge;
use std::fmt::Write;

/// A report, grouped as the standard is; only what did not pass is told at length.
pub(super) fn report(report: &Report) -> String {
    let mut text = String::new();
    let identity = &report.identity;
    let _ = writeln!(
        text,
        "target   {}: PCI {}, subsystem {}, revision {}, virtio device {}, {} queues",
        identity.target,
        identity.pci,
        identity.subsystem,
        identity.revision,
        identity.virtio,
        identity.queues
    );
    let _ = writeln!(text, "offers   {}", identity.features.join(" "));
    let _ = writeln!(
        text,
        "suite    {} with clauses {}, seed {}",
        report.suite, report.clauses, report.seed
    );
    if let Some(profile) = &report.profile {
        let _ = writeln!(text, "profile  {profile}");
    }
    for name in &report.not_offered {
        let _ = writeln!(
            text,
            "fail     {name} is claimed by the profile and not offered"
        );
    }
    let told = |entry: &&Entry| !matches!(entry.outcome, Outcome::Pass | Outcome::NotApplicable);
    for entry in report.entries.iter().filter(told) {
        text.push('\n');
        text.push_str(&at_length(entry));
    }
    text.push('\n');
    text.push_str(&summary(report));
    text
}

fn summary(report: &Report) -> String {
    let totals = report.totals();
    let mut parts = Vec::new();
    for outcome in Outcome::ALL {
        if let Some(count) = totals.get(&outcome) {
            parts.push(format!("{count} {}", outcome.name()));
        }
    }
    let verdict = match report.failures() {
        0 => "no failure".to_owned(),
        count => format!("{count} count as failures"),
    };
    format!("{}: {verdict}\n", parts.join(", "))
}

/// One entry with its evidence.
pub(super) fn at_length(entry: &Entry) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<15} {} {}, {}",
        entry.outcome.name(),
        entry.clause,
        entry.level.name(),
        entry.source
    );
    let mut line = |what: &str, said: &str| {
        if !said.is_empty() {
            let _ = writeln!(text, "  {what:<8} {said}");
        }
    };
    line("says", &entry.says);
    line("case", &entry.case);
    line("because", &entry.note);
    if let Some(waiver) = &entry.waiver {
        line(
            "waived",
            &format!("until {}: {}", waiver.until, waiver.reason),
        );
    }
    for (what, lines) in [
        ("did", &entry.did),
        ("saw", &entry.saw),
        ("wants", &entry.wants),
    ] {
        for said in lines {
            line(what, said);
        }
    }
    text
}

/// Every clause and its cases, or the rules by which `tidemark judge` judges drivers; one clause a
/// line.
pub fn list(registry: &Registry) -> String {
    let mut text = String::new();
    for clause in registry.iter() {
        let how = how(clause);
        let short = clause
            .short
            .as_deref()
            .map_or_else(String::new, |short| format!(" = {short}"));
        let _ = writeln!(
            text,
            "{:<10} {}{short} [{} {:?} {}] {}  {how}",
            clause.group,
            clause.id,
            clause.provenance.name(),
            clause.role,
            clause.level.name(),
            clause.text
        );
    }
    text
}

/// What judges a clause: cases and rules by name, or why there is none.
pub(super) fn how(clause: &Clause) -> String {
    let mine = cases::all().filter(|case| case.clauses.iter().any(|name| clause.is(name)));
    let mut names: Vec<_> = mine.map(|case| case.name).collect();
    let rules = judge::rules().filter(|rule| clause.is(rule.clause));
    names.extend(rules.map(|rule| rule.name));
    match (names.is_empty(), clause.no_case) {
        (false, _) => names.join(" "),
        (true, Some(reason)) => format!("({})", reason.name()),
        (true, None) => "(pending)".to_owned(),
    }
}

/// All about a clause or a case, so that the standard need not be at hand. None if there is
/// neither of this name.
pub fn explain(registry: &Registry, name: &str) -> Option<String> {
    if let Some(clause) = registry.get(name) {
        return Some(explain_clause(clause));
    }
    let case = cases::all().find(|case| case.name == name)?;
    let mut text = format!("case {name}\n");
    for clause in case.clauses.iter().filter_map(|name| registry.get(name)) {
        let _ = writeln!(text, "\n{}", explain_clause(clause));
    }
    Some(text)
}

fn explain_clause(clause: &Clause) -> String {
    let mut text = clause.id.clone();
    if let Some(short) = &clause.short {
        let _ = write!(text, " ({short} in virtio-facilities.md)");
    }
    let _ = writeln!(text);
    let who = format!("{:?}", clause.role).to_lowercase();
    let _ = writeln!(text, "  the {who} {}: {}", clause.level.name(), clause.text);
    let _ = writeln!(text, "  stands in  {}", clause.source());
    if clause.provenance != Provenance::Virtio14 {
        let _ = writeln!(text, "  authority  no requirement of OASIS");
    }
    if !clause.needs.is_empty() {
        let _ = writeln!(text, "  needs      {}", clause.needs.join(", "));
    }
    if let Some(hash) = &clause.hash {
        let _ = writeln!(text, "  sentence   SHA-256 {hash}...");
    }
    if let Some(reason) = clause.no_case {
        let why = clause.why.as_deref().unwrap_or("see the code's meaning");
        let _ = writeln!(text, "  no case    {}: {why}", reason.name());
    }
    for case in cases::all().filter(|case| case.clauses.iter().any(|name| clause.is(name))) {
        let on = match case.reach {
            Reach::Function => "a PCI function",
            Reach::Rings => "rings, over PCI or vhost-user",
        };
        let writes = if case.writes {
            ", writes to the medium"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "  case       {} ({:?} target, {on}{writes})",
            case.name, case.variant
        );
        let _ = writeln!(
            text,
            "  to repeat  tidemark conform --target TARGET --level all '{}'",
            case.name
        );
    }
    text
}

/// The registry's own account: what has cases, what is pending, and why what has none has none.
pub fn coverage_line(registry: &Registry) -> String {
    Coverage::new(registry, cases::all(), judge::judged()).to_string()
}
