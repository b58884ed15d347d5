//! What a round costs: a bitmap is scanned, records are fetched, by a command or by spinning.

use super::bed::{Commanded, Recorded, Tracked, mark};
use super::patterns::Pattern;
use super::{Effort, GIB, PAGE, Result, ensure, micros, repeat, timed};
use crate::claims::figures::{Figures, REPETITIONS};
use crate::limit;
use device::dma::Dma;
use device::tracker::Marking;
use driver::admin::{AdminQueue, RESULT_BYTES, Subject};
use driver::dirty::DirtySet;
use spec::Le64;
use spec::records::{READ, Read, output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use zerocopy::{FromBytes, IntoBytes};

/// Records of one answer: as many as the buffer of a command holds, for both ways of asking.
const BATCH: usize = RESULT_BYTES / 8 - 1;
/// Records that a device holds: more than are ever written here.
const CAPACITY: u32 = 1 << 24;

/// Pushes marks and records out of the caches, for all mechanisms alike.
struct Cold(Vec<u64>);

impl Cold {
    fn new(effort: Effort) -> Self {
        Self(vec![1; effort.pick(16 << 20, 1 << 10)])
    }

    fn evict(&self) {
        limit::evict(&self.0);
    }
}

/// Fetches all records of memory up to `end` by commands.
pub fn read_all(
    queue: &mut AdminQueue,
    subject: Subject,
    end: u64,
    into: &mut DirtySet,
) -> Result<()> {
    let ask = Read {
        start: 0.into(),
        length: end.into(),
        page_size: PAGE.into(),
    };
    loop {
        let answer = queue.command(READ, subject, ask.as_bytes(), BATCH * 8)?;
        let count = usize::try_from(answer.output & output::COUNT)?;
        let (records, _) = <[Le64]>::ref_from_prefix_with_elems(answer.result, count)
            .map_err(|error| error.to_string())?;
        for record in records {
            into.insert(record.get() / PAGE);
        }
        ensure(answer.output & output::OVERFLOW == 0, || {
            "records were lost".to_owned()
        })?;
        if answer.output & output::MORE == 0 {
            return Ok(());
        }
    }
}

/// A device that looks at a mailbox all the time, and a driver that waits in the same way.
#[derive(Default)]
struct Mailbox {
    /// Odd while a question waits.
    turn: AtomicU64,
    answer: Mutex<(Vec<u64>, bool)>,
}

const CLOSED: u64 = u64::MAX;

/// Sends the server home whatever happens, or nobody would come back from the scope that it is in.
struct Close<'a>(&'a Mailbox);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.turn.store(CLOSED, Ordering::Release);
    }
}

impl Mailbox {
    fn serve(&self, recorded: &Recorded) {
        loop {
            let turn = self.turn.load(Ordering::Acquire);
            if turn == CLOSED {
                return;
            }
            if turn % 2 == 0 {
                std::hint::spin_loop();
                continue;
            }
            let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
            let (records, more) = &mut *answer;
            records.clear();
            (*more, _) = recorded.take(BATCH, |page| records.push(page));
            drop(answer);
            self.turn.store(turn + 1, Ordering::Release);
        }
    }

    fn read_all(&self, into: &mut DirtySet) {
        loop {
            let turn = self.turn.load(Ordering::Acquire) + 1;
            self.turn.store(turn, Ordering::Release);
            while self.turn.load(Ordering::Acquire) == turn {
                std::hint::spin_loop();
            }
            let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
            answer.0.iter().for_each(|page| _ = into.insert(*page));
            if !answer.1 {
                return;
            }
        }
    }
}

/// The three of them, for one size of guest.
struct Guest {
    end: u64,
    tracked: Tracked,
    recorded: Recorded,
    commanded: Commanded,
}

const WAYS: [&str; 3] = ["bitmap", "records, command", "records, spinning"];

impl Guest {
    fn new(end: u64) -> Result<Self> {
        let all = 0..end;
        let mut commanded = Commanded::new(1, CAPACITY, Vec::new())?;
        commanded.start(Subject::ITSELF, std::slice::from_ref(&all))?;
        Ok(Self {
            end,
            tracked: Tracked::new(end, 0, Marking::Bit)?,
            recorded: Recorded::new(std::slice::from_ref(&all), CAPACITY)?,
            commanded,
        })
    }

    /// Time to mark the pages, and to know them; whatever it is known by, into the same set.
    fn round(&mut self, way: &str, list: &[u64], cold: &Cold) -> Result<[f64; 2]> {
        let mut found = DirtySet::new(self.end / PAGE);
        // Its memory is there before the time runs.
        found.insert_range(0..self.end / PAGE);
        found.clear();
        let marks = |dma: &Dma| {
            let (time, ()) = timed(|| {
                mark(dma, list);
                Ok(())
            })?;
            cold.evict();
            Ok::<_, super::Error>(time)
        };
        let (marked, collected) = match way {
            "bitmap" => {
                let marked = marks(&self.tracked.dma)?;
                (marked, timed(|| self.tracked.harvest(&mut found))?.0)
            }
            "records, command" => {
                let marked = marks(self.commanded.function.dma())?;
                let queue = self.commanded.queues.first_mut().ok_or("no queue")?;
                let read = || read_all(queue, Subject::ITSELF, self.end, &mut found);
                (marked, timed(read)?.0)
            }
            _ => {
                let mailbox = Mailbox::default();
                thread::scope(|scope| {
                    scope.spawn(|| mailbox.serve(&self.recorded));
                    let _close = Close(&mailbox);
                    mailbox.read_all(&mut DirtySet::new(0));
                    let marked = marks(&self.recorded.dma)?;
                    let read = || {
                        mailbox.read_all(&mut found);
                        Ok(())
                    };
                    Ok::<_, super::Error>((marked, timed(read)?.0))
                })?
            }
        };
        let count = found.count();
        ensure(count == list.len() as u64, || {
            format!("{way}: {} pages were written, {count} found", list.len())
        })?;
        Ok([collected, marked + collected].map(micros))
    }
}

/// The time of a round, with and without its marks, by guest size and dirty pages; for a bitmap, for
/// records by commands, and for records by a peer that spins.
pub fn crossing(effort: Effort, figures: &mut Figures) -> Result<()> {
    let cold = Cold::new(effort);
    let guests: &[u32] = effort.pick(&[1, 16, 64, 256, 1024], &[1]);
    let most = effort.pick(10_000_000, 1000);
    for &gib in guests {
        let mut guest = Guest::new(u64::from(gib) * GIB)?;
        let power = (guest.end / PAGE).trailing_zeros();
        let mut dirty: u32 = 10;
        while dirty <= most && u64::from(dirty) <= guest.end / PAGE / 2 {
            let mut samples = [const { [const { Vec::new() }; 2] }; WAYS.len()];
            // The first is thrown away: memory is touched for the first time in it.
            for round in 0..=REPETITIONS {
                let pages = usize::try_from(dirty)?;
                let list = Pattern::Random.pages(power, pages, round as u64)?;
                for turn in 0..WAYS.len() {
                    let way = (turn + round) % WAYS.len();
                    let times = guest.round(WAYS[way], &list, &cold)?;
                    if round > 0 {
                        samples[way][0].push(times[0]);
                        samples[way][1].push(times[1]);
                    }
                }
            }
            for (name, [collect, both]) in WAYS.iter().zip(samples) {
                figures.add("collect", format!("{name}, {gib} GiB"), dirty, collect);
                figures.add(
                    "mark and collect",
                    format!("{name}, {gib} GiB"),
                    dirty,
                    both,
                );
            }
            dirty *= 10;
        }
    }
    let mut guest = Guest::new(GIB)?;
    for way in WAYS {
        let samples = repeat(|_| Ok(guest.round(way, &[], &cold)?[0]))?;
        figures.add("nothing written", way, 1, samples);
    }
    Ok(())
}

/// A guest with memory in two places that are far apart.
pub fn sparse(effort: Effort, figures: &mut Figures) -> Result<()> {
    const EACH: u64 = 4 * GIB;
    const WRITTEN: usize = 1000;
    for gap in effort.pick(&[4_u32, 64, 1024][..], &[4][..]) {
        let high = u64::from(*gap) * GIB;
        let ranges = [0..EACH, high..high + EACH];
        let (mut bitmap, mut records) = (Vec::new(), Vec::new());
        let resident = repeat(|seed| {
            let pages = Pattern::Random.pages((2 * EACH / PAGE).trailing_zeros(), WRITTEN, seed)?;
            let place = |page| {
                if page < EACH / PAGE {
                    page
                } else {
                    page - EACH / PAGE + high / PAGE
                }
            };
            let list: Vec<u64> = pages.into_iter().map(place).collect();
            let tracked = Tracked::new(high + EACH, 0, Marking::Bit)?;
            let recorded = Recorded::new(&ranges, CAPACITY)?;
            mark(&tracked.dma, &list);
            mark(&recorded.dma, &list);
            let mut found = DirtySet::new((high + EACH) / PAGE);
            // As a driver that starts has: it clears the bitmap, and looks at all of it.
            tracked.harvest(&mut found)?;
            mark(&tracked.dma, &list);
            bitmap.push(micros(timed(|| tracked.harvest(&mut found))?.0));
            let mut other = DirtySet::new((high + EACH) / PAGE);
            let take = || {
                recorded.drain(|page| _ = other.insert(page));
                Ok(())
            };
            records.push(micros(timed(take)?.0));
            ensure(found == other, || "bitmap and records differ".to_owned())?;
            Ok(tracked.resident()? as f64)
        })?;
        let bits = 2.0 * EACH as f64 / PAGE as f64 / 8.0;
        figures.add(
            "sparse bytes",
            "bitmap from page 0, resident",
            *gap,
            resident,
        );
        figures.add(
            "sparse bytes",
            "bits of the guest's memory",
            *gap,
            vec![bits],
        );
        figures.add("sparse collect", "bitmap from page 0", *gap, bitmap);
        figures.add("sparse collect", "records of two ranges", *gap, records);
    }
    Ok(())
}
