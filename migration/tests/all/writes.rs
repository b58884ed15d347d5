//! How often the kernel is asked, and how much the stream adds to the pages.

use crate::common::{BASE, memory};
use driver::memory::DmaMemory;
use migration::stream::Writer;
use std::fs::File;

const PAGES: u64 = 4096;
const FIRST: u64 = BASE / 4096;

/// Write calls of this thread so far, by the kernel's own account.
fn calls() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("syscw: "));
    line.unwrap().parse().unwrap()
}

/// Writes pages, and gives how many each record took, the calls and the bytes.
fn write(memory: &[DmaMemory], pages: &[u64]) -> (Vec<usize>, u64, u64) {
    let file: File = tempfile::tempfile().unwrap();
    let mut writer = Writer::new(file);
    let (mut rest, mut records) = (pages, Vec::new());
    let before = calls();
    while !rest.is_empty() {
        let written = writer.pages(memory, rest).unwrap();
        records.push(written.pages);
        rest = &rest[written.pages..];
    }
    let calls = calls() - before;
    let length = writer.get_ref().metadata().unwrap().len();
    assert_eq!(length, writer.written());
    (records, calls, length)
}

#[test]
fn one_writev_for_each_record_whatever_its_pages() {
    let memory = [memory(PAGES)];
    let all: Vec<u64> = (FIRST..FIRST + PAGES).collect();
    let (records, calls, bytes) = write(&memory, &all);
    assert_eq!(records, [1024; 4]);
    assert_eq!(calls, 4);
    // 16 bytes a record and 8 a page.
    assert_eq!(bytes, PAGES * (4096 + 8) + 4 * 16);

    // No two pages are neighbours: each is a segment, and one of 1024 is the head.
    let scattered: Vec<u64> = all.iter().copied().step_by(2).collect();
    let (records, calls, bytes) = write(&memory, &scattered);
    assert_eq!(records, [1023, 1023, 2]);
    assert_eq!(calls, 3);
    let data = 4096 * u64::try_from(scattered.len()).unwrap();
    let share = 1000 * (bytes - data) / bytes;
    assert!(share < 3, "{} of {bytes} bytes are not pages", bytes - data);

    // Pairs: as many pages as a record may have.
    let pairs: Vec<u64> = all.iter().copied().filter(|page| page % 4 < 2).collect();
    let (records, calls, _) = write(&memory, &pairs);
    assert_eq!((records, calls), (vec![1024, 1024], 2));
}

#[test]
fn a_record_ends_with_its_window() {
    let whole = memory(4);
    let windows = [0, 2].map(|page| whole.slice(page * 4096, 2 * 4096).unwrap());
    let (records, calls, _) = write(&windows, &[FIRST, FIRST + 1, FIRST + 2, FIRST + 3]);
    assert_eq!((records, calls), (vec![2, 2], 2));
    let mut writer = Writer::new(tempfile::tempfile().unwrap());
    for none in [&[][..], &[FIRST + 4], &[u64::MAX]] {
        assert!(writer.pages(&windows, none).is_err(), "{none:x?}");
    }
    assert_eq!(writer.written(), 0);
}
