//! The device configuration: which fields are read when, and whether wide ones are read whole.

use super::function::Inner;
use super::ledger::rules;
use super::life::{self, SUSPEND_CONFIG};
use super::pci;
use crate::clause;
use crate::constants::{feature, status};

rules! {
    WHOLE = clause!(config "R1"), "reads_wide_fields_whole": "the configuration changes between the two halves of capacity; the generation must be read before and after";
    OPTIONAL = clause!(config "R2"), "reads_optional_fields_if_offered": "each read of a field that depends on a feature, against the offer and whether it was read";
    ANY_SIZE = clause!(config "R3"), "bears_a_large_configuration": "the device configuration is a page long";
    CAPACITY = clause!(blk "R1"), "looks_at_capacity": "the capacity changes while the driver runs, and a configuration change notification comes";
    EARLY_CACHE = clause!(blk_init "R4"), "reads_writeback_after_features_ok": "reads of writeback, against FEATURES_OK";
}

/// What was read of the configuration.
#[derive(Debug, Default)]
pub(super) struct Config {
    pub(super) generation: u8,
    /// The generation that was read last.
    before: Option<u8>,
    /// The generation that each half of capacity was read in, and the one read before.
    halves: [Option<u8>; 2],
    whole: bool,
    /// The generation has moved since it was last read, and the driver is to see that.
    torn: bool,
    tore: bool,
    /// The capacity changed when so many requests had been answered, and was not read since.
    changed: Option<u64>,
}

impl Config {
    pub(super) fn clear(&mut self) {
        *self = Self {
            generation: self.generation,
            tore: self.tore,
            ..Self::default()
        };
    }
}

/// The driver reads config_generation.
pub(super) fn read_generation(inner: &mut Inner) -> u8 {
    let config = &mut inner.config;
    let now = config.generation;
    if let [Some(low), Some(high)] = config.halves
        && config.before == Some(now)
        && low == now
        && high == now
        && !config.whole
    {
        config.whole = true;
        let torn = if config.torn {
            ", after a change in between"
        } else {
            ""
        };
        inner.book.check(&WHOLE, true, || {
            format!("both halves of capacity were read in generation {now}{torn}")
        });
    }
    config.before = Some(now);
    now
}

/// The driver reads the device configuration.
pub(super) fn read(inner: &mut Inner, offset: u64, data: &mut [u8]) {
    let bytes = inner.model.config();
    for (at, byte) in (offset..).zip(data.iter_mut()) {
        let place = usize::try_from(at).ok().and_then(|at| bytes.get(at));
        // Beyond what is specified stands what no driver knows.
        *byte = place.copied().unwrap_or(0xc3);
    }
    let len = data.len() as u64;
    for (field, end, bit) in inner.model.fields() {
        if offset >= *end || offset + len <= *field {
            continue;
        }
        let (offered, read) = (inner.life.offered & bit != 0, inner.life.is(status::DRIVER));
        inner.book.check(&OPTIONAL, offered && read, || {
            let offer = if offered { "offered" } else { "not offered" };
            format!(
                "{} at {field} was read; it is {offer}, the status was {:#04x}",
                feature::names(*bit).join(" "),
                inner.life.status
            )
        });
        if *bit == feature::BLK_CONFIG_WCE {
            let agreed = inner.life.is(status::FEATURES_OK);
            inner.book.check(&EARLY_CACHE, agreed, || {
                format!("read with status {:#04x}", inner.life.status)
            });
        }
    }
    let config = &mut inner.config;
    if offset >= 8 || !inner.model.has_capacity() {
        return;
    }
    if config.changed.take().is_some() {
        inner
            .book
            .kept(&CAPACITY, "it read capacity after the notification");
    }
    config.whole = false;
    if offset < 4 {
        config.halves[0] = Some(config.generation);
        if len <= 4 && inner.plan.tear_config && !config.tore {
            config.tore = true;
            config.torn = true;
            config.generation = config.generation.wrapping_add(1);
        }
    }
    if offset + len > 4 {
        config.halves[1] = Some(config.generation);
    }
}

/// The driver writes to the device configuration.
pub(super) fn write(inner: &mut Inner, offset: u64, data: &[u8]) {
    inner.book.step(format!(
        "writes {data:02x?} to the device configuration at {offset}"
    ));
    life::acted(
        inner,
        &SUSPEND_CONFIG,
        "a write to the device configuration",
    );
    inner.model.config_write(offset, data);
}

/// The judge changes the capacity and says so.
pub(super) fn change(inner: &mut Inner) {
    inner.model.grow();
    inner.config.generation = inner.config.generation.wrapping_add(1);
    inner.config.changed = inner.model.has_capacity().then_some(inner.answered);
    inner.isr |= 2;
    let vector = inner.common.config_vector();
    inner.raise(vector);
}

/// The driver starts to use what it has read, or gave up.
pub(super) fn found(inner: &mut Inner, kept: bool) {
    let config = &mut inner.config;
    if let ([Some(low), Some(high)], false) = (config.halves, config.whole) {
        config.whole = true;
        let torn = if config.torn {
            "; the configuration had changed in between"
        } else {
            ""
        };
        inner.book.check(&WHOLE, false, || {
            format!(
                "capacity was read in generations {low} and {high} without a look at the generation before and after{torn}"
            )
        });
    }
    if inner.plan.odd.large_structures && (!kept || inner.life.is(status::DRIVER_OK)) {
        inner.book.bore(&ANY_SIZE, kept, || {
            let how = if kept {
                "came as far as"
            } else {
                "never came to"
            };
            format!(
                "the configuration has {} bytes, and the driver {how} DRIVER_OK",
                pci::NOTIFY - pci::DEVICE
            )
        });
    }
}

/// The driver resets the device, or goes.
pub(super) fn left(inner: &mut Inner) {
    let answered = inner.answered;
    if let Some(when) = inner.config.changed.take()
        && answered > when
    {
        inner.book.check(&CAPACITY, false, || {
            let more = answered - when;
            format!("{more} requests came after the notification, and no look at capacity")
        });
    }
}
