//! Packed lists: framing, buffer ids, lengths, indirect tables.

use super::packed::pieces;
use super::{Case, plain};
use crate::clause;
use crate::constants::{PAGE, blk, feature, packed, ring};
use crate::harness::{Absent, Bench, Entry, Judged, PackedLive, Segment, Span, Stop, demand};

const ANY_FRAMING: &str = clause!(framing "D1");
const IN_ORDER: &str = clause!(reserved "D5");

pub(super) const CASES: &[Case] = &[
    plain(
        "a_header_may_be_divided_in_a_packed_ring",
        &[ANY_FRAMING],
        divided_header,
    )
    .rings(),
    plain(
        "data_may_be_divided_in_a_packed_ring",
        &[ANY_FRAMING],
        divided_data,
    )
    .rings(),
    plain(
        "data_and_status_may_be_one_in_a_packed_ring",
        &[ANY_FRAMING],
        joined_status,
    )
    .rings(),
    plain("packed_buffer_ids_are_the_drivers", &["PK-2"], ids).rings(),
    plain("a_packed_used_length_was_written", &["PK-3"], lengths).rings(),
    plain("a_packed_indirect_table", &["PK-4"], indirect).rings(),
    plain(
        "reserved_flags_in_a_packed_indirect_table",
        &["PK-4"],
        reserved_flags,
    )
    .rings(),
    plain(
        "write_on_a_packed_indirect_descriptor",
        &["PK-4"],
        indirect_write,
    )
    .rings(),
    plain("packed_buffers_are_used_in_order", &[IN_ORDER], in_order).rings(),
];

/// The header and what follows it. Only a disk's requests have one.
fn split_header(parts: &[Segment]) -> Result<(Segment, &[Segment]), Stop> {
    match parts {
        [header, rest @ ..] if !header.writable => Ok((*header, rest)),
        _ => Err(Stop::NotApplicable(Absent::Header)),
    }
}

/// The parts with those of `data` divided.
fn divided(parts: &[Segment], data: Span, lengths: &[u32]) -> Vec<Segment> {
    let divide = |segment: &Segment| {
        if segment.iova == data.iova {
            pieces(data, lengths)
        } else {
            vec![*segment]
        }
    };
    parts.iter().flat_map(divide).collect()
}

/// A source of entropy may use less than it is given: to have used it is enough.
fn begun(parts: &[Segment], live: &PackedLive, done: bool) -> bool {
    done || parts.iter().all(|part| part.writable) && live.ring.open() == 0
}

fn divided_header(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    for cut in [8, 4, 1, 15] {
        let data = bench.buffer(512)?;
        let (id, parts) = bench.packed_parts(&mut live, data)?;
        let (header, rest) = split_header(&parts)?;
        let first = Segment { len: cut, ..header };
        let second = Segment {
            iova: header.iova + u64::from(cut),
            len: header.len - cut,
            ..header
        };
        let list: Vec<_> = [first, second]
            .into_iter()
            .chain(rest.iter().copied())
            .collect();
        let done = bench.packed_carry(&mut live, id, &list, data)?;
        demand(
            ANY_FRAMING,
            done,
            "a request whose header is in two descriptors carried out",
            || live.saw(),
        )?;
    }
    Ok(String::new())
}

fn divided_data(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    for lengths in [[1, 511, 512], [512, 1, 511], [100, 900, 24]] {
        let data = bench.buffer(1024)?;
        let (id, parts) = bench.packed_parts(&mut live, data)?;
        let list = divided(&parts, data, &lengths);
        let done = bench.packed_carry(&mut live, id, &list, data)?;
        demand(
            ANY_FRAMING,
            begun(&parts, &live, done),
            "a request whose data is in three descriptors carried out",
            || live.saw(),
        )?;
    }
    Ok(String::new())
}

fn joined_status(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    let all = bench.buffer(PAGE)?;
    let data = all.part(0, 512);
    let (id, parts) = bench.packed_parts(&mut live, data)?;
    let (header, _) = split_header(&parts)?;
    let joined = Segment {
        iova: data.iova,
        len: 513,
        writable: true,
    };
    let done = bench.packed_carry(&mut live, id, &[header, joined], data)?;
    let mut status = [0xff];
    bench.memory().read(all.offset + 512, &mut status)?;
    demand(
        ANY_FRAMING,
        done && status == [blk::OK],
        "a request whose status follows its data in one descriptor carried out, status 0",
        || format!("{}; status {status:?}", live.saw()),
    )?;
    Ok(String::new())
}

/// Ids of all sizes, which only the last descriptor of a list has.
fn ids(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    let data = bench.buffer(512)?;
    for id in [0, 1, live.ring.size, 0x7fff, 0x8000, 0xffff] {
        bench.fill(data)?;
        let (_, parts) = bench.packed_parts(&mut live, data)?;
        let entry = |(place, segment): (usize, &Segment)| {
            let last = place + 1 == parts.len();
            Entry {
                segment: *segment,
                id: if last { id } else { id ^ 0x1111 },
                flags: if last { 0 } else { ring::NEXT },
            }
        };
        let list: Vec<_> = parts.iter().enumerate().map(entry).collect();
        let staged = live.ring.stage_entries(id, &list)?;
        let done = bench.packed_finish(&mut live, staged, data)?;
        let used = live.used.last().map(|used| used.id);
        demand(
            "PK-2",
            done && used == Some(id),
            "the buffer id of the list's last descriptor in its used descriptor",
            || format!("buffer {used:x?} used, {id:#x} was given; {}", live.saw()),
        )?;
    }
    Ok(String::new())
}

fn lengths(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(0)?;
    for len in [512, 1024, 4096] {
        let data = bench.buffer(len)?;
        let (id, parts) = bench.packed_parts(&mut live, data)?;
        let room: u64 = parts
            .iter()
            .filter(|part| part.writable)
            .map(|part| u64::from(part.len))
            .sum();
        let begun = bench.packed_carry(&mut live, id, &parts, data)?;
        let used = live.used.last().copied();
        let Some(used) = used.filter(|_| begun || live.ring.open() == 0) else {
            return Err(Stop::Inconclusive(format!(
                "a request is not used: {}",
                live.saw()
            )));
        };
        demand(
            "PK-3",
            used.flags & ring::WRITE != 0,
            "WRITE in the used descriptor of a buffer that was written",
            || format!("flags {:#06x}", used.flags),
        )?;
        let written = u64::from(used.len);
        demand(
            "PK-3",
            (1..=room).contains(&written),
            "a used length of at least 1 and at most what may be written",
            || format!("used length {written}, of {room} bytes that may be written"),
        )?;
        let mut bytes = vec![0; usize::try_from(written.min(len)).unwrap_or(0)];
        bench.memory().read(data.offset, &mut bytes)?;
        // Media hold no run of the filling: eight of them in a row were not written.
        let left = bytes.windows(8).position(|run| run == [0x5a; 8]);
        demand(
            "PK-3",
            left.is_none(),
            "as many bytes written as the used length says",
            || format!("used length {written}, and byte {left:?} is as it was before"),
        )?;
    }
    Ok(String::new())
}

/// Requests in an indirect table whose descriptors have the id and the flags that `junk` says for
/// each; the descriptor in the ring refers to it with `flags` besides INDIRECT.
fn through_a_table(bench: &Bench, junk: &[(u16, u16)], flags: u16) -> Judged {
    let mut live = bench.packed_up(feature::INDIRECT_DESC)?;
    let table = bench.take(PAGE)?;
    let data = bench.buffer(1024)?;
    for (round, (inner_id, inner_flags)) in junk.iter().enumerate() {
        bench.fill(data)?;
        let (id, parts) = bench.packed_parts(&mut live, data)?;
        let entry = |segment: &Segment| Entry {
            segment: *segment,
            id: *inner_id,
            flags: *inner_flags,
        };
        let list = divided(&parts, data, &[512, 512]);
        let entries: Vec<_> = list.iter().map(entry).collect();
        let whole = Entry {
            segment: live.ring.table(table, &entries)?,
            id,
            flags: ring::INDIRECT | flags,
        };
        let before = bench.bytes(table)?;
        let staged = live.ring.stage_entries(id, &[whole])?;
        let done = bench.packed_finish(&mut live, staged, data)?;
        let used = live.used.last().map(|used| used.id);
        demand(
            "PK-4",
            begun(&parts, &live, done) && used == Some(id),
            "a request in an indirect table carried out, and used by the id of its one descriptor",
            || {
                format!(
                    "request {round}, with {inner_id:#x} for ids and flags {inner_flags:#06x} in \
                     the table: buffer {used:x?} used, {id:#x} was given; {}",
                    live.saw()
                )
            },
        )?;
        demand(
            "PK-4",
            bench.bytes(table)? == before,
            "the indirect table as it was",
            || "it changed".to_owned(),
        )?;
    }
    Ok(String::new())
}

fn indirect(bench: &Bench) -> Judged {
    // The ring is one descriptor shorter for each: as many as take it round.
    through_a_table(bench, &[(0, 0); 70], 0)
}

fn reserved_flags(bench: &Bench) -> Judged {
    let junk = [
        (0xffff, 0),
        (0x1234, ring::NEXT),
        (0, ring::INDIRECT),
        (0, packed::AVAIL),
        (0, packed::USED),
        (0, 0x7f78),
        (0xffff, !ring::WRITE),
    ];
    through_a_table(bench, &junk, 0)
}

fn indirect_write(bench: &Bench) -> Judged {
    through_a_table(bench, &[(0, 0); 3], ring::WRITE)
}

fn in_order(bench: &Bench) -> Judged {
    let mut live = bench.packed_up(feature::IN_ORDER)?;
    let (mut lists, mut staged) = (Vec::new(), Vec::new());
    for _ in 0..live.capacity() {
        let at = live.ring.next;
        let data = bench.buffer(512 * (1 + bench.random(8)))?;
        staged.push(bench.packed_stage(&mut live, data)?);
        lists.push((live.ids.last().copied(), at, data));
    }
    // The first one last: whenever the device looks, it finds all of them or none.
    while let Some(list) = staged.pop() {
        live.ring.publish(list)?;
    }
    bench.kick(0)?;
    // A batch may be returned by one used descriptor, with the id of its last list, where its first
    // list stood. All lists of a batch are complete then.
    let mut rest = lists.as_slice();
    while let [(first, at, _), ..] = rest {
        let mut used = None;
        bench.wait(bench.limit, || {
            used = live.ring.used_at(*at)?;
            Ok(used.is_some())
        })?;
        let id = used.map(|used| used.id);
        let place = rest.iter().position(|(given, ..)| id == *given);
        let (batch, later) = rest.split_at(place.map_or(0, |place| place + 1));
        let mut complete = !batch.is_empty();
        for (_, _, data) in batch {
            complete &= bench.filled(data.part(0, 512))?;
        }
        demand(
            IN_ORDER,
            complete,
            "lists complete and used in the order in which they were made available",
            || {
                format!(
                    "at entry {}: buffer {id:?}, where {first:?} was next; complete: {complete}",
                    at.index
                )
            },
        )?;
        rest = later;
    }
    Ok(format!("{} lists", lists.len()))
}
