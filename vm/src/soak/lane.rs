//! One thing after another.

use super::{Figures, Planted, Soak};
use crate::error::VmError;
use crate::evidence::{RequestVerdict, judge_requests};
use crate::exercise::{Comeback, RoundReport, RoundStart, TrackOptions, Watcher};
use crate::exercise::{suspensions, track};
use crate::guest::block::splitmix;
use crate::guest::journal::{Entry, Event, Journal};
use crate::guest::{Pattern, Shape};
use crate::hypervisor::{Limits, Means};
use crate::in_process::{InProcess, migrate_in_process_beside};
use crate::machine::{MarkingMode, Remapper};
use crate::target::Target;
use driver::dirty::DirtySet;
use migration::observe::Silent;
use migration::policy::Rounds;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where a vIOMMU would put things.
const ALIASES: u64 = 1 << 40;

/// What goes on in a lane.
#[derive(Debug)]
pub(super) struct Lane<'a> {
    plan: &'a Soak,
    number: usize,
    /// The state of what decides everything.
    state: u64,
    kept: Vec<File>,
}

/// Looks on: the exercise judges itself, and memory is judged by moves.
struct Nobody;

impl Watcher for Nobody {
    fn ready(&mut self, _: &RoundStart) -> Result<(), VmError> {
        Ok(())
    }

    fn done(&mut self, _: &RoundReport, _: &DirtySet) -> Result<(), VmError> {
        Ok(())
    }
}

impl<'a> Lane<'a> {
    pub(super) fn new(plan: &'a Soak, number: usize) -> Self {
        Self {
            plan,
            number,
            state: splitmix(plan.seed ^ splitmix(number as u64)),
            kept: Vec::new(),
        }
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.state = splitmix(self.state);
        self.state % end
    }

    fn choose<T: Copy, const N: usize>(&mut self, all: [T; N]) -> T {
        let index = usize::try_from(self.below(N as u64)).unwrap_or(0);
        all[index % N]
    }

    /// Does one thing; tells what was done and what is wrong with it.
    pub(super) fn step(&mut self) -> (Figures, Vec<String>) {
        let from = self.state;
        let mut figures = Figures::default();
        // A lane that is gone would leave the others waiting for it for ever.
        let done = catch_unwind(AssertUnwindSafe(|| match self.below(8) {
            0 => self.suspend(&mut figures),
            1 => self.track(&mut figures),
            _ => self.travel(&mut figures),
        }));
        let objections = match done {
            Ok(Ok(objections)) => objections,
            Ok(Err(error)) => vec![error.to_string()],
            Err(_) => vec!["panicked, as the error output says".to_owned()],
        };
        let lane = self.number;
        let located = |what: String| format!("lane {lane}, state {from:#x}: {what}");
        (figures, objections.into_iter().map(located).collect())
    }

    fn suspend(&mut self, figures: &mut Figures) -> Result<Vec<String>, VmError> {
        let bus = Target::Emulated
            .open()
            .map_err(|error| VmError::Device(error.to_string()))?;
        let comeback = self.choose([Comeback::Resume, Comeback::Restore]);
        let times = 1 + u32::try_from(self.below(20)).unwrap_or(0);
        let report = suspensions(bus, times, 4, comeback)?;
        figures.suspensions += report.suspensions.len() as u64;
        figures.requests += report.requests.submitted;
        figures.lost_requests += report.requests.lost;
        figures.doubled_requests += report.requests.doubled;
        Ok(match report.is_good() {
            true => Vec::new(),
            false => vec![format!("suspensions by {comeback:?}: {report:?}")],
        })
    }

    fn track(&mut self, figures: &mut Figures) -> Result<Vec<String>, VmError> {
        let bus = Target::Emulated
            .open()
            .map_err(|error| VmError::Device(error.to_string()))?;
        let options = TrackOptions {
            rounds: 3,
            requests: 1000 + self.below(2000),
            granularity: self.choose([4096, 65536, 2 << 20]),
            harvest_every: 1 + self.below(200),
            suspensions: self
                .choose([
                    &[][..],
                    &[Comeback::Resume][..],
                    &[Comeback::Resume, Comeback::Restore][..],
                ])
                .to_vec(),
            seed: self.below(u64::MAX),
            ..TrackOptions::default()
        };
        let report = track(bus, &options, &mut Nobody)?;
        figures.rounds += report.rounds.len() as u64;
        figures.requests += report.requests.submitted;
        figures.lost_requests += report.requests.lost;
        figures.doubled_requests += report.requests.doubled;
        Ok(match report.is_good() {
            true => Vec::new(),
            false => vec![format!("tracking with {options:?}: {report:?}")],
        })
    }

    /// A guest as it may come.
    fn guest(&mut self) -> InProcess {
        let means = self.choose([
            Means::default(),
            Means::default(),
            Means {
                records: Some(1 << 16),
                parts: false,
            },
            Means {
                records: None,
                parts: true,
            },
            Means {
                records: Some(1 << 16),
                parts: true,
            },
        ]);
        let packed = self.below(3) == 0;
        // Only records outlive a reset, and the judge of resets knows split queues.
        let resets = means.records.is_some() && !packed && self.below(2) == 0;
        let any = self.choose([MarkingMode::Bits, MarkingMode::Bits, MarkingMode::Bytes]);
        // Records come from marks that are set bit by bit.
        let marking = if means.records.is_some() {
            MarkingMode::Bits
        } else {
            any
        };
        InProcess {
            shape: Shape {
                memory: (24 + 8 * self.below(4)) << 20,
                devices: 1 + u16::try_from(self.below(3)).unwrap_or(0),
                queues: 1 + u16::try_from(self.below(2)).unwrap_or(0),
                queue_size: 256,
                depth: self.choose([8, 32, 64]),
                blocks: 2048,
                pattern: self.choose([Pattern::Random, Pattern::Zipf, Pattern::Sequential]),
                writes_percent: self.choose([10, 30, 60]),
                seed: self.below(u64::MAX),
                marking: self.plan.marking.unwrap_or(marking),
                means,
                reset_every: if resets { 300 } else { 0 },
                packed,
            },
            granularity: match means.records {
                Some(_) => 4096,
                None => self.choose([4096, 65536, 2 << 20]),
            },
            policy: Rounds {
                min_rounds: 5,
                max_rounds: 6 + u32::try_from(self.below(4)).unwrap_or(0),
                stop_pages: 64,
            },
            plain_copies: 0,
            before: 500 + self.below(2000),
            after: 500 + self.below(2000),
            destination: Limits::default(),
        }
    }

    fn travel(&mut self, figures: &mut Figures) -> Result<Vec<String>, VmError> {
        let plan = self.guest();
        let folder = tempfile::Builder::new()
            .prefix("soak")
            .tempdir_in(&self.plan.folder)
            .map_err(VmError::file("make a folder in", &self.plan.folder))?;
        let (storm, edits) = (self.below(2) == 0, AtomicU64::new(0));
        let beside = |maps: Remapper, ended: &AtomicBool| {
            while storm && !ended.load(Ordering::Acquire) {
                edits.fetch_add(remap(&maps), Ordering::Relaxed);
            }
        };
        let outcome = migrate_in_process_beside(&plan, folder.path(), &mut Silent, beside)?;
        figures.moves += u64::from(outcome.moved);
        figures.owned += u64::from(outcome.moved && plan.shape.means.owned());
        figures.resets += outcome.resets;
        figures.remaps += edits.into_inner();
        let mut objections = outcome.objections();
        if let Some(memory) = &outcome.memory {
            figures.pages += memory.compared;
            figures.lost_pages += memory.lost_device + memory.lost_cpu + memory.lost_unused;
        }
        let mut requests = outcome.requests;
        match self.plan.planted {
            Some(Planted::Leak) => {
                let null = Path::new("/dev/null");
                self.kept
                    .push(File::open(null).map_err(VmError::file("open", null))?);
            }
            Some(Planted::Double) if outcome.moved => {
                requests = Some(doubled(&plan.shape, folder.path())?);
                if requests.is_some_and(|requests| !requests.clean()) {
                    objections.push("a request was done twice".to_owned());
                }
            }
            _ => {}
        }
        if let Some(requests) = requests {
            figures.requests += requests.submitted;
            figures.lost_requests += requests.lost;
            figures.doubled_requests += requests.doubled;
        }
        if !objections.is_empty() {
            objections.push(format!("of {plan:?}"));
        }
        Ok(objections)
    }
}

/// Maps low memory anew in place, and lets other addresses come and go; gives the number of edits.
fn remap(maps: &Remapper) -> u64 {
    // Refusals would be of numbers, which are right.
    let mut edits = u64::from(maps.map(0, 16 << 20, 0).is_ok());
    for n in 0..64 {
        edits += u64::from(maps.map(ALIASES + n * 8192, 4096, n * 4096).is_ok());
    }
    maps.unmap(ALIASES, 64 * 8192);
    edits + 1
}

/// Writes the first request of the first virtual CPU down as completed once more, and judges.
fn doubled(shape: &Shape, folder: &Path) -> Result<RequestVerdict, VmError> {
    let path = Journal::path(folder, "destination", 0);
    let once_more = Entry {
        event: Event::Completed,
        id: 0,
        block: 0,
        sequence: 0,
    };
    let mut journal = Journal::go_on(&path)?;
    journal.add(once_more)?;
    journal.flush()?;
    let (requests, _) = judge_requests(shape, folder, &["source", "destination"])?;
    Ok(requests)
}
