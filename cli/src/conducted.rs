//! What agents did with a guest's devices, for people and for machines.

use migration::agent::{Ensemble, Step, Taken};
use migration::lock::{Phase, RemoteError, Report, Stuck};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// The report of every step, and whose it is.
#[derive(Debug)]
pub struct Figures {
    names: Vec<String>,
    steps: BTreeMap<Step, Taken>,
}

/// The phases of a change, once all are locked.
const CHANGE: [Phase; 3] = [Phase::Stage, Phase::Apply, Phase::Poll];
/// A column: of which step it is, and which phase.
type Column = (Step, Phase);

/// What could not be released, of all steps.
fn stuck(steps: &BTreeMap<Step, Taken>) -> impl Iterator<Item = &Stuck> {
    steps.values().flat_map(|taken| &taken.report.stuck)
}

/// What is wrong with a set that changed all it was to change: what it could not release.
pub fn objection(ensemble: &Ensemble) -> Option<String> {
    let stuck: Vec<String> = stuck(ensemble.steps())
        .map(|stuck| format!("{} may still be locked: {}", stuck.remote, stuck.command))
        .collect();
    (!stuck.is_empty()).then(|| stuck.join("; "))
}

impl Figures {
    /// What became of a guest's devices.
    pub fn of(ensemble: &Ensemble) -> Self {
        Self {
            names: ensemble.names().collect(),
            steps: ensemble.steps().clone(),
        }
    }

    /// For machines.
    pub fn object(&self) -> Value {
        let rows = |report: &Report| -> Vec<Value> {
            let row = |row: &migration::lock::Row| {
                let error = row.outcome.as_ref().err().map(ToString::to_string);
                json!({"remote": row.remote, "phase": row.phase.to_string(), "error": error})
            };
            report.rows.iter().map(row).collect()
        };
        let step = |(step, taken): (&Step, &Taken)| {
            json!({
                "step": step.to_string(),
                "failure": taken.cause.map(|cause| cause.to_string()),
                "rows": rows(&taken.report),
            })
        };
        let stuck = stuck(&self.steps).map(|stuck| {
            json!({
                "remote": stuck.remote, "why": stuck.why.to_string(), "command": stuck.command,
            })
        });
        json!({
            "remotes": self.names,
            "steps": self.steps.iter().map(step).collect::<Vec<_>>(),
            "stuck": stuck.collect::<Vec<_>>(),
        })
    }

    fn outcome(&self, column: Column, name: &str) -> Option<&Result<(), RemoteError>> {
        let (step, phase) = column;
        let report = &self.steps.get(&step)?.report;
        let mut rows = report.rows.iter();
        rows.find(|row| row.remote == name && row.phase == phase)
            .map(|row| &row.outcome)
    }

    /// Each phase that came to be, in the order of time.
    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![(Step::Track, Phase::Lock)];
        for step in [Step::Track, Step::Switch, Step::Resume, Step::Restore] {
            columns.extend(CHANGE.map(|phase| (step, phase)));
            columns.push((step, Phase::Rollback));
        }
        // Of the step that failed, or of the end.
        for step in [
            Step::Track,
            Step::Switch,
            Step::Resume,
            Step::Restore,
            Step::Release,
        ] {
            columns.push((step, Phase::Release));
        }
        let came = |column: &Column| {
            let mut names = self.names.iter();
            names.any(|name| self.outcome(*column, name).is_some())
        };
        columns.retain(came);
        columns
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.columns();
        let width = self.names.iter().map(String::len).max().unwrap_or(0);
        let failed = |name: &&String| {
            let mut columns = columns.iter();
            columns.any(|column| matches!(self.outcome(*column, name), Some(Err(_))))
        };
        let (mut sorted, fine): (Vec<&String>, Vec<&String>) = self.names.iter().partition(failed);
        sorted.sort();
        let mut fine = fine;
        fine.sort();
        sorted.extend(fine);
        write!(f, "{:width$}", "")?;
        let mut last = None;
        for (step, phase) in &columns {
            let text = match phase {
                Phase::Lock | Phase::Release => String::new(),
                _ if last == Some(*step) => String::new(),
                _ => {
                    last = Some(*step);
                    step.to_string()
                }
            };
            write!(f, "  {text:<8}")?;
        }
        write!(f, "\n{:width$}", "device")?;
        for (_, phase) in &columns {
            let name = match phase {
                Phase::Poll => "done".to_owned(),
                phase => phase.to_string(),
            };
            write!(f, "  {name:<8}")?;
        }
        writeln!(f)?;
        for name in sorted {
            write!(f, "{name:<width$}")?;
            for column in &columns {
                let text = match self.outcome(*column, name) {
                    Some(Ok(())) => "ok",
                    Some(Err(_)) => "FAILED",
                    None => "-",
                };
                write!(f, "  {text:<8}")?;
            }
            writeln!(f)?;
        }
        for column @ (step, phase) in &columns {
            for name in &self.names {
                if let Some(Err(error)) = self.outcome(*column, name) {
                    writeln!(f, "{name}: {step}, {phase}: {error}")?;
                }
            }
        }
        for Stuck {
            remote,
            why,
            command,
        } in stuck(&self.steps)
        {
            writeln!(
                f,
                "{remote} may still be locked ({why}); free it with: {command}"
            )?;
        }
        Ok(())
    }
}
