//! What a mediator counts.

use super::doors::{Of, clients};
use super::{Families, Source};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use vm::mediate::{Mediator, Report};

/// A mediator between a VMM and a device.
#[derive(Debug)]
pub struct MediatorSource {
    mediator: Arc<Mediator>,
    /// VMMs that have gone.
    gone: Arc<AtomicU64>,
}

impl MediatorSource {
    /// Metrics of `mediator`; `gone` counts the VMMs that it had before.
    pub fn new(mediator: Arc<Mediator>, gone: Arc<AtomicU64>) -> Self {
        Self { mediator, gone }
    }
}

impl Source for MediatorSource {
    /// Waits while a move goes on, as the guest does.
    fn collect(&self, families: &mut Families) {
        tell(&self.mediator.report(), self.gone.load(Relaxed), families);
    }
}

pub(super) fn tell(report: &Report, gone: u64, families: &mut Families) {
    let of = &mut Of {
        families,
        device: "0",
    };
    of.gauge(
        "tidemark_mediator_device_alive",
        "0 while the device is gone and none has taken over.",
        u64::from(report.alive),
    );
    of.gauge(
        "tidemark_mediator_driver_ok",
        "1 while the guest's driver runs the device.",
        u64::from(report.driver_ok),
    );
    of.gauge(
        "tidemark_mediator_movable",
        "0 if the device lacks what a move needs.",
        u64::from(report.lacks.is_none()),
    );
    of.count(
        "tidemark_mediator_moves_total",
        "Moves from device to device.",
        report.moves,
    );
    of.count(
        "tidemark_mediator_takeovers_total",
        "Times that a device took over from one that died.",
        report.takeovers,
    );
    of.count(
        "tidemark_mediator_failed_moves_total",
        "Moves and takeovers that failed.",
        report.failed_moves,
    );
    of.count(
        "tidemark_mediator_accesses_total",
        "Register accesses passed on, doorbells not among them.",
        report.accesses,
    );
    of.count(
        "tidemark_mediator_doorbells_total",
        "Doorbells passed on.",
        report.doorbells,
    );
    of.gauge(
        "tidemark_mediator_maps",
        "Maps of guest memory in force.",
        u64::try_from(report.maps).unwrap_or(u64::MAX),
    );
    if let Some(pages) = report.dirty_pages {
        of.gauge(
            "tidemark_mediator_dirty_pages",
            "Pages that the device wrote since tracking began.",
            pages,
        );
    }
    clients(of, report.dma_maps, report.dma_unmaps, gone);
}
