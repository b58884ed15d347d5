//! Progress: a bar for each round on a terminal, or events for machines.

use driver::dirty::DirtySet;
use indicatif::{ProgressBar, ProgressStyle};
use migration::observe::Observer;
use migration::policy::Seen;
use migration::report::RoundReport;
use observe::watch::heat;
use serde_json::{Value, json};
use std::io::Write;
use std::time::{Duration, Instant};

/// Events that only count pages come no more often than this.
const EVERY: Duration = Duration::from_millis(100);

/// Prints an event a line: JSON objects with the member `event`, and for each what is known.
pub struct Events {
    out: Box<dyn Write>,
    last: Instant,
    /// Bytes per second, as the last report knew it.
    bandwidth: Option<f64>,
}

impl Events {
    /// To the given output.
    pub fn new(out: Box<dyn Write>) -> Self {
        Self {
            out,
            last: Instant::now(),
            bandwidth: None,
        }
    }

    fn print(&mut self, event: &Value) {
        // Nobody listens any more: the migration goes on all the same.
        let printed = writeln!(self.out, "{event}").and_then(|()| self.out.flush());
        tracing::trace!(?printed, "event");
    }
}

impl Observer for Events {
    fn dirty(&mut self, round: u32, pages: u64, seen: &Seen) {
        self.bandwidth = seen.bandwidth;
        let with = Seen {
            dirty: Some(pages),
            ..*seen
        };
        self.print(&json!({
            "event": "dirty",
            "round": round,
            "dirty_pages": pages,
            "bandwidth_bytes_per_second": seen.bandwidth,
            "estimated_downtime_seconds": with.downtime().map(|time| time.as_secs_f64()),
            "throttle_percent": seen.throttle,
        }));
    }

    fn round_started(&mut self, round: u32, pages: u64, last: bool) {
        tracing::info!(round, pages, last, "round");
        self.last = Instant::now();
        self.print(&json!({"event": "round", "round": round, "pages": pages, "last": last}));
    }

    fn sending(&mut self, round: u32, pages: &DirtySet) {
        let cells = heat::cells(pages, 0..pages.len());
        self.print(&json!({
            "event": "map",
            "round": round,
            "memory_pages": pages.len(),
            "cells": cells,
        }));
    }

    fn progress(&mut self, round: u32, sent: u64) {
        if self.last.elapsed() >= EVERY {
            self.last = Instant::now();
            self.print(&json!({
                "event": "progress",
                "round": round,
                "pages_sent": sent,
                "bandwidth_bytes_per_second": self.bandwidth,
            }));
        }
    }

    fn round_ended(&mut self, report: &RoundReport) {
        let mut event = serde_json::to_value(report).unwrap_or_default();
        if let Some(members) = event.as_object_mut() {
            members.insert("event".to_owned(), "round_end".into());
        }
        self.print(&event);
    }
}

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
