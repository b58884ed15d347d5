//! From bytes to messages that are nearly right.

use super::wire::{
    self, CONFIG, CONNECT, MSIX, Message, NO_REPLY, ROOM, access, command, feature, numbers, state,
};
use super::{ALIAS, Files, REPORTED};
use crate::input::Input;
use crate::rig::{PAGE, PAGES};
use crate::targets::{pci, request};
use std::os::fd::{AsFd, OwnedFd};

/// Commands as often as they get somewhere, and what is none.
const COMMANDS: [u16; 32] = [
    command::DMA_MAP,
    command::DMA_UNMAP,
    command::GET_INFO,
    command::GET_REGION_INFO,
    command::GET_IRQ_INFO,
    command::SET_IRQS,
    command::REGION_READ,
    command::REGION_WRITE,
    command::REGION_WRITE,
    command::REGION_WRITE,
    command::REGION_WRITE,
    command::RESET,
    command::FEATURE,
    command::FEATURE,
    command::FEATURE,
    command::FEATURE,
    command::FEATURE,
    command::MIG_DATA_READ,
    command::MIG_DATA_READ,
    command::MIG_DATA_WRITE,
    command::MIG_DATA_WRITE,
    command::VERSION,
    command::DMA_MAP,
    command::DMA_MAP,
    command::DMA_UNMAP,
    0,
    6,
    11,
    12,
    14,
    15,
    u16::MAX,
];

/// Text of a VERSION message.
const CAPABILITIES: &[u8] = b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":65536,\
    \"max_dma_maps\":9,\"pgsizes\":4096,\"migration\":{\"pgsize\":4096}}}\0";

/// A message; `saved` is the device's state as it was read last.
pub fn message(input: &mut Input<'_>, files: &Files, saved: &[u8]) -> Message {
    let command = input.pick(&COMMANDS);
    let body = body(command, input, saved);
    let mut message = Message::new(command, body);
    match command {
        command::DMA_MAP => {
            message.guest = !input.once_in(4);
            let file = if message.guest {
                &files.guest
            } else {
                &files.other
            };
            message.fds = copies(file, 1);
        }
        command::SET_IRQS if wire::word(&message.body, 4) & 4 != 0 => {
            let count = wire::word(&message.body, 16).min(4);
            message.fds = copies(&files.event, usize::try_from(count).unwrap_or(0));
        }
        _ => {}
    }
    twist(&mut message, input, files);
    message
}

/// At most one thing is wrong.
fn twist(message: &mut Message, input: &mut Input<'_>, files: &Files) {
    match input.below(20) {
        11 | 12 => message.flags = NO_REPLY,
        13 => message.flags = input.u32(),
        14 => {
            let at = usize::from(input.u8()) % message.body.len().max(1);
            let value = input.u8();
            if let Some(byte) = message.body.get_mut(at) {
                *byte ^= value;
            }
        }
        15 => {
            let argsz = input
                .pick(&[0, 8, 15, 16, 31, 1 << 20, u32::MAX])
                .to_ne_bytes();
            if let Some(room) = message.body.first_chunk_mut() {
                *room = argsz;
            }
        }
        16 => {
            let len = input.pick(&[
                0,
                1,
                7,
                8,
                15,
                16,
                31,
                33,
                255,
                4096,
                1 << 20,
                (1 << 20) + 4096,
            ]);
            message.body.resize(len, 0);
        }
        17 => {
            let size = input.pick(&[0, 1, 15, 16, 17, 32, 1 << 20, u32::MAX]);
            message.lie = Some(size ^ u32::from(input.u8()));
        }
        18 | 19 => {
            let count = input.pick(&[0, 1, 1, 2, 3, 16, 17]);
            message.guest = false;
            message.fds = match input.below(3) {
                0 => copies(&files.event, count),
                1 => copies(&files.other, count),
                _ => copies(&files.pipe, count),
            };
        }
        _ => {}
    }
}

pub fn copies(fd: &impl AsFd, count: usize) -> Vec<OwnedFd> {
    let copy = |_| fd.as_fd().try_clone_to_owned().expect("a copy");
    (0..count).map(copy).collect()
}

/// An address for a map: where a page of guest memory is, a second place of it, or any.
fn place(input: &mut Input<'_>) -> u64 {
    let page = PAGE * (u64::from(input.u8()) % PAGES);
    match input.below(8) {
        0..=4 => page,
        5 | 6 => ALIAS + page,
        _ => input.u64(),
    }
}

fn size(input: &mut Input<'_>) -> u64 {
    match input.below(8) {
        0..=3 => PAGE,
        4 => PAGE * u64::from(input.u8()),
        5 => PAGE * PAGES,
        6 => u64::from(input.u16()),
        _ => u64::MAX - u64::from(input.u16()),
    }
}

/// A part of a region: offset and bytes.
fn part(region: u32, input: &mut Input<'_>) -> (u64, usize) {
    let near = u64::from(input.u8() % 4);
    let offset = match (region, near) {
        (_, 3) => pci::value(input),
        (CONFIG, _) => u64::from(input.pick(pci::CONFIG)) + near,
        _ => input.pick(pci::BAR0) + near,
    };
    (offset, input.pick(&[4, 2, 1, 4, 8, 3, 0, 64, 4096]))
}

fn body(command: u16, input: &mut Input<'_>, saved: &[u8]) -> Vec<u8> {
    match command {
        command::VERSION => {
            let mut body = numbers(&[(0, 2), (u64::from(input.u8() % 3), 2)]);
            body.extend_from_slice(if input.flag() { CAPABILITIES } else { b"" });
            body
        }
        command::DMA_MAP => {
            let iova = place(input);
            let offset = match input.below(4) {
                3 => u64::from(input.u16()),
                2 => PAGE * u64::from(input.u8() % 64),
                _ => iova % ALIAS,
            };
            let flags = input.pick(&[3, 3, 3, 1, 2, 0, 4]);
            let size = size(input);
            numbers(&[(32, 4), (flags, 4), (offset, 8), (iova, 8), (size, 8)])
        }
        command::DMA_UNMAP => {
            let flags = input.pick(&[0, 0, 0, 0, 0, 1, 2, 3]);
            let (iova, size) = match flags {
                2 => (0, 0),
                _ => (place(input), size(input)),
            };
            numbers(&[(24, 4), (flags, 4), (iova, 8), (size, 8)])
        }
        command::GET_INFO => numbers(&[(16, 4), (0, 8), (0, 4)]),
        command::GET_REGION_INFO => numbers(&[
            (32, 4),
            (0, 4),
            (u64::from(input.u8() % 12), 4),
            (0, 8),
            (0, 8),
            (0, 4),
        ]),
        command::GET_IRQ_INFO => {
            numbers(&[(16, 4), (0, 4), (u64::from(input.u8() % 7), 4), (0, 4)])
        }
        command::SET_IRQS => {
            let flags = input.pick(&[CONNECT, CONNECT, 0x21, 0x22, 0x24, 0x09, 0x11, 0x3f]);
            let kind = input.pick(&[MSIX, MSIX, MSIX, 0, 9]);
            let start = input.pick(&[0, 0, 1, 2, u32::MAX]);
            let count = input.pick(&[1, 0, 2, 3, 64, u32::MAX]);
            let fields = [20, flags, kind, start, count].map(|field| (field.into(), 4));
            let mut body = numbers(&fields);
            if flags & 2 != 0 {
                let count = usize::try_from(count.min(64)).unwrap_or(0);
                let bools = input.bytes(count);
                body.extend_from_slice(bools);
                body.resize(20 + count, 0);
            }
            body
        }
        command::REGION_READ => {
            let region = input.pick(&[0, 0, CONFIG, 1, 2, 6, 8, 9]);
            let (offset, mut count) = part(region, input);
            if input.once_in(8) {
                count = usize::try_from(request::length(input)).unwrap_or(0);
            }
            access(region, offset, count)
        }
        command::REGION_WRITE => {
            let region = input.pick(&[0, 0, 0, CONFIG, 1, 2, 6, 9]);
            let (offset, count) = part(region, input);
            let mut data = pci::value(input).to_le_bytes().to_vec();
            data.resize(count, 0);
            let mut body = access(region, offset, count);
            body.extend(data);
            body
        }
        command::FEATURE => feature(input),
        command::MIG_DATA_READ => {
            let size = input.pick(&[1 << 20, 4096, 7, 0, u32::MAX]);
            numbers(&[(u64::from(size) + 8, 4), (size.into(), 4)])
        }
        command::MIG_DATA_WRITE => {
            let mut data = match input.below(4) {
                0 => input.bytes(16).to_vec(),
                1 => vec![0x7b; 1 << 17],
                _ => saved.to_vec(),
            };
            if input.flag() {
                let at = usize::from(input.u16()) % data.len().max(1);
                let value = input.u8();
                if let Some(byte) = data.get_mut(at) {
                    *byte ^= value;
                }
            }
            let size = u64::try_from(data.len()).unwrap_or(0);
            let mut body = numbers(&[(size + 8, 4), (size, 4)]);
            body.extend(data);
            body
        }
        command::RESET => Vec::new(),
        _ => input.bytes(16).to_vec(),
    }
}

/// DEVICE_FEATURE's body.
fn feature(input: &mut Input<'_>) -> Vec<u8> {
    use feature::{GET, LOG_REPORT, LOG_START, LOG_STOP, MIGRATION, SET, STATE};
    let (flags, data) = match input.below(10) {
        0 => (GET | MIGRATION, Vec::new()),
        1 => (GET | STATE, Vec::new()),
        2..=4 => {
            let states = [
                state::STOP,
                state::RUNNING,
                state::STOP_COPY,
                state::RESUMING,
                0,
                5,
            ];
            let state = input.pick(&states);
            (
                SET | STATE,
                numbers(&[(state.into(), 4), (u32::MAX.into(), 4)]),
            )
        }
        5 | 6 => (SET | LOG_START, start(input)),
        7 => (SET | LOG_STOP, Vec::new()),
        8 => {
            let unit = input.pick(&[PAGE, 2 * PAGE, 16 * PAGE, 1 << 30, 1, 0]);
            let (iova, length) = match input.below(4) {
                0 => (0, REPORTED),
                1 => (PAGE * (u64::from(input.u8()) % PAGES), PAGE),
                2 => (place(input), size(input)),
                _ => (input.u64(), input.u64()),
            };
            (
                GET | LOG_REPORT,
                numbers(&[(iova, 8), (length, 8), (unit, 8)]),
            )
        }
        _ => {
            let ways = input.pick(&[feature::PROBE, feature::PROBE | GET, GET, SET, 0, 1 << 19]);
            (ways | u32::from(input.u8() % 12), input.bytes(8).to_vec())
        }
    };
    let room = input.pick(&[ROOM, ROOM, ROOM, 8, 16]);
    let mut body = numbers(&[(room.into(), 4), (flags.into(), 4)]);
    body.extend(data);
    body
}

/// Data of LOG_START.
fn start(input: &mut Input<'_>) -> Vec<u8> {
    let page_size = input.pick(&[PAGE, PAGE, 2 * PAGE, 1 << 20, 1 << 40, 1, 0, 4097]);
    let ranges: Vec<(u64, u64)> = match input.below(5) {
        0 => Vec::new(),
        1 | 2 => vec![(0, REPORTED)],
        3 => (0..input.below(4))
            .map(|_| (place(input), size(input)))
            .collect(),
        _ => vec![(input.u64(), input.u64())],
    };
    let count = u64::try_from(ranges.len()).unwrap_or(0);
    let mut data = numbers(&[(page_size, 8), (count, 4), (0, 4)]);
    for (iova, length) in ranges {
        data.extend(numbers(&[(iova, 8), (length, 8)]));
    }
    data
}
