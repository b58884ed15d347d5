//! Streams with one thing wrong: the reader says what, where, and what was due.

use crate::bytes::{from_hex, image, libxl_header, names, opened, pages, record};
use crate::fixtures::{CHECKPOINTED, GUEST};
use migration::stream::{Format, Malformed, Reader, StreamError};

/// Reads until the first error.
pub fn fault(bytes: &[u8], format: Format) -> StreamError {
    let mut reader = Reader::new(bytes, format);
    let mut buffer = [0; 4096];
    loop {
        let left = usize::try_from(reader.data_left()).unwrap().min(4096);
        let done = match left {
            0 => reader.next_item().map(|item| item.is_some()),
            left => reader.data(&mut buffer[..left]).map(|()| true),
        };
        match done {
            Ok(true) => {}
            Ok(false) => return reader.finish().expect_err("the stream is whole"),
            Err(error) => return error,
        }
    }
}

fn malformed(error: StreamError) -> Malformed {
    match error {
        StreamError::Malformed(fault) => *fault,
        other => panic!("expected a fault of the format, got: {other}"),
    }
}

#[test]
fn a_cut_at_every_byte_is_named() {
    for (text, name) in [(GUEST, "libxl"), (CHECKPOINTED, "libxl")] {
        let bytes = from_hex(text);
        for end in 0..bytes.len() {
            let error = fault(&bytes[..end], Format::Libxl);
            let StreamError::Cut {
                offset,
                ref record,
                missing,
            } = error
            else {
                panic!("cut at {end}: {error}");
            };
            assert_eq!(offset, u64::try_from(end).unwrap(), "{error}");
            assert!(
                missing > 0 && record.contains("lib"),
                "cut at {end}: {error}"
            );
            if end < 16 {
                assert_eq!(record, &format!("the {name} header"));
            }
        }
    }
}

/// Each byte of each header, each of its bits: refused, and the error is at that byte's field.
#[test]
fn each_byte_of_the_headers_counts() {
    let mut bytes = libxl_header();
    bytes.extend(record(1, b""));
    bytes.extend(image(3));
    for at in (0..16).chain(24..64) {
        // What Xen wrote it is free.
        if (56..64).contains(&at) {
            continue;
        }
        for bit in 0..8 {
            // "Made by the converter" is an option that may be set.
            if (at, bit) == (15, 1) {
                continue;
            }
            // Another version and another type of domain are legal as well: the next cut tells.
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            match fault(&flipped, Format::Libxl) {
                StreamError::Malformed(fault) => {
                    let offset = usize::try_from(fault.offset).unwrap();
                    assert!((offset..offset + 8).contains(&at), "byte {at}: {fault}");
                    let name = if at < 16 { "libxl" } else { "libxc" };
                    assert!(fault.record.contains(name), "{fault}");
                }
                error => assert!(
                    [(39, 0), (48, 0), (48, 1)].contains(&(at, bit)),
                    "byte {at}, bit {bit}: {error}"
                ),
            }
        }
    }
}

/// Heads of records: every bit of every head of a whole stream. Nothing panics, nothing passes
/// unseen but what the format cannot see.
#[test]
fn each_byte_of_the_heads_counts() {
    let bytes = from_hex(GUEST);
    let mut reader = Reader::new(bytes.as_slice(), Format::Libxl);
    let mut heads = Vec::new();
    while reader.next_item().unwrap().is_some() {
        let mut data = vec![0; usize::try_from(reader.data_left()).unwrap()];
        reader.data(&mut data).unwrap();
        if reader.record().contains("record") {
            heads.push(usize::try_from(reader.started()).unwrap());
        }
    }
    assert_eq!(heads.len(), 10);
    let mut unseen = Vec::new();
    for head in heads {
        for at in head..head + 8 {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let mut reader = Reader::new(flipped.as_slice(), Format::Libxl);
                let mut whole = true;
                loop {
                    match reader.next_item() {
                        Ok(None) => break,
                        Ok(Some(_)) => {}
                        Err(_) => whole = false,
                    }
                    let mut data = vec![0; usize::try_from(reader.data_left()).unwrap()];
                    whole = whole && reader.data(&mut data).is_ok();
                    if !whole {
                        break;
                    }
                }
                if whole && reader.finish().is_ok() {
                    unseen.push((at - head, bit));
                }
            }
        }
    }
    // Bit 31 of the type lets a record be skipped. And pages whose type turns into HVM_CONTEXT are
    // a context of any bytes, which the format allows and no guest of ours takes.
    assert!(
        unseen.iter().all(|place| [(3, 7), (0, 3)].contains(place)),
        "passed unseen: {unseen:?}"
    );
}

/// X1: padding follows from the length of the body alone, sub-header or not.
#[test]
fn x1_padding_for_every_length() {
    for length in 0..24_usize {
        let mut bytes = libxl_header();
        bytes.extend(record(1, b""));
        bytes.extend(image(3));
        bytes.extend(record(0x10, b""));
        // HVM_CONTEXT has no sub-header, EMULATOR_CONTEXT has one of 8 bytes.
        bytes.extend(record(9, &vec![7; length + 1]));
        bytes.extend(record(0, b""));
        let body = [&[2, 0, 0, 0, 0, 0, 0, 0], vec![9; length].as_slice()].concat();
        bytes.extend(record(3, &body));
        let whole = bytes.len();
        bytes.extend(record(0, b""));
        assert!(!crate::fixtures::read(&bytes, Format::Libxl).is_empty());
        // One byte of padding that is not zero.
        if length % 8 != 0 {
            bytes[whole - 1] = 1;
            let fault = malformed(fault(&bytes, Format::Libxl));
            assert!(fault.expected.contains("padding"), "{fault}");
            assert_eq!(
                fault.offset,
                u64::try_from(whole - (8 - length % 8)).unwrap()
            );
        }
    }
}

/// X2: expected comes first.
#[test]
fn x2_a_version_is_named_as_expected_then_got() {
    let mut bytes = libxl_header();
    bytes[11] = 4;
    let error = fault(&bytes, Format::Libxl).to_string();
    assert!(error.contains("byte 8, in the libxl header"), "{error}");
    assert!(
        error.contains("expected version 2, got version 4"),
        "{error}"
    );
    let error = fault(&image(4), Format::Libxc).to_string();
    assert!(
        error.contains("expected version 2 or 3, got version 4"),
        "{error}"
    );
}

/// X3: an unknown emulator is an error, and nothing of it has been given out.
#[test]
fn x3_an_unknown_emulator_leaves_nothing_behind() {
    let mut bytes = opened(3);
    bytes.extend(record(0, b""));
    bytes.extend(record(
        3,
        &[[7, 0, 0, 0, 0, 0, 0, 0].as_slice(), &[1; 100]].concat(),
    ));
    let mut reader = Reader::new(bytes.as_slice(), Format::Libxl);
    let error = loop {
        match reader.next_item() {
            Ok(item) => assert!(item.is_some()),
            Err(error) => break malformed(error),
        }
    };
    assert_eq!(error.record, "libxl record EMULATOR_CONTEXT");
    assert_eq!(
        (error.expected.as_str(), error.got.as_str()),
        ("emulator id 0, 1 or 2", "7")
    );
}

/// X4: the sub-header is not read past the body.
#[test]
fn x4_an_emulator_record_of_less_than_its_sub_header() {
    for kind in [2, 3] {
        for length in 0..8_usize {
            let mut bytes = opened(3);
            bytes.extend(record(0, b""));
            bytes.extend(record(kind, &[2, 0, 0, 0, 0, 0, 0][..length.min(7)]));
            let fault = malformed(fault(&bytes, Format::Libxl));
            assert!(fault.expected.contains("4 bytes"), "{fault}");
            assert!(fault.record.contains("EMULATOR_"), "{fault}");
        }
    }
}

/// X5: a cap before anything is allocated, in both layers.
#[test]
fn x5_no_record_is_too_long_to_refuse() {
    let most = (128 << 20) - 8;
    let inner = opened(3);
    let mut outer = opened(3);
    outer.extend(record(0, b""));
    for (start, kind) in [
        (&inner, 9_u32),
        (&inner, 1),
        (&outer, 3),
        (&outer, 0x8000_0000),
    ] {
        for length in [u32::MAX, u32::MAX - 7, (128 << 20) + 1, most + 1] {
            let mut bytes = start.clone();
            bytes.extend(kind.to_le_bytes());
            bytes.extend(length.to_le_bytes());
            let fault = malformed(fault(&bytes, Format::Libxl));
            assert!(
                fault.expected.contains("at most 134217728 bytes"),
                "{fault}"
            );
            assert_eq!(fault.offset, u64::try_from(start.len() + 4).unwrap());
        }
        // The longest is no fault by itself; there is just nothing of it.
        let mut bytes = start.clone();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(most.to_le_bytes());
        assert!(matches!(
            fault(&bytes, Format::Libxl),
            StreamError::Cut { .. }
        ));
    }
}

/// X6: a record that nobody knows is named.
#[test]
fn x6_an_unknown_record_is_named() {
    let mut inside = opened(3);
    let at = inside.len();
    inside.extend(record(0x13, b"what"));
    let error = malformed(fault(&inside, Format::Libxl));
    assert!(error.got.contains("libxc record type 0x13"), "{error}");
    assert_eq!(error.offset, u64::try_from(at).unwrap());
    let mut outside = libxl_header();
    outside.extend(record(6, b""));
    let error = malformed(fault(&outside, Format::Libxl));
    assert!(error.got.contains("libxl record type 0x6"), "{error}");
    assert!(error.advice.contains("later"), "{error}");
}

/// X7: types of 2014 are not written. All that there are stand in the fixtures; here, that the
/// numbers that those had mean what they mean today.
#[test]
fn x7_no_records_of_2014() {
    let written = from_hex(GUEST);
    for item in crate::fixtures::read(&written, Format::Libxl) {
        if let migration::stream::Item::Libxl(record) = item.0 {
            assert!(record.kind() <= 5);
        }
    }
    let json = malformed(fault(
        &[libxl_header(), names(0, b"{\"domain\": 1}")].concat(),
        Format::Libxl,
    ));
    assert!(json.expected.contains("NUL"), "{json}");
}

/// X8: what is to be empty is empty.
#[test]
fn x8_a_length_where_there_is_none() {
    let with = |kind: u32, start: Vec<u8>| [start, record(kind, &[0; 8])].concat();
    let ended = [opened(3), record(0, b"")].concat();
    let checkpoint = [opened(3), record(14, b"")].concat();
    for (bytes, name) in [
        (with(1, libxl_header()), "LIBXC_CONTEXT"),
        (with(0, ended), "libxl record END"),
        (with(0, opened(3)), "libxc record END"),
        (with(4, checkpoint), "CHECKPOINT_END"),
        (with(14, opened(3)), "CHECKPOINT"),
        (with(13, opened(3)), "VERIFY"),
    ] {
        let fault = malformed(fault(&bytes, Format::Libxl));
        assert!(fault.record.contains(name), "{fault}");
        assert_eq!(fault.got, "8 more bytes", "{fault}");
    }
}

#[test]
fn nothing_follows_the_end() {
    let mut bytes = from_hex(GUEST);
    let end = bytes.len();
    bytes.push(0);
    let fault = malformed(fault(&bytes, Format::Libxl));
    assert_eq!(fault.expected, "nothing after END");
    assert_eq!(fault.offset, u64::try_from(end).unwrap());
}

#[test]
fn optional_records_are_skipped_in_both_layers() {
    let optional = |length: usize| record(0x8000_0001, &vec![0x5a; length]);
    let mut bytes = libxl_header();
    bytes.extend(optional(5));
    bytes.extend(record(1, b""));
    bytes.extend(image(3));
    bytes.extend(optional(0));
    bytes.extend(record(0x10, b""));
    bytes.extend(pages(&[1]));
    bytes.extend(optional(17));
    bytes.extend(record(0, b""));
    bytes.extend(optional(8));
    bytes.extend(record(0, b""));
    let skipped = crate::fixtures::read(&bytes, Format::Libxl)
        .into_iter()
        .filter(|(item, _)| matches!(item, migration::stream::Item::Skipped(..)));
    assert_eq!(skipped.count(), 4);
}
