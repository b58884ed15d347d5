//! `tidemark device`: an emulated device in a process of its own.

use ::device::blk::{BlkDevice, BlkError, BlkOptions, QUEUES_MAX};
use ::device::function::{FunctionConfig, PciFunction};
use ::device::serve::vfio_user::{ServeError, VfioUserServer};
use ::device::tracker::Marking;
use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use signal_hook::consts::signal::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

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
    /// A virtio block device for QEMU's vfio-user-pci, for one client.
    ///
    /// Says `listening on PATH` on stderr when a client may connect. Ends when the client
    /// disconnects or on SIGTERM or SIGINT, and then prints one JSON object with what it did.
    VfioUser(VfioUserArgs),
}

/// What `tidemark device vfio-user` takes.
#[derive(Args, Debug)]
pub struct VfioUserArgs {
    /// The socket to make and to listen on
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,
    /// The file or block device that the guest sees as its disk
    #[arg(long, value_name = "FILE")]
    disk: PathBuf,
    /// Offer the disk for reading only
    #[arg(long)]
    read_only: bool,
    /// Request queues
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = queues())]
    queues: u16,
    /// Entries of each queue, a power of two up to 32768
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = queue_size)]
    queue_size: u16,
    /// How the tracker marks a page that the device wrote
    #[arg(long, value_enum, default_value_t = MarkingArg::Bit)]
    marking: MarkingArg,
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
    /// 3: there can be no socket.
    Unreachable(ServeError),
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
        Err(Failure::Unreachable(error)) => (error.into(), 3),
    };
    eprintln!("tidemark: {error:#}");
    ExitCode::from(code)
}

/// What ends the serving.
enum End {
    Client(Result<(), ServeError>),
    Signal,
}

fn vfio_user(args: &VfioUserArgs) -> Result<(), Failure> {
    let (disk, device) = open(args)?;
    let config = FunctionConfig {
        marking: match args.marking {
            MarkingArg::Bit => Marking::Bit,
            MarkingArg::Byte => Marking::Byte,
            MarkingArg::Off => Marking::Off,
        },
        ..FunctionConfig::default()
    };
    let function = PciFunction::new(config, Arc::clone(&device) as _);

    let (ends, ended) = mpsc::channel();
    // Before anyone can know that there is a process to be signalled.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot handle signals")?;
    let send = ends.clone();
    thread::spawn(move || {
        for _ in signals.forever() {
            let _ = send.send(End::Signal);
        }
    });
    let server = VfioUserServer::bind(&args.socket_path, Arc::clone(&function))
        .map_err(Failure::Unreachable)?;
    let server = Arc::new(server);
    eprintln!("tidemark: listening on {}", args.socket_path.display());
    let serving = Arc::clone(&server);
    thread::spawn(move || {
        let _ = ends.send(End::Client(serving.run()));
    });

    let end = ended.recv().context("neither a client nor a signal")?;
    // On a signal the thread that serves still waits for its client, and holds the server.
    server.remove_socket();
    let settled = function.reset_and_wait(END_WAIT);
    if !args.read_only {
        disk.sync_all()
            .with_context(|| format!("cannot flush the disk {}", args.disk.display()))?;
    }
    report(&function, &device);
    if !settled {
        let error = anyhow!(
            "the disk {} did not finish its requests within {END_WAIT:?}",
            args.disk.display()
        );
        return Err(error.into());
    }
    match end {
        End::Client(Err(error)) => Err(anyhow::Error::from(error).into()),
        End::Client(Ok(())) | End::Signal => Ok(()),
    }
}

/// The disk, to be flushed at the end, and the device on it.
fn open(args: &VfioUserArgs) -> Result<(File, Arc<BlkDevice>)> {
    let file = OpenOptions::new()
        .read(true)
        .write(!args.read_only)
        .open(&args.disk)
        .map_err(|error| BlkError::Open {
            path: args.disk.clone(),
            error,
        })
        .context("a file or block device that exists was expected for --disk")?;
    let disk = file.try_clone().context("cannot keep the disk open")?;
    let options = BlkOptions {
        queues: args.queues,
        queue_size: args.queue_size,
        read_only: args.read_only,
        ..BlkOptions::default()
    };
    let device = BlkDevice::open(file, options).with_context(|| args.disk.display().to_string())?;
    Ok((disk, device))
}

fn report(function: &PciFunction, device: &BlkDevice) {
    let blk = device.stats();
    let stats = function.stats();
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
            "interrupts": stats.interrupts,
            "notifications": stats.notifications,
            "resets": stats.resets,
            "device_errors": stats.errors,
            "ignored_writes": stats.ignored,
        })
    );
}
