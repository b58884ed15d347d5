//! TAP 13.

use super::{Outcome, Report, human};
use std::fmt::Write;

pub(super) fn report(report: &Report) -> String {
    let mut text = String::from("TAP version 13\n");
    let _ = writeln!(
        text,
        "1..{}",
        report.entries.len() + report.not_offered.len()
    );
    let _ = writeln!(
        text,
        "# target {}, suite {}, clauses {}, seed {}",
        report.identity.target, report.suite, report.clauses, report.seed
    );
    let mut number = 0;
    for name in &report.not_offered {
        number += 1;
        let _ = writeln!(text, "not ok {number} - profile claims {name}");
    }
    for entry in &report.entries {
        number += 1;
        let ok = if entry.outcome.is_failure() {
            "not ok"
        } else {
            "ok"
        };
        let _ = write!(text, "{ok} {number} - {} {}", entry.clause, entry.case);
        let _ = match entry.outcome {
            Outcome::Skip | Outcome::NotApplicable | Outcome::NotExercised => {
                writeln!(text, " # SKIP {}: {}", entry.outcome.name(), entry.note)
            }
            Outcome::Waived => writeln!(text, " # TODO waived"),
            _ => writeln!(text),
        };
        if entry.outcome.is_failure() {
            for line in human::at_length(entry).lines() {
                let _ = writeln!(text, "# {line}");
            }
        }
    }
    text
}
