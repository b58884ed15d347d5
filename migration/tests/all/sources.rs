//! Several sources at once: what any of them knows is sent, and what none of them knows is lost.

use crate::common::{BASE, Dirty, FakeArrival, FakeGuest, PAGES, contents};
use driver::memory::DmaMemory;
use migration::Cancel;
use migration::faults::Random;
use migration::observe::Observer;
use migration::policy::Rounds;
use migration::precopy::{Options, migrate};
use migration::receive::receive;
use migration::stream::{Connection, live};

/// Two writers, each with a source of its own: the lower half of the pages is the first's, the
/// upper half the second's, and page 0 is written by both.
struct Writers {
    memory: DmaMemory,
    dirty: [Dirty; 2],
    /// Writes and is not heard.
    deaf: Option<usize>,
    random: Random,
}

impl Writers {
    fn write(&mut self, source: usize, page: u64) {
        let value = self.random.next_u64() | 1;
        let at = page * 4096 + 16;
        self.memory.write(at, &value.to_le_bytes()).unwrap();
        if self.deaf != Some(source) {
            self.dirty[source]
                .0
                .lock()
                .unwrap()
                .insert(page + BASE / 4096);
        }
    }
}

impl Observer for Writers {
    fn before_round(&mut self, _: u32) {
        for _ in 0..10 {
            for (source, base) in [(0, 0), (1, PAGES / 2)] {
                let page = base + self.random.below(PAGES / 2);
                self.write(source, page);
            }
        }
        self.write(0, 0);
        self.write(1, 0);
    }
}

/// The pages that differ at the end.
fn lost(deaf: Option<usize>, seed: u64) -> Vec<u64> {
    let mut guest = FakeGuest::new();
    let mut writers = Writers {
        memory: guest.memory.clone(),
        dirty: guest.dirty.clone(),
        deaf,
        random: Random::new(seed),
    };
    let (here, there) = Connection::pair().unwrap();
    let far = std::thread::spawn(move || {
        let mut arrival = FakeArrival::default();
        receive(&mut live::Destination::new(there), &mut arrival).unwrap();
        arrival
    });
    let cancel = Cancel::default();
    let options = Options {
        policy: &Rounds {
            min_rounds: 4,
            max_rounds: 4,
            stop_pages: 0,
        },
        granularity: 4096,
        plain_copies: 0,
        bandwidth: None,
        cancel: &cancel,
    };
    let mut stream = live::Source::new(here);
    migrate(&mut guest, &mut stream, &options, &mut writers).unwrap();
    let arrival = far.join().unwrap();
    let (here, there) = (contents(&guest.memory), contents(&arrival.memory[0]));
    let pages = here.chunks(4096).zip(there.chunks(4096));
    (0..)
        .zip(pages)
        .filter(|(_, (a, b))| a != b)
        .map(|(n, _)| n)
        .collect()
}

#[test]
fn all_sources_together_lose_nothing_and_without_one_its_pages_are_lost() {
    for seed in 0..20 {
        assert_eq!(lost(None, seed), [0_u64; 0], "seed {seed}");
        for (deaf, pages) in [(0, 0..PAGES / 2), (1, PAGES / 2..PAGES)] {
            let lost = lost(Some(deaf), seed);
            assert!(
                !lost.is_empty(),
                "seed {seed}: the control of source {deaf}"
            );
            // Page 0 was reported by the other one.
            let only = lost.iter().all(|page| pages.contains(page) && *page != 0);
            assert!(only, "seed {seed}, without source {deaf}: {lost:?}");
        }
    }
}
