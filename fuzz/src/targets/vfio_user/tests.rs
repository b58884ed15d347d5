//! The oracles speak when there is something to be said.

use super::client::{Heard, judge};
use super::guest::Guest;
use super::wire::{self, Message, access, command, numbers};
use super::{PAGE, run};
use crate::oracle;
use device::serve::vfio_user::ProtocolError;
use std::os::unix::fs::FileExt;

type Change = fn(&mut Vec<u8>);

/// What a region's read came to that was answered so.
fn heard(change: impl FnOnce(&mut Vec<u8>)) -> Result<Heard, String> {
    let message = Message::new(command::REGION_READ, access(0, 0, 4)).bytes(7);
    let mut answer = Message {
        flags: wire::REPLY,
        ..Message::new(
            command::REGION_READ,
            [access(0, 0, 4), vec![1, 2, 3, 4]].concat(),
        )
    }
    .bytes(7);
    change(&mut answer);
    said(|| judge(&message, true, &Ok(()), &answer))
}

fn said<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    let run = std::panic::AssertUnwindSafe(run);
    let mut result = None;
    let room = std::panic::AssertUnwindSafe(&mut result);
    oracle::judge(move || {
        let (room, run) = (room, run);
        *room.0 = Some((run.0)());
    })?;
    result.ok_or_else(|| "nothing came back".to_owned())
}

#[test]
fn an_answer_is_its_messages_and_as_long_as_it_says() {
    let sound = heard(|_| {}).expect("nothing to be said");
    assert!(matches!(sound, Heard::Done(payload) if payload.len() == 20));
    let wrong: [(&str, Change); 6] = [
        ("none", Vec::clear),
        ("another's id", |answer| answer[0] ^= 1),
        ("another command's", |answer| answer[2] ^= 1),
        ("a size that lies", |answer| answer.push(0)),
        ("no reply", |answer| answer[8] = 0),
        ("an error with a payload", |answer| {
            answer[8] = 0x21;
            answer[12] = 22;
        }),
    ];
    for (what, change) in wrong {
        let words = heard(change).expect_err(what);
        assert!(words.starts_with("oracle answers"), "{what}: {words}");
    }
    // More than was asked for.
    let longer = heard(|answer| {
        answer.push(0);
        answer[4] += 1;
    });
    let words = longer.expect_err("a byte too many");
    assert!(words.starts_with("oracle answers"), "{words}");
}

#[test]
fn posted_messages_have_no_answer_and_frames_that_lie_no_session() {
    let mut message = Message::new(command::RESET, Vec::new());
    message.flags = wire::NO_REPLY;
    let bytes = message.bytes(1);
    assert_eq!(
        said(|| judge(&bytes, true, &Ok(()), &[])),
        Ok(Heard::Posted)
    );
    let words = said(|| judge(&bytes, true, &Ok(()), &[0; 16])).expect_err("an answer");
    assert!(words.starts_with("oracle answers"), "{words}");

    message.lie = Some(17);
    let bytes = message.bytes(1);
    let refused = || Err(ProtocolError::Length { size: 17, got: 16 });
    assert_eq!(
        said(|| judge(&bytes, true, &refused(), &[])),
        Ok(Heard::Over)
    );
    let words = said(|| judge(&bytes, true, &Ok(()), &[])).expect_err("it is taken");
    assert!(words.starts_with("oracle soundness"), "{words}");

    let bytes = Message::new(command::RESET, Vec::new()).bytes(1);
    let words = said(|| judge(&bytes, true, &refused(), &[])).expect_err("it ends the session");
    assert!(words.starts_with("oracle answers"), "{words}");
}

/// A guest whose page 3 is granted at 3 and, if `twice`, at 1 MiB and 3 pages, with logging on.
fn logged(twice: bool) -> Guest {
    let mut guest = Guest::new();
    for base in [0, super::ALIAS].into_iter().take(1 + usize::from(twice)) {
        let at = base + 3 * PAGE;
        let body = numbers(&[(32, 4), (3, 4), (3 * PAGE, 8), (at, 8), (PAGE, 8)]);
        let map = Message {
            guest: true,
            ..Message::new(command::DMA_MAP, body)
        };
        guest.heed(&map, &Heard::Done(Vec::new()), None);
    }
    let data = numbers(&[(PAGE, 8), (0, 4), (0, 4)]);
    let flags = wire::feature::SET | wire::feature::LOG_START;
    let start = Message::new(command::FEATURE, wire::asked(flags, &data));
    guest.heed(&start, &Heard::Done(Vec::new()), None);
    guest
}

/// A report of both places of memory, with the bits of these pages.
fn report(guest: &mut Guest, pages: &[usize]) -> Result<(), String> {
    let data = numbers(&[(0, 8), (super::REPORTED, 8), (PAGE, 8)]);
    let flags = wire::feature::GET | wire::feature::LOG_REPORT;
    let ask = Message::new(command::FEATURE, wire::asked(flags, &data));
    let mut payload = ask.body.clone();
    payload.resize(32 + 64, 0);
    for page in pages {
        payload[32 + page / 8] |= 1 << (page % 8);
    }
    let before = guest.before(&ask);
    said(|| guest.heed(&ask, &Heard::Done(payload), before))
}

/// As a device does.
fn write(guest: &Guest, page: u64, value: u8) {
    let file = guest.memory.file();
    file.write_all_at(&[value], page * PAGE).expect("written");
}

#[test]
fn what_is_written_is_reported_once_at_any_of_its_places() {
    let mut guest = logged(true);
    assert_eq!(report(&mut guest, &[]), Ok(()));
    write(&guest, 3, 1);
    assert_eq!(report(&mut guest, &[256 + 3]), Ok(()));
    // What was told of once may have been written again between the two looks, not after them.
    assert_eq!(report(&mut guest, &[]), Ok(()));
    write(&guest, 3, 2);
    let words = report(&mut guest, &[4]).expect_err("it is lost");
    assert!(words.starts_with("oracle tracking"), "{words}");
}

#[test]
fn what_was_written_before_an_unmap_is_reported_and_nothing_comes_after_it() {
    let mut guest = logged(false);
    let body = numbers(&[(24, 4), (0, 4), (3 * PAGE, 8), (PAGE, 8)]);
    let unmap = Message::new(command::DMA_UNMAP, body);
    write(&guest, 3, 1);
    guest.heed(&unmap, &Heard::Done(Vec::new()), None);
    let words = report(&mut guest, &[]).expect_err("it is lost");
    assert!(words.starts_with("oracle tracking"), "{words}");

    let mut guest = logged(false);
    guest.heed(&unmap, &Heard::Done(Vec::new()), None);
    write(&guest, 3, 1);
    let words = said(|| guest.end()).expect_err("it was taken away");
    assert!(words.starts_with("oracle grant"), "{words}");
}

#[test]
fn a_session_of_nothing_is_sound() {
    assert_eq!(said(|| run(&[], None)), Ok(()));
}
