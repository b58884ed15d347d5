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
    /// Runs whose fault happened.
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// Adds a run with this seed, which meant to do something at the step to a side, and says so.
    pub fn add(
        &mut self,
        kind: &str,
        seed: u64,
        at: (&str, u64, &str),
        what: &'static str,
        run: &Result,
    ) {
        let (step, nth, side) = at;
        println!(
            "{kind} {seed}: {what} at {step} {nth}, {side}: {}{}; {}",
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
