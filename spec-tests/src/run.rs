//! Runs a case for a clause and words the report.

use crate::cases::Case;
use crate::clause::{Clause, Provenance};
use crate::harness::{Absent, Bench, Failure, Stop};
use crate::target::Target;
use std::fmt::Write;

/// How a clause fared in a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The outcome that it demands was seen. Carries what is worth recording.
    Pass(String),
    /// Another outcome was seen. Carries the report.
    Fail(String),
    /// The situation did not arise, or another clause was found broken first.
    Inconclusive(String),
    /// The target lacks what the clause is about, and is not said to have it.
    NotApplicable(Absent),
}

impl Verdict {
    /// Whether it counts as a failure.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Fail(_) | Self::Inconclusive(_))
    }
}

/// Runs `case` on a fresh function of `target` and judges `clause` by it.
pub fn judge(target: &dyn Target, case: &Case, clause: &Clause) -> Verdict {
    let mut steps = String::new();
    let result = target
        .fresh(case.variant)
        .and_then(Bench::new)
        .and_then(|bench| {
            let result = (case.run)(&bench);
            steps = bench.steps();
            result
        });
    match result {
        Ok(note) => Verdict::Pass(note),
        Err(Stop::Fail(failure)) => match failure.clause {
            Some(other) if other != clause.id => Verdict::Inconclusive(format!(
                "{other} was found broken before {} could be judged: saw {}\n",
                clause.id, failure.saw
            )),
            _ => Verdict::Fail(report(clause, case, &failure, &steps)),
        },
        Err(Stop::Inconclusive(why)) => Verdict::Inconclusive(format!(
            "the situation did not arise: {why}\n  done\n{steps}"
        )),
        Err(Stop::NotApplicable(what)) if target.claims(what) => Verdict::Fail(format!(
            "{} ({}): the target is said to have {what:?} and has not\n",
            clause.id,
            clause.source()
        )),
        Err(Stop::NotApplicable(what)) => Verdict::NotApplicable(what),
    }
}

fn report(clause: &Clause, case: &Case, failure: &Failure, steps: &str) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} {:?}, {}",
        clause.id,
        clause.level,
        clause.source()
    );
    let _ = writeln!(text, "  says   {}", clause.text);
    let _ = writeln!(text, "  case   {} ({:?})", case.name, case.variant);
    let _ = write!(text, "  done\n{steps}");
    let _ = writeln!(text, "  saw    {}", failure.saw);
    let _ = writeln!(text, "  wants  {}", failure.wants);
    if clause.provenance != Provenance::Virtio14 {
        let _ = writeln!(text, "  note   no requirement of OASIS");
    }
    text
}
