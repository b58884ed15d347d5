//! `tidemark checkpoint primary` and `tidemark checkpoint secondary`.

use crate::args::{Target, TlsArgs};
use crate::conducted::Figures;
use crate::ensemble::{self, AgentsArgs, Crew};
use crate::exit::{Failed, Unreachable, Usage};
use crate::receive::LISTENING;
use crate::size;
use crate::store::{Keeper, Places};
use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use migration::agent::{End, Mode};
use migration::checkpoint::{
    Comparison, EpochReport, FailoverError, Line, Primary, Reporter, Secondary, Switch, Witness,
};
use migration::names::Name;
use migration::stream::Connection;
use migration::transport::{self, Listener, Terms};
use serde_json::json;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm::guest::{EmulatedGuest, Pattern, Shape};
use vm::{Backup, DiskFault, Hosting, Limits, MarkingMode, Means, evidence};

const BLOCK: u64 = 4096;
/// Milliseconds between two checkpoints at most, if nobody says otherwise.
const PERIODIC: u64 = 100;
/// The same where outputs are compared; QEMU's.
const COMPARED: u64 = 20_000;

#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Runs an emulated guest and sends checkpoints of it, periodic ones unless outputs are compared;
    /// its disk's writes are held until the secondary has each.
    ///
    /// Takes lines from its input: `checkpoint`, `failover`, `status`.
    Primary(PrimaryArgs),
    /// Keeps the last whole checkpoint of a guest, and runs it when its primary is lost.
    ///
    /// Takes lines from its input: `failover`, `status`.
    Secondary(SecondaryArgs),
}

/// What the loss of the connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnLoss {
    /// The other side is gone: the guest goes on here. If it is not gone, and does the same, the
    /// guest runs twice: somebody must see to it that a lost side stays lost.
    TakeOver,
    /// Waits for `failover` on the input.
    Wait,
}

/// What both sides have in common.
#[derive(Debug, Args)]
pub struct PairArgs {
    /// Disk of the guest, for each of its devices one. Both sides name the same files, or ones that are
    /// the same at the start.
    #[arg(long, value_name = "FILE", required = true)]
    disk: Vec<PathBuf>,
    /// Bytes of writes held at most while the guest runs.
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = size::parse)]
    hold: u64,
    /// What the loss of the connection means.
    #[arg(long, value_enum, default_value = "take-over")]
    on_loss: OnLoss,
    /// Milliseconds that the other side may take for what is due within a checkpoint.
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    patience: u64,
    /// Milliseconds from one checkpoint to the next at most, as a primary; 100, or 20000 if outputs
    /// are compared.
    #[arg(long, value_name = "MS")]
    period: Option<u64>,
    /// Compares what the devices of both sides put out, on this connection: a checkpoint is made when
    /// it differs. Both sides name it; the secondary listens there, and runs the guest's copy.
    #[arg(long, value_name = "unix:PATH|tcp:HOST:PORT|tls:HOST:PORT")]
    compare: Option<Target>,
    /// Ends, as a primary, after so many checkpoints; never without.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Requests that the guest completes alone before it is stopped.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    requests: u64,
    /// Where both sides leave, under names of their own, what a judge needs: journals of the requests,
    /// and what memory was at each checkpoint.
    #[arg(long, value_name = "FOLDER")]
    evidence: Option<PathBuf>,
    /// Allows plain TCP to and from other machines, where anybody on the way sees the guest's
    /// memory.
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    tls: TlsArgs,
    /// For tests: one write to the disk fails, `enospc:N` or `eio:N`, counted from 1.
    #[arg(long, value_name = "FAULT")]
    disk_fault: Option<DiskFault>,
    /// Prints one JSON object as the last line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct PrimaryArgs {
    /// Where the secondary listens.
    #[arg(long, value_name = "unix:PATH|tcp:HOST:PORT|tls:HOST:PORT")]
    to: Target,
    /// Memory of the guest.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size::parse)]
    memory: u64,
    /// Seed of everything random.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Overwrites a disk even if it holds something else than an earlier run's blocks.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    agents: AgentsArgs,
    #[command(flatten)]
    pair: PairArgs,
}

#[derive(Debug, Args)]
pub struct SecondaryArgs {
    /// Where to wait for the primary.
    #[arg(long, value_name = "unix:PATH|tcp:HOST:PORT|tls:HOST:PORT")]
    listen: Target,
    /// Most memory that a guest may have.
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = size::parse)]
    memory_max: u64,
    /// Folder for a socket for each device, 0.sock and on, by which its agent reaches it (guest:PATH):
    /// the primary's manager holds them there, until the guest is taken over.
    #[arg(long, value_name = "DIR")]
    control: Option<PathBuf>,
    /// Formats the disks as the primary's are at their start, for disks of its own.
    #[arg(long)]
    format: bool,
    /// Runs the guest's copy between checkpoints, and undoes what it did at each.
    #[arg(long)]
    run_copy: bool,
    /// Keeps every checkpoint in the store, as NAME/epoch/NUMBER.
    #[arg(long, value_name = "NAME", requires = "store")]
    keep: Option<Name>,
    /// The store: a folder, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "FOLDER|URL", requires = "keep")]
    store: Option<String>,
    /// Where its names are, if not in that folder: a folder, or etcd://HOST:PORT/PREFIX.
    #[arg(long, value_name = "FOLDER|URL", requires = "store")]
    names: Option<String>,
    /// Pairs again after a failover, as the primary of a fresh secondary that listens there.
    #[arg(long, value_name = "unix:PATH|tcp:HOST:PORT|tls:HOST:PORT")]
    then: Option<Target>,
    #[command(flatten)]
    pair: PairArgs,
}

pub fn run(command: &CheckpointCommand) -> anyhow::Result<()> {
    match command {
        CheckpointCommand::Primary(args) => primary(args),
        CheckpointCommand::Secondary(args) => secondary(args),
    }
}

/// How a connection of the pair is made.
fn terms(target: &Target, pair: &PairArgs) -> Result<Terms, Usage> {
    let patience = Duration::from_millis(pair.patience);
    pair.tls.terms(target, patience, pair.insecure)
}

fn nowhere(target: &Target) -> Usage {
    Usage(format!(
        "expected unix:PATH, tcp:HOST:PORT or tls:HOST:PORT, got {target:?}"
    ))
}

fn primary(args: &PrimaryArgs) -> anyhow::Result<()> {
    let pair = &args.pair;
    let blocks = blocks_of(&pair.disk)?;
    for disk in &pair.disk {
        if !args.overwrite && !evidence::is_ours(disk)? {
            return Err(Usage(format!(
                "the disk {} holds something; pass --overwrite to lose it",
                disk.display()
            ))
            .into());
        }
    }
    let devices = u16::try_from(pair.disk.len());
    let shape = Shape {
        memory: args.memory,
        devices: devices.map_err(|_| Usage("--disk: too many of them".to_owned()))?,
        queues: 2,
        queue_size: 256,
        // What a CPU with more than one request in flight does next depends on which is done first,
        // and the two sides would differ without a fault.
        depth: if pair.compare.is_some() { 1 } else { 32 },
        blocks,
        pattern: Pattern::Random,
        writes_percent: 30,
        seed: args.seed,
        marking: MarkingMode::Bits,
        means: Means::default(),
        reset_every: 0,
        packed: false,
    };
    vm::guest::Layout::new(&shape)?;
    format(&pair.disk, blocks)?;
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let mut crew = Crew::prepare(&args.agents, pair.disk.len(), Ok(()), folder.path())?;
    let mut guest = EmulatedGuest::boot(&shape, &hosting(pair, "primary"))?;
    if let Some(crew) = &mut crew {
        guest.seat(&crew.seats);
        guest.conduct(crew.conduct(&args.agents, false, false, Mode::Bitmap)?);
    }
    let pairing = protect(&mut guest, &args.to, pair.compare.as_ref(), pair)?;
    finish(&mut guest, pair, "primary", &pairing)
}

/// What became of a pair, as its primary saw it.
struct Pairing {
    epochs: Vec<EpochReport>,
    comparison: Option<Arc<Comparison>>,
}

fn connect(to: &Target, pair: &PairArgs) -> anyhow::Result<Connection> {
    let address = to.address().ok_or_else(|| nowhere(to))?;
    let made = transport::connect(&address, &terms(to, pair)?);
    let mut made = made.map_err(|error| Unreachable(error.to_string()))?;
    made.pop().context("no connection was made")
}

/// Holds what the guest puts out against what the secondary tells on another connection.
fn compare(
    guest: &mut EmulatedGuest,
    to: &Target,
    pair: &PairArgs,
    switch: &Switch,
) -> anyhow::Result<Arc<Comparison>> {
    let stream = connect(to, pair)?;
    // A guest that puts nothing out is none that is lost.
    stream.set_timeout(None).context("setting no time limit")?;
    let comparison = Comparison::new(switch.clone());
    let hearing = Arc::clone(&comparison);
    let thread = std::thread::Builder::new().name("comparison".to_owned());
    let spawned = thread.spawn(move || {
        let why = match hearing.hear(stream) {
            Ok(()) => "the secondary tells nothing any more".to_owned(),
            Err(error) => error.to_string(),
        };
        eprintln!("outputs are not compared any more: {why}");
    });
    spawned.map(drop).context("starting a thread")?;
    guest.tell(Some(Arc::clone(&comparison) as Arc<dyn Witness>));
    Ok(comparison)
}

/// Makes checkpoints of the guest until that ends and the guest is alone.
fn protect(
    guest: &mut EmulatedGuest,
    to: &Target,
    compared: Option<&Target>,
    pair: &PairArgs,
) -> anyhow::Result<Pairing> {
    let (line, switch) = Line::new(connect(to, pair)?);
    let comparison = compared.map(|to| compare(guest, to, pair, &switch));
    let comparison = comparison.transpose()?;
    let period = pair.period.unwrap_or(if comparison.is_some() {
        COMPARED
    } else {
        PERIODIC
    });
    guest.ask_for_checkpoints(&switch);
    let patience = Duration::from_millis(pair.patience);
    let paired = Primary::pair(guest, line, switch.clone(), patience);
    let (mut primary, first) = match paired {
        Ok(paired) => paired,
        Err((error, alone)) => {
            let ended = guest.end_conduct(End::Stays);
            tracing::debug!(?ended, "agents");
            end(guest, pair)?;
            return Err(Failed(format!(
                "no pair: {error}; the guest was never protected; it completed {} requests alone \
                 and was stopped {:?}",
                guest.progress().completed,
                alone.aftermath
            ))
            .into());
        }
    };
    listen_to_input(&switch)?;
    let kind = match &comparison {
        None => "periodic checkpoints every",
        Some(_) => "checkpoints when outputs differ, and at the latest after",
    };
    eprintln!("paired: {} pages; {kind} {period} ms", first.pages);
    let mut epochs = vec![first];
    let ended = primary.run(Duration::from_millis(period), |epoch| {
        tracing::info!(?epoch);
        epochs.push(*epoch);
        if pair.count.is_some_and(|count| epoch.number >= count) {
            // Asked for by somebody else as well, which serves.
            let asked = switch.fail_over();
            tracing::debug!(?asked, "the last checkpoint");
        }
    });
    eprintln!("checkpoints ended: {ended}");
    decide(&switch, pair.on_loss);
    let mut survived = primary.survive().context("going on alone")?;
    survived
        .aftermath
        .extend(guest.end_conduct(End::Stays).err());
    for trouble in &survived.aftermath {
        eprintln!("tidemark: {trouble}");
    }
    if !survived.aftermath.is_empty() {
        return Err(Failed("the guest did not go on whole".to_owned()).into());
    }
    Ok(Pairing { epochs, comparison })
}

fn listen(at: &Target, pair: &PairArgs) -> Result<Listener, Usage> {
    let address = at.address().ok_or_else(|| nowhere(at))?;
    Listener::bind(&address, &terms(at, pair)?).map_err(|error| Usage(error.to_string()))
}

fn accept(listener: Listener, at: &Target, pair: &PairArgs) -> anyhow::Result<Connection> {
    let mut taken = listener.accept(&terms(at, pair)?)?;
    taken.pop().context("no primary came")
}

/// Tells the primary on this connection what the guest's copy puts out.
fn report(stream: Connection) -> anyhow::Result<Arc<Reporter>> {
    let reporter = Reporter::new();
    let telling = Arc::clone(&reporter);
    let thread = std::thread::Builder::new().name("outputs".to_owned());
    let spawned = thread.spawn(move || {
        if let Err(error) = telling.run(stream) {
            tracing::info!(%error, "outputs are not told any more");
        }
    });
    spawned.map(drop).context("starting a thread")?;
    Ok(reporter)
}

fn secondary(args: &SecondaryArgs) -> anyhow::Result<()> {
    let pair = &args.pair;
    let blocks = blocks_of(&pair.disk)?;
    if args.format {
        format(&pair.disk, blocks)?;
    }
    let seats = match &args.control {
        Some(folder) => ensemble::seats(folder, pair.disk.len())?,
        None => Vec::new(),
    };
    let listener = listen(&args.listen, pair)?;
    let comparing = match &pair.compare {
        Some(target) => Some((listen(target, pair)?, target)),
        None => None,
    };
    let mut out = std::io::stdout();
    writeln!(out, "{LISTENING}{}", listener.address())?;
    out.flush()?;
    let (line, switch) = Line::new(accept(listener, &args.listen, pair)?);
    let runs = args.run_copy || comparing.is_some();
    let mut backup = Backup::new(hosting(pair, "secondary"), args.memory_max, runs).seated(seats);
    let mut reporter = None;
    if let Some((listener, target)) = comparing {
        let telling = report(accept(listener, target, pair)?)?;
        backup = backup.telling(Arc::clone(&telling) as Arc<dyn Witness>);
        reporter = Some(telling);
    }
    let patience = Duration::from_millis(pair.patience);
    let paired = Secondary::pair(&mut backup, line, switch.clone(), patience);
    let mut secondary = paired.map_err(|error| Failed(format!("no pair: {error}")))?;
    listen_to_input(&switch)?;
    let mut keeper = match (&args.keep, &args.store) {
        (Some(directory), Some(store)) => {
            let places = Places {
                store: store.clone(),
                names: args.names.clone(),
            };
            Some(Keeper::open(&places, directory)?)
        }
        _ => None,
    };
    if let Some(keeper) = &mut keeper {
        keeper.keep(0, &secondary.kept());
    }
    let ended = loop {
        match secondary.checkpoint() {
            Ok(number) => {
                tracing::info!(number, "checkpoint");
                if let Some(keeper) = &mut keeper {
                    keeper.keep(number, &secondary.kept());
                }
            }
            Err(ended) => break ended,
        }
    };
    let unkept = keeper.map_or(0, |keeper| keeper.failed());
    eprintln!("checkpoints ended: {ended}");
    decide(&switch, pair.on_loss);
    if let Some(reporter) = reporter {
        reporter.close();
    }
    let begin = Instant::now();
    let epochs = secondary.take_over().context("taking over")?;
    eprintln!(
        "the guest goes on from checkpoint {epochs}, {:.1} ms after the decision",
        begin.elapsed().as_secs_f64() * 1e3
    );
    let mut guest = backup.into_guest().context("no guest came")?;
    if let Some(target) = &args.then {
        let pairing = protect(&mut guest, target, None, pair)?;
        return finish(&mut guest, pair, "secondary, then primary", &pairing);
    }
    end(&mut guest, pair)?;
    if unkept > 0 {
        let why =
            format!("{unkept} checkpoints could not be stored; the guest went on all the same");
        return Err(Failed(why).into());
    }
    if pair.json {
        let object = json!({
            "side": "secondary", "checkpoints": epochs,
            "requests": guest.progress().completed, "drained": true,
        });
        println!("{object}");
    } else {
        println!(
            "the guest completed {} requests alone and was stopped",
            guest.progress().completed
        );
    }
    Ok(())
}

/// Blocks of each disk: as many as the smallest has.
fn blocks_of(disks: &[PathBuf]) -> Result<u64, Usage> {
    let mut blocks = u64::MAX;
    for disk in disks {
        let known = std::fs::metadata(disk)
            .map_err(|error| Usage(format!("cannot open the disk {}: {error}", disk.display())))?;
        if !known.is_file() {
            return Err(Usage(format!("the disk {} is not a file", disk.display())));
        }
        blocks = blocks.min(known.len() / BLOCK);
    }
    Ok(blocks)
}

fn format(disks: &[PathBuf], blocks: u64) -> anyhow::Result<()> {
    for (number, disk) in (0..).zip(disks) {
        evidence::format_disk(disk, number, blocks)?;
    }
    Ok(())
}

fn hosting(pair: &PairArgs, side: &str) -> Hosting {
    Hosting {
        disks: pair.disk.clone(),
        evidence: pair.evidence.clone(),
        side: side.to_owned(),
        limits: Limits::default(),
        hold: Some(pair.hold),
        disk_fault: pair.disk_fault,
    }
}

/// Lets the guest go on alone, and stops it.
fn end(guest: &mut EmulatedGuest, pair: &PairArgs) -> anyhow::Result<()> {
    let went_on = guest.run_for(pair.requests, Duration::from_secs(30))?;
    guest.drain()?;
    if went_on {
        return Ok(());
    }
    Err(Failed("the guest stands still".to_owned()).into())
}

fn finish(
    guest: &mut EmulatedGuest,
    pair: &PairArgs,
    side: &str,
    pairing: &Pairing,
) -> anyhow::Result<()> {
    end(guest, pair)?;
    let epochs = &pairing.epochs;
    let compared = pairing.comparison.as_ref().map(|c| c.figures());
    let mut pauses: Vec<u64> = epochs.iter().skip(1).map(|epoch| epoch.pause_ns).collect();
    pauses.sort_unstable();
    let at = |percent: usize| {
        pauses
            .get(pauses.len().saturating_sub(1) * percent / 100)
            .copied()
    };
    let (p50, p99) = (at(50).unwrap_or(0), at(99).unwrap_or(0));
    let requests = guest.progress().completed;
    let conducted = guest.ensemble().map(Figures::of);
    if pair.json {
        let object = json!({
            "agents": conducted.as_ref().map(Figures::object),
            "side": side, "checkpoints": pauses.len(), "pause_p50_ns": p50, "pause_p99_ns": p99,
            "requests": requests, "drained": true, "epochs": epochs, "compared": compared,
        });
        println!("{object}");
    } else {
        if let Some(conducted) = conducted {
            print!("{conducted}");
        }
        println!(
            "{} checkpoints; the guest paused {} µs (median), {} µs (99 %); it completed {requests} \
             requests here and was stopped",
            pauses.len(),
            p50 / 1000,
            p99 / 1000
        );
        if let Some(compared) = compared {
            println!(
                "{} outputs of both sides were alike; they differed {} times, and one side was too far \
                 ahead {} times",
                compared.alike, compared.diverged, compared.ahead
            );
        }
    }
    Ok(())
}

/// Takes the loss of the connection for the loss of the other side, if that is so.
fn decide(switch: &Switch, on_loss: OnLoss) {
    if on_loss == OnLoss::Wait {
        eprintln!("waiting for 'failover' on the input");
        return;
    }
    match switch.fail_over() {
        Ok(_) | Err(FailoverError::AlreadyActivated(_)) => {}
        Err(error) => eprintln!("tidemark: {error}"),
    }
}

/// Takes orders, line by line, for as long as the program runs.
fn listen_to_input(switch: &Switch) -> anyhow::Result<()> {
    let switch = switch.clone();
    let thread = std::thread::Builder::new().name("orders".to_owned());
    let spawned = thread.spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match line.trim() {
                "checkpoint" => switch.ask(),
                "failover" => match switch.fail_over() {
                    Ok(begun) => eprintln!("failover: {begun:?}"),
                    Err(error) => eprintln!("tidemark: {error}"),
                },
                "status" => eprintln!("failover: {}", switch.state()),
                "" => {}
                other => {
                    eprintln!("tidemark: expected checkpoint, failover or status, got '{other}'")
                }
            }
        }
    });
    spawned.map(drop).context("starting a thread")
}
