//! What happens at a step of a conversation.

use crate::process::Killer;
use migration::faults::{AtBytes, Fault, Fired, Planned, Random, Script, Step, Way};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Follows a conversation, and tells its steps by the bytes that make them.
pub trait Follow: Send {
    /// The steps among these bytes: the name, which of its name it is, counted from 1, and the
    /// bytes of this way before it.
    fn steps(&mut self, way: Way, bytes: &[u8]) -> Vec<(&'static str, u64, u64)>;
}

/// What is done to a connection or a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The process is killed before the step's bytes arrive.
    Kill,
    /// The connection ends so many bytes behind the place.
    Cut(u64),
    /// So many bytes arrive one at a time.
    Short(u32),
    /// A bit of this byte behind the place is the other one.
    Flip(u64, u8),
    /// So many bytes arrive twice.
    Duplicate(u32),
    /// What follows arrives later.
    Delay,
    /// A write to the disk finds no room, or cannot be made: this one.
    Disk(u64),
}

impl What {
    pub const ALL: [&'static str; 7] =
        ["kill", "cut", "short", "flip", "duplicate", "delay", "disk"];

    /// One of these by its name; the rest of it the seed decides. A cut comes at most `reach` bytes
    /// behind the place, and what changes bytes changes some of the first `head`.
    pub fn seeded(name: &str, random: &mut Random, reach: u64, head: u64) -> Self {
        let small = |n: u64| u32::try_from(n).unwrap();
        match name {
            "kill" => Self::Kill,
            "cut" => Self::Cut(random.below(reach)),
            "short" => Self::Short(small(1 + random.below(200))),
            "flip" => {
                let bit = u8::try_from(random.below(8)).unwrap();
                Self::Flip(random.below(head), bit)
            }
            "duplicate" => Self::Duplicate(small(head)),
            "delay" => Self::Delay,
            _ => Self::Disk(1 + random.below(60)),
        }
    }

    pub fn name(self) -> &'static str {
        Self::ALL[match self {
            Self::Kill => 0,
            Self::Cut(_) => 1,
            Self::Short(_) => 2,
            Self::Flip(..) => 3,
            Self::Duplicate(_) => 4,
            Self::Delay => 5,
            Self::Disk(_) => 6,
        }]
    }

    fn planned(self, way: Way, place: u64) -> Option<Planned> {
        let (behind, fault) = match self {
            Self::Kill | Self::Disk(_) => return None,
            Self::Cut(behind) => (behind, Fault::Cut),
            Self::Short(count) => (0, Fault::Short(count)),
            Self::Flip(behind, bit) => (behind, Fault::Flip(bit)),
            Self::Duplicate(count) => (0, Fault::Duplicate(count)),
            Self::Delay => (0, Fault::Delay(Duration::from_millis(5))),
        };
        let at = place + behind;
        Some(Planned { way, at, fault })
    }
}

/// One thing at one step, and the end of the victim at a later one.
pub struct AtStep<F> {
    follow: F,
    /// The step and what happens there, until it does. On the other way than the step's, it happens
    /// to the next bytes.
    at: Option<(&'static str, u64, What, Way)>,
    /// When the victim is killed in any case.
    last: Option<(&'static str, u64)>,
    victim: Killer,
    killed: Arc<AtomicBool>,
    passed: [u64; 2],
    faults: AtBytes,
    happened: Fired,
}

impl<F> AtStep<F> {
    pub fn new(
        follow: F,
        at: (&'static str, u64, What, Way),
        last: Option<(&'static str, u64)>,
        victim: Killer,
    ) -> Self {
        Self {
            follow,
            at: Some(at),
            last,
            victim,
            killed: Arc::default(),
            passed: [0; 2],
            faults: AtBytes::default(),
            happened: Fired::default(),
        }
    }

    /// Whether it has happened, to be asked during the run and after it.
    pub fn happened(&mut self) -> impl Fn() -> bool + use<F> {
        let killed = Arc::clone(&self.killed);
        self.faults = AtBytes::default();
        self.happened = self.faults.fired();
        let happened = self.happened.clone();
        move || killed.load(Ordering::Acquire) || !happened.all().is_empty()
    }
}

fn place(way: Way) -> usize {
    match way {
        Way::Forth => 0,
        Way::Back => 1,
    }
}

impl<F: Follow> Script for AtStep<F> {
    fn bytes(&mut self, way: Way, at: u64, bytes: &[u8]) -> Vec<Step> {
        for (name, nth, begin) in self.follow.steps(way, bytes) {
            if self.last == Some((name, nth)) {
                self.victim.kill();
            }
            let Some((_, _, what, to)) = self.at.take_if(|(n, t, ..)| (*n, *t) == (name, nth))
            else {
                continue;
            };
            let begin = if to == way {
                begin
            } else {
                self.passed[place(to)]
            };
            match what.planned(to, begin) {
                Some(planned) => self.faults.plan(planned),
                None => {
                    self.victim.kill();
                    self.killed.store(true, Ordering::Release);
                }
            }
        }
        self.passed[place(way)] = at + u64::try_from(bytes.len()).unwrap();
        self.faults.bytes(way, at, bytes)
    }

    fn ended(&mut self, way: Way) {
        self.faults.ended(way);
    }
}
