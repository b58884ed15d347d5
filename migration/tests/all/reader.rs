//! The reader against streams that no source of ours would send. The bytes are typed here again.

use crate::common::{BASE, FakeArrival};
use migration::MigrationError;
use migration::receive::receive;
use migration::stream::simple::Simple;
use proptest::prelude::*;
use std::io::Write;
use std::os::unix::net::UnixStream;

fn record(kind: u32, arg: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(arg.to_le_bytes());
    bytes.extend(u64::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(body);
    bytes
}

fn pages(numbers: &[u64]) -> Vec<u8> {
    let mut body: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    body.resize(body.len() + 4096 * numbers.len(), 0x5a);
    record(3, u32::try_from(numbers.len()).unwrap(), &body)
}

fn prologue() -> Vec<u8> {
    let mut bytes = b"TIDEMARK".to_vec();
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn opened() -> Vec<u8> {
    let mut bytes = prologue();
    bytes.extend(record(1, 0, b"a guest"));
    bytes
}

fn feed(bytes: Vec<u8>) -> (FakeArrival, MigrationError) {
    let (mut here, there) = UnixStream::pair().unwrap();
    let writer = std::thread::spawn(move || {
        // The reader may hang up first: that is what most of these streams deserve.
        let _ = here.write_all(&bytes);
        let _ = here.shutdown(std::net::Shutdown::Write);
        here
    });
    let mut arrival = FakeArrival::default();
    let done = receive(&mut Simple::destination(there), &mut arrival);
    drop(writer.join().unwrap());
    let error = done.expect_err("no stream here is whole");
    (arrival, error)
}

fn malformed(tail: &[u8], says: &str, at: u64) {
    let mut bytes = opened();
    bytes.extend(tail);
    let (arrival, error) = feed(bytes);
    assert!(!arrival.runs);
    let MigrationError::Malformed { offset, .. } = error else {
        panic!("{error}");
    };
    assert!(error.to_string().contains(says), "{error}");
    // Prologue 16, head 16, "a guest" 7.
    assert_eq!(offset, 39 + at, "{error}");
}

#[test]
fn every_rule_of_the_format_is_kept() {
    let first = BASE / 4096;
    malformed(&record(99, 0, b""), "a known record", 16);
    malformed(&record(6, 1, b""), "a known record", 16);
    malformed(&record(6, 0, b"x"), "0 to 0 bytes", 16);
    malformed(&record(3, 0, b""), "a known record", 16);
    malformed(&record(3, 1025, b""), "a known record", 16);
    malformed(&record(3, 1, &[0; 100]), "4104", 16);
    malformed(&pages(&[first + 1, first]), "ascending", 32);
    malformed(&pages(&[first, first]), "ascending", 32);
    malformed(&pages(&[0]), "a page of the guest's memory", 24);
    malformed(&pages(&[first + 64]), "a page of the guest's memory", 24);
    malformed(&pages(&[u64::MAX]), "a page of the guest's memory", 24);
    malformed(&record(1, 0, b"a guest"), "got the guest's description", 23);
    malformed(&record(7, 0, b""), "got go", 16);
    // A length that nobody can hold is refused before anything is allocated.
    let mut huge = record(5, 1, b"");
    huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    malformed(&huge, "a body of", 16);
}

#[test]
fn the_prologue_is_checked() {
    for (at, says) in [(0, "magic"), (8, "version"), (12, "version")] {
        let mut bytes = opened();
        bytes[at] ^= 0x40;
        let (_, error) = feed(bytes);
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn an_incomplete_guest_is_not_run() {
    let mut bytes = opened();
    bytes.extend(pages(&[BASE / 4096]));
    bytes.extend(record(4, 1, b""));
    bytes.extend(record(6, 0, b""));
    bytes.extend(record(7, 0, b""));
    let (arrival, error) = feed(bytes);
    assert!(!arrival.runs);
    assert!(error.to_string().contains("1 of 64 pages"), "{error}");
}

#[test]
fn a_stream_that_ends_anywhere_says_where() {
    let mut bytes = opened();
    bytes.extend(pages(&[BASE / 4096, BASE / 4096 + 1]));
    bytes.extend(record(5, 1, b"state"));
    for end in (0..bytes.len()).filter(|end| *end < 90 || end % 997 == 0) {
        let (arrival, error) = feed(bytes[..end].to_vec());
        assert!(!arrival.runs);
        let vanished = matches!(error, MigrationError::PeerVanished { .. });
        assert!(
            vanished && error.to_string().contains("at byte"),
            "{end}: {error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn noise_yields_an_error_and_runs_nothing(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        flips in proptest::collection::vec((0_usize..8400, 0_u8..8), 0..4),
    ) {
        let mut bytes = opened();
        bytes.extend(pages(&[BASE / 4096, BASE / 4096 + 1]));
        bytes.extend(noise);
        for (at, bit) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        let (arrival, _) = feed(bytes);
        prop_assert!(!arrival.runs);
    }
}
