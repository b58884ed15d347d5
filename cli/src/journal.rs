//! `tidemark journal`.

use crate::exit::{Failed, Unreachable, Usage};
use crate::size;
use clap::Args;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use vm::Target;
use vm::journal::{self, Disk, DrivenDisk, FileDisk, Options, Report};

#[derive(Debug, Args)]
pub struct JournalArgs {
    /// The disk: a block device, or the file that stands for one. Its contents are overwritten.
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "target",
        conflicts_with = "target"
    )]
    disk: Option<PathBuf>,
    /// A block device to drive without any kernel in between: `emulated`, `vfio:0000:03:00.0` (bound
    /// to vfio-pci) or `vfio-user:PATH`. It is reset, and its contents are overwritten
    #[arg(long, value_name = "TARGET")]
    target: Option<Target>,
    /// Requests in flight at once
    #[arg(long, value_name = "N", default_value_t = 32)]
    depth: usize,
    /// Bytes to use, from the disk's start; sizes take K, M, G. Default: all of it
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true, value_parser = size::parse)]
    span: u64,
    /// Bytes of a request: a power of two from 512 to 64K
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = size::parse)]
    block: u64,
    /// Seed of everything random, and mark of the run
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Writes in a hundred reads and writes
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(..=100))]
    writes: u8,
    /// A flush after this many reads and writes; 0 for none
    #[arg(long, value_name = "N", default_value_t = 64)]
    flush_every: u64,
    /// Memory that reads go to, page by page in random order. Default: what the depth needs
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true, value_parser = size::parse)]
    arena: u64,
    /// End after this many requests
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// End after this many seconds
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// End when a line `stop` arrives from this file, or when it ends; `-` is standard input
    #[arg(long, value_name = "FILE")]
    control: Option<PathBuf>,
    /// Say `journal: N requests` on stderr after every so many; 0 for never
    #[arg(long, value_name = "N", default_value_t = 1000)]
    progress: u64,
    /// Read and judge what a journal with the same seed, span and block has left; write nothing
    #[arg(long, conflicts_with_all = ["requests", "seconds", "control", "arena"])]
    verify_only: bool,
    /// Fail unless the digest of the span is this
    #[arg(long, value_name = "HEX")]
    digest: Option<String>,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

impl JournalArgs {
    fn name(&self) -> String {
        match (&self.disk, &self.target) {
            (Some(disk), _) => disk.display().to_string(),
            (None, Some(target)) => target.to_string(),
            (None, None) => String::new(),
        }
    }
}

/// The disk, opened.
enum Opened {
    File(FileDisk),
    Driven(DrivenDisk),
}

impl Opened {
    fn open(args: &JournalArgs) -> anyhow::Result<Self> {
        let unreachable = |error: &dyn std::fmt::Display| Unreachable(error.to_string());
        match (&args.disk, &args.target) {
            (Some(path), _) => {
                let disk = FileDisk::open(path, !args.verify_only);
                Ok(Self::File(disk.map_err(|error| unreachable(&error))?))
            }
            (None, Some(target)) => {
                let bus = target.open().map_err(|error| unreachable(&error))?;
                Ok(Self::Driven(DrivenDisk::start(bus)?))
            }
            (None, None) => Err(Usage("expected --disk or --target".to_owned()).into()),
        }
    }

    fn disk(&self) -> &dyn Disk {
        match self {
            Self::File(disk) => disk,
            Self::Driven(disk) => disk,
        }
    }

    /// Whether reads ask the device and no cache.
    fn is_direct(&self) -> bool {
        match self {
            Self::File(disk) => disk.is_direct(),
            Self::Driven(_) => true,
        }
    }
}

/// Runs `tidemark journal`.
pub fn run(args: &JournalArgs) -> anyhow::Result<()> {
    let bounded = args.requests.is_some() || args.seconds.is_some() || args.control.is_some();
    if !bounded && !args.verify_only {
        let what = "expected --requests, --seconds or --control: the journal would never end";
        return Err(Usage(what.to_owned()).into());
    }
    let disk = Opened::open(args)?;
    let options = Options {
        depth: args.depth,
        span: args.span,
        block: args.block,
        seed: args.seed,
        writes_percent: args.writes,
        flush_every: args.flush_every,
        arena: args.arena,
        requests: args.requests,
        time: args.seconds.map(Duration::from_secs),
        progress: args.progress,
    };
    let report = if args.verify_only {
        journal::verify(disk.disk(), &options)?
    } else {
        let stop = Arc::new(AtomicBool::new(false));
        if let Some(control) = &args.control {
            journal::stop_on_line(open_control(control)?, Arc::clone(&stop));
        }
        journal::run(disk.disk(), &options, &stop, &|requests| {
            eprintln!("journal: {requests} requests");
        })?
    };
    show(args, &disk, &report)?;
    judge(args, &report)
}

fn open_control(path: &PathBuf) -> anyhow::Result<Box<dyn BufRead + Send>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let file = File::open(path)
        .map_err(|error| Usage(format!("cannot read {}: {error}", path.display())))?;
    Ok(Box::new(BufReader::new(file)))
}

fn show(args: &JournalArgs, disk: &Opened, report: &Report) -> anyhow::Result<()> {
    if args.json {
        let mut object = serde_json::to_value(report)?;
        object["direct"] = disk.is_direct().into();
        object["good"] = report.is_good().into();
        println!("{object}");
        return Ok(());
    }
    let counts = report.counts;
    if !args.verify_only {
        println!(
            "requests    {} in {:.1} s: {} reads, {} writes, {} flushes; {} in flight at most, the longest took {:.1} ms",
            report.requests,
            report.seconds,
            report.reads,
            report.writes,
            report.flushes,
            report.max_in_flight,
            report.longest_ms
        );
    }
    println!(
        "sectors     {} of {} read back: {} lost, {} stale, {} torn, {} misplaced; {} requests failed",
        report.sectors_verified,
        disk.disk().size() / 512,
        counts.lost,
        counts.stale,
        counts.torn,
        counts.misplaced,
        report.failed
    );
    println!("digest      {}", report.digest);
    Ok(())
}

fn judge(args: &JournalArgs, report: &Report) -> anyhow::Result<()> {
    if !report.is_good() {
        let what = format!(
            "{} sectors of {} are not what was written, {} requests failed",
            report.counts.total(),
            args.name(),
            report.failed
        );
        return Err(Failed(what).into());
    }
    match &args.digest {
        Some(expected) if *expected != report.digest => {
            let got = &report.digest;
            Err(Failed(format!("expected the digest {expected}, got {got}")).into())
        }
        _ => Ok(()),
    }
}
