//! The command line.

use crate::exit::Usage;
use crate::size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use migration::tls::Pinned;
use migration::transport::{Address, Terms};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use vm::MarkingMode;
use vm::guest::Pattern;

/// Moves, tracks and suspends virtio devices.
#[derive(Debug, Parser)]
#[command(name = "tidemark", version, after_help = crate::exit::CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answers for the devices of this host when managers lock and change them.
    Agent(crate::agent::AgentArgs),
    /// Changes devices of agents, all or none, and says who has their locks.
    #[command(subcommand)]
    Lock(crate::lock::LockCommand),
    /// Moves an emulated guest with its devices to another process and proves that nothing was
    /// lost.
    Migrate(MigrateArgs),
    /// Receives a guest from `tidemark migrate` and runs it on.
    Receive(ReceiveArgs),
    /// Protects an emulated guest by periodic checkpoints on another side, which runs it when this
    /// one is lost.
    #[command(subcommand)]
    Checkpoint(crate::checkpoint::CheckpointCommand),
    /// Keeps checkpoints under names.
    #[command(subcommand)]
    Store(crate::store::StoreCommand),
    /// Starts an emulated guest from a stored checkpoint.
    Restore(crate::restore::RestoreArgs),
    /// Looks into a saved guest, or any Xen migration stream of version 2.
    #[command(subcommand)]
    Stream(StreamCommand),
    /// Judges a device, clause by clause.
    Conform(crate::conform::ConformArgs),
    /// Judges the driver that connects, clause by clause.
    Judge(crate::judge::JudgeArgs),
    /// Serves an emulated device to a VMM.
    Device(crate::device::DeviceArgs),
    /// Says what a device is: its features, structures, queues and tracker.
    Probe(crate::exercise::TargetArgs),
    /// Reads a block device into pages of its own, and harvests what it marks meanwhile.
    ///
    /// By its own account: what memory says is for somebody outside to compare (--handshake).
    Track(crate::exercise::TrackArgs),
    /// Shows a block device at work, or a migration: where memory is dirty, round by round, queues
    /// and state. q ends it.
    Watch(crate::watch::WatchArgs),
    /// Suspends a block device whose queues are full, and lets it go on.
    Suspend(crate::exercise::SuspendArgs),
    /// Suspends a block device and shows the state of its queues.
    QueueState(crate::exercise::QueueStateArgs),
    /// Stands between a VMM and a device, and moves the device to another server under its guest.
    Mediate(crate::mediate::MediateArgs),
    /// Works on a disk, knows what every sector must hold, and reads all of it back.
    ///
    /// For a disk inside a guest, while the device behind it is moved, killed or replaced.
    Journal(crate::journal::JournalArgs),
    /// Prints what makes a shell complete this program's commands and options.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Writes man pages, completions and the book's reference into a folder.
    #[command(hide = true)]
    Generate {
        /// The folder.
        dir: PathBuf,
    },
    /// Moves, suspends, tracks, resets and unmaps emulated devices for a while, and watches itself.
    #[command(hide = true)]
    Soak(crate::soak::SoakArgs),
}

/// Where the other side is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// A file.
    File(PathBuf),
    /// TCP, HOST:PORT.
    Tcp(String),
    /// TLS over TCP, HOST:PORT.
    Tls(String),
    /// Standard input or output.
    Standard,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("tcp", address)) if address.contains(':') => Ok(Self::Tcp(address.to_owned())),
            Some(("tls", address)) if address.contains(':') => Ok(Self::Tls(address.to_owned())),
            None if text == "-" => Ok(Self::Standard),
            _ => Err(format!(
                "expected unix:PATH, tcp:HOST:PORT, tls:HOST:PORT, file:PATH or -, got '{text}'"
            )),
        }
    }
}

impl Target {
    /// Where it is, if it is somewhere to connect to.
    pub fn address(&self) -> Option<Address> {
        match self {
            Self::Unix(path) => Some(Address::Unix(path.clone())),
            Self::Tcp(name) => Some(Address::Tcp(name.clone())),
            Self::Tls(name) => Some(Address::Tls(name.clone())),
            Self::File(_) | Self::Standard => None,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum TrackerArg {
    /// The device sets one bit for each page.
    Bitmap,
    /// The device sets whole bytes of the bitmap.
    Bytes,
    /// The device records addresses, which the devices' owner reads by command.
    Records,
    /// The device marks nothing: the negative control, which must lose pages.
    Off,
    /// Records of a device that marks nothing: their negative control.
    RecordsOff,
}

impl TrackerArg {
    /// Whether pages are had as records.
    pub fn records(self) -> bool {
        matches!(self, Self::Records | Self::RecordsOff)
    }
}

impl From<TrackerArg> for MarkingMode {
    fn from(arg: TrackerArg) -> Self {
        match arg {
            TrackerArg::Bitmap | TrackerArg::Records => Self::Bits,
            TrackerArg::Bytes => Self::Bytes,
            TrackerArg::Off | TrackerArg::RecordsOff => Self::Off,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StateArg {
    /// Queue state through registers of the common configuration, after SUSPEND.
    Regs,
    /// Device parts and queue state by commands of the devices' owner, which stops them.
    Parts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RingArg {
    /// Three areas: descriptors, available ring, used ring.
    Split,
    /// One ring that both sides write.
    Packed,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WorkloadArg {
    /// Every page equally often.
    Random,
    /// A few pages most of the time.
    Zipf,
    /// One page after the other.
    Sequential,
}

impl From<WorkloadArg> for Pattern {
    fn from(arg: WorkloadArg) -> Self {
        match arg {
            WorkloadArg::Random => Self::Random,
            WorkloadArg::Zipf => Self::Zipf,
            WorkloadArg::Sequential => Self::Sequential,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyArg {
    /// At least three rounds after the first, at most --max-rounds, and a stop when 1/128 of the
    /// memory or less was dirty.
    Rounds,
    /// Xen's default: a stop below 50 dirty pages or after 5 rounds.
    Xen,
    /// A stop when the rest fits into --downtime-limit at the bandwidth that was measured.
    Downtime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnconvergedArg {
    /// It gets as many rounds again, and stays if that does not help.
    Extend,
    /// It is slowed down, by another step each round, and stays if that does not help.
    Throttle,
    /// It stays.
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressArg {
    /// Bars, if the standard error is a terminal.
    Bars,
    /// One JSON object a line on the standard output.
    Json,
    /// None.
    Off,
}

/// How connections are made; the same on both sides.
#[derive(Debug, Args)]
pub struct ConnectionArgs {
    /// Connections over which pages are sent; both sides must agree.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub connections: u8,
    /// Seconds that a connection may stand still before it counts as broken.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout: u32,
    /// Allows plain TCP to and from other machines, where anybody on the way sees the guest's
    /// memory.
    #[arg(long)]
    pub insecure: bool,
    #[command(flatten)]
    pub tls: TlsArgs,
}

impl ConnectionArgs {
    /// The same, as the library has it, for connections to or at `target`.
    pub fn terms(&self, target: &Target) -> Result<Terms, Usage> {
        let timeout = Duration::from_secs(self.timeout.into());
        let alone = self.tls.terms(target, timeout, self.insecure)?;
        Ok(Terms {
            connections: self.connections.into(),
            ..alone
        })
    }
}

/// What tls:HOST:PORT takes: each side has a certificate, and that of the other side beforehand.
#[derive(Debug, Args)]
pub struct TlsArgs {
    /// This side's certificate in PEM, for tls:HOST:PORT; one that it signed itself serves.
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "tls_peer")]
    pub tls_cert: Option<PathBuf>,
    /// Its key in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// The other side's certificate in PEM: nobody else is talked to. Of several each is good.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_peer: Option<PathBuf>,
}

impl TlsArgs {
    /// One connection to or at `target`.
    pub fn terms(
        &self,
        target: &Target,
        timeout: Duration,
        insecure: bool,
    ) -> Result<Terms, Usage> {
        let given = match (&self.tls_cert, &self.tls_key, &self.tls_peer) {
            (Some(certificate), Some(key), Some(peer)) => Some(Pinned {
                certificate: certificate.clone(),
                key: key.clone(),
                peer: peer.clone(),
            }),
            _ => None,
        };
        let tls = match (target, given) {
            (Target::Tls(_), Some(files)) => {
                Some(files.load().map_err(|error| Usage(error.to_string()))?)
            }
            (Target::Tls(_), None) => {
                return Err(Usage(
                    "tls:HOST:PORT: expected --tls-cert, --tls-key and --tls-peer as well"
                        .to_owned(),
                ));
            }
            (_, None) => None,
            (other, Some(_)) => {
                return Err(Usage(format!(
                    "--tls-cert: expected tls:HOST:PORT, got {other:?}, where there is no TLS"
                )));
            }
        };
        Ok(Terms {
            connections: 1,
            timeout,
            insecure,
            tls,
        })
    }
}

#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// How the device tracks the pages that it writes.
    #[arg(long, value_enum, default_value = "bitmap")]
    pub tracker: TrackerArg,
    /// Records that a device surely holds: with fewer than it writes in a round, rounds send all of
    /// memory.
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1..))]
    pub records: u32,
    /// How the state of devices is read and written.
    #[arg(long, value_enum, default_value = "regs")]
    pub state: StateArg,
    /// The guest's driver resets its device after every N requests, in the middle of its work, by
    /// its status and its function in turn, and submits what was in flight again. Records survive
    /// that, the device's own bitmap does not. Default: 0, never.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub reset_every: u64,
    /// The format of the queues.
    #[arg(long, value_enum, default_value = "split")]
    pub ring: RingArg,
    /// Block devices of the guest.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub devices: u16,
    /// Memory of the guest; sizes take K, M, G.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size::parse)]
    pub memory: u64,
    /// Which disk blocks, and so which pages, the guest uses.
    #[arg(long, value_enum, default_value = "random")]
    pub workload: WorkloadArg,
    /// Queues of each device; each has a virtual CPU of its own.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub queues: u16,
    /// Seed of everything random.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Page size to track with: a power of two from 4K.
    #[arg(long, visible_alias = "gra", value_name = "SIZE", default_value = "4K", value_parser = size::parse)]
    pub granularity: u64,
    /// Disk of a device, for each device one: its contents are overwritten. Default: temporary
    /// files.
    #[arg(long, value_name = "FILE")]
    pub disk: Vec<PathBuf>,
    /// Overwrites a disk even if it holds something else than an earlier run's blocks.
    #[arg(long, requires = "disk")]
    pub overwrite: bool,
    /// Size of temporary disks.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size::parse, conflicts_with = "disk")]
    pub disk_size: u64,
    /// Sends the guest to a `tidemark receive` instead of a process of its own (unix:PATH,
    /// tcp:HOST:PORT, or tls:HOST:PORT with the --tls options; both sides need the same disks and the
    /// same folder for evidence), or saves it to a
    /// file (file:PATH), from which a process of its own takes it up, or writes it to the standard
    /// output (-), where nobody judges what becomes of it.
    #[arg(long, value_name = "unix:PATH|tcp:HOST:PORT|tls:HOST:PORT|file:PATH|-")]
    pub to: Option<Target>,
    #[command(flatten)]
    pub connection: ConnectionArgs,
    #[command(flatten)]
    pub agents: crate::ensemble::AgentsArgs,
    /// Folder where both sides leave their evidence, kept. Default: a temporary one.
    #[arg(long, value_name = "DIR")]
    pub evidence: Option<PathBuf>,
    /// Plain copies of the memory over the same socket, made first, for comparison. None are made
    /// to a file.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub plain_copies: u32,
    /// Rounds after which the guest is stopped whatever it dirties.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_rounds: u32,
    /// When the guest is stopped. Default: rounds, or downtime with --downtime-limit.
    #[arg(long, value_enum)]
    pub policy: Option<PolicyArg>,
    /// Milliseconds for which the guest may stand still, as estimated before it is stopped.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    pub downtime_limit: Option<u32>,
    /// What becomes of a guest that would stand still for longer than --downtime-limit after
    /// --max-rounds.
    #[arg(long, value_enum, default_value = "extend")]
    pub unconverged: UnconvergedArg,
    /// Most bytes per second while the guest runs; the last round is not held to it. Sizes take
    /// K, M, G.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub max_bandwidth: Option<u64>,
    /// Refused: a guest that has begun to run at its destination before its memory is there is
    /// lost when the connection is.
    #[arg(long)]
    pub postcopy: bool,
    /// How progress is shown.
    #[arg(long, value_enum, default_value = "bars")]
    pub progress: ProgressArg,
    /// Prints one JSON object as the last line instead of the table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// Where to wait for the guest.
    #[arg(
        long,
        value_name = "unix:PATH|tcp:HOST:PORT|tls:HOST:PORT",
        required_unless_present = "from"
    )]
    pub listen: Option<Target>,
    /// Takes the guest up from a file that `tidemark migrate --to file:PATH` wrote, or from the
    /// standard input what `--to -` writes.
    #[arg(long, value_name = "file:PATH|-", conflicts_with = "listen")]
    pub from: Option<Target>,
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// Disk of a device, for each device one: the same as the source's.
    #[arg(long, value_name = "FILE", required = true)]
    pub disk: Vec<PathBuf>,
    /// Folder for a socket for each device, 0.sock and on, by which its agent reaches it (guest:PATH):
    /// the guest goes on only if no agent holds its place then.
    #[arg(long, value_name = "DIR")]
    pub control: Option<PathBuf>,
    /// Folder for evidence: the same as the source's.
    #[arg(long, value_name = "DIR")]
    pub evidence: Option<PathBuf>,
    /// Most memory that a guest may have.
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = size::parse)]
    pub memory_max: u64,
    /// Requests that the guest completes here before it is stopped.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub requests: u64,
    /// Prints one JSON object as the last line.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum StreamCommand {
    /// Lists the records of a stream.
    Inspect(StreamArgs),
    /// Checks every rule of the format, to the last byte.
    Verify(StreamArgs),
}

#[derive(Debug, Args)]
pub struct StreamArgs {
    /// A stream: the outer layer (libxl) or an image alone (libxc).
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Prints one JSON object as the last line instead of the table.
    #[arg(long)]
    pub json: bool,
}
