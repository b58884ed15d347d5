//! What a round costs: a bitmap is scanned; records are fetched by commands of the administration
//! queue, whose worker has to be woken, and from a device that spins.

use super::bed::{Commanded, Recorded, Tracked, mark};
use super::mailbox::Mailbox;
use super::patterns::Pattern;
use super::{Effort, GIB, PAGE, Result, ensure, timed};
use crate::claims::figures::{Figures, REPETITIONS};
use crate::claims::topics::{BOTH, COLLECT, IDLE};
use crate::limit;
use device::tracker::Marking;
use driver::admin::{AdminQueue, RESULT_BYTES, Subject};
use driver::dirty::DirtySet;
use spec::Le64;
use spec::records::{READ, Read, output};
use std::thread;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// Records of one answer: as many as the buffer of a command holds, for all ways of asking.
const BATCH: usize = RESULT_BYTES / 8 - 1;
/// Records that a device holds: more than are ever written here.
const CAPACITY: u32 = 1 << 24;
/// Rounds of a repetition, of which the quickest counts: what else the machine does is not the
/// question. Only short rounds are repeated.
const TRIES: usize = 3;
const SHORT: u32 = 100_000;
/// After so long nothing is tried again and the largest rounds are left out: a machine that is busy
/// is not to make the report late.
const PATIENCE: Duration = Duration::from_secs(100);

/// Fetches all records of memory up to `end` by commands.
fn read_all(queue: &mut AdminQueue, end: u64, into: &mut DirtySet) -> Result<()> {
    let ask = Read {
        start: 0.into(),
        length: end.into(),
        page_size: PAGE.into(),
    };
    loop {
        let answer = queue.command(READ, Subject::ITSELF, ask.as_bytes(), BATCH * 8)?;
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

/// Who knows the dirty pages, and how they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Bitmap,
    Commands,
    Spinning,
}

const WAYS: [(Way, &str); 3] = [
    (Way::Bitmap, "bitmap"),
    (Way::Commands, "records, by command"),
    (Way::Spinning, "records, device spinning"),
];

/// All of them, for one size of guest.
struct Guest {
    end: u64,
    tracked: Tracked,
    recorded: Recorded,
    commanded: Commanded,
    found: DirtySet,
    buffer: Vec<u64>,
    /// Read between marks and harvest, so that no cache holds either.
    ballast: Vec<u64>,
    begin: Instant,
}

impl Guest {
    fn new(end: u64, effort: Effort, begin: Instant) -> Result<Self> {
        let all = 0..end;
        let mut commanded = Commanded::new(1, CAPACITY, Vec::new())?;
        commanded.start(Subject::ITSELF, std::slice::from_ref(&all))?;
        let mut found = DirtySet::new(end / PAGE);
        // Its memory is there before any time runs.
        found.insert_range(0..end / PAGE);
        Ok(Self {
            end,
            tracked: Tracked::new(end, 0, Marking::Bit)?,
            recorded: Recorded::new(std::slice::from_ref(&all), CAPACITY)?,
            commanded,
            found,
            buffer: Vec::with_capacity(BATCH),
            ballast: vec![1; effort.pick(16 << 20, 1 << 10)],
            begin,
        })
    }

    /// Time to mark the pages, and to know them; whatever it is known by, into the same set.
    fn round(&mut self, way: Way, list: &[u64]) -> Result<[Duration; 2]> {
        self.found.clear();
        let marked = |dma| -> Result<Duration> {
            let (time, ()) = timed(|| {
                mark(dma, list);
                Ok(())
            })?;
            limit::evict(&self.ballast);
            Ok(time)
        };
        let found = &mut self.found;
        let times = match way {
            Way::Bitmap => {
                let marked = marked(&self.tracked.dma)?;
                [marked, timed(|| self.tracked.harvest(found))?.0]
            }
            Way::Commands => {
                let marked = marked(self.commanded.function.dma())?;
                let queue = self.commanded.queues.first_mut().ok_or("no queue")?;
                [marked, timed(|| read_all(queue, self.end, found))?.0]
            }
            Way::Spinning => thread::scope(|scope| {
                let (mailbox, device) = Mailbox::open(scope, &self.recorded, BATCH);
                // The device is there before any time runs.
                mailbox.read_all(&mut self.buffer, found)?;
                let marked = marked(&self.recorded.dma)?;
                let read = || mailbox.read_all(&mut self.buffer, found);
                let times = [marked, timed(read)?.0];
                drop(mailbox);
                device.join().map_err(|_| "the device panicked")?;
                Ok::<_, super::Error>(times)
            })?,
        };
        let count = self.found.count();
        ensure(count == list.len() as u64, || {
            let written = list.len();
            format!("{way:?}: {written} pages were written, {count} found")
        })?;
        Ok(times)
    }

    /// The quickest of some rounds, in µs: to collect, and to mark and collect.
    fn repetition(&mut self, way: Way, list: &[u64]) -> Result<[f64; 2]> {
        let again = list.len() <= SHORT as usize && self.begin.elapsed() < PATIENCE;
        let tries = if again { TRIES } else { 1 };
        let mut best = [f64::INFINITY; 2];
        for _ in 0..tries {
            let [marked, collected] = self.round(way, list)?;
            let times = [collected, marked + collected].map(super::micros);
            best = [best[0].min(times[0]), best[1].min(times[1])];
        }
        Ok(best)
    }

    /// All repetitions of all ways, in turn, with so many pages dirty.
    fn measure(&mut self, dirty: u32) -> Result<[[Vec<f64>; 2]; WAYS.len()]> {
        let mut samples = [const { [const { Vec::new() }; 2] }; WAYS.len()];
        let power = (self.end / PAGE).trailing_zeros();
        // The first is thrown away: memory is touched for the first time in it.
        for repetition in 0..=REPETITIONS {
            let list = Pattern::Random.pages(power, usize::try_from(dirty)?, repetition as u64)?;
            for turn in 0..WAYS.len() {
                let nth = (turn + repetition) % WAYS.len();
                let times = self.repetition(WAYS[nth].0, &list)?;
                if repetition > 0 {
                    samples[nth][0].push(times[0]);
                    samples[nth][1].push(times[1]);
                }
            }
        }
        Ok(samples)
    }
}

/// The time of a round, with and without its marks, by guest size and dirty pages.
pub fn crossing(effort: Effort, figures: &mut Figures) -> Result<()> {
    let guests: &[u32] = effort.pick(&[1, 16, 64, 256, 1024], &[1]);
    let most = effort.pick(10_000_000, 1000);
    let begin = Instant::now();
    for &gib in guests {
        let mut guest = Guest::new(u64::from(gib) * GIB, effort, begin)?;
        let mut dirty: u32 = 10;
        while dirty <= most && u64::from(dirty) <= guest.end / PAGE / 2 {
            if dirty > SHORT && begin.elapsed() > 2 * PATIENCE {
                break;
            }
            let samples = guest.measure(dirty)?;
            for ((_, name), [collect, both]) in WAYS.iter().zip(samples) {
                let name = format!("{name}, {gib} GiB");
                figures.add(&COLLECT, name.clone(), dirty, collect);
                figures.add(&BOTH, name, dirty, both);
            }
            dirty *= 10;
        }
        for ((_, name), [idle, _]) in WAYS.iter().zip(guest.measure(0)?) {
            figures.add(&IDLE, *name, gib, idle);
        }
    }
    Ok(())
}
