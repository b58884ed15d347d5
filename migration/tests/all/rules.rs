//! The rules that Xen's own verifier leaves out, and those it has: one stream for each.

use crate::bytes::{context, head, image, libxl_header, names, opened, page_body, pages, record};
use crate::damage::fault;
use migration::stream::{Format, StreamError};

/// A stream that must be refused with these words at this place after its start.
fn refused(start: &[u8], tail: &[u8], at: usize, says: &str) {
    let bytes = [start, tail].concat();
    match fault(&bytes, Format::Libxl) {
        StreamError::Malformed(fault) => {
            let text = fault.to_string();
            assert!(text.contains(says), "expected '{says}' in: {text}");
            let offset = usize::try_from(fault.offset).unwrap();
            assert_eq!(offset, start.len() + at, "{text}");
        }
        other => panic!("expected '{says}', got: {other}"),
    }
}

#[test]
fn entries_and_counts() {
    let start = opened(3);
    // The entries follow the record's head, the count and a reserved field.
    refused(
        &start,
        &pages(&[5 << 60]),
        16,
        "page type 0 to 4 or 9 to 15, got 5",
    );
    refused(&start, &pages(&[0, 8 << 60]), 24, "got 8");
    refused(&start, &pages(&[1 << 52]), 16, "bits 52 to 59");
    refused(&start, &pages(&[1 << 59]), 16, "bits 52 to 59");
    refused(&start, &pages(&[]), 8, "a count of 1 to 1024 pages, got 0");
    refused(&start, &pages(&vec![0; 1025]), 8, "got 1025");
    refused(
        &start,
        &record(1, &[1, 0, 0, 0, 1, 0, 0, 0]),
        12,
        "reserved field",
    );
    refused(
        &start,
        &record(1, &[2, 0, 0, 0, 0, 0, 0, 0]),
        8,
        "at least 24 bytes",
    );
    refused(&start, &record(1, &[1, 0, 0, 0]), 4, "at least 8 bytes");
    for with_data in [0, 2] {
        let tail = record(1, &page_body(&[7], with_data));
        refused(&start, &tail, 8, "4112 bytes, which the entries add up to");
    }
    let tail = record(1, &page_body(&[0xf << 60], 1));
    refused(&start, &tail, 8, "16 bytes, which the entries add up to");
}

#[test]
fn static_data() {
    let bare = |version| [libxl_header(), record(1, b""), image(version)].concat();
    refused(
        &bare(3),
        &pages(&[1]),
        0,
        "STATIC_DATA_END before the first PAGE_DATA",
    );
    refused(&bare(3), &record(0, b""), 0, "STATIC_DATA_END first");
    refused(&bare(3), &record(14, b""), 0, "STATIC_DATA_END first");
    refused(
        &opened(3),
        &record(0x10, b""),
        0,
        "exactly one STATIC_DATA_END",
    );
    refused(
        &opened(3),
        &record(0x11, &[0; 24]),
        0,
        "static data before STATIC_DATA_END",
    );
    for kind in [0x10, 0x11, 0x12] {
        let body: &[u8] = match kind {
            0x11 => &[0; 24],
            0x12 => &[0; 16],
            _ => &[],
        };
        refused(
            &bare(2),
            &record(kind, body),
            0,
            "a record of a version 2 image",
        );
    }
    refused(
        &bare(3),
        &record(0x11, &[0; 25]),
        32,
        "whole elements of 24 bytes",
    );
    refused(&bare(3), &record(0x12, &[]), 8, "at least one element");
}

#[test]
fn bodies_of_the_inner_layer() {
    let start = opened(3);
    refused(&start, &record(8, &[0; 23]), 28, "a field of 4 bytes");
    refused(&start, &record(8, &[0; 32]), 32, "the end of the body");
    refused(&start, &record(8, &[1; 24]), 28, "0 in a reserved field");
    refused(&start, &record(9, &[]), 8, "at least one byte of context");
    refused(
        &start,
        &record(10, &[1, 0, 0, 0, 0, 0, 0, 0]),
        8,
        "a count of 0",
    );
    refused(
        &start,
        &record(10, &[0; 12]),
        16,
        "whole elements of 16 bytes",
    );
    refused(&start, &record(11, b"x"), 8, "TOOLSTACK");
    refused(&start, &record(15, &[0; 8]), 0, "which travels back");
    let context = [record(9, b"x"), record(10, &[0; 8])].concat();
    refused(&start, &context, 16, "HVM_PARAMS before HVM_CONTEXT");
    for (kind, body) in [
        (2, vec![8, 4, 0, 0, 0, 0, 0, 0]),
        (3, vec![0; 8]),
        (7, vec![0; 4096]),
    ] {
        refused(&start, &record(kind, &body), 0, "a record of a Hvm domain");
    }
}

#[test]
fn order_of_the_outer_layer() {
    let header = libxl_header();
    refused(
        &header,
        &record(0, b""),
        0,
        "EMULATOR_XENSTORE_DATA or LIBXC_CONTEXT",
    );
    refused(&header, &context(0, b"x"), 0, "LIBXC_CONTEXT");
    refused(
        &header,
        &record(4, b""),
        0,
        "got libxl record CHECKPOINT_END",
    );
    let ended = [opened(3), record(0, b"")].concat();
    refused(&ended, &record(1, b""), 0, "EMULATOR_* records or END");
    refused(&ended, &record(4, b""), 0, "EMULATOR_* records or END");
    refused(&ended, &record(5, &[0; 8]), 0, "EMULATOR_* records or END");
    let checkpoint = [opened(3), record(14, b"")].concat();
    refused(&checkpoint, &record(0, b""), 0, "CHECKPOINT_END");
    refused(
        &checkpoint,
        &record(5, &[4, 0, 0, 0, 0, 0, 0, 0]),
        8,
        "a control id of 0 to 3, got 4",
    );
    refused(
        &checkpoint,
        &record(5, &[0, 0, 0, 0, 1, 0, 0, 0]),
        12,
        "reserved",
    );
    refused(&checkpoint, &record(5, &[0; 4]), 12, "a field of 4 bytes");
}

#[test]
fn each_emulator_once_in_an_epoch() {
    let ended = [opened(3), record(0, b"")].concat();
    let first = [ended, context(1, b"x"), context(2, b"x")].concat();
    refused(&first, &context(1, b"x"), 0, "index 1 again");
    // The guest's own options came before the image.
    refused(&first, &names(0, b""), 0, "index 0 again");
    // An epoch later it may come again.
    let mut bytes = opened(3);
    for _ in 0..3 {
        bytes.extend(record(14, b""));
        bytes.extend(names(1, b"a\0b\0"));
        bytes.extend(context(1, b"x"));
        bytes.extend(record(4, b""));
    }
    bytes.extend(record(0, b""));
    bytes.extend(context(1, b"x"));
    bytes.extend(record(0, b""));
    crate::fixtures::read(&bytes, Format::Libxl);
    // More emulators than any machine has.
    let mut many = [opened(3), record(0, b"")].concat();
    for index in 0..4096 {
        many.extend(context(index, b""));
    }
    refused(&many, &context(4096, b""), 0, "at most 4096 emulators");
}

#[test]
fn names_are_pairs_of_text() {
    let start = libxl_header();
    for (text, says) in [
        (b"a".as_slice(), "text that ends in NUL"),
        (b"a\0", "a value for each key, got the key 'a' alone"),
        (b"a\0b\0c\0", "the key 'c' alone"),
        (b"/a\0b\0", "a relative key"),
        (b"\0b\0", "a relative key"),
        (b"a b\0c\0", "a relative key"),
        (b"a\0\xff\0", "UTF-8"),
    ] {
        // After the record's head, the emulator's id and its index.
        refused(&start, &names(0, text), 16, says);
    }
    let mut writer = migration::stream::Writer::new(Vec::new());
    for (key, value) in [("a b", ""), ("", "x"), ("/a", "x"), ("a", "\0")] {
        let options = vec![(key.to_owned(), value.to_owned())];
        let emulator = migration::stream::libxl::Emulator::ours(0);
        let record = migration::stream::libxl::Record::EmulatorXenstoreData(emulator, options);
        let error = writer.libxl(&record).unwrap_err();
        assert!(error.to_string().contains("rename it"), "{error}");
    }
    assert!(writer.get_ref().is_empty());
}

#[test]
fn a_body_grows_as_it_comes() {
    // A length that is a lie ends as a cut, without the 127 MiB that it promised.
    let bytes = [opened(3), head(9, 127 << 20), vec![0; 100]].concat();
    let StreamError::Cut { missing, .. } = fault(&bytes, Format::Libxl) else {
        panic!("expected a cut");
    };
    assert_eq!(missing, (127 << 20) - 100);
}
