//! A bar for each round, on a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use migration::observe::Observer;
use migration::report::RoundReport;

/// Draws bars on stderr if that is a terminal, and logs every round.
pub struct Bars {
    bar: ProgressBar,
    style: ProgressStyle,
}

impl Bars {
    /// No bar yet.
    pub fn new() -> Self {
        let template = "{prefix:<12} {wide_bar} {pos}/{len} pages";
        Self {
            bar: ProgressBar::hidden(),
            style: ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        }
    }
}

impl Observer for Bars {
    fn round_started(&mut self, round: u32, pages: u64, last: bool) {
        tracing::info!(round, pages, last, "round");
        self.bar = ProgressBar::new(pages).with_style(self.style.clone());
        let name = if last {
            "last round".to_owned()
        } else {
            format!("round {round}")
        };
        self.bar.set_prefix(name);
    }

    fn progress(&mut self, _round: u32, sent: u64) {
        self.bar.set_position(sent);
    }

    fn round_ended(&mut self, _report: &RoundReport) {
        self.bar.finish();
    }
}
