//! A guest whose memory says how often it was passed over: page `n` is written before every pass
//! up to the `n`-th and holds the number of the last one. What arrives proves that many passes over
//! pages that were dirtied again, and nothing else could have brought it.

use crate::common::{BASE, FakeArrival, FakeGuest};
use migration::Cancel;
use migration::observe::Observer;
use migration::policy::Rounds;
use migration::precopy::{Options, migrate};
use migration::receive::receive;
use migration::stream::{Connection, live};

const PAGES: u64 = 8;
const PASSES: u32 = 6;

/// Writes markers before each pass, and tells of them if it is not deaf.
struct Writer<'a> {
    guest: &'a driver::memory::DmaMemory,
    dirty: &'a crate::common::Dirty,
    tells: bool,
}

impl Observer for Writer<'_> {
    fn before_round(&mut self, round: u32) {
        for page in u64::from(round)..PAGES {
            let marker = u64::from(round).to_le_bytes();
            self.guest.write(page * 4096 + 8, &marker).unwrap();
            if self.tells {
                self.dirty.0.lock().unwrap().insert(page + BASE / 4096);
            }
        }
    }
}

/// The markers that have arrived, and the pages that each round sent.
fn markers(tells: bool) -> (Vec<u64>, Vec<u64>) {
    let mut guest = FakeGuest::of(PAGES);
    let (memory, dirty) = (guest.memory.clone(), guest.dirty[0].clone());
    let (here, there) = Connection::pair().unwrap();
    let far = std::thread::spawn(move || {
        let mut arrival = FakeArrival::of(PAGES);
        receive(&mut live::Destination::new(there), &mut arrival).unwrap();
        arrival
    });
    let cancel = Cancel::default();
    let options = Options {
        policy: &Rounds {
            min_rounds: PASSES,
            max_rounds: PASSES,
            stop_pages: 0,
        },
        granularity: 4096,
        plain_copies: 0,
        bandwidth: None,
        cancel: &cancel,
    };
    let mut writer = Writer {
        guest: &memory,
        dirty: &dirty,
        tells,
    };
    let mut stream = live::Source::new(here);
    let report = migrate(&mut guest, &mut stream, &options, &mut writer).unwrap();
    let arrived = far.join().unwrap();
    let marker = |page: u64| {
        let mut bytes = [0; 8];
        arrived.memory[0].read(page * 4096 + 8, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    let sent = report.rounds.iter().map(|round| round.pages);
    ((0..PAGES).map(marker).collect(), sent.collect())
}

#[test]
fn markers_prove_each_pass() {
    let (arrived, sent) = markers(true);
    let last = *arrived.iter().max().unwrap();
    assert!(last >= 3, "{arrived:?}");
    for (page, marker) in (0..).zip(&arrived) {
        // Written before the pass of its own number for the last time, if there was that pass;
        // before the first nobody writes.
        let expected = if page < 2 { 0 } else { last.min(page) };
        assert_eq!(*marker, expected, "page {page} of {arrived:?}");
    }
    // Two passes at least over pages that had been sent and were dirtied again.
    let again = sent.iter().skip(1).filter(|pages| **pages > 0).count();
    assert!(again >= 2, "{sent:?}");

    // The control: nobody tells, and no marker arrives.
    let (arrived, sent) = markers(false);
    assert_eq!(arrived, [0; 8]);
    assert!(sent.iter().skip(1).all(|pages| *pages == 0), "{sent:?}");
}
