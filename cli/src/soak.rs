//! `tidemark soak`.

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;
use vm::MarkingMode;
use vm::soak::{Planted, Soak, soak};

/// Phases that the time is divided into.
const PHASES: u64 = 10;

#[derive(Debug, Args)]
pub struct SoakArgs {
    /// Seconds to go on, after a warm-up of a fifth of that.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Guests and devices at once.
    #[arg(long, default_value_t = 4)]
    lanes: usize,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where disks and evidence go; by default where temporary files go.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// MiB of memory that there may be more in the end than after the warm-up. The C library's allocator
    /// keeps what it was given back; with MALLOC_ARENA_MAX=1 in the environment 16 are plenty.
    #[arg(long, default_value_t = 128, value_name = "MIB")]
    slack: u64,
    /// Make something wrong, to see that it is found.
    #[arg(long, value_enum)]
    plant: Option<Plant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Plant {
    /// Devices do not mark what they write.
    Unmarked,
    /// A descriptor is kept after each move.
    Leak,
    /// One request of each move is completed twice.
    Double,
}

/// Prints the figures as JSON; an error if anything is wrong.
pub fn run(args: &SoakArgs) -> Result<()> {
    let plan = Soak {
        lanes: args.lanes.clamp(1, 64),
        phases: usize::try_from(PHASES)?,
        phase: Duration::from_secs(args.seconds.max(PHASES)) / u32::try_from(PHASES)?,
        seed: args.seed,
        marking: (args.plant == Some(Plant::Unmarked)).then_some(MarkingMode::Off),
        planted: match args.plant {
            Some(Plant::Leak) => Some(Planted::Leak),
            Some(Plant::Double) => Some(Planted::Double),
            Some(Plant::Unmarked) | None => None,
        },
        folder: args.folder.clone().unwrap_or_else(std::env::temp_dir),
        slack: args.slack.saturating_mul(1 << 20),
    };
    let soaked = soak(&plan).context("the soak cannot be watched")?;
    println!("{}", serde_json::to_string(&soaked)?);
    ensure!(
        soaked.objections.is_empty(),
        "not proved: {}",
        soaked.objections.join("; ")
    );
    Ok(())
}
