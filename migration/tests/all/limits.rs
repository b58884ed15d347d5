//! What ends a migration or holds it back: policies, bandwidth, time limits, cancelling; and pages
//! that need no bytes.

use crate::common::{BASE, Dirty, FakeArrival, FakeGuest, PAGES, contents};
use driver::memory::DmaMemory;
use migration::observe::Observer;
use migration::pace::{Bandwidth, Clock};
use migration::policy::{Decision, Policy, Rounds, Seen, XenDefault};
use migration::precopy::{Failure, Options, migrate};
use migration::receive::receive;
use migration::report::{Report, RoundReport};
use migration::stream::{Connection, live};
use migration::{Cancel, Guest, MigrationError};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const FIRST: u64 = BASE / 4096;
const ROUNDS: Rounds = Rounds {
    min_rounds: 3,
    max_rounds: 3,
    stop_pages: 0,
};

fn options<'a>(policy: &'a dyn Policy, cancel: &'a Cancel) -> Options<'a> {
    Options {
        policy,
        granularity: 4096,
        plain_copies: 0,
        bandwidth: None,
        cancel,
    }
}

type Done = Result<Report, Box<Failure>>;

fn run(
    guest: &mut FakeGuest,
    options: &Options<'_>,
    observer: &mut dyn Observer,
) -> (Done, FakeArrival) {
    let (here, there) = Connection::pair().unwrap();
    let far = std::thread::spawn(move || {
        let mut arrival = FakeArrival::default();
        let done = receive(&mut live::Destination::new(there), &mut arrival);
        assert_eq!(done.is_ok(), arrival.runs);
        arrival
    });
    let ears = here.clone();
    options.cancel.on_cancel(move || ears.hang_up());
    let mut stream = live::Source::new(here);
    let done = migrate(guest, &mut stream, options, observer);
    drop(stream);
    (done, far.join().unwrap())
}

/// Dirties so many pages before each round.
struct Busy {
    memory: DmaMemory,
    dirty: [Dirty; 2],
    pages: u64,
    round: u64,
}

impl Busy {
    fn new(guest: &FakeGuest, pages: u64) -> Self {
        Self {
            memory: guest.memory.clone(),
            dirty: guest.dirty.clone(),
            pages,
            round: 0,
        }
    }
}

impl Observer for Busy {
    fn before_round(&mut self, _: u32) {
        self.round += 1;
        for page in 0..self.pages {
            let at = page * 4096 + 8;
            self.memory.write(at, &self.round.to_le_bytes()).unwrap();
            let source = usize::try_from(page % 2).unwrap();
            self.dirty[source].0.lock().unwrap().insert(page + FIRST);
        }
    }
}

#[test]
fn xens_default_stops_with_the_report_in_hand() {
    for (pages, rounds) in [(49, 2), (50, 6)] {
        let mut guest = FakeGuest::new();
        let mut busy = Busy::new(&guest, pages);
        let cancel = Cancel::default();
        let (done, arrival) = run(&mut guest, &options(&XenDefault, &cancel), &mut busy);
        let report = done.unwrap();
        assert_eq!(report.rounds.len(), rounds, "{pages} pages");
        let last = report.rounds.last().unwrap();
        assert!(last.last && last.round == u32::try_from(rounds).unwrap());
        if pages == 49 {
            assert_eq!(last.pages, 49, "what was reported before the stop is sent");
        }
        assert_eq!(contents(&arrival.memory[0]), contents(&guest.memory));
    }
}

/// Says the same thing whenever it knows what is dirty.
#[derive(Debug)]
struct Always(Decision);

impl Policy for Always {
    fn decide(&self, seen: &Seen) -> Decision {
        match seen.dirty {
            Some(_) if seen.rounds == 2 => self.0.clone(),
            _ => Decision::Continue,
        }
    }
}

#[test]
fn a_guest_that_does_not_converge_stays_with_its_bits() {
    let mut guest = FakeGuest::new();
    let mut busy = Busy::new(&guest, 10);
    let cancel = Cancel::default();
    let policy = Always(Decision::GiveUp("too much".to_owned()));
    let (done, arrival) = run(&mut guest, &options(&policy, &cancel), &mut busy);
    let failure = done.unwrap_err();
    let text = failure.to_string();
    assert_eq!(text, "the guest does not converge: too much");
    assert!(matches!(failure.error, MigrationError::NotConverged(_)));
    assert!(failure.resumed && guest.runs && !arrival.runs);
    assert_eq!(failure.put_back, 10);
    let back = guest.dirty.each_ref().map(|d| d.0.lock().unwrap().len());
    assert_eq!(back, [5, 5], "to whom it came from");
}

#[test]
fn a_guest_that_cannot_be_throttled_says_so() {
    let mut guest = FakeGuest::new();
    let mut busy = Busy::new(&guest, 10);
    let cancel = Cancel::default();
    let policy = Always(Decision::Throttle(20));
    let (done, _) = run(&mut guest, &options(&policy, &cancel), &mut busy);
    let text = done.unwrap_err().to_string();
    assert!(text.contains("cannot be throttled"), "{text}");
    assert!(guest.runs);
}

/// Cancels at one event, counted over all that a migration tells.
struct At<'a> {
    inner: Busy,
    cancel: &'a Cancel,
    left: u32,
    /// What the sources reported for the round under way.
    given: [BTreeSet<u64>; 2],
    what: &'static str,
    too_late: bool,
}

impl At<'_> {
    fn event(&mut self, what: &'static str) {
        match self.left {
            0 => {}
            1 => {
                self.left = 0;
                self.what = what;
                self.too_late = !self.cancel.cancel();
            }
            _ => self.left -= 1,
        }
    }
}

impl Observer for At<'_> {
    fn before_round(&mut self, round: u32) {
        self.inner.before_round(round);
        self.given = self
            .inner
            .dirty
            .each_ref()
            .map(|d| d.0.lock().unwrap().clone());
        self.event("before a round");
    }
    fn dirty(&mut self, _: u32, _: u64, _: &Seen) {
        self.event("after a report");
    }
    fn round_started(&mut self, _: u32, _: u64, last: bool) {
        if last {
            self.given = Default::default();
        }
        self.event(if last {
            "in the last round"
        } else {
            "in a round"
        });
    }
    fn progress(&mut self, _: u32, _: u64) {
        self.event("after some pages");
    }
    fn round_ended(&mut self, _: &RoundReport) {
        self.given = Default::default();
        self.event("after a round");
    }
    fn switch_over(&mut self, _: &dyn Guest) -> Result<(), String> {
        self.event("at the switch-over");
        Ok(())
    }
}

#[test]
fn cancelled_anywhere_the_guest_stays_whole() {
    let mut seen = BTreeSet::new();
    for left in 1.. {
        let mut guest = FakeGuest::new();
        let cancel = Cancel::default();
        let mut at = At {
            inner: Busy::new(&guest, 6),
            cancel: &cancel,
            left,
            given: Default::default(),
            what: "never",
            too_late: false,
        };
        let (done, arrival) = run(&mut guest, &options(&ROUNDS, &cancel), &mut at);
        let (what, given) = (at.what, at.given);
        if done.is_ok() {
            assert_eq!(what, "never", "cancelled {what}, and it moved all the same");
            assert!(arrival.runs && !cancel.cancel(), "too late now");
            break;
        }
        seen.insert(what);
        let failure = done.unwrap_err();
        assert!(!at.too_late);
        assert!(
            matches!(failure.error, MigrationError::Cancelled),
            "{failure:?}"
        );
        assert!(failure.resumed && guest.runs && !arrival.runs, "{what}");
        let back = guest.dirty.each_ref().map(|d| d.0.lock().unwrap().clone());
        assert_eq!(back, given, "{what}: {failure:?}");
    }
    assert_eq!(seen.len(), 7, "{seen:?}");
}

#[derive(Debug, Default)]
struct Fake(Mutex<Duration>);

impl Clock for Fake {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }
    fn sleep(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

#[test]
fn a_bandwidth_is_kept_and_the_last_round_is_free() {
    let clock = Fake::default();
    let mut guest = FakeGuest::new();
    let mut busy = Busy::new(&guest, 32);
    let cancel = Cancel::default();
    let options = Options {
        bandwidth: Some(Bandwidth {
            rate: 40_960,
            clock: &clock,
        }),
        ..options(&ROUNDS, &cancel)
    };
    let (done, arrival) = run(&mut guest, &options, &mut busy);
    let report = done.unwrap();
    let sent: u64 = report
        .rounds
        .iter()
        .filter(|r| !r.last)
        .map(|r| r.bytes)
        .sum();
    let least = Duration::from_millis(sent * 1000 / 40_960);
    let took = clock.now();
    assert!(
        took >= least - Duration::from_millis(60),
        "{took:?} for {sent} bytes"
    );
    assert!(
        took <= least + Duration::from_millis(60),
        "{took:?} for {sent} bytes"
    );
    assert_eq!(contents(&arrival.memory[0]), contents(&guest.memory));
}

/// Cancels after so much waiting.
#[derive(Debug)]
struct Impatient(Fake, Arc<Cancel>);

impl Clock for Impatient {
    fn now(&self) -> Duration {
        self.0.now()
    }
    fn sleep(&self, time: Duration) {
        self.0.sleep(time);
        if self.0.now() > Duration::from_secs(1) {
            assert!(self.1.cancel());
        }
    }
}

#[test]
fn whoever_waits_for_bandwidth_can_be_cancelled() {
    let cancel = Arc::new(Cancel::default());
    let clock = Impatient(Fake::default(), Arc::clone(&cancel));
    let mut guest = FakeGuest::new();
    let mut busy = Busy::new(&guest, 1);
    let options = Options {
        bandwidth: Some(Bandwidth {
            rate: 4096,
            clock: &clock,
        }),
        ..options(&ROUNDS, &cancel)
    };
    let (done, _) = run(&mut guest, &options, &mut busy);
    let failure = done.unwrap_err();
    assert!(
        matches!(failure.error, MigrationError::Cancelled),
        "{failure:?}"
    );
    assert!(failure.round == 1 && guest.runs);
}

#[test]
fn a_silent_destination_does_not_hold_the_guest() {
    let (here, there) = Connection::pair().unwrap();
    here.set_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut guest = FakeGuest::new();
    let cancel = Cancel::default();
    let mut stream = live::Source::new(here);
    let mut busy = Busy::new(&guest, 1);
    let done = migrate(
        &mut guest,
        &mut stream,
        &options(&ROUNDS, &cancel),
        &mut busy,
    );
    let failure = done.unwrap_err();
    let text = failure.to_string();
    assert!(
        text.contains("nothing moved within the time limit"),
        "{text}"
    );
    assert!(failure.resumed && guest.runs);
    drop(there);
}

/// Nobody reads and nothing has a time limit: only hanging up ends the wait.
#[test]
fn a_migration_that_waits_for_its_connection_is_cancelled() {
    struct Tell(std::sync::mpsc::Sender<()>);
    impl Observer for Tell {
        fn round_started(&mut self, _: u32, _: u64, _: bool) {
            self.0.send(()).unwrap();
        }
    }
    let (here, mut there) = Connection::pair().unwrap();
    // There is room over there, and that is the last that is heard.
    std::io::Write::write_all(&mut there, &[4, 0, 0x44, 0x54, 0, 0, 0, 0]).unwrap();
    let cancel = Arc::new(Cancel::default());
    let ears = here.clone();
    cancel.on_cancel(move || ears.hang_up());
    let (sender, started) = std::sync::mpsc::channel();
    let other = Arc::clone(&cancel);
    let canceller = std::thread::spawn(move || {
        started.recv().unwrap();
        other.cancel()
    });
    let mut guest = FakeGuest::new();
    let mut stream = live::Source::new(here);
    let options = options(&ROUNDS, &cancel);
    let done = migrate(&mut guest, &mut stream, &options, &mut Tell(sender));
    let failure = done.unwrap_err();
    assert!(canceller.join().unwrap());
    assert!(
        matches!(failure.error, MigrationError::Cancelled),
        "{failure:?}"
    );
    assert!(failure.resumed && guest.runs);
}

/// Pages of zeros go without bytes once, and never again.
#[test]
fn zeros_are_elided_in_the_bulk_alone() {
    let mut guest = FakeGuest::new();
    for page in 8..40 {
        guest.memory.write(page * 4096, &[0; 16]).unwrap();
    }
    // Becomes zeros after it was sent: what the destination holds is something else.
    struct Clear(DmaMemory, [Dirty; 2]);
    impl Observer for Clear {
        fn before_round(&mut self, round: u32) {
            if round == 2 {
                for page in [3, 50] {
                    self.0.write(page * 4096, &[0; 16]).unwrap();
                    self.1[0].0.lock().unwrap().insert(page + FIRST);
                }
                self.0.write(20 * 4096, &[1]).unwrap();
                self.1[1].0.lock().unwrap().insert(20 + FIRST);
            }
        }
    }
    let mut clear = Clear(guest.memory.clone(), guest.dirty.clone());
    let cancel = Cancel::default();
    let (done, arrival) = run(&mut guest, &options(&ROUNDS, &cancel), &mut clear);
    let report = done.unwrap();
    assert_eq!(report.rounds[0].zeros, 33, "32 and page 0");
    assert_eq!(report.rounds[0].pages, PAGES);
    assert!(report.rounds[0].bytes < (PAGES - 32) * 4096);
    assert_eq!((report.rounds[1].zeros, report.rounds[1].pages), (0, 3));
    assert!(report.rounds[1].bytes > 3 * 4096);
    assert_eq!(contents(&arrival.memory[0]), contents(&guest.memory));
}
