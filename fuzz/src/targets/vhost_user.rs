//! vhost-user messages with descriptors, in any order, while requests run.

#[cfg(test)]
mod tests;

use super::frontend::{Frontend, Heard, USER, ask};
use super::request;
use crate::Plant;
use crate::input::Input;
use crate::oracle::{DescriptorWatch, MemoryWatch, PATIENCE};
use crate::rig::{self, GuestMemory, PAGE, PAGES, Rings, WRITABLE};
use device::serve::vhost_user::VhostUserServer;
use device::tracker::Marking;
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

const SIZE: u16 = 16;
/// VERSION_1, PROTOCOL_FEATURES, INDIRECT.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28;
const LOG_ALL: u64 = 1 << 26;
/// Messages that are answered without being asked to.
const ANSWERED: [u32; 6] = [
    ask::GET_FEATURES,
    ask::GET_PROTOCOL_FEATURES,
    ask::GET_QUEUE_NUM,
    ask::GET_VRING_BASE,
    ask::GET_CONFIG,
    ask::GET_MAX_MEM_SLOTS,
];
/// MQ, LOG_SHMFD, REPLY_ACK, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 15;

/// Files that may go along with a message.
struct Files {
    memory: File,
    log: File,
    /// Memory that is nobody's.
    other: File,
    kick: OwnedFd,
    call: OwnedFd,
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

/// Runs the target.
pub fn run(data: &[u8], plant: Option<Plant>) {
    let mut input = Input::new(data);
    let watch = MemoryWatch::begin();
    let mut memory = GuestMemory::new();
    let device = rig::block(&memory, plant);
    let server = VhostUserServer::new(device, Marking::Bit).expect("a server");
    let server = Arc::new(server);
    let files = Files {
        memory: memory.file().try_clone().expect("cloned"),
        log: memory.log().try_clone().expect("cloned"),
        other: tempfile::tempfile().expect("a file"),
        kick: event(),
        call: event(),
    };
    files.other.set_len(PAGE * PAGES).expect("its size");
    let open = DescriptorWatch::begin();
    session(&server, |frontend| {
        let mut exact = input.flag();
        if exact {
            set_up(frontend, &files, true);
            memory.watch_log();
        } else {
            greet(frontend);
        }
        let mut driver = Driver {
            frontend,
            files: &files,
            available: 0,
            acknowledged: true,
            plant,
        };
        while !input.is_empty() {
            let step = driver.step(&mut memory, &mut input);
            exact &= step != Step::Changed;
            if step == Step::Gone {
                break;
            }
        }
        if !exact {
            memory.forget_log();
        }
    });
    memory.judge_grants();
    memory.judge_marks();
    memory.forget_log();
    let kept = plant == Some(Plant::Descriptors) && !input_is_short(data);
    let kept: Vec<OwnedFd> = (0..u8::from(kept)).map(|_| event()).collect();
    open.judge();
    drop(kept);
    sound(&server, &files, &mut memory);
    watch.end();
}

/// What the plant waits for: a session of some length.
fn input_is_short(data: &[u8]) -> bool {
    data.len() < 48
}

/// Serves a frontend, which does its part, and sees that both come to an end.
fn session(server: &Arc<VhostUserServer>, part: impl FnOnce(&Frontend)) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let (ended, end) = channel();
    let serving = Arc::clone(server);
    let thread = thread::spawn(move || {
        // A frontend that breaks the protocol is no fault of the server's.
        let _served = serving.serve(theirs);
        let _told = ended.send(());
    });
    let frontend = Frontend::new(ours);
    part(&frontend);
    frontend.close();
    let over = end.recv_timeout(PATIENCE + Duration::from_secs(12)).is_ok();
    assert!(
        over,
        "oracle reset: a session whose frontend is gone does not end"
    );
    let joined = thread.join();
    assert!(joined.is_ok(), "oracle answers: the session panicked");
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn pair(a: u32, b: u32) -> Vec<u8> {
    [a, b].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// One region: all that is granted.
fn table() -> Vec<u8> {
    let mut body = pair(1, 0);
    let size = WRITABLE.end * PAGE;
    body.extend(words(&[0, size, USER, 0]));
    body
}

fn addresses(logged: bool) -> Vec<u8> {
    let rings = Rings::of_queue(0, SIZE);
    let mut body = pair(0, u32::from(logged));
    let user = |at| USER + at;
    body.extend(words(&[
        user(rings.desc),
        user(rings.device),
        user(rings.driver),
        rings.device,
    ]));
    body
}

/// Up to where everything is acknowledged.
fn greet(frontend: &Frontend) {
    frontend.send(ask::SET_OWNER, 0, 0, &[], &[]);
    frontend.ask(ask::GET_FEATURES, &[], &[], false);
    frontend.ask(ask::GET_PROTOCOL_FEATURES, &[], &[], false);
    frontend.send(ask::SET_PROTOCOL_FEATURES, 0, 8, &words(&[PROTOCOL]), &[]);
}

/// Everything up to a running ring, soundly.
fn set_up(frontend: &Frontend, files: &Files, logged: bool) {
    let none: &[BorrowedFd<'_>] = &[];
    greet(frontend);
    let send = |request, body: &[u8], fds: &[BorrowedFd<'_>]| {
        frontend.ask(request, body, fds, true);
    };
    if logged {
        let body = words(&[PAGES / 8, 0]);
        send(ask::SET_LOG_BASE, &body, &[files.log.as_fd()]);
    }
    let log = if logged { LOG_ALL } else { 0 };
    send(ask::SET_FEATURES, &words(&[FEATURES | log]), none);
    send(ask::SET_MEM_TABLE, &table(), &[files.memory.as_fd()]);
    send(ask::SET_VRING_NUM, &pair(0, SIZE.into()), none);
    send(ask::SET_VRING_BASE, &pair(0, 0), none);
    send(ask::SET_VRING_ADDR, &addresses(logged), none);
    send(ask::SET_VRING_CALL, &words(&[0]), &[files.call.as_fd()]);
    send(ask::SET_VRING_KICK, &words(&[0]), &[files.kick.as_fd()]);
    send(ask::SET_VRING_ENABLE, &pair(0, 1), none);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing that tracking depends on.
    Plain,
    /// The log, memory or features may be others now.
    Changed,
    /// The backend hung up.
    Gone,
}

/// A frontend in the middle of a session.
struct Driver<'a> {
    frontend: &'a Frontend,
    files: &'a Files,
    available: u16,
    /// REPLY_ACK is in force.
    acknowledged: bool,
    plant: Option<Plant>,
}

impl Driver<'_> {
    fn step(&mut self, memory: &mut GuestMemory, input: &mut Input<'_>) -> Step {
        let files = self.files;
        if input.below(3) == 0 {
            self.offer(memory, input);
            let _kicked = rustix::io::write(&files.kick, &1_u64.to_ne_bytes());
            return Step::Plain;
        }
        let request = u32::from(input.u8()) % 44;
        let body = body(request, input);
        // Memory that is not its own grants nothing of it: hostile tables have the other file.
        let sound = request == ask::SET_MEM_TABLE && body == table();
        let first = match input.below(6) {
            0 => files.log.as_fd(),
            1 => files.kick.as_fd(),
            2 if sound => files.memory.as_fd(),
            3 => files.call.as_fd(),
            _ => files.other.as_fd(),
        };
        let count = match request {
            ask::SET_MEM_TABLE | ask::SET_LOG_BASE | 12 | 13 | 14 | 32 | 37 => {
                input.pick(&[1, 1, 1, 0, 2])
            }
            _ => input.pick(&[0, 0, 0, 1, 8]),
        };
        let fds = vec![first; count];
        let length = u32::try_from(body.len()).unwrap_or(0);
        if input.once_in(12) {
            // Its header lies about its body: what follows is read as something else, or never comes.
            let length = length ^ u32::from(input.u8()) << (input.u8() % 25);
            let listens = self
                .frontend
                .send(request, input.u32() & 0xe, length, &body, &fds);
            return if listens { Step::Gone } else { Step::Changed };
        }
        let answered = self.acknowledged || ANSWERED.contains(&request);
        if !answered {
            let listens = self.frontend.send(request, 0, length, &body, &fds);
            return if listens { Step::Changed } else { Step::Gone };
        }
        if request == ask::SET_PROTOCOL_FEATURES {
            self.acknowledged = body.first().is_some_and(|byte| byte & 8 != 0);
            let listens = self.frontend.send(request, 0, length, &body, &fds);
            return if listens { Step::Changed } else { Step::Gone };
        }
        let heard = self.frontend.ask(request, &body, &fds, true);
        let heard = match self.plant {
            Some(Plant::NoAnswer) if request == ask::GET_QUEUE_NUM => Heard::Nothing,
            _ => heard,
        };
        match heard {
            Heard::Gone => Step::Gone,
            Heard::Nothing => panic!("oracle answers: nothing comes to message {request}"),
            Heard::Answer(_) => match request {
                ask::GET_FEATURES | ask::GET_PROTOCOL_FEATURES | ask::GET_QUEUE_NUM => Step::Plain,
                ask::GET_CONFIG | ask::GET_MAX_MEM_SLOTS | ask::GET_VRING_BASE => Step::Plain,
                _ => Step::Changed,
            },
        }
    }

    /// A request in the ring, well or badly.
    fn offer(&mut self, memory: &mut GuestMemory, input: &mut Input<'_>) {
        let rings = Rings::of_queue(0, SIZE);
        let mut pieces = if input.once_in(6) {
            request::stray(input)
        } else {
            request::request(input, memory, self.available)
        };
        pieces.truncate(4);
        let first = (self.available * 4) % SIZE;
        self.available = request::offer(memory, rings, first, self.available, &pieces);
    }
}

/// The body of a message, mostly as it should be.
fn body(request: u32, input: &mut Input<'_>) -> Vec<u8> {
    let mut body = match request {
        ask::SET_FEATURES => words(&[FEATURES | u64::from(input.u8()) << 24]),
        ask::SET_PROTOCOL_FEATURES => words(&[PROTOCOL ^ u64::from(input.u8())]),
        ask::SET_MEM_TABLE => table(),
        ask::SET_LOG_BASE => words(&[PAGES / 8, u64::from(input.u8()) * 8]),
        ask::SET_VRING_ADDR => addresses(input.flag()),
        ask::SET_VRING_NUM | ask::SET_VRING_BASE | ask::GET_VRING_BASE | ask::SET_VRING_ENABLE => {
            pair(u32::from(input.u8() % 3), u32::from(input.u8() % 20))
        }
        ask::SET_VRING_KICK | ask::SET_VRING_CALL | 14 => words(&[u64::from(input.u8() % 3)]),
        ask::GET_CONFIG => {
            let mut body = pair(u32::from(input.u8()), 8);
            body.extend([0; 12]);
            body
        }
        ask::GET_INFLIGHT_FD | ask::SET_INFLIGHT_FD => {
            let mut body = words(&[u64::from(input.u16()), u64::from(input.u8())]);
            body.extend([1, 0, input.u8(), 0]);
            body
        }
        ask::ADD_MEM_REG | ask::REM_MEM_REG => {
            let at = PAGE * u64::from(input.u8());
            words(&[0, at, PAGE * u64::from(input.u8()), USER + at, PAGE * 2])
        }
        _ => Vec::new(),
    };
    for _ in 0..input.below(3) {
        let (at, value) = (usize::from(input.u8()), input.u8());
        if let Some(byte) = body.get_mut(at) {
            *byte ^= value;
        }
    }
    body
}

/// The next frontend is served.
fn sound(server: &Arc<VhostUserServer>, files: &Files, memory: &mut GuestMemory) {
    memory.put(0, &[0; 0x1000]);
    let answer = request::plain(memory, Rings::of_queue(0, SIZE));
    session(server, |frontend| {
        set_up(frontend, files, false);
        let _kicked = rustix::io::write(&files.kick, &1_u64.to_ne_bytes());
        let began = Instant::now();
        while memory.get::<1>(answer) == [0xff] {
            assert!(
                began.elapsed() < PATIENCE,
                "oracle reset: the next frontend is not served"
            );
            thread::yield_now();
        }
        assert_eq!(
            memory.get::<1>(answer),
            [0],
            "oracle reset: the answer to the next frontend"
        );
    });
}
