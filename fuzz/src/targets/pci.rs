//! Accesses to configuration space and BARs in any order and width, while requests run.

use super::request;
use crate::Plant;
use crate::input::Input;
use crate::rig::{Options, PAGE, Rig, Rings, feature, reg};

/// Places in BAR 0 where something is.
pub(super) const BAR0: &[u64] = &[
    0x00, 0x04, 0x08, 0x0c, 0x10, 0x12, 0x14, 0x15, 0x16, 0x18, 0x1a, 0x1c, 0x1e, 0x20, 0x24, 0x28,
    0x2c, 0x30, 0x34, 0x38, 0x3a, 0x3c, 0x3e, 0x40, 0x42, 0x1000, 0x2000, 0x2020, 0x3000, 0x3004,
    0x3800, 0x3801, 0x3804, 0x3808, 0x380c, 0x3810, 0x3814,
];
/// Places in configuration space where something is.
pub(super) const CONFIG: &[u16] = &[
    0x04, 0x06, 0x10, 0x14, 0x30, 0x3c, 0x40, 0x42, 0x44, 0x50, 0x58, 0x5a, 0x60, 0xc0, 0xc4, 0xc8,
    0xcc, 0xd0, 0xe4, 0x100, 0x104, 0x140, 0x148, 0x150,
];

/// Runs the target.
pub fn run(data: &[u8], plant: Option<Plant>) {
    let mut input = Input::new(data);
    let mut rig = Rig::new(
        Options {
            queues: 2,
            records: true,
            ..Options::default()
        },
        plant,
    );
    if input.flag() {
        rig.negotiate(
            feature::VERSION_1
                | feature::SUSPEND
                | feature::QUEUE_STATE
                | feature::RING_RESET
                | feature::BLK_FLUSH
                | feature::INDIRECT,
        );
        for queue in 0..2 {
            rig.enable(queue, Rings::of_queue(queue, 8));
        }
        rig.write8(reg::STATUS, 0x0f);
    }
    let mut available = [0_u16; 2];
    while !input.is_empty() {
        step(&mut rig, &mut input, &mut available);
    }
    rig.memory.judge_grants();
    rig.finish();
}

/// A value that a register may hold: often a small one, or a place in memory.
pub(super) fn value(input: &mut Input<'_>) -> u64 {
    match input.below(4) {
        0 => u64::from(input.u8()),
        1 => PAGE * u64::from(input.u8()),
        2 => u64::from(input.u32()),
        _ => input.u64(),
    }
}

fn step(rig: &mut Rig, input: &mut Input<'_>, available: &mut [u16; 2]) {
    let width = input.pick(&[1, 2, 4, 4, 2, 1, 8, 3, 0, 16]);
    let mut buffer = [0; 16];
    match input.below(12) {
        0..=2 => {
            let (at, value) = (input.pick(BAR0), value(input));
            buffer[..8].copy_from_slice(&value.to_le_bytes());
            rig.write(at, &buffer[..width]);
        }
        3 => {
            let at = input.pick(BAR0) + u64::from(input.u8() % 4);
            rig.function.bar_read(0, at, &mut buffer[..width]);
        }
        4 => {
            let (bar, at, value) = (input.u8() % 7, value(input), value(input));
            buffer[..8].copy_from_slice(&value.to_le_bytes());
            rig.function.bar_write(bar, at, &buffer[..width]);
            rig.function.bar_read(bar, at, &mut buffer[..width]);
        }
        5 => {
            // The MSI-X table and its pending bits.
            let at = u64::from(input.u8()) * 4 + if input.flag() { 0x1000 } else { 0 };
            let value = input.u32();
            buffer[..4].copy_from_slice(&value.to_le_bytes());
            rig.function.bar_write(1, at, &buffer[..width]);
        }
        6 | 7 => {
            let at = input.pick(CONFIG) + u16::from(input.u8() % 4);
            let value = value(input);
            buffer[..8].copy_from_slice(&value.to_le_bytes());
            rig.function.config_write(at, &buffer[..width]);
        }
        8 => {
            let at = if input.flag() {
                input.pick(CONFIG)
            } else {
                input.u16()
            };
            rig.function.config_read(at, &mut buffer[..width]);
        }
        9 => {
            // The window of the configuration space onto the BARs: bar, offset, length, then data.
            let (bar, at, length) = (input.u8() % 4, input.pick(BAR0), input.u8() % 6);
            rig.function.config_write(0xc4, &[bar]);
            let at = u32::try_from(at).unwrap_or(0).to_le_bytes();
            rig.function.config_write(0xc8, &at);
            rig.function.config_write(0xcc, &[length, 0, 0, 0]);
            let value = value(input).to_le_bytes();
            rig.function.config_write(0xd0, &value[..4]);
            rig.function.config_read(0xd0, &mut buffer[..4]);
            // It may have been a doorbell or a queue, with all that follows.
            rig.note();
        }
        _ => offer(rig, input, available, 2),
    }
}

/// A request on one of the first `queues` queues, if they are where they were.
pub(super) fn offer(rig: &mut Rig, input: &mut Input<'_>, available: &mut [u16; 2], queues: usize) {
    let queue = input.below(queues);
    let number = u16::try_from(queue).unwrap_or(0);
    let rings = Rings::of_queue(number, 8);
    let pieces = request::request(input, rig, available[queue]);
    available[queue] = request::offer(rig, rings, 0, available[queue], &pieces);
    rig.kick(number);
    rig.settle(number);
}
