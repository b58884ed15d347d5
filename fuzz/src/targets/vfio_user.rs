//! vfio-user messages with descriptors, in any order, while requests run and writes are logged.

mod client;
mod guest;
mod hostile;
#[cfg(test)]
mod tests;
mod wire;

use super::request;
use crate::Plant;
use crate::input::Input;
use crate::oracle::{DescriptorWatch, MemoryWatch, PATIENCE};
use crate::rig::{self, PAGE, PAGES, READ_ONLY, Rings, WRITABLE, feature, reg, status};
use client::{Client, Heard};
use device::function::{FunctionConfig, PciFunction};
use device::serve::vfio_user::ServedFunction;
use guest::Guest;
use hostile::copies;
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};
use wire::{CONNECT, MSIX, Message, command, numbers, state, word};

const SIZE: u16 = 16;
/// Where maps have guest memory a second time.
const ALIAS: u64 = 1 << 20;
/// Bytes of IOVA that whole reports are about: both places of guest memory.
const REPORTED: u64 = 2 * ALIAS;
/// How often is looked at most whether a request is used.
const LOOKS: u32 = 100;
/// Messages in which a device's state is read.
const PIECES: usize = 64;

const _: () = assert!(PAGES * PAGE <= ALIAS);

/// Files that may go along with a message.
#[derive(Debug)]
pub struct Files {
    guest: File,
    /// Memory that is nobody's.
    other: File,
    event: OwnedFd,
    /// Neither memory nor an eventfd.
    pipe: OwnedFd,
}

/// Runs the target.
pub fn run(data: &[u8], plant: Option<Plant>) {
    let mut input = Input::new(data);
    let watch = MemoryWatch::begin();
    let guest = Guest::new();
    let config = FunctionConfig {
        features: FunctionConfig::SUPPORTED,
        ..FunctionConfig::default()
    };
    let function = PciFunction::new(config, rig::block(&guest.memory, plant));
    let (pipe, writer) = std::io::pipe().expect("a pipe");
    let files = Files {
        guest: guest.memory.file().try_clone().expect("a copy"),
        other: tempfile::tempfile().expect("a file"),
        event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd"),
        pipe: pipe.into(),
    };
    drop(writer);
    files.other.set_len(PAGE * PAGES).expect("its size");
    let mut driver = Driver {
        open: DescriptorWatch::begin(),
        client: Client::new(ServedFunction::new(function), plant),
        files: &files,
        guest,
        available: 0,
        looks: LOOKS,
        saved: Vec::new(),
    };
    if input.flag() {
        driver.client.greet();
        driver.set_up();
        driver.log();
    }
    while !input.is_empty() {
        driver.step(&mut input);
    }
    driver.finish();
    watch.end();
}

/// A client, and the driver in its guest.
struct Driver<'a> {
    client: Client,
    files: &'a Files,
    open: DescriptorWatch,
    guest: Guest,
    available: u16,
    looks: u32,
    /// The device's state as it was read last.
    saved: Vec<u8>,
}

impl Driver<'_> {
    /// Sends a message, and heeds what follows from it.
    fn send(&mut self, message: Message) -> Heard {
        let before = self.guest.before(&message);
        let copy = Message {
            body: message.body.clone(),
            fds: Vec::new(),
            ..message
        };
        let heard = self.client.send(message);
        self.guest.heed(&copy, &heard, before);
        heard
    }

    /// What nobody may refuse.
    fn expect(&mut self, message: Message) -> Vec<u8> {
        let number = message.command;
        match self.send(message) {
            Heard::Done(payload) => payload,
            heard => panic!("oracle soundness: command {number} is sound, and came to {heard:?}"),
        }
    }

    fn feature(&mut self, flags: u32, data: &[u8]) -> Vec<u8> {
        self.expect(Message::new(command::FEATURE, wire::asked(flags, data)))
    }

    fn step(&mut self, input: &mut Input<'_>) {
        if self.client.over {
            self.next_session();
            self.client.greet();
        }
        match input.below(16) {
            0..=4 => self.offer(input),
            5 => self.report(),
            6 if self.client.agreed => self.move_out_and_in(),
            7 if self.client.agreed => self.set_up(),
            8 if input.once_in(4) => {
                self.next_session();
                if !input.once_in(4) {
                    self.client.greet();
                }
            }
            9 if self.client.agreed => self.log(),
            _ => {
                let message = hostile::message(input, self.files, &self.saved);
                let reads = message.command == command::MIG_DATA_READ;
                if let Heard::Done(payload) = self.send(message)
                    && reads
                {
                    self.saved = payload[8..].to_vec();
                }
            }
        }
    }

    /// A request in the ring, well or badly, and the doorbell.
    fn offer(&mut self, input: &mut Input<'_>) {
        let rings = Rings::of_queue(0, SIZE);
        let mut pieces = if input.once_in(6) {
            request::stray(input)
        } else {
            request::request(input, &mut self.guest, self.available)
        };
        pieces.truncate(4);
        let first = (self.available % 4) * 4;
        self.available = request::offer(&mut self.guest, rings, first, self.available, &pieces);
        if self.client.agreed {
            self.client.write(reg::DOORBELLS, &[0, 0]);
        }
        // Without it, how much is done before the next step would be chance. Demands nothing, and
        // loses its patience with a device that uses nothing.
        for _ in 0..self.looks {
            if self.guest.memory.get16(rings.device + 2) == self.available {
                self.looks = LOOKS;
                return;
            }
            thread::sleep(Duration::from_micros(20));
        }
        self.looks = self.looks.div_ceil(4);
    }

    /// `oracle tracking`.
    fn report(&mut self) {
        if self.client.agreed && self.guest.is_logged() {
            let data = numbers(&[(0, 8), (REPORTED, 8), (PAGE, 8)]);
            self.feature(wire::feature::GET | wire::feature::LOG_REPORT, &data);
        }
    }

    /// Starts logging anew.
    fn log(&mut self) {
        self.feature(wire::feature::SET | wire::feature::LOG_STOP, &[]);
        let range = [(PAGE, 8), (1, 4), (0, 4), (0, 8), (REPORTED, 8)];
        let data = numbers(&range);
        self.feature(wire::feature::SET | wire::feature::LOG_START, &data);
    }

    fn state(&mut self) -> u32 {
        let answer = self.feature(wire::feature::GET | wire::feature::STATE, &[]);
        word(&answer, 8)
    }

    fn enter(&mut self, state: u32) {
        let data = numbers(&[(state.into(), 4), (u32::MAX.into(), 4)]);
        self.feature(wire::feature::SET | wire::feature::STATE, &data);
    }

    /// `oracle soundness`: a device that runs is stopped, read, and goes on with what was read.
    fn move_out_and_in(&mut self) {
        if self.state() != state::RUNNING {
            return;
        }
        self.enter(state::STOP_COPY);
        let mut pieces = Vec::new();
        loop {
            let body = numbers(&[(8 + 4096, 4), (4096, 4)]);
            let payload = self.expect(Message::new(command::MIG_DATA_READ, body));
            let piece = payload[8..].to_vec();
            if piece.is_empty() {
                break;
            }
            pieces.push(piece);
            assert!(
                pieces.len() <= PIECES,
                "oracle steps: a state of more than {PIECES} pieces"
            );
        }
        self.enter(state::RESUMING);
        for piece in &pieces {
            let size = u64::try_from(piece.len()).unwrap_or(0);
            let mut body = numbers(&[(8 + size, 4), (size, 4)]);
            body.extend_from_slice(piece);
            self.expect(Message::new(command::MIG_DATA_WRITE, body));
        }
        self.saved = pieces.concat();
        self.enter(state::RUNNING);
    }

    /// From whatever there is to a running ring, with what is to be granted, and nothing else.
    ///
    /// # Panics
    ///
    /// `oracle reset`, `oracle soundness`.
    fn set_up(&mut self) {
        self.expect(Message::new(command::RESET, Vec::new()));
        let all = numbers(&[(24, 4), (2, 4), (0, 8), (0, 8)]);
        self.expect(Message::new(command::DMA_UNMAP, all));
        for (pages, flags) in [(WRITABLE, 3), (READ_ONLY, 1)] {
            let (at, size) = (pages.start * PAGE, (pages.end - pages.start) * PAGE);
            let body = numbers(&[(32, 4), (flags, 4), (at, 8), (at, 8), (size, 8)]);
            let map = Message {
                guest: true,
                ..Message::new(command::DMA_MAP, body)
            };
            self.expect(map.with(copies(&self.files.guest, 1)));
        }
        let fields = [20, CONNECT, MSIX, 0, 1].map(|field| (u64::from(field), 4));
        let irqs = Message::new(command::SET_IRQS, numbers(&fields));
        self.expect(irqs.with(copies(&self.files.event, 1)));
        self.available = 0;
        self.looks = LOOKS;
        self.guest.memory.put(0, &[0; 0x1000]);
        self.bring_up();
    }

    /// What a driver does in its guest.
    fn bring_up(&mut self) {
        let client = &mut self.client;
        let features = feature::VERSION_1
            | feature::INDIRECT
            | feature::BLK_FLUSH
            | feature::SUSPEND
            | feature::QUEUE_STATE
            | feature::RING_RESET;
        let rings = Rings::of_queue(0, SIZE);
        assert_eq!(client.status(), 0, "oracle reset: the status after a reset");
        let features = features.to_le_bytes();
        client.write(reg::STATUS, &[status::ACKNOWLEDGE]);
        client.write(reg::STATUS, &[status::ACKNOWLEDGE | status::DRIVER]);
        client.write(reg::DRIVER_FEATURE_SELECT, &[0; 4]);
        client.write(reg::DRIVER_FEATURE, &features[..4]);
        client.write(reg::DRIVER_FEATURE_SELECT, &[1, 0, 0, 0]);
        client.write(reg::DRIVER_FEATURE, &features[4..]);
        client.write(reg::STATUS, &[0x0b]);
        client.write(reg::QUEUE_SELECT, &[0, 0]);
        client.write(reg::QUEUE_SIZE, &SIZE.to_le_bytes());
        client.write(reg::QUEUE_VECTOR, &[0, 0]);
        for (at, address) in [
            (reg::QUEUE_DESC, rings.desc),
            (reg::QUEUE_DRIVER, rings.driver),
            (reg::QUEUE_DEVICE, rings.device),
        ] {
            let address = address.to_le_bytes();
            client.write(at, &address[..4]);
            client.write(at + 4, &address[4..]);
        }
        client.write(reg::QUEUE_ENABLE, &[1, 0]);
        client.write(reg::STATUS, &[0x0f]);
        assert_eq!(
            client.status(),
            0x0f,
            "oracle reset: the status under a sound driver"
        );
    }

    /// The client goes, and the next one comes.
    ///
    /// # Panics
    ///
    /// `oracle descriptors`, `oracle grant`.
    fn next_session(&mut self) {
        let kept = self.client.next();
        self.guest.end();
        self.open.judge();
        drop(kept);
    }

    /// A sound driver is served after a reset in the same session, and in the next one, and what it
    /// has written is logged.
    fn finish(&mut self) {
        if self.client.over {
            self.next_session();
        }
        self.report();
        if !self.client.agreed {
            self.client.greet();
        }
        self.sound();
        self.next_session();
        self.client.greet();
        self.sound();
        self.next_session();
    }

    /// `oracle reset`.
    fn sound(&mut self) {
        self.set_up();
        self.log();
        let answer = request::plain(&mut self.guest, Rings::of_queue(0, SIZE));
        self.client.write(reg::DOORBELLS, &[0, 0]);
        let began = Instant::now();
        while self.guest.memory.get::<1>(answer) == [0xff] {
            assert!(
                began.elapsed() < PATIENCE,
                "oracle reset: a sound driver is not served, status {:#04x}",
                self.client.status()
            );
            thread::yield_now();
        }
        assert_eq!(
            self.guest.memory.get::<1>(answer),
            [0],
            "oracle reset: the answer to a sound driver"
        );
        self.report();
    }
}
