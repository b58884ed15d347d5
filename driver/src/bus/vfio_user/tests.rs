//! The client against servers that answer as they should not. Messages are typed again from the
//! vfio-user specification.

use super::*;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};
use tempfile::TempDir;

/// An answer: command, flags, error, payload.
type Answer = (u16, u32, u32, Vec<u8>);

const REPLY: u32 = 1;
const ERROR: u32 = 0x21;

/// Answers the messages that come, one after the other, then waits for the client to go.
fn serve(answers: Vec<Answer>) -> (TempDir, JoinHandle<Vec<u16>>) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut commands = Vec::new();
        let mut answers = answers.into_iter();
        let mut header = [0; 16];
        while stream.read_exact(&mut header).is_ok() {
            let size = u32::from_le_bytes(header[4..8].try_into().unwrap());
            let mut body = vec![0; size as usize - 16];
            stream.read_exact(&mut body).unwrap();
            commands.push(u16::from_le_bytes([header[2], header[3]]));
            if header[8] & 0x10 != 0 {
                continue;
            }
            let Some((command, flags, error, payload)) = answers.next() else {
                continue;
            };
            let size = 16 + u32::try_from(payload.len()).unwrap();
            header[2..4].copy_from_slice(&command.to_le_bytes());
            header[4..8].copy_from_slice(&size.to_le_bytes());
            header[8..12].copy_from_slice(&flags.to_le_bytes());
            header[12..16].copy_from_slice(&error.to_le_bytes());
            // The client may have had enough.
            let _ = stream.write_all(&header);
            let _ = stream.write_all(&payload);
        }
        commands
    });
    (dir, serving)
}

fn region(index: u32, size: u64) -> Answer {
    let mut payload = vec![0; 32];
    payload[8..12].copy_from_slice(&index.to_le_bytes());
    payload[16..24].copy_from_slice(&size.to_le_bytes());
    (5, REPLY, 0, payload)
}

/// What a function with a BAR of 4 KiB and two vectors says to a client that connects.
fn greeting() -> Vec<Answer> {
    let mut all = vec![(1, REPLY, 0, vec![0, 0, 1, 0, b'{', b'}', 0])];
    all.push(region(0, 4096));
    all.extend((1..6).map(|index| region(index, 0)));
    all.push(region(7, 4096));
    all.push((
        7,
        REPLY,
        0,
        vec![16, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0],
    ));
    all
}

fn connect(dir: &TempDir) -> Result<Arc<VfioUserBus>, BusError> {
    VfioUserBus::connect(&dir.path().join("s"))
}

#[test]
fn refusals_are_errors_and_leave_the_stream_in_step() {
    let mut answers = greeting();
    answers.push((2, ERROR, 22, vec![]));
    answers.push((8, ERROR, 0, vec![1; 100]));
    answers.push((9, ERROR, 5, vec![]));
    let mut data = vec![0; 16];
    data.extend([7, 8]);
    answers.push((9, REPLY, 0, data));
    let (dir, serving) = serve(answers);
    let bus = connect(&dir).unwrap();
    assert_eq!(
        (bus.bar_size(0), bus.bar_size(1), bus.vectors()),
        (4096, 0, 2)
    );
    let file = File::open("/dev/null").unwrap();
    let map = bus.map(0, 4096, Access::Read, file.as_fd(), 0).unwrap_err();
    assert!(map.to_string().contains("mapping memory"), "{map}");
    let irq = bus.connect_vector(1, None).unwrap_err();
    assert!(matches!(irq, BusError::Refused { .. }), "{irq}");
    let mut data = [0; 2];
    let read = bus.bar_read(0, 0, &mut data).unwrap_err();
    assert!(matches!(read, BusError::Refused { .. }), "{read}");
    bus.bar_post(0, 8, &[1, 2]).unwrap();
    bus.bar_read(0, 0, &mut data).unwrap();
    assert_eq!(data, [7, 8]);
    drop(bus);
    let commands = serving.join().unwrap();
    assert_eq!(
        commands[9..],
        [2, 8, 9, 10, 9, 8],
        "and the interrupts at the end"
    );
}

#[test]
fn nonsense_ends_the_connection_and_nothing_more() {
    let version = |major: u8, payload: &[u8]| (1, REPLY, 0, [&[major, 0, 1, 0], payload].concat());
    let nonsense: [Vec<Answer>; 7] = [
        // Another major version; no version at all; not an answer; the wrong one; too long.
        vec![version(1, b"")],
        vec![(1, REPLY, 0, vec![0])],
        vec![(1, 0, 0, vec![0; 4])],
        vec![(2, REPLY, 0, vec![0; 4])],
        vec![(1, REPLY, 0, vec![0; (1 << 20) + 4097])],
        // A region that was not asked for; a configuration space of no known size.
        vec![version(0, b"{}\0"), region(3, 4096)],
        [&greeting()[..7], &[region(7, 100)]].concat(),
    ];
    for answers in nonsense {
        let (dir, serving) = serve(answers);
        let error = connect(&dir).unwrap_err();
        assert!(matches!(error, BusError::Unreachable { .. }), "{error}");
        serving.join().unwrap();
    }
}

#[test]
fn a_broken_connection_stays_broken() {
    let mut answers = greeting();
    // Two bytes were asked for.
    answers.push((9, REPLY, 0, vec![0; 16 + 3]));
    let (dir, serving) = serve(answers);
    let bus = connect(&dir).unwrap();
    let hangup = bus.hangup().unwrap();
    for _ in 0..2 {
        let error = bus.bar_read(0, 0, &mut [0; 2]).unwrap_err();
        assert!(matches!(error, BusError::Unreachable { .. }), "{error}");
    }
    let posted = bus.bar_post(0, 0, &[0; 2]).unwrap_err();
    assert!(matches!(posted, BusError::Unreachable { .. }), "{posted}");
    let mut fds = [PollFd::new(&hangup, PollFlags::empty())];
    poll(&mut fds, None).unwrap();
    assert!(fds[0].revents().contains(PollFlags::HUP));
    drop(bus);
    serving.join().unwrap();
}
