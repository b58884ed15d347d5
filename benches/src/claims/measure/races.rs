//! Every way to set a mark against every way to take it, at the same time, on few bytes.

use super::{Effort, Result, repeat};
use crate::claims::figures::Figures;
use crate::claims::topics::{INJECTED, LOST, SPURIOUS};
use crate::memory::Random;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

/// Pages of a trial: their marks fill eight cache lines, so that everybody meets everybody.
const PAGES: usize = 4096;

/// How a device sets a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    /// Reads the byte, and writes it back with the bit: two accesses.
    Plain,
    /// One atomic OR.
    Or,
    /// Compare and swap until it succeeds.
    Cas,
    /// Writes 0xFF, and reads nothing.
    Whole,
}

/// How a driver takes marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Take {
    /// Reads the byte, and writes 0: two accesses.
    LoadStore,
    /// One exchange with 0.
    Swap,
    /// Reads the byte, and atomically clears the bits that it has seen.
    FetchAnd,
}

const SETS: [(Set, &str); 4] = [
    (Set::Plain, "plain RMW"),
    (Set::Or, "atomic OR"),
    (Set::Cas, "CAS loop"),
    (Set::Whole, "whole byte"),
];
const TAKES: [(Take, &str); 3] = [
    (Take::LoadStore, "load-store"),
    (Take::Swap, "swap"),
    (Take::FetchAnd, "fetch_and"),
];

impl Set {
    fn mark(self, byte: &AtomicU8, bit: u8) {
        match self {
            Self::Plain => {
                let seen = byte.load(Ordering::Relaxed);
                byte.store(black_box(seen) | bit, Ordering::Release);
            }
            Self::Or => _ = byte.fetch_or(bit, Ordering::Release),
            Self::Cas => {
                let mut seen = byte.load(Ordering::Relaxed);
                while let Err(now) = byte.compare_exchange_weak(
                    seen,
                    seen | bit,
                    Ordering::Release,
                    Ordering::Relaxed,
                ) {
                    seen = now;
                }
            }
            Self::Whole => byte.store(0xff, Ordering::Release),
        }
    }
}

impl Take {
    fn take(self, byte: &AtomicU8) -> u8 {
        let seen = byte.load(Ordering::Acquire);
        if seen == 0 {
            return 0;
        }
        match self {
            Self::LoadStore => {
                byte.store(0, Ordering::SeqCst);
                seen
            }
            Self::Swap => byte.swap(0, Ordering::AcqRel),
            Self::FetchAnd => byte.fetch_and(!seen, Ordering::AcqRel) & seen,
        }
    }
}

/// Memory and its marks.
struct Field {
    data: Vec<AtomicU64>,
    marks: Vec<AtomicU8>,
}

/// What a driver has of a memory.
struct Copy {
    pages: Vec<u64>,
    spurious: u64,
}

impl Field {
    fn new() -> Self {
        Self {
            data: (0..PAGES).map(|_| AtomicU64::new(0)).collect(),
            marks: (0..PAGES / 8).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// Writes a page and marks it, in this order or the other; `between` the two.
    fn write(&self, page: usize, value: u64, pair: Pair, between: impl FnOnce()) {
        let mark = || pair.set.mark(&self.marks[page / 8], 1 << (page % 8));
        let store = || self.data[page].store(value, Ordering::Release);
        if pair.data_first {
            store();
            between();
            mark();
        } else {
            mark();
            between();
            store();
        }
    }
}

impl Copy {
    fn new() -> Self {
        Self {
            pages: vec![0; PAGES],
            spurious: 0,
        }
    }

    fn pass(&mut self, field: &Field, take: Take) {
        let mut found = [0_u8; PAGES / 8];
        for (byte, found) in field.marks.iter().zip(&mut found) {
            *found = take.take(byte);
        }
        fence(Ordering::SeqCst);
        for (number, bits) in found.into_iter().enumerate() {
            for bit in (0..8).filter(|bit| bits & (1 << bit) != 0) {
                let page = number * 8 + bit;
                let now = field.data[page].load(Ordering::Relaxed);
                self.spurious += u64::from(self.pages[page] == now);
                self.pages[page] = now;
            }
        }
    }

    fn wrong(&self, value: u64) -> u64 {
        self.pages.iter().filter(|page| **page != value).count() as u64
    }
}

/// A device and a driver that know nothing of each other.
#[derive(Clone, Copy, Debug)]
struct Pair {
    set: Set,
    take: Take,
    data_first: bool,
}

/// Pages lost and reported for nothing, of a million that were written: each once a trial, by one
/// of the writers, while the driver takes marks all the time.
fn race(pair: Pair, writers: usize, time: Duration, seed: u64) -> Result<[f64; 2]> {
    let (field, mut copy) = (Field::new(), Copy::new());
    let mut order: Vec<usize> = (0..PAGES).collect();
    for (at, random) in (1..PAGES).zip(Random(seed)) {
        order.swap(at, usize::try_from(random % (at as u64 + 1))?);
    }
    let (begin, done, end) = (
        Barrier::new(writers + 1),
        AtomicUsize::new(0),
        AtomicBool::new(false),
    );
    let (mut lost, mut trial) = (0_u64, 0_u64);
    thread::scope(|scope| {
        for writer in 0..writers {
            let (begin, done, end, order, field) = (&begin, &done, &end, &order, &field);
            scope.spawn(move || {
                for trial in 1.. {
                    begin.wait();
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                    for &page in order.iter().skip(writer).step_by(writers) {
                        field.write(page, trial, pair, || ());
                    }
                    done.fetch_add(1, Ordering::Release);
                }
            });
        }
        let start = Instant::now();
        while start.elapsed() < time {
            trial += 1;
            begin.wait();
            while done.load(Ordering::Acquire) < writers {
                copy.pass(&field, pair.take);
            }
            done.store(0, Ordering::Relaxed);
            copy.pass(&field, pair.take);
            lost += copy.wrong(trial);
            // What was lost is not to be found by chance in the next trial.
            copy.pages.fill(trial);
            field
                .marks
                .iter()
                .for_each(|byte| byte.store(0, Ordering::Relaxed));
        }
        end.store(true, Ordering::Relaxed);
        begin.wait();
    });
    let written = (trial * PAGES as u64) as f64;
    Ok([lost, copy.spurious].map(|count| count as f64 / written * 1e6))
}

/// Lost and spurious pages for each pair of device and driver, and for the wrong order of mark and
/// data.
pub fn matrix(effort: Effort, figures: &mut Figures) -> Result<()> {
    let time = Duration::from_millis(effort.pick(70, 1));
    let or = |data_first| Pair {
        set: Set::Or,
        take: Take::Swap,
        data_first,
    };
    for writers in [1_u8, 2, 16] {
        let mut pairs = Vec::new();
        for (set, device) in SETS {
            for (take, driver) in TAKES {
                let pair = Pair {
                    set,
                    take,
                    data_first: true,
                };
                pairs.push((format!("{device} / {driver}"), pair));
            }
        }
        pairs.push(("mark first: atomic OR / swap".to_owned(), or(false)));
        for (name, pair) in pairs {
            let mut spurious = Vec::new();
            let lost = repeat(|seed| {
                let [lost, more] = race(pair, writers.into(), time, seed)?;
                spurious.push(more);
                Ok(lost)
            })?;
            figures.add(&LOST, name.clone(), writers, lost);
            figures.add(&SPURIOUS, name, writers, spurious);
        }
    }
    for (name, data_first) in [("mark first", false), ("data first", true)] {
        let samples = repeat(|value| Ok(injected(or(data_first), value)))?;
        figures.add(&INJECTED, name, 1, samples);
    }
    Ok(())
}

/// Share of pages lost if a harvest falls between the mark and the data of each.
fn injected(pair: Pair, value: u64) -> f64 {
    let (field, mut copy) = (Field::new(), Copy::new());
    for page in 0..PAGES {
        field.write(page, value, pair, || copy.pass(&field, pair.take));
    }
    copy.pass(&field, pair.take);
    copy.wrong(value) as f64 / PAGES as f64
}
