//! One line of a report: a figure, its spread, and the bound it is held to.

use crate::Ratio;
use serde_json::json;
use std::process::ExitCode;

/// What a figure must keep to.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// Not above this.
    AtMost(f64),
    /// Not below this.
    AtLeast(f64),
    /// Shown for comparison, judged by nobody.
    None,
}

/// A figure and its bound.
#[derive(Clone, Debug)]
pub struct Line {
    /// What was measured, against which peer in which version.
    pub name: String,
    /// What it must keep to.
    pub bound: Bound,
    /// The figure, a ratio.
    pub figure: f64,
    /// Smallest and largest round.
    pub spread: [f64; 2],
    /// The absolute figures behind the ratio, for the reader.
    pub detail: String,
}

/// How the lines are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For people.
    Table,
    /// One JSON object a line, for `cargo xtask bench --check`.
    Check,
}

impl Mode {
    /// `--check` among the program's arguments.
    pub fn from_args() -> Self {
        if std::env::args().any(|arg| arg == "--check") {
            Self::Check
        } else {
            Self::Table
        }
    }
}

impl Bound {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtMost(bound) => figure <= bound,
            Self::AtLeast(bound) => figure >= bound,
            Self::None => true,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::None => f.pad("-"),
        }
    }
}

impl Line {
    /// A line from interleaved rounds of `operations` operations each.
    pub fn new(name: impl Into<String>, bound: Bound, ratio: &Ratio, operations: f64) -> Self {
        let ns = |time: std::time::Duration| time.as_secs_f64() * 1e9 / operations;
        Self {
            name: name.into(),
            bound,
            figure: ratio.median(),
            spread: ratio.spread(),
            detail: format!("{:.2} ns : {:.2} ns", ns(ratio.subject), ns(ratio.peer)),
        }
    }

    /// Prints the line.
    pub fn print(&self, mode: Mode) {
        let Self {
            name,
            bound,
            figure,
            spread: [low, high],
            detail,
        } = self;
        match mode {
            Mode::Table => {
                let verdict = match self.bound {
                    Bound::None => "",
                    _ if self.ok() => "ok",
                    _ => "MISSED",
                };
                let bound = bound.to_string();
                println!(
                    "{name:<66} {figure:>7.3} [{low:.3}, {high:.3}] {bound:>8} {verdict:<6} {detail}"
                );
            }
            Mode::Check => println!(
                "{}",
                json!({
                    "line": name, "bound": bound.to_string(), "figure": figure,
                    "spread": [low, high], "detail": detail, "ok": self.ok(),
                })
            ),
        }
    }

    /// Whether the bound holds.
    pub fn ok(&self) -> bool {
        self.bound.holds(self.figure)
    }
}

/// Whether the program's arguments ask for `group`: no filter, or one that it contains.
pub fn wanted(group: &str) -> bool {
    let mut filters = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .peekable();
    filters.peek().is_none()
        || filters.any(|filter| filter.contains(group) || group.contains(&filter))
}

/// The exit code of a benchmark that printed `lines`.
pub fn finish(lines: &[Line]) -> ExitCode {
    if lines.iter().all(Line::ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
