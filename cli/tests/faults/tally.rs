//! What all runs of a kind came to.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What became of one run.
#[derive(Debug, Default)]
pub struct Result {
    /// The fault happened.
    pub fired: bool,
    /// Who had the guest in the end, or why nobody.
    pub ended: &'static str,
    /// Pages of the survivor that were compared, and those that differ.
    pub compared: u64,
    pub lost: u64,
    /// Memories that the survivor's must not be, and is not.
    pub controls: u64,
    /// Requests of the guest that were judged.
    pub requests: u64,
    /// What is wrong; nothing is good.
    pub wrong: Vec<String>,
}

/// What was to happen, and where.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    /// The step, and which of its name.
    pub step: (&'static str, u64),
    pub side: &'static str,
    pub what: &'static str,
}

/// Adds runs up.
#[derive(Debug, Default)]
pub struct Tally {
    counted: u64,
    idle: u64,
    compared: u64,
    lost: u64,
    controls: u64,
    requests: u64,
    wrong: u64,
    hits: BTreeMap<String, u64>,
    faults: BTreeMap<&'static str, u64>,
    ends: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Nothing yet, of which each of these sides is to be hit at each of these steps.
    pub fn of(steps: &[&str], sides: &[&str]) -> Self {
        let cells = steps
            .iter()
            .flat_map(|step| sides.iter().map(move |side| (format!("{step} {side}"), 0)));
        Self {
            hits: cells.collect(),
            ..Self::default()
        }
    }

    /// Adds a try of a turn, and says what it came to.
    pub fn add(&mut self, kind: &str, (turn, attempt): (u64, u64), aim: &Aim, run: &Result) {
        let Aim {
            step: (step, nth),
            side,
            what,
        } = *aim;
        println!(
            "{kind} {turn}.{attempt}: {what} at {step} {nth}, {side}: {}{}; {}",
            if run.fired { "" } else { "did not happen, " },
            run.ended,
            if run.wrong.is_empty() {
                "nothing lost".to_owned()
            } else {
                run.wrong.join("; ")
            },
        );
        self.wrong += u64::from(!run.wrong.is_empty());
        self.compared += run.compared;
        self.lost += run.lost;
        self.controls += run.controls;
        self.requests += run.requests;
        if !run.fired {
            self.idle += 1;
            return;
        }
        self.counted += 1;
        *self.hits.entry(format!("{step} {side}")).or_default() += 1;
        *self.faults.entry(what).or_default() += 1;
        *self.ends.entry(run.ended).or_default() += 1;
    }

    /// Prints the figures, and gives them.
    pub fn figures(&self, kind: &str) -> Value {
        let figures = json!({
            "kind": kind, "runs": self.counted, "without_a_fault": self.idle,
            "wrong_runs": self.wrong, "pages_compared": self.compared, "pages_lost": self.lost,
            "controls_that_differ": self.controls,
            "requests": self.requests,
            "steps": self.hits, "faults": self.faults, "ends": self.ends,
            "least_hits_of_a_step_and_side": self.hits.values().min(),
        });
        println!("figures {figures}");
        figures
    }
}
