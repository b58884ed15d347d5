//! `cargo xtask`: builds the test bed, runs every test and every benchmark.
//!
//! `setup` puts two QEMUs and two stock Debian kernels into a folder of the
//! workspace, `test` runs all tests against them, `bench --check` holds every speed line to its
//! bound. Everything it needs beyond Rust, a C linker and apt it fetches itself.

mod bench;
mod conformance;
mod figures;
mod fuzz;
mod guest;
mod process;
mod proofs;
mod release;
mod soak;
mod test;
mod testbed;
mod tool;
mod workspace;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the real-guest test bed: QEMU, a Debian kernel, what the guests need
    Setup,
    /// Run the test bed's setup, then every test
    Test(test::Options),
    /// Judge every implementation and write the matrix of clauses and implementations
    Matrix(conformance::matrix::Options),
    /// Run the benchmarks
    Bench(BenchOptions),
    /// Make man pages, completions and the book's reference from the programs
    Generate,
    /// Hold licences and sources of the dependencies to deny.toml
    Deny(release::deny::Options),
    /// Write what the programs are made of, as CycloneDX
    Sbom,
    /// Build the Debian package, unpack it and run what is in it
    Deb,
    /// Explore the models of what runs at once, and run AddressSanitizer over what is unsafe
    Proofs,
    /// Move, suspend, checkpoint, kill and unmap for a while, and watch what grows
    Soak(soak::Options),
    /// Feed everything that faces a guest or a network with bytes of any kind
    Fuzz(fuzz::Options),
}

#[derive(Args)]
struct BenchOptions {
    /// Hold every speed line to its bound; exit 1 on a miss
    #[arg(long)]
    check: bool,
}

/// Exit codes are the house's: 0 done, 1 a real failure of what was asked; clap exits with 2 on
/// wrong usage.
fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = Workspace::find().and_then(|workspace| match cli.command {
        Command::Setup => testbed::ensure(&workspace).map(|_bed| true),
        Command::Test(options) => test::run(&workspace, &options),
        Command::Matrix(options) => conformance::matrix::run(&workspace, &options).map(|()| true),
        Command::Bench(options) if options.check => bench::check(&workspace),
        Command::Generate => release::generate::run(&workspace).map(|_folder| true),
        Command::Deny(options) => release::deny::run(&workspace, &options).map(|()| true),
        Command::Sbom => release::sbom::run(&workspace).map(|_file| true),
        Command::Deb => release::deb::run(&workspace).map(|()| true),
        Command::Proofs => proofs::run(&workspace).map(|()| true),
        Command::Fuzz(options) => fuzz::run(&workspace, &options),
        Command::Soak(options) => soak::run(&workspace, &options).map(|()| true),
        Command::Bench(_) => bench::run(&workspace).map(|()| true),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
