//! `tidemark-vhost-user-blk`: a disk for QEMU's `vhost-user-blk-pci`, by the conventions that QEMU
//! has for backend programs.

#![forbid(unsafe_code)]

mod disk;
mod generate;
mod sandboxed;

use anyhow::{Context, Result};
use clap::{ArgGroup, CommandFactory, Parser, ValueEnum};
use device::blk::{BlkDevice, BlkError, BlkOptions, QUEUES_MAX};
use device::serve::socket::{Inherited, inherited};
use device::serve::vhost_user::{ServeError, VhostUserListener, VhostUserServer};
use device::tracker::Marking;
use observe::metrics::{MetricsError, MetricsSocket, VhostUserSource};
use sandbox::{Grant, Kind, Sandbox, descriptors};
use sandboxed::SandboxArg;
use signal_hook::consts::signal::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use tracing_subscriber::EnvFilter;

/// Serves a file or block device as a disk over vhost-user.
///
/// Serves one frontend after the other, until SIGTERM or SIGINT; then finishes what is in flight
/// and prints one JSON object with what it did. SIGUSR1 prints the same at any time.
#[derive(Debug, Parser)]
#[command(name = "tidemark-vhost-user-blk", version)]
#[command(group = ArgGroup::new("socket").args(["socket_path", "fd", "print_capabilities", "generate"]).required(true))]
struct Args {
    /// The socket to make and to listen on
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,
    /// A Unix socket that this process inherited, by number: connected to its one frontend, or
    /// listening
    #[arg(long, value_name = "N")]
    fd: Option<RawFd>,
    /// Print what this program can do, as JSON, and end
    #[arg(long)]
    print_capabilities: bool,
    /// The file or block device that the guest sees as its disk
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present_any = ["print_capabilities", "generate"]
    )]
    blk_file: Option<PathBuf>,
    /// Answer Prometheus on this Unix socket: GET /metrics
    #[arg(long, value_name = "PATH")]
    metrics_socket: Option<PathBuf>,
    /// Offer the disk for reading only
    #[arg(long)]
    read_only: bool,
    /// The rings that are offered. With packed ones a frontend gets no in-flight table, so what is
    /// in flight when this process is killed is not done again
    #[arg(long, value_enum, default_value_t = RingArg::Split)]
    ring: RingArg,
    /// How the disk's file is cached
    #[arg(long, value_enum, default_value_t = CacheArg::Writeback)]
    cache: CacheArg,
    /// Request queues
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(QUEUES_MAX)))]
    num_queues: u16,
    /// Most entries of a queue, a power of two up to 32768; QEMU's own default is 128
    #[arg(long, value_name = "N", default_value_t = 128)]
    queue_size: u16,
    /// End after the first frontend
    #[arg(long)]
    once: bool,
    /// Whether pages that the device writes are marked in the migration's log
    #[arg(long, value_enum, default_value_t = MarkingArg::Bit)]
    marking: MarkingArg,
    /// Make every access to the disk take this many milliseconds longer: for tests that want
    /// requests in flight
    #[arg(long, value_name = "MS", default_value_t = 0, hide = true)]
    slow_disk: u64,
    /// Write the man page, completions and the book's reference into a folder, and end
    #[arg(long, value_name = "DIR", hide = true)]
    generate: Option<PathBuf>,
    /// What the process gives up once it has begun: system calls, files and descriptors that it does
    /// not need
    #[arg(long, value_enum, value_name = "MODE", default_value_t = SandboxArg::Strict)]
    sandbox: SandboxArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RingArg {
    /// Split ones only
    Split,
    /// Packed ones too: the driver chooses, with QEMU if `packed=on`
    Packed,
}

/// As QEMU's `cache=` has it; durability is the guest's FLUSH in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CacheArg {
    /// In the host's page cache
    Writeback,
    /// Past the page cache (O_DIRECT)
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MarkingArg {
    /// Their bit
    Bit,
    /// Not at all: for tests that must fail then
    Off,
}

/// Where frontends come from.
enum Source {
    Path(VhostUserListener),
    Listening(UnixListener),
    Connected(UnixStream),
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .init();
    if args.print_capabilities {
        let features = ["read-only", "blk-file"];
        println!(
            "{}",
            serde_json::json!({ "type": "block", "features": features })
        );
        return ExitCode::SUCCESS;
    }
    let done = match &args.generate {
        Some(dir) => generate::generate(Args::command(), dir).context("cannot write all of it"),
        None => run(&args),
    };
    let Err(error) = done else {
        return ExitCode::SUCCESS;
    };
    eprintln!("tidemark-vhost-user-blk: {error:#}");
    let no_socket = matches!(error.downcast_ref(), Some(ServeError::Socket(_)))
        || matches!(error.downcast_ref(), Some(MetricsError::Socket(_)));
    let wrong_usage = matches!(error.downcast_ref(), Some(BlkError::Queues { .. }));
    ExitCode::from(match (no_socket, wrong_usage) {
        (true, _) => 3,
        (_, true) => 2,
        _ => 1,
    })
}

fn run(args: &Args) -> Result<()> {
    // Before anyone can know that there is a process to be signalled.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1]).context("cannot handle signals")?;
    let (disk, device) = open(args)?;
    let marking = match args.marking {
        MarkingArg::Bit => Marking::Bit,
        MarkingArg::Off => Marking::Off,
    };
    let server = VhostUserServer::new(Arc::clone(&device) as _, marking)?;
    let server = Arc::new(server.offering_packed(args.ring == RingArg::Packed));
    let source = source(args)?;
    let metrics = args.metrics_socket.as_deref();
    let metrics = metrics.map(MetricsSocket::bind).transpose()?;
    device.open_rings();
    give_up(args)?;
    if let Source::Path(listener) = &source {
        let shown = listener.path().display();
        eprintln!("tidemark-vhost-user-blk: listening on {shown}");
    }
    // On a thread that has given up what the others have.
    let _metrics = metrics
        .map(|socket| {
            let source = VhostUserSource::new(Arc::clone(&server), Arc::clone(&device));
            socket.serve(vec![Box::new(source)])
        })
        .transpose()?;
    let (signalled, reported) = (Arc::clone(&server), Arc::clone(&device));
    thread::spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGUSR1 => report(&signalled, &reported),
                _ => signalled.stop(),
            }
        }
    });
    let ended = match &source {
        Source::Connected(stream) => {
            server.serve(stream.try_clone().context("no descriptor left")?)
        }
        Source::Path(listener) => serve(args, &server, listener.listener()),
        Source::Listening(listener) => serve(args, &server, listener),
    };
    let flushed = disk.map_or(Ok(()), |disk| disk.sync_all());
    report(&server, &device);
    ended?;
    flushed.context("the disk cannot be flushed")
}

fn serve(args: &Args, server: &VhostUserServer, listener: &UnixListener) -> Result<(), ServeError> {
    if args.once {
        server.run_once(listener)
    } else {
        server.run(listener)
    }
}

fn source(args: &Args) -> Result<Source, ServeError> {
    if let Some(fd) = args.fd {
        return Ok(match inherited(fd)? {
            Inherited::Listening(listener) => Source::Listening(listener),
            Inherited::Connected(stream) => Source::Connected(stream),
        });
    }
    let path = args.socket_path.as_deref().unwrap_or("".as_ref());
    Ok(Source::Path(VhostUserListener::bind(path)?))
}

/// Gives up what the process does not need any more, while this is its only thread.
fn give_up(args: &Args) -> Result<()> {
    let sockets = args.socket_path.iter().chain(&args.metrics_socket);
    let grants: Vec<_> = sockets.cloned().map(Grant::Socket).collect();
    Sandbox::confine(args.sandbox.mode(), Kind::VhostUserBlk, &grants)
        .and_then(|sandbox| sandbox.seal(descriptors(1)))
        .context("cannot give up what the process does not need")
}

/// The disk, to be flushed at the end if it is written, and the device on it.
fn open(args: &Args) -> Result<(Option<File>, Arc<BlkDevice>)> {
    let path = args.blk_file.as_deref().unwrap_or("".as_ref());
    let options = BlkOptions {
        queues: args.num_queues,
        queue_size: args.queue_size,
        read_only: args.read_only,
        direct: args.cache == CacheArg::None,
        ..BlkOptions::default()
    };
    disk::open(path, options, args.slow_disk)
}

fn report(server: &VhostUserServer, device: &BlkDevice) {
    let (blk, served) = (device.stats(), server.stats());
    println!(
        "{}",
        serde_json::json!({
            "requests": blk.reads + blk.writes + blk.flushes + blk.errors,
            "reads": blk.reads,
            "writes": blk.writes,
            "flushes": blk.flushes,
            "errors": blk.errors,
            "bytes_read": blk.bytes_read,
            "bytes_written": blk.bytes_written,
            "connections": served.connections,
            "ring_starts": served.ring_starts,
            "rings_broken": served.rings_broken,
            "resubmitted": served.resubmitted,
            "memory_changes": served.memory_changes,
            "logs": served.logs,
            "log_starts": served.log_starts,
            "pages_logged": served.pages_logged,
            "beyond_log": served.beyond_log,
        })
    );
}
