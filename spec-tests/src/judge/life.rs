//! The device's life: reset, initialisation, features, suspend, errors, the end.

use super::function::{Inner, Once};
use super::ledger::rules;
use super::model::Model;
use super::plan::{Kind, Plan, RESERVED};
use super::{config, notify, pci, queue, zoned};
use crate::clause;
use crate::constants::{feature, status};

rules! {
    ORDER = clause!(status "R1"), "status_bits_in_order": "every write of device_status: no step's bit before the bits of earlier steps";
    CLEARS = clause!(status "R2"), "clears_no_status_bit": "every write of device_status but 0, against what is set";
    AFTER_FAILED = clause!(status "R3"), "resets_after_failed": "what follows FAILED";
    AFTER_ERROR = clause!(status "R4"), "does_not_wait_after_an_error": "DEVICE_NEEDS_RESET is set with requests in flight; the driver should reset, not go on";
    RESET_READ = clause!(reset "R1"), "reset_is_complete_at_0": "the status goes on showing what it was for some reads after a reset";
    RESET_WAIT = clause!(common "R5"), "waits_for_the_reset": "the status goes on showing what it was for some reads after a reset";
    RESET_FIRST = clause!(init "R1"), "begins_with_a_reset": "the first write to the common configuration since power-on";
    ACKNOWLEDGE = clause!(init "R2"), "then_acknowledges": "ACKNOWLEDGE is set before DRIVER";
    DRIVER = clause!(init "R3"), "then_says_driver": "DRIVER is set before features are written";
    NEGOTIATES = clause!(init "R4"), "then_negotiates": "the offer is read before features are written, and these before FEATURES_OK";
    FEATURES_OK = clause!(init "R6"), "then_says_features_ok": "FEATURES_OK is set before queues are set up and before DRIVER_OK";
    NO_MORE = clause!(init "R7"), "accepts_no_more_features": "writes of driver_feature after FEATURES_OK";
    VERIFIES = clause!(init "R8"), "verifies_features_ok": "the status is read between FEATURES_OK and what comes next";
    SETS_UP = clause!(init "R9"), "then_sets_up": "queues are set up between FEATURES_OK and DRIVER_OK";
    DRIVER_OK = clause!(init "R10"), "then_says_driver_ok": "DRIVER_OK is set before the device is used";
    SAYS_FAILED = clause!(init "R12"), "says_failed": "FEATURES_OK does not stay: what the driver writes then";
    GIVES_UP = clause!(init "R13"), "gives_up_after_failure": "FEATURES_OK does not stay: the driver must not go on";
    OFFERED = clause!(features "R1"), "accepts_what_is_offered": "the accepted features against the offered ones";
    READS_OFFER = clause!(features "R2"), "reads_the_offer": "both words of the offer are read before features are written";
    IGNORES = clause!(features "R3"), "ignores_reserved_features": "reserved bits are offered and must not be accepted";
    UNKNOWN = clause!(features "R5"), "bears_unknown_features": "reserved bits are offered; the driver must come as far as DRIVER_OK";
    VERSION_1 = clause!(reserved "R1"), "accepts_version_1": "the accepted features: VERSION_1 is always offered";
    PACKED = clause!(reserved "R5"), "accepts_packed": "RING_PACKED is offered";
    PLATFORM_ORDER = clause!(reserved "R6"), "accepts_order_platform": "ORDER_PLATFORM is offered";
    CONFIG_DATA = clause!(reserved "R12"), "accepts_notif_config_data": "NOTIF_CONFIG_DATA is offered";
    NO_SR_IOV = clause!(reserved "R9"), "refuses_sr_iov": "SR_IOV is offered without the capability and must not be accepted";
    SUSPEND_WHEN = clause!(suspend "R1"), "suspends_when_it_may": "SUSPEND is written: DRIVER_OK must be set and the feature agreed";
    SUSPEND_READ = clause!(suspend "R2"), "verifies_the_suspend": "the status goes on showing DRIVER_OK for some reads after SUSPEND is written; the driver must read on";
    SUSPEND_BUFFERS = clause!(suspend "R3"), "exposes_nothing_suspended": "the available rings while SUSPEND is set";
    SUSPEND_NOTIFY = clause!(suspend "R4"), "notifies_nothing_suspended": "doorbells while SUSPEND is set";
    SUSPEND_CONFIG = clause!(suspend "R5"), "configures_nothing_suspended": "writes to the device configuration while SUSPEND is set";
    RESUME_WAIT = clause!(suspend "R6"), "waits_for_the_resume": "the status goes on showing SUSPEND for some reads after DRIVER_OK is written; the driver must read on";
    SUSPEND_DRAFT = "S23-2", "suspends_after_features_ok": "SUSPEND is written: FEATURES_OK must be set";
    SUSPEND_READ_DRAFT = "S23-3", "reads_after_suspend": "the status is read after SUSPEND is written";
}

/// Whether the device runs, once DRIVER_OK was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Not suspended, nor about to.
    Normal,
    /// Asked to suspend; shown as running for so many reads more.
    Suspending(u32),
    /// Suspended, and seen so.
    Suspended,
    /// Asked to resume; shown as suspended for so many reads more.
    Resuming(u32),
}

/// Status and features.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) status: u8,
    pub(super) run: Run,
    pub(super) offered: u64,
    pub(super) features: u64,
    /// The status before a reset, and how many reads show it still.
    old: (u8, u32),
    /// A reset was asked for, and the status was not read as 0 yet.
    reset_unread: bool,
    was_reset: bool,
    touched: bool,
    /// Words of the offer that were read.
    read: u8,
    wrote: bool,
    verified: bool,
    refused: bool,
    /// Queues were enabled since the reset.
    pub(super) set_up: bool,
    /// DRIVER_OK was set since power-on.
    pub(super) drove: bool,
    acknowledged: bool,
    suspend_read: bool,
}

impl Life {
    pub(super) fn new(plan: &Plan, model: &Model) -> Self {
        Self {
            status: 0,
            run: Run::Normal,
            offered: plan.features | model.features(),
            features: 0,
            old: (0, 0),
            reset_unread: false,
            was_reset: false,
            touched: false,
            read: 0,
            wrote: false,
            verified: false,
            refused: false,
            set_up: false,
            drove: false,
            acknowledged: false,
            suspend_read: false,
        }
    }

    pub(super) fn has(&self, bits: u64) -> bool {
        self.features & bits != 0
    }

    pub(super) fn is(&self, bits: u8) -> bool {
        self.status & bits == bits
    }

    pub(super) fn sr_iov_ready(&self) -> bool {
        self.has(feature::SR_IOV) && self.is(status::FEATURES_OK) && self.verified
    }

    /// Whether requests are answered.
    pub(super) fn live(&self) -> bool {
        self.is(status::DRIVER_OK)
            && self.run == Run::Normal
            && self.status & status::NEEDS_RESET == 0
    }

    fn suspended(&self) -> bool {
        matches!(self.run, Run::Suspending(_) | Run::Suspended)
    }
}

/// The driver reads device_status.
pub(super) fn read_status(inner: &mut Inner) -> u8 {
    let Inner { life, book, .. } = inner;
    if let (old, left @ 1..) = life.old {
        life.old = (old, left - 1);
        return old;
    }
    if life.status == 0 && life.reset_unread {
        life.reset_unread = false;
        for rule in [&RESET_READ, &RESET_WAIT] {
            book.kept(rule, "it read the status until that was 0");
        }
    }
    if life.is(status::FEATURES_OK) && !life.verified {
        life.verified = true;
        book.kept(&VERIFIES, "it read the status after FEATURES_OK");
    }
    if life.refused && !life.verified {
        life.verified = true;
        book.kept(
            &VERIFIES,
            "it read the status after FEATURES_OK, which did not stay",
        );
    }
    let errors = life.status & status::NEEDS_RESET;
    match life.run {
        Run::Normal => life.status,
        Run::Suspending(left) => {
            if !life.suspend_read {
                life.suspend_read = true;
                book.kept(&SUSPEND_READ_DRAFT, "it read the status after SUSPEND");
            }
            if let Some(left) = left.checked_sub(1) {
                life.run = Run::Suspending(left);
                return status::RUNNING | errors;
            }
            life.run = Run::Suspended;
            book.kept(
                &SUSPEND_READ,
                "it read the status until the device was suspended",
            );
            status::SUSPENDED | errors
        }
        Run::Suspended => status::SUSPENDED | errors,
        Run::Resuming(left) => {
            if let Some(left) = left.checked_sub(1) {
                life.run = Run::Resuming(left);
                return status::SUSPENDED | errors;
            }
            life.run = Run::Normal;
            book.kept(
                &RESUME_WAIT,
                "it read the status until the device ran again",
            );
            status::RUNNING | errors
        }
    }
}

/// The driver writes to the common configuration, anything but `status` if `status` is none.
pub(super) fn before_write(inner: &mut Inner, status: Option<u8>, what: &str) {
    let Inner { life, book, .. } = inner;
    if !life.touched {
        life.touched = true;
        book.check(&RESET_FIRST, status == Some(0), || {
            format!("the first write is to {what}")
        });
    }
    if status != Some(0) && life.reset_unread {
        life.reset_unread = false;
        life.old = (0, 0);
        let saw = || format!("a write to {what} before the status was read as 0");
        book.check(&RESET_WAIT, false, saw);
        book.check(&RESET_READ, false, saw);
    }
    if status != Some(0) && life.is(status::FAILED) {
        book.check(&AFTER_FAILED, false, || {
            format!("a write to {what} after FAILED, without a reset")
        });
    }
    // Selecting is no step of its own.
    let steps = status.is_none() && !what.ends_with("_select");
    if steps && life.refused {
        book.check(&GIVES_UP, false, || {
            format!("a write to {what} after FEATURES_OK did not stay")
        });
    }
    if steps && life.is(status::FEATURES_OK) && !life.verified {
        life.verified = true;
        book.check(&VERIFIES, false, || {
            format!("a write to {what} after FEATURES_OK, without a read of the status")
        });
    }
}

/// The driver writes device_status.
pub(super) fn write_status(inner: &mut Inner, value: u8) {
    before_write(inner, Some(value), "device_status");
    if value == 0 {
        return reset(inner);
    }
    let old = match inner.life.run {
        Run::Normal => inner.life.status,
        Run::Suspending(_) => status::SUSPEND_OR_RESUME,
        Run::Suspended | Run::Resuming(_) => status::SUSPENDED,
    };
    let cleared = old & !value & !status::NEEDS_RESET;
    if old != 0 {
        inner.book.check(&CLEARS, cleared == 0, || {
            format!("{value:#04x} over {old:#04x}")
        });
    }
    let new = value & !old;
    if inner.life.refused
        && value & (status::DRIVER_OK | status::FEATURES_OK) != 0
        && new & status::FAILED == 0
    {
        inner.book.broke(
            &GIVES_UP,
            format!("{value:#04x} after FEATURES_OK did not stay"),
        );
    }
    in_order(inner, old, new, value);
    if new & status::FAILED != 0 {
        failed(inner);
    }
    if new & status::ACKNOWLEDGE != 0 {
        inner.life.acknowledged = true;
        inner.book.kept(&RESET_FIRST, "a reset came first");
    }
    if new & status::SUSPEND != 0 {
        suspend(inner);
    } else if new & status::DRIVER_OK != 0 && inner.life.run == Run::Suspended {
        resume(inner);
        return;
    } else if matches!(inner.life.run, Run::Suspending(_)) && value & status::DRIVER_OK != 0 {
        inner.book.broke(
            &SUSPEND_READ,
            format!("{value:#04x} before the status showed the device suspended"),
        );
        inner.life.run = Run::Suspended;
        resume(inner);
        return;
    }
    if new & status::FEATURES_OK != 0 {
        features_ok(inner);
    }
    let keep = inner.life.status & status::NEEDS_RESET;
    let refused = if inner.life.refused {
        status::FEATURES_OK
    } else {
        0
    };
    inner.life.status = (value & !status::SUSPEND & !refused) | keep;
    if new & status::DRIVER_OK != 0 {
        driver_ok(inner);
    }
}

fn in_order(inner: &mut Inner, old: u8, new: u8, value: u8) {
    let book = &mut inner.book;
    let steps = [
        (status::ACKNOWLEDGE, 0),
        (status::DRIVER, status::ACKNOWLEDGE),
        (status::FEATURES_OK, status::NEGOTIATING),
        (status::DRIVER_OK, status::AGREED),
    ];
    for (bit, needs) in steps.into_iter().filter(|(bit, _)| new & bit != 0) {
        let after_suspend = bit == status::DRIVER_OK && old & status::SUSPEND != 0;
        let before = value & needs == needs || after_suspend;
        let at_once = new & needs != 0 && bit > status::DRIVER;
        let kept = before && !at_once;
        book.check(&ORDER, kept, || format!("{value:#04x} over {old:#04x}"));
        let saw = || format!("{value:#04x} over {old:#04x}");
        match bit {
            status::DRIVER => book.check(&ACKNOWLEDGE, kept, saw),
            status::DRIVER_OK if !after_suspend && !inner.life.refused => {
                book.check(&FEATURES_OK, old & status::FEATURES_OK != 0, saw);
            }
            _ => {}
        }
    }
}

fn failed(inner: &mut Inner) {
    let refused = inner.life.refused;
    if refused {
        inner.book.kept(&SAYS_FAILED, "it set FAILED");
        inner.book.kept(&GIVES_UP, "it set FAILED");
    }
    if inner.plan.kind == Kind::Zoned && !inner.life.is(status::FEATURES_OK) {
        zoned::left_alone(&mut inner.book);
    }
    notify::gave_up(inner);
}

/// Nothing was refused, so one of the provocations must have been too much for the driver.
fn gave_up(inner: &mut Inner, saw: &str) {
    pci::found(inner, false);
    config::found(inner, false);
    notify::found(inner, false);
    if inner.plan.features & RESERVED != 0 {
        inner.book.bore(&UNKNOWN, false, || saw.to_owned());
    }
}

/// The driver writes driver_feature.
pub(super) fn write_features(inner: &mut Inner, word: u32, value: u32) {
    let Inner { life, book, .. } = inner;
    book.check(&DRIVER, life.is(status::DRIVER), || {
        format!(
            "driver_feature was written with status {:#04x}",
            life.status
        )
    });
    if word > 1 {
        return;
    }
    if !life.wrote {
        life.wrote = true;
        let read = life.read == 3;
        let saw = || {
            let how = if read { "after" } else { "before" };
            format!("driver_feature was written {how} both words of device_feature were read")
        };
        book.check(&READS_OFFER, read, saw);
        book.check(&NEGOTIATES, read, saw);
    }
    let shift = 32 * word;
    let new = life.features & !(0xffff_ffff << shift) | u64::from(value) << shift;
    if life.is(status::FEATURES_OK) {
        let more = new & !life.features;
        book.check(&NO_MORE, more == 0, || {
            format!("{:?} after FEATURES_OK", feature::names(more))
        });
        return;
    }
    life.features = new;
}

/// The driver reads a word of the offer.
pub(super) fn read_features(inner: &mut Inner, word: u32) -> u32 {
    if word > 1 {
        return 0;
    }
    inner.life.read |= 1 << word;
    u32::try_from(inner.life.offered >> (32 * word) & 0xffff_ffff).unwrap_or(0)
}

fn features_ok(inner: &mut Inner) {
    let Inner {
        life, book, plan, ..
    } = inner;
    let (accepted, offered) = (life.features, life.offered);
    if !life.wrote {
        book.broke(&NEGOTIATES, "FEATURES_OK before any features were written");
    }
    let names = feature::names;
    let beyond = accepted & !offered;
    book.check(&OFFERED, beyond == 0, || {
        if beyond == 0 {
            format!("{:?} of {:?}", names(accepted), names(offered))
        } else {
            format!("{:?} are not offered", names(beyond))
        }
    });
    let reserved = plan.features & RESERVED & !feature::SR_IOV;
    if reserved != 0 {
        let taken = accepted & reserved;
        book.check(&IGNORES, taken == 0, || {
            format!("{:?} accepted of {:?}", names(taken), names(reserved))
        });
    }
    let took = |bit: u64| move || format!("{:?} of the offer", names(accepted & bit));
    book.check(
        &VERSION_1,
        accepted & feature::VERSION_1 != 0,
        took(feature::VERSION_1),
    );
    if plan.offers(feature::SR_IOV) && !plan.sr_iov {
        book.check(
            &NO_SR_IOV,
            accepted & feature::SR_IOV == 0,
            took(feature::SR_IOV),
        );
    }
    for (bit, rule) in [
        (feature::RING_PACKED, &PACKED),
        (feature::ORDER_PLATFORM, &PLATFORM_ORDER),
        (feature::NOTIF_CONFIG_DATA, &CONFIG_DATA),
    ] {
        if plan.offers(bit) {
            book.check(rule, accepted & bit != 0, took(bit));
        }
    }
    inner.model.negotiated(accepted, book);
    if plan.refuse_features {
        life.refused = true;
    }
    life.verified = false;
}

fn driver_ok(inner: &mut Inner) {
    let first = !inner.life.drove;
    inner.life.drove = true;
    let Inner { life, book, .. } = inner;
    if life.is(status::FEATURES_OK) && !life.verified {
        life.verified = true;
        book.broke(
            &VERIFIES,
            "DRIVER_OK without a read of the status after FEATURES_OK",
        );
    }
    book.check(&SETS_UP, life.set_up, || {
        let done = if life.set_up { "after" } else { "before" };
        format!("DRIVER_OK {done} queues were set up")
    });
    book.kept(&DRIVER_OK, "it set DRIVER_OK last");
    if life.is(status::FEATURES_OK) {
        book.kept(&NO_MORE, "it accepted nothing after FEATURES_OK");
    }
    if inner.plan.features & RESERVED != 0 {
        book.kept(&UNKNOWN, "it came as far as DRIVER_OK");
    }
    if first {
        pci::found(inner, true);
        notify::found(inner, true);
    }
    config::found(inner, true);
    queue::driver_ok(inner);
}

fn suspend(inner: &mut Inner) {
    let Inner { life, book, .. } = inner;
    let may = life.is(status::DRIVER_OK) && life.has(feature::SUSPEND);
    let saw = || {
        let agreed = if life.has(feature::SUSPEND) {
            ""
        } else {
            "not "
        };
        format!(
            "SUSPEND over {:#04x}, with the feature {agreed}agreed",
            life.status
        )
    };
    book.check(&SUSPEND_WHEN, may, saw);
    book.check(&SUSPEND_DRAFT, life.is(status::FEATURES_OK), saw);
    if !may {
        return;
    }
    // What is exposed by now is answered before the device is seen suspended.
    inner.settle(false);
    inner.life.suspend_read = false;
    inner.life.run = Run::Suspending(inner.plan.slow_reads);
    queue::suspended(inner);
}

fn resume(inner: &mut Inner) {
    queue::exposed_while_suspended(inner);
    for rule in [&SUSPEND_BUFFERS, &SUSPEND_NOTIFY, &SUSPEND_CONFIG] {
        inner
            .book
            .kept(rule, "it resumed, and had done nothing of the kind");
    }
    inner.life.run = Run::Resuming(inner.plan.slow_reads);
}

/// The driver did something that it must not do while suspended, nor before it is seen resumed.
pub(super) fn acted(inner: &mut Inner, rule: &'static super::Rule, what: &str) {
    if inner.life.suspended() {
        inner
            .book
            .broke(rule, format!("{what} while SUSPEND is set"));
    } else if matches!(inner.life.run, Run::Resuming(_)) {
        inner.book.broke(
            &RESUME_WAIT,
            format!("{what} before the status showed DRIVER_OK without SUSPEND"),
        );
        inner.life.run = Run::Normal;
    }
}

/// The judge sets DEVICE_NEEDS_RESET.
pub(super) fn needs_reset(inner: &mut Inner) {
    inner.life.status |= status::NEEDS_RESET;
    inner.isr |= 2;
    inner.provoked.needs_reset = true;
    let vector = inner.common.config_vector();
    inner.raise(vector);
}

/// FEATURES_OK did not stay, and the driver leaves it at that or says so.
fn left(inner: &mut Inner) {
    if inner.life.refused && !inner.life.is(status::FAILED) {
        inner.book.broke(
            &SAYS_FAILED,
            "FEATURES_OK did not stay, and it did not set FAILED",
        );
    }
    config::left(inner);
}

fn reset(inner: &mut Inner) {
    left(inner);
    if let Run::Suspending(_) = inner.life.run {
        inner.book.broke(
            &SUSPEND_READ,
            "a reset before the status showed the device suspended",
        );
        if !inner.life.suspend_read {
            inner
                .book
                .broke(&SUSPEND_READ_DRAFT, "a reset before the status was read");
        }
    }
    if inner.life.suspended() {
        queue::exposed_while_suspended(inner);
    }
    if inner.life.is(status::FAILED) {
        inner.book.kept(&AFTER_FAILED, "it reset the device");
    }
    if inner.life.refused {
        inner.book.kept(&GIVES_UP, "it reset the device");
    }
    if inner.provoked.needs_reset {
        inner.provoked.needs_reset = false;
        inner.book.kept(&AFTER_ERROR, "it reset the device");
    }
    queue::taken_away(inner);
    never_ready(inner);
    let old = inner.life.status;
    clear(inner);
    inner.life.old = (old, if old == 0 { 0 } else { inner.plan.slow_reads });
    inner.life.reset_unread = true;
    inner.life.was_reset = true;
    inner.life.touched = true;
}

/// Everything but what was provoked and judged is as after power-on.
fn clear(inner: &mut Inner) {
    let (drove, acknowledged, touched) = (
        inner.life.drove,
        inner.life.acknowledged,
        inner.life.touched,
    );
    inner.life = Life {
        drove,
        acknowledged,
        touched,
        ..Life::new(&inner.plan, &inner.model)
    };
    inner.common.clear();
    inner.config.clear();
    inner.tracker = super::tracker::Tracker::default();
    inner.model.reset();
    inner.isr = 0;
    for (index, queue) in (0..).zip(&mut inner.queues) {
        *queue = queue::Queue::new(index, &inner.plan);
    }
    if inner.provoked.spurious == Once::Waiting {
        inner.provoked.spurious = Once::Done;
    }
    if inner.provoked.combined == Once::Waiting {
        inner.provoked.combined = Once::Done;
    }
    inner.provoked.one_for_all = Once::Before;
}

/// A function level reset, by whoever owns the bus: no act of the driver.
pub(super) fn function_reset(inner: &mut Inner) {
    clear(inner);
}

/// Queues were filled, and DRIVER_OK never came.
fn never_ready(inner: &mut Inner) {
    let stopped = inner.life.is(status::DRIVER_OK) || inner.life.is(status::FAILED);
    if !stopped && queue::exposed(inner) {
        inner.book.broke(
            &DRIVER_OK,
            "buffers were made available, and DRIVER_OK was never set",
        );
    }
}

/// The client has gone, and its memory goes next.
pub(super) fn gone(inner: &mut Inner) {
    left(inner);
    if inner.life.suspended() {
        queue::exposed_while_suspended(inner);
    }
    if let Run::Suspending(_) = inner.life.run {
        if !inner.life.suspend_read {
            inner.book.broke(
                &SUSPEND_READ_DRAFT,
                "it went without reading the status after SUSPEND",
            );
        }
        // A device that needs a reset will not show it.
        if !inner.life.is(status::NEEDS_RESET) {
            inner.book.broke(
                &SUSPEND_READ,
                "it went before the status showed the device suspended",
            );
        }
    }
    never_ready(inner);
    config::found(inner, true);
    clear(inner);
}

/// The driver will not come back.
pub(super) fn finish(inner: &mut Inner) {
    gone(inner);
    let refused = inner.plan.refuse_features || inner.plan.kind == Kind::Zoned;
    if !inner.life.drove && inner.pci.looked && !refused {
        gave_up(
            inner,
            "it looked at the function and never came as far as DRIVER_OK",
        );
    }
}
