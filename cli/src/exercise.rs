//! `tidemark probe`, `suspend`, `queue-state` and `track`.

use crate::exit::{Failed, Unreachable, Usage};
use crate::size;
use clap::{Args, ValueEnum};
use driver::bus::Bus;
use driver::dirty::DirtySet;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use vm::exercise::{
    self, Comeback, Handshake, Probe, QueueReport, RoundReport, RoundStart, SuspendReport,
    TrackOptions, TrackReport, Watcher,
};
use vm::guest::Pattern;
use vm::{Target, VmError};

#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The device: `emulated`, `vfio:0000:03:00.0` (bound to vfio-pci) or `vfio-user:PATH`. Nobody
    /// else may be driving it
    #[arg(long, value_name = "TARGET")]
    target: Target,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

impl TargetArgs {
    fn open(&self) -> Result<Arc<dyn Bus>, Unreachable> {
        let opened = self.target.open();
        opened.map_err(|error| Unreachable(error.to_string()))
    }

    fn print<T: Serialize>(&self, report: &T, show: impl FnOnce(&T)) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(report)?);
        } else {
            show(report);
        }
        Ok(())
    }
}

/// Runs `tidemark probe`.
pub fn probe(args: &TargetArgs) -> anyhow::Result<()> {
    let probe = exercise::probe(args.open()?)?;
    args.print(&probe, show_probe)
}

fn show_probe(probe: &Probe) {
    println!(
        "function    {:04x}:{:04x} revision {:#x} class {:06x}, virtio {} ({})",
        probe.vendor, probe.device, probe.revision, probe.class, probe.virtio_id, probe.virtio_type
    );
    println!("status      {}", probe.status);
    for capability in &probe.capabilities {
        println!(
            "structure   BAR {} {:#07x}+{:#x} {}",
            capability.bar, capability.offset, capability.length, capability.name
        );
    }
    println!("features    {:#018x}", probe.features);
    println!("            {}", probe.feature_names.join(" "));
    println!("queues      {} of {:?}", probe.queues.len(), probe.queues);
    if let Some(sectors) = probe.capacity {
        println!("capacity    {}", size::show(sectors.saturating_mul(512)));
    }
    match &probe.tracker {
        Some(tracker) => println!(
            "tracker     enable {}, gra_power {}, PASID {}, bitmap {:#x}+{:#x}",
            tracker.enable,
            tracker.gra_power,
            tracker.pasid,
            tracker.bitmap_addr,
            tracker.bitmap_length
        ),
        None => println!("tracker     none"),
    }
    let pasid = if probe.pasid {
        "visible"
    } else {
        "not visible"
    };
    println!("PASID       extended capability {pasid}");
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ComebackArg {
    /// Resume it
    Resume,
    /// Reset it and write its state back
    Restore,
}

impl From<ComebackArg> for Comeback {
    fn from(arg: ComebackArg) -> Self {
        match arg {
            ComebackArg::Resume => Self::Resume,
            ComebackArg::Restore => Self::Restore,
        }
    }
}

#[derive(Debug, Args)]
pub struct SuspendArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Suspensions, each with the queues full of reads
    #[arg(long, value_name = "N", default_value_t = 5)]
    times: u32,
    /// Queues to use, at most
    #[arg(long, value_name = "N", default_value_t = 4)]
    queues: u16,
    /// How the device comes back
    #[arg(long, value_enum, default_value_t = ComebackArg::Resume)]
    comeback: ComebackArg,
}

/// Runs `tidemark suspend`.
pub fn suspend(args: &SuspendArgs) -> anyhow::Result<()> {
    let target = &args.target;
    let report = exercise::suspensions(
        target.open()?,
        args.times,
        args.queues,
        args.comeback.into(),
    )?;
    target.print(&report, show_suspensions)?;
    judge_suspensions(&report)
}

fn show_suspensions(report: &SuspendReport) {
    println!("  in flight    drained    carried    suspend   comeback  status");
    for one in &report.suspensions {
        println!(
            "{:>11} {:>10} {:>10} {:>7.3} ms {:>7.3} ms  {}",
            one.in_flight, one.drained, one.carried, one.suspend_ms, one.comeback_ms, one.status
        );
    }
    let requests = &report.requests;
    println!(
        "requests    {} submitted, {} completed, {} lost, {} doubled, {} failed",
        requests.submitted, requests.completed, requests.lost, requests.doubled, requests.failed
    );
}

fn judge_suspensions(report: &SuspendReport) -> anyhow::Result<()> {
    if report.is_good() {
        return Ok(());
    }
    let what = "not every request was done exactly once, or a queue's state is wrong";
    Err(Failed(what.to_owned()).into())
}

#[derive(Debug, Args)]
pub struct QueueStateArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Queues to use, at most
    #[arg(long, value_name = "N", default_value_t = 4)]
    queues: u16,
}

/// Runs `tidemark queue-state`.
pub fn queue_state(args: &QueueStateArgs) -> anyhow::Result<()> {
    let bus = args.target.open()?;
    let report = exercise::suspensions(bus, 1, args.queues, Comeback::Resume)?;
    args.target.print(&report, |report| {
        println!("queue    size   avail    used");
        for one in &report.suspensions {
            for queue in &one.queues {
                let QueueReport {
                    index,
                    size,
                    avail,
                    used,
                } = queue;
                println!("{index:>5} {size:>7} {avail:>7} {used:>7}");
            }
            println!(
                "in flight   {} at SUSPEND, {} drained, {} left in the rings",
                one.in_flight, one.drained, one.carried
            );
        }
    })?;
    judge_suspensions(&report)
}

#[derive(Debug, Args)]
pub struct TrackArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: u32,
    /// Requests of a round
    #[arg(long, value_name = "N", default_value_t = 2000)]
    requests: u64,
    /// Memory that reads go to; half of it in each round. Sizes take K, M, G
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = size::parse)]
    memory: u64,
    /// Queues to use, at most
    #[arg(long, value_name = "N", default_value_t = 4)]
    queues: u16,
    /// Entries of each queue, at most
    #[arg(long, value_name = "N", default_value_t = 128)]
    queue_size: u16,
    /// Writes in a hundred requests. They overwrite the second half of the disk
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=100))]
    writes: u8,
    /// Page size to track with
    #[arg(long, visible_alias = "gra", value_name = "SIZE", default_value = "4K", value_parser = size::parse)]
    granularity: u64,
    /// Completions between two harvests
    #[arg(long, value_name = "N", default_value_t = 100)]
    harvest_every: u64,
    /// Suspend the device in each round while its queues are full, and let it come back so; may be
    /// given several times
    #[arg(long, value_enum, value_name = "HOW")]
    suspend: Vec<ComebackArg>,
    /// Check what is read: `tidemark journal --seed N` has formatted the disk
    #[arg(long, value_name = "N")]
    journal: Option<u64>,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Tell somebody over this line before and after each round, and wait for `go`: a host that
    /// compares memory
    #[arg(long, value_name = "FILE")]
    handshake: Option<PathBuf>,
}

/// Runs `tidemark track`.
pub fn track(args: &TrackArgs) -> anyhow::Result<()> {
    let options = TrackOptions {
        rounds: args.rounds,
        requests: args.requests,
        pages: args.memory / 4096,
        queues: args.queues,
        queue_size: args.queue_size,
        writes_percent: args.writes,
        pattern: Pattern::Random,
        granularity: args.granularity,
        harvest_every: args.harvest_every,
        suspensions: args.suspend.iter().copied().map(Comeback::from).collect(),
        journal: args.journal,
        seed: args.seed,
    };
    let mut watcher: Box<dyn Watcher> = match &args.handshake {
        Some(path) => Box::new(Handshake::open(path).map_err(|error| Usage(error.to_string()))?),
        None => Box::new(Table {
            shown: !args.target.json,
        }),
    };
    let report = exercise::track(args.target.open()?, &options, &mut *watcher)?;
    args.target.print(&report, show_track)?;
    if report.is_good() {
        return Ok(());
    }
    let what = "pages were lost, reads were wrong, or requests were not done exactly once";
    Err(Failed(what.to_owned()).into())
}

/// Prints a line for each round.
struct Table {
    shown: bool,
}

impl Watcher for Table {
    fn ready(&mut self, start: &RoundStart) -> Result<(), VmError> {
        if self.shown && start.round == 1 {
            println!(
                "round  requests  written  harvested  lost  false  harvests  largest     time"
            );
        }
        Ok(())
    }

    fn done(&mut self, report: &RoundReport, _: &DirtySet) -> Result<(), VmError> {
        if self.shown {
            println!(
                "{:>5} {:>9} {:>8} {:>10} {:>5} {:>6} {:>9} {:>8} {:>6.1} ms",
                report.round,
                report.requests,
                report.written,
                report.harvested,
                report.lost,
                report.falsely_dirty,
                report.harvests,
                report.largest_harvest,
                report.seconds * 1e3
            );
        }
        Ok(())
    }
}

fn show_track(report: &TrackReport) {
    let requests = &report.requests;
    println!(
        "requests    {} submitted, {} completed, {} lost, {} doubled, {} failed; {} interrupts",
        requests.submitted,
        requests.completed,
        requests.lost,
        requests.doubled,
        requests.failed,
        report.interrupts
    );
    println!("granularity {}", size::show(report.granularity));
}
