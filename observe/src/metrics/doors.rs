//! What the front doors' devices count. The names are documented in the book, "Metrics", and a test
//! holds that page against what is told.

use super::{Families, Kind, Source};
use device::blk::BlkDevice;
use device::function::PciFunction;
use device::serve::vfio_user::ServedFunction;
use device::serve::vhost_user::VhostUserServer;
use device::status::State;
use spec::admin::{opcode, qualifier, status};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Adds metrics that all have the same first label.
pub(super) struct Of<'a> {
    pub families: &'a mut Families,
    pub device: &'a str,
}

impl Of<'_> {
    fn add(&mut self, kind: Kind, name: &str, help: &str, more: &[(&str, &str)], value: u64) {
        let mut labels = vec![("device", self.device)];
        labels.extend_from_slice(more);
        self.families.add(kind, name, help, &labels, value);
    }

    pub fn count(&mut self, name: &str, help: &str, value: u64) {
        self.add(Kind::Counter, name, help, &[], value);
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.add(Kind::Gauge, name, help, &[], value);
    }
}

/// A function behind a vfio-user socket, and the block device that it carries.
#[derive(Debug)]
pub struct FunctionSource {
    device: String,
    served: Arc<ServedFunction>,
    blk: Arc<BlkDevice>,
    /// Clients that have gone.
    gone: Arc<AtomicU64>,
}

impl FunctionSource {
    /// Metrics of the device with this number; `gone` counts the clients that it had before.
    pub fn new(
        number: usize,
        served: Arc<ServedFunction>,
        blk: Arc<BlkDevice>,
        gone: Arc<AtomicU64>,
    ) -> Self {
        Self {
            device: number.to_string(),
            served,
            blk,
            gone,
        }
    }
}

impl Source for FunctionSource {
    fn collect(&self, families: &mut Families) {
        let function = self.served.function();
        let of = &mut Of {
            families,
            device: &self.device,
        };
        block(of, &self.blk);
        life(of, function);
        tracker(of, function);
        admin(of, function);
        let serve = self.served.stats();
        clients(
            of,
            serve.dma_maps,
            serve.dma_unmaps,
            self.gone.load(Relaxed),
        );
    }
}

/// What the clients of a vfio-user socket did.
pub(super) fn clients(of: &mut Of<'_>, maps: u64, unmaps: u64, gone: u64) {
    of.count(
        "tidemark_dma_maps_total",
        "Maps of guest memory that clients asked for.",
        maps,
    );
    of.count(
        "tidemark_dma_unmaps_total",
        "Unmaps that clients asked for.",
        unmaps,
    );
    of.count(
        "tidemark_client_disconnects_total",
        "Clients that have gone.",
        gone,
    );
}

fn block(of: &mut Of<'_>, blk: &BlkDevice) {
    let stats = blk.stats();
    for request in blk.requests() {
        of.add(
            Kind::Counter,
            "tidemark_blk_requests_total",
            "Requests answered, by type and status.",
            &[("type", request.kind), ("result", request.result)],
            request.count,
        );
    }
    of.count(
        "tidemark_blk_read_bytes_total",
        "Bytes that successful reads gave to the driver.",
        stats.bytes_read,
    );
    of.count(
        "tidemark_blk_written_bytes_total",
        "Bytes that successful writes took from the driver.",
        stats.bytes_written,
    );
    for (index, queue) in blk.activity().iter().enumerate() {
        let index = index.to_string();
        of.add(
            Kind::Gauge,
            "tidemark_queue_requests_in_flight",
            "Requests taken from the queue and not answered yet.",
            &[("queue", &index)],
            queue.in_flight,
        );
    }
    for (index, queue) in blk.activity().iter().enumerate() {
        let index = index.to_string();
        of.add(
            Kind::Counter,
            "tidemark_queue_requests_total",
            "Requests of the queue that were answered.",
            &[("queue", &index)],
            queue.answered,
        );
    }
}

fn life(of: &mut Of<'_>, function: &PciFunction) {
    let stats = function.stats();
    let state = usize::from(function.state().number());
    for (number, name) in State::NAMES.iter().enumerate() {
        of.add(
            Kind::Gauge,
            "tidemark_device_state",
            "1 for the state that the device is in, 0 for all others.",
            &[("state", name)],
            u64::from(number == state),
        );
    }
    of.families.add_times(
        "tidemark_suspend_duration_seconds",
        "From a driver's order to suspend until SUSPEND was presented.",
        &[("device", of.device)],
        stats.suspends,
        stats.suspending,
    );
    of.families.add_real(
        Kind::Counter,
        "tidemark_suspended_seconds_total",
        "Time for which the device was suspended, until it was not any more.",
        &[("device", of.device)],
        stats.suspended.as_secs_f64(),
    );
    of.count(
        "tidemark_resumes_total",
        "Times that the device ran again after a suspend.",
        stats.resumes,
    );
    of.count(
        "tidemark_resets_total",
        "Resets that were finished, of either kind.",
        stats.resets,
    );
    of.count(
        "tidemark_device_errors_total",
        "Times that the device set DEVICE_NEEDS_RESET.",
        stats.errors,
    );
    broken_queues(of, stats.broken_queues);
    of.count(
        "tidemark_notifications_total",
        "Doorbell writes that reached a queue.",
        stats.notifications,
    );
    of.count(
        "tidemark_interrupts_total",
        "Interrupts that were sent.",
        stats.interrupts,
    );
    of.count(
        "tidemark_ignored_writes_total",
        "Register writes that a rule made the device ignore.",
        stats.ignored,
    );
}

fn broken_queues(of: &mut Of<'_>, count: u64) {
    of.count(
        "tidemark_queues_broken_total",
        "Queues that stopped because of a malformed chain or ring.",
        count,
    );
}

fn tracker(of: &mut Of<'_>, function: &PciFunction) {
    let dma = function.dma();
    let totals = dma.tracker_totals();
    of.gauge(
        "tidemark_tracker_enabled",
        "1 while pages that the device writes are marked.",
        u64::from(dma.is_tracking()),
    );
    written(of, totals.pages, totals.beyond_length);
    of.count(
        "tidemark_tracker_shadowed_pages_total",
        "Pages whose part of the bitmap was not mapped when they were marked.",
        totals.shadowed,
    );
    of.gauge(
        "tidemark_tracker_undelivered_words",
        "Words of the bitmap that wait for it to be mapped again.",
        totals.undelivered,
    );
}

fn written(of: &mut Of<'_>, pages: u64, beyond: u64) {
    of.count(
        "tidemark_tracker_written_pages_total",
        "Pages that bursts of data wrote while they were marked, each as often as it was written.",
        pages,
    );
    of.count(
        "tidemark_tracker_beyond_pages_total",
        "Pages that were not marked because the bitmap has no bit for them.",
        beyond,
    );
}

fn admin(of: &mut Of<'_>, function: &PciFunction) {
    for (answer, count) in function.admin_answers() {
        let command = answer.opcode.and_then(opcode::name).unwrap_or("unknown");
        of.add(
            Kind::Counter,
            "tidemark_admin_commands_total",
            "Administration commands answered.",
            &[
                ("command", command),
                ("status", status::name(answer.status)),
                ("qualifier", qualifier::name(answer.qualifier)),
            ],
            count,
        );
    }
}

/// A block device behind a vhost-user socket.
#[derive(Debug)]
pub struct VhostUserSource {
    server: Arc<VhostUserServer>,
    blk: Arc<BlkDevice>,
}

impl VhostUserSource {
    /// Metrics of `blk`, served by `server`.
    pub fn new(server: Arc<VhostUserServer>, blk: Arc<BlkDevice>) -> Self {
        Self { server, blk }
    }
}

impl Source for VhostUserSource {
    fn collect(&self, families: &mut Families) {
        let of = &mut Of {
            families,
            device: "0",
        };
        block(of, &self.blk);
        let stats = self.server.stats();
        broken_queues(of, stats.rings_broken);
        written(of, stats.pages_logged, stats.beyond_log);
        of.count(
            "tidemark_client_connections_total",
            "Frontends that connected.",
            stats.connections,
        );
        of.count(
            "tidemark_ring_starts_total",
            "Rings that were started.",
            stats.ring_starts,
        );
        of.count(
            "tidemark_requests_resubmitted_total",
            "Requests taken over from a backend that was killed.",
            stats.resubmitted,
        );
        of.count(
            "tidemark_memory_changes_total",
            "Memory tables and changes to them.",
            stats.memory_changes,
        );
        of.count(
            "tidemark_logs_total",
            "Migration logs that were put in force.",
            stats.logs,
        );
        of.count(
            "tidemark_log_starts_total",
            "Times that logging of data was switched on.",
            stats.log_starts,
        );
    }
}
