//! Sources of entropy: what comes into buffers of any size and shape.

use super::{Case, plain};
use crate::clause;
use crate::constants::{PAGE, feature, rng};
use crate::harness::{Absent, Bench, Judged, Live, Segment, Span, Stop, arose, demand};

const RANDOM: &str = clause!(rng "D1");

pub(super) const CASES: &[Case] = &[
    plain("every_buffer_gets_random_bytes", &[RANDOM], sizes).rings(),
    plain("many_buffers_at_once_get_random_bytes", &[RANDOM], many).rings(),
    plain("divided_buffers_get_random_bytes", &[RANDOM], divided).rings(),
    plain("buffers_in_tables_get_random_bytes", &[RANDOM], indirect).rings(),
];

/// What no buffer holds that a device has written: buffers are filled with it.
const FILL: u8 = 0x5a;
/// Of so many random bytes, some differ from all others and from the filling.
const ENOUGH: usize = 8;

fn up(bench: &Bench, need: u64) -> Result<Live, Stop> {
    if bench.caps.virtio_id() != Some(rng::ID) {
        return Err(Stop::NotApplicable(Absent::DeviceType(rng::ID)));
    }
    bench.up(need)
}

fn writable(span: Span) -> Segment {
    Segment {
        iova: span.iova,
        len: u32::try_from(span.len).unwrap_or(0),
        writable: true,
    }
}

/// Publishes what is exposed and waits; returns what came, and how much of it the used element at
/// `place` claims.
fn gather(bench: &Bench, live: &Live, place: u16, buffer: Span) -> Result<Vec<u8>, Stop> {
    live.ring.publish(live.ring.next)?;
    bench.kick(0)?;
    arose(bench.used_all(live)?, || {
        "the buffers are not used".to_owned()
    })?;
    claimed(bench, live, place, buffer)
}

fn claimed(bench: &Bench, live: &Live, place: u16, buffer: Span) -> Result<Vec<u8>, Stop> {
    let (_, used) = live.ring.used_element(place)?;
    let all = u64::from(used);
    demand(
        RANDOM,
        (1..=buffer.len).contains(&all),
        "at least one byte in every buffer",
        || format!("{used} bytes of {}", buffer.len),
    )?;
    let mut bytes = vec![0; usize::try_from(all).unwrap_or(0)];
    bench.memory().read(buffer.offset, &mut bytes)?;
    bench.step(format!("{used} bytes of {}", buffer.len));
    Ok(bytes)
}

/// Whether bytes may be random: they are neither all alike nor what was there before.
fn various(bytes: &[u8]) -> bool {
    let first = bytes.first();
    bytes.len() < ENOUGH
        || bytes.iter().any(|byte| Some(byte) != first) && bytes.iter().any(|byte| *byte != FILL)
}

fn judge(pool: &[Vec<u8>]) -> Result<(), Stop> {
    let all: Vec<u8> = pool.iter().flatten().copied().collect();
    demand(RANDOM, various(&all), "bytes that differ", || {
        format!("{} bytes, all {:?}", all.len(), all.first())
    })?;
    let mut large: Vec<_> = pool.iter().filter(|bytes| bytes.len() >= ENOUGH).collect();
    let before = large.len();
    large.sort();
    large.dedup_by(|a, b| a.iter().zip(b.iter()).take(ENOUGH).all(|(a, b)| a == b));
    demand(
        RANDOM,
        large.len() == before,
        "other bytes in every buffer",
        || {
            format!(
                "{} of {before} buffers begin as others do",
                before - large.len()
            )
        },
    )?;
    let same = pool.iter().find(|bytes| !various(bytes));
    demand(RANDOM, same.is_none(), "bytes that differ", || {
        format!("a buffer of {:?} bytes, all the same", same.map(Vec::len))
    })
}

fn sizes(bench: &Bench) -> Judged {
    let mut live = up(bench, 0)?;
    let mut pool = Vec::new();
    for len in [1, 2, 3, 16, 64, 511, 512, 4096, 65_536, 1, 1, 1, 1] {
        let buffer = bench.buffer(len)?;
        let place = live.ring.next;
        live.ring.stage(0, &[writable(buffer)])?;
        pool.push(gather(bench, &live, place, buffer)?);
    }
    judge(&pool)?;
    Ok(String::new())
}

fn many(bench: &Bench) -> Judged {
    let mut live = up(bench, 0)?;
    let count = live.ring.size;
    let buffers = (0..count).map(|_| bench.buffer(48));
    let buffers = buffers.collect::<Result<Vec<_>, _>>()?;
    for (head, buffer) in (0_u16..).zip(&buffers) {
        live.ring.stage(head, &[writable(*buffer)])?;
    }
    live.ring.publish(live.ring.next)?;
    bench.kick(0)?;
    arose(bench.used_all(&live)?, || {
        "the buffers are not used".to_owned()
    })?;
    let mut pool = Vec::new();
    for place in 0..count {
        // They need not be used in their order.
        let (head, _) = live.ring.used_element(place)?;
        let buffer = usize::try_from(head)
            .ok()
            .and_then(|head| buffers.get(head));
        let buffer = buffer.ok_or_else(|| Stop::Inconclusive(format!("head {head} was used")))?;
        pool.push(claimed(bench, &live, place, *buffer)?);
    }
    judge(&pool)?;
    Ok(format!("{count} buffers"))
}

/// A buffer in three descriptors, of which the first is as small as can be.
fn divided(bench: &Bench) -> Judged {
    let mut live = up(bench, 0)?;
    let mut pool = Vec::new();
    for lengths in [[1, 1, 62], [1, 62, 1], [20, 20, 24]] {
        let buffer = bench.buffer(64)?;
        let mut at = 0;
        let chain = lengths.map(|len| {
            let part = buffer.part(at, len);
            at += len;
            writable(part)
        });
        let place = live.ring.next;
        live.ring.stage(0, &chain)?;
        pool.push(gather(bench, &live, place, buffer)?);
    }
    judge(&pool)?;
    Ok(String::new())
}

fn indirect(bench: &Bench) -> Judged {
    let mut live = up(bench, feature::INDIRECT_DESC)?;
    let table = bench.take(PAGE)?;
    let mut pool = Vec::new();
    for len in [16, 64, 512] {
        let buffer = bench.buffer(len)?;
        let place = live.ring.next;
        let half = buffer.len / 2;
        let chain = [
            writable(buffer.part(0, half)),
            writable(buffer.part(half, half)),
        ];
        live.ring.indirect(0, table, &chain, 0)?;
        live.ring.expose(0)?;
        pool.push(gather(bench, &live, place, buffer)?);
    }
    judge(&pool)?;
    Ok(String::new())
}
