//! Administration commands: well-formed ones with one thing wrong, about a function and two members.

use super::command::{AdminQueue, Answer, ROOM, command, is_broken};
use super::pci::offer;
use crate::Plant;
use crate::input::Input;
use crate::rig::{Options, PAGE, Rig, Rings, feature, reg};

/// Commands there are, and some that there are not.
const OPCODES: &[u16] = &[
    0x00, 0x01, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x10, 0x11, 0x40, 0x41, 0x42,
    0x43, 0x02, 0x44, 0x8000,
];
/// Status values that the standard has.
const STATUSES: &[u16] = &[0, 6, 11, 12, 16, 17, 22, 28];
const MODE_SET: u16 = 0x11;
const PARTS_GET: u16 = 0x0f;

/// Runs the target.
pub fn run(data: &[u8], plant: Option<Plant>) {
    let mut input = Input::new(data);
    let options = Options {
        queues: 1,
        admin: 1,
        members: 2,
        records: true,
        ..Options::default()
    };
    let mut rig = Rig::new(options, plant);
    let mut queue = set_up(&mut rig);
    let prepared = input.flag();
    if prepared {
        prepare(&mut rig, &mut queue);
    }
    let mut available = [0; 2];
    let mut parts = Vec::new();
    while !input.is_empty() {
        match input.below(10) {
            0 => offer(&mut rig, &mut input, &mut available, 1),
            1 => {
                // The members come and go.
                let on = input.u8() & 1;
                rig.function.config_write(0x150, &[input.u8() % 4, 0]);
                rig.function.config_write(0x148, &[on, 0]);
            }
            2 => drive_member(&rig, &mut input),
            3 if is_broken(&rig) || input.once_in(4) => {
                queue = set_up(&mut rig);
                prepare(&mut rig, &mut queue);
                available = [0; 2];
            }
            _ => ask(&mut rig, &mut queue, &mut input, &mut parts, plant),
        }
    }
    rig.memory.judge_grants();
    rig.finish();
}

fn set_up(rig: &mut Rig) -> AdminQueue {
    assert!(
        rig.function.reset_and_wait(crate::oracle::PATIENCE),
        "oracle reset: not done before a new start"
    );
    rig.negotiate(
        feature::VERSION_1
            | feature::ADMIN_VQ
            | feature::SUSPEND
            | feature::QUEUE_STATE
            | feature::INDIRECT,
    );
    rig.put(0, &[0; 0x1000]);
    rig.enable(0, Rings::of_queue(0, 8));
    let queue = AdminQueue::enable(rig);
    rig.write8(reg::STATUS, 0x0f);
    queue
}

/// All commands are in use, there are members, and an object for parts of each kind.
fn prepare(rig: &mut Rig, queue: &mut AdminQueue) {
    rig.function.config_write(0x150, &[2, 0]);
    rig.function.config_write(0x148, &[1, 0]);
    let all = [0xff; 16];
    let mut object = vec![0_u8; 24];
    let mut ask = |opcode, group, data: &[u8]| {
        let bytes = command(opcode, group, 0, data);
        queue.send(rig, &bytes, ROOM, 24);
    };
    // Only what is offered can be used: ask for the lists first, then say so.
    for group in [0, 1] {
        ask(0x00, group, &[]);
        ask(
            0x01,
            group,
            &[0x83, 0xff, 0x03, 0, 0, 0, 0, 0, 0x0f, 0, 0, 0, 0, 0, 0, 0],
        );
        ask(0x01, group, &all);
    }
    ask(0x09, 0, &[0, 0, 0, 0, 0, 0, 0, 0, 4, 4]);
    for id in 0..2 {
        object[4] = id;
        object[16] = id;
        ask(0x0a, 0, &object);
    }
}

/// A member's registers, as whoever drives it writes them.
fn drive_member(rig: &Rig, input: &mut Input<'_>) {
    let member = &rig.members[input.below(2)];
    let (at, value) = (
        input.pick(&[0x14, 0x16, 0x18, 0x1c, 0x3a, 0x40, 0x3000]),
        input.u16(),
    );
    if at == reg::STATUS {
        let [low, _] = value.to_le_bytes();
        member.bar_write(0, at, &[low & 0x1f]);
    } else {
        member.bar_write(0, at, &value.to_le_bytes());
    }
}

/// The data of a command, mostly as it should be.
fn data_of(opcode: u16, input: &mut Input<'_>, parts: &[u8]) -> Vec<u8> {
    let id = input.u8() % 3;
    let object = [0, 0, 0, 0, id, 0, 0, 0];
    let mut data = Vec::new();
    match opcode {
        0x01 => data.extend([
            input.u8(),
            input.u8(),
            input.u8(),
            0,
            0,
            0,
            0,
            0,
            input.u8() & 0xf,
        ]),
        0x08 => data.extend([input.u8() & 1, 0, 0, 0, 0, 0, 0, 0]),
        0x09 => data.extend([0, 0, 0, 0, 0, 0, 0, 0, input.u8(), input.u8()]),
        0x0a..=0x0c => {
            data.extend(object);
            data.extend([0; 8]);
            data.extend([input.u8() % 3, 0, 0, 0, 0, 0, 0, 0]);
        }
        0x0d => data.extend(object),
        0x0e | PARTS_GET => {
            data.extend(object);
            data.extend([input.u8() % 4, 0, 0, 0, 0, 0, 0, 0]);
            data.extend(input.bytes(usize::from(id) * 16));
        }
        0x10 => {
            data.extend(object);
            data.extend(parts);
            for _ in 0..input.below(4) {
                let at = 8 + usize::from(input.u16()) % data.len().max(9);
                if let Some(byte) = data.get_mut(at) {
                    *byte ^= input.u8();
                }
            }
        }
        MODE_SET => data.push(input.u8() % 3),
        0x41 => {
            let (size, count) = (4096_u64 << (input.u8() % 4), u32::from(input.u8() % 4));
            data.extend(size.to_le_bytes());
            data.extend(count.to_le_bytes());
            data.extend([0; 4]);
            for _ in 0..count {
                data.extend((PAGE * u64::from(input.u8())).to_le_bytes());
                data.extend((PAGE * u64::from(input.u16())).to_le_bytes());
            }
        }
        0x43 => {
            data.extend((PAGE * u64::from(input.u8())).to_le_bytes());
            data.extend((PAGE * u64::from(input.u8())).to_le_bytes());
            data.extend((u64::from(input.u8() & 1) * 4096).to_le_bytes());
        }
        _ => data.extend(input.bytes(usize::from(id) * 8)),
    }
    if input.once_in(8) {
        let at = usize::from(input.u8());
        if let Some(byte) = data.get_mut(at) {
            *byte = input.u8();
        }
    }
    if input.once_in(8) {
        data.truncate(usize::from(input.u8()));
    }
    data
}

fn ask(
    rig: &mut Rig,
    queue: &mut AdminQueue,
    input: &mut Input<'_>,
    parts: &mut Vec<u8>,
    plant: Option<Plant>,
) {
    let opcode = input.pick(OPCODES);
    let group = input.pick(&[0, 1, 1, 0, 2]);
    let member = match input.below(8) {
        7 => input.u64(),
        number => u64::try_from(number).unwrap_or(0) % 4,
    };
    let data = data_of(opcode, input, parts);
    let bytes = command(opcode, group, member, &data);
    let room = input.pick(&[ROOM, ROOM, 4096, 64, 16, 8, 7, 1, 0]);
    let bytes = match input.once_in(16) {
        true => &bytes[..bytes.len().min(usize::from(input.u8()))],
        false => &bytes[..],
    };
    let whole = bytes.len() >= 24;
    let Some(mut answer) = queue.send(rig, bytes, room, u32::from(input.u8())) else {
        return;
    };
    match plant {
        Some(Plant::NoAnswer) if opcode == MODE_SET => answer.bytes[..2].fill(0xee),
        Some(Plant::Accepts) if opcode == 0x44 => answer.bytes[..2].fill(0),
        _ => {}
    }
    if room < 8 {
        return;
    }
    // What is missing of a command reads 0: LIST_QUERY of the function itself.
    let (opcode, group) = if whole { (opcode, group) } else { (0, 0) };
    judge(&answer, opcode, group);
    if opcode == PARTS_GET && answer.status() == 0 && answer.used > 8 {
        let end = usize::try_from(answer.used).unwrap_or(0);
        *parts = answer.bytes[8..end].to_vec();
    }
}

/// `oracle answers` and `oracle soundness`.
fn judge(answer: &Answer, opcode: u16, group: u16) {
    assert!(
        answer.used >= 8 && STATUSES.contains(&answer.status()) && answer.qualifier() <= 7,
        "oracle answers: command {opcode:#x} got {} bytes with status {} and qualifier {}",
        answer.used,
        answer.status(),
        answer.qualifier()
    );
    let known = ![0x02, 0x44, 0x8000].contains(&opcode) && group < 2;
    assert!(
        known || answer.status() != 0,
        "oracle soundness: command {opcode:#x} of group {group} is none, and was carried out"
    );
}
