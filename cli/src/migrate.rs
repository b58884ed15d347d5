//! `tidemark migrate`.

use crate::args::{
    MigrateArgs, PolicyArg, ProgressArg, RingArg, StateArg, Target, TrackerArg, UnconvergedArg,
};
use crate::conducted;
use crate::ensemble::Crew;
use crate::exit::{Failed, Unreachable, Usage};
use crate::progress::{Bars, Events};
use crate::receive::LISTENING;
use crate::summary;
use anyhow::Context;
use migration::Cancel;
use migration::agent::Mode;
use migration::observe::{Observer, Silent};
use migration::pace::{Bandwidth, SystemClock};
use migration::policy::{DowntimeLimit, Policy, Rounds, Unconverged, XenDefault};
use migration::precopy::Options;
use migration::stream::Connection;
use migration::transport;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm::guest::{EmulatedGuest, Shape};
use vm::{Hosting, Limits, Means, Move, evidence, move_guest, save_guest, send_guest};

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
    sensible(args)?;
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

    let mut crew = Crew::prepare(&args.agents, disks.len(), conductible(args), folder.path())?;
    let mut destination = None;
    let way = match &args.to {
        Some(Target::File(path)) => Way::File(path.clone()),
        Some(Target::Standard) => {
            let output = std::io::stdout().as_fd().try_clone_to_owned();
            Way::Output(File::from(output.context("taking the standard output")?))
        }
        Some(target) => Way::Sockets(reach(target, args)?),
        None => {
            let path = folder.path().join("socket");
            let control = crew.as_ref().and_then(Crew::control_there);
            let spawned = Destination::spawn(&path, args, &disks, &evidence_folder, control)?;
            destination = Some(spawned);
            Way::Sockets(reach(&Target::Unix(path), args)?)
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
    if let Some(crew) = &mut crew {
        guest.seat(&crew.seats);
        let mode = match args.tracker {
            TrackerArg::Bytes => Mode::Bytes,
            _ => Mode::Bitmap,
        };
        guest.conduct(crew.conduct(&args.agents, destination.is_some(), true, mode)?);
    }
    guest.run_for(WARM_UP, Duration::from_secs(10))?;
    let cancel = Arc::new(Cancel::default());
    cancel_on_signal(&cancel)?;
    let policy = policy(args);
    let clock = SystemClock::default();
    let bandwidth = args.max_bandwidth.map(|rate| Bandwidth {
        rate,
        clock: &clock,
    });
    let plan = Move {
        options: Options {
            policy: policy.as_ref(),
            granularity: args.granularity,
            plain_copies: match &way {
                Way::Sockets(_) => args.plain_copies,
                Way::File(_) | Way::Output(_) => 0,
            },
            bandwidth,
            cancel: &cancel,
        },
        evidence: &evidence_folder,
        disks: &disks,
    };
    let aside = matches!(way, Way::Output(_));
    let mut observer: Box<dyn Observer> = match args.progress {
        ProgressArg::Bars => Box::new(Bars::new()),
        ProgressArg::Json if aside => Box::new(Events::new(Box::new(std::io::stderr()))),
        ProgressArg::Json => Box::new(Events::new(Box::new(std::io::stdout()))),
        ProgressArg::Off => Box::new(Silent),
    };
    let observer = observer.as_mut();
    let outcome = match way {
        Way::Sockets(sockets) => move_guest(&mut guest, sockets, &plan, observer),
        Way::File(path) => save_guest(&mut guest, &path, &plan, observer, || {
            restore(&path, &disks, &evidence_folder).map_err(|error| format!("{error:#}"))
        }),
        Way::Output(output) => {
            let outcome = send_guest(&mut guest, output, &plan, observer);
            if outcome.moved {
                if let Some(ensemble) = guest.ensemble() {
                    eprint!("{}", conducted::Figures::of(ensemble));
                }
                // The output is the guest's.
                eprintln!(
                    "the guest is in the stream; what becomes of it there is judged by nobody"
                );
                return Ok(());
            }
            outcome
        }
    };
    let mut objections = outcome.objections();
    objections.extend(guest.ensemble().and_then(conducted::objection));
    let conducted = guest.ensemble().map(conducted::Figures::of);
    drop(guest);
    // After the guest: its devices are in their places until then.
    drop(crew);
    if let Some(trouble) = destination.and_then(|d| d.end(outcome.moved)) {
        objections.push(trouble);
    }
    if !aside {
        summary::print(
            args,
            &outcome,
            conducted.as_ref(),
            &objections,
            begin.elapsed(),
        );
    }
    if objections.is_empty() {
        return Ok(());
    }
    Err(Failed(summary::verdict(&outcome, &objections)).into())
}

/// Refuses what makes no sense together.
fn sensible(args: &MigrateArgs) -> Result<(), Usage> {
    let refuse = |why: &str| Err(Usage(why.to_owned()));
    if args.postcopy {
        return refuse(
            "--postcopy: post-copy is refused: a guest that runs at its destination before its \
             memory is there is lost when the connection is, and no side would be whole; use \
             --unconverged throttle for a guest that does not converge",
        );
    }
    if matches!(
        args.to,
        Some(Target::Unix(_) | Target::Tcp(_) | Target::Tls(_) | Target::Standard)
    ) && (args.disk.is_empty() || args.evidence.is_none())
    {
        return refuse(
            "--to unix:PATH, tcp:HOST:PORT, tls:HOST:PORT and -: expected --disk and --evidence as well, the same \
             as those of the `tidemark receive` there",
        );
    }
    if let Some(target) = &args.to {
        // Before anything is overwritten: certificates that cannot be read, or none.
        args.connection.terms(target)?;
    }
    if matches!(args.to, Some(Target::File(_) | Target::Standard))
        && args.connection.connections != 1
    {
        return refuse("--connections: expected 1, since a file is one plain stream");
    }
    if args
        .policy
        .is_some_and(|policy| policy != PolicyArg::Downtime)
        && args.downtime_limit.is_some()
    {
        return refuse("--downtime-limit: expected --policy downtime, or no --policy");
    }
    if args.max_bandwidth == Some(0) {
        return refuse("--max-bandwidth: expected at least 1 byte a second, got 0");
    }
    Ok(())
}

/// Whether agents can conduct such a guest's devices, or why not.
fn conductible(args: &MigrateArgs) -> Result<(), &'static str> {
    if args.tracker.records() {
        return Err(
            "expected --tracker bitmap, bytes or off: records are had from the devices' owner",
        );
    }
    if args.state == StateArg::Parts {
        return Err("expected --state regs: in parts, the devices' owner suspends them");
    }
    if args.reset_every > 0 {
        return Err("expected no --reset-every: a reset voids what an agent has configured");
    }
    Ok(())
}

/// QEMU's default.
const DOWNTIME_LIMIT: u32 = 300;

fn policy(args: &MigrateArgs) -> Box<dyn Policy> {
    let rounds = Rounds {
        max_rounds: args.max_rounds,
        ..Rounds::for_memory(args.memory / BLOCK)
    };
    let default = match args.downtime_limit {
        Some(_) => PolicyArg::Downtime,
        None => PolicyArg::Rounds,
    };
    match args.policy.unwrap_or(default) {
        PolicyArg::Rounds => Box::new(rounds),
        PolicyArg::Xen => Box::new(XenDefault),
        PolicyArg::Downtime => {
            let limit = args.downtime_limit.unwrap_or(DOWNTIME_LIMIT);
            Box::new(DowntimeLimit {
                limit: Duration::from_millis(limit.into()),
                // A run with fewer would be no proof.
                min_rounds: rounds.min_rounds,
                max_rounds: args.max_rounds,
                then: match args.unconverged {
                    UnconvergedArg::Extend => Unconverged::Extend(args.max_rounds),
                    UnconvergedArg::Throttle => Unconverged::Throttle,
                    UnconvergedArg::Stop => Unconverged::Stop,
                },
            })
        }
    }
}

/// SIGINT and SIGTERM cancel the migration, as long as that can be.
fn cancel_on_signal(cancel: &Arc<Cancel>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("listening for signals")?;
    let cancel = Arc::clone(cancel);
    let thread = std::thread::Builder::new().name("signals".to_owned());
    let spawned = thread.spawn(move || {
        for signal in signals.forever() {
            let cancelled = cancel.cancel();
            tracing::warn!(signal, cancelled, "told to stop");
        }
    });
    spawned.map(drop).context("listening for signals")
}

/// How the guest goes away.
#[derive(Debug)]
enum Way {
    Sockets(Vec<Connection>),
    File(PathBuf),
    Output(File),
}

fn reach(to: &Target, args: &MigrateArgs) -> anyhow::Result<Vec<Connection>> {
    let terms = args.connection.terms(to)?;
    let address = to.address().context("nowhere to connect to")?;
    let reached = transport::connect(&address, &terms);
    Ok(reached.map_err(|error| Unreachable(error.to_string()))?)
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
    fn spawn(
        socket: &Path,
        args: &MigrateArgs,
        disks: &[PathBuf],
        evidence: &Path,
        control: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let mut command = receive(disks, evidence)?;
        if let Some(folder) = control {
            command.arg("--control").arg(folder);
        }
        let connection = &args.connection;
        command.arg(format!("--connections={}", connection.connections));
        command.arg(format!("--timeout={}", connection.timeout));
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
