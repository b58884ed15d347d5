//! Many writers that mark at the same time, each pages of its own.

use super::markers::Marker;
use super::patterns::Pattern;
use super::{Effort, GIB, PAGE, Result, ensure};
use crate::claims::figures::{Figures, REPETITIONS};
use crate::claims::topics::WRITERS;
use driver::dirty::DirtySet;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Time from the start of the first writer to the end of the last.
fn marking(marker: &Marker, lists: &[&[u64]]) -> Result<Duration> {
    let begin = Barrier::new(lists.len());
    let work = |list: &[u64]| {
        begin.wait();
        let start = Instant::now();
        marker.mark(list);
        (start, Instant::now())
    };
    let spans = thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = lists
            .iter()
            .map(|list| scope.spawn(move || work(list)))
            .collect();
        let joined = running.into_iter().map(|thread| thread.join());
        joined.collect::<std::result::Result<Vec<_>, _>>()
    });
    let spans = spans.map_err(|_| "a writer panicked")?;
    let first = spans.iter().map(|(start, _)| *start).min();
    let last = spans.iter().map(|(_, end)| *end).max();
    let (first, last) = first.zip(last).ok_or("nobody wrote")?;
    Ok(last - first)
}

/// Wall time of a mark, by writers, for all markers; none may lose a page.
pub fn writers(effort: Effort, figures: &mut Figures) -> Result<()> {
    let end = effort.pick(64, 1) * GIB;
    let power = (end / PAGE).trailing_zeros();
    let count = effort.pick(1 << 18, 1 << 10);
    let mut markers = Marker::all(end)?;
    let mut found = DirtySet::new(end / PAGE);
    for writers in [1_u8, 2, 4, 8, 16] {
        let mut samples = vec![Vec::new(); markers.len()];
        for repetition in 0..=REPETITIONS {
            let pages = Pattern::Random.pages(power, count, repetition as u64)?;
            let lists: Vec<&[u64]> = pages.chunks(count / usize::from(writers)).collect();
            for turn in 0..markers.len() {
                let nth = (turn + repetition) % markers.len();
                let (name, marker) = &mut markers[nth];
                let time = marking(marker, &lists)?;
                let taken = marker.take(&mut found)?;
                ensure(taken == count as u64, || {
                    format!("{name}: {count} pages were marked, {taken} found")
                })?;
                // The first is thrown away: memory is touched for the first time in it.
                if repetition > 0 {
                    samples[nth].push(time.as_secs_f64() * 1e9 / count as f64);
                }
            }
        }
        for ((name, _), samples) in markers.iter().zip(samples) {
            figures.add(&WRITERS, *name, writers, samples);
        }
    }
    Ok(())
}
