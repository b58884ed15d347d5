//! Doorbells and interrupts.

use super::common::notify_data;
use super::function::{Inner, Once};
use super::ledger::rules;
use super::life::{self, SUSPEND_NOTIFY};
use super::pci::MULTIPLIER;
use super::queue;
use crate::clause;
use crate::constants::{feature, status};

rules! {
    TOO_EARLY = clause!(init "R14"), "notifies_after_driver_ok": "every doorbell, against DRIVER_OK";
    NARROW = clause!(notify "R1"), "notifies_with_16_bits": "doorbells without NOTIFICATION_DATA";
    WIDE = clause!(notify "R2"), "notifies_with_32_bits": "doorbells with NOTIFICATION_DATA";
    INDEX = clause!(notify "R3"), "notifies_with_the_index": "doorbells without NOTIFICATION_DATA and NOTIF_CONFIG_DATA";
    INDEX_WIDE = clause!(notify "R4"), "notifies_with_the_index_and_place": "doorbells with NOTIFICATION_DATA alone";
    DATA = clause!(notify "R5"), "notifies_with_config_data": "doorbells with NOTIF_CONFIG_DATA alone, whose value is no index";
    DATA_WIDE = clause!(notify "R6"), "notifies_with_config_data_and_place": "doorbells with both features";
    BOTH = clause!(config_interrupt "R1"), "bears_interrupts_for_both": "one vector serves everything and stands for a configuration change and used buffers at once; the driver must go on";
    VECTORS = clause!(msix "R1"), "bears_any_number_of_vectors": "the table has one entry; the driver must come as far as DRIVER_OK";
    SPURIOUS = clause!(used_suppression "R5"), "bears_interrupts_without_reason": "an interrupt comes for which there is no reason; the driver must go on";
    ISR_UNREAD = clause!(isr "R1"), "leaves_isr_status_with_msix": "reads of ISR status while MSI-X is in use";
}

/// The driver writes to a doorbell.
pub(super) fn doorbell(inner: &mut Inner, offset: u64, data: &[u8]) {
    let index = u16::try_from(offset / MULTIPLIER).unwrap_or(u16::MAX);
    inner
        .book
        .step(format!("notifies queue {index} with {data:02x?}"));
    let ready = inner.life.is(status::DRIVER_OK);
    let status = inner.life.status;
    inner.book.check(&TOO_EARLY, ready, || {
        format!("queue {index} was notified with status {status:#04x}")
    });
    life::acted(inner, &SUSPEND_NOTIFY, "a notification");
    let wide = inner.life.has(feature::NOTIFICATION_DATA);
    let by_data = inner.life.has(feature::NOTIF_CONFIG_DATA);
    let rule = if wide { &WIDE } else { &NARROW };
    let len = data.len();
    inner.book.check(rule, len == if wide { 4 } else { 2 }, || {
        format!("{len} bytes")
    });
    let value = match *data {
        [low, high, ..] => u16::from_le_bytes([low, high]),
        _ => return,
    };
    let expected = if by_data { notify_data(index) } else { index };
    let rule = match (wide, by_data) {
        (false, false) => &INDEX,
        (true, false) => &INDEX_WIDE,
        (false, true) => &DATA,
        (true, true) => &DATA_WIDE,
    };
    inner.book.check(rule, value == expected, || {
        format!("{value:#x} at the doorbell of queue {index}, for which {expected:#x} stands")
    });
    let next = match *data {
        [_, _, low, high] if wide => Some(u16::from_le_bytes([low, high])),
        _ => None,
    };
    if inner.provoked.needs_reset {
        inner.book.broke(
            &life::AFTER_ERROR,
            "a notification, while DEVICE_NEEDS_RESET is set and requests are in flight",
        );
    }
    if ready {
        queue::notified(inner, index, next);
        inner.kick();
    }
}

/// The driver reads ISR status.
pub(super) fn read_isr(inner: &mut Inner, data: &mut [u8]) {
    if let Some(byte) = data.first_mut() {
        *byte = std::mem::take(&mut inner.isr);
    }
    if inner.msix() && inner.life.is(status::DRIVER_OK) {
        inner
            .book
            .broke(&ISR_UNREAD, "ISR status was read while MSI-X is in use");
    }
}

/// New buffers have come: the driver bore what was provoked.
pub(super) fn went_on(inner: &mut Inner) {
    let provoked = &mut inner.provoked;
    for (once, rule) in [
        (&mut provoked.spurious, &SPURIOUS),
        (&mut provoked.combined, &BOTH),
        (&mut provoked.one_for_all, &queue::packed::ONE_FOR_ALL),
    ] {
        if *once == Once::Waiting {
            *once = Once::Done;
            inner
                .book
                .kept(rule, "it made further buffers available afterwards");
        }
    }
    if inner.msix() {
        inner
            .book
            .kept(&ISR_UNREAD, "it goes on without ISR status");
    }
}

/// The driver gave up while it was to bear something.
pub(super) fn gave_up(inner: &mut Inner) {
    let provoked = &mut inner.provoked;
    for (once, rule) in [
        (&mut provoked.spurious, &SPURIOUS),
        (&mut provoked.combined, &BOTH),
        (&mut provoked.one_for_all, &queue::packed::ONE_FOR_ALL),
    ] {
        if *once == Once::Waiting {
            *once = Once::Done;
            inner.book.broke(rule, "it set FAILED afterwards");
        }
    }
}

/// The driver came as far as DRIVER_OK with the vectors that there are, or did not.
pub(super) fn found(inner: &mut Inner, kept: bool) {
    let Some(vectors) = inner.plan.vectors else {
        return;
    };
    inner.book.bore(&VECTORS, kept, || {
        let how = if kept {
            "came as far as"
        } else {
            "never came to"
        };
        format!("the table has {vectors} entries, and the driver {how} DRIVER_OK")
    });
}

/// Raises a queue's interrupt, and what is provoked with it.
pub(super) fn used(inner: &mut Inner, index: u16) {
    inner.isr |= 1;
    let Some(vector) = inner
        .queues
        .get(usize::from(index))
        .map(|queue| queue.vector)
    else {
        return;
    };
    inner.raise(vector);
}

/// Provocations whose time has come.
pub(super) fn provoke(inner: &mut Inner, index: u16) {
    let answered = inner.answered;
    let due = |after: Option<u64>| after.is_some_and(|after| answered >= after);
    if due(inner.plan.spurious_after) && inner.provoked.spurious == Once::Before {
        inner.provoked.spurious = Once::Waiting;
        let vector = inner
            .queues
            .get(usize::from(index))
            .map(|queue| queue.vector);
        inner.raise(vector.unwrap_or(u16::MAX));
    }
    if due(inner.plan.change_config_after) && !inner.provoked.changed {
        inner.provoked.changed = true;
        let queue = inner
            .queues
            .get(usize::from(index))
            .map(|queue| queue.vector);
        if queue == Some(inner.common.config_vector()) && inner.msix() {
            inner.provoked.combined = Once::Waiting;
        }
        super::config::change(inner);
    }
    if due(inner.plan.needs_reset_after) {
        inner.plan.needs_reset_after = None;
        life::needs_reset(inner);
    }
}
