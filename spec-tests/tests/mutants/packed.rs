//! Mutants of packed rings.
//!
//! The sound device takes lists in the order of the ring and uses them in that order, so the used
//! descriptor of a list stands where the list began; a defect changes what stands there before the
//! case can look.

use super::frame::{Access, Defect, Function, Mind, Mutant, SOUND};
use super::split::{crooked, learn, with_event_idx};
use driver::bus::BusError;
use spec_tests::clause;
use spec_tests::constants::{feature, packed, reg, ring};
use spec_tests::harness::Spot;
use std::time::{Duration, Instant};

/// How long a defect that comes after use waits for it.
const USE: Duration = Duration::from_secs(2);

/// A descriptor as the driver wrote it.
#[derive(Clone, Copy)]
struct Descriptor {
    /// Where it stands.
    place: u64,
    address: u64,
    len: u32,
    flags: u16,
}

/// A list that was made available.
struct List {
    at: Spot,
    descriptors: Vec<Descriptor>,
}

/// How a defect changes the ring, or tells the device of a list or not.
type Before = fn(&Mind, &[List]) -> bool;
/// How it changes the ring once the lists have been used.
type After = fn(&Mind, &[List]);

fn size(mind: &Mind) -> u16 {
    mind.recall("size")
        .and_then(|size| u16::try_from(size).ok())
        .unwrap_or(1)
        .max(1)
}

/// The address of an entry of the ring.
fn entry(mind: &Mind, index: u16) -> u64 {
    mind.recall("desc").unwrap_or(0) + ring::DESC * u64::from(index)
}

fn word(mind: &Mind, at: u64) -> u16 {
    u16::from_le_bytes(mind.peek(at))
}

fn store(mind: &Mind, at: u64, bytes: &[u8]) {
    for (place, byte) in (at..).zip(bytes) {
        mind.scribble(place, *byte);
    }
}

fn flags(mind: &Mind, index: u16) -> u16 {
    word(mind, entry(mind, index) + 14)
}

fn set_flags(mind: &Mind, index: u16, flags: u16) {
    store(mind, entry(mind, index) + 14, &flags.to_le_bytes());
}

fn whose(flags: u16) -> u16 {
    flags & (packed::AVAIL | packed::USED)
}

/// Place and flags of the driver's event suppression structure.
fn asked(mind: &Mind) -> (Spot, u16) {
    let at = mind.recall("avail").unwrap_or(0);
    (
        Spot::of(word(mind, at)),
        word(mind, at + 2) & packed::EVENT_FLAGS,
    )
}

pub fn is_packed(mind: &Mind) -> bool {
    mind.recall("high").unwrap_or(0) & feature::RING_PACKED >> 32 != 0
}

/// Where the next list is to come.
fn next(mind: &Mind) -> Spot {
    let bits = mind
        .recall("next")
        .and_then(|bits| u16::try_from(bits).ok());
    bits.map_or(Spot::BEGIN, Spot::of)
}

/// Remembers what was agreed on, and where a queue begins.
pub fn study(at: &Function, access: Access, value: u64) -> Result<(), BusError> {
    learn(at, access, value)?;
    if at.is(access, reg::DRIVER_FEATURE) && at.get(reg::DRIVER_FEATURE_SELECT)? == 1 {
        at.remember("high", value);
    }
    if at.is(access, reg::QUEUE_ENABLE) && value == 1 {
        let high = at.recall("high").unwrap_or(0);
        let begin = match high & feature::QUEUE_STATE >> 32 {
            0 => packed::STATE_DEFAULT,
            _ => at.get(reg::QUEUE_AVAIL_STATE)?,
        };
        at.remember("next", begin);
        at.remember("held", 0);
    }
    Ok(())
}

/// The lists that have come since the last time.
fn fresh(mind: &Mind) -> Vec<List> {
    let (size, mut at) = (size(mind), next(mind));
    let (mut lists, mut left) = (Vec::new(), size);
    while left > 0 && whose(flags(mind, at.index)) == at.available() {
        let mut list = List {
            at,
            descriptors: Vec::new(),
        };
        loop {
            let place = entry(mind, at.index);
            let flags = flags(mind, at.index);
            list.descriptors.push(Descriptor {
                place,
                address: u64::from_le_bytes(mind.peek(place)),
                len: u32::from_le_bytes(mind.peek(place + 8)),
                flags,
            });
            at = at.after(1, size);
            left = left.saturating_sub(1);
            if flags & ring::NEXT == 0 || left == 0 {
                break;
            }
        }
        lists.push(list);
    }
    mind.remember("next", u64::from(at.bits()));
    lists
}

/// Does something before the device is notified of a packed queue, if it is at all.
fn before(at: &Function, access: Access, value: u64, what: Before) -> Result<bool, BusError> {
    study(at, access, value)?;
    Ok(!at.kicked(access) || !is_packed(&at.mind) || what(&at.mind, &fresh(&at.mind)))
}

/// Whether IN_ORDER is agreed.
fn in_order(mind: &Mind) -> bool {
    mind.recall("high").unwrap_or(0) & feature::IN_ORDER >> 32 != 0
}

/// Notifies the device of a packed queue, and does something once it has used all that was new. In
/// order, one used descriptor stands for a batch: the first one that was new.
fn after(at: &Function, access: Access, value: u64, what: After) -> Result<bool, BusError> {
    study(at, access, value)?;
    if !at.kicked(access) || !is_packed(&at.mind) {
        return Ok(true);
    }
    let lists = fresh(&at.mind);
    at.ring(access, value)?;
    let used = |list: &List| whose(flags(&at.mind, list.at.index)) == list.at.used();
    let count = if in_order(&at.mind) { 1 } else { lists.len() };
    let begun = Instant::now();
    while !lists.is_empty() && begun.elapsed() < USE {
        if lists.iter().take(count).all(used) {
            what(&at.mind, &lists);
            break;
        }
        std::thread::yield_now();
    }
    Ok(false)
}

/// What learns on every write and lets all through.
const STUDYING: Defect = Defect {
    write: |at, access, value| study(at, access, value).map(|()| true),
    ..SOUND
};

/// Starts on the first list that it finds, wherever it stands.
fn start_anywhere(mind: &Mind) {
    let (next, size) = (next(mind), size(mind));
    if whose(flags(mind, next.index)) == next.available() {
        return;
    }
    let mut later = (1..9).map(|ahead| next.after(ahead, size));
    let found = later.find(|at| whose(flags(mind, at.index)) == at.available());
    for ahead in 0..3 {
        if let Some(at) = found.map(|at| at.after(ahead, size).index)
            && flags(mind, at) & ring::WRITE != 0
        {
            mind.scribble(u64::from_le_bytes(mind.peek(entry(mind, at))), 0x77);
        }
    }
}

/// Keeps what it has used to itself while the driver wants no notification, and tells of it after
/// what comes next.
fn newest_first(mind: &Mind, lists: &[List]) {
    let ([list], (_, packed::DISABLE)) = (lists, asked(mind)) else {
        return;
    };
    let place = entry(mind, list.at.index);
    let used: [u8; 8] = mind.peek(place + 8);
    if mind.recall("held") != Some(1) {
        mind.remember("held", 1);
        mind.remember("held at", place);
        mind.remember("held used", u64::from_le_bytes(used));
        set_flags(mind, list.at.index, list.descriptors[0].flags);
        return;
    }
    mind.remember("held", 0);
    let older = mind.recall("held used").unwrap_or(0).to_le_bytes();
    let at = mind.recall("held at").unwrap_or(0);
    // The flags stay: each is of the lap that its place is in.
    store(mind, at + 8, &used[..6]);
    store(mind, place + 8, &older[..6]);
    let flags = list.at.used() | ring::WRITE;
    let wraps = at > place;
    let older = if wraps {
        flags ^ list.at.used() ^ before_turn(list.at)
    } else {
        flags
    };
    store(mind, at + 14, &older.to_le_bytes());
}

/// The bits of a used descriptor in the lap before.
fn before_turn(at: Spot) -> u16 {
    let wrap = !at.wrap;
    Spot { wrap, ..at }.used()
}

/// Takes a descriptor for available whose bits differ, whatever the lap.
fn any_lap(at: &Function, access: Access, value: u64) -> Result<bool, BusError> {
    study(at, access, value)?;
    let mind = &at.mind;
    if at.kicked(access) && is_packed(mind) {
        let next = next(mind);
        let flags = flags(mind, next.index);
        let both = packed::AVAIL | packed::USED;
        if whose(flags) == next.available() ^ both {
            set_flags(mind, next.index, flags ^ both);
        }
        fresh(mind);
    }
    Ok(true)
}

/// Says of the buffer that was used first, when it is notified again, that it has one byte more.
fn rewrite_used(mind: &Mind, lists: &[List]) -> bool {
    if let Some(at) = mind
        .recall("told")
        .and_then(|bits| u16::try_from(bits).ok())
    {
        let at = Spot::of(at);
        if whose(flags(mind, at.index)) == at.used() {
            let place = entry(mind, at.index) + 8;
            mind.scribble(place, mind.peek::<1>(place)[0].wrapping_add(1));
        }
    }
    if let Some(list) = lists.first() {
        mind.remember("told", u64::from(list.at.bits()));
    }
    true
}

/// The first two elements of four or more that are to be written, the other way round.
fn swap_elements(mind: &Mind, lists: &[List]) -> bool {
    for list in lists {
        let written = |one: &&Descriptor| one.flags & ring::WRITE != 0 && one.len == 512;
        let written: Vec<_> = list.descriptors.iter().filter(written).collect();
        if let [one, other, _, _] = written[..] {
            store(mind, one.place, &other.address.to_le_bytes());
            store(mind, other.place, &one.address.to_le_bytes());
        }
    }
    true
}

/// What a list's one descriptor refers to: flags of the descriptors in an indirect table.
fn table(mind: &Mind, list: &List) -> Vec<u16> {
    let Some(whole) = list
        .descriptors
        .first()
        .filter(|one| one.flags & ring::INDIRECT != 0)
    else {
        return Vec::new();
    };
    let count = u64::from(whole.len) / ring::DESC;
    (0..count.min(8))
        .map(|place| word(mind, whole.address + ring::DESC * place + 14))
        .collect()
}

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "starts_packed_lists_in_any_order",
        clauses: &[clause!(packed "D1")],
        defect: Defect {
            write: |at, access, value| {
                study(at, access, value)?;
                if at.kicked(access) && is_packed(&at.mind) {
                    start_anywhere(&at.mind);
                    fresh(&at.mind);
                }
                Ok(true)
            },
            ..SOUND
        },
    },
    Mutant {
        name: "returns_the_newest_packed_buffer_first",
        clauses: &[clause!(packed "D2")],
        defect: Defect {
            write: |at, access, value| after(at, access, value, newest_first),
            ..SOUND
        },
    },
    Mutant {
        name: "writes_to_a_packed_header",
        clauses: &[clause!(packed_table "D1")],
        defect: Defect {
            write: |at, access, value| {
                after(at, access, value, |mind, lists| {
                    let first = lists.first().and_then(|list| list.descriptors.first());
                    if let Some(header) =
                        first.filter(|one| one.flags & (ring::WRITE | ring::INDIRECT) == 0)
                    {
                        mind.scribble(header.address + 5, 0x77);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_packed_descriptors_of_any_lap",
        clauses: &[clause!(packed_table "D2")],
        defect: Defect {
            write: any_lap,
            ..SOUND
        },
    },
    Mutant {
        name: "rewrites_used_packed_descriptors",
        clauses: &[clause!(packed_table "D3")],
        defect: Defect {
            write: |at, access, value| before(at, access, value, rewrite_used),
            ..SOUND
        },
    },
    Mutant {
        name: "swaps_elements_of_packed_lists",
        clauses: &[clause!(packed_lists "D1")],
        defect: Defect {
            write: |at, access, value| before(at, access, value, swap_elements),
            ..SOUND
        },
    },
    Mutant {
        name: "wants_a_packed_header_in_one_piece",
        clauses: &[clause!(framing "D1")],
        defect: Defect {
            write: |at, access, value| {
                before(at, access, value, |_, lists| {
                    let short = |one: &Descriptor| {
                        one.flags & (ring::WRITE | ring::INDIRECT) == 0 && one.len < 16
                    };
                    !lists.iter().any(|list| list.descriptors.iter().any(short))
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "uses_the_second_packed_buffer_before_the_first",
        clauses: &[clause!(reserved "D5")],
        defect: Defect {
            write: |at, access, value| {
                after(at, access, value, |mind, lists| {
                    if let ([one, other, ..], true) = (lists, in_order(mind)) {
                        let place = entry(mind, one.at.index) + 12;
                        let id: [u8; 2] = mind.peek(entry(mind, other.at.index) + 12);
                        store(mind, place, &id);
                        // The first one is still as it was.
                        let data = |part: &&Descriptor| part.len >= 512;
                        if let Some(part) = one.descriptors.iter().find(data) {
                            store(mind, part.address, &[0x5a; 512]);
                        }
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "never_turns_its_wrap_counter",
        clauses: &["PK-1"],
        defect: Defect {
            write: |at, access, value| {
                after(at, access, value, |mind, lists| {
                    for list in lists.iter().filter(|list| !list.at.wrap) {
                        let flags = flags(mind, list.at.index);
                        set_flags(mind, list.at.index, flags | packed::AVAIL | packed::USED);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "writes_used_packed_descriptors_side_by_side",
        clauses: &["PK-2"],
        defect: Defect {
            write: |at, access, value| {
                after(at, access, value, |mind, lists| {
                    if let [one, other, ..] = lists {
                        let from = entry(mind, other.at.index);
                        let to = one.at.after(1, size(mind));
                        let bytes: [u8; 6] = mind.peek(from + 8);
                        store(mind, entry(mind, to.index) + 8, &bytes);
                        set_flags(mind, to.index, to.used() | ring::WRITE);
                        set_flags(mind, other.at.index, other.descriptors[0].flags);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "keeps_eight_bits_of_a_buffer_id",
        clauses: &["PK-2"],
        defect: Defect {
            write: |at, access, value| {
                after(at, access, value, |mind, lists| {
                    for list in lists {
                        mind.scribble(entry(mind, list.at.index) + 13, 0);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "hides_that_it_wrote",
        clauses: &["PK-3"],
        defect: Defect {
            write: |at, access, value| {
                after(at, access, value, |mind, lists| {
                    for list in lists {
                        let flags = flags(mind, list.at.index);
                        set_flags(mind, list.at.index, flags & !ring::WRITE);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "says_more_than_it_wrote_to_packed_buffers",
        clauses: &["PK-3"],
        defect: Defect {
            write: |at, access, value| {
                after(at, access, value, |mind, lists| {
                    for list in lists {
                        let place = entry(mind, list.at.index) + 8;
                        let len = u32::from_le_bytes(mind.peek(place)) + 0x1000;
                        store(mind, place, &len.to_le_bytes());
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "heeds_flags_in_packed_tables",
        clauses: &["PK-4"],
        defect: Defect {
            write: |at, access, value| {
                before(at, access, value, |mind, lists| {
                    let odd = |flags: u16| flags & !ring::WRITE != 0;
                    !lists
                        .iter()
                        .any(|list| table(mind, list).into_iter().any(odd))
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_write_on_a_packed_table_for_data",
        clauses: &["PK-4"],
        defect: Defect {
            write: |at, access, value| {
                before(at, access, value, |_, lists| {
                    let both = ring::INDIRECT | ring::WRITE;
                    let mut all = lists.iter().flat_map(|list| &list.descriptors);
                    !all.any(|one| one.flags & both == both)
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "notifies_of_packed_buffers_all_the_same",
        clauses: &["PK-5"],
        defect: Defect {
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    fired || is_packed(mind) && asked(mind).1 == packed::DISABLE
                })
            },
            ..STUDYING
        },
    },
    Mutant {
        name: "heeds_the_place_without_being_asked",
        clauses: &["PK-5"],
        defect: Defect {
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    let (place, flags) = asked(mind);
                    let elsewhere = flags == packed::ENABLE && place.index > size(mind);
                    fired && !(is_packed(mind) && elsewhere)
                })
            },
            ..STUDYING
        },
    },
    Mutant {
        name: "misses_packed_events_of_every_other_lap",
        clauses: &["PK-6"],
        defect: Defect {
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    let (place, flags) = asked(mind);
                    let missed = flags == packed::DESC_EVENT && !place.wrap;
                    fired && !(is_packed(mind) && missed)
                })
            },
            ..STUDYING
        },
    },
    Mutant {
        name: "notifies_before_a_packed_event",
        clauses: &["PK-6"],
        defect: Defect {
            interrupt: |at, _, real| {
                crooked(at, real, |mind, fired| {
                    fired || is_packed(mind) && asked(mind).1 == packed::DESC_EVENT
                })
            },
            ..STUDYING
        },
    },
    Mutant {
        name: "asks_for_a_place_without_event_idx",
        clauses: &["PK-7"],
        defect: Defect {
            write: |at, access, value| {
                after(at, access, value, |mind, _| {
                    if !with_event_idx(mind) {
                        let device = mind.recall("used").unwrap_or(0);
                        mind.scribble(device + 2, 2);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "writes_the_drivers_event_suppression",
        clauses: &["PK-8"],
        defect: Defect {
            write: |at, access, value| {
                after(at, access, value, |mind, _| {
                    if asked(mind).1 == packed::ENABLE {
                        mind.scribble(mind.recall("avail").unwrap_or(0), 1);
                    }
                })
            },
            ..SOUND
        },
    },
    Mutant {
        name: "takes_powers_of_two_only",
        clauses: &["PK-9"],
        defect: Defect {
            write: |at, access, value| {
                study(at, access, value)?;
                let odd = at.is(access, reg::QUEUE_SIZE) && !value.is_power_of_two();
                Ok(!(odd && is_packed(&at.mind)))
            },
            ..SOUND
        },
    },
];
