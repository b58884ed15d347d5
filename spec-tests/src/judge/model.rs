//! The device types: what a request does, behind what is judged of it.

use super::admin::Admin;
use super::blk::Disk;
use super::chain::Chain;
use super::function::Inner;
use super::ledger::{Ledger, rules};
use super::memory::Memory;
use super::plan::{Kind, Plan};
use crate::clause;
use std::io;

rules! {
    RANDOM = clause!(rng "R1"), "gives_no_readable_entropy_buffers": "every buffer of an entropy device";
}

/// A device type and its administration queue.
#[derive(Debug)]
pub(super) struct Model {
    disk: Option<Disk>,
    pub(super) admin: Admin,
}

impl Model {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let disk = match plan.kind {
            Kind::Entropy => None,
            Kind::Block | Kind::Zoned => Some(Disk::new(plan)?),
        };
        Ok(Self {
            disk,
            admin: Admin::new(plan),
        })
    }

    /// Features of the device type.
    pub(super) fn features(&self) -> u64 {
        self.disk.as_ref().map_or(0, Disk::features)
    }

    pub(super) fn negotiated(&mut self, accepted: u64, book: &mut Ledger) {
        if let Some(disk) = &mut self.disk {
            disk.negotiated(accepted, book);
        }
    }

    pub(super) fn config(&self) -> Vec<u8> {
        self.disk.as_ref().map_or_else(Vec::new, Disk::config)
    }

    /// Fields of the configuration that depend on a feature: from, to, feature.
    pub(super) fn fields(&self) -> &'static [(u64, u64, u64)] {
        self.disk.as_ref().map_or(&[], |_| super::blk::FIELDS)
    }

    pub(super) fn has_capacity(&self) -> bool {
        self.disk.is_some()
    }

    pub(super) fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let Some(disk) = &mut self.disk {
            disk.config_write(offset, data);
        }
    }

    pub(super) fn grow(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.grow();
        }
    }

    pub(super) fn reset(&mut self) {
        self.admin.reset();
        if let Some(disk) = &mut self.disk {
            disk.reset();
        }
    }
}

/// Most elements that the device takes in a buffer of this queue.
pub(super) fn chain_limit(inner: &Inner, index: u16) -> usize {
    let disk = inner
        .model
        .disk
        .as_ref()
        .filter(|_| index < inner.plan.queues.clamp(1, 8));
    let most = disk.and_then(|disk| disk.chain_limit(inner.life.features));
    most.unwrap_or_else(|| usize::from(inner.plan.queue_size))
}

/// DRIVER_OK was set.
pub(super) fn driver_ok(inner: &mut Inner) {
    inner.model.admin.members = inner.pci.vfs();
}

/// Carries out a request; bytes written.
pub(super) fn process(inner: &mut Inner, index: u16, chain: &Chain) -> u32 {
    let admin = index >= inner.plan.queues.clamp(1, 8);
    inner.model.admin.members = inner.pci.vfs();
    let Inner {
        model,
        book,
        memory,
        ..
    } = inner;
    if admin {
        return model.admin.process(book, memory, chain);
    }
    match &mut model.disk {
        Some(disk) => disk.process(book, memory, chain),
        None => random(book, memory, chain),
    }
}

/// What an entropy device writes: not random, but no two bytes in a row alike.
fn random(book: &mut Ledger, memory: &Memory, chain: &Chain) -> u32 {
    let readable = chain.readable();
    book.check(&RANDOM, readable == 0, || {
        format!("{readable} bytes for the device to read")
    });
    // Half of what is asked for: a driver must take the length for what it is.
    let len = usize::try_from(chain.writable().div_ceil(2))
        .unwrap_or(0)
        .min(4096);
    let bytes: Vec<u8> = (0..len)
        .map(|at| (at * 151 % 251).to_le_bytes()[0])
        .collect();
    u32::try_from(chain.write(memory, 0, &bytes)).unwrap_or(0)
}
