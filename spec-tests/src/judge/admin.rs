//! The administration queue: lists of commands, capabilities, resource objects, parts.

use super::chain::Chain;
use super::ledger::{Ledger, rules};
use super::memory::Memory;
use super::plan::Plan;
use crate::clause;
use std::collections::{BTreeMap, BTreeSet};

rules! {
    LIST_FIRST = clause!(admin "R2"), "lists_commands_first": "every command but LIST_QUERY and LIST_USE: a LIST_USE must have succeeded";
    REPORTED = clause!(admin "R5"), "lists_what_is_reported": "every LIST_USE against what LIST_QUERY reported for the group";
    LISTED = clause!(admin "R6"), "uses_what_it_listed": "every command against the group's list";
    RESERVED_STATUS = clause!(admin "R8"), "takes_reserved_status_for_an_error": "the first LIST_USE is answered with a reserved status and has no effect; the driver must not go on as if it had";
    MEMBERS = clause!(admin "R10"), "names_members_that_are": "every command of the SR-IOV group: the member, NumVFs and VF Enable";
    LONG_ENOUGH = clause!(adminq "R2"), "gives_whole_commands": "readable part of every command";
    WHOLE_WORDS = clause!(adminq "R3"), "gives_whole_words": "lengths of both parts of every command";
    NOT_EMPTY = clause!(adminq "R4"), "gives_both_parts": "lengths of both parts of every command";
    USED_ONLY = clause!(adminq "R6"), "takes_unused_for_0": "the result of LIST_QUERY ends early and ones follow it; the driver must not list what they seem to report";
    USED_LENGTH = clause!(used_ring "R1"), "relies_on_the_used_length": "what follows the result of LIST_QUERY in the buffer, beyond the used length, is ones; the driver must not rely on it";
    CAPABILITY_FIRST = clause!(capabilities "R1"), "sets_the_capability_first": "every RESOURCE_OBJ_CREATE: the driver capability must be set";
    WITHIN_DEVICE = clause!(capabilities "R2"), "stays_within_the_capability": "every DRIVER_CAP_SET against what the device reports";
    NOT_DISABLED = clause!(capabilities "R3"), "disables_no_capability_in_use": "every DRIVER_CAP_SET that disables, against the objects that there are";
    NO_TWINS = clause!(objects "R1"), "creates_no_twins": "every RESOURCE_OBJ_CREATE against the objects that there are";
    LIMITED = clause!(objects "R2"), "creates_as_many_as_it_may": "every RESOURCE_OBJ_CREATE against the limit of the driver capability";
    NOT_DESTROYED = clause!(objects "R3"), "leaves_destroyed_objects": "every MODIFY, QUERY and DESTROY against what was destroyed";
    NOT_MEANWHILE = clause!(objects "R5"), "sets_no_capability_of_objects": "every DRIVER_CAP_SET against the objects that there are";
    OBJECTS_FIRST = clause!(objects "R6"), "sets_the_capability_before_objects": "every RESOURCE_OBJ_CREATE: the driver capability must be set";
    STOPPED = clause!(parts "R1"), "stops_before_setting_parts": "every DEV_PARTS_SET against the member's mode";
    PARTS_ORDER = clause!(parts "R2"), "sets_parts_in_order": "types of the parts in every DEV_PARTS_SET";
    RECORDING = "WR-11", "lists_recording_first": "every command of write recording against the group's list";
}

const LIST_QUERY: u16 = 0;
const LIST_USE: u16 = 1;
const CAP_LIST: u16 = 7;
const CAP_GET: u16 = 8;
const CAP_SET: u16 = 9;
const CREATE: u16 = 0xa;
const DESTROY: u16 = 0xd;
const PARTS_SET: u16 = 0x10;
const MODE_SET: u16 = 0x11;
/// Opcodes that LIST_QUERY reports: two words of them.
const SUPPORTED: [u64; 2] = [0x0003_ff83, 0xf];
/// The device's limits of objects to get and to set parts.
const LIMITS: [u8; 2] = [2, 2];
const EINVAL: u16 = 22;
const INVALID_OPCODE: u16 = 2;
const RESERVED: u16 = 0x7777;
/// Longest data of a command that is looked at.
const DATA_MAX: u64 = 4096;

/// What the administration queue has been told.
#[derive(Debug)]
pub(super) struct Admin {
    refuse: bool,
    /// LIST_USE was refused with a reserved status, and nothing has shown what that is taken for.
    refused: bool,
    lists: BTreeMap<u16, Vec<u64>>,
    queried: BTreeSet<u16>,
    limits: Option<[u8; 2]>,
    /// Type and id of objects, and whether they are for setting.
    objects: BTreeMap<(u16, u32), usize>,
    destroyed: BTreeSet<(u16, u32)>,
    stopped: BTreeSet<(u16, u64)>,
    /// Virtual functions, while there are some.
    pub(super) members: Option<u16>,
}

/// A command as it came.
struct Command<'a> {
    opcode: u16,
    group: u16,
    member: u64,
    data: &'a [u8],
}

fn number(bytes: &[u8]) -> u64 {
    let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
    bytes.iter().take(8).rev().fold(0, fold)
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::try_from(number(bytes.get(at..at + 2).unwrap_or(&[]))).unwrap_or(0)
}

fn bit(list: &[u64], opcode: u16) -> bool {
    let word = list.get(usize::from(opcode / 64)).copied().unwrap_or(0);
    word >> (opcode % 64) & 1 == 1
}

impl Admin {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            refuse: plan.reserved_status,
            refused: false,
            lists: BTreeMap::new(),
            queried: BTreeSet::new(),
            limits: None,
            objects: BTreeMap::new(),
            destroyed: BTreeSet::new(),
            stopped: BTreeSet::new(),
            members: None,
        }
    }

    pub(super) fn reset(&mut self) {
        let (refuse, members) = (self.refuse, self.members);
        *self = Self {
            refuse,
            members,
            refused: false,
            lists: BTreeMap::new(),
            queried: BTreeSet::new(),
            limits: None,
            objects: BTreeMap::new(),
            destroyed: BTreeSet::new(),
            stopped: BTreeSet::new(),
        };
    }

    /// Carries out a command; bytes written.
    pub(super) fn process(&mut self, book: &mut Ledger, memory: &Memory, chain: &Chain) -> u32 {
        let (readable, writable) = (chain.readable(), chain.writable());
        let lengths = || format!("{readable} bytes to read and {writable} to write");
        let words = readable.is_multiple_of(8) && writable.is_multiple_of(8);
        book.check(&WHOLE_WORDS, words, lengths);
        book.check(&NOT_EMPTY, readable > 0 && writable > 0, lengths);
        book.check(&LONG_ENOUGH, readable >= 24, lengths);
        let mut bytes = vec![
            0;
            usize::try_from(readable.min(24 + DATA_MAX))
                .unwrap_or(0)
                .max(24)
        ];
        chain.read(memory, 0, &mut bytes);
        let command = Command {
            opcode: word(&bytes, 0),
            group: word(&bytes, 2),
            member: number(&bytes[16..24]),
            data: &bytes[24..],
        };
        let (status, qualifier, result) = self.carry_out(book, &command);
        let mut answer = Vec::new();
        answer.extend(status.to_le_bytes());
        answer.extend(qualifier.to_le_bytes());
        answer.extend([0; 4]);
        answer.extend(result);
        let written = chain.write(memory, 0, &answer);
        let rest = usize::try_from(writable)
            .unwrap_or(0)
            .saturating_sub(written)
            .min(4096);
        chain.write(memory, written as u64, &vec![0xff; rest]);
        u32::try_from(written).unwrap_or(0)
    }

    fn carry_out(&mut self, book: &mut Ledger, command: &Command<'_>) -> (u16, u16, Vec<u8>) {
        let Command {
            opcode,
            group,
            member,
            data,
        } = *command;
        if group == 1 {
            let vfs = self.members.unwrap_or(0);
            let there = (1..=u64::from(vfs)).contains(&member) || opcode <= LIST_USE;
            book.check(&MEMBERS, there, || format!("member {member} of {vfs}"));
        }
        match opcode {
            LIST_QUERY => {
                self.queried.insert(group);
                let list = SUPPORTED
                    .iter()
                    .flat_map(|word| word.to_le_bytes())
                    .collect();
                return (0, 0, list);
            }
            LIST_USE => return self.list_use(book, group, data),
            _ => {}
        }
        if !self.may(book, opcode, group) {
            return (EINVAL, INVALID_OPCODE, Vec::new());
        }
        match opcode {
            CAP_LIST => return (0, 0, 1_u64.to_le_bytes().to_vec()),
            CAP_GET => return (0, 0, LIMITS.to_vec()),
            CAP_SET => self.capability(book, data),
            CREATE..=DESTROY => self.object(book, opcode, data),
            PARTS_SET => {
                let stopped = self.stopped.contains(&(group, member));
                book.check(&STOPPED, stopped, || {
                    format!(
                        "member {member} is {}stopped",
                        if stopped { "" } else { "not " }
                    )
                });
                let types = parts(data.get(8..).unwrap_or(&[]));
                if types.len() > 1 {
                    book.check(&PARTS_ORDER, types.is_sorted(), || {
                        format!("types {types:#x?}")
                    });
                }
            }
            MODE_SET => {
                if data.first().is_some_and(|flags| flags & 1 == 1) {
                    self.stopped.insert((group, member));
                } else {
                    self.stopped.remove(&(group, member));
                }
            }
            _ => return (0, 0, vec![0; 16]),
        }
        (0, 0, Vec::new())
    }

    fn list_use(&mut self, book: &mut Ledger, group: u16, data: &[u8]) -> (u16, u16, Vec<u8>) {
        let list: Vec<u64> = data.chunks(8).map(number).collect();
        let reported = |at: usize| {
            SUPPORTED
                .get(at)
                .copied()
                .filter(|_| self.queried.contains(&group))
        };
        let beyond = list.iter().skip(SUPPORTED.len()).any(|word| *word != 0);
        let within = list.iter().take(SUPPORTED.len()).enumerate();
        let unreported = within
            .filter(|(at, word)| **word & !reported(*at).unwrap_or(0) != 0)
            .count();
        let saw = || format!("{list:#x?} of {SUPPORTED:#x?}");
        book.check(&REPORTED, unreported == 0, saw);
        if self.queried.contains(&group) {
            for rule in [&USED_ONLY, &USED_LENGTH] {
                book.check(rule, !beyond, saw);
            }
        }
        if std::mem::take(&mut self.refuse) {
            self.refused = true;
            return (RESERVED, 0, Vec::new());
        }
        if std::mem::take(&mut self.refused) {
            book.kept(&RESERVED_STATUS, "it sent LIST_USE again");
        }
        self.lists.insert(group, list);
        (0, 0, Vec::new())
    }

    /// Whether a command may be used by the lists.
    fn may(&mut self, book: &mut Ledger, opcode: u16, group: u16) -> bool {
        if std::mem::take(&mut self.refused) {
            book.broke(
                &RESERVED_STATUS,
                format!("command {opcode:#x} after LIST_USE was answered with {RESERVED:#x}"),
            );
            return false;
        }
        let list = self.lists.get(&group);
        let listed = list.is_some_and(|list| bit(list, opcode));
        book.check(&LIST_FIRST, !self.lists.is_empty(), || {
            format!("command {opcode:#x}")
        });
        book.check(&LISTED, listed, || {
            format!("command {opcode:#x} of group {group} with the list {list:#x?}")
        });
        if (0x40..=0x43).contains(&opcode) {
            book.check(&RECORDING, listed, || {
                format!("command {opcode:#x} with the list {list:#x?}")
            });
        }
        listed
    }

    fn capability(&mut self, book: &mut Ledger, data: &[u8]) {
        let limits = [data.get(8), data.get(9)].map(|byte| byte.copied().unwrap_or(0));
        let within = limits
            .iter()
            .zip(LIMITS)
            .all(|(ours, theirs)| *ours <= theirs);
        book.check(&WITHIN_DEVICE, within, || {
            format!("{limits:?} of {LIMITS:?}")
        });
        let count = self.objects.len();
        let saw = || format!("{limits:?} with {count} objects");
        if limits == [0; 2] {
            book.check(&NOT_DISABLED, count == 0, saw);
        } else {
            book.check(&NOT_MEANWHILE, count == 0, saw);
        }
        self.limits = Some(limits);
    }

    fn object(&mut self, book: &mut Ledger, opcode: u16, data: &[u8]) {
        let id = u32::try_from(number(data.get(4..8).unwrap_or(&[]))).unwrap_or(0);
        let key = (word(data, 0), id);
        if opcode != CREATE {
            let gone = self.destroyed.contains(&key);
            book.check(&NOT_DESTROYED, !gone, || {
                format!("command {opcode:#x} on object {key:?}")
            });
            if opcode == DESTROY && self.objects.remove(&key).is_some() {
                self.destroyed.insert(key);
            }
            return;
        }
        let set = self.limits.is_some_and(|limits| limits != [0; 2]);
        for rule in [&CAPABILITY_FIRST, &OBJECTS_FIRST] {
            book.check(rule, set, || {
                format!("object {key:?} with the limits {:?}", self.limits)
            });
        }
        let twin = self.objects.contains_key(&key);
        book.check(&NO_TWINS, !twin, || {
            format!("object {key:?} among {:?}", self.objects.keys())
        });
        let kind = usize::from(data.get(16).copied().unwrap_or(0) & 1);
        let there = self
            .objects
            .values()
            .filter(|other| **other == kind)
            .count();
        let limit = usize::from(self.limits.unwrap_or([0; 2])[kind]);
        if set {
            book.check(&LIMITED, there < limit, || {
                format!("{there} objects of this kind, the limit is {limit}")
            });
        }
        self.destroyed.remove(&key);
        // More than any limit reported is not kept.
        if self.objects.len() < 64 {
            self.objects.insert(key, kind);
        }
    }
}

/// Types of parts, as far as their lengths lead.
fn parts(mut data: &[u8]) -> Vec<u16> {
    let mut types = Vec::new();
    while data.len() >= 16 {
        types.push(word(data, 0));
        let len = usize::try_from(number(&data[12..16])).unwrap_or(usize::MAX);
        data = data
            .get(16..)
            .and_then(|rest| rest.get(len..))
            .unwrap_or(&[]);
    }
    types
}
