//! Faults of a connection, injected by whoever stands between its two ends.
//!
//! A [`relay`](relay()) passes bytes on both ways and does what a [`Script`] says: at a byte, as
//! [`AtBytes`] has it, at a message of a pair, as [`AtMessage`] has it, or at whatever else a script
//! can tell from the bytes. Everything random comes
//! from a seed.

mod at_message;
mod relay;

pub use at_message::{AtMessage, Deed};
pub use relay::{Relay, relay};

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the first end to the second.
    Forth,
    /// From the second end to the first.
    Back,
}

/// A fault.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends, both ways: nothing of this byte or after it arrives.
    Cut,
    /// This bit of the byte, 0 to 7, is the other one.
    Flip(u8),
    /// So many bytes from here on arrive one at a time.
    Short(u32),
    /// The byte arrives so much later.
    Delay(Duration),
    /// So many bytes from here on arrive twice, as far as they come together.
    Duplicate(u32),
    /// The byte waits until the gate is open: until another connection has come to its place.
    Hold(Gate),
    /// Opens the gate.
    Open(Gate),
}

impl Fault {
    /// Its name, for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Flip(_) => "flip",
            Self::Short(_) => "short",
            Self::Delay(_) => "delay",
            Self::Duplicate(_) => "duplicate",
            Self::Hold(_) => "hold",
            Self::Open(_) => "open",
        }
    }
}

/// Makes one connection wait for another, and so reorders what two say that know nothing of each
/// other.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Lets everybody pass, now and later.
    pub fn open(&self) {
        *self.lock() = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open.
    pub fn pass(&self) {
        let mut open = self.lock();
        while !*open {
            open = self.0.1.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of bytes.
#[derive(Clone, Debug)]
pub enum Step {
    /// These arrive.
    Pass(Vec<u8>),
    /// What follows arrives so much later.
    Wait(Duration),
    /// What follows waits for the gate.
    Hold(Gate),
    /// The connection ends.
    Cut,
}

/// Decides what becomes of bytes. Asked for both ways, never for both at once, and before anything
/// of the bytes arrives: what an end answers to something is asked for later than that.
pub trait Script: Send {
    /// Bytes go this way; `at` have gone before them.
    fn bytes(&mut self, way: Way, at: u64, bytes: &[u8]) -> Vec<Step>;
    /// This way has come to its end.
    fn ended(&mut self, way: Way) {
        let _ = way;
    }
}

/// A fault and its place.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Which way.
    pub way: Way,
    /// Bytes of that way before it.
    pub at: u64,
    /// What happens there.
    pub fault: Fault,
}

/// Faults at given bytes.
#[derive(Debug, Default)]
pub struct AtBytes {
    /// In ascending order of their places.
    planned: VecDeque<Planned>,
    /// Those that happened.
    fired: Fired,
}

/// Which faults have happened so far: a run in which none did proves nothing.
#[derive(Clone, Debug, Default)]
pub struct Fired(Arc<Mutex<Vec<Planned>>>);

impl Fired {
    /// All of them, in their order.
    pub fn all(&self) -> Vec<Planned> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Planned>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AtBytes {
    /// These faults.
    pub fn new(mut planned: Vec<Planned>) -> Self {
        planned.sort_by_key(|planned| planned.at);
        Self {
            planned: planned.into(),
            fired: Fired::default(),
        }
    }

    /// One to four faults within the first `forth` and `back` bytes of either way, the last of them
    /// one that does harm.
    pub fn seeded(seed: u64, forth: u64, back: u64) -> Self {
        let mut random = Random::new(seed);
        let mut planned = Vec::new();
        let harmless = random.below(4);
        for number in 0..=harmless {
            let (way, most) = if random.below(forth.saturating_add(back).max(1)) < forth {
                (Way::Forth, forth)
            } else {
                (Way::Back, back)
            };
            let fault = match random.below(3) {
                _ if number < harmless => match random.below(2) {
                    0 => Fault::Short(u32::try_from(1 + random.below(64)).unwrap_or(1)),
                    _ => Fault::Delay(Duration::from_micros(random.below(2000))),
                },
                0 => Fault::Cut,
                1 => Fault::Flip(u8::try_from(random.below(8)).unwrap_or(0)),
                _ => Fault::Duplicate(u32::try_from(1 + random.below(16)).unwrap_or(1)),
            };
            let at = random.below(most.max(1));
            planned.push(Planned { way, at, fault });
        }
        Self::new(planned)
    }

    /// Adds a fault, whose place is known only now.
    pub fn plan(&mut self, planned: Planned) {
        let later = self.planned.partition_point(|p| p.at <= planned.at);
        self.planned.insert(later, planned);
    }

    /// Tells, during the run and after it, which faults have happened.
    pub fn fired(&self) -> Fired {
        self.fired.clone()
    }

    fn take(&mut self, way: Way, before: u64) -> Option<Planned> {
        let mut all = self.planned.iter();
        let found = all.position(|planned| planned.way == way && planned.at < before)?;
        let planned = self.planned.remove(found)?;
        self.fired.lock().push(planned.clone());
        Some(planned)
    }
}

impl Script for AtBytes {
    fn bytes(&mut self, way: Way, at: u64, bytes: &[u8]) -> Vec<Step> {
        let mut bytes = bytes.to_vec();
        let mut done = 0;
        let mut steps = Vec::new();
        let end = at.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        while let Some(Planned {
            at: place, fault, ..
        }) = self.take(way, end)
        {
            let here = usize::try_from(place.saturating_sub(at))
                .unwrap_or(0)
                .max(done);
            steps.push(Step::Pass(
                bytes.get(done..here).unwrap_or_default().to_vec(),
            ));
            done = here;
            match fault {
                Fault::Cut => {
                    steps.push(Step::Cut);
                    return steps;
                }
                Fault::Flip(bit) => {
                    if let Some(byte) = bytes.get_mut(here) {
                        *byte ^= 1 << (bit % 8);
                    }
                }
                Fault::Short(count) => {
                    let count = usize::try_from(count).unwrap_or(usize::MAX);
                    let slow = bytes.iter().skip(here).take(count);
                    steps.extend(slow.map(|byte| Step::Pass(vec![*byte])));
                    done = here.saturating_add(count).min(bytes.len());
                }
                Fault::Delay(time) => steps.push(Step::Wait(time)),
                Fault::Duplicate(count) => {
                    let count = usize::try_from(count).unwrap_or(usize::MAX);
                    let twice = bytes.iter().skip(here).take(count).copied();
                    steps.push(Step::Pass(twice.collect()));
                }
                Fault::Hold(gate) => steps.push(Step::Hold(gate)),
                Fault::Open(gate) => gate.open(),
            }
        }
        steps.push(Step::Pass(bytes.get(done..).unwrap_or_default().to_vec()));
        steps
    }

    fn ended(&mut self, _: Way) {
        // Nobody waits for a place that is never reached.
        for planned in &self.planned {
            if let Fault::Open(gate) | Fault::Hold(gate) = &planned.fault {
                gate.open();
            }
        }
    }
}

/// Numbers that a seed decides.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64().checked_rem(end).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
