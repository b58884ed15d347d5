//! One case, carried out on one fresh function in a thread of its own.

use crate::cases::{Case, Reach};
use crate::clause::Clause;
use crate::harness::{Absent, Bench, Failure, Judged, Stop, Trace, kept};
use crate::target::Target;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How often a case may wait for as long as its target may take, before it counts as hung.
const WAITS: u32 = 6;
/// Time that a case may take besides.
const GRACE: Duration = Duration::from_secs(20);

/// How a clause fared in a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The outcome that it demands was seen.
    Pass,
    /// Another outcome was seen, or the target died or hung, or lacks what it is said to have.
    Fail,
    /// The case could not be tried on this target: no permission, no stimulus, no such variant.
    Skip,
    /// The target lacks what the clause is about, and is not said to have it.
    NotApplicable,
    /// The situation did not arise, or another clause was found broken first.
    Inconclusive,
}

impl Verdict {
    /// Whether it counts as a failure.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Fail | Self::Inconclusive)
    }
}

/// A verdict and what it stands on.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The verdict.
    pub verdict: Verdict,
    /// Why it was skipped or does not apply, or what a pass has worth recording; may be empty.
    pub note: String,
    /// What was seen; each line is one observation.
    pub saw: Vec<String>,
    /// What the clause wants to be seen.
    pub wants: Vec<String>,
}

/// A case that was carried out.
#[derive(Clone, Debug)]
pub struct Attempt {
    result: Judged,
    steps: Vec<String>,
    kept: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl Attempt {
    /// Carries out `case` on a fresh function of `target`, with randomness from `seed`.
    pub fn new(target: &Arc<dyn Target>, case: &'static Case, seed: u64) -> Self {
        let begun = Instant::now();
        let trace = Trace::default();
        let (tell, told) = channel();
        let (thread_target, thread_trace) = (Arc::clone(target), trace.clone());
        let body = move || {
            let fresh = thread_target.fresh(case.variant);
            // A case that hangs keeps no target from its end.
            drop(thread_target);
            let bench = fresh.and_then(|subject| Bench::new(subject, thread_trace, seed));
            let result = bench.and_then(|bench| (case.run)(&bench));
            // Nobody listens any more if this took too long.
            let _ = tell.send((result, kept()));
        };
        let refused = case.reach == Reach::Function && target.reach() == Reach::Rings;
        let (result, kept) = if refused {
            (Err(Stop::NotApplicable(Absent::Function)), Vec::new())
        } else if case.writes && !target.may_write() {
            (Err(Stop::NotApplicable(Absent::Permission)), Vec::new())
        } else {
            let patience = target.limit() * WAITS + GRACE;
            match thread::Builder::new()
                .name(case.name.to_owned())
                .spawn(body)
            {
                Err(error) => (
                    Err(Stop::Inconclusive(format!("no thread for it: {error}"))),
                    Vec::new(),
                ),
                Ok(_) => told.recv_timeout(patience).unwrap_or_else(|gone| {
                    let why = match gone {
                        RecvTimeoutError::Timeout => Stop::Lost(format!(
                            "an access to the target has not come back for {} s",
                            patience.as_secs()
                        )),
                        RecvTimeoutError::Disconnected => {
                            Stop::Inconclusive("the case itself went wrong: it panicked".to_owned())
                        }
                    };
                    (Err(why), Vec::new())
                }),
            }
        };
        Self {
            result,
            steps: trace.last_steps(),
            kept,
            took: begun.elapsed(),
        }
    }

    /// Whether the target died or hung: it is not to be used again before it was revived.
    pub fn lost(&self) -> bool {
        matches!(self.result, Err(Stop::Lost(_)))
    }

    /// What was done, one step a line; long stories are cut at the front.
    pub fn steps(&self) -> &[String] {
        &self.steps
    }

    /// What it says about `clause`, which is one of the case's, if `claims` says what the target is
    /// said to have.
    pub fn finding(&self, clause: &Clause, claims: &dyn Fn(Absent) -> bool) -> Finding {
        let find = |verdict, note: String, saw: Vec<String>, wants: Vec<String>| Finding {
            verdict,
            note,
            saw,
            wants,
        };
        match &self.result {
            Ok(note) => find(
                Verdict::Pass,
                note.clone(),
                vec!["what is wanted".to_owned()],
                self.kept.clone(),
            ),
            Err(Stop::Fail(Failure {
                clauses,
                saw,
                wants,
            })) => {
                let about = clauses.is_empty() || clauses.iter().any(|name| clause.is(name));
                let (verdict, note) = if about {
                    (Verdict::Fail, String::new())
                } else {
                    let why = format!(
                        "{} found broken before this could be judged",
                        clauses.join(", ")
                    );
                    (Verdict::Inconclusive, why)
                };
                find(verdict, note, vec![saw.clone()], vec![wants.clone()])
            }
            Err(Stop::Lost(how)) => find(
                Verdict::Fail,
                "the target died or hung".to_owned(),
                vec![how.clone()],
                vec!["a target that outlives whatever its driver does".to_owned()],
            ),
            Err(Stop::Inconclusive(why)) => find(
                Verdict::Inconclusive,
                "the situation did not arise".to_owned(),
                vec![why.clone()],
                Vec::new(),
            ),
            Err(Stop::NotApplicable(what)) if claims(*what) => find(
                Verdict::Fail,
                "the target is said to have it".to_owned(),
                vec![format!("no {what}")],
                vec![what.to_string()],
            ),
            Err(Stop::NotApplicable(what)) => {
                let verdict = match what {
                    Absent::Permission | Absent::ConfigChange | Absent::Variant(_) => Verdict::Skip,
                    _ => Verdict::NotApplicable,
                };
                find(verdict, format!("no {what}"), Vec::new(), Vec::new())
            }
        }
    }
}

/// Carries out `case` and judges `clause` by it, for a target that has what it is said to have.
pub fn judge(target: &Arc<dyn Target>, case: &'static Case, clause: &Clause) -> (Attempt, Finding) {
    let attempt = Attempt::new(target, case, 1);
    let finding = attempt.finding(clause, &|what| target.claims(what));
    (attempt, finding)
}
