//! Guests and devices by the dozen, moved, suspended, reset and unmapped at random for as long as
//! one likes, with every page compared, every request accounted for, and the process watched for
//! what it does not give back.
//!
//! Time goes in phases. In a phase each lane does one thing after another; between phases all lanes
//! stand still, and whatever the process still has then, it has for good.

mod census;
mod lane;

pub use census::Census;

use crate::error::VmError;
use crate::machine::MarkingMode;
use lane::Lane;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Phases before the first census: whatever is made once is made then.
const WARM_UP: usize = 2;
/// A bug that is planted to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A descriptor is kept after each move.
    Leak,
    /// One request of each move is completed twice.
    Double,
}

/// What to do, and for how long.
#[derive(Clone, Debug)]
pub struct Soak {
    /// How many things go on at once.
    pub lanes: usize,
    /// Phases after the warm-up, at least one.
    pub phases: usize,
    /// How long a phase is; it ends when each lane has ended what it was doing.
    pub phase: Duration,
    /// Seed of everything random.
    pub seed: u64,
    /// How devices mark; with [`MarkingMode::Off`] the soak must fail. `None`: any way that marks.
    pub marking: Option<MarkingMode>,
    /// A bug to find.
    pub planted: Option<Planted>,
    /// Where disks and evidence go; there must be room for some 100 MB a lane.
    pub folder: PathBuf,
    /// Bytes of memory that there may be more in the end than after the warm-up. An allocator keeps
    /// what it was given back, the more the more threads there are.
    pub slack: u64,
}

/// What was done, and what was wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Guests that were moved.
    pub moves: u64,
    /// Of those, how many had an owner that kept records or moved parts.
    pub owned: u64,
    /// Suspensions of devices with full queues, outside of moves.
    pub suspensions: u64,
    /// Rounds of tracking, outside of moves.
    pub rounds: u64,
    /// Resets by guests' drivers.
    pub resets: u64,
    /// Edits of maps while devices worked.
    pub remaps: u64,
    /// Requests.
    pub requests: u64,
    /// Requests lost.
    pub lost_requests: u64,
    /// Requests done twice.
    pub doubled_requests: u64,
    /// Pages compared.
    pub pages: u64,
    /// Pages lost.
    pub lost_pages: u64,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.moves, other.moves),
            (&mut self.owned, other.owned),
            (&mut self.suspensions, other.suspensions),
            (&mut self.rounds, other.rounds),
            (&mut self.resets, other.resets),
            (&mut self.remaps, other.remaps),
            (&mut self.requests, other.requests),
            (&mut self.lost_requests, other.lost_requests),
            (&mut self.doubled_requests, other.doubled_requests),
            (&mut self.pages, other.pages),
            (&mut self.lost_pages, other.lost_pages),
        ];
        for (sum, more) in pairs {
            *sum += more;
        }
    }
}

/// The end of a soak.
#[derive(Clone, Debug, Serialize)]
pub struct Soaked {
    /// What was done.
    pub figures: Figures,
    /// The process between phases, after the warm-up.
    pub censuses: Vec<Census>,
    /// Everything that is wrong, with the seed that shows it again. None is a success.
    pub objections: Vec<String>,
}

/// What lanes share.
#[derive(Debug, Default)]
struct Shared {
    figures: Figures,
    censuses: Vec<Census>,
    objections: Vec<String>,
}

/// Does it.
///
/// # Errors
/// [`VmError`] if the process cannot be looked at. What goes wrong in a lane is an objection, and
/// ends the soak with the phase.
pub fn soak(plan: &Soak) -> Result<Soaked, VmError> {
    let shared = Mutex::new(Shared::default());
    let (barrier, ended) = (Barrier::new(plan.lanes), AtomicBool::new(false));
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for number in 0..plan.lanes {
            let (shared, barrier, ended, failed) = (&shared, &barrier, &ended, &failed);
            scope.spawn(move || {
                let mut lane = Lane::new(plan, number);
                for phase in 0..WARM_UP + plan.phases {
                    let until = Instant::now() + plan.phase;
                    while Instant::now() < until {
                        let (figures, objections) = lane.step();
                        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        shared.figures.add(&figures);
                        shared.objections.extend(objections);
                        if !shared.objections.is_empty() {
                            break;
                        }
                    }
                    // All stand still between these two, and one of them looks.
                    if barrier.wait().is_leader() {
                        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        match Census::take() {
                            Ok(census) if phase >= WARM_UP - 1 => shared.censuses.push(census),
                            Ok(_) => {}
                            Err(error) => {
                                *failed.lock().unwrap_or_else(PoisonError::into_inner) =
                                    Some(error);
                                ended.store(true, Ordering::Relaxed);
                            }
                        }
                        if !shared.objections.is_empty() {
                            ended.store(true, Ordering::Relaxed);
                        }
                    }
                    barrier.wait();
                    if ended.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let Shared {
        figures,
        censuses,
        mut objections,
    } = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let [first, .., last] = censuses.as_slice() {
        objections.extend(last.grown_from(first, plan.slack));
    }
    Ok(Soaked {
        figures,
        censuses,
        objections,
    })
}
