//! What is refused changes nothing: every bad command against a member that is stopped, is recorded and
//! has written a page, with all of that looked at before and after.

use super::bench::{Bench, map, memory};
use super::members::{all_parts, objects, part, set_parts, stop};
use super::recording::{read, records, start, touch};
use crate::blk::{BlkDevice, BlkOptions};
use crate::function::{AdminConfig, FunctionConfig, PciFunction};
use std::fs::File;

const ALL: (u64, u64) = (0, 0x40_0000);

/// An owner of two, the first of them stopped and recorded, with page 5 written.
fn ready() -> Bench {
    let bench = Bench::with_lists(1, 2);
    map(&bench.members[0], &memory());
    objects(&bench, 1);
    assert_eq!(stop(&bench, 1, true), (0, 0));
    let data = start(4096, &[ALL]);
    assert_eq!(bench.status(0x41, 1, 1, &data, 8), (0, 0));
    touch(&bench.members[0], 0x5000, 1);
    bench
}

/// What it is; opcode, group, member, data; status and qualifier.
type Case = (&'static str, u16, u16, u64, Vec<u8>, (u16, u16));

/// Every command gets its status and qualifier, and none of them has done anything.
fn refused(bench: &Bench, cases: &[Case]) {
    let before = all_parts(bench, 1);
    for (what, opcode, group, member, data, answer) in cases {
        let got = bench.status(*opcode, *group, *member, data, 4096);
        assert_eq!(got, *answer, "{what}");
        assert_eq!(all_parts(bench, 1), before, "{what}");
    }
    assert_eq!(set_parts(bench, 1, &before), (0, 0), "still stopped");
    assert_eq!(bench.create(1, 0, 0), (17, 3), "its objects are there");
    assert_eq!(records(bench, 1, 1, 4096), (vec![5], false, false));
    touch(&bench.members[0], 0x6000, 1);
    assert_eq!(records(bench, 1, 1, 4096).0, [6], "still recorded");
    assert_eq!(bench.owner.stats().errors, 0, "no error state (AC-3)");
    assert_eq!(bench.members[0].stats().errors, 0);
}

#[test]
fn commands_that_there_are_not() {
    let mut cases = Vec::new();
    for opcode in [2, 3, 6, 0x12, 0x13, 0x3f, 0x44, 0x7fff, 0x8000, 0xffff] {
        for (group, member) in [(0, 0), (1, 1)] {
            cases.push(("opcode", opcode, group, member, vec![1; 64], (22, 2)));
        }
    }
    for opcode in [0x0a, 0x0e, 0x10, 0x11] {
        cases.push(("not for itself", opcode, 0, 0, vec![0; 64], (22, 2)));
    }
    for opcode in [7, 8, 9] {
        cases.push(("not for members", opcode, 1, 1, vec![0; 64], (22, 2)));
    }
    for group in [2, 0x100, 0xffff] {
        cases.push(("group", 0x11, group, 1, vec![0; 64], (22, 4)));
    }
    for member in [0, 3, 257, 1 << 32, u64::MAX] {
        for opcode in [0x0a, 0x0b, 0x0d, 0x0f, 0x10, 0x11, 0x41, 0x42, 0x43] {
            cases.push(("member", opcode, 1, member, vec![0; 64], (22, 5)));
        }
    }
    refused(&ready(), &cases);
}

#[test]
fn lists_that_were_never_used() {
    let bench = Bench::new(1, 2);
    bench.enable_vfs(2);
    for opcode in (2..0x14).chain(0x40..0x44) {
        assert_eq!(bench.status(opcode, 0, 0, &[1], 8), (22, 2), "{opcode:#x}");
        assert_eq!(bench.status(opcode, 1, 1, &[1], 8), (22, 2), "{opcode:#x}");
    }
    // The list of one group is none of another's.
    let list = bench.command(0, 0, 0, &[], 64);
    assert_eq!(bench.status(1, 0, 0, &list[8..], 8), (0, 0));
    assert_eq!(bench.status(0x40, 0, 0, &[], 64), (0, 0));
    assert_eq!(bench.status(0x40, 1, 1, &[], 64), (22, 2));
    assert_eq!(bench.status(0x11, 1, 1, &[1], 8), (22, 2));
    bench.use_lists();
    objects(&bench, 1);
    let parts = all_parts(&bench, 1);
    assert_eq!(
        set_parts(&bench, 1, &parts),
        (16, 1),
        "it was never stopped"
    );
}

#[test]
fn recording_that_is_on() {
    let again = |page: u64, ranges: &[(u64, u64)]| start(page, ranges);
    let field = (22, 3);
    refused(
        &ready(),
        &[
            ("again", 0x41, 1, 1, again(4096, &[ALL]), (16, 1)),
            (
                "another",
                0x41,
                1,
                1,
                again(1 << 21, &[(0, 1 << 21)]),
                (16, 1),
            ),
            ("none", 0x41, 1, 1, again(4096, &[]), field),
            ("zero", 0x41, 1, 1, again(4096, &[(0, 0)]), field),
            ("misaligned", 0x41, 1, 1, again(4096, &[(1, 4096)]), field),
            ("overlap", 0x41, 1, 1, again(4096, &[ALL, ALL]), field),
            (
                "too many",
                0x41,
                1,
                1,
                again(4096, &[(0, 4096); 256]),
                field,
            ),
            ("wrap", 0x41, 1, 1, again(4096, &[(!0xfff, 0x2000)]), field),
            ("read nothing", 0x43, 1, 1, read(0, 0, 0), field),
            ("read half a page", 0x43, 1, 1, read(8, 4096, 0), field),
            (
                "read round the end",
                0x43,
                1,
                1,
                read(!0xfff, 8192, 0),
                field,
            ),
            (
                "read large pages",
                0x43,
                1,
                1,
                read(0, 1 << 21, 1 << 21),
                field,
            ),
            ("stop another", 0x42, 1, 2, Vec::new(), (22, 1)),
            ("read another", 0x43, 1, 2, read(0, 4096, 0), (22, 1)),
        ],
    );
}

#[test]
fn resources_and_capabilities() {
    let object = |object_type: u8, id: u8, purpose: u8| {
        let mut data = vec![object_type, 0, 0, 0, id, 0, 0, 0];
        data.extend([0; 8]);
        data.push(purpose);
        data
    };
    let limits = |get: u8, set: u8| vec![0, 0, 0, 0, 0, 0, 0, 0, get, set];
    refused(
        &ready(),
        &[
            ("type", 0x0a, 1, 1, object(1, 5, 0), (6, 3)),
            ("there already", 0x0a, 1, 1, object(0, 1, 0), (17, 3)),
            ("purpose", 0x0a, 1, 1, object(0, 5, 2), (22, 3)),
            ("number", 0x0a, 1, 1, object(0, 16, 0), (22, 3)),
            ("modify none", 0x0b, 1, 1, object(0, 7, 0), (6, 3)),
            ("modify badly", 0x0b, 1, 1, object(0, 0, 9), (22, 3)),
            ("query none", 0x0c, 1, 1, object(0, 7, 0), (6, 3)),
            ("destroy none", 0x0d, 1, 1, object(0, 7, 0), (6, 3)),
            ("destroy another's", 0x0d, 1, 2, object(0, 0, 0), (6, 3)),
            ("too low", 9, 0, 0, limits(0, 8), (16, 1)),
            ("no such capability", 9, 0, 0, vec![1; 16], (6, 3)),
            (
                "metadata of what",
                0x0e,
                1,
                1,
                vec![0, 0, 0, 0, 0, 0, 0, 0, 3],
                (22, 3),
            ),
            (
                "parts how",
                0x0f,
                1,
                1,
                vec![0, 0, 0, 0, 0, 0, 0, 0, 2],
                (22, 3),
            ),
            ("mode", 0x11, 1, 1, vec![3], (22, 3)),
        ],
    );
}

/// Where each part begins, and the end.
fn bounds(parts: &[u8]) -> Vec<usize> {
    let mut bounds = vec![0];
    let mut at = 0;
    while at < parts.len() {
        let length = u32::from_le_bytes(parts[at + 12..at + 16].try_into().unwrap());
        at += 16 + usize::try_from(length).unwrap();
        bounds.push(at);
    }
    bounds
}

/// All parts of a device, without the padding of the result.
fn whole(bench: &Bench, member: u64) -> Vec<u8> {
    let mut parts = all_parts(bench, member);
    let (mut at, mut end) = (0, 0);
    while at + 16 <= parts.len() && parts[at..at + 2] != [0, 0] {
        let length = u32::from_le_bytes(parts[at + 12..at + 16].try_into().unwrap());
        at += 16 + usize::try_from(length).unwrap();
        end = at;
    }
    parts.truncate(end);
    parts
}

#[test]
fn parts_cut_off_anywhere() {
    let bench = ready();
    let parts = whole(&bench, 1);
    let bounds = bounds(&parts);
    assert_eq!(bounds.last(), Some(&parts.len()));
    let before = all_parts(&bench, 1);
    for end in 1..parts.len() {
        let begin = *bounds.iter().rfind(|bound| **bound <= end).unwrap();
        // Whole parts are parts; and so are whole parts with zeroes behind.
        let padding = end - begin < 16 && parts[begin..end].iter().all(|byte| *byte == 0);
        let answer = if padding { (0, 0) } else { (22, 3) };
        assert_eq!(set_parts(&bench, 1, &parts[..end]), answer, "{end} bytes");
        assert_eq!(all_parts(&bench, 1), before, "{end} bytes");
    }
}

#[test]
fn parts_in_another_order() {
    let bench = ready();
    let parts = whole(&bench, 1);
    let bounds = bounds(&parts);
    let each: Vec<&[u8]> = bounds.windows(2).map(|at| &parts[at[0]..at[1]]).collect();
    let before = all_parts(&bench, 1);
    for first in 0..each.len() {
        for second in first + 1..each.len() {
            let mut swapped = each.clone();
            swapped.swap(first, second);
            // Those of one type are in no order.
            let alike = each[first][..2] == each[second][..2];
            let answer = if alike { (0, 0) } else { (22, 3) };
            assert_eq!(
                set_parts(&bench, 1, &swapped.concat()),
                answer,
                "{first} {second}"
            );
            assert_eq!(all_parts(&bench, 1), before);
        }
    }
}

/// The owner of a disk of so many bytes.
fn disk(bytes: u64) -> Bench {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(bytes).unwrap();
    let file = File::options().read(true).write(true).open(disk.path());
    let blk = BlkDevice::open(file.unwrap(), BlkOptions::default()).unwrap();
    let admin = AdminConfig {
        queues: 1,
        ..AdminConfig::default()
    };
    let bench = Bench::owning(admin, PciFunction::new(FunctionConfig::default(), blk));
    objects(&bench, 1);
    assert_eq!(stop(&bench, 1, true), (0, 0));
    bench
}

/// What a driver has read of the configuration is true of every device that it finds itself with.
#[test]
fn parts_of_a_disk_of_another_size() {
    let (here, there) = (disk(1 << 20), disk(2 << 20));
    let before = all_parts(&here, 1);
    assert_eq!(set_parts(&here, 1, &all_parts(&there, 1)), (22, 3));
    assert_eq!(all_parts(&here, 1), before);
    assert_eq!(set_parts(&here, 1, &all_parts(&disk(1 << 20), 1)), (0, 0));
    // Those who leave the part out take the risk: the standard has none such.
    let config = whole(&there, 1).len() - 16 - 60;
    assert_eq!(set_parts(&here, 1, &whole(&there, 1)[..config]), (0, 0));
    for length in [0, 59, 61] {
        let config = part(0x1f1, 1, 0, &vec![0; length]);
        assert_eq!(set_parts(&here, 1, &config), (22, 3), "{length}");
    }
}

/// Standard parts name no device type: what gives another one away is what it offers and has.
#[test]
fn parts_of_another_device_type() {
    let theirs = whole(&disk(1 << 20), 1);
    let bench = ready();
    let before = all_parts(&bench, 1);
    assert_eq!(set_parts(&bench, 1, &theirs), (22, 3));
    // Nor with a part of a network device behind its own.
    let mut mixed = whole(&bench, 1);
    mixed.extend(part(0x200, 0, 0, &[0; 8]));
    assert_eq!(set_parts(&bench, 1, &mixed), (22, 3));
    assert_eq!(all_parts(&bench, 1), before);
}

/// A position that no queue can be at is found out where the queue starts, if not before: the member
/// needs a reset then, and its owner nothing.
#[test]
fn a_position_that_cannot_be_breaks_the_member_alone() {
    let bench = ready();
    let member = &bench.members[0];
    assert_eq!(stop(&bench, 1, false), (0, 0));
    super::members::run(member, &memory());
    assert_eq!(stop(&bench, 1, true), (0, 0));
    let position = part(0x1f0, 0, 0, &[0, 0x70, 0, 0, 0, 0, 0, 0]);
    // Beside the size of its queue it is found out at once.
    let mut queue = part(0x104, 0, 0, &[0; 32]);
    queue[16..22].copy_from_slice(&[0, 1, 0, 0, 1, 0]);
    let both = [queue, position.clone()].concat();
    assert_eq!(set_parts(&bench, 1, &both), (22, 3));
    assert_eq!(set_parts(&bench, 1, &position), (0, 0));
    assert_eq!(member.stats().errors, 0);
    assert_eq!(stop(&bench, 1, false), (0, 0));
    assert_eq!(member.stats().errors, 1);
    assert_eq!(bench.owner.stats().errors, 0);
}
