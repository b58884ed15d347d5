//! A migration that is cut at every byte it sends, and a file that ends at every byte it has.

use crate::bytes::from_hex;
use crate::common::{BASE, FakeArrival, FakeGuest, contents};
use crate::fixtures::GUEST;
use migration::observe::Observer;
use migration::policy::Rounds;
use migration::precopy::{Failure, Options, migrate};
use migration::receive::receive;
use migration::report::Report;
use migration::stream::file::{Restore, Save};
use migration::stream::live;
use migration::{Cancel, MigrationError, stream::StreamError};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

const PAGES: u64 = 2;
const FIRST: u64 = BASE / 4096;

struct Busy<F>(F);

impl<F: FnMut(u32)> Observer for Busy<F> {
    fn before_round(&mut self, round: u32) {
        (self.0)(round);
    }
}

struct Run {
    guest: FakeGuest,
    arrival: FakeArrival,
    done: Result<Report, Box<Failure>>,
    /// What the sources had reported for the last round that was asked for.
    given: [BTreeSet<u64>; 2],
    forwarded: usize,
}

/// Lets `most` bytes through and then cuts the line both ways.
fn forward(mut from: UnixStream, mut to: UnixStream, most: usize, count: &AtomicUsize) {
    let mut buffer = [0; 4096];
    let mut left = most;
    while left > 0 {
        let part = left.min(buffer.len());
        let Ok(got @ 1..) = from.read(&mut buffer[..part]) else {
            break;
        };
        if to.write_all(&buffer[..got]).is_err() {
            break;
        }
        left -= got;
        count.fetch_add(got, Ordering::Relaxed);
    }
    for end in [&from, &to] {
        // The other direction may have ended first.
        let _ = end.shutdown(Shutdown::Both);
    }
}

fn back(mut from: UnixStream, mut to: UnixStream) {
    let mut buffer = [0; 4096];
    while let Ok(got @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..got]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn run(most: usize) -> Run {
    let (here, near) = UnixStream::pair().unwrap();
    let (far, there) = UnixStream::pair().unwrap();
    let (count, cancel) = (AtomicUsize::new(0), Cancel::default());
    let mut guest = FakeGuest::of(PAGES);
    let (memory, dirty) = (guest.memory.clone(), guest.dirty.clone());
    let mut given = [BTreeSet::new(), BTreeSet::new()];
    let mut busy = Busy(|round: u32| {
        for (source, page) in [(0, u64::from(round) % PAGES), (1, 1)] {
            memory.write(page * 4096, &round.to_le_bytes()).unwrap();
            dirty[source].0.lock().unwrap().insert(page + FIRST);
            given[source] = BTreeSet::from([page + FIRST]);
        }
    });
    let options = Options {
        policy: &Rounds {
            min_rounds: 2,
            max_rounds: 2,
            stop_pages: 0,
        },
        bandwidth: None,
        granularity: 4096,
        plain_copies: 0,
        cancel: &cancel,
    };
    let (done, arrival) = std::thread::scope(|scope| {
        let (near_back, far_back) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        let count = &count;
        scope.spawn(move || forward(near, far, most, count));
        scope.spawn(move || back(far_back, near_back));
        let destination = scope.spawn(move || {
            let mut arrival = FakeArrival::of(PAGES);
            let done = receive(&mut live::Destination::new(there), &mut arrival);
            assert_eq!(done.is_ok(), arrival.runs);
            arrival
        });
        let mut stream = live::Source::new(here);
        let done = migrate(&mut guest, &mut stream, &options, &mut busy);
        drop(stream);
        (done, destination.join().unwrap())
    });
    Run {
        guest,
        arrival,
        done,
        given,
        forwarded: count.into_inner(),
    }
}

#[test]
fn wherever_the_line_is_cut_exactly_one_side_has_the_whole_guest() {
    let whole = run(usize::MAX);
    assert!(whole.arrival.runs && whole.done.is_ok());
    assert_eq!(
        contents(&whole.arrival.memory[0]),
        contents(&whole.guest.memory)
    );
    let total = whole.forwarded;
    // The last eight bytes are GO; the stream itself ends before them.
    for most in 0..total {
        let Run {
            guest,
            arrival,
            done,
            given,
            ..
        } = run(most);
        assert!(!arrival.runs, "cut at {most}: a part of GO is none");
        let failure = done.expect_err("cut");
        // With the whole stream there and nothing of GO, READY may have come back or not.
        let uncertain = matches!(failure.error, MigrationError::Uncertain(_));
        if most > total - 8 || uncertain {
            // GO was on its way: only the destination could say that it has not come.
            assert!(uncertain && !guest.runs, "cut at {most}: {failure:?}");
            assert!(most >= total - 8, "cut at {most}: {failure:?}");
            continue;
        }
        assert!(failure.resumed && guest.runs, "cut at {most}: {failure:?}");
        assert!(
            matches!(failure.error, MigrationError::PeerVanished { .. }),
            "cut at {most}: {failure:?}"
        );
        let back = guest.dirty.each_ref().map(|d| d.0.lock().unwrap().clone());
        if failure.round == 2 {
            assert_eq!(back, given, "cut at {most}: {failure:?}");
            assert_eq!(failure.put_back, 2, "cut at {most}: {failure:?}");
        }
    }
}

fn save(guest: &mut FakeGuest, path: &Path) -> Result<Report, Box<Failure>> {
    let cancel = Cancel::default();
    let options = Options {
        policy: &Rounds {
            min_rounds: 2,
            max_rounds: 2,
            stop_pages: 0,
        },
        bandwidth: None,
        granularity: 4096,
        plain_copies: 0,
        cancel: &cancel,
    };
    let mut stream = Save::create(path).unwrap();
    migrate(guest, &mut stream, &options, &mut Busy(|_| {}))
}

fn restore(path: &Path) -> (FakeArrival, Result<(), MigrationError>) {
    let mut arrival = FakeArrival::of(PAGES);
    let mut stream = Restore::new(File::open(path).unwrap());
    let done = receive(&mut stream, &mut arrival);
    (arrival, done.map(drop))
}

#[test]
fn a_file_holds_a_guest_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.xl");
    let mut guest = FakeGuest::of(PAGES);
    guest.dirty(0, 1, 5);
    save(&mut guest, &path).unwrap();
    assert!(!guest.runs, "it is in the file now");
    let (arrival, done) = restore(&path);
    done.unwrap();
    assert!(arrival.runs);
    assert_eq!(contents(&arrival.memory[0]), contents(&guest.memory));

    let whole = std::fs::read(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    for end in (0..whole.len()).rev() {
        file.set_len(u64::try_from(end).unwrap()).unwrap();
        let (arrival, done) = restore(&path);
        assert!(!arrival.runs, "cut at {end}");
        let error = done.expect_err("cut");
        let MigrationError::Stream(StreamError::Cut {
            offset, ref record, ..
        }) = error
        else {
            panic!("cut at {end}: {error}");
        };
        assert_eq!(offset, u64::try_from(end).unwrap(), "{error}");
        assert!(
            record.starts_with("the ") || record.contains("record"),
            "{error}"
        );
    }
    for tail in [&[0][..], &whole] {
        std::fs::write(&path, [&whole, tail].concat()).unwrap();
        let (arrival, done) = restore(&path);
        assert!(!arrival.runs, "what follows a guest was never part of it");
        let error = done.unwrap_err().to_string();
        assert!(error.contains("nothing after END"), "{error}");
    }
    // The fixture is a guest that somebody else saved, at the same addresses.
    std::fs::write(&path, from_hex(GUEST)).unwrap();
    let (arrival, done) = restore(&path);
    done.unwrap();
    let memory = contents(&arrival.memory[0]);
    assert!(memory[..4096].iter().all(|byte| *byte == 0xaa));
    assert!(memory[4096..].iter().all(|byte| *byte == 0xcc));
    assert_eq!(arrival.records.len(), 2);
}

#[test]
fn a_save_that_fails_leaves_no_file() {
    struct Never;
    impl Observer for Never {
        fn switch_over(&mut self, _: &dyn migration::Guest) -> Result<(), String> {
            Err("no".to_owned())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.xl");
    std::fs::write(&path, b"an earlier one").unwrap();
    let cancel = Cancel::default();
    let options = Options {
        policy: &Rounds::for_memory(PAGES),
        bandwidth: None,
        granularity: 4096,
        plain_copies: 0,
        cancel: &cancel,
    };
    let mut guest = FakeGuest::of(PAGES);
    let mut stream = Save::create(&path).unwrap();
    let failure = migrate(&mut guest, &mut stream, &options, &mut Never).unwrap_err();
    assert!(failure.resumed && guest.runs);
    drop(stream);
    assert_eq!(std::fs::read(&path).unwrap(), b"an earlier one");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
