//! A run, as the JSON file has it.

use super::contests::{Contest, contests};
use super::figures::Figures;
use super::judge::Judgement;
use super::model::model;
use super::verdicts::judge;
use serde::{Deserialize, Serialize};
use std::fs;

/// What it was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub processor: String,
    /// How many of them there are.
    pub processors: usize,
    /// Vector extension of the scans.
    pub vectors: String,
    /// The kernel.
    pub kernel: String,
    /// Whether shared memory may lie on huge pages; the choice is in brackets.
    pub shared_huge_pages: String,
    /// Minutes of the processors' queue: above one for each processor, others were at work, too.
    pub load: String,
}

/// Everything that a report says in numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Where.
    pub machine: Machine,
    /// Small guests were measured, for the sake of a test.
    pub quick: bool,
    /// How long it took.
    pub seconds: f64,
    /// Everything measured.
    pub figures: Figures,
    /// What it decides.
    pub judgements: Vec<Judgement>,
    /// Who wins where.
    pub contests: Vec<Contest>,
    /// The bus model's answers.
    pub bus_model: Figures,
}

impl Machine {
    /// This one. What the system does not say is left empty.
    pub fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let line = |path| read(path).trim().to_owned();
        let cpuinfo = read("/proc/cpuinfo");
        let name = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let name = name.and_then(|line| line.split(':').nth(1));
        Self {
            processor: name.unwrap_or_default().trim().to_owned(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            vectors: crate::limit::simd_name(),
            kernel: line("/proc/sys/kernel/osrelease"),
            shared_huge_pages: line("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            load: line("/proc/loadavg"),
        }
    }
}

impl Run {
    /// A run with all that follows from its figures.
    pub fn new(machine: Machine, quick: bool, seconds: f64, figures: Figures) -> Self {
        Self {
            machine,
            quick,
            seconds,
            judgements: judge(&figures),
            contests: contests(&figures),
            bus_model: model(&figures),
            figures,
        }
    }
}
