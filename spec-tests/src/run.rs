//! Carries out a case and words the report on a clause.

use crate::cases::Case;
use crate::clause::{Clause, Provenance};
use crate::harness::{Absent, Bench, Failure, Judged, Stop};
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

/// A case that was carried out.
#[derive(Clone, Debug)]
pub struct Attempt {
    case: &'static Case,
    result: Judged,
    steps: String,
}

impl Attempt {
    /// Carries out `case` on a fresh function of `target`.
    pub fn new(target: &dyn Target, case: &'static Case) -> Self {
        let mut steps = String::new();
        let fresh = target.fresh(case.variant).and_then(Bench::new);
        let result = fresh.and_then(|bench| {
            let result = (case.run)(&bench);
            steps = bench.steps();
            result
        });
        Self {
            case,
            result,
            steps,
        }
    }

    /// What it says about `clause`, which is one of the case's.
    pub fn verdict(&self, target: &dyn Target, clause: &Clause) -> Verdict {
        match &self.result {
            Ok(note) => Verdict::Pass(note.clone()),
            Err(Stop::Fail(failure)) => {
                let id = clause.id.as_str();
                if failure.clauses.is_empty() || failure.clauses.contains(&id) {
                    return Verdict::Fail(report(clause, self.case, failure, &self.steps));
                }
                let Failure { clauses, saw, .. } = failure;
                Verdict::Inconclusive(format!(
                    "{clauses:?} found broken before {id} could be judged: saw {saw}\n"
                ))
            }
            Err(Stop::Inconclusive(why)) => Verdict::Inconclusive(format!(
                "the situation did not arise: {why}\n  done\n{}",
                self.steps
            )),
            Err(Stop::NotApplicable(what)) if target.claims(*what) => Verdict::Fail(format!(
                "{} ({}): the target is said to have {what:?} and has not\n",
                clause.id,
                clause.source()
            )),
            Err(Stop::NotApplicable(what)) => Verdict::NotApplicable(*what),
        }
    }
}

/// Carries out `case` and judges `clause` by it.
pub fn judge(target: &dyn Target, case: &'static Case, clause: &Clause) -> Verdict {
    Attempt::new(target, case).verdict(target, clause)
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
