//! `tidemark watch`.

use crate::args::WorkloadArg;
use crate::exit::{Failed, Unreachable, Usage};
use crate::size;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use observe::watch::{Feed, View, html, read_events, show_lines, show_terminal, svg, watch_device};
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vm::Target;
use vm::exercise::{Comeback, TrackOptions};

/// Between the beginnings of two rounds, for eyes.
const INTERVAL_MS: u64 = 200;

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The device, to be driven, tracked, suspended and resumed: `emulated`, `vfio:0000:03:00.0`
    /// (bound to vfio-pci) or `vfio-user:PATH`. Nobody else may be driving it
    #[arg(long, value_name = "TARGET", default_value = "emulated")]
    target: Target,
    /// Instead of a device: a migration, by the events that `tidemark migrate --progress json`
    /// prints; - is the standard input
    #[arg(long, value_name = "FILE|-", conflicts_with = "target")]
    events: Option<PathBuf>,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 20)]
    rounds: u32,
    /// Requests of a round
    #[arg(long, value_name = "N", default_value_t = 2000)]
    requests: u64,
    /// Memory that reads go to. Sizes take K, M, G
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = size::parse)]
    memory: u64,
    /// Where in it they go
    #[arg(long, value_enum, default_value = "zipf")]
    workload: WorkloadArg,
    /// How the device comes back from the suspend that every round has
    #[arg(long, value_enum, default_value = "resume")]
    suspend: SuspendArg,
    /// Least time from one round's beginning to the next one's, in milliseconds. Default: 200 on a
    /// terminal, otherwise 0
    #[arg(long, value_name = "MS")]
    interval: Option<u64>,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Leave the picture in FILE, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Leave the picture, the rounds and the queues in FILE, as a page of HTML
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SuspendArg {
    /// Resume it
    Resume,
    /// Reset it and write its state back
    Restore,
    /// No suspend: for devices that cannot
    Never,
}

/// Runs `tidemark watch`.
pub fn run(args: &WatchArgs) -> Result<()> {
    let on_terminal = io::stdout().is_terminal();
    let (feed, mut view) = open(args, on_terminal)?;
    if on_terminal {
        show_terminal(&feed, &mut view).context("cannot draw in the terminal")?;
    } else {
        let mut out = io::stdout().lock();
        let out: Option<&mut dyn Write> = if args.json { None } else { Some(&mut out) };
        show_lines(&feed, &mut view, out)?;
    }
    if let Some(path) = &args.svg {
        leave(path, &svg(&view))?;
    }
    if let Some(path) = &args.html {
        leave(path, &html(&view))?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&view)?);
    } else {
        // What else the events' writer had to say, its verdict above all.
        view.others.iter().for_each(|line| println!("{line}"));
        println!(
            "{} rounds, {} dirty pages, {} lost, {} suspends",
            view.rounds_total, view.pages_total, view.lost_total, view.suspends
        );
    }
    match view.trouble {
        None => Ok(()),
        Some(trouble) => Err(Failed(trouble).into()),
    }
}

fn open(args: &WatchArgs, on_terminal: bool) -> Result<(Feed, View)> {
    if let Some(path) = &args.events {
        let shown = path.display();
        let feed = if path.as_os_str() == "-" {
            read_events(io::stdin())
        } else {
            let file = File::open(path);
            let file =
                file.map_err(|error| Unreachable(format!("cannot read {shown}: {error}")))?;
            read_events(file)
        };
        return Ok((feed, View::new(format!("migration ({shown})"))));
    }
    if args.rounds == 0 {
        return Err(Usage("--rounds: expected at least 1, got 0".to_owned()).into());
    }
    let options = TrackOptions {
        rounds: args.rounds,
        requests: args.requests,
        pages: args.memory / 4096,
        pattern: args.workload.into(),
        suspensions: match args.suspend {
            SuspendArg::Resume => vec![Comeback::Resume],
            SuspendArg::Restore => vec![Comeback::Restore],
            SuspendArg::Never => Vec::new(),
        },
        seed: args.seed,
        ..TrackOptions::default()
    };
    let bus = args.target.open();
    let bus = bus.map_err(|error| Unreachable(error.to_string()))?;
    let default = if on_terminal { INTERVAL_MS } else { 0 };
    let interval = Duration::from_millis(args.interval.unwrap_or(default));
    let view = View::new(args.target.to_string());
    Ok((watch_device(bus, options, interval), view))
}

fn leave(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
