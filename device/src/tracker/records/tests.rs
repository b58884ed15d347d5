use super::super::protocol::TURN_MAX;
use super::*;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::thread;

fn recorder(capacity: u32, ranges: &[(u64, u64)]) -> Recorder {
    Recorder::new(&RecordsConfig {
        page_shift: 12,
        ranges: ranges.iter().map(|(start, end)| *start..*end).collect(),
        capacity,
    })
    .unwrap()
}

const ALL: Range<u64> = 0..u64::MAX;

/// Takes everything, in pieces of at most `most`, and says whether any was lost.
fn drain(recorder: &Recorder, most: usize) -> (Vec<u64>, bool) {
    let (mut all, mut overflow) = (Vec::new(), false);
    loop {
        let taken = recorder.take(&ALL, most, || recorder.turn());
        assert!(taken.records.len() <= most);
        all.extend(taken.records.iter().map(|record| record.get() >> 12));
        overflow |= taken.overflow;
        let more = taken.more;
        recorder.delivered(taken);
        if !more {
            all.sort_unstable();
            return (all, overflow);
        }
    }
}

#[test]
fn a_page_is_recorded_once_a_turn_and_within_its_ranges() {
    let recorder = recorder(100, &[(0x8000, 0xa000), (0x2000, 0x4000)]);
    recorder.mark(&[(0x1fff, 2), (0x3fff, 1), (0x2000, 8), (0x0, 0x100_0000)]);
    recorder.mark(&[(0xa000, 4096), (0x2fff, 0), (u64::MAX, 5)]);
    assert_eq!(drain(&recorder, 3), (vec![2, 3, 8, 9], false));
    assert_eq!(drain(&recorder, 3), (vec![], false));
    recorder.mark(&[(0x9fff, 1)]);
    assert_eq!(
        drain(&recorder, 1),
        (vec![9], false),
        "read, and so recorded again"
    );
}

#[test]
fn the_last_page_of_all_is_recorded() {
    let recorder = recorder(4, &[(u64::MAX - 4095, u64::MAX)]);
    recorder.mark(&[(u64::MAX - 10, 5)]);
    assert_eq!(drain(&recorder, 3), (vec![u64::MAX >> 12], false));
}

#[test]
fn a_read_that_is_full_says_that_there_may_be_more() {
    let recorder = recorder(8, &[(0, 0x8000)]);
    recorder.mark(&[(0, 0x3000)]);
    let taken = recorder.take(&ALL, 2, || recorder.turn());
    assert_eq!((taken.records.len(), taken.more), (2, true), "one is left");
    recorder.delivered(taken);
    let taken = recorder.take(&ALL, 1, || recorder.turn());
    let looked = (taken.records.len(), taken.more);
    assert_eq!(looked, (1, true), "nobody has looked for newer ones");
    recorder.delivered(taken);
    let taken = recorder.take(&ALL, 2, || recorder.turn());
    assert_eq!((taken.records.len(), taken.more), (0, false));
    // What comes between two reads is seen by the second, whatever the first left.
    recorder.mark(&[(0, 0x3000)]);
    let first = recorder.take(&ALL, 2, || recorder.turn());
    recorder.mark(&[(0x5000, 1)]);
    let second = recorder.take(&ALL, 9, || recorder.turn());
    assert!(first.more && !second.more);
    assert_eq!(first.records.len() + second.records.len(), 4);
}

#[test]
fn what_does_not_fit_is_told_once_and_heals() {
    let recorder = recorder(16, &[(0, 0x10_0000)]);
    recorder.mark(&[(0, 16 << 12)]);
    recorder.mark(&[(0, 16 << 12)]);
    assert_eq!(drain(&recorder, 100), ((0..16).collect(), false));
    recorder.mark(&[(0, 17 << 12)]);
    let (pages, overflow) = drain(&recorder, 5);
    assert_eq!((pages.len(), overflow), (16, true));
    assert_eq!(drain(&recorder, 5), (vec![], false));
    recorder.mark(&[(16 << 12, 1)]);
    assert_eq!(
        drain(&recorder, 5),
        (vec![16], false),
        "lost before, found now"
    );
}

#[test]
fn what_was_not_delivered_comes_again() {
    let recorder = recorder(2, &[(0, 0x8000)]);
    recorder.mark(&[(0, 3 << 12)]);
    let taken = recorder.take(&ALL, 10, || recorder.turn());
    assert!(taken.overflow);
    recorder.put_back(taken);
    recorder.mark(&[(0, 1)]);
    let (pages, overflow) = drain(&recorder, 10);
    assert_eq!(
        (pages, overflow),
        (vec![0, 1], true),
        "room for two, and they kept it"
    );
}

#[test]
fn a_part_of_the_ranges_leaves_the_others() {
    let recorder = recorder(100, &[(0, 0x10_0000)]);
    recorder.mark(&[(0, 8 << 12)]);
    let taken = recorder.take(&(0x2000..0x5000), 2, || recorder.turn());
    assert_eq!((taken.records.len(), taken.more), (2, true));
    recorder.delivered(taken);
    let taken = recorder.take(&(0x2000..0x5000), 9, || recorder.turn());
    assert_eq!((taken.records.len(), taken.more), (1, false));
    recorder.delivered(taken);
    assert_eq!(drain(&recorder, 100).0, [0, 1, 5, 6, 7]);
}

#[test]
fn turns_begin_anew_without_losing_a_page() {
    let recorder = recorder(4, &[(0, 0x4000)]);
    recorder.mark(&[(0x3000, 1)]);
    assert_eq!(drain(&recorder, 9).0, [3]);
    // The numbers of turns are used up, and what is left of the first ones is forgotten.
    recorder.pages.set_turn(TURN_MAX - 1);
    for turn in 0..4 {
        recorder.mark(&[(0x1000, 1), (0x1000, 1)]);
        assert_eq!(drain(&recorder, 9).0, [1], "turn {turn}");
    }
    recorder.mark(&[(0x3000, 1)]);
    assert_eq!(drain(&recorder, 9).0, [3]);
}

#[test]
fn parts_that_meet_in_a_word_are_parts_still() {
    let recorder = recorder(
        100,
        &[(0x4000, 0x6000), (0x6000, 0x8000), (0x9000, 0x2_5000)],
    );
    recorder.mark(&[(0x5000, 0x2000), (0x7fff, 0x1002), (0x1_f000, 0x3000)]);
    assert_eq!(drain(&recorder, 9).0, [5, 6, 7, 9, 0x1f, 0x20, 0x21]);
    recorder.mark(&[(0, u64::MAX)]);
    let all: Vec<u64> = (4..8).chain(9..0x25).collect();
    assert_eq!(drain(&recorder, 9), (all, false));
}

/// A table of huge pages, of which little is used.
#[test]
fn pages_of_a_large_guest_are_found_again() {
    let recorder = recorder(4096, &[(1 << 40, 3 << 39)]);
    let pages: BTreeSet<u64> = (0..4000).map(|n| (1 << 28) + n * 33_479).collect();
    for _ in 0..2 {
        pages
            .iter()
            .for_each(|page| recorder.mark(&[(page << 12, 9)]));
        let (found, overflow) = drain(&recorder, 1000);
        assert!(!overflow && found.into_iter().eq(pages.iter().copied()));
    }
}

#[test]
fn the_last_page_of_the_address_space_is_a_page() {
    let last = u64::MAX - 0xfff;
    let recorder = recorder(4, &[(last - 0x1000, last)]);
    recorder.mark(&[(last - 1, u64::MAX)]);
    assert_eq!(drain(&recorder, 9).0, [(last - 0x1000) >> 12]);
}

#[test]
fn too_many_pages_are_refused() {
    let config = |end| RecordsConfig {
        page_shift: 12,
        ranges: std::iter::once(0..end).collect(),
        capacity: 1,
    };
    assert!(Recorder::new(&config(PAGES_MAX << 12)).is_ok());
    assert!(Recorder::new(&config((PAGES_MAX + 1) << 12)).is_err());
    assert!(Recorder::new(&config(!0xfff)).is_err());
}

/// Many markers and a reader that shuts the door between their bursts. All of them mark the first
/// half of the pages, and each some of the other half. Every page that was marked is read, none
/// that was not, and none twice in a turn.
fn storm(markers: u64, capacity: u32) {
    const PAGES: u64 = 4096;
    let recorder = recorder(capacity, &[(0, PAGES << 12)]);
    let door = std::sync::RwLock::new(());
    let turns = Cell::new(0_u32);
    let turn = || {
        let _shut = door.write().unwrap();
        turns.set(turns.get() + 1);
        recorder.turn();
    };
    let mut found = BTreeSet::new();
    // What is left of a turn when the next one ends is read first.
    let mut of_turn = BTreeSet::new();
    let mut read = |recorder: &Recorder| {
        let before = turns.get();
        let taken = recorder.take(&ALL, usize::MAX, turn);
        assert!(!taken.overflow, "there is room for all");
        assert_eq!(turns.get(), before + 1);
        of_turn.clear();
        for record in &taken.records {
            let page = record.get() >> 12;
            assert!(of_turn.insert(page), "page {page} twice in a turn");
            found.insert(page);
        }
        recorder.delivered(taken);
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..markers)
            .map(|marker| {
                let (recorder, door) = (&recorder, &door);
                scope.spawn(move || {
                    let own = (PAGES / 2 + marker..PAGES).step_by(128);
                    for page in (0..PAGES / 2).chain(own) {
                        let _open = door.read().unwrap();
                        recorder.mark(&[(page << 12, 4096)]);
                    }
                })
            })
            .collect();
        while !threads.iter().all(|thread| thread.is_finished()) {
            read(&recorder);
        }
    });
    read(&recorder);
    let own = |page: &u64| *page < PAGES / 2 || page % 128 < markers;
    assert!(found.into_iter().eq((0..PAGES).filter(own)));
}

#[test]
fn sixteen_markers_lose_nothing_and_repeat_nothing() {
    storm(16, 4096);
}

#[test]
fn markers_without_a_seat_share_one() {
    storm(48, 64_000);
}

/// Whatever is lost is told: what was read and what was not add up, round after round.
#[test]
fn sixteen_markers_with_little_room_lose_nothing_in_silence() {
    const PAGES: u64 = 1024;
    let recorder = recorder(100, &[(0, PAGES << 12)]);
    for round in 0..50 {
        let few = round % 2 == 0;
        thread::scope(|scope| {
            for marker in 0..16_u64 {
                let recorder = &recorder;
                let own = (marker..if few { 96 } else { PAGES }).step_by(16);
                scope.spawn(move || own.for_each(|page| recorder.mark(&[(page << 12, 1)])));
            }
        });
        let (pages, overflow) = drain(&recorder, 64);
        let whole = pages.len() == if few { 96 } else { 1024 };
        assert!(whole != overflow, "{} pages in round {round}", pages.len());
        assert!(whole == few, "there is room for a hundred");
    }
}
