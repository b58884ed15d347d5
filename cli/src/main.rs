//! `tidemark`: what people type. Reads arguments, calls the crates that do the work, prints.

#![forbid(unsafe_code)]

mod agent;
mod args;
mod checkpoint;
mod conducted;
mod conform;
mod device;
mod disk;
mod ensemble;
mod exercise;
mod exit;
mod generate;
mod journal;
mod judge;
mod lock;
mod mediate;
mod migrate;
mod progress;
mod receive;
mod restore;
mod sandboxed;
mod size;
mod soak;
mod store;
mod stream;
mod summary;
mod watch;
mod welcome;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    exit::leave_caught_panics_to_their_errors();
    let cli = Cli::parse();
    // Who judges provokes: what a device of ours has to say to that is in the report.
    let provoked = matches!(cli.command, Some(Command::Conform(_) | Command::Judge(_)));
    let level = if provoked { "error" } else { "warn" };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into()))
        .with_writer(std::io::stderr)
        .init();
    let Some(command) = cli.command else {
        return exit::report(conform::print(&welcome::text()));
    };
    match command {
        Command::Agent(args) => exit::report(agent::run(&args)),
        Command::Checkpoint(command) => exit::report(checkpoint::run(&command)),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "tidemark", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Command::Conform(args) => exit::report(conform::conform(&args)),
        Command::Device(args) => device::run(args),
        Command::Generate { dir } => exit::report(conform::reference(&dir)),
        Command::Journal(args) => exit::report(journal::run(&args)),
        Command::Judge(args) => exit::report(judge::judge(&args)),
        Command::Lock(command) => exit::report(lock::run(&command)),
        Command::Mediate(args) => exit::report(mediate::run(args)),
        Command::Migrate(args) => exit::report(migrate::run(&args)),
        Command::Probe(args) => exit::report(exercise::probe(&args)),
        Command::QueueState(args) => exit::report(exercise::queue_state(&args)),
        Command::Receive(args) => exit::report(receive::run(&args)),
        Command::Restore(args) => exit::report(restore::run(&args)),
        Command::Soak(args) => exit::report(soak::run(&args)),
        Command::Store(command) => exit::report(store::run(&command)),
        Command::Stream(command) => exit::report(stream::run(&command)),
        Command::Suspend(args) => exit::report(exercise::suspend(&args)),
        Command::Track(args) => exit::report(exercise::track(&args)),
        Command::Watch(args) => exit::report(watch::run(&args)),
    }
}
