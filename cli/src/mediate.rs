//! `tidemark mediate`.

use crate::exit::{Failed, Unreachable, Usage};
use crate::sandboxed::SandboxArg;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use device::serve::socket::SocketFile;
use device::serve::vfio_user::{Ended, ServeError, VfioUserServer};
use observe::metrics::{MediatorSource, MetricsSocket};
use sandbox::{Grant, Kind, Sandbox, mediator_descriptors};
use signal_hook::consts::signal::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use vm::Target;
use vm::mediate::{self, Control, ControlError, Mediator, MoveReport, Options, Report, Request};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MediateArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Option<ServeArgs>,
}

/// Serve: towards the VMM a vfio-user device, towards the device its driver.
#[derive(Debug, Args)]
struct ServeArgs {
    /// Where the VMM is to find the device: `vfio-user:PATH`, a socket to be made
    #[arg(long, value_name = "vfio-user:PATH")]
    front: Target,
    /// The device: `vfio-user:PATH` or `vfio:0000:03:00.0` (bound to vfio-pci). It is reset; nobody
    /// else may be driving it
    #[arg(long, value_name = "TARGET")]
    back: Target,
    /// The socket to make for `tidemark mediate move` and `status`. With it, the guest's accesses
    /// wait when the device dies, for one that takes over
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Answer Prometheus on this Unix socket: GET /metrics
    #[arg(long, value_name = "PATH")]
    metrics_socket: Option<PathBuf>,
    /// Track the pages that the device writes, across all moves
    #[arg(long)]
    tracker: bool,
    /// Go on when a client has disconnected, and serve the next one
    #[arg(long)]
    keep: bool,
    /// A file or folder that `tidemark mediate move` may name, besides the folder of the control socket;
    /// several times
    #[arg(long, value_name = "PATH", requires = "control")]
    allow: Vec<PathBuf>,
    /// Let `tidemark mediate move` lead to VFIO devices, as --back vfio:... does
    #[arg(long, requires = "control")]
    allow_vfio: bool,
    /// What the process gives up once it has begun: system calls, files and descriptors that it does
    /// not need
    #[arg(long, value_enum, value_name = "MODE", default_value_t = SandboxArg::Strict)]
    sandbox: SandboxArg,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Moves the guest to another device, which is reset first; or, if the device died, lets the
    /// other one take over
    Move(MoveArgs),
    /// Says how a mediator and its device are doing
    Status(StatusArgs),
}

#[derive(Debug, Args)]
struct MoveArgs {
    /// The mediator's control socket
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
    /// The device to move to, as the mediator is to find it
    #[arg(long, value_name = "TARGET")]
    to: Target,
    /// After the device died: the table of what it had in flight. The device that takes over was
    /// started with the same
    #[arg(long, value_name = "FILE")]
    inflight: Option<PathBuf>,
    /// Keep the stream in which the device's state went, for `tidemark stream inspect`
    #[arg(long, value_name = "FILE")]
    stream: Option<PathBuf>,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// The mediator's control socket
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// Runs `tidemark mediate`.
pub fn run(args: MediateArgs) -> Result<()> {
    match (args.command, args.serve) {
        (Some(Command::Move(args)), _) => shift(&args),
        (Some(Command::Status(args)), _) => status(&args),
        (None, Some(serving)) => serve(&serving),
        (None, None) => Err(usage("--front and --back, or `move` or `status`")),
    }
}

fn usage(expected: &str) -> anyhow::Error {
    Usage(format!(
        "expected {expected}; see `tidemark mediate --help`"
    ))
    .into()
}

/// What ends the serving.
enum End {
    Client(Result<Ended, ServeError>),
    Signal,
}

fn serve(args: &ServeArgs) -> Result<()> {
    let Target::VfioUser(front) = &args.front else {
        return Err(usage("--front vfio-user:PATH"));
    };
    let (ends, ended) = mpsc::channel();
    // Before anyone can know that there is a process to be signalled.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot handle signals")?;
    let metrics = args.metrics_socket.as_deref();
    let metrics = metrics.map(MetricsSocket::bind).transpose();
    let metrics = metrics.map_err(|error| Unreachable(error.to_string()))?;
    // Files while this is the only thread: what moves will name is opened then.
    let given_up = "cannot give up what the process does not need";
    let sandbox = Sandbox::confine(args.sandbox.mode(), Kind::Mediate, &grants(args, front));
    let sandbox = sandbox.context(given_up)?;
    let back = mediate::open(&args.back).map_err(|error| Unreachable(error.to_string()))?;
    let options = Options {
        tracker: args.tracker,
        hold: args.control.is_some(),
    };
    let mediator = Mediator::new(&args.back.to_string(), back, options)?;
    let control = args.control.as_deref();
    let control = control.map(listen).transpose()?;
    let server = VfioUserServer::bind(front, Arc::clone(&mediator) as _)
        .map_err(|error| Unreachable(error.to_string()))?;
    let server = Arc::new(server);
    sandbox.seal(mediator_descriptors()).context(given_up)?;
    let gone = Arc::new(AtomicU64::new(0));
    // On a thread that has given up what the others have; until this ends.
    let _metrics = metrics
        .map(|socket| {
            let source = MediatorSource::new(Arc::clone(&mediator), Arc::clone(&gone));
            socket.serve(vec![Box::new(source)])
        })
        .transpose()?;
    let send = ends.clone();
    thread::spawn(move || {
        for _ in signals.forever() {
            let _ = send.send(End::Signal);
        }
    });
    // The socket's file stays for as long as this does.
    let _control = control.map(|(listener, file)| {
        answer(listener, &mediator);
        file
    });
    eprintln!("tidemark: listening on {}", front.display());
    let (serving, keep) = (Arc::clone(&server), args.keep);
    thread::spawn(move || {
        let end = loop {
            let served = serving.run();
            gone.fetch_add(1, Relaxed);
            match served {
                Ok(Ended::Client) if keep => {}
                Err(error @ ServeError::Protocol(_)) if keep => {
                    eprintln!("tidemark: {error}; waiting for the next client");
                }
                end => break end,
            }
        };
        let _ = ends.send(End::Client(end));
    });

    let end = ended.recv().context("neither a client nor a signal")?;
    // The thread that serves may hold the server for a moment yet.
    server.remove_socket();
    server.stop();
    let report = mediator.report();
    println!("{}", serde_json::to_string(&report)?);
    match end {
        End::Client(end) => Ok(end.map(drop)?),
        End::Signal => Ok(()),
    }
}

/// What the mediator goes on using by name.
fn grants(args: &ServeArgs, front: &Path) -> Vec<Grant> {
    let mut grants = vec![Grant::Socket(front.to_owned())];
    grants.extend(args.metrics_socket.clone().map(Grant::Socket));
    if let Some(control) = &args.control {
        grants.push(Grant::Socket(control.clone()));
        let folder = control
            .parent()
            .filter(|folder| *folder != Path::new(""))
            .unwrap_or(Path::new("."));
        grants.push(Grant::Folder(folder.to_owned()));
    }
    grants.extend(args.allow.iter().map(|path| Grant::whatever(path)));
    if args.allow_vfio || matches!(args.back, Target::Vfio(_)) {
        grants.extend(Grant::vfio());
    }
    grants
}

fn listen(path: &Path) -> Result<(UnixListener, SocketFile)> {
    SocketFile::listen(path).map_err(|error| Unreachable(error.to_string()).into())
}

/// Answers `move` and `status` for as long as the process lives.
fn answer(listener: UnixListener, mediator: &Arc<Mediator>) {
    let control = Control::new(Arc::clone(mediator), |name| {
        let target: Target = name.parse()?;
        mediate::open(&target).map_err(|error| error.to_string())
    });
    thread::spawn(move || control.run(&listener));
}

fn shift(args: &MoveArgs) -> Result<()> {
    let request = Request::Move {
        to: absolute(&args.to)?.to_string(),
        inflight: args
            .inflight
            .as_ref()
            .map(std::path::absolute)
            .transpose()?,
        stream: args.stream.as_ref().map(std::path::absolute).transpose()?,
    };
    let answer = ask(&args.control, &request)?;
    let report: MoveReport = serde_json::from_value(answer).context("the mediator's answer")?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!("moved       {} -> {}", report.from, report.to);
    if report.takeover {
        println!(
            "takeover    {} requests in flight carried out again",
            report.in_flight
        );
    }
    println!(
        "downtime    {:.2} ms, of which suspending {:.2} ms",
        report.downtime_ms, report.suspend_ms
    );
    println!(
        "carried     {} queues, {} maps, {} requests waiting",
        report.queues, report.maps, report.carried_over
    );
    println!("stream      {} bytes", report.stream_bytes);
    if let Some(pages) = report.dirty_pages {
        println!("dirty       {pages} pages so far");
    }
    Ok(())
}

/// The mediator runs elsewhere: paths must mean the same there.
fn absolute(target: &Target) -> Result<Target> {
    Ok(match target {
        Target::VfioUser(path) => Target::VfioUser(std::path::absolute(path)?),
        other => other.clone(),
    })
}

fn status(args: &StatusArgs) -> Result<()> {
    let answer = ask(&args.control, &Request::Status)?;
    if args.json {
        println!("{answer}");
        return Ok(());
    }
    let report: Report = serde_json::from_value(answer).context("the mediator's answer")?;
    let life = match (report.alive, report.driver_ok) {
        (false, _) => "gone; another can take over with `mediate move`",
        (true, true) => "driven by the guest",
        (true, false) => "idle",
    };
    println!("device      {}, {life}", report.device);
    println!(
        "moves       {}, takeovers {}, failed {}",
        report.moves, report.takeovers, report.failed_moves
    );
    println!(
        "passed on   {} accesses, {} doorbells, {} maps, {} unmaps; {} maps in force",
        report.accesses, report.doorbells, report.dma_maps, report.dma_unmaps, report.maps
    );
    if let Some(lacks) = report.lacks {
        println!("immovable   {lacks}");
    }
    if let Some(pages) = report.dirty_pages {
        println!("dirty       {pages} pages so far");
    }
    Ok(())
}

fn ask(control: &Path, request: &Request) -> Result<serde_json::Value> {
    mediate::ask(control, request).map_err(|error| match error {
        ControlError::Unreachable { .. } => Unreachable(error.to_string()).into(),
        ControlError::Refused(text) => Failed(text).into(),
    })
}
