//! An OR that is made of compare and swap, as a device on PCI Express has to make it.

use super::{Effort, Result, ensure, repeat};
use crate::claims::figures::Figures;
use crate::claims::topics::{CAS_TIME, RETRIES};
use crate::memory::Random;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Words of the bitmap of 1 GiB.
const WORDS: usize = 1 << 12;
/// How far a device's read of a word is from its swap: about a round trip on the bus.
const ROUND_TRIP: Duration = Duration::from_nanos(500);

/// Which operation changes a word, and how long it takes from its read to its write.
#[derive(Clone, Copy, Debug)]
enum Operation {
    /// One that cannot fail.
    Atomic,
    /// Compare and swap until it succeeds.
    CompareAndSwap {
        /// Time from the read to the swap.
        apart: Duration,
    },
}

/// Toggles bits, so that every operation changes its word, as the first mark of a page does; how
/// often one had to be tried again.
fn toggle(operation: Operation, word: &AtomicU64, bit: u64) -> u64 {
    let Operation::CompareAndSwap { apart } = operation else {
        word.fetch_xor(bit, Ordering::Release);
        return 0;
    };
    let mut again = 0;
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        if !apart.is_zero() {
            let start = Instant::now();
            while start.elapsed() < apart {
                std::hint::spin_loop();
            }
        }
        match word.compare_exchange(seen, seen ^ bit, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return again,
            Err(now) => seen = now,
        }
        again += 1;
    }
}

/// So many operations by each of the writers, on words of the first `span`: the longest time, and
/// the retries of all.
fn run(
    operation: Operation,
    span: usize,
    writers: usize,
    each: usize,
    seed: u64,
) -> Result<(Duration, u64)> {
    let words: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
    let draw = |writer: u64| -> Result<Vec<(usize, u64)>> {
        let random = Random(seed * 64 + writer).take(each);
        random
            .map(|n| Ok((usize::try_from(n >> 8)? % span, 1 << (n % 64))))
            .collect()
    };
    let lists: Vec<_> = (0..writers as u64).map(draw).collect::<Result<_>>()?;
    let begin = Barrier::new(writers);
    let work = |list: &[(usize, u64)]| {
        begin.wait();
        let start = Instant::now();
        let again: u64 = list
            .iter()
            .map(|(word, bit)| toggle(operation, &words[*word], *bit))
            .sum();
        (start.elapsed(), again)
    };
    let all = thread::scope(|scope| {
        let work = &work;
        let spawn = |list| scope.spawn(move || work(list));
        let running: Vec<_> = lists.iter().map(|list| spawn(list)).collect();
        let joined = running.into_iter().map(|thread| thread.join());
        joined.collect::<std::result::Result<Vec<_>, _>>()
    });
    let all = all.map_err(|_| "a writer panicked")?;
    let toggled = lists
        .iter()
        .flatten()
        .fold(vec![0; span], |mut bits, (word, bit)| {
            bits[*word] ^= bit;
            bits
        });
    let same = words.iter().zip(&toggled);
    ensure(
        same.into_iter()
            .all(|(word, bits)| word.load(Ordering::Relaxed) == *bits),
        || "an operation was lost".to_owned(),
    )?;
    let longest = all.iter().map(|(time, _)| *time).max().unwrap_or_default();
    Ok((longest, all.iter().map(|(_, again)| again).sum()))
}

/// Retries of an OR that is made of compare and swap, and its time over that of a plain one.
pub fn retries(effort: Effort, figures: &mut Figures) -> Result<()> {
    for (name, span) in [
        ("anywhere in 1 GiB", WORDS),
        ("64 words", 64),
        ("one word", 1),
    ] {
        for writers in [1_u8, 2, 16] {
            let threads = usize::from(writers);
            let swap = |apart| Operation::CompareAndSwap { apart };
            let each = effort.pick(1 << 18, 1 << 12) / threads;
            let mut slower = Vec::new();
            let again = repeat(|seed| {
                let (plain, _) = run(Operation::Atomic, span, threads, each, seed)?;
                let (cas, again) = run(swap(Duration::ZERO), span, threads, each, seed)?;
                slower.push(cas.as_secs_f64() / plain.as_secs_f64());
                Ok(again as f64 / (each * threads) as f64)
            })?;
            figures.add(&CAS_TIME, name, writers, slower);
            figures.add(&RETRIES, format!("{name}, at once"), writers, again);
            let each = effort.pick(1 << 14, 1 << 8) / threads;
            let apart = repeat(|seed| {
                let (_, again) = run(swap(ROUND_TRIP), span, threads, each, seed)?;
                Ok(again as f64 / (each * threads) as f64)
            })?;
            figures.add(&RETRIES, format!("{name}, 0.5 µs apart"), writers, apart);
        }
    }
    Ok(())
}
