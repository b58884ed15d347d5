//! `tidemark lock`.

use crate::agent::IdentityArgs;
use crate::exit::{Failed, Unreachable};
use crate::size;
use clap::{Args, Subcommand};
use migration::agent::{Agents, ClientError, DeviceConfig, Mode, Place, Status, Tracking};
use migration::lock::{Claimant, Failure, LockedSet, Progress, Remote, Remotes, Report, Terms};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What `tidemark lock` does.
#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// Says what devices run with and who has their locks
    Show(ShowArgs),
    /// Gives devices a configuration: all of them, or none
    Set(SetArgs),
    /// Unlocks a device by force, which its agent logs
    Free(OneArgs),
    /// Takes over what is being applied to a device, waits for its end and releases the device
    TakeOver(TakeOverArgs),
}

/// Who asks, and how.
#[derive(Args, Debug)]
pub struct AskArgs {
    /// What holders of locks are called; over TCP it stands in the certificate
    #[arg(long, value_name = "NAME", default_value = "tidemark")]
    who: String,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Prints one JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// Devices to look at.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// DEVICE@unix:PATH or DEVICE@tls:HOST:PORT
    #[arg(value_name = "DEVICE@AGENT", required = true)]
    places: Vec<Place>,
    #[command(flatten)]
    ask: AskArgs,
}

/// A device.
#[derive(Args, Debug)]
pub struct OneArgs {
    /// DEVICE@unix:PATH or DEVICE@tls:HOST:PORT
    #[arg(value_name = "DEVICE@AGENT")]
    place: Place,
    #[command(flatten)]
    ask: AskArgs,
}

/// A device whose manager has left it.
#[derive(Args, Debug)]
pub struct TakeOverArgs {
    #[command(flatten)]
    one: OneArgs,
    /// Even if its manager may still come back for it
    #[arg(long)]
    force: bool,
}

/// Devices and what they are to do.
#[derive(Args, Debug)]
pub struct SetArgs {
    /// DEVICE@unix:PATH or DEVICE@tls:HOST:PORT
    #[arg(value_name = "DEVICE@AGENT", required = true)]
    places: Vec<Place>,
    /// Tracks the pages written between these addresses; several times
    #[arg(long, value_name = "START..END", value_parser = range)]
    track: Vec<Range<u64>>,
    /// The page size to track with
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = size::parse)]
    granularity: u64,
    /// The PASID whose writes are tracked
    #[arg(long, value_name = "N", requires = "track")]
    pasid: Option<u32>,
    /// Suspends the devices
    #[arg(long)]
    suspend: bool,
    /// Keeps the locks until the standard input ends
    #[arg(long)]
    hold: bool,
    /// How long other managers are waited for, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    wait: u64,
    /// Who may migrate the devices from now on; several times. Default: everyone
    #[arg(long, value_name = "NAME")]
    manager: Vec<String>,
    #[command(flatten)]
    ask: AskArgs,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (start, end) = text
        .split_once("..")
        .ok_or_else(|| format!("expected START..END, got '{text}'"))?;
    let start = match start {
        "" | "0" => 0,
        start => size::parse(start)?,
    };
    Ok(start..size::parse(end)?)
}

/// Runs `tidemark lock`.
pub fn run(command: &LockCommand) -> anyhow::Result<()> {
    match command {
        LockCommand::Show(args) => show(args),
        LockCommand::Set(args) => set(args),
        LockCommand::Free(args) => free(args),
        LockCommand::TakeOver(args) => take_over(args),
    }
}

fn agents(ask: &AskArgs) -> Result<Agents, ClientError> {
    Agents::new(ask.identity.identity().as_ref())
}

/// Who did not answer is unreachable; who refused is not.
fn end(error: ClientError) -> anyhow::Error {
    use migration::lock::RemoteError;
    match &error {
        ClientError::Remote {
            error: RemoteError::Lost(_),
            ..
        } => Unreachable(error.to_string()).into(),
        _ => Failed(error.to_string()).into(),
    }
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let agents = agents(&args.ask)?;
    let mut all = Vec::new();
    for place in &args.places {
        let status = agents.status(place).map_err(end)?;
        if !args.ask.json {
            println!("{}", line(place, &status));
        }
        all.push(serde_json::json!({ "place": place.to_string(), "status": status }));
    }
    if args.ask.json {
        println!("{}", serde_json::json!({ "devices": all }));
    }
    Ok(())
}

fn line(place: &Place, status: &Status) -> String {
    let DeviceConfig {
        tracking,
        suspended,
        ..
    } = &status.running;
    let tracking = match tracking {
        None => "untracked".to_owned(),
        Some(tracking) => format!("tracked in {} ranges", tracking.ranges.len()),
    };
    let state = if *suspended { "suspended" } else { "running" };
    let lock = match &status.holder {
        None => "unlocked".to_owned(),
        Some(holder) => format!("locked by {holder}"),
    };
    format!("{place}  {tracking}, {state}, {lock}")
}

fn set(args: &SetArgs) -> anyhow::Result<()> {
    let agents = agents(&args.ask)?;
    let config = DeviceConfig {
        tracking: (!args.track.is_empty()).then(|| Tracking {
            ranges: args.track.clone(),
            granularity: args.granularity,
            pasid: args.pasid,
            mode: Mode::default(),
        }),
        suspended: args.suspend,
        managers: args.manager.clone(),
    };
    let remote = |place: &Place| Arc::new(agents.remote(place.clone())) as Arc<dyn Remote<_>>;
    let remotes = Remotes::new(args.places.iter().map(remote).collect())?;
    let begin = Instant::now();
    let mut terms = Terms::new(&args.ask.who);
    terms.limits.lock = Duration::from_millis(args.wait);
    let done = LockedSet::lock(remotes, terms)
        .and_then(|set| set.for_each(|_| Ok(config.clone())))
        .and_then(LockedSet::apply)
        .map(|set| {
            if args.hold {
                hold();
            }
            set.release()
        });
    let took = begin.elapsed();
    let (report, failure) = match done {
        Ok(report) => (report, None),
        Err(Failure { cause, report }) => (report, Some(cause)),
    };
    if args.ask.json {
        println!(
            "{}",
            object(&report, failure.map(|cause| cause.to_string()), took)
        );
    } else {
        println!("{report}");
    }
    match failure {
        None if report.stuck.is_empty() => Ok(()),
        None => Err(Failed("all have it, and not all could be released".to_owned()).into()),
        Some(cause) => Err(Failed(cause.to_string()).into()),
    }
}

/// Says that all are held, and waits for the end of the input.
fn hold() {
    println!("held until the input ends");
    // Broken off or at its end: whoever held the other one is gone.
    let ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    tracing::debug!(?ended, "the input");
}

/// A report for machines.
fn object(report: &Report, failure: Option<String>, took: Duration) -> serde_json::Value {
    let rows = report.rows.iter().map(|row| {
        let error = row.outcome.as_ref().err().map(ToString::to_string);
        serde_json::json!({
            "remote": row.remote, "phase": row.phase.to_string(), "error": error,
        })
    });
    let stuck = report.stuck.iter().map(|stuck| {
        serde_json::json!({
            "remote": stuck.remote, "why": stuck.why.to_string(), "command": stuck.command,
        })
    });
    serde_json::json!({
        "applied": failure.is_none(),
        "failure": failure,
        "rows": rows.collect::<Vec<_>>(),
        "stuck": stuck.collect::<Vec<_>>(),
        "milliseconds": took.as_secs_f64() * 1e3,
    })
}

fn free(args: &OneArgs) -> anyhow::Result<()> {
    let freed = agents(&args.ask)?
        .free(&args.place, &args.ask.who)
        .map_err(end)?;
    if args.ask.json {
        println!("{}", serde_json::json!({ "freed": freed }));
        return Ok(());
    }
    match freed {
        Some(holder) => println!("{} was locked by {holder}", args.place),
        None => println!("{} was not locked", args.place),
    }
    Ok(())
}

fn take_over(args: &TakeOverArgs) -> anyhow::Result<()> {
    let OneArgs { place, ask } = &args.one;
    let who = Claimant::new(&ask.who);
    let progress = agents(ask)?
        .take_over(place, &who, args.force)
        .map_err(end)?;
    if ask.json {
        println!("{}", serde_json::json!({ "progress": progress }));
    }
    match progress {
        Progress::Finished if ask.json => Ok(()),
        Progress::Finished => {
            println!("{place} runs what was being applied, and is unlocked");
            Ok(())
        }
        other => Err(Failed(format!("{place}: {other:?}")).into()),
    }
}
