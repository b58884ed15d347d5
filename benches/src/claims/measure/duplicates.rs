//! Pages that are reported and bring nothing new, while a device goes on writing.

use super::bed::{Recorded, Tracked};
use super::patterns::zipf;
use super::{Effort, PAGE, Result, ensure, repeat};
use crate::claims::figures::Figures;
use crate::claims::topics::{REPORTS, USELESS};
use crate::memory::Random;
use device::dma::Dma;
use device::tracker::Marking;
use driver::dirty::DirtySet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const POWER: u32 = 14;

/// Waits without a system call for as long as the other thread surely runs, too.
fn wait(until: impl Fn() -> bool) {
    for spin in 0_u32.. {
        if until() {
            return;
        }
        if spin < 1000 {
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }
}

/// Reports over written pages, and the share of the reports that bring nothing new.
fn run(
    dma: &Dma,
    writes: u64,
    interval: u64,
    seed: u64,
    mut collect: impl FnMut(&mut DirtySet) -> Result<()>,
) -> Result<[f64; 2]> {
    let pages = 1_usize << POWER;
    let data: Vec<AtomicU64> = (0..pages).map(|_| AtomicU64::new(0)).collect();
    let done = AtomicU64::new(0);
    // The device goes on while the driver reads, and is never more than two reads ahead of it.
    let allowed = AtomicU64::new(2 * interval);
    let device = || {
        let mut random = Random(seed);
        for write in 1..=writes {
            wait(|| allowed.load(Ordering::Acquire) >= write);
            let page = zipf(&mut random, POWER);
            let guard = dma.enter();
            if let Some(data) = usize::try_from(page).ok().and_then(|at| data.get(at)) {
                data.store(write, Ordering::Relaxed);
            }
            let mut written = guard.written();
            written.record(page * PAGE, PAGE);
            guard.mark(&written);
            done.store(write, Ordering::Release);
        }
    };
    let mut copy = vec![0; pages];
    let (mut reports, mut useless) = (0_u64, 0_u64);
    thread::scope(|scope| {
        scope.spawn(device);
        let mut next = interval.min(writes);
        loop {
            wait(|| done.load(Ordering::Acquire) >= next);
            let mut found = DirtySet::new(pages as u64);
            collect(&mut found)?;
            for page in found.iter() {
                let page = usize::try_from(page)?;
                let now = data[page].load(Ordering::Relaxed);
                reports += 1;
                useless += u64::from(copy[page] == now);
                copy[page] = now;
            }
            if next == writes {
                return Ok::<_, super::Error>(());
            }
            next = (next + interval).min(writes);
            allowed.store(next + interval, Ordering::Release);
        }
    })?;
    let wrong = (0..pages).filter(|page| copy[*page] != data[*page].load(Ordering::Relaxed));
    let wrong = wrong.count();
    ensure(wrong == 0, || format!("{wrong} pages were lost"))?;
    let distinct = copy.iter().filter(|value| **value != 0).count();
    Ok([
        reports as f64 / distinct as f64,
        useless as f64 / reports as f64,
    ])
}

/// Both mechanisms, by the writes between two reads.
pub fn duplicates(effort: Effort, figures: &mut Figures) -> Result<()> {
    let end = PAGE << POWER;
    let writes = effort.pick(400_000, 20_000);
    for interval in [100_u32, 1_000, 10_000, 100_000] {
        for name in ["bitmap", "records"] {
            let mut useless = Vec::new();
            let reports = repeat(|seed| {
                let interval = interval.into();
                let [reports, none] = if name == "bitmap" {
                    let tracked = Tracked::new(end, 0, Marking::Bit)?;
                    run(&tracked.dma, writes, interval, seed, |into| {
                        tracked.harvest(into)
                    })?
                } else {
                    let recorded = Recorded::new(std::slice::from_ref(&(0..end)), 1 << 18)?;
                    run(&recorded.dma, writes, interval, seed, |into| {
                        let lost = recorded.drain(|page| _ = into.insert(page));
                        ensure(!lost, || "records were lost".to_owned())
                    })?
                };
                useless.push(none);
                Ok(reports)
            })?;
            figures.add(&REPORTS, name, interval, reports);
            figures.add(&USELESS, name, interval, useless);
        }
    }
    Ok(())
}
