//! What was done in a case, kept where it outlives a case that hangs.

use std::sync::{Arc, Mutex, PoisonError};

/// The last steps that a report shows.
const SHOWN: usize = 40;

/// The steps of one case. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    steps: Arc<Mutex<Vec<String>>>,
}

impl Trace {
    /// Records a step.
    pub fn step(&self, text: String) {
        self.steps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text);
    }

    /// The last steps, one a line, after a word on how many there were before.
    pub fn last_steps(&self) -> Vec<String> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let before = steps.len().saturating_sub(SHOWN);
        let told = (before > 0).then(|| format!("({before} earlier steps)"));
        told.into_iter()
            .chain(steps.iter().skip(before).cloned())
            .collect()
    }
}
