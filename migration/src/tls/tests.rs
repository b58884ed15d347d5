use super::*;
use crate::faults::{AtBytes, Fault, Planned, Way, relay};
use crate::stream::Connection;
use rcgen::{CertificateParams, KeyPair};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// Three parties with a certificate each.
struct Parties(tempfile::TempDir);

impl Parties {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["source", "destination", "stranger"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            let certificate = params.self_signed(&key).unwrap();
            let path = |what: &str| folder.path().join(format!("{name}.{what}"));
            std::fs::write(path("pem"), certificate.pem()).unwrap();
            std::fs::write(path("key"), key.serialize_pem()).unwrap();
        }
        Self(folder)
    }

    fn files(&self, own: &str, peer: &str) -> Pinned {
        let path = |name: String| self.0.path().join(name);
        Pinned {
            certificate: path(format!("{own}.pem")),
            key: path(format!("{own}.key")),
            peer: path(format!("{peer}.pem")),
        }
    }

    fn keys(&self, own: &str, peer: &str) -> Credentials {
        self.files(own, peer).load().unwrap()
    }
}

type Ended = Result<Connection, HandshakeError>;

/// Both ends of a handshake through a relay that does what the script says.
fn shake(connecting: &Credentials, waiting: &Credentials, script: AtBytes) -> (Ended, Ended) {
    let (here, first) = UnixStream::pair().unwrap();
    let (second, there) = UnixStream::pair().unwrap();
    relay(first, second, script).unwrap();
    std::thread::scope(|scope| {
        let waited = scope.spawn(|| Connection::accept_secure(there, waiting, LIMIT));
        let connected = Connection::secure(here, connecting, LIMIT);
        (connected, waited.join().unwrap())
    })
}

#[test]
fn bytes_of_any_length_arrive_both_ways_at_once() {
    let all = Parties::new();
    let (source, destination) = (
        all.keys("source", "destination"),
        all.keys("destination", "source"),
    );
    let (here, there) = shake(&source, &destination, AtBytes::default());
    let (here, there) = (here.unwrap(), there.unwrap());
    let text: Vec<u8> = (0_u32..300_000).flat_map(u32::to_le_bytes).collect();
    std::thread::scope(|scope| {
        for end in [&here, &there] {
            let text = &text;
            scope.spawn(move || {
                let mut end = end;
                for part in text.chunks(70_001) {
                    end.write_all(part).unwrap();
                }
                end.stop_writing();
            });
            scope.spawn(move || {
                let mut end = end;
                let mut came = Vec::new();
                // To the end that was said, not to one that happened.
                end.read_to_end(&mut came).unwrap();
                assert!(came == *text);
            });
        }
    });
}

#[test]
fn only_the_certificate_that_was_pinned_is_good() {
    let all = Parties::new();
    let good = all.keys("destination", "source");
    let text = |ended: Ended| ended.unwrap_err().to_string();

    // A stranger calls: the one that waits says what it saw, and the stranger hears no.
    let (connected, waited) = shake(
        &all.keys("stranger", "destination"),
        &good,
        AtBytes::default(),
    );
    let waited = waited.unwrap_err();
    assert!(
        matches!(&waited, HandshakeError::Certificate(why) if why.contains("expected SHA-256")),
        "{waited}"
    );
    let refused = connected.unwrap_err();
    assert!(
        matches!(refused, HandshakeError::Refused { .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("--tls-peer"), "{refused}");

    // A stranger answers.
    let (connected, waited) = shake(
        &all.keys("source", "destination"),
        &all.keys("stranger", "source"),
        AtBytes::default(),
    );
    let connected = text(connected);
    assert!(
        connected.contains("the other end's certificate: expected SHA-256"),
        "{connected}"
    );
    assert!(text(waited).contains("refused this side"));

    // Another key under the right certificate is no key.
    let mixed = Pinned {
        key: all.files("stranger", "source").key,
        ..all.files("destination", "source")
    };
    let unfit = mixed.load().unwrap_err();
    assert!(matches!(unfit, TlsError::Unfit(_)), "{unfit}");
    let missing = Pinned {
        peer: "/nowhere".into(),
        ..all.files("destination", "source")
    };
    let told = missing.load().unwrap_err().to_string();
    assert!(
        told.contains("expected the other side's certificate"),
        "{told}"
    );
}

#[test]
fn an_end_without_tls_is_told_apart() {
    let all = Parties::new();
    let keys = all.keys("destination", "source");
    // Nothing, a little of a stream, and a request of another world.
    for (said, tls) in [
        (&b"LibxlFmt\0\0\0\x02\0\0\0\0"[..], false),
        (b"GET / HTTP/1.1\r\n\r\n", false),
        (&[22, 3, 1, 255, 255, 1, 2], true),
    ] {
        for waits in [false, true] {
            let (mut here, there) = UnixStream::pair().unwrap();
            here.write_all(said).unwrap();
            here.shutdown(std::net::Shutdown::Write).unwrap();
            let ended = match waits {
                true => Connection::accept_secure(there, &keys, LIMIT),
                false => Connection::secure(there, &keys, LIMIT),
            };
            let error = ended.unwrap_err();
            let plain = matches!(&error, HandshakeError::Plain { got } if got[..] == said[..8]);
            assert!(tls || plain, "{error}");
            let mut answer = Vec::new();
            here.read_to_end(&mut answer).unwrap();
            assert!(is_tls(&answer), "the other end hears it too: {answer:02x?}");
        }
    }
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let all = Parties::new();
    let keys = all.keys("destination", "source");
    let limit = Duration::from_millis(50);
    let (_here, there) = UnixStream::pair().unwrap();
    let slow = Connection::accept_secure(there, &keys, limit).unwrap_err();
    assert!(
        matches!(slow, HandshakeError::Slow { got: 0, .. }),
        "{slow}"
    );
}

/// How long a handshake is: bytes of both ways.
fn lengths(all: &Parties) -> (u64, u64) {
    let (here, first) = UnixStream::pair().unwrap();
    let (second, there) = UnixStream::pair().unwrap();
    let relay = relay(first, second, AtBytes::default()).unwrap();
    let (source, destination) = (
        all.keys("source", "destination"),
        all.keys("destination", "source"),
    );
    std::thread::scope(|scope| {
        let waited =
            scope.spawn(|| drop(Connection::accept_secure(there, &destination, LIMIT).unwrap()));
        drop(Connection::secure(here, &source, LIMIT).unwrap());
        waited.join().unwrap();
    });
    relay.join()
}

#[test]
fn a_handshake_that_is_cut_or_changed_anywhere_makes_no_connection() {
    let all = Parties::new();
    let (source, destination) = (
        all.keys("source", "destination"),
        all.keys("destination", "source"),
    );
    let (forth, back) = lengths(&all);
    // Signatures differ in length by a few bytes, and both say farewell.
    let (forth, back) = (forth - 64, back - 64);
    for (way, length) in [(Way::Forth, forth), (Way::Back, back)] {
        for at in (0..length).step_by(13) {
            for fault in [Fault::Cut, Fault::Flip(3)] {
                let cut = matches!(fault, Fault::Cut);
                let script = AtBytes::new(vec![Planned { way, at, fault }]);
                let fired = script.fired();
                let (connected, waited) = shake(&source, &destination, script);
                assert_eq!(fired.all().len(), 1, "{way:?} {at}");
                // The last words of one end may be lost when the other has all it needs; then the
                // first to speak finds out.
                let error = match (connected, waited) {
                    (Err(error), _) | (_, Err(error)) => error,
                    (Ok(_), Ok(_)) => panic!("{way:?} {at}: both are content"),
                };
                let told = error.to_string();
                assert!(
                    !cut || matches!(
                        error,
                        HandshakeError::Cut { .. } | HandshakeError::System(_)
                    ),
                    "{way:?} {at}: {told}"
                );
            }
        }
    }
}

#[test]
fn a_session_that_is_cut_or_changed_says_so() {
    let all = Parties::new();
    let (source, destination) = (
        all.keys("source", "destination"),
        all.keys("destination", "source"),
    );
    let (forth, _) = lengths(&all);
    for (fault, says) in [
        (Fault::Cut, "it was cut"),
        (Fault::Flip(0), "somebody changed it"),
    ] {
        let script = AtBytes::new(vec![Planned {
            way: Way::Forth,
            at: forth + 20_000,
            fault,
        }]);
        let (here, there) = shake(&source, &destination, script);
        let (mut here, mut there) = (here.unwrap(), there.unwrap());
        let sent = std::thread::spawn(move || here.write_all(&[7; 100_000]));
        let mut came = Vec::new();
        let error = there.read_to_end(&mut came).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(came.len() < 40_000 && came.iter().all(|byte| *byte == 7));
        drop(there);
        // Whether it noticed depends on how much the system took.
        let _ = sent.join().unwrap();
    }
}
