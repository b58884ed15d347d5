//! Two sides of a pair, a relay between them, and what may not happen whatever happens.

mod guests;
mod matrix;

use crate::common::contents;
use guests::{Copy, Machine, PAGES};
use migration::checkpoint::{
    CheckpointError, EpochReport, Kind, Line, Primary, Secondary, Side, Survived,
};
use migration::faults::{AtMessage, Deed, Random, relay};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What happens at a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// The connection is cut so many bytes behind the message's first one.
    Cut(usize),
    /// Whoever is to survive is told to, while the message is on its way.
    Ask,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The message, and which of its kind. None: both sides are idle after the checkpoints.
    pub at: Option<(Kind, u64, Hit)>,
    /// Who goes on.
    pub survivor: Side,
    /// Checkpoints, if nothing comes in between.
    pub checkpoints: u64,
    pub seed: u64,
    /// The secondary's copy of the guest runs as well.
    pub runs: bool,
}

/// What became of a run.
pub struct Outcome {
    pub primary: Machine,
    pub secondary: Copy,
    /// Why each side's checkpoints ended.
    pub ended: (Option<CheckpointError>, CheckpointError),
    pub survived: Option<Survived>,
    pub taken_over: Option<u64>,
    pub fired: bool,
    pub reports: Vec<EpochReport>,
}

pub fn run(plan: Plan) -> Outcome {
    let (here, first) = UnixStream::pair().unwrap();
    let (second, there) = UnixStream::pair().unwrap();
    let (line, mine) = Line::new(here);
    let (their_line, theirs) = Line::new(there);
    let survivor = match plan.survivor {
        Side::Primary => mine.clone(),
        Side::Secondary => theirs.clone(),
    };
    let asked = survivor.clone();
    let script = match plan.at {
        None => AtMessage::watch(),
        Some((kind, nth, Hit::Cut(behind))) => AtMessage::new(kind, nth, Deed::Cut(behind)),
        Some((kind, nth, Hit::Ask)) => {
            let ask = move || {
                asked.fail_over().unwrap();
            };
            AtMessage::new(kind, nth, Deed::Call(Box::new(ask)))
        }
    };
    let (fired, in_order) = (script.fired(), script.in_order());
    let relay = relay(first, second, script).unwrap();

    let their_switch = theirs.clone();
    let other = std::thread::spawn(move || {
        let mut copy = Copy::new(plan.runs);
        let paired = Secondary::pair(&mut copy, their_line, their_switch, PATIENCE);
        let mut secondary = match paired {
            Ok(secondary) => secondary,
            Err(error) => return (copy, error, None),
        };
        let ended = secondary.run(|_, copy| copy.remember());
        // Whoever does not survive is gone: its side of the connection ends with it.
        let taken = (plan.survivor == Side::Secondary).then(|| secondary.take_over().unwrap());
        (copy, ended, taken)
    });

    let mut machine = Machine::new(plan.seed);
    let mut random = Random::new(plan.seed);
    let (mut ended, mut survived, mut reports) = (None, None, Vec::new());
    match Primary::pair(&mut machine, line, mine, PATIENCE) {
        Ok((mut primary, first)) => {
            reports.push(first);
            for _ in 0..plan.checkpoints {
                primary.guest().work(&mut random);
                match primary.checkpoint() {
                    Ok(report) => reports.push(report),
                    Err(error) => {
                        ended = Some(error);
                        break;
                    }
                }
            }
            if plan.at.is_none() {
                primary.guest().work(&mut random);
                survivor.fail_over().unwrap();
            } else if survivor.state() == migration::checkpoint::failover::State::None {
                survivor.fail_over().unwrap();
            }
            match plan.survivor {
                Side::Primary => survived = Some(primary.survive().unwrap()),
                Side::Secondary => drop(primary),
            }
        }
        Err((error, alone)) => {
            ended = Some(error);
            survived = Some(alone);
        }
    }
    let (secondary, their_end, taken_over) = other.join().unwrap();
    relay.join();
    assert!(in_order.load(Ordering::Acquire), "{plan:?}");
    let fired = fired.load(Ordering::Acquire);
    Outcome {
        primary: machine,
        secondary,
        ended: (ended, their_end),
        survived,
        taken_over,
        fired,
        reports,
    }
}

impl Outcome {
    /// What must be so after every run.
    pub fn judge(&mut self, plan: &Plan) {
        let told = (
            self.ended.0.as_ref().map(ToString::to_string),
            self.ended.1.to_string(),
        );
        assert!(
            !told.1.is_empty() && told.0.as_deref() != Some(""),
            "{told:?}"
        );
        // However a checkpoint ended, both sides were equal after it.
        for (number, snapshot) in self.secondary.snapshots.iter().enumerate() {
            let same = Some(snapshot) == self.primary.snapshots.get(number);
            assert!(same, "checkpoint {number}: {plan:?}");
        }
        match plan.survivor {
            Side::Secondary if self.taken_over.is_some() => {
                let epochs = usize::try_from(self.taken_over.unwrap()).unwrap();
                assert!(self.secondary.runs_alone);
                let now = contents(&self.secondary.memory());
                assert!(now == self.primary.snapshots[epochs], "{plan:?}");
                // Nothing that the world saw is unknown to the one that goes on.
                let known = &self.secondary.output;
                let seen = &self.primary.seen;
                assert!(seen.iter().all(|out| known.contains(out)), "{plan:?}");
            }
            _ => {
                assert!(self.primary.runs, "{plan:?}");
                let survived = self.survived.as_ref().unwrap();
                assert_eq!(survived.aftermath, [""; 0], "{plan:?}");
                assert!(
                    self.primary.held.is_empty(),
                    "everything went out: {plan:?}"
                );
                assert_eq!(self.primary.seen, self.primary.produced, "{plan:?}");
                // Whatever differs from what the secondary has is still somebody's dirty page.
                let mine = contents(&self.primary.memory);
                let dirty = self.primary.dirty();
                let empty = Vec::new();
                let theirs = self.secondary.snapshots.last().unwrap_or(&empty);
                for page in 0..PAGES {
                    let at = usize::try_from(page * 4096).unwrap();
                    let same = theirs.get(at..at + 4096) == mine.get(at..at + 4096);
                    let known = dirty.contains(&page) || theirs.is_empty();
                    assert!(same || known, "page {page} is lost: {plan:?}");
                }
            }
        }
    }
}

/// A period that never ends within a test.
pub const NEVER: Duration = Duration::from_secs(3600);

/// How long a side waits for what never comes.
pub const PATIENCE: Duration = Duration::from_millis(500);
