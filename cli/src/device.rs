//! `tidemark device`: an emulated device in a process of its own.

use crate::args::RingArg;
use crate::disk;
use crate::sandboxed::SandboxArg;
use ::device::blk::{BlkDevice, BlkOptions, QUEUES_MAX};
use ::device::function::{AdminConfig, FunctionConfig, Pasid, PciFunction};
use ::device::queue::{InflightShape, InflightTable};
use ::device::serve::socket::{Inherited, inherited};
use ::device::serve::vfio_user::{DmaLog, Ended, ServeError, ServedFunction, VfioUserServer};
use ::device::tracker::Marking;
use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use observe::metrics::{FunctionSource, MetricsError, MetricsSocket, Source};
use sandbox::{Grant, Kind, Sandbox, descriptors};
use signal_hook::consts::signal::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use spec::admin::{opcode, qualifier, status};
use spec::features::Features;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A device that still has requests in flight this long after the end was asked for is given up.
const END_WAIT: Duration = Duration::from_secs(10);

/// Serve an emulated device to a VMM.
#[derive(Args, Debug)]
pub struct DeviceArgs {
    #[command(subcommand)]
    front: Front,
}

#[derive(Debug, Subcommand)]
enum Front {
    /// Virtio block devices for QEMU's vfio-user-pci, each behind a socket of its own.
    ///
    /// Says `listening on PATH` (or `on descriptor N`, or `connected by descriptor N`) on stderr for
    /// each socket, when a client may connect. A device ends when its client disconnects, unless with
    /// --keep, and all end on SIGTERM or SIGINT. Each then prints one JSON object with what it did, on
    /// a line of its own.
    ///
    /// Several devices: give --socket-path (or --fd) and --disk several times; the first socket
    /// belongs to the first disk, and so on. The other options are for all of them.
    VfioUser(VfioUserArgs),
}

/// What `tidemark device vfio-user` takes.
#[derive(Args, Debug)]
pub struct VfioUserArgs {
    /// The socket to make and to listen on; one for each device
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "fd",
        conflicts_with = "fd"
    )]
    socket_path: Vec<PathBuf>,
    /// A Unix stream socket that this process inherited, by number; one for each device. It listens,
    /// or it is connected to the one client there will be
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..))]
    fd: Vec<RawFd>,
    /// The file or block device that the guest sees as its disk; one for each device
    #[arg(long, value_name = "FILE", required = true)]
    disk: Vec<PathBuf>,
    /// Go on when a client has disconnected, and serve the next one
    #[arg(long)]
    keep: bool,
    /// Note in FILE which requests are in flight, for `tidemark mediate move` after this process was
    /// killed; one for each device. A table that is there already is kept: start the server that
    /// takes over with the killed one's FILE, --queues and --queue-size
    #[arg(long, value_name = "FILE")]
    inflight: Vec<PathBuf>,
    /// Write every DMA map and unmap to FILE as a JSON line; one for each device
    #[arg(long, value_name = "FILE")]
    dma_log: Vec<PathBuf>,
    /// Answer Prometheus on this Unix socket: GET /metrics, for all devices together
    #[arg(long, value_name = "PATH")]
    metrics_socket: Option<PathBuf>,
    /// Offer the disk for reading only
    #[arg(long)]
    read_only: bool,
    /// The format of queues that is offered; a driver need not take packed ones
    #[arg(long, value_enum, default_value = "split")]
    ring: RingArg,
    /// Request queues
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = queues())]
    queues: u16,
    /// Entries of each queue, a power of two up to 32768
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = queue_size)]
    queue_size: u16,
    /// Administration queues, up to 8; RUST_LOG=device=debug shows their commands
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=8))]
    admin_queues: u16,
    /// Announce the PASID extended capability of PCI Express
    #[arg(long)]
    pasid: bool,
    /// How the tracker marks a page that the device wrote
    #[arg(long, value_enum, default_value_t = MarkingArg::Bit)]
    marking: MarkingArg,
    /// Let every read and write of the disk take at least so many milliseconds: for tests
    #[arg(long, value_name = "MS", default_value_t = 0, hide = true)]
    slow_disk: u64,
    /// What the process gives up once it has begun: system calls, files and descriptors that it does
    /// not need
    #[arg(long, value_enum, value_name = "MODE", default_value_t = SandboxArg::Strict)]
    sandbox: SandboxArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MarkingArg {
    /// Its bit
    Bit,
    /// The whole byte that holds its bit
    Byte,
    /// Not at all: for tests that must fail then
    Off,
}

fn queues() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=i64::from(QUEUES_MAX))
}

fn queue_size(text: &str) -> Result<u16, String> {
    let size = text.parse::<u16>().ok();
    let size = size.filter(|size| size.is_power_of_two() && *size <= 1 << 15);
    size.ok_or_else(|| "a power of two from 1 to 32768 is expected".to_owned())
}

/// What went wrong, as the exit code tells it.
enum Failure {
    /// 1: what was asked for could not be done.
    Failed(anyhow::Error),
    /// 2: the arguments do not fit together.
    Usage(String),
    /// 3: there can be no socket.
    Unreachable(anyhow::Error),
}

impl From<MetricsError> for Failure {
    fn from(error: MetricsError) -> Self {
        match error {
            MetricsError::Socket(_) => Self::Unreachable(error.into()),
            MetricsError::System(_) => Self::Failed(error.into()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Runs `tidemark device`.
pub fn run(args: DeviceArgs) -> ExitCode {
    let Front::VfioUser(args) = args.front;
    let (error, code) = match vfio_user(&args) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => (error, 1),
        Err(Failure::Usage(text)) => (anyhow!(text), 2),
        Err(Failure::Unreachable(error)) => (error, 3),
    };
    eprintln!("tidemark: {error:#}");
    ExitCode::from(code)
}

/// Where a device is to listen.
#[derive(Clone, Copy)]
enum Socket<'a> {
    Path(&'a Path),
    Fd(RawFd),
}

/// What ends the serving.
enum End {
    /// The client of the device with this number is gone, and it takes no other.
    Client(usize, Result<Ended, ServeError>),
    Signal,
}

fn vfio_user(args: &VfioUserArgs) -> Result<(), Failure> {
    let queues = args.queues + args.admin_queues;
    if queues > QUEUES_MAX {
        return Err(Failure::Usage(format!(
            "--queues and --admin-queues make {queues}: at most {QUEUES_MAX} together expected"
        )));
    }
    if args.ring == RingArg::Packed && !args.inflight.is_empty() {
        return Err(Failure::Usage(
            "--inflight with --ring packed: the table is for split queues".to_owned(),
        ));
    }
    let sockets: Vec<_> = args
        .socket_path
        .iter()
        .map(|path| Socket::Path(path))
        .chain(args.fd.iter().copied().map(Socket::Fd))
        .collect();
    for (what, count, needed) in [
        ("--disk", args.disk.len(), true),
        ("--inflight", args.inflight.len(), false),
        ("--dma-log", args.dma_log.len(), false),
    ] {
        if count != sockets.len() && (needed || count != 0) {
            return Err(Failure::Usage(format!(
                "{} sockets and {count} times {what}: one for each device was expected",
                sockets.len()
            )));
        }
    }

    let (ends, ended) = mpsc::channel();
    // Before anyone can know that there is a process to be signalled.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot handle signals")?;
    let mut devices = Vec::new();
    for (index, (disk, socket)) in args.disk.iter().zip(sockets).enumerate() {
        devices.push(Some(Device::open(args, index, disk, socket)?));
    }
    let metrics = args.metrics_socket.as_deref();
    let metrics = metrics.map(MetricsSocket::bind).transpose()?;
    // Everything is open now.
    give_up(args)?;
    for device in devices.iter().flatten() {
        eprintln!("tidemark: {}", device.ready);
    }
    let send = ends.clone();
    thread::spawn(move || {
        for _ in signals.forever() {
            let _ = send.send(End::Signal);
        }
    });
    // On a thread that has given up what the others have.
    let _metrics = metrics
        .map(|socket| {
            let devices = devices.iter().flatten().enumerate();
            let source = |(index, device): (usize, &Device)| -> Box<dyn Source> {
                Box::new(device.source(index))
            };
            socket.serve(devices.map(source).collect())
        })
        .transpose()?;
    for (index, device) in devices.iter().flatten().enumerate() {
        device.serve(index, args.keep, ends.clone());
    }

    let mut result = Ok(());
    while devices.iter().any(Option::is_some) {
        let last = match ended.recv().context("neither a client nor a signal")? {
            End::Signal => break,
            End::Client(index, end) => {
                let device = devices.get_mut(index).and_then(Option::take);
                device.map_or(Ok(()), |device| {
                    device
                        .finish(Instant::now() + END_WAIT)
                        .and(Ok(end.map(drop)?))
                })
            }
        };
        result = result.and(last);
    }
    // After a signal all have the same time, not each its own.
    let until = Instant::now() + END_WAIT;
    for device in devices.iter().flatten() {
        device.stop();
    }
    for device in devices.into_iter().flatten() {
        result = result.and(device.finish(until));
    }
    Ok(result?)
}

/// Gives up what the process does not need any more, while this is its only thread.
fn give_up(args: &VfioUserArgs) -> Result<()> {
    let sockets = args.socket_path.iter().chain(&args.metrics_socket);
    let grants: Vec<_> = sockets.cloned().map(Grant::Socket).collect();
    Sandbox::confine(args.sandbox.mode(), Kind::VfioUser, &grants)
        .and_then(|sandbox| sandbox.seal(descriptors(args.disk.len())))
        .context("cannot give up what the process does not need")
}

/// A device with its disk and its socket.
struct Device {
    path: PathBuf,
    /// How it is reached.
    ready: String,
    /// To be flushed at the end; `None` if it is read only.
    disk: Option<File>,
    blk: Arc<BlkDevice>,
    served: Arc<ServedFunction>,
    server: Arc<VfioUserServer>,
    /// Clients that have gone.
    gone: Arc<AtomicU64>,
}

impl Device {
    fn open(
        args: &VfioUserArgs,
        index: usize,
        path: &Path,
        socket: Socket<'_>,
    ) -> Result<Self, Failure> {
        let options = BlkOptions {
            queues: args.queues,
            queue_size: args.queue_size,
            read_only: args.read_only,
            ..BlkOptions::default()
        };
        let (disk, blk) = disk::open(path, options, args.slow_disk)?;
        let config = FunctionConfig {
            // A VMM gives the device what the platform gives it, translated where there is a
            // vIOMMU; without one the addresses are the same, and so it is always offered.
            features: match args.ring {
                RingArg::Split => FunctionConfig::SUPPORTED.difference(Features::RING_PACKED),
                RingArg::Packed => FunctionConfig::SUPPORTED,
            },
            marking: match args.marking {
                MarkingArg::Bit => Marking::Bit,
                MarkingArg::Byte => Marking::Byte,
                MarkingArg::Off => Marking::Off,
            },
            admin: AdminConfig {
                queues: args.admin_queues,
                ..AdminConfig::default()
            },
            pasid: match args.pasid {
                true => Pasid::Disabled,
                false => Pasid::Absent,
            },
            ..FunctionConfig::default()
        };
        let shape = InflightShape {
            queues: args.queues,
            queue_size: args.queue_size,
        };
        let inflight = args.inflight.get(index);
        let inflight = inflight.map(|path| table(path, shape)).transpose()?;
        let function = PciFunction::with_inflight(config, Arc::clone(&blk) as _, inflight);
        let log = args
            .dma_log
            .get(index)
            .map(|path| {
                DmaLog::create(path).with_context(|| format!("cannot write {}", path.display()))
            })
            .transpose()?;
        let served = ServedFunction::with_log(function, log);
        let unreachable = |error: ServeError| Failure::Unreachable(error.into());
        let (server, ready) = match socket {
            Socket::Path(path) => (
                VfioUserServer::bind(path, Arc::clone(&served) as _).map_err(unreachable)?,
                format!("listening on {}", path.display()),
            ),
            Socket::Fd(fd) => {
                let socket = inherited(fd).map_err(|error| unreachable(error.into()))?;
                let how = match socket {
                    Inherited::Listening(_) => "listening on",
                    Inherited::Connected(_) => "connected by",
                };
                (
                    VfioUserServer::on(socket, Arc::clone(&served) as _).map_err(unreachable)?,
                    format!("{how} descriptor {fd}"),
                )
            }
        };
        blk.open_rings();
        Ok(Self {
            path: path.to_owned(),
            ready,
            disk,
            blk,
            served,
            gone: Arc::default(),
            server: Arc::new(server),
        })
    }

    /// What it counts.
    fn source(&self, index: usize) -> FunctionSource {
        let (served, blk) = (Arc::clone(&self.served), Arc::clone(&self.blk));
        FunctionSource::new(index, served, blk, Arc::clone(&self.gone))
    }

    /// Serves clients on a thread of its own.
    fn serve(&self, index: usize, keep: bool, ends: mpsc::Sender<End>) {
        let (server, gone) = (Arc::clone(&self.server), Arc::clone(&self.gone));
        thread::spawn(move || {
            let end = loop {
                let served = server.run();
                gone.fetch_add(1, Relaxed);
                match served {
                    Ok(Ended::Client) if keep => {}
                    Err(error @ ServeError::Protocol(_)) if keep => {
                        eprintln!("tidemark: {error}; waiting for the next client");
                    }
                    end => break end,
                }
            };
            let _ = ends.send(End::Client(index, end));
        });
    }

    /// Starts the end: nobody can connect any more, and what is in flight is the last.
    fn stop(&self) {
        // On a signal the thread that serves may hold the server for a moment yet.
        self.server.remove_socket();
        self.server.stop();
        self.served.function().reset();
    }

    /// Waits for what is in flight, makes it durable and says what was done.
    fn finish(self, until: Instant) -> Result<()> {
        self.stop();
        let left = until.saturating_duration_since(Instant::now());
        let settled = self.served.function().reset_and_wait(left);
        let shown = self.path.display();
        if let Some(disk) = &self.disk {
            disk.sync_all()
                .with_context(|| format!("cannot flush the disk {shown}"))?;
        }
        self.report().context("cannot write the report")?;
        if settled {
            return Ok(());
        }
        Err(anyhow!(
            "the disk {shown} did not finish its requests within {END_WAIT:?}"
        ))
    }

    fn report(&self) -> io::Result<()> {
        let blk = self.blk.stats();
        let stats = self.served.function().stats();
        let serve = self.served.stats();
        let report = serde_json::json!({
            "disk": self.path,
            "requests": blk.reads + blk.writes + blk.flushes + blk.errors,
            "reads": blk.reads,
            "writes": blk.writes,
            "flushes": blk.flushes,
            "errors": blk.errors,
            "bytes_read": blk.bytes_read,
            "bytes_written": blk.bytes_written,
            "interrupts": stats.interrupts,
            "notifications": stats.notifications,
            "resets": stats.resets,
            "suspends": stats.suspends,
            "device_errors": stats.errors,
            "ignored_writes": stats.ignored,
            "dma_maps": serve.dma_maps,
            "dma_unmaps": serve.dma_unmaps,
            "admin_commands": admin_commands(self.served.function()),
        });
        let mut out = io::stdout().lock();
        writeln!(out, "{report}")?;
        out.flush()
    }
}

/// What was answered to administration commands, and how often. A command that there is not has no
/// name.
fn admin_commands(function: &PciFunction) -> Vec<serde_json::Value> {
    let answers = function.admin_answers();
    let shown = answers.iter().map(|(answer, count)| {
        serde_json::json!({
            "command": answer.opcode.and_then(opcode::name),
            "status": status::name(answer.status),
            "qualifier": qualifier::name(answer.qualifier),
            "count": count,
        })
    });
    shown.collect()
}

/// The in-flight table in a file: the one that is there, or a new one.
fn table(path: &Path, shape: InflightShape) -> Result<Arc<InflightTable>> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot use the in-flight table {shown}"))?;
    let size = file.metadata().context("cannot tell its size")?.len();
    let table = match size {
        0 => InflightTable::create(&file, shape),
        _ if size == shape.bytes() => InflightTable::open(&file, 0, size, shape),
        _ => {
            let InflightShape { queues, queue_size } = shape;
            return Err(anyhow!(
                "the in-flight table {shown} is not one for {queues} queues of {queue_size} \
                 entries; give the --queues and --queue-size that it was made with, or another file"
            ));
        }
    };
    table.with_context(|| shown.to_string())
}
