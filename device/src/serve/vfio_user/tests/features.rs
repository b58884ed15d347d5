//! DEVICE_FEATURE: DMA logging held against the bytes of memory, and a device's state that moves from
//! one server to another.

use super::Outcome;
use super::driven::{DRIVERS, Driven, MEMORY, PAGES, PATIENCE, USED, changed, guest};
use super::talk::{numbers, quad, word};
use crate::function::PciFunction;
use crate::serve::vfio_user::STATE_MAX;
use crate::tracker::Marking;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;
const MIGRATION: u32 = 1;
const DEVICE_STATE: u32 = 2;
const START: u32 = 6;
const STOP: u32 = 7;
const REPORT: u32 = 8;

const EIO: u32 = 5;
const EBUSY: u32 = 16;
const EINVAL: u32 = 22;
const ENOTTY: u32 = 25;
const ENOSPC: u32 = 28;

/// Numbers of VFIO's states.
const STOPPED: u64 = 1;
const RUNNING: u64 = 2;
const STOP_COPY: u64 = 3;
const RESUMING: u64 = 4;

impl Driven {
    fn log(&mut self, page_size: u64, ranges: &[(u64, u64)]) -> Result<u64, u32> {
        let count = u64::try_from(ranges.len()).unwrap();
        let mut data = numbers(&[(page_size, 8), (count, 4), (0, 4)]);
        for (iova, length) in ranges {
            data.extend(numbers(&[(*iova, 8), (*length, 8)]));
        }
        let answer = self.talk.feature(SET | START, &data)?;
        assert_eq!(answer[16..], data[8..], "the rest is as it was asked");
        Ok(quad(&answer, 8))
    }

    fn report(&mut self, iova: u64, length: u64, unit: u64) -> Result<Vec<u64>, u32> {
        let data = numbers(&[(iova, 8), (length, 8), (unit, 8)]);
        let answer = self.talk.feature(GET | REPORT, &data)?;
        assert_eq!(answer[8..32], data);
        let words = length.div_ceil(unit).div_ceil(64);
        assert_eq!(u64::try_from(answer.len()), Ok(32 + words * 8));
        assert_eq!(usize::try_from(word(&answer, 0)), Ok(answer.len()));
        let bits = (0..words * 64).filter(|bit| {
            let byte = answer[32 + usize::try_from(bit / 8).unwrap()];
            byte & 1 << (bit % 8) != 0
        });
        Ok(bits.collect())
    }

    fn state(&mut self) -> u64 {
        let answer = self.talk.feature(GET | DEVICE_STATE, &[]).unwrap();
        assert_eq!(answer.len(), 16);
        assert_eq!(word(&answer, 12), u32::MAX, "no descriptor");
        word(&answer, 8).into()
    }

    fn enter(&mut self, state: u64) -> Result<(), u32> {
        let data = numbers(&[(state, 4), (0xffff_ffff, 4)]);
        let answer = self.talk.feature(SET | DEVICE_STATE, &data)?;
        assert_eq!(answer[8..], data);
        Ok(())
    }

    /// All that there is to be read, so many bytes at a time.
    fn saved(&mut self, step: u64) -> Result<Vec<u8>, u32> {
        let mut state = Vec::new();
        loop {
            let answer = self.talk.ask(17, &numbers(&[(8 + step, 4), (step, 4)]))?;
            let count = usize::try_from(word(&answer, 4)).unwrap();
            assert_eq!(answer.len(), 8 + count);
            assert_eq!(usize::try_from(word(&answer, 0)), Ok(answer.len()));
            state.extend_from_slice(&answer[8..]);
            if count < usize::try_from(step).unwrap() {
                return Ok(state);
            }
        }
    }

    fn give(&mut self, state: &[u8], step: usize) -> Result<(), u32> {
        for part in state.chunks(step) {
            let count = u64::try_from(part.len()).unwrap();
            let head = numbers(&[(8 + count, 4), (count, 4)]);
            let answer = self.talk.ask(18, &[&head, part].concat())?;
            assert!(answer.is_empty());
        }
        Ok(())
    }
}

fn errno(errno: u32) -> String {
    format!("errno {errno}")
}

#[test]
fn features_are_probed_and_judged() -> Outcome {
    let mut driven = Driven::new(Marking::Bit, &guest()?)?;
    let talk = &mut driven.talk;
    for (feature, ways) in [
        (MIGRATION, GET),
        (DEVICE_STATE, GET | SET),
        (START, SET),
        (STOP, SET),
        (REPORT, GET),
    ] {
        for asked in [GET, SET, GET | SET] {
            let expected = if asked & !ways == 0 {
                Ok(8)
            } else {
                Err(EINVAL)
            };
            let answer = talk.feature(PROBE | asked | feature, &[]);
            assert_eq!(
                answer.map(|answer| answer.len()),
                expected,
                "{feature} {asked:#x}"
            );
        }
        assert!(talk.feature(PROBE | feature, &[]).is_ok());
        for flags in [0, GET | SET, GET | 1 << 19, SET | 1 << 31] {
            assert_eq!(
                talk.feature(flags | feature, &[]),
                Err(EINVAL),
                "{flags:#x}"
            );
        }
    }
    for feature in [0, 3, 4, 5, 9, 10, 0xffff] {
        for flags in [GET, SET, PROBE, PROBE | GET] {
            assert_eq!(
                talk.feature(flags | feature, &[0; 64]),
                Err(ENOTTY),
                "{feature}"
            );
        }
    }
    let answer = talk.feature(GET | MIGRATION, &[]).map_err(errno)?;
    assert_eq!((answer.len(), quad(&answer, 8)), (16, 1), "stop and copy");
    // Too little room: only how much it takes is told.
    for feature in [MIGRATION, DEVICE_STATE] {
        let ask = numbers(&[(15, 4), ((GET | feature).into(), 4)]);
        let answer = talk.ask(16, &ask).map_err(errno)?;
        assert_eq!(answer, numbers(&[(16, 4), ((GET | feature).into(), 4)]));
    }
    for len in 0..8 {
        assert_eq!(talk.ask(16, &vec![0; len]), Err(EINVAL));
    }
    Ok(())
}

/// The pages that were reported in a round, and those that changed in memory.
type Round = (Vec<u64>, Vec<u64>);

/// What is reported is what changed in memory, no page less and none more, in rounds.
fn logged(marking: Marking) -> Result<Vec<Round>, Box<dyn std::error::Error>> {
    let mut driven = Driven::new(marking, &guest()?)?;
    driven.start();
    driven.offer(0, 2)?;
    driven.await_used(2)?;
    assert_eq!(driven.log(4096, &[(0, MEMORY)]), Ok(4096));
    let mut rounds = Vec::new();
    for n in [3_u16, 6, 15] {
        // Everything is used and nothing new there: whatever changes from here on is ours or the device's.
        let before = driven.bytes()?;
        driven.offer(driven.used()?, n)?;
        driven.await_used(n)?;
        // Nothing is in flight when it is stopped.
        driven.enter(STOPPED).map_err(errno)?;
        let mut changed = changed(&before, &driven.bytes()?);
        // The driver's own stores are not the device's, which only reads these pages.
        changed.retain(|page| !DRIVERS.contains(page));
        rounds.push((changed, driven.report(0, MEMORY, 4096).map_err(errno)?));
        driven.enter(RUNNING).map_err(errno)?;
    }
    Ok(rounds)
}

#[test]
fn what_is_logged_is_what_changed() -> Outcome {
    for (n, (changed, reported)) in logged(Marking::Bit)?.into_iter().enumerate() {
        assert_eq!(changed, reported, "round {n}");
        assert!(!changed.is_empty(), "round {n}");
    }
    Ok(())
}

/// The negative control: with marking off the comparison fails.
#[test]
fn what_is_not_marked_is_not_logged() -> Outcome {
    let rounds = logged(Marking::Off)?;
    assert!(rounds.iter().any(|(changed, _)| !changed.is_empty()));
    assert!(rounds.iter().all(|(_, reported)| reported.is_empty()));
    Ok(())
}

#[test]
fn reports_come_in_any_grain_and_lose_nothing() -> Outcome {
    let mut driven = Driven::new(Marking::Bit, &guest()?)?;
    driven.start();
    let (used, first) = (USED / 4096, PAGES / 4096);
    assert_eq!(driven.log(4096, &[(0, MEMORY)]), Ok(4096));
    driven.offer(0, 3)?;
    driven.await_used(3)?;
    driven.enter(STOPPED).map_err(errno)?;
    // Parts in any order, each once.
    assert_eq!(driven.report(PAGES, 0x1000, 4096), Ok(vec![0]));
    assert_eq!(driven.report(PAGES, 0x1000, 4096), Ok(vec![]));
    // 16 KiB of which the first was told of: two more, and the used ring by 16 KiB.
    assert_eq!(
        driven.report(0, MEMORY, 0x4000),
        Ok(vec![used / 4, first / 4])
    );
    assert_eq!(driven.report(0, MEMORY, 4096), Ok(vec![]));
    driven.enter(RUNNING).map_err(errno)?;
    driven.offer(3, 4)?;
    driven.await_used(4)?;
    driven.enter(STOPPED).map_err(errno)?;
    // No room for the answer, an answer that nobody wants: nothing is lost.
    let data = numbers(&[(0, 8), (MEMORY, 8), (4096, 8)]);
    let ask = [numbers(&[(63, 4), ((GET | REPORT).into(), 4)]), data].concat();
    let answer = driven.talk.ask(16, &ask).map_err(errno)?;
    assert_eq!(answer, numbers(&[(64, 4), ((GET | REPORT).into(), 4)]));
    driven
        .talk
        .say(&super::talk::message(16, super::talk::NO_REPLY, &ask))?;
    for (iova, length, unit) in [
        (0, 0, 4096),
        (0, MEMORY, 0),
        (0, MEMORY, 2048),
        (0, MEMORY, 5000),
        (4096, MEMORY, 8192),
        (u64::MAX - 4095, 4096, 4096),
        (0, 1 << 36, 4096),
    ] {
        assert_eq!(
            driven.report(iova, length, unit),
            Err(EINVAL),
            "{iova:#x} {length:#x} {unit}"
        );
    }
    assert_eq!(driven.report(0, MEMORY, 4096), Ok(vec![used, first + 3]));
    assert_eq!(driven.log(4096, &[(0, MEMORY)]), Err(EBUSY));
    driven.talk.feature(SET | STOP, &[]).map_err(errno)?;
    driven.talk.feature(SET | STOP, &[]).map_err(errno)?;
    assert_eq!(driven.report(0, MEMORY, 4096), Err(EINVAL));
    Ok(())
}

#[test]
fn a_coarse_page_is_told_of_until_all_of_it_was() -> Outcome {
    let mut driven = Driven::new(Marking::Bit, &guest()?)?;
    driven.start();
    assert_eq!(driven.log(0x4000, &[(0, MEMORY)]), Ok(0x4000));
    driven.offer(0, 1)?;
    driven.await_used(1)?;
    driven.enter(STOPPED).map_err(errno)?;
    for _ in 0..2 {
        // A quarter of it: replicated, and kept for the other three.
        assert_eq!(driven.report(PAGES, 4096, 4096), Ok(vec![0]));
    }
    assert_eq!(driven.report(PAGES, 0x4000, 4096), Ok(vec![0, 1, 2, 3]));
    assert_eq!(driven.report(PAGES, 0x4000, 4096), Ok(vec![]));
    assert_eq!(
        driven.report(0, 0x4000, 0x4000),
        Ok(vec![0]),
        "the used ring"
    );
    Ok(())
}

#[test]
fn ranges_may_end_where_all_addresses_do() -> Outcome {
    let mut driven = Driven::new(Marking::Bit, &guest()?)?;
    driven.start();
    for (n, size) in (0..).zip([4096, 2 << 20]) {
        let ranges = [(u64::MAX - 4095, 4096), (0, MEMORY)];
        assert_eq!(driven.log(size, &ranges), Ok(size));
        driven.offer(n, n + 1)?;
        driven.await_used(n + 1)?;
        driven.enter(STOPPED).map_err(errno)?;
        let reported = driven.report(PAGES, MEMORY - PAGES, 4096);
        assert!(reported.is_ok_and(|pages| pages.contains(&u64::from(n))));
        driven.enter(RUNNING).map_err(errno)?;
        driven.talk.feature(SET | STOP, &[]).map_err(errno)?;
    }
    Ok(())
}

#[test]
fn logging_is_judged_and_bounded() -> Outcome {
    let mut driven = Driven::new(Marking::Bit, &guest()?)?;
    for (page_size, ranges) in [
        (0, vec![(0, MEMORY)]),
        (3, vec![(0, MEMORY)]),
        (4096, vec![(0, 0)]),
        (4096, vec![(u64::MAX, 2)]),
        (4096, vec![(0, MEMORY), (4096, u64::MAX)]),
    ] {
        assert_eq!(
            driven.log(page_size, &ranges),
            Err(EINVAL),
            "{page_size} {ranges:?}"
        );
    }
    // Counts that do not fit what came.
    for (count, bytes) in [(1_u64, 0), (1, 15), (1, 17), (2, 16), (0, 16), (1024, 16)] {
        let data = [numbers(&[(4096, 8), (count, 4), (0, 4)]), vec![0; bytes]].concat();
        assert_eq!(
            driven.talk.feature(SET | START, &data),
            Err(EINVAL),
            "{count} {bytes}"
        );
    }
    let data = numbers(&[(4096, 8), (0xffff_ffff, 4), (0, 4)]);
    assert_eq!(driven.talk.feature(SET | START, &data), Err(7), "E2BIG");
    // Sizes that there are not are replaced; what is too much for one size is logged in another.
    for (page_size, ranges, chosen) in [
        (1, vec![(0, MEMORY)], 4096),
        (1 << 40, vec![(0, MEMORY)], 1 << 30),
        (4096, vec![(0, 1 << 41)], 8192),
        (4096, vec![(5000, 1), (0, 9000), (0, 1 << 12)], 4096),
    ] {
        assert_eq!(driven.log(page_size, &ranges), Ok(chosen));
        driven.talk.feature(SET | STOP, &[]).map_err(errno)?;
    }
    assert_eq!(driven.log(4096, &[(0, u64::MAX)]), Err(ENOSPC));
    // All writes: also those through maps that come later, as far as that is promised.
    assert_eq!(driven.log(4096, &[]), Ok(4096));
    let fd = driven.memory.as_fd().try_clone_to_owned()?;
    assert_eq!(driven.talk.map(1 << 40, 0x1000, Some(fd)), Err(ENOSPC));
    let fd = driven.memory.as_fd().try_clone_to_owned()?;
    assert_eq!(driven.talk.map(1 << 39, 0x1000, Some(fd)), Ok(()));
    driven.start();
    driven.offer(0, 1)?;
    driven.await_used(1)?;
    let reported = driven.report(0, MEMORY, 4096).map_err(errno)?;
    assert_eq!(reported, [USED / 4096, PAGES / 4096]);
    Ok(())
}

/// The tracker's own stores are in no record: a VMM is told of the guest's bitmap all the same.
#[test]
fn the_guests_own_bitmap_counts_as_written() -> Outcome {
    let mut driven = Driven::new(Marking::Bit, &guest()?)?;
    let config = crate::tracker::TrackerConfig {
        enabled: true,
        bitmap_addr: 0x8000,
        bitmap_length: 32,
        ..crate::tracker::TrackerConfig::default()
    };
    assert_eq!(driven.log(4096, &[(0, MEMORY)]), Ok(4096));
    driven.function.dma().set_tracker(config);
    assert_eq!(driven.report(0, MEMORY, 4096), Ok(vec![8]));
    // Written once more, and then switched off by the driver, which takes a register's write.
    driven.set(0x14, 1, 1);
    driven
        .function
        .dma()
        .set_tracker(crate::tracker::TrackerConfig::default());
    assert_eq!(driven.report(0, MEMORY, 4096), Ok(vec![8]));
    assert_eq!(driven.report(0, MEMORY, 4096), Ok(vec![]));
    Ok(())
}

#[test]
fn a_device_goes_on_behind_another_server() -> Outcome {
    let memory = guest()?;
    let mut first = Driven::new(Marking::Bit, &memory)?;
    first.start();
    // Bus master; a vector's message.
    first.talk.write(7, 4, &[6, 0]).map_err(errno)?;
    first.talk.write(1, 16 + 8, &[1, 2, 3, 4]).map_err(errno)?;
    first.offer(0, 5)?;
    first.await_used(5)?;
    assert_eq!(first.state(), RUNNING);
    first.enter(STOP_COPY).map_err(errno)?;
    assert_eq!(first.state(), STOP_COPY);
    // Offered while it is stopped: the other's work.
    let before = first.bytes()?;
    first.offer(5, 9)?;
    let saved = first.saved(100).map_err(errno)?;
    assert!(first.saved(100).map_err(errno)?.is_empty(), "once");
    first.enter(STOPPED).map_err(errno)?;
    assert_eq!(first.used()?, 5, "nothing moves");
    let pages = usize::try_from(PAGES)?;
    assert_eq!(first.bytes()?[pages..], before[pages..]);

    let mut second = Driven::new(Marking::Bit, &memory)?;
    second.enter(RESUMING).map_err(errno)?;
    second.give(&saved, 77).map_err(errno)?;
    second.enter(STOPPED).map_err(errno)?;
    assert_eq!(second.used()?, 5, "not before it runs");
    assert_eq!(second.get(0x14) & 0xff, 0xf, "its driver does not know");
    second.enter(RUNNING).map_err(errno)?;
    second.await_used(9)?;
    second.offer(9, 20)?;
    second.await_used(20)?;
    assert_eq!(second.talk.read(7, 4, 2), Ok(vec![6, 0]));
    assert_eq!(second.talk.read(1, 16 + 8, 4), Ok(vec![1, 2, 3, 4]));
    // Every buffer was filled and used once, in order.
    let bytes = second.bytes()?;
    for n in 0..20_u16 {
        let at = pages + usize::from(n) * 4096;
        assert!(bytes[at..at + 4096].iter().any(|byte| *byte != 0), "{n}");
        let mut entry = [0; 8];
        second
            .memory
            .read_exact_at(&mut entry, USED + 4 + 8 * u64::from(n))?;
        assert_eq!(entry.to_vec(), numbers(&[(n.into(), 4), (4096, 4)]));
    }
    assert!(bytes[pages + 20 * 4096..].iter().all(|byte| *byte == 0));

    // And back.
    second.enter(STOP_COPY).map_err(errno)?;
    let saved = second.saved(1 << 20).map_err(errno)?;
    first.enter(RESUMING).map_err(errno)?;
    first.give(&saved, saved.len()).map_err(errno)?;
    first.enter(RUNNING).map_err(errno)?;
    first.offer(20, 30)?;
    first.await_used(30)?;
    Ok(())
}

#[test]
fn a_driver_is_told_what_the_other_device_owed_it() -> Outcome {
    let memory = guest()?;
    let mut first = Driven::new(Marking::Bit, &memory)?;
    first.start();
    // Nobody connected an eventfd: the interrupt was raised and not heard.
    first.offer(0, 1)?;
    first.await_used(1)?;
    first.enter(STOP_COPY).map_err(errno)?;
    let saved = first.saved(4096).map_err(errno)?;
    let mut second = Driven::new(Marking::Bit, &memory)?;
    let event = super::event()?;
    let set = numbers(&[(20, 4), (4 | 1 << 5, 4), (2, 4), (1, 4), (1, 4)]);
    let fd = event.as_fd().try_clone_to_owned()?;
    second.talk.ask_with(8, &set, vec![fd]).map_err(errno)?;
    second.enter(RESUMING).map_err(errno)?;
    second.give(&saved, 4096).map_err(errno)?;
    second.enter(STOPPED).map_err(errno)?;
    assert_eq!(super::count(&event), 0);
    second.enter(RUNNING).map_err(errno)?;
    let mut told = super::count(&event);
    assert!(told >= 1, "before RUNNING is answered");
    // The queue's worker tells it as well: whether the first's interrupt arrived is not known to it.
    let began = Instant::now();
    while told < 2 {
        assert!(began.elapsed() < PATIENCE, "told {told} times");
        told += super::count(&event);
        std::thread::yield_now();
    }
    assert_eq!(told, 2);
    Ok(())
}

#[test]
fn states_are_entered_in_order_only() -> Outcome {
    let mut driven = Driven::new(Marking::Bit, &guest()?)?;
    driven.start();
    for state in [0, 5, 6, 7, 8, 0xffff_ffff] {
        assert_eq!(driven.enter(state), Err(EINVAL), "{state}");
        assert_eq!(driven.state(), RUNNING);
    }
    for len in [0, 4, 7, 9] {
        let answer = driven.talk.feature(SET | DEVICE_STATE, &vec![0; len]);
        assert_eq!(answer, Err(EINVAL));
    }
    let read = numbers(&[(108, 4), (100, 4)]);
    let write = numbers(&[(12, 4), (4, 4), (0, 4)]);
    // Every path there is, and data in its own state only.
    for state in [
        STOPPED, RUNNING, STOP_COPY, RUNNING, RESUMING, RUNNING, STOP_COPY, RESUMING, STOP_COPY,
        STOPPED, STOPPED, RUNNING,
    ] {
        driven.enter(state).map_err(errno)?;
        assert_eq!(driven.state(), state);
        assert_eq!(driven.function.is_stopped(), state != RUNNING);
        assert_eq!(driven.talk.ask(17, &read).is_ok(), state == STOP_COPY);
        if state != RESUMING {
            assert_eq!(driven.talk.ask(18, &write), Err(EINVAL));
        }
    }
    // It runs as before.
    driven.offer(0, 1)?;
    driven.await_used(1)?;
    driven.enter(STOP_COPY).map_err(errno)?;
    for (argsz, size) in [(8, 1), (107, 100), (0, 0), (7, 0xffff_ffff)] {
        let ask = numbers(&[(argsz, 4), (size, 4)]);
        assert_eq!(driven.talk.ask(17, &ask), Err(EINVAL), "{argsz} {size}");
    }
    // A reset makes it run, whichever way it is asked for.
    driven.talk.ask(13, &[]).map_err(errno)?;
    assert_eq!(driven.state(), RUNNING);
    assert!(!driven.function.is_stopped());
    Ok(())
}

#[test]
fn a_state_that_does_not_fit_is_refused_whole() -> Outcome {
    let memory = guest()?;
    let mut first = Driven::new(Marking::Bit, &memory)?;
    first.start();
    first.offer(0, 3)?;
    first.await_used(3)?;
    first.enter(STOP_COPY).map_err(errno)?;
    let saved = first.saved(4096).map_err(errno)?;
    assert!(saved.len() < STATE_MAX);

    let mut second = Driven::new(Marking::Bit, &memory)?;
    let fresh = {
        second.enter(STOPPED).map_err(errno)?;
        second.function.save()
    };
    // Magic, version, vectors, tracker; fixed bytes of configuration space.
    for at in [0, 4, 6, 8, 9, 15, 32, 33] {
        let mut bad = saved.clone();
        bad[at] ^= 0xff;
        refuse(&mut second, &bad, &fresh)?;
    }
    for len in [1, 31, 32, 33, 4127, 4128, 4129, saved.len() - 1] {
        refuse(&mut second, &saved[..len], &fresh)?;
    }
    let longer = [saved.as_slice(), &[1; 7]].concat();
    refuse(&mut second, &longer, &fresh)?;
    // More than there can be.
    second.enter(RESUMING).map_err(errno)?;
    second.give(&vec![0; STATE_MAX], 4096).map_err(errno)?;
    assert_eq!(second.give(&[0], 1), Err(ENOSPC));
    let short = numbers(&[(12, 4), (5, 4), (0, 4)]);
    assert_eq!(
        second.talk.ask(18, &short),
        Err(EINVAL),
        "size and data differ"
    );
    assert_eq!(second.enter(STOPPED), Err(EINVAL));
    // And after all that the right one is taken.
    second.enter(RESUMING).map_err(errno)?;
    second.give(&saved, 4096).map_err(errno)?;
    second.enter(RUNNING).map_err(errno)?;
    second.offer(3, 6)?;
    second.await_used(6)?;
    Ok(())
}

fn refuse(driven: &mut Driven, state: &[u8], fresh: &[u8]) -> Outcome {
    driven.enter(RESUMING).map_err(errno)?;
    driven.give(state, 4096).map_err(errno)?;
    let refused = driven.enter(RUNNING);
    assert!(matches!(refused, Err(EINVAL | EIO)), "{refused:?}");
    assert_eq!(driven.state(), STOPPED);
    assert_eq!(driven.function.save(), fresh, "nothing changed");
    Ok(())
}

/// Administration objects are in no state, so such a function does not claim to move.
#[test]
fn a_function_with_administration_queues_does_not_migrate() -> Outcome {
    let config = crate::function::FunctionConfig {
        admin: crate::function::AdminConfig {
            queues: 1,
            ..crate::function::AdminConfig::default()
        },
        ..crate::function::FunctionConfig::default()
    };
    let function = PciFunction::new(config, crate::rng::RngDevice::seeded(1));
    let mut talk = super::talk::Talk::new(super::ServedFunction::new(function));
    for feature in [MIGRATION, DEVICE_STATE, START, REPORT] {
        assert_eq!(talk.feature(PROBE | feature, &[]), Err(ENOTTY));
    }
    assert_eq!(talk.ask(17, &numbers(&[(8, 4), (0, 4)])), Err(ENOTTY));
    Ok(())
}
