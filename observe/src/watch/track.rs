//! A device that is driven for the purpose: `tidemark track`, watched.

use super::feed::{Feed, Update, WAITING};
use super::heat;
use super::view::Round;
use driver::bus::Bus;
use driver::dirty::DirtySet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use vm::VmError;
use vm::exercise::{self, Moment, RoundReport, RoundStart, Suspension, TrackOptions, Watcher};

/// How often a pause looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// Drives `bus` by `options` on a thread of its own. A round begins no sooner than `interval` after
/// the one before it.
pub fn watch_device(bus: Arc<dyn Bus>, options: TrackOptions, interval: Duration) -> Feed {
    let (updates, told) = sync_channel(WAITING);
    let stop = Arc::new(AtomicBool::new(false));
    let mut teller = Teller {
        updates,
        stop: Arc::clone(&stop),
        interval,
        began: None,
        start: None,
        before: 0,
    };
    thread::spawn(move || {
        let tracked = exercise::track(bus, &options, &mut teller);
        let trouble = match tracked {
            Err(error) => Some(error.to_string()),
            Ok(report) if report.is_good() => None,
            Ok(_) => Some(
                "pages were lost, reads were wrong, or requests were not done exactly once"
                    .to_owned(),
            ),
        };
        teller.tell(Update::Ended(trouble));
    });
    Feed {
        updates: told,
        stop,
        ends: true,
    }
}

struct Teller {
    updates: SyncSender<Update>,
    stop: Arc<AtomicBool>,
    interval: Duration,
    /// When the last round began.
    began: Option<Instant>,
    start: Option<RoundStart>,
    /// Requests of the rounds before this one.
    before: u64,
}

impl Teller {
    fn tell(&self, update: Update) {
        // Nobody looks any more: the round in hand is finished all the same.
        if self.updates.send(update).is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Watcher for Teller {
    fn ready(&mut self, start: &RoundStart) -> Result<(), VmError> {
        let until = self.began.map(|began| began + self.interval);
        while let Some(left) = until.map(|until| until.saturating_duration_since(Instant::now()))
            && !left.is_zero()
            && !self.stops()
        {
            thread::sleep(left.min(LOOK));
        }
        self.began = Some(Instant::now());
        if self.start.is_none() {
            self.tell(Update::Memory { pages: start.pages });
        }
        self.start = Some(*start);
        Ok(())
    }

    fn done(&mut self, report: &RoundReport, harvested: &DirtySet) -> Result<(), VmError> {
        let Some(start) = self.start else {
            return Ok(());
        };
        let first = start.iova / driver::dirty::PAGE_SIZE;
        let cells = heat::cells(harvested, first..first + start.pages);
        self.before += report.requests;
        self.tell(Update::Moves {
            requests: self.before,
            queues: Vec::new(),
        });
        self.tell(Update::Round(Round {
            round: report.round,
            pages: report.harvested,
            bytes: report.bytes_read,
            written: Some(report.written),
            lost: Some(report.lost),
            harvests: Some(report.harvests),
            seconds: report.seconds,
            suspended: !report.suspensions.is_empty(),
            cells,
        }));
        Ok(())
    }

    fn moves(&mut self, moment: &Moment) {
        self.tell(Update::Moves {
            requests: self.before + moment.requests,
            queues: moment.queues.clone(),
        });
    }

    fn suspended(&mut self, suspension: &Suspension) {
        let queues = suspension.queues.iter();
        self.tell(Update::Suspended {
            status: suspension.status.clone(),
            indices: queues
                .map(|queue| (queue.index, queue.size, queue.avail, queue.used))
                .collect(),
        });
    }

    fn enough(&mut self) -> bool {
        self.stops()
    }
}
