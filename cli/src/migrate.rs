//! `tidemark migrate`.

use crate::args::{MigrateArgs, RingArg, StateArg, Target};
use crate::exit::{Failed, Unreachable, Usage};
use crate::progress::Bars;
use crate::receive::LISTENING;
use crate::summary;
use anyhow::Context;
use migration::policy::Policy;
use migration::precopy::Options;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use vm::guest::{EmulatedGuest, Shape};
use vm::{Hosting, Limits, Means, Move, evidence, move_guest, save_guest};

const BLOCK: u64 = 4096;
const DEPTH: u16 = 32;
const QUEUE_SIZE: u16 = 256;
const WRITES_PERCENT: u8 = 30;
/// Requests before the move, so that it starts at full speed.
const WARM_UP: u64 = 5000;

pub fn run(args: &MigrateArgs) -> anyhow::Result<()> {
    let begin = Instant::now();
    if !args.granularity.is_power_of_two() || !(4096..=1 << 30).contains(&args.granularity) {
        let got = args.granularity;
        return Err(Usage(format!(
            "--granularity: expected a power of two from 4K to 1G, got {got}"
        ))
        .into());
    }
    if matches!(args.to, Some(Target::Unix(_))) && (args.disk.is_empty() || args.evidence.is_none())
    {
        let why = "--to unix:PATH: expected --disk and --evidence as well, the same as those of \
                   the `tidemark receive` there";
        return Err(Usage(why.to_owned()).into());
    }
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let evidence_folder = args
        .evidence
        .clone()
        .unwrap_or_else(|| folder.path().join("evidence"));
    evidence::prepare(&evidence_folder)?;
    let (disks, blocks) = disks(args, folder.path())?;
    let shape = Shape {
        memory: args.memory,
        devices: args.devices,
        queues: args.queues,
        queue_size: QUEUE_SIZE,
        depth: DEPTH,
        blocks,
        pattern: args.workload.into(),
        writes_percent: WRITES_PERCENT,
        seed: args.seed,
        marking: args.tracker.into(),
        means: Means {
            records: args.tracker.records().then_some(args.records),
            parts: args.state == StateArg::Parts,
        },
        reset_every: args.reset_every,
        packed: args.ring == RingArg::Packed,
    };
    // Before anything is overwritten.
    vm::guest::Layout::new(&shape)?;
    for (number, disk) in (0..).zip(&disks) {
        evidence::format_disk(disk, number, blocks)?;
    }

    let mut destination = None;
    let way = match &args.to {
        Some(Target::File(path)) => Way::File(path.clone()),
        Some(Target::Unix(path)) => Way::Socket(connect(path)?),
        None => {
            let path = folder.path().join("socket");
            destination = Some(Destination::spawn(&path, &disks, &evidence_folder)?);
            Way::Socket(connect(&path)?)
        }
    };

    let hosting = Hosting {
        disks: disks.clone(),
        evidence: Some(evidence_folder.clone()),
        side: "source".to_owned(),
        limits: Limits::default(),
        hold: None,
        disk_fault: None,
    };
    let mut guest = EmulatedGuest::boot(&shape, &hosting)?;
    guest.run_for(WARM_UP, Duration::from_secs(10))?;
    let cancel = AtomicBool::new(false);
    let policy = Policy {
        max_rounds: args.max_rounds,
        ..Policy::for_memory(args.memory / BLOCK)
    };
    let plan = Move {
        options: Options {
            policy,
            granularity: args.granularity,
            plain_copies: match &way {
                Way::Socket(_) => args.plain_copies,
                Way::File(_) => 0,
            },
            cancel: &cancel,
        },
        evidence: &evidence_folder,
        disks: &disks,
    };
    let mut bars = Bars::new();
    let outcome = match way {
        Way::Socket(socket) => move_guest(&mut guest, socket, &plan, &mut bars),
        Way::File(path) => save_guest(&mut guest, &path, &plan, &mut bars, || {
            restore(&path, &disks, &evidence_folder).map_err(|error| format!("{error:#}"))
        }),
    };
    drop(guest);
    let mut objections = outcome.objections();
    if let Some(trouble) = destination.and_then(|d| d.end(outcome.moved)) {
        objections.push(trouble);
    }
    summary::print(args, &outcome, &objections, begin.elapsed());
    if objections.is_empty() {
        return Ok(());
    }
    Err(Failed(summary::verdict(&outcome, &objections)).into())
}

/// How the guest goes away.
#[derive(Debug)]
enum Way {
    Socket(UnixStream),
    File(PathBuf),
}

fn connect(path: &Path) -> Result<UnixStream, Unreachable> {
    UnixStream::connect(path)
        .map_err(|error| Unreachable(format!("cannot reach unix:{}: {error}", path.display())))
}

/// `tidemark receive` for a destination on these disks.
fn receive(disks: &[PathBuf], evidence: &Path) -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.arg("receive").arg("--evidence").arg(evidence);
    for disk in disks {
        command.arg("--disk").arg(disk);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(command)
}

/// Lets a process of its own take the guest up from the file and bring it to its end.
fn restore(path: &Path, disks: &[PathBuf], evidence: &Path) -> anyhow::Result<()> {
    let mut command = receive(disks, evidence)?;
    command.arg("--from");
    command.arg(format!("file:{}", path.display()));
    let output = command.output().context("starting the destination")?;
    anyhow::ensure!(
        output.status.success(),
        "the destination ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

/// The disks and the blocks of each: given ones, or temporary ones.
fn disks(args: &MigrateArgs, folder: &Path) -> anyhow::Result<(Vec<PathBuf>, u64)> {
    if args.disk.is_empty() {
        let mut disks = Vec::new();
        for number in 0..args.devices {
            let path = folder.join(format!("disk{number}.img"));
            File::create(&path).context("making a disk")?;
            disks.push(path);
        }
        return Ok((disks, args.disk_size / BLOCK));
    }
    if args.disk.len() != usize::from(args.devices) {
        return Err(Usage(format!(
            "--disk: expected {} of them, one for each device, got {}",
            args.devices,
            args.disk.len()
        ))
        .into());
    }
    let mut blocks = u64::MAX;
    for disk in &args.disk {
        let known = std::fs::metadata(disk)
            .map_err(|error| Usage(format!("cannot open the disk {}: {error}", disk.display())))?;
        if !known.is_file() {
            return Err(Usage(format!("the disk {} is not a file", disk.display())).into());
        }
        blocks = blocks.min(known.len() / BLOCK);
        if !args.overwrite && !evidence::is_ours(disk)? {
            return Err(Usage(format!(
                "the disk {} holds something; pass --overwrite to lose it",
                disk.display()
            ))
            .into());
        }
    }
    Ok((args.disk.clone(), blocks))
}

/// The destination, as a process of its own.
#[derive(Debug)]
struct Destination(Child);

impl Destination {
    /// Starts it and waits until it listens.
    fn spawn(socket: &Path, disks: &[PathBuf], evidence: &Path) -> anyhow::Result<Self> {
        let mut command = receive(disks, evidence)?;
        command.arg("--listen");
        command.arg(format!("unix:{}", socket.display()));
        let mut destination = Self(command.spawn().context("starting the destination")?);
        tracing::info!(pid = destination.0.id(), "destination");
        let out = destination.0.stdout.as_mut().context("no output")?;
        // Unbuffered beyond the line: nothing else comes before a source has connected.
        let mut line = String::new();
        BufReader::with_capacity(1, out)
            .read_line(&mut line)
            .context("waiting for the destination")?;
        if !line.starts_with(LISTENING) {
            return Err(Unreachable(format!(
                "the destination did not start: expected '{LISTENING}...', got '{}'",
                line.trim_end()
            ))
            .into());
        }
        Ok(destination)
    }

    /// Waits for its end, and says what was wrong with it if the guest was there.
    fn end(mut self, moved: bool) -> Option<String> {
        match self.0.wait() {
            Ok(status) if status.success() || !moved => None,
            Ok(status) => Some(format!("the destination ended with {status}")),
            Err(error) => Some(format!("waiting for the destination: {error}")),
        }
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        // Of a destination that has ended already nothing is left to end; of one that has not,
        // nobody would take the guest any more.
        if let Ok(None) = self.0.try_wait() {
            let killed = self.0.kill().and_then(|()| self.0.wait());
            tracing::debug!(?killed, "destination");
        }
    }
}
