//! Pre-copy: what is sent, what is given back, and who runs the guest after a failure.

use crate::common::{BASE, FakeArrival, FakeGuest, PAGES, contents};
use driver::memory::DmaMemory;
use migration::observe::Observer;
use migration::policy::Rounds;
use migration::precopy::{Options, migrate};
use migration::receive::receive;
use migration::stream::{Answer, DestinationStream, Order, SectionKind, live};
use migration::{Cancel, Guest, MigrationError};
use std::collections::BTreeSet;
use std::io;
use std::os::unix::net::UnixStream;

const POLICY: Rounds = Rounds {
    min_rounds: 3,
    max_rounds: 3,
    stop_pages: 0,
};
const FIRST: u64 = BASE / 4096;

fn options(cancel: &Cancel) -> Options<'_> {
    Options {
        policy: &POLICY,
        bandwidth: None,
        granularity: 4096,
        plain_copies: 1,
        cancel,
    }
}

/// A destination that vanishes after so many calls.
struct Cut<S>(S, u32);

impl<S> Cut<S> {
    fn count(&mut self) -> Result<(), MigrationError> {
        self.1 = self
            .1
            .checked_sub(1)
            .ok_or_else(|| MigrationError::PeerVanished {
                peer: "test",
                doing: "being cut".to_owned(),
                source: io::ErrorKind::Other.into(),
            })?;
        Ok(())
    }
}

impl<S: DestinationStream> DestinationStream for Cut<S> {
    fn next(&mut self) -> Result<Order, MigrationError> {
        self.count()?;
        self.0.next()
    }
    fn bytes(&mut self, into: &mut [u8]) -> Result<(), MigrationError> {
        self.count()?;
        self.0.bytes(into)
    }
    fn bytes_into(&mut self, m: &DmaMemory, r: &[(u64, usize)]) -> Result<(), MigrationError> {
        self.count()?;
        self.0.bytes_into(m, r)
    }
    fn fault(&self, expected: String, got: String) -> MigrationError {
        self.0.fault(expected, got)
    }
    fn answer(&mut self, answer: Answer<'_>) -> Result<(), MigrationError> {
        self.count()?;
        self.0.answer(answer)
    }
}

fn destination(
    socket: UnixStream,
    calls: u32,
) -> std::thread::JoinHandle<(FakeArrival, Result<(), MigrationError>)> {
    std::thread::spawn(move || {
        let mut arrival = FakeArrival::default();
        let mut stream = Cut(live::Destination::new(socket), calls);
        let done = receive(&mut stream, &mut arrival).map(drop);
        (arrival, done)
    })
}

/// Stores into the memory between rounds, as a guest would.
struct Busy<F>(F);

impl<F: FnMut(u32)> Observer for Busy<F> {
    fn before_round(&mut self, round: u32) {
        (self.0)(round);
    }
}

#[test]
fn what_the_sources_report_is_sent_and_nothing_else() {
    let mut guest = FakeGuest::new();
    let (here, there) = UnixStream::pair().unwrap();
    let far = destination(there, u32::MAX);
    let cancel = Cancel::default();
    let (memory, dirty) = (guest.memory.clone(), guest.dirty.clone());
    let mut busy = Busy(move |round| {
        let round = u64::from(round);
        memory
            .write(round * 4096 + 8, &round.to_le_bytes())
            .unwrap();
        for (source, page) in [(0, round), (0, 9), (1, 9), (1, 10)] {
            dirty[source].0.lock().unwrap().insert(page + FIRST);
        }
    });
    let mut stream = live::Source::new(here);
    let report = migrate(&mut guest, &mut stream, &options(&cancel), &mut busy).unwrap();
    let (arrival, done) = far.join().unwrap();
    done.unwrap();
    assert!(arrival.runs && !guest.runs);
    assert_eq!(contents(&arrival.memory[0]), contents(&guest.memory));
    let record = &arrival.records[0];
    assert_eq!(record.id, 7);
    assert_eq!(record.options, [("name".to_owned(), "seven".to_owned())]);
    let state = record.context.section(SectionKind::Registers);
    assert_eq!(state, Some(b"state".as_slice()));
    let sent: Vec<(u64, u64)> = report
        .rounds
        .iter()
        .map(|r| (r.pages, r.unchanged))
        .collect();
    // Round 2 and 3: one changed page, and two that were reported though unchanged.
    assert_eq!(sent, [(PAGES, 0), (3, 2), (3, 2), (0, 0)]);
    let shares: Vec<(u64, u64)> = report.rounds[1]
        .shares
        .iter()
        .map(|s| (s.pages, s.unchanged))
        .collect();
    assert_eq!(shares, [(2, 1), (2, 2)]);
    assert_eq!(report.redirtied_rounds(), 2);
    assert_eq!(report.plain_copies.len(), 1);
}

#[test]
fn wherever_the_destination_vanishes_exactly_one_side_has_the_guest() {
    for calls in 0..100 {
        let mut guest = FakeGuest::new();
        let (here, there) = UnixStream::pair().unwrap();
        let far = destination(there, calls);
        let cancel = Cancel::default();
        let (memory, dirty) = (guest.memory.clone(), guest.dirty.clone());
        let mut given = [BTreeSet::new(), BTreeSet::new()];
        let mut busy = Busy(|round: u32| {
            let page = u64::from(round);
            memory.write(page * 4096, &[7]).unwrap();
            for (source, page) in [(0, page), (1, page + 20)] {
                dirty[source].0.lock().unwrap().insert(page + FIRST);
                given[source] = BTreeSet::from([page + FIRST]);
            }
        });
        let before = contents(&guest.memory);
        let mut stream = live::Source::new(here);
        let done = migrate(&mut guest, &mut stream, &options(&cancel), &mut busy);
        drop(stream);
        let (arrival, _) = far.join().unwrap();
        match done {
            Ok(_) => {
                assert!(arrival.runs && !guest.runs, "after {calls} calls");
                assert!(calls > 10);
                return;
            }
            Err(failure) if matches!(failure.error, MigrationError::Uncertain(_)) => {
                assert!(
                    !guest.runs,
                    "after {calls} calls: the guest may run over there"
                );
            }
            Err(failure) => {
                assert!(
                    failure.resumed && guest.runs,
                    "after {calls} calls: {failure:?}"
                );
                assert!(!arrival.runs, "after {calls} calls");
                let vanished = matches!(failure.error, MigrationError::PeerVanished { .. });
                assert!(vanished, "after {calls} calls: {failure:?}");
                if failure.round < 2 {
                    assert_eq!(contents(&guest.memory), before);
                }
                // What the failed round had taken from each source is with that source again,
                // unless the round had ended.
                let back: Vec<_> = guest
                    .dirty
                    .iter()
                    .map(|d| d.0.lock().unwrap().clone())
                    .collect();
                if failure.put_back > 0 {
                    assert_eq!(back, given, "after {calls} calls");
                }
                if (2..=3).contains(&failure.round) {
                    assert_eq!(failure.put_back, 2, "after {calls} calls: {failure:?}");
                }
            }
        }
    }
    panic!("no number of calls was enough");
}

#[test]
fn a_judge_and_a_cancellation_keep_the_guest_at_home() {
    struct Never;
    impl Observer for Never {
        fn switch_over(&mut self, guest: &dyn Guest) -> Result<(), String> {
            assert_eq!(guest.memory().len(), 1);
            Err("no".to_owned())
        }
    }
    struct Stop<'a>(&'a Cancel);
    impl Observer for Stop<'_> {
        fn before_round(&mut self, round: u32) {
            if round == 3 {
                assert!(self.0.cancel());
            }
        }
    }
    let cancel = Cancel::default();
    let observers: [&mut dyn Observer; 2] = [&mut Never, &mut Stop(&cancel)];
    for (number, observer) in observers.into_iter().enumerate() {
        let mut guest = FakeGuest::new();
        guest.dirty(0, 3, 3);
        guest.report_only(1, 4);
        let (here, there) = UnixStream::pair().unwrap();
        let far = destination(there, u32::MAX);
        let mut stream = live::Source::new(here);
        let failure = migrate(&mut guest, &mut stream, &options(&cancel), observer).unwrap_err();
        match number {
            0 => assert!(
                matches!(failure.error, MigrationError::Judged(_)),
                "{failure:?}"
            ),
            _ => assert_eq!(failure.round, 3, "at once: {failure:?}"),
        }
        assert!(failure.resumed && guest.runs);
        drop(stream);
        let (arrival, done) = far.join().unwrap();
        assert!(!arrival.runs);
        assert!(matches!(done, Err(MigrationError::Aborted)), "{done:?}");
    }
}
