//! Messages that no client should send, each class answered with its errno, and the session in step
//! afterwards; or ended with an error that says why.

use super::super::{DATA_MAX, FDS_MAX, MAPS_MAX, MESSAGE_MAX, ProtocolError};
use super::talk::{NO_REPLY, Talk, judge, message, numbers, word};
use super::{Bench, Outcome};
use crate::serve::vfio_user::{Ended, ServeError};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

const EEXIST: u32 = 17;
const EINVAL: u32 = 22;
const EMFILE: u32 = 24;
const ENOTTY: u32 = 25;
const ENOSPC: u32 = 28;
const ENOSYS: u32 = 38;
const EPROTO: u32 = 71;
const EMSGSIZE: u32 = 90;
const EOPNOTSUPP: u32 = 95;

const MSIX: u64 = 2;
const TRIGGER: u64 = 1 << 5;

fn talk() -> Result<(Bench, Talk), Box<dyn std::error::Error>> {
    let bench = Bench::new()?;
    let talk = Talk::new(bench.served.clone());
    Ok((bench, talk))
}

/// It still is what it was, and in step.
fn sound(talk: &mut Talk) {
    assert_eq!(talk.read(7, 0, 4), Ok(vec![0xf4, 0x1a, 0x42, 0x10]));
}

fn memory(size: u64) -> Result<File, std::io::Error> {
    let file = tempfile::tempfile()?;
    file.set_len(size)?;
    Ok(file)
}

#[test]
fn a_version_that_is_none_ends_the_session_with_an_answer() -> Outcome {
    let bench = Bench::new()?;
    let deep = [b"{\"capabilities\":".as_slice(), &[b'['; 300], b"\0"].concat();
    let long = [vec![b' '; 20_000], vec![0]].concat();
    let texts: [&[u8]; 9] = [
        b"x",
        b"{}",
        b"\0",
        b"[]\0",
        b"{\"capabilities\":7}\0",
        b"{\"capabilities\":{\"max_msg_fds\":-1}}\0",
        b"{\"capabilities\":{\"max_data_xfer_size\":\"all\"}}\0",
        &deep,
        &long,
    ];
    let mut payloads: Vec<_> = texts
        .iter()
        .map(|text| [&[0, 0, 1, 0], *text].concat())
        .collect();
    // 17 bytes in all, the least that panicked another server; none; another major version.
    payloads.extend([vec![0], vec![], vec![1, 0, 0, 0], vec![0, 1, 0, 0]]);
    for payload in payloads {
        let mut talk = Talk::silent(bench.served.clone());
        let ended = talk.say(&message(1, 0, &payload));
        assert!(matches!(ended, Err(ProtocolError::Version(_))), "{ended:?}");
        assert_eq!(judge(1, talk.0.answer()), Err(EINVAL), "{payload:?}");
    }
    Ok(())
}

#[test]
fn capabilities_are_a_part_of_those_proposed() -> Outcome {
    let bench = Bench::new()?;
    let agreed = |minor: u8, text: &str| -> Result<String, Box<dyn std::error::Error>> {
        let mut talk = Talk::silent(bench.served.clone());
        let payload = [&[0, 0, minor, 0], text.as_bytes(), b"\0"].concat();
        let answer = talk.ask(1, &payload).map_err(|errno| errno.to_string())?;
        assert_eq!(answer[..4], [0, 0, minor.min(1), 0]);
        let text = String::from_utf8(answer[4..answer.len() - 1].to_vec())?;
        assert_eq!(answer.last(), Some(&0));
        Ok(text)
    };
    assert_eq!(agreed(0, "{}")?, r#"{"capabilities":{}}"#);
    assert_eq!(agreed(9, r#"{"other":[1]}"#)?, r#"{"capabilities":{}}"#);
    let proposed = r#"{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":65536,"max_dma_maps":65535,
        "pgsizes":4096,"write_multiple":true,"twin_socket":{"supported":true},"migration":{"pgsize":4096}}}"#;
    let told: serde_json::Value = serde_json::from_str(&agreed(1, proposed)?)?;
    let expected = serde_json::json!({"capabilities": {"max_msg_fds": 16, "max_data_xfer_size": 65536,
        "max_dma_maps": 65535, "pgsizes": 4096, "migration": {"pgsize": 4096}}});
    assert_eq!(told, expected);
    let more =
        r#"{"capabilities":{"max_data_xfer_size":18446744073709551615,"max_dma_maps":9999999}}"#;
    let told: serde_json::Value = serde_json::from_str(&agreed(1, more)?)?;
    let expected = serde_json::json!({"capabilities": {"max_data_xfer_size": 1 << 20,
        "max_dma_maps": 1 << 20}});
    assert_eq!(told, expected);
    Ok(())
}

#[test]
fn version_comes_first_and_once() -> Outcome {
    let bench = Bench::new()?;
    let mut talk = Talk::silent(bench.served.clone());
    for command in [0, 2, 4, 9, 13, 16, 999] {
        assert_eq!(talk.ask(command, &[0; 16]), Err(EPROTO), "{command}");
    }
    assert!(talk.ask(1, &[0, 0, 0, 0]).is_ok());
    assert_eq!(talk.ask(1, &[0, 0, 0, 0]), Err(EINVAL));
    sound(&mut talk);
    Ok(())
}

#[test]
fn a_header_that_is_none_ends_the_session() -> Outcome {
    let (_bench, mut talk) = talk()?;
    for size in [0_u32, 15, (1 << 20) + 4097, u32::MAX] {
        let mut bytes = message(9, 0, &[0; 16]);
        bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        let ended = talk.say(&bytes);
        assert!(matches!(ended, Err(ProtocolError::Size { size: s }) if s == size));
    }
    for flags in [1, 2, 0xf, 1 | 1 << 5] {
        let ended = talk.say(&message(9, flags, &[0; 16]));
        assert!(
            matches!(ended, Err(ProtocolError::NotACommand { .. })),
            "{ended:?}"
        );
    }
    for len in 0..16 {
        assert!(talk.say(&message(4, 0, &[])[..len]).is_err());
    }
    let mut longer = message(4, 0, &[0; 16]);
    longer.push(0);
    let ended = talk.say(&longer);
    assert!(matches!(
        ended,
        Err(ProtocolError::Length { size: 32, got: 33 })
    ));
    assert_eq!(MESSAGE_MAX, (1 << 20) + 4096);
    Ok(())
}

#[test]
fn every_command_is_answered_known_or_not() -> Outcome {
    let (_bench, mut talk) = talk()?;
    for command in [0, 14, 19, 255, 0xffff] {
        assert_eq!(talk.ask(command, &[0; 24]), Err(ENOSYS), "{command}");
    }
    for command in [6, 11, 12, 15] {
        assert_eq!(talk.ask(command, &[0; 24]), Err(EOPNOTSUPP), "{command}");
    }
    // Too short and too long, every length up to what is right and beyond.
    for command in 2..=18 {
        for len in 0..80 {
            let answer = talk.ask(command, &vec![0; len]);
            let right = match command {
                13 => len == 0,
                // No bytes of region 0.
                9 | 10 => len == 16,
                _ => false,
            };
            assert_eq!(
                answer.is_ok(),
                right,
                "{command} with {len} bytes: {answer:?}"
            );
        }
    }
    sound(&mut talk);
    Ok(())
}

#[test]
fn a_posted_command_is_carried_out_and_never_answered() -> Outcome {
    let (_bench, mut talk) = talk()?;
    let write = numbers(&[(0x14, 8), (0, 4), (1, 4), (1, 1)]);
    talk.say(&message(10, NO_REPLY, &write))?;
    assert!(talk.0.answer().is_empty());
    assert_eq!(talk.read(0, 0x14, 1), Ok(vec![1]), "the status was written");
    // Nothing is said of errors either.
    let beyond = numbers(&[(u64::MAX, 8), (0, 4), (4, 4), (0, 4)]);
    for (command, payload) in [(10, beyond.as_slice()), (999, &[]), (5, &[]), (16, &[])] {
        talk.say(&message(command, NO_REPLY, payload))?;
        assert!(talk.0.answer().is_empty(), "{command}");
    }
    sound(&mut talk);
    Ok(())
}

#[test]
fn argsz_says_how_much_room_there_is() -> Outcome {
    let (_bench, mut talk) = talk()?;
    for (command, size) in [(2, 32), (3, 24), (4, 16), (5, 32), (7, 16), (8, 20)] {
        let mut payload = vec![0; size];
        for argsz in [0, 1, u32::try_from(size)? - 1] {
            payload[..4].copy_from_slice(&argsz.to_ne_bytes());
            assert_eq!(
                talk.ask(command, &payload),
                Err(EINVAL),
                "{command}, {argsz}"
            );
        }
    }
    for (command, size) in [(4, 16), (5, 32), (7, 16)] {
        let mut payload = vec![0; size];
        payload[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        let answer = talk.ask(command, &payload).map_err(|e| e.to_string())?;
        assert_eq!(
            usize::try_from(word(&answer, 0)),
            Ok(size),
            "what is needed"
        );
        // Of regions and interrupts that there are not.
        if command != 4 {
            payload[8..12].copy_from_slice(&9_u32.to_ne_bytes());
            assert_eq!(talk.ask(command, &payload), Err(EINVAL));
        }
    }
    sound(&mut talk);
    Ok(())
}

#[test]
fn accesses_beyond_a_region_are_refused() -> Outcome {
    let (bench, mut talk) = talk()?;
    let bar0 = crate::function::PciFunction::bar_size(0);
    for (region, offset) in [
        (7, 4093),
        (7, 4096),
        (7, 1 << 32),
        (7, u64::MAX),
        (0, bar0),
        (0, u64::MAX - 3),
        (0, bar0 - 1),
        (5, 0),
        (6, 0),
        (8, 0),
        (9, 0),
        (u32::MAX, 0),
    ] {
        assert_eq!(talk.read(region, offset, 4), Err(EINVAL), "{region}");
        assert_eq!(talk.write(region, offset, &[1; 4]), Err(EINVAL), "{region}");
    }
    assert_eq!(talk.read(0, 0, u32::MAX), Err(EINVAL));
    assert_eq!(talk.read(0, 0, u32::try_from(DATA_MAX)? + 1), Err(EINVAL));
    // Data and count differ.
    for (count, data) in [(4_u64, 3), (4, 5), (0, 1), (1, 0), (u64::from(u32::MAX), 4)] {
        let ask = numbers(&[(0x14, 8), (0, 4), (count, 4)]);
        let payload = [ask, vec![3; data]].concat();
        assert_eq!(talk.ask(10, &payload), Err(EINVAL), "{count}, {data}");
    }
    assert_eq!(talk.read(0, 0x14, 1), Ok(vec![0]), "nothing was written");
    assert_eq!(talk.read(7, 4092, 4), Ok(vec![0; 4]));
    assert_eq!(
        bench.function.stats().ignored,
        0,
        "nothing of it came so far"
    );
    sound(&mut talk);
    Ok(())
}

#[test]
fn maps_are_judged_before_they_are_made() -> Outcome {
    let (bench, mut talk) = talk()?;
    let file = memory(0x1_0000)?;
    let fd = || file.as_fd().try_clone_to_owned();
    talk.map(0x1_0000, 0x8000, Some(fd()?))
        .map_err(|e| e.to_string())?;
    for (iova, size) in [
        (0x1_0000, 0x8000),
        (0xf000, 0x2000),
        (0x1_7000, 0x1000),
        (0, 0x10_0000),
    ] {
        assert_eq!(talk.map(iova, size, Some(fd()?)), Err(EEXIST), "{iova:#x}");
        assert_eq!(talk.map(iova, size, None), Err(EEXIST), "{iova:#x}");
    }
    for (iova, size) in [
        (0x10_0000, 0),
        (0x10_0000, 0x1_1000),
        (0x10_0001, 0x1000),
        (0x10_0000, 0x800),
        (u64::MAX - 0xfff, 0x1000),
        (0x10_0000, u64::MAX),
    ] {
        assert_eq!(
            talk.map(iova, size, Some(fd()?)),
            Err(EINVAL),
            "{iova:#x} {size:#x}"
        );
    }
    let map = |flags: u64, offset: u64| {
        numbers(&[
            (32, 4),
            (flags, 4),
            (offset, 8),
            (0x10_0000, 8),
            (0x1000, 8),
        ])
    };
    for (flags, offset) in [
        (4, 0),
        (u64::from(u32::MAX), 0),
        (3, u64::MAX),
        (3, 0x1_0000),
        (3, 1),
    ] {
        let refused = talk.ask_with(2, &map(flags, offset), vec![fd()?]);
        assert_eq!(refused, Err(EINVAL), "{flags} {offset:#x}");
    }
    assert_eq!(
        talk.ask_with(2, &map(3, 0), vec![fd()?, fd()?]),
        Err(EINVAL)
    );
    // What is no memory file, and one that cannot be written.
    let (pipe, _writer) = std::io::pipe()?;
    let folder = File::open("/")?;
    let zero = File::open("/dev/zero")?;
    let path = bench.dir.path().join("read-only");
    File::create(&path)?.set_len(0x1_0000)?;
    let read_only = File::open(path)?;
    for odd in [
        OwnedFd::from(pipe),
        folder.into(),
        zero.into(),
        read_only.into(),
    ] {
        assert_eq!(talk.map(0x10_0000, 0x1000, Some(odd)), Err(EINVAL));
    }
    let unmap =
        |flags: u64, iova: u64, size: u64| numbers(&[(24, 4), (flags, 4), (iova, 8), (size, 8)]);
    for (flags, iova, size, errno) in [
        (1, 0, 0x1000, EOPNOTSUPP),
        (2, 1, 0, EINVAL),
        (2, 0, 0x1000, EINVAL),
        (4, 0, 0, EINVAL),
        (8, 0, 0, EINVAL),
    ] {
        assert_eq!(
            talk.ask(3, &unmap(flags, iova, size)),
            Err(errno),
            "{flags}"
        );
    }
    assert!(bench.mapped(0x1_0000) && bench.mapped(0x1_7000) && !bench.mapped(0x10_0000));
    // All, and again: nothing there is no error.
    for _ in 0..2 {
        let all = unmap(2, 0, 0);
        assert_eq!(talk.ask(3, &all).as_deref(), Ok(all.as_slice()));
        assert!(!bench.mapped(0x1_0000));
    }
    talk.map(0x1_0000, 0x8000, Some(fd()?))
        .map_err(|e| e.to_string())?;
    drop(talk);
    assert!(!bench.mapped(0x1_0000), "it ended with the session");
    Ok(())
}

#[test]
fn maps_and_their_files_are_counted() -> Outcome {
    let (_bench, mut talk) = talk()?;
    let most = u64::try_from(MAPS_MAX)?;
    // A map without memory costs an entry and no more.
    for n in 0..most {
        assert_eq!(talk.map(n * 0x2000, 0x1000, None), Ok(()));
    }
    assert_eq!(talk.map(most * 0x2000, 0x1000, None), Err(ENOSPC));
    let one = numbers(&[(24, 4), (0, 4), (0, 8), (0x1000, 8)]);
    assert!(talk.ask(3, &one).is_ok());
    assert_eq!(talk.map(most * 0x2000, 0x1000, None), Ok(()));
    let all = numbers(&[(24, 4), (2, 4), (0, 8), (0, 8)]);
    assert!(talk.ask(3, &all).is_ok());
    // A hundred thousand maps into one file are one mapping of it.
    let file = memory(0x1000)?;
    for n in 0..1 << 17 {
        let fd = file.as_fd().try_clone_to_owned()?;
        assert_eq!(talk.map(n * 0x2000, 0x1000, Some(fd)), Ok(()));
    }
    assert!(talk.ask(3, &all).is_ok());
    sound(&mut talk);
    Ok(())
}

#[test]
fn interrupts_are_judged_before_any_is_touched() -> Outcome {
    let (bench, mut talk) = talk()?;
    let event = super::event()?;
    let fd = || event.as_fd().try_clone_to_owned();
    let set = |flags: u64, index: u64, start: u64, count: u64| {
        numbers(&[(20, 4), (flags, 4), (index, 4), (start, 4), (count, 4)])
    };
    let connect = 4 | TRIGGER;
    let answer = talk.ask_with(8, &set(connect, MSIX, 1, 1), vec![fd()?]);
    assert_eq!(answer, Ok(vec![]));
    let odd: [(u64, u64, u64, u64, usize, u32); 16] = [
        // No DATA, two of them, no ACTION, two of them, what there is not.
        (TRIGGER, MSIX, 0, 1, 0, EINVAL),
        (3 | TRIGGER, MSIX, 0, 1, 0, EINVAL),
        (1, MSIX, 0, 1, 0, EINVAL),
        (1 | TRIGGER | 8, MSIX, 0, 1, 0, EINVAL),
        (1 | TRIGGER | 64, MSIX, 0, 1, 0, EINVAL),
        // Ranges.
        (connect, MSIX, 3, 1, 1, EINVAL),
        (connect, MSIX, 0, 4, 4, EINVAL),
        (1 | TRIGGER, MSIX, 0xffff_ffff, 0xffff_ffff, 0, EINVAL),
        (1 | TRIGGER, MSIX, 1, 0, 0, EINVAL),
        (connect, MSIX, 0, 0, 0, EINVAL),
        // Eventfds: too few, too many, none expected.
        (connect, MSIX, 0, 2, 1, EINVAL),
        (connect, MSIX, 0, 1, 2, EINVAL),
        (1 | TRIGGER, MSIX, 0, 1, 1, EINVAL),
        // Other kinds of interrupts; and masks, which are not announced.
        (1 | TRIGGER, 0, 0, 1, 0, EINVAL),
        (1 | TRIGGER, 5, 0, 0, 0, EINVAL),
        (1 | 8, MSIX, 0, 1, 0, ENOTTY),
    ];
    for (flags, index, start, count, fds, errno) in odd {
        let fds = (0..fds).map(|_| fd()).collect::<Result<_, _>>()?;
        let answer = talk.ask_with(8, &set(flags, index, start, count), fds);
        assert_eq!(answer, Err(errno), "{flags:#x} {index} {start} {count}");
    }
    let (pipe, _writer) = std::io::pipe()?;
    let fds = vec![fd()?, pipe.into()];
    assert_eq!(
        talk.ask_with(8, &set(connect, MSIX, 0, 2), fds),
        Err(EINVAL)
    );
    assert_eq!(talk.ask(8, &set(1 | 16, MSIX, 0, 1)), Err(ENOTTY));
    assert_eq!(super::count(&event), 0);
    // Vector 1 has kept its eventfd. A byte for each vector says which are raised.
    for (bytes, told) in [(&[0_u8, 1, 0][..], 1), (&[1, 0, 1], 0), (&[1, 7, 1], 1)] {
        let ask = [&set(2 | TRIGGER, MSIX, 0, 3), bytes].concat();
        assert_eq!(talk.ask(8, &ask), Ok(vec![]));
        assert_eq!(super::count(&event), told, "{bytes:?}");
    }
    for bytes in [&[][..], &[1], &[1, 1, 1, 1]] {
        let ask = [&set(2 | TRIGGER, MSIX, 0, 3), bytes].concat();
        assert_eq!(talk.ask(8, &ask), Err(EINVAL), "{bytes:?}");
    }
    // All of a kind that has none, as VMMs do when they leave.
    for index in 0..5 {
        assert_eq!(talk.ask(8, &set(1 | TRIGGER, index, 0, 0)), Ok(vec![]));
    }
    bench.function.notify_config_change();
    assert_eq!(super::count(&event), 0);
    Ok(())
}

fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> Outcome {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    assert_eq!(sent, bytes.len());
    Ok(())
}

fn hear(mut stream: &UnixStream, command: u16) -> Result<Vec<u8>, u32> {
    let mut answer = vec![0; 16];
    stream.read_exact(&mut answer).unwrap();
    let size = usize::try_from(word(&answer, 4)).unwrap();
    answer.resize(size, 0);
    stream.read_exact(&mut answer[16..]).unwrap();
    judge(command, &answer)
}

/// A storm of descriptors: all are closed, with whatever message they came, and wherever in it.
#[test]
fn descriptors_are_counted_and_always_closed() -> Outcome {
    let bench = Bench::new()?;
    let serving = bench.serve();
    let mut stream = UnixStream::connect(bench.path())?;
    stream.write_all(&message(1, 0, &[0, 0, 1, 0]))?;
    assert!(hear(&stream, 1).is_ok());
    let (mut reader, writer) = std::io::pipe()?;
    let many = |count: usize| {
        let fds = (0..count).map(|_| writer.as_fd().try_clone_to_owned());
        fds.collect::<Result<Vec<_>, _>>()
    };
    let read = numbers(&[(0, 8), (7, 4), (4, 4)]);
    let map = numbers(&[(32, 4), (3, 4), (0, 8), (0, 8), (0x1000, 8)]);
    for (command, payload, count, errno) in [
        (9, &read, 1, EINVAL),
        (9, &read, FDS_MAX, EINVAL),
        (9, &read, FDS_MAX + 1, EMFILE),
        (2, &map, 2, EINVAL),
        (2, &map, 100, EMFILE),
        (999, &read, 100, EMFILE),
    ] {
        send_with(&stream, &message(command, 0, payload), &many(count)?)?;
        assert_eq!(hear(&stream, command), Err(errno), "{command} with {count}");
    }
    // Some with every byte.
    for byte in message(9, 0, &read).chunks(1) {
        send_with(&stream, byte, &many(20)?)?;
    }
    assert_eq!(hear(&stream, 9), Err(EMFILE));
    stream.write_all(&message(9, 0, &read))?;
    assert!(hear(&stream, 9).is_ok(), "in step");
    // The last writer is this one.
    drop(writer);
    assert_eq!(reader.read(&mut [0])?, 0);
    drop(stream);
    assert_eq!(serving.join().map_err(|_| "panicked")??, Ended::Client);
    Ok(())
}

#[test]
fn a_size_that_none_has_is_answered_and_ends_the_connection() -> Outcome {
    let bench = Bench::new()?;
    for size in [0_u32, 15, (1 << 20) + 4097, u32::MAX] {
        let serving = bench.serve();
        let mut stream = UnixStream::connect(bench.path())?;
        let mut bytes = message(1, 0, &[]);
        bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        stream.write_all(&bytes)?;
        assert_eq!(hear(&stream, 1), Err(EMSGSIZE));
        assert_eq!(stream.read(&mut [0])?, 0, "closed");
        let ended = serving.join().map_err(|_| "panicked")?;
        let size_of = |error: &ServeError| match error {
            ServeError::Protocol(ProtocolError::Size { size }) => Some(*size),
            _ => None,
        };
        assert_eq!(
            ended.as_ref().err().and_then(size_of),
            Some(size),
            "{ended:?}"
        );
    }
    // A reply is not replied to.
    let serving = bench.serve();
    let mut stream = UnixStream::connect(bench.path())?;
    stream.write_all(&message(1, 1, &[]))?;
    assert_eq!(stream.read(&mut [0])?, 0, "closed");
    let ended = serving.join().map_err(|_| "panicked")?;
    let told = ended
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(told.contains("type 0, was expected"), "{told}");
    bench.with(|client| {
        assert_eq!(super::read(client, 7, 0)?, [0xf4, 0x1a]);
        Ok(())
    })
}
