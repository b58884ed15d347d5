//! The common configuration: widths, read-only fields, queues, vectors.

use super::function::Inner;
use super::ledger::rules;
use super::life::{self, SETS_UP};
use super::model;
use super::plan::Plan;
use super::queue::{self, Queue};
use super::tracker;
use crate::clause;
use crate::constants::{feature, pci, reg, status};

rules! {
    WIDTHS = clause!(layout "R1"), "accesses_fields_by_their_width": "every access to the common configuration: natural width and alignment, halves of 64-bit fields";
    READ_ONLY = clause!(common "R1"), "writes_no_read_only_field": "every write to the common configuration";
    PACKED_SIZE = clause!(common "R2"), "packed_size_is_not_0": "writes of queue_size with RING_PACKED";
    SPLIT_SIZE = clause!(common "R3"), "split_size_is_a_power_of_2": "writes of queue_size without RING_PACKED";
    CONFIGURES = clause!(common "R4"), "configures_before_enabling": "addresses when queue_enable becomes 1, and writes to them while it is";
    ENABLES = clause!(common "R6"), "never_disables": "writes of queue_enable";
    RESET_WAIT = clause!(common "R7"), "waits_for_the_queue_reset": "queue_reset goes on reading 1 for some reads; the driver must read on before it uses the queue";
    RESET_READ = clause!(queue_reset "R1"), "verifies_the_queue_reset": "queue_reset goes on reading 1 for some reads; the driver must read on";
    AGAIN = clause!(queue_enable "R1"), "configures_before_enabling_again": "a queue that was reset is enabled: its addresses must have been written since";
    ADMIN_RANGE = clause!(common "R10"), "configures_admin_queues_in_range": "admin_queue_index and _num against the queues that are enabled";
    VECTOR_RANGE = clause!(msix "R4"), "maps_vectors_within_the_table": "writes of the vector registers against the table's size";
    VECTOR_READ = clause!(msix "R5"), "reads_vectors_back": "the vector registers are read after they are written and before DRIVER_OK";
}

/// Selectors and the configuration's vector.
#[derive(Debug)]
pub(super) struct Common {
    offer: u32,
    accept: u32,
    selected: u16,
    vector: u16,
    vector_unread: bool,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            offer: 0,
            accept: 0,
            selected: 0,
            vector: u16::MAX,
            vector_unread: false,
        }
    }
}

impl Common {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.vector
    }
}

/// Queues that a plan has, the administration queue included.
pub(super) fn queues(plan: &Plan) -> u16 {
    plan.queues.clamp(1, 8) + u16::from(plan.offers(feature::ADMIN_VQ))
}

/// What `queue_notif_config_data` says of a queue.
pub(super) fn notify_data(queue: u16) -> u16 {
    0x100 + 3 * queue
}

/// The fields by offset and width; `true` if the driver may write them.
const FIELDS: [(u64, usize, &str, bool); 25] = [
    (0, 4, "device_feature_select", true),
    (4, 4, "device_feature", false),
    (8, 4, "driver_feature_select", true),
    (12, 4, "driver_feature", true),
    (16, 2, "config_msix_vector", true),
    (18, 2, "num_queues", false),
    (20, 1, "device_status", true),
    (21, 1, "config_generation", false),
    (22, 2, "queue_select", true),
    (24, 2, "queue_size", true),
    (26, 2, "queue_msix_vector", true),
    (28, 2, "queue_enable", true),
    (30, 2, "queue_notify_off", false),
    (32, 4, "queue_desc", true),
    (36, 4, "queue_desc", true),
    (40, 4, "queue_driver", true),
    (44, 4, "queue_driver", true),
    (48, 4, "queue_device", true),
    (52, 4, "queue_device", true),
    (56, 2, "queue_notif_config_data", false),
    (58, 2, "queue_reset", true),
    (60, 2, "admin_queue_index", true),
    (62, 2, "admin_queue_num", true),
    (64, 2, "queue_avail_state", true),
    (66, 2, "queue_used_state", true),
];

fn field(inner: &mut Inner, offset: u64, len: usize, how: &str) -> Option<(&'static str, bool)> {
    let found = FIELDS
        .iter()
        .find(|(at, width, _, _)| *at == offset && *width == len);
    inner.book.check(&WIDTHS, found.is_some(), || match found {
        Some((_, _, name, _)) => format!("{name} {how} with {len} bytes"),
        None => format!("{len} bytes at {offset} {how}"),
    });
    found.map(|(_, _, name, writable)| (*name, *writable))
}

/// A width that no rule allows reaches what a device would have there.
fn each(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    let inside = move |(at, width, _, _): &&(u64, usize, &str, bool)| {
        *at >= offset && at + *width as u64 <= offset + len as u64
    };
    FIELDS
        .iter()
        .filter(inside)
        .map(|(at, width, _, _)| (*at, *width))
}

/// Reads the common configuration.
pub(super) fn read(inner: &mut Inner, offset: u64, data: &mut [u8]) {
    let len = data.len();
    if field(inner, offset, len, "read").is_some() {
        let value = value(inner, offset).to_le_bytes();
        data.copy_from_slice(&value[..len.min(8)]);
        return;
    }
    for (at, width) in each(offset, len).collect::<Vec<_>>() {
        let value = value(inner, at).to_le_bytes();
        let place = usize::try_from(at - offset).unwrap_or(0);
        data[place..place + width].copy_from_slice(&value[..width]);
    }
}

impl Inner {
    pub(super) fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.common.selected))
    }
}

fn value(inner: &mut Inner, offset: u64) -> u64 {
    let index = inner.common.selected;
    let slow = inner.plan.slow_reads;
    match offset {
        0 => return u64::from(inner.common.offer),
        4 => return u64::from(life::read_features(inner, inner.common.offer)),
        8 => return u64::from(inner.common.accept),
        12 => {
            let word = inner.common.accept;
            return if word < 2 {
                inner.life.features >> (32 * word) & 0xffff_ffff
            } else {
                0
            };
        }
        16 => {
            if std::mem::take(&mut inner.common.vector_unread) {
                inner
                    .book
                    .kept(&VECTOR_READ, "config_msix_vector was read back");
            }
            return u64::from(inner.common.vector);
        }
        18 => return u64::from(inner.plan.queues.clamp(1, 8)),
        20 => return u64::from(life::read_status(inner)),
        21 => return u64::from(super::config::read_generation(inner)),
        22 => return u64::from(index),
        60 if inner.plan.offers(feature::ADMIN_VQ) => {
            return u64::from(inner.plan.queues.clamp(1, 8));
        }
        62 if inner.plan.offers(feature::ADMIN_VQ) => return 1,
        64 | 66 => tracker::queue_state(inner, false),
        _ => {}
    }
    let Inner { queues, book, .. } = inner;
    let Some(queue) = queues.get_mut(usize::from(index)) else {
        return 0;
    };
    match offset {
        24 => u64::from(queue.size),
        26 => {
            if std::mem::take(&mut queue.vector_unread) {
                book.kept(&VECTOR_READ, "queue_msix_vector was read back");
            }
            u64::from(queue.vector)
        }
        28 => u64::from(queue.enabled),
        30 => u64::from(index),
        32..56 => queue.half(offset),
        56 => u64::from(notify_data(index)),
        58 => match queue.resetting {
            Some(left) => {
                queue.resetting = left.checked_sub(1);
                if queue.resetting.is_none() {
                    for rule in [&RESET_WAIT, &RESET_READ] {
                        book.check(rule, true, || {
                            format!("queue_reset was read until it was 0, {slow} times 1")
                        });
                    }
                }
                u64::from(queue.resetting.is_some())
            }
            None => 0,
        },
        64 => u64::from(queue.state().0),
        66 => u64::from(queue.state().1),
        _ => 0,
    }
}

/// Writes the common configuration.
pub(super) fn write(inner: &mut Inner, offset: u64, data: &[u8]) {
    let len = data.len();
    inner.book.step(format!(
        "writes {data:02x?} to the common configuration at {offset}"
    ));
    let number = |bytes: &[u8]| {
        let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        bytes.iter().rev().fold(0, fold)
    };
    let touched: Vec<_> = FIELDS
        .iter()
        .filter(|(at, width, _, _)| *at < offset + len as u64 && offset < at + *width as u64)
        .collect();
    for (at, _, name, writable) in touched {
        let admin = matches!(at, 60 | 62);
        if *writable && !admin {
            inner
                .book
                .check(&READ_ONLY, true, || format!("{name} was written"));
        } else if !admin {
            inner.book.broke(&READ_ONLY, format!("{name} was written"));
        }
    }
    let whole = field(inner, offset, len, "written").is_some();
    for (at, width) in each(offset, len).collect::<Vec<_>>() {
        let place = usize::try_from(at - offset).unwrap_or(0);
        assign(inner, at, number(&data[place..place + width]), whole);
    }
}

fn low16(value: u64) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or(0)
}

fn assign(inner: &mut Inner, offset: u64, value: u64, _whole: bool) {
    let name = FIELDS
        .iter()
        .find(|field| field.0 == offset)
        .map_or("", |field| field.2);
    if offset != reg::DEVICE_STATUS.offset {
        life::before_write(inner, None, name);
    }
    let word = u32::try_from(value & 0xffff_ffff).unwrap_or(0);
    match offset {
        0 => inner.common.offer = word,
        8 => inner.common.accept = word,
        12 => life::write_features(inner, inner.common.accept, word),
        16 => {
            let vector = mapped(inner, low16(value));
            inner.common.vector = vector;
            inner.common.vector_unread = u64::from(vector) != pci::NO_VECTOR;
        }
        20 => life::write_status(inner, word.to_le_bytes()[0]),
        22 => inner.common.selected = low16(value),
        24..60 | 64.. => queue_field(inner, offset, value),
        _ => {}
    }
}

fn mapped(inner: &mut Inner, vector: u16) -> u16 {
    if u64::from(vector) == pci::NO_VECTOR {
        return vector;
    }
    let vectors = inner.vectors.len();
    let within = usize::from(vector) < vectors;
    inner.book.check(&VECTOR_RANGE, within, || {
        format!("vector {vector} of {vectors}")
    });
    if within { vector } else { u16::MAX }
}

fn queue_field(inner: &mut Inner, offset: u64, value: u64) {
    let index = inner.common.selected;
    let vector = if offset == 26 {
        mapped(inner, low16(value))
    } else {
        0
    };
    if offset >= 64 {
        tracker::queue_state(inner, true);
    }
    let packed = inner.life.has(feature::RING_PACKED);
    let Inner {
        queues,
        book,
        plan,
        life,
        ..
    } = inner;
    let Some(queue) = queues.get_mut(usize::from(index)) else {
        return;
    };
    let waiting = queue.resetting.is_some();
    if waiting && offset != 58 {
        let saw = || format!("a write at {offset} while queue_reset reads 1");
        book.check(&RESET_WAIT, false, saw);
        book.check(&RESET_READ, false, saw);
        queue.resetting = None;
    }
    match offset {
        24 => {
            let size = low16(value);
            if packed {
                book.check(&PACKED_SIZE, size != 0, || format!("{size}"));
            } else {
                book.check(&SPLIT_SIZE, size.is_power_of_two(), || format!("{size}"));
            }
            if queue.enabled {
                book.broke(
                    &CONFIGURES,
                    "queue_size was written while queue_enable is 1",
                );
            } else if (1..=plan.queue_size).contains(&size) {
                queue.size = size;
            }
        }
        26 => {
            queue.vector = vector;
            queue.vector_unread = u64::from(vector) != pci::NO_VECTOR;
        }
        28 => {
            book.check(&ENABLES, value != 0, || {
                format!("queue_enable was written with {value}")
            });
            if value == 0 {
                return;
            }
            let agreed = life.is(status::FEATURES_OK);
            let (ready, was_reset) = (life.is(status::DRIVER_OK), queue.was_reset);
            book.check(&SETS_UP, agreed && (!ready || was_reset), || {
                format!("queue {index} was enabled with status {:#04x}", life.status)
            });
            let configured = queue.configured();
            let rule = if was_reset { &AGAIN } else { &CONFIGURES };
            book.check(rule, configured, || {
                let how = if configured { "all" } else { "not all" };
                format!("queue {index} was enabled with {how} of its addresses written")
            });
            life.set_up = true;
            queue::enable(inner, index);
        }
        32..56 => {
            if queue.enabled {
                book.broke(
                    &CONFIGURES,
                    format!("an address at {offset} was written while queue_enable is 1"),
                );
            } else {
                queue.set_half(offset, value);
            }
        }
        58 if value == 1 && life.has(feature::RING_RESET) && queue.enabled => {
            queue.reset(plan);
            queue.resetting = Some(plan.slow_reads);
            queue::was_reset(inner);
        }
        64 => queue.restore(low16(value)),
        _ => {}
    }
}

/// The vectors that were written and not read, and the admin queue's place, at DRIVER_OK.
pub(super) fn driver_ok(inner: &mut Inner) {
    let unread = inner.common.vector_unread || inner.queues.iter().any(|queue| queue.vector_unread);
    if unread {
        inner.book.broke(
            &VECTOR_READ,
            "DRIVER_OK before a vector register was read back",
        );
    }
    if inner.life.has(feature::ADMIN_VQ) {
        let index = inner.plan.queues.clamp(1, 8);
        let beyond = inner.common.selected > index;
        let enabled = inner
            .queues
            .get(usize::from(index))
            .is_some_and(|queue| queue.enabled);
        if enabled || beyond {
            inner.book.check(&ADMIN_RANGE, !beyond, || {
                format!(
                    "admin queues are {index} to {index}, queue {} was selected last",
                    inner.common.selected
                )
            });
        }
    }
    model::driver_ok(inner);
}
