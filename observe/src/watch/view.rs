//! What is shown.

use super::feed::Update;
use super::heat::cell_pages;
use serde::Serialize;

/// Rounds that are kept; of more, the earliest go, and still count in the sums.
pub const ROUNDS_MAX: usize = 4096;
/// Lines of others that are kept.
const OTHERS_MAX: usize = 1000;

/// Where a device is in its life, as far as a watcher is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// Nothing was heard of it yet.
    #[default]
    Waiting,
    /// It works.
    Running,
    /// It is suspended, or was when it was last looked at.
    Suspended,
    /// All is over.
    Ended,
}

/// One round of harvesting.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Round {
    /// Its number.
    pub round: u32,
    /// Pages of 4 KiB that were dirty.
    pub pages: u64,
    /// Bytes: what the device wrote, or what was sent.
    pub bytes: u64,
    /// Pages that the device wrote by its driver's account, if somebody keeps one.
    pub written: Option<u64>,
    /// Pages that were written and not harvested, if somebody knows.
    pub lost: Option<u64>,
    /// Harvests that the round took, if somebody counts.
    pub harvests: Option<u64>,
    /// How long it took.
    pub seconds: f64,
    /// The device was suspended during it, or for it.
    pub suspended: bool,
    /// Dirty pages, cell by cell from the first page on.
    pub cells: Vec<u64>,
}

/// One queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// Its number.
    pub queue: u16,
    /// Entries.
    pub size: u16,
    /// Requests in flight when it was last looked at.
    pub in_flight: u64,
    /// The available and the used state that the device showed when it was last suspended.
    pub indices: Option<(u16, u16)>,
}

/// All that a watcher knows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct View {
    /// What is watched.
    pub target: String,
    /// Pages of memory that the cells stand for.
    pub memory_pages: u64,
    /// Where the device is in its life.
    pub life: Life,
    /// Names of its status bits, as last read.
    pub status: String,
    /// Times that it was suspended.
    pub suspends: u64,
    /// Requests made available so far.
    pub requests: u64,
    /// Rounds heard of.
    pub rounds_total: u64,
    /// Dirty pages of all rounds together.
    pub pages_total: u64,
    /// Pages lost in all rounds together.
    pub lost_total: u64,
    /// The latest rounds, in order.
    pub rounds: Vec<Round>,
    /// The queues.
    pub queues: Vec<Queue>,
    /// Why it ended, if that was not well.
    pub trouble: Option<String>,
    /// Lines that were no events, for whoever wants them.
    #[serde(skip)]
    pub others: Vec<String>,
}

impl View {
    /// Of a target that nothing was heard of yet.
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            ..Self::default()
        }
    }

    /// Takes in what happened.
    pub fn take(&mut self, update: Update) {
        match update {
            Update::Memory { pages } => self.memory_pages = pages,
            Update::Moves { requests, queues } => {
                self.requests = self.requests.max(requests);
                self.life = Life::Running;
                for (index, (size, in_flight)) in (0..).zip(queues) {
                    let queue = self.queue(index);
                    (queue.size, queue.in_flight) = (size, in_flight);
                }
            }
            Update::Suspended { status, indices } => {
                self.life = Life::Suspended;
                self.status = status;
                self.suspends += 1;
                for (index, size, avail, used) in indices {
                    let queue = self.queue(index);
                    queue.size = size;
                    queue.indices = Some((avail, used));
                }
            }
            Update::Round(round) => {
                self.rounds_total += 1;
                self.pages_total = self.pages_total.saturating_add(round.pages);
                let lost = round.lost.unwrap_or(0);
                self.lost_total = self.lost_total.saturating_add(lost);
                if self.rounds.len() == ROUNDS_MAX {
                    self.rounds.remove(0);
                }
                self.rounds.push(round);
            }
            Update::Other(line) => {
                if self.others.len() < OTHERS_MAX {
                    self.others.push(line);
                }
            }
            Update::Ended(trouble) => {
                self.life = Life::Ended;
                self.trouble = trouble;
                self.queues.iter_mut().for_each(|queue| queue.in_flight = 0);
            }
        }
    }

    fn queue(&mut self, index: u16) -> &mut Queue {
        let found = self.queues.iter().position(|queue| queue.queue == index);
        let at = found.unwrap_or_else(|| {
            self.queues.push(Queue {
                queue: index,
                ..Queue::default()
            });
            self.queues.len() - 1
        });
        &mut self.queues[at]
    }

    /// How much of a cell is dirty, from 0 to 1.
    pub fn share(&self, cell: usize, dirty: u64) -> f64 {
        let each = cell_pages(self.memory_pages);
        let begin = u64::try_from(cell).unwrap_or(u64::MAX).saturating_mul(each);
        let pages = self.memory_pages.saturating_sub(begin).min(each).max(1);
        (dirty as f64 / pages as f64).min(1.0)
    }

    /// Where the device is, in a word for people.
    pub fn state(&self) -> &'static str {
        match self.life {
            Life::Waiting => "waiting",
            Life::Running => "running",
            Life::Suspended => "SUSPENDED",
            Life::Ended => "ended",
        }
    }
}
