//! How many pages are reported for each one that was written: by whole bytes, by large granules.

use super::bed::{Tracked, mark};
use super::patterns::Pattern;
use super::{Effort, PAGE, Result, micros, repeat, timed};
use crate::claims::figures::Figures;
use crate::claims::topics::{GRANULARITY, INFLATION, MARK};
use device::tracker::Marking;
use driver::dirty::DirtySet;
use std::sync::atomic::{AtomicU8, Ordering};

/// Reported over written pages, by density and locality.
pub fn bytes(effort: Effort, figures: &mut Figures) -> Result<()> {
    let power = effort.pick(20, 14);
    let end = PAGE << power;
    let patterns = [
        Pattern::Random,
        Pattern::Runs(4),
        Pattern::Runs(16),
        Pattern::Runs(256),
        Pattern::Sequential,
    ];
    let pages = f64::from(1_u32 << power);
    for (per_mille, count) in [1, 3, 10, 30, 100, 300, 1000].map(|n| (n, (n << power) / 1000)) {
        for pattern in patterns {
            let samples = repeat(|seed| {
                let tracked = Tracked::new(end, 0, Marking::Byte)?;
                let list = pattern.pages(power, count, seed)?;
                mark(&tracked.dma, &list);
                let mut found = DirtySet::new(1 << power);
                tracked.harvest(&mut found)?;
                Ok(found.count() as f64 / count as f64)
            })?;
            let density = f64::from(u32::try_from(per_mille)?) / 1000.0;
            figures.add(&INFLATION, pattern.to_string(), density, samples);
        }
        // The expectation of the reference, for the plot.
        let p = count as f64 / pages;
        let expected = (1.0 - (1.0 - p).powi(8)) / p;
        let x = f64::from(u32::try_from(per_mille)?) / 1000.0;
        figures.add(&INFLATION, "random, calculated", x, vec![expected]);
    }
    Ok(())
}

/// What a mark costs: the tracker's, and the bare store and atomic OR that it is made of.
pub fn marks(effort: Effort, figures: &mut Figures) -> Result<()> {
    let power = effort.pick(20, 14);
    let count = effort.pick(1 << 18, 1 << 10);
    let bytes: Vec<AtomicU8> = (0..1 << (power - 3)).map(|_| AtomicU8::new(0)).collect();
    let place = |page: u64| (usize::try_from(page / 8).unwrap_or(0), 1 << (page % 8));
    let mut samples = [const { Vec::new() }; 4];
    repeat(|seed| {
        let list = Pattern::Random.pages(power, count, seed)?;
        let bits = Tracked::new(PAGE << power, 0, Marking::Bit)?;
        let whole = Tracked::new(PAGE << power, 0, Marking::Byte)?;
        let ways: [&dyn Fn(); 4] = [
            &|| mark(&bits.dma, &list),
            &|| mark(&whole.dma, &list),
            &|| {
                for (byte, bit) in list.iter().copied().map(place) {
                    bytes[byte].fetch_or(bit, Ordering::Release);
                }
            },
            &|| {
                for (byte, _) in list.iter().copied().map(place) {
                    bytes[byte].store(0xff, Ordering::Release);
                }
            },
        ];
        for (way, samples) in ways.into_iter().zip(&mut samples) {
            let (time, ()) = timed(|| {
                way();
                Ok(())
            })?;
            samples.push(micros(time) * 1e3 / count as f64);
        }
        Ok(0.0)
    })?;
    let names = [
        "bit, tracker",
        "byte, tracker",
        "bit, atomic OR alone",
        "byte, store alone",
    ];
    for (name, samples) in names.into_iter().zip(samples) {
        figures.add(&MARK, name, 1, samples);
    }
    Ok(())
}

/// Bytes read of the bitmap and of pages to be sent, by `gra_power` and locality.
pub fn granularity(effort: Effort, figures: &mut Figures) -> Result<()> {
    let power = effort.pick(22, 14);
    let end = PAGE << power;
    let count = effort.pick(10_000, 100);
    for pattern in [Pattern::Random, Pattern::Zipf, Pattern::Sequential] {
        for gra_power in 0..=9_u8 {
            let mut scanned = Vec::new();
            let moved = repeat(|seed| {
                let tracked = Tracked::new(end, gra_power, Marking::Bit)?;
                mark(&tracked.dma, &pattern.pages(power, count, seed)?);
                let mut found = DirtySet::new((1 << power) >> gra_power);
                tracked.harvest(&mut found)?;
                scanned.push(tracked.length as f64);
                Ok(found.count() as f64 * (PAGE << gra_power) as f64 + tracked.length as f64)
            })?;
            figures.add(&GRANULARITY, pattern.to_string(), gra_power, moved);
            if pattern == Pattern::Random {
                figures.add(&GRANULARITY, "bitmap alone", gra_power, scanned);
            }
        }
    }
    Ok(())
}
