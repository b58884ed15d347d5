//! Administration queues: buffers of any length, what is initialised in them, order.

use super::{Case, special};
use crate::clause;
use crate::constants::admin::{ANSWER, COMMAND, DEV_PARTS, TO_GET, TO_SET, group, opcode, status};
use crate::harness::objects::{create, selector};
use crate::harness::{Absent, Admin, Answer, Bench, Command, Judged, Stop, arose, demand, words};
use crate::target::Variant;
use std::collections::BTreeSet;

const SHORTER: &str = clause!(adminq "D1");
const LONGER: &str = clause!(adminq "D2");
const WHOLE: &str = clause!(adminq "D3");
const LENGTH: &str = clause!(adminq "D4");
const MULTIPLE: &str = clause!(adminq "D5");
const STATUS: &str = clause!(adminq "D6");
const ORDER: &str = clause!(adminq "D7");
const RETRY: &str = clause!(adminq "D9");

pub(super) const CASES: &[Case] = &[
    special(
        "admin_takes_short_readable_parts",
        &[SHORTER, LENGTH],
        Variant::Admin,
        short_readable,
    ),
    special(
        "admin_takes_short_writable_parts",
        &[SHORTER, LENGTH],
        Variant::Admin,
        short_writable,
    ),
    special(
        "admin_takes_long_readable_parts",
        &[LONGER, LENGTH],
        Variant::Admin,
        long_readable,
    ),
    special(
        "admin_takes_long_writable_parts",
        &[LONGER, LENGTH],
        Variant::Admin,
        long_writable,
    ),
    special(
        "admin_takes_parts_in_pieces",
        &[LENGTH],
        Variant::Admin,
        pieces,
    ),
    special(
        "admin_initialises_all_of_an_answer",
        &[WHOLE],
        Variant::Admin,
        all_of_it,
    ),
    special(
        "admin_initialises_whole_words",
        &[MULTIPLE],
        Variant::Owner,
        whole_words,
    ),
    special(
        "admin_initialises_status_and_qualifier",
        &[STATUS],
        Variant::Owner,
        status_and_qualifier,
    ),
    special(
        "admin_keeps_the_order_of_each_queue",
        &[ORDER],
        Variant::Owner,
        order,
    ),
    special(
        "admin_commands_to_be_retried_did_nothing",
        &[RETRY],
        Variant::Owner,
        retried,
    ),
];

/// Two bytes to fill buffers with: what both leave alone the device has not written.
const FILLINGS: [u8; 2] = [0x5a, 0xa5];

/// A command in buffers of these sizes.
fn shaped(
    admin: &Admin<'_>,
    command: &[u8],
    parts: &[usize],
    room: &[usize],
) -> Result<Answer, Stop> {
    let ticket = admin.stage(0, command, parts, room)?;
    admin.publish(0)?;
    admin.finish(ticket)
}

/// LIST_QUERY of the function itself, as it is described.
fn query(admin: &Admin<'_>) -> Result<Answer, Stop> {
    admin.must(&Command::new(opcode::LIST_QUERY, group::SELF))
}

/// Which bytes of an answer the device initialises, from the first on, whatever stood there; the
/// answer to the command in its second buffer.
fn initialised(admin: &Admin<'_>, command: &Command, room: usize) -> Result<(usize, Answer), Stop> {
    let mut answers = Vec::new();
    for filling in FILLINGS {
        admin.fill_with(filling);
        answers.push(admin.run_in(0, command, room)?);
    }
    let [first, second] = <[Answer; 2]>::try_from(answers)
        .map_err(|_| Stop::Inconclusive("two answers".to_owned()))?;
    let pairs = first.bytes.iter().zip(&second.bytes);
    let same = pairs.take_while(|(a, b)| a == b).count();
    Ok((same, second))
}

fn short_readable(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    let expected = query(&admin)?;
    // opcode 0, group 0: everything behind the first word is 0 and may be missing.
    let bytes = Command::new(opcode::LIST_QUERY, group::SELF).bytes();
    for len in [COMMAND, 16, 8] {
        let answer = shaped(&admin, &bytes, &[len], &[256])?;
        let same = answer.codes() == expected.codes() && answer.list() == expected.list();
        demand(
            [SHORTER, LENGTH],
            same,
            "what is missing of a command counts as 0",
            || {
                format!(
                    "{len} bytes of {COMMAND}: {:?}, {:x?}",
                    answer.codes(),
                    answer.list()
                )
            },
        )?;
    }
    let all = expected.list();
    let Some(high) = all.iter().copied().find(|opcode| *opcode >= 64) else {
        return Ok("no opcode is beyond the first word of a list".to_owned());
    };
    // The second word of the list is missing.
    let adopt = Command::new(opcode::LIST_USE, group::SELF).with(words(&all));
    let used = shaped(&admin, &adopt.bytes(), &[COMMAND + 8], &[8])?;
    let beyond = admin.run(&Command::new(high, group::SELF))?.codes();
    let within = admin.run(&Command::new(opcode::LIST_QUERY, group::SELF))?;
    demand(
        [SHORTER, LENGTH],
        used.is_ok() && within.is_ok() && beyond.0 == status::EINVAL,
        "what is missing of a list counts as 0",
        || {
            let used = used.codes();
            format!(
                "LIST_USE without its second word ends in {used:?}, opcode {high:#x} in {beyond:?}"
            )
        },
    )?;
    Ok(String::new())
}

fn short_writable(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    let expected = query(&admin)?;
    let bytes = Command::new(opcode::LIST_QUERY, group::SELF).bytes();
    let described = expected.used;
    arose(described > ANSWER, || "LIST_QUERY has no result".to_owned())?;
    for room in (ANSWER..described).step_by(8) {
        let answer = shaped(&admin, &bytes, &[COMMAND], &[room])?;
        let start = expected.bytes.get(..answer.used).unwrap_or_default();
        let fits = answer.used <= room && !answer.spilled && answer.written() == start;
        demand(
            [SHORTER, LENGTH],
            answer.is_ok() && fits,
            "as much of the answer as there is room for, and nothing behind it",
            || {
                let Answer { used, spilled, .. } = answer;
                let codes = answer.codes();
                format!(
                    "room for {room} of {described} bytes: {codes:?}, {used} used, beyond it: {spilled}"
                )
            },
        )?;
    }
    Ok(String::new())
}

fn long_readable(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    let expected = query(&admin)?;
    let bytes = Command::new(opcode::LIST_QUERY, group::SELF);
    for more in [8, 64, 4096] {
        let bytes = bytes.clone().with(vec![0xee; more]).bytes();
        let answer = shaped(&admin, &bytes, &[bytes.len()], &[256])?;
        let same = answer.codes() == expected.codes() && answer.list() == expected.list();
        demand(
            [LONGER, LENGTH],
            same,
            "what is behind a command is ignored",
            || {
                format!(
                    "{more} bytes more: {:?}, {:x?}",
                    answer.codes(),
                    answer.list()
                )
            },
        )?;
    }
    let mut list = words(&expected.list());
    list.resize(4096, 0);
    let adopt = Command::new(opcode::LIST_USE, group::SELF).with(list);
    let codes = admin.run(&adopt)?.codes();
    demand(
        [LONGER, LENGTH],
        codes.0 == status::OK,
        "a list may go on with zeroes",
        || format!("{codes:?} for 4096 bytes of list"),
    )?;
    Ok(String::new())
}

fn long_writable(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    let expected = query(&admin)?;
    let command = Command::new(opcode::LIST_QUERY, group::SELF);
    for room in [expected.used, 512, 4096, 1 << 16] {
        let (written, answer) = initialised(&admin, &command, room)?;
        let same = answer.codes() == expected.codes() && answer.list() == expected.list();
        let told = answer.touched() <= answer.used && answer.used <= written;
        demand(
            [LONGER, LENGTH],
            same && told && !answer.spilled,
            "the same answer, and in the used element the bytes that were written",
            || {
                let (codes, used) = (answer.codes(), answer.used);
                format!("room for {room}: {codes:?}, {used} used, {written} written")
            },
        )?;
    }
    Ok(String::new())
}

fn pieces(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    let expected = query(&admin)?;
    let bytes = Command::new(opcode::LIST_QUERY, group::SELF).bytes();
    let pieces: [(&[usize], &[usize]); 4] = [
        (&[8, 16], &[8, 248]),
        (&[8, 8, 8], &[16, 8, 8]),
        (&[2, 2, 12, 8], &[2, 2, 4, 248]),
        (&[1; 24], &[1; 32]),
    ];
    for (parts, room) in pieces {
        let answer = shaped(&admin, &bytes, parts, room)?;
        let same = answer.codes() == expected.codes() && answer.list() == expected.list();
        demand(
            LENGTH,
            same && !answer.spilled,
            "the same answer however the buffers are cut",
            || {
                format!(
                    "{parts:?} and {room:?}: {:?}, {:x?}",
                    answer.codes(),
                    answer.list()
                )
            },
        )?;
    }
    Ok(String::new())
}

fn all_of_it(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    let list = query(&admin)?.list();
    let largest = list.last().copied().map_or(0, usize::from);
    // Whether a last opcode that is a multiple of 64 has a word of its own can be read both ways.
    let described = ANSWER + largest.div_ceil(64).max(1) * 8;
    for room in [ANSWER, ANSWER + 8, described, described + 64] {
        let command = Command::new(opcode::LIST_QUERY, group::SELF);
        let (same, answer) = initialised(&admin, &command, room)?;
        let least = room.min(described);
        demand(
            WHOLE,
            answer.is_ok() && same >= least && answer.used >= least,
            "all of the answer is initialised that is described and that has room",
            || format!("{same} bytes, {} used, of {least}", answer.used),
        )?;
    }
    Ok(String::new())
}

/// Commands that end in one way or another, with data of every length.
fn variety(admin: &Admin<'_>) -> Result<Vec<Command>, Stop> {
    admin.own(1, &[])?;
    let own = admin.supported(group::SELF)?;
    let mut commands = vec![
        Command::new(opcode::LIST_QUERY, group::SELF),
        Command::new(opcode::LIST_QUERY, group::SR_IOV),
        Command::new(opcode::LIST_USE, group::SELF).with(words(&own)),
        Command::new(opcode::UNASSIGNED, group::SELF),
        Command::new(opcode::LIST_QUERY, group::RESERVED),
        Command::new(opcode::OBJ_DESTROY, group::SR_IOV).about(u64::MAX),
        create(1, u32::MAX, TO_GET),
    ];
    if own.contains(&opcode::CAP_ID_LIST_QUERY) {
        let get = Command::new(opcode::DEVICE_CAP_GET, group::SELF);
        commands.extend([
            Command::new(opcode::CAP_ID_LIST_QUERY, group::SELF),
            // Two bytes have a meaning here.
            get.clone().with(selector(DEV_PARTS)),
            get.with(selector(0x7ff)),
        ]);
    }
    Ok(commands)
}

fn whole_words(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    let mut results = BTreeSet::new();
    for command in variety(&admin)? {
        let (same, answer) = initialised(&admin, &command, 1024)?;
        results.insert(answer.used);
        demand(
            MULTIPLE,
            answer.used.is_multiple_of(8) && same >= answer.used,
            "multiples of 64 bits are initialised, and told in the used element",
            || format!("{} used, {same} initialised, for {command:x?}", answer.used),
        )?;
    }
    arose(results.iter().any(|used| *used > ANSWER), || {
        "no command has a result".to_owned()
    })?;
    Ok(String::new())
}

fn status_and_qualifier(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    let (mut ends, mut failed) = (BTreeSet::new(), false);
    for command in variety(&admin)? {
        let (same, answer) = initialised(&admin, &command, 1024)?;
        ends.insert(answer.codes());
        failed |= !answer.is_ok();
        demand(
            STATUS,
            same >= 4 && answer.used >= 4,
            "status and status_qualifier are initialised",
            || format!("{same} bytes, {} used, for {command:x?}", answer.used),
        )?;
    }
    arose(failed && ends.len() > 1, || {
        format!("every command ends in {ends:?}")
    })?;
    Ok(String::new())
}

/// Commands of a round of [`order`]; each is two descriptors.
const ROUND: u32 = 12;

fn order(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    admin.with_objects(1, 2, 2)?;
    let reading = admin.reading(0)?;
    admin.must(&create(1, 0, TO_GET))?;
    for queue in 0..admin.queues() {
        for _ in 0..4 {
            // Which purpose an object has depends on everything that came before.
            let mut tickets = Vec::new();
            for _ in 0..ROUND / 2 {
                let purpose = u8::try_from(bench.random(2)).unwrap_or(TO_SET);
                for (command, expected) in [
                    (reading.modify(1, 0, purpose), None),
                    (reading.query(1, 0), Some(purpose)),
                ] {
                    let bytes = command.bytes();
                    let ticket = admin.stage(queue, &bytes, &[bytes.len()], &[64])?;
                    tickets.push((ticket, expected));
                }
            }
            bench.step(format!("{ROUND} commands at once to admin queue {queue}"));
            admin.publish(queue)?;
            let mut wrong = 0;
            for (ticket, expected) in tickets {
                let answer = admin.finish(ticket)?;
                arose(answer.is_ok(), || format!("{:?}", answer.codes()))?;
                let seen = answer.result().first().copied();
                wrong += u32::from(expected.is_some() && seen != expected);
            }
            demand(
                ORDER,
                wrong == 0,
                "each query tells what the command before it made of the object",
                || {
                    format!(
                        "{wrong} of {} queries on admin queue {queue} do not",
                        ROUND / 2
                    )
                },
            )?;
        }
    }
    Ok(format!("{} queues, {}", admin.queues(), reading.name()))
}

fn retried(bench: &Bench) -> Judged {
    let admin = bench.administer(0)?;
    admin.with_objects(1, 2, 2)?;
    admin.adopt_all(group::SR_IOV, &[opcode::PARTS_METADATA_GET])?;
    admin.objects_for_parts(1)?;
    // The list of a member's parts: its text wants ENOMEM where there is no room for it.
    let mut data = vec![0; 8];
    data.extend([2, 0, 0, 0, 0, 0, 0, 0]);
    let list = Command::new(opcode::PARTS_METADATA_GET, group::SR_IOV).about(1);
    let list = list.with(data);
    let before = admin.must(&list)?;
    let refused = admin.run_in(0, &list, ANSWER + 8)?.codes();
    if ![status::EAGAIN, status::ENOMEM].contains(&refused.0) {
        return Err(Stop::NotApplicable(Absent::Status(status::ENOMEM)));
    }
    let after = admin.run(&list)?;
    demand(
        RETRY,
        after.codes() == before.codes() && after.result() == before.result(),
        "the same command with more room is answered as before",
        || {
            format!(
                "{:?} after {refused:?}, {:?} before",
                after.codes(),
                before.codes()
            )
        },
    )?;
    let reading = admin.run(&create(1, 1, TO_SET))?.codes();
    demand(
        RETRY,
        reading.0 == status::EEXIST,
        "what existed before exists still",
        || format!("making an object a second time ends in {reading:?} after {refused:?}"),
    )?;
    Ok(format!("{refused:?}"))
}
