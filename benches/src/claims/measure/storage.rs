//! What a device keeps for each mechanism, and what happens when that is not enough.

use super::bed::{Recorded, mark};
use super::patterns::Pattern;
use super::{Effort, GIB, PAGE, Result, repeat};
use crate::claims::figures::{Figures, REPETITIONS};
use crate::claims::topics::{DROPPED, OVERFLOW, SENT, SILENT, STATE};
use spec::tracker::TrackerRegs;
use std::fs;

/// Bytes of this process that are in memory.
fn resident() -> Result<f64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().nth(1).ok_or("statm is empty")?;
    Ok(pages.parse::<u64>()? as f64 * 4096.0)
}

/// Overflows and pages sent again because of them, by capacity and writes between reads; bytes of
/// state for each function.
pub fn storage(effort: Effort, figures: &mut Figures) -> Result<()> {
    const PERIODS: u32 = 20;
    let power = (GIB / PAGE).trailing_zeros();
    let all = 0..GIB;
    for capacity in [16_u32, 256, 4096, 65_536] {
        let mut silent = vec![0.0; REPETITIONS];
        for writes in [10_u32, 100, 1_000, 10_000, 100_000] {
            let [mut sent, mut dropped] = [const { Vec::new() }; 2];
            let mut unsaid_by = silent.iter_mut();
            let overflows = repeat(|seed| {
                let recorded = Recorded::new(std::slice::from_ref(&all), capacity)?;
                let (mut lost, mut pages, mut missing, mut unsaid) = (0, 0.0, 0, 0);
                for period in 0..PERIODS {
                    let seed = seed * 1000 + u64::from(period);
                    let list = Pattern::Random.pages(power, usize::try_from(writes)?, seed)?;
                    mark(&recorded.dma, &list);
                    let mut found = 0;
                    let overflow = recorded.drain(|_| found += 1);
                    missing += writes - found;
                    if overflow {
                        lost += 1;
                        // A driver takes all of the memory for dirty.
                        pages += (GIB / PAGE) as f64;
                    } else {
                        pages += f64::from(found);
                        unsaid += writes - found;
                    }
                }
                let written = f64::from(PERIODS) * f64::from(writes);
                sent.push(pages / written);
                dropped.push(f64::from(missing) / written);
                if let Some(silent) = unsaid_by.next() {
                    *silent += f64::from(unsaid);
                }
                Ok(f64::from(lost) / f64::from(PERIODS))
            })?;
            let name = format!("{capacity} records");
            for (topic, samples) in [(OVERFLOW, overflows), (DROPPED, dropped), (SENT, sent)] {
                figures.add(&topic, name.clone(), writes, samples);
            }
        }
        figures.add(&SILENT, format!("{capacity} records"), 1, silent);
    }
    let registers = size_of::<TrackerRegs>() as f64;
    let gib: u32 = effort.pick(64, 1);
    let state_power = effort.pick(24, 18);
    let mut kept = Vec::new();
    for ranges in [1_u32, 16, 255] {
        let each = u64::from(gib) * GIB / u64::from(ranges) / PAGE * PAGE;
        let ranges_of: Vec<_> = (0..u64::from(ranges))
            .map(|n| n * 2 * each..(n * 2 + 1) * each)
            .collect();
        let bytes = repeat(|seed| {
            let before = resident()?;
            // Large memories come from the system only if none is free: all of them are kept.
            let many = 8_u64;
            for number in 0..many {
                let recorded = Recorded::new(&ranges_of, 1 << 18)?;
                let list = Pattern::Random.pages(state_power, 10_000, seed * many + number)?;
                mark(&recorded.dma, &list);
                kept.push(recorded);
            }
            Ok((resident()? - before) / many as f64)
        })?;
        figures.add(&STATE, "records, as built", ranges, bytes);
        figures.add(&STATE, "tracker registers", ranges, vec![registers; 5]);
    }
    Ok(())
}
