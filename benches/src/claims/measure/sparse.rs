//! A guest with memory in two places that are far apart.

use super::bed::{Recorded, Tracked, mark};
use super::patterns::Pattern;
use super::{Effort, GIB, PAGE, Result, ensure, micros, repeat, timed};
use crate::claims::figures::Figures;
use crate::claims::topics::{SPARSE_BYTES, SPARSE_COLLECT};
use device::tracker::Marking;
use driver::dirty::DirtySet;

/// Bytes of memory in each place.
const EACH: u64 = 4 * GIB;
const WRITTEN: usize = 1000;
const CAPACITY: u32 = 1 << 20;

/// Memory of a bitmap and time of a harvest, of all of it and of the guest's two places alone; and
/// records of the two ranges.
pub fn sparse(effort: Effort, figures: &mut Figures) -> Result<()> {
    for gap in effort.pick(&[4_u32, 64, 1024][..], &[4][..]) {
        let high = u64::from(*gap) * GIB;
        let ranges = [0..EACH, high..high + EACH];
        let [mut all_time, mut places_time, mut records] = [const { Vec::new() }; 3];
        let mut places_bytes = Vec::new();
        let all_bytes = repeat(|seed| {
            let pages = Pattern::Random.pages((2 * EACH / PAGE).trailing_zeros(), WRITTEN, seed)?;
            let place = |page| match page < EACH / PAGE {
                true => page,
                false => page - EACH / PAGE + high / PAGE,
            };
            let list: Vec<u64> = pages.into_iter().map(place).collect();
            let set = || DirtySet::new((high + EACH) / PAGE);
            let recorded = Recorded::new(&ranges, CAPACITY)?;
            mark(&recorded.dma, &list);
            let mut expected = set();
            let drain = || Ok(recorded.drain(|page| _ = expected.insert(page)));
            let (time, lost) = timed(drain)?;
            ensure(!lost, || "records were lost".to_owned())?;
            records.push(micros(time));
            let mut bytes = [0.0; 2];
            for (whole, times) in [(true, &mut all_time), (false, &mut places_time)] {
                let tracked = Tracked::new(high + EACH, 0, Marking::Bit)?;
                let mut found = set();
                let harvest = |into: &mut DirtySet| match whole {
                    true => tracked.harvest(into),
                    false => tracked.harvest_ranges(&ranges, into),
                };
                // As a driver that starts has: it looks at what it will look at.
                harvest(&mut found)?;
                mark(&tracked.dma, &list);
                times.push(micros(timed(|| harvest(&mut found))?.0));
                ensure(found == expected, || "bitmap and records differ".to_owned())?;
                bytes[usize::from(!whole)] = tracked.resident()? as f64;
            }
            places_bytes.push(bytes[1]);
            Ok(bytes[0])
        })?;
        let bits = vec![2.0 * (EACH / PAGE / 8) as f64; all_bytes.len()];
        for (series, samples) in [
            ("bitmap, all of it", all_bytes),
            ("bitmap, the two places alone", places_bytes),
            ("bits of the guest's memory", bits),
        ] {
            figures.add(&SPARSE_BYTES, series, *gap, samples);
        }
        for (series, samples) in [
            ("bitmap, all of it", all_time),
            ("bitmap, the two places alone", places_time),
            ("records of two ranges", records),
        ] {
            figures.add(&SPARSE_COLLECT, series, *gap, samples);
        }
    }
    Ok(())
}
