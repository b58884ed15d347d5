//! The dirty pages tracker's registers, which mark nothing here, and the state of queues.

use super::function::Inner;
use super::ledger::rules;
use super::life::Run;
use crate::constants::{feature, status};

rules! {
    PROGRAMMED = "DT-7", "programs_the_tracker_first": "address, length and gra_power when enable becomes 1, and writes to them while it is";
    STATE_FEATURE = "QS-1", "touches_queue_state_if_agreed": "accesses to the queue state, against the feature";
    STATE_WHEN = "QS-4", "reads_queue_state_at_rest": "reads of the queue state, against suspend and queue_enable";
}

/// The registers.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    bytes: [u8; 32],
}

pub(super) fn read(inner: &mut Inner, offset: u64, data: &mut [u8]) {
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    for (byte, kept) in data.iter_mut().zip(inner.tracker.bytes.iter().skip(at)) {
        *byte = *kept;
    }
}

pub(super) fn write(inner: &mut Inner, offset: u64, data: &[u8]) {
    inner
        .book
        .step(format!("writes {data:02x?} to the tracker at {offset}"));
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let bytes = &mut inner.tracker.bytes;
    let was_on = bytes[0] == 1;
    let parameters = at >= 1 && at != 4 && at < 24;
    if was_on && parameters {
        inner.book.broke(
            &PROGRAMMED,
            format!("a write at {offset} while enable is 1"),
        );
    }
    for (kept, byte) in bytes.iter_mut().skip(at).zip(data) {
        *kept = *byte;
    }
    if !was_on && bytes[0] == 1 {
        let set = |range: std::ops::Range<usize>| bytes[range].iter().any(|byte| *byte != 0);
        let programmed = set(8..16) && set(16..24);
        inner.book.check(&PROGRAMMED, programmed, || {
            "enable became 1 ".to_owned()
                + if programmed {
                    "with address and length set"
                } else {
                    "with address or length 0"
                }
        });
    }
}

/// An access to the selected queue's state.
pub(super) fn queue_state(inner: &mut Inner, writes: bool) {
    let agreed = inner.life.has(feature::QUEUE_STATE) && inner.life.is(status::FEATURES_OK);
    let access = if writes { "written" } else { "read" };
    inner.book.check(&STATE_FEATURE, agreed, || {
        format!(
            "{access} with the feature {}agreed",
            if agreed { "" } else { "not " }
        )
    });
    if !writes {
        let enabled = inner.selected().is_some_and(|queue| queue.enabled);
        let rest = inner.life.run == Run::Suspended || !enabled;
        inner.book.check(&STATE_WHEN, rest, || {
            let how = if rest { "at rest" } else { "running" };
            format!("read of a queue {how}")
        });
    }
}
