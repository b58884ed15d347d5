//! Every way to set a mark against every way to take it, at the same time, on few bytes.

use super::{Effort, Result, ensure, repeat};
use crate::claims::figures::Figures;
use crate::memory::Random;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
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
    fn write(&self, page: usize, value: u64, set: Set, data_first: bool, between: impl FnOnce()) {
        let mark = || set.mark(&self.marks[page / 8], 1 << (page % 8));
        let store = || self.data[page].store(value, Ordering::Release);
        if data_first {
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

/// Pages lost and reported for nothing, of a million that were written: each once a trial, by one
/// of the writers, while the driver takes marks all the time.
fn race(
    set: Set,
    take: Take,
    writers: usize,
    data_first: bool,
    trials: u64,
    seed: u64,
) -> Result<[f64; 2]> {
    let (field, mut copy) = (Field::new(), Copy::new());
    let mut order: Vec<usize> = (0..PAGES).collect();
    for (at, random) in (1..PAGES).zip(Random(seed)) {
        order.swap(at, usize::try_from(random % (at as u64 + 1))?);
    }
    let (begin, done) = (Barrier::new(writers + 1), AtomicUsize::new(0));
    let mut lost = 0_u64;
    thread::scope(|scope| {
        for writer in 0..writers {
            let (begin, done, order, field) = (&begin, &done, &order, &field);
            scope.spawn(move || {
                for trial in 1..=trials {
                    begin.wait();
                    for &page in order.iter().skip(writer).step_by(writers) {
                        field.write(page, trial, set, data_first, || ());
                    }
                    done.fetch_add(1, Ordering::Release);
                }
            });
        }
        for trial in 1..=trials {
            begin.wait();
            while done.load(Ordering::Acquire) < writers {
                copy.pass(&field, take);
            }
            done.store(0, Ordering::Relaxed);
            copy.pass(&field, take);
            lost += copy.wrong(trial);
            // What was lost is not to be found by chance in the next trial.
            copy.pages.fill(trial);
            field
                .marks
                .iter()
                .for_each(|byte| byte.store(0, Ordering::Relaxed));
        }
    });
    let written = (trials * PAGES as u64) as f64;
    Ok([lost, copy.spurious].map(|count| count as f64 / written * 1e6))
}

/// Lost and spurious pages for each pair of device and driver, and for the wrong order of mark and
/// data.
pub fn matrix(effort: Effort, figures: &mut Figures) -> Result<()> {
    let trials = effort.pick(200, 5);
    let mut run = |name: String, set, take, writers: u8, data_first| -> Result<()> {
        let mut spurious = Vec::new();
        let lost = repeat(|seed| {
            let [lost, more] = race(set, take, writers.into(), data_first, trials, seed)?;
            spurious.push(more);
            Ok(lost)
        })?;
        figures.add("lost", name.clone(), writers, lost);
        figures.add("spurious", name, writers, spurious);
        Ok(())
    };
    for writers in [1, 2] {
        for (set, device) in SETS {
            for (take, driver) in TAKES {
                run(format!("{device} / {driver}"), set, take, writers, true)?;
            }
        }
        let name = "mark first: atomic OR / swap".to_owned();
        run(name, Set::Or, Take::Swap, writers, false)?;
    }
    for (name, data_first) in [("mark first", false), ("data first", true)] {
        let samples = repeat(|seed| Ok(injected(data_first, seed)))?;
        figures.add("injected harvest", name, 1, samples);
    }
    Ok(())
}

/// Share of pages lost if a harvest falls between the mark and the data of each.
fn injected(data_first: bool, value: u64) -> f64 {
    let (field, mut copy) = (Field::new(), Copy::new());
    for page in 0..PAGES {
        field.write(page, value, Set::Or, data_first, || {
            copy.pass(&field, Take::Swap);
        });
    }
    copy.pass(&field, Take::Swap);
    copy.wrong(value) as f64 / PAGES as f64
}

/// One thread's marks of a list of words, each by an OR that is made of compare and swap, or by
/// one that is not; how often it had to try again.
fn or_all(words: &[AtomicU64], list: &[(usize, u64)], cas: bool) -> u64 {
    let mut again = 0;
    for &(word, bit) in list {
        let Some(word) = words.get(word) else {
            continue;
        };
        if !cas {
            word.fetch_or(bit, Ordering::Release);
            continue;
        }
        let mut seen = word.load(Ordering::Relaxed);
        while let Err(now) =
            word.compare_exchange(seen, seen | bit, Ordering::Release, Ordering::Relaxed)
        {
            seen = now;
            again += 1;
        }
    }
    again
}

/// Retries of an OR that is made of compare and swap, and its time over that of a plain one.
pub fn retries(effort: Effort, figures: &mut Figures) -> Result<()> {
    const WORDS: usize = 1 << 12;
    let marks = effort.pick(1 << 20, 1 << 12);
    let words: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
    for (name, span) in [
        ("anywhere in 1 GiB", WORDS),
        ("64 words", 64),
        ("one word", 1),
    ] {
        for writers in [1_u8, 2] {
            let run = |cas: bool, seed: u64| -> Result<(Duration, u64)> {
                words
                    .iter()
                    .for_each(|word| word.store(0, Ordering::Relaxed));
                let lists: Vec<Vec<(usize, u64)>> = (0..u64::from(writers))
                    .map(|writer| {
                        Random(seed * 2 + writer)
                            .take(marks)
                            .map(|n| (usize::try_from(n >> 8).unwrap_or(0) % span, 1 << (n % 64)))
                            .collect()
                    })
                    .collect();
                let begin = Barrier::new(lists.len());
                let work = |list: &Vec<(usize, u64)>| {
                    begin.wait();
                    let start = Instant::now();
                    let again = or_all(&words, list, cas);
                    (start.elapsed(), again)
                };
                thread::scope(|scope| {
                    let work = &work;
                    let running: Vec<_> = lists
                        .iter()
                        .map(|list| scope.spawn(move || work(list)))
                        .collect();
                    let mut all = (Duration::ZERO, 0);
                    for thread in running {
                        let (time, again) = thread.join().map_err(|_| "a writer panicked")?;
                        all = (all.0.max(time), all.1 + again);
                    }
                    Ok(all)
                })
            };
            let mut slower = Vec::new();
            let again = repeat(|seed| {
                let (plain, none) = run(false, seed)?;
                let (cas, again) = run(true, seed)?;
                ensure(none == 0, || "an OR was tried again".to_owned())?;
                slower.push(cas.as_secs_f64() / plain.as_secs_f64());
                Ok(again as f64 / (marks * usize::from(writers)) as f64)
            })?;
            figures.add("CAS retries", name, writers, again);
            figures.add("CAS time", name, writers, slower);
        }
    }
    Ok(())
}
