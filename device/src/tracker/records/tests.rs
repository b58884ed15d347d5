use super::*;
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
    for turn in 0..1000_u32 {
        recorder.mark(&[(0x1000, 1)]);
        let expected: &[u64] = if turn == 0 { &[1, 3] } else { &[1] };
        assert_eq!(drain(&recorder, 9).0, expected, "turn {turn}");
        if turn % 300 == 299 {
            recorder.mark(&[(0x3000, 1)]);
            assert_eq!(drain(&recorder, 9).0, [3], "turn {turn}");
        }
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

/// Sixteen markers and a reader that shuts the door between bursts: every page that was marked is
/// read, and none that was not.
#[test]
fn sixteen_markers_lose_nothing() {
    const PAGES: u64 = 4096;
    let recorder = recorder(64_000, &[(0, PAGES << 12)]);
    let door = std::sync::RwLock::new(());
    let turn = || {
        let _shut = door.write().unwrap();
        recorder.turn();
    };
    let mut found = Vec::new();
    thread::scope(|scope| {
        let markers: Vec<_> = (0..16_u64)
            .map(|marker| {
                let (recorder, door) = (&recorder, &door);
                scope.spawn(move || {
                    for page in (marker % 4..PAGES).step_by(8) {
                        let _open = door.read().unwrap();
                        recorder.mark(&[(page << 12, 4096)]);
                    }
                })
            })
            .collect();
        while !markers.iter().all(|marker| marker.is_finished()) {
            let taken = recorder.take(&ALL, 1000, turn);
            assert!(!taken.overflow);
            found.extend(taken.records.iter().map(|record| record.get() >> 12));
            recorder.delivered(taken);
        }
    });
    found.extend(drain(&recorder, 1000).0);
    let found: BTreeSet<u64> = found.into_iter().collect();
    let expected = (0..PAGES).filter(|page| page % 8 < 4).collect();
    assert_eq!(found, expected);
}
