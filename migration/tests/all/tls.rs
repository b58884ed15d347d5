//! A guest over TLS: whole over four connections, and not at all to or from anybody else.

use crate::common::{BASE, FakeArrival, FakeGuest, contents};
use migration::observe::Observer;
use migration::policy::Rounds;
use migration::precopy::{Failure, Options, migrate};
use migration::receive::{Lanes, receive_over};
use migration::report::Report;
use migration::stream::parallel::{Parallel, join};
use migration::stream::{Connection, SourceStream, live};
use migration::tls::{Credentials, Pinned};
use migration::transport::{Address, Listener, Terms, connect};
use migration::{Cancel, MigrationError};
use rcgen::{CertificateParams, KeyPair};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const PAGES: u64 = 600;
const LIMIT: Duration = Duration::from_secs(20);

/// A pair of keys for each of three names, each of which knows one other.
struct Parties(tempfile::TempDir);

impl Parties {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["source", "destination", "stranger"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            let certificate = params.self_signed(&key).unwrap().pem();
            let path = |what: &str| folder.path().join(format!("{name}.{what}"));
            std::fs::write(path("pem"), certificate).unwrap();
            std::fs::write(path("key"), key.serialize_pem()).unwrap();
        }
        Self(folder)
    }

    fn keys(&self, own: &str, peer: &str) -> Credentials {
        let path = |name: String| self.0.path().join(name);
        let files = Pinned {
            certificate: path(format!("{own}.pem")),
            key: path(format!("{own}.key")),
            peer: path(format!("{peer}.pem")),
        };
        files.load().unwrap()
    }
}

fn terms(connections: usize, tls: Option<Credentials>) -> Terms {
    Terms {
        connections,
        timeout: LIMIT,
        insecure: false,
        tls,
    }
}

fn listen(terms: &Terms) -> Listener {
    let at = match terms.tls {
        Some(_) => Address::Tls("127.0.0.1:0".to_owned()),
        None => Address::Tcp("127.0.0.1:0".to_owned()),
    };
    Listener::bind(&at, terms).unwrap()
}

/// The other scheme at the same place.
fn other(address: &Address) -> Address {
    match address {
        Address::Tls(name) => Address::Tcp(name.clone()),
        Address::Tcp(name) => Address::Tls(name.clone()),
        Address::Unix(path) => Address::Unix(path.clone()),
    }
}

fn take(mut sockets: Vec<Connection>) -> (FakeArrival, Result<(), MigrationError>) {
    let mut arrival = FakeArrival::of(PAGES);
    let done = match sockets.len() {
        1 => {
            let mut stream = live::Destination::new(sockets.remove(0));
            receive_over(&mut stream, Lanes::default(), &mut arrival)
        }
        _ => join(sockets)
            .and_then(|(mut stream, lanes)| receive_over(&mut stream, lanes, &mut arrival)),
    };
    (arrival, done.map(drop))
}

/// Writes every third page anew before each round.
struct Busy(driver::memory::DmaMemory, [crate::common::Dirty; 2]);

impl Observer for Busy {
    fn before_round(&mut self, round: u32) {
        for page in (0..PAGES).step_by(3) {
            let value = u64::from(round) << 32 | page;
            self.0.write(page * 4096 + 8, &value.to_le_bytes()).unwrap();
            self.1[0].0.lock().unwrap().insert(page + BASE / 4096);
        }
    }
}

fn send(guest: &mut FakeGuest, mut sockets: Vec<Connection>) -> Result<Report, Box<Failure>> {
    let mut busy = Busy(guest.memory.clone(), guest.dirty.clone());
    let cancel = Cancel::default();
    let options = Options {
        policy: &Rounds {
            min_rounds: 4,
            max_rounds: 4,
            stop_pages: 0,
        },
        granularity: 4096,
        plain_copies: 1,
        bandwidth: None,
        cancel: &cancel,
    };
    let mut stream: Box<dyn SourceStream> = match sockets.len() {
        1 => Box::new(live::Source::new(sockets.remove(0))),
        _ => Box::new(Parallel::new(sockets).unwrap()),
    };
    migrate(guest, stream.as_mut(), &options, &mut busy)
}

#[test]
fn a_guest_moves_over_one_and_over_four_connections() {
    let all = Parties::new();
    for connections in [1, 4] {
        let here = terms(connections, Some(all.keys("source", "destination")));
        let there = terms(connections, Some(all.keys("destination", "source")));
        let listener = listen(&there);
        let to = listener.address().clone();
        let arrived = std::thread::spawn(move || take(listener.accept(&there).unwrap()));
        let mut guest = FakeGuest::of(PAGES);
        let report = send(&mut guest, connect(&to, &here).unwrap()).unwrap();
        let (arrival, done) = arrived.join().unwrap();
        done.unwrap();
        assert!(arrival.runs && !guest.runs);
        assert_eq!(contents(&arrival.memory[0]), contents(&guest.memory));
        assert_eq!(report.rounds[1].pages, PAGES / 3);
    }
}

/// Nobody that a listener waits for is kept from it by those who come first.
#[test]
fn strangers_are_turned_away_and_the_wait_goes_on() {
    let all = Parties::new();
    let there = terms(2, Some(all.keys("destination", "source")));
    let listener = listen(&there);
    let to = listener.address().clone();
    let Address::Tls(name) = &to else {
        panic!("{to}")
    };
    let arrived = std::thread::spawn(move || take(listener.accept(&there).unwrap()));

    let stranger = terms(1, Some(all.keys("stranger", "destination")));
    let refused = connect(&to, &stranger).unwrap_err().to_string();
    assert!(refused.contains("refused this side"), "{refused}");
    let mistaken = terms(1, Some(all.keys("source", "stranger")));
    let refused = connect(&to, &mistaken).unwrap_err().to_string();
    assert!(
        refused.contains("certificate: expected SHA-256"),
        "{refused}"
    );
    // Plain ones, with a whole beginning of a stream and with noise, and one that goes away.
    let plain = terms(1, None);
    let mut guest = FakeGuest::of(PAGES);
    let failure = send(&mut guest, connect(&other(&to), &plain).unwrap()).unwrap_err();
    let told = failure.error.to_string();
    assert!(failure.resumed && guest.runs, "{told}");
    assert!(
        told.contains("got TLS's") && told.contains("tls:HOST:PORT"),
        "{told}"
    );
    let mut noise = TcpStream::connect(name).unwrap();
    noise.write_all(&[0x5a; 5000]).unwrap();
    drop(noise);
    drop(TcpStream::connect(name).unwrap());

    let mut guest = FakeGuest::of(PAGES);
    let here = terms(2, Some(all.keys("source", "destination")));
    send(&mut guest, connect(&to, &here).unwrap()).unwrap();
    let (arrival, done) = arrived.join().unwrap();
    done.unwrap();
    assert_eq!(contents(&arrival.memory[0]), contents(&guest.memory));
}

#[test]
fn an_end_with_tls_tells_of_a_plain_one_and_the_plain_one_of_it() {
    let all = Parties::new();
    let plain = terms(1, None);
    let listener = listen(&plain);
    let to = other(listener.address());
    let arrived = std::thread::spawn(move || take(listener.accept(&plain).unwrap()).1);
    let here = terms(1, Some(all.keys("source", "destination")));
    let told = connect(&to, &here).unwrap_err().to_string();
    assert!(told.contains("speaks plainly"), "{told}");
    let told = arrived.join().unwrap().unwrap_err().to_string();
    assert!(
        told.contains("expected the ident") && told.contains("speaks TLS"),
        "{told}"
    );
}

#[test]
fn tls_is_not_begun_without_certificates() {
    let naked = terms(1, None);
    let at = Address::Tls("127.0.0.1:0".to_owned());
    let error = Listener::bind(&at, &naked).unwrap_err().to_string();
    assert!(error.contains("--tls-cert"), "{error}");
    let error = connect(&at, &naked).unwrap_err().to_string();
    assert!(error.contains("--tls-peer"), "{error}");
}

/// A destination that is cut off after the handshake: the guest stays, whole.
#[test]
fn a_cut_after_the_handshake_leaves_the_guest_where_it_is() {
    let all = Parties::new();
    let here = terms(1, Some(all.keys("source", "destination")));
    let there = terms(1, Some(all.keys("destination", "source")));
    let listener = listen(&there);
    let to = listener.address().clone();
    let taken = std::thread::spawn(move || {
        let mut only = listener.accept(&there).unwrap().remove(0);
        only.read_exact(&mut [0; 16]).unwrap();
        only.hang_up();
    });
    let mut guest = FakeGuest::of(PAGES);
    let failure = send(&mut guest, connect(&to, &here).unwrap()).unwrap_err();
    taken.join().unwrap();
    assert!(failure.resumed && guest.runs, "{failure:?}");
    let told = failure.error.to_string();
    assert!(told.contains("the destination vanished"), "{told}");
}
