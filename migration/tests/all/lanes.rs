//! Several connections at once: order is kept however they lag, and a fault on one ends them all.

use crate::common::{BASE, FakeArrival, FakeGuest, contents};
use migration::faults::{AtBytes, Fault, Gate, Planned, Random, Way, relay};
use migration::observe::Observer;
use migration::policy::Rounds;
use migration::precopy::{Failure, Options, migrate};
use migration::receive::receive_over;
use migration::report::Report;
use migration::stream::parallel::{Parallel, join};
use migration::stream::{Connection, New, SourceStream};
use migration::{Cancel, MigrationError};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

/// Enough that each of three connections gets a part of every round.
const PAGES: u64 = 600;
const ROUNDS: u32 = 5;

type Arrived = JoinHandle<(FakeArrival, Result<(), MigrationError>)>;

fn destination(sockets: Vec<UnixStream>) -> Arrived {
    std::thread::spawn(move || {
        let mut arrival = FakeArrival::of(PAGES);
        let limit = Some(Duration::from_secs(20));
        let sockets: Vec<Connection> = sockets.into_iter().map(Connection::from).collect();
        for socket in &sockets {
            socket.set_timeout(limit).unwrap();
        }
        let done = join(sockets)
            .and_then(|(mut stream, lanes)| receive_over(&mut stream, lanes, &mut arrival));
        (arrival, done.map(drop))
    })
}

/// Writes every other page anew before each round.
struct Busy(driver::memory::DmaMemory, [crate::common::Dirty; 2]);

impl Observer for Busy {
    fn before_round(&mut self, round: u32) {
        for page in (0..PAGES).step_by(2) {
            let value = u64::from(round) << 32 | page;
            self.0.write(page * 4096 + 8, &value.to_le_bytes()).unwrap();
            let source = usize::from(page % 3 == 0);
            self.1[source].0.lock().unwrap().insert(page + BASE / 4096);
        }
    }
}

struct Run {
    guest: FakeGuest,
    arrival: FakeArrival,
    arrived: Result<(), MigrationError>,
    done: Result<Report, Box<Failure>>,
}

/// A migration over connections that each suffer what the script says.
fn run(scripts: Vec<AtBytes>) -> Run {
    let (mut near, mut far, mut relays) = (Vec::new(), Vec::new(), Vec::new());
    for script in scripts {
        let (here, first) = UnixStream::pair().unwrap();
        let (second, there) = UnixStream::pair().unwrap();
        relays.push(relay(first, second, script).unwrap());
        near.push(here);
        far.push(there);
    }
    let arrived = destination(far);
    let mut guest = FakeGuest::of(PAGES);
    let mut busy = Busy(guest.memory.clone(), guest.dirty.clone());
    let cancel = Cancel::default();
    let options = Options {
        policy: &Rounds {
            min_rounds: ROUNDS,
            max_rounds: ROUNDS,
            stop_pages: 0,
        },
        granularity: 4096,
        plain_copies: 1,
        bandwidth: None,
        cancel: &cancel,
    };
    let near = near.into_iter().map(Connection::from).collect();
    let mut stream = Parallel::new(near).unwrap();
    let done = migrate(&mut guest, &mut stream, &options, &mut busy);
    drop(stream);
    let (arrival, arrived) = arrived.join().unwrap();
    for relay in relays {
        relay.join();
    }
    Run {
        guest,
        arrival,
        arrived,
        done,
    }
}

#[test]
fn pages_over_three_connections_are_the_guest() {
    for count in [2, 3, 8] {
        let Run {
            guest,
            arrival,
            arrived,
            done,
        } = run((0..count).map(|_| AtBytes::default()).collect());
        arrived.unwrap();
        let report = done.unwrap();
        assert!(arrival.runs && !guest.runs);
        assert_eq!(contents(&arrival.memory[0]), contents(&guest.memory));
        assert_eq!(report.rounds[1].pages, PAGES / 2);
        assert_eq!(report.rounds[1].unchanged, 0);
        assert_eq!(report.plain_copies.len(), 1);
    }
}

#[test]
fn order_is_kept_however_connections_lag() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let mut script = || {
            let mut planned = Vec::new();
            for _ in 0..12 {
                planned.push(Planned {
                    way: if random.below(2) == 0 {
                        Way::Forth
                    } else {
                        Way::Back
                    },
                    at: random.below(2 << 20),
                    fault: match random.below(2) {
                        0 => Fault::Delay(Duration::from_micros(random.below(8000))),
                        _ => Fault::Short(u32::try_from(random.below(300)).unwrap()),
                    },
                });
            }
            AtBytes::new(planned)
        };
        let Run {
            guest,
            arrival,
            arrived,
            done,
        } = run(vec![script(), script(), script()]);
        arrived.unwrap();
        done.unwrap();
        assert_eq!(
            contents(&arrival.memory[0]),
            contents(&guest.memory),
            "seed {seed}"
        );
    }
}

/// One connection stands still in the bulk round until the other has been answered in full: the
/// next round must not have begun there.
#[test]
fn a_round_ends_on_all_connections_at_once() {
    let gate = Gate::default();
    let held = AtBytes::new(vec![Planned {
        way: Way::Forth,
        at: 100,
        fault: Fault::Hold(gate.clone()),
    }]);
    // OPENED and PLAIN_COPIED are eight bytes each, and so is the answer to a record.
    let opens = AtBytes::new(vec![Planned {
        way: Way::Back,
        at: 16,
        fault: Fault::Open(gate),
    }]);
    let fired = (held.fired(), opens.fired());
    let Run {
        guest,
        arrival,
        arrived,
        done,
    } = run(vec![opens, held]);
    arrived.unwrap();
    done.unwrap();
    assert_eq!((fired.0.all().len(), fired.1.all().len()), (1, 1));
    assert_eq!(contents(&arrival.memory[0]), contents(&guest.memory));
}

/// The control: a source that does not wait for all connections has an older version come last.
#[test]
fn without_the_barrier_an_older_version_would_come_last() {
    let gate = Gate::default();
    let held = AtBytes::new(vec![Planned {
        way: Way::Forth,
        at: 100,
        fault: Fault::Hold(gate.clone()),
    }]);
    let (here, first) = UnixStream::pair().unwrap();
    let (second, there) = UnixStream::pair().unwrap();
    let slow = relay(first, second, held).unwrap();
    let (fast_here, fast_there) = UnixStream::pair().unwrap();
    let arrived = destination(vec![fast_there, there]);
    let guest = FakeGuest::of(PAGES);
    let memory = [guest.memory.clone()];
    // So many that the last one goes over the second connection, alone.
    let count = 65;
    let all: Vec<u64> = (0..count).map(|page| page + BASE / 4096).collect();
    let mut source = Parallel::new(
        vec![fast_here.into(), here.into()]
            .into_iter()
            .collect::<Vec<Connection>>(),
    )
    .unwrap();
    source.open(b"a guest").unwrap();
    source.pages(&memory, &all, New::Unknown).unwrap();
    // The last page has gone into the held connection; anew it goes over the first, unheld.
    let last = count - 1;
    guest.memory.write(last * 4096 + 8, b"newer").unwrap();
    let again = &all[all.len() - 1..];
    source.pages(&memory, again, New::Unknown).unwrap();
    source.wait_for_first().unwrap();
    gate.open();
    source.round_end(1).unwrap();
    drop(source);
    let (arrival, _) = arrived.join().unwrap();
    slow.join();
    let (here, there) = (contents(&guest.memory), contents(&arrival.memory[0]));
    let (from, to) = (64 * 4096, 65 * 4096);
    assert_ne!(
        here[from..to],
        there[from..to],
        "the older version is there"
    );
    assert_eq!(here[..from], there[..from]);
}

#[test]
fn a_fault_on_any_connection_leaves_the_guest_at_home() {
    for (lane, way, at, fault) in [
        (0, Way::Forth, 1 << 20, Fault::Cut),
        (1, Way::Forth, 10, Fault::Cut),
        (1, Way::Forth, 50_000, Fault::Cut),
        (2, Way::Back, 3, Fault::Cut),
        (1, Way::Forth, 0, Fault::Flip(3)),
        (1, Way::Forth, 20, Fault::Flip(0)),
        (2, Way::Forth, 33, Fault::Flip(7)),
        (2, Way::Forth, 90, Fault::Flip(6)),
        (1, Way::Back, 2, Fault::Flip(5)),
    ] {
        let what = format!("{} at {at} of connection {lane}, {way:?}", fault.name());
        let mut scripts: Vec<AtBytes> = (0..3).map(|_| AtBytes::default()).collect();
        scripts[lane].plan(Planned { way, at, fault });
        let fired = scripts[lane].fired();
        let Run {
            guest,
            arrival,
            arrived,
            done,
        } = run(scripts);
        assert_eq!(fired.all().len(), 1, "{what}: nothing happened");
        let failure = done.expect_err(&what);
        assert!(failure.resumed && guest.runs, "{what}: {failure:?}");
        assert!(!arrival.runs && arrived.is_err(), "{what}: {arrived:?}");
    }
}

#[test]
fn connections_that_do_not_belong_together_are_refused() {
    let pairs = |count: usize| -> (Vec<Connection>, Vec<Connection>) {
        (0..count).map(|_| Connection::pair().unwrap()).unzip()
    };
    let says = |far: Vec<Connection>, text: &str| {
        let error = join(far).expect_err("refused").to_string();
        assert!(error.contains(text), "{error}");
    };
    let ((near, mut far), (other, mut odd)) = (pairs(2), pairs(2));
    let _sources = (Parallel::new(near).unwrap(), Parallel::new(other).unwrap());
    far.truncate(1);
    far.push(odd.pop().unwrap());
    says(far, "of one source, each once");

    let (near, far) = pairs(3);
    let _source = Parallel::new(near).unwrap();
    says(far[..2].to_vec(), "got number 0 of 3");

    let (mut near, far) = pairs(2);
    for socket in &mut near {
        std::io::Write::write_all(socket, &[b'L'; 64]).unwrap();
    }
    says(far, "expected JOIN");

    let (_near, far) = pairs(2);
    for socket in &far {
        socket.set_timeout(Some(Duration::from_millis(50))).unwrap();
    }
    says(far, "nothing moved within the time limit");
    assert!(Parallel::new(pairs(1).0).is_err());
    assert!(Parallel::new(pairs(65).0).is_err());
}
