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

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .init();
    match cli.command {
        Command::Agent(args) => exit::report(agent::run(&args)),
        Command::Checkpoint(command) => exit::report(checkpoint::run(&command)),
        Command::Conform(args) => exit::report(conform::conform(&args)),
        Command::Device(args) => device::run(args),
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
    }
}
