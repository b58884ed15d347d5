//! The destination against streams that no source of ours would send.

use crate::bytes::{blob, context, head, image, libxl_header, names, opened, pages, record};
use crate::common::{BASE, FakeArrival};
use migration::MigrationError;
use migration::receive::receive;
use migration::stream::{StreamError, live};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

const FIRST: u64 = BASE / 4096;

/// What became of the stream, and what the source was told at last.
fn feed(bytes: Vec<u8>) -> (FakeArrival, MigrationError, Vec<u8>) {
    let (mut here, there) = UnixStream::pair().unwrap();
    let writer = std::thread::spawn(move || {
        // The reader may hang up first: that is what most of these streams deserve.
        let _ = here.write_all(&bytes);
        let _ = here.shutdown(std::net::Shutdown::Write);
        let mut answers = Vec::new();
        let _ = here.read_to_end(&mut answers);
        answers
    });
    let mut arrival = FakeArrival::default();
    let done = receive(&mut live::Destination::new(there), &mut arrival);
    let answers = writer.join().unwrap();
    let error = done.expect_err("no stream here is whole");
    (arrival, error, answers)
}

fn refused(start: &[u8], tail: &[u8], at: usize, says: &str) {
    let (arrival, error, answers) = feed([start, tail].concat());
    assert!(!arrival.runs);
    let text = error.to_string();
    let MigrationError::Stream(StreamError::Malformed(fault)) = error else {
        panic!("expected '{says}', got: {text}");
    };
    assert!(text.contains(says), "expected '{says}', got: {text}");
    assert_eq!(
        fault.offset,
        u64::try_from(start.len() + at).unwrap(),
        "{text}"
    );
    let told = answers
        .windows(says.len())
        .any(|part| part == says.as_bytes());
    assert!(told, "the source was not told of: {text}");
}

/// A record of pages that were allocated and never written.
fn zeros(pfns: &[u64]) -> Vec<u8> {
    let mut body = u64::try_from(pfns.len()).unwrap().to_le_bytes().to_vec();
    body.extend(pfns.iter().flat_map(|pfn| (pfn | 0xe << 60).to_le_bytes()));
    record(1, &body)
}

#[test]
fn what_a_guest_cannot_take_is_refused() {
    let start = opened(3);
    let outside = "expected a page of the guest's memory";
    refused(&start, &pages(&[0]), 0, outside);
    refused(&start, &pages(&[FIRST + 64]), 0, outside);
    refused(&start, &pages(&[(1 << 52) - 1]), 0, outside);
    refused(
        &start,
        &pages(&[FIRST, 1 << 60]),
        0,
        "type 0, or of type 14, alone, got page 0x0",
    );
    refused(&start, &pages(&[FIRST, 0xf << 60]), 0, "which is Absent");
    // Pages without data are of memory that was never written, and there is such a page once.
    let empty = |pfn: u64| zeros(&[pfn]);
    refused(&start, &empty(0), 0, outside);
    refused(
        &start,
        &[empty(FIRST), empty(FIRST)].concat(),
        24,
        "only where none came before",
    );
    refused(
        &start,
        &zeros(&[FIRST, FIRST]),
        0,
        "only where none came before",
    );
    refused(&start, &record(9, b"x"), 0, "a record for a hypervisor");
    refused(&start, &record(13, b""), 0, "a record for a hypervisor");
    refused(&start, &record(14, b""), 0, "as of a checkpointed pair");
    refused(
        &libxl_header(),
        &[record(1, b""), image(3)].concat(),
        8,
        "the guest's description first",
    );
    refused(
        &libxl_header(),
        &names(1, b"guest\0a guest\0"),
        0,
        "the option 'guest' of emulator 0",
    );
    refused(
        &libxl_header(),
        &names(0, b"ghost\0a guest\0"),
        0,
        "the option 'guest' of emulator 0",
    );
    refused(&libxl_header(), &names(0, b""), 0, "one option");
    let long = [b"guest\0".as_slice(), &vec![b'x'; (1 << 20) + 1], b"\0"].concat();
    refused(
        &libxl_header(),
        &names(0, &long),
        0,
        "at most 1048576 bytes",
    );
}

#[test]
fn blobs_of_others_are_refused() {
    let start = [opened(3), record(0, b"")].concat();
    // The blob follows the record's head and the emulator's id and index.
    refused(&start, &context(1, b"QEMU's own state"), 16, "the magic");
    refused(&start, &context(1, b"short"), 16, "a field of 8 bytes");
    let mut newer = blob(2, b"state");
    newer[8] = 2;
    refused(&start, &context(1, &newer), 24, "version 1, got version 2");
    refused(
        &start,
        &context(1, &blob(9, b"state")),
        32,
        "section kind 0x9",
    );
    refused(
        &start,
        &context(1, &blob(0, b"state")),
        32,
        "a section kind above 0",
    );
    let mut twice = blob(2, b"state");
    twice[12] = 2;
    twice.extend(record(2, b"state"));
    refused(
        &start,
        &context(1, &twice),
        48,
        "a section kind above 2, got 2",
    );
    let mut longer = blob(2, b"state");
    longer[20] = 200;
    refused(&start, &context(1, &longer), 40, "200 bytes, got 8 bytes");
    let mut padded = blob(2, b"state");
    *padded.last_mut().unwrap() = 1;
    refused(&start, &context(1, &padded), 45, "zero bytes of padding");
    let more = [blob(2, b"state"), vec![0; 8]].concat();
    refused(&start, &context(1, &more), 48, "8 more bytes");
    refused(
        &start,
        &[names(1, b"name\0x\0"), context(2, &blob(2, b"state"))].concat(),
        24,
        "the state of device 1, whose names came",
    );
    refused(
        &start,
        &[names(1, b"name\0x\0"), record(0, b"")].concat(),
        24,
        "the state of device 1, whose names came",
    );
    let of_another = record(
        3,
        &[[1, 0, 0, 0, 1, 0, 0, 0].as_slice(), &blob(2, b"x")].concat(),
    );
    refused(&start, &of_another, 0, "an emulator with id 2");
}

#[test]
fn an_incomplete_guest_is_not_run() {
    let go = head(0x5444_0002, 0);
    let ends = [record(0, b""), record(0, b""), go].concat();
    let (arrival, error, _) = feed([opened(3), pages(&[FIRST]), ends].concat());
    assert!(!arrival.runs);
    assert!(error.to_string().contains("1 of 64 pages"), "{error}");
}

#[test]
fn only_the_hand_over_follows_the_end() {
    let all: Vec<u64> = (FIRST..FIRST + 64).collect();
    let whole = [opened(2), pages(&all), record(0, b""), record(0, b"")].concat();
    for (tail, says) in [
        (head(0x5444_0003, 0), "aborted"),
        (record(0, b""), "expected GO or ABORT"),
        (head(0x5444_0001, 8), "expected GO or ABORT"),
        (vec![0x5a; 8], "expected GO or ABORT"),
        (
            vec![0x02],
            "the source vanished while waiting for the hand-over",
        ),
    ] {
        let (arrival, error, _) = feed([whole.clone(), tail].concat());
        assert!(!arrival.runs);
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_source_may_give_up_between_records_only() {
    let abort = head(0x5444_0003, 0);
    let (arrival, error, _) = feed([opened(3), abort.clone()].concat());
    assert!(
        !arrival.runs && matches!(error, MigrationError::Aborted),
        "{error}"
    );
    let inside = [opened(3), pages(&[FIRST])[..100].to_vec(), abort].concat();
    let (_, error, _) = feed(inside);
    let text = error.to_string();
    assert!(
        matches!(error, MigrationError::PeerVanished { .. }),
        "{text}"
    );
    assert!(text.contains("PAGE_DATA"), "{text}");
}

/// A plain copy is for measuring, before the first page and of all memory.
#[test]
fn plain_bytes_have_their_place() {
    let plain = |len: u64| [head(0x5444_0001, 8), len.to_le_bytes().to_vec()].concat();
    let described = [libxl_header(), names(0, b"guest\0a guest\0")].concat();
    refused(
        &described,
        &plain(5),
        0,
        "a plain copy of 262144 bytes, got 5 bytes",
    );
    let begun = [opened(3), pages(&[FIRST])].concat();
    refused(&begun, &plain(262_144), 0, "got a plain copy");
    refused(
        &libxl_header(),
        &plain(262_144),
        0,
        "the guest's description, got a plain copy",
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn noise_yields_an_error_and_runs_nothing(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        flips in proptest::collection::vec((0_usize..8400, 0_u8..8), 0..4),
    ) {
        let mut bytes = opened(3);
        bytes.extend(pages(&[FIRST, FIRST + 1]));
        bytes.extend(noise);
        for (at, bit) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        let (arrival, _, _) = feed(bytes);
        prop_assert!(!arrival.runs);
    }
}
