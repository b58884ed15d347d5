//! What became of every remote in every phase.

use crate::lock::RemoteError;
use std::fmt;

/// What a remote was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// To be locked.
    Lock,
    /// To take a configuration as pending.
    Stage,
    /// To begin to apply it.
    Apply,
    /// To come to the end of that.
    Poll,
    /// To forget what is pending.
    Rollback,
    /// To be unlocked.
    Release,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lock => "lock",
            Self::Stage => "stage",
            Self::Apply => "apply",
            Self::Poll => "poll",
            Self::Rollback => "rollback",
            Self::Release => "release",
        })
    }
}

/// How a phase ended for a remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub remote: String,
    /// What it was asked for.
    pub phase: Phase,
    /// How the last try ended.
    pub outcome: Result<(), RemoteError>,
}

/// A remote that may still be locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Its name.
    pub remote: String,
    /// Why it could not be released.
    pub why: RemoteError,
    /// What to type to free it.
    pub command: String,
}

/// What became of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Failures first; then by remote, then by phase.
    pub rows: Vec<Row>,
    /// Sorted by name.
    pub stuck: Vec<Stuck>,
}

impl Report {
    pub(super) fn new(mut rows: Vec<Row>, stuck: Vec<Stuck>) -> Self {
        rows.sort_by(|one, other| {
            let key = |row: &Row| (row.outcome.is_ok(), row.phase);
            (key(one).0, &one.remote, key(one).1).cmp(&(key(other).0, &other.remote, key(other).1))
        });
        Self { rows, stuck }
    }

    /// Of two sets that have no remote in common.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.rows.extend(other.rows);
        self.stuck.extend(other.stuck);
        self.stuck
            .sort_by(|one, other| one.remote.cmp(&other.remote));
        Self::new(self.rows, self.stuck)
    }

    /// How many phases of remotes succeeded.
    pub fn successes(&self) -> usize {
        self.rows.iter().filter(|row| row.outcome.is_ok()).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Row {
            remote,
            phase,
            outcome,
        } in &self.rows
        {
            if let Err(error) = outcome {
                writeln!(f, "{remote:<16} {phase:<8} {error}")?;
            }
        }
        for Stuck {
            remote,
            why,
            command,
        } in &self.stuck
        {
            writeln!(
                f,
                "{remote:<16} may still be locked ({why}); free it with: {command}"
            )?;
        }
        let all = self.rows.len();
        write!(f, "{} of {all} steps succeeded", self.successes())
    }
}

/// What a set failed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// Not all could be locked. Nothing was changed.
    #[error("not all remotes could be locked; nothing was changed")]
    Lock,
    /// Not all took the change. All were rolled back.
    #[error("not all remotes took the change; all were rolled back")]
    Stage,
    /// None of them began to apply. All were rolled back.
    #[error("no remote began to apply; all were rolled back")]
    NotStarted,
    /// Some began to apply, and not all have come to its end: the set is of two minds.
    #[error("not all remotes applied the change, and some did: see to those listed")]
    Incomplete,
    /// Cancelled before the point of no return. All were rolled back.
    #[error("cancelled before anything was applied; all were rolled back")]
    Cancelled,
}

/// A set that came to nothing, or worse. It holds no lock any more but what the report lists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}\n{report}")]
pub struct Failure {
    /// What it failed at.
    pub cause: Cause,
    /// The whole story.
    pub report: Report,
}
