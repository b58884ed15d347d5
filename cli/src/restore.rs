//! `tidemark restore`.

use crate::exit::{Failed, Usage};
use crate::size;
use crate::store::{Places, open};
use anyhow::Context;
use clap::Args;
use migration::checkpoint::Standby;
use migration::names::Name;
use std::path::PathBuf;
use std::time::Duration;
use vm::{Backup, Hosting, Limits};

/// How long the guest may take for its requests.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The checkpoint's name.
    #[arg(value_name = "NAME")]
    name: Name,
    #[command(flatten)]
    places: Places,
    /// Disk of a device, for each device one, as it was at the checkpoint: a store keeps no disks.
    /// Writes that the checkpoint holds back go there first.
    #[arg(long, value_name = "FILE", required = true)]
    disk: Vec<PathBuf>,
    /// Folder where the guest leaves its evidence.
    #[arg(long, value_name = "DIR")]
    evidence: Option<PathBuf>,
    /// Most memory that a guest may have.
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = size::parse)]
    memory_max: u64,
    /// Requests that the guest completes before it is stopped.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    requests: u64,
    /// Prints one JSON object as the last line.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &RestoreArgs) -> anyhow::Result<()> {
    for disk in &args.disk {
        std::fs::metadata(disk)
            .map_err(|error| Usage(format!("cannot open the disk {}: {error}", disk.display())))?;
    }
    let store = open(&args.places, false)?;
    let checkpoint = store.checkpoint(&args.name)?;
    let hosting = Hosting {
        disks: args.disk.clone(),
        evidence: args.evidence.clone(),
        side: "restored".to_owned(),
        limits: Limits::default(),
        // What the checkpoint holds is let out before the guest runs.
        hold: Some(0),
        disk_fault: None,
    };
    let mut place = Backup::new(hosting, args.memory_max, false);
    let pages = checkpoint.restore(&mut place)?;
    place.take_over().context("running the guest")?;
    let mut guest = place.into_guest().context("no guest came")?;
    let went_on = guest.run_for(args.requests, PATIENCE)?;
    guest.drain()?;
    if !went_on {
        return Err(Failed("the guest stands still".to_owned()).into());
    }
    let progress = guest.progress();
    if args.json {
        let object = serde_json::json!({
            "restored": args.name.to_string(), "pages": pages,
            "requests": progress.completed, "drained": true,
        });
        println!("{object}");
    } else {
        println!(
            "{pages} pages as they were put; the guest completed {} requests and was stopped",
            progress.completed
        );
    }
    Ok(())
}
