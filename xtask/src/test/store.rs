//! The part that damages stores and kills their processes: in a folder, and in the long variant also in
//! Debian's etcd and in an S3 server that others wrote.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use crate::figures;
use crate::process;
use crate::testbed;
use crate::workspace::Workspace;

/// Processes that are killed in each place.
const KILLS: u64 = 100;
const KILLS_FULL: u64 = 1000;
const PLACES: [&str; 4] = ["folder", "etcd", "s3", "etcd_and_s3"];
/// A file system in memory. What a process wrote outlives its being killed in any kernel's memory, so that
/// a disk would show no more of that, and four places sync it some hundred thousand times.
const MEMORY: &str = "/dev/shm";

/// All tests of the store. The long variant builds the clients of etcd and S3, which takes ten minutes of
/// a processor, lints what is built for those alone, and flips every byte; it keeps its stores in memory,
/// where the short one has them on the disk.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let mut command = workspace.cargo();
    command.args(["test", "--workspace", "--test", "store"]);
    let (kills, places, versions) = if options.full {
        let stores = testbed::stores(workspace)?;
        let mut lints = workspace.cargo();
        lints.args(["clippy", "--workspace", "--all-targets"]);
        for command in [&mut lints, &mut command] {
            command
                .args(["--features", "cli/etcd,cli/s3"])
                .env("PROTOC", &stores.protoc)
                .env("PROTOC_INCLUDE", &stores.protoc_include);
        }
        process::stream(lints.args(["--", "-D", "warnings"]))?;
        command
            .env("TIDEMARK_ETCD", &stores.etcd)
            .env("TIDEMARK_S3", &stores.s3)
            .env("AWS_ACCESS_KEY_ID", "tidemark")
            .env("AWS_SECRET_ACCESS_KEY", "known to nobody else")
            .env("TIDEMARK_STORE_ALL_BYTES", "1")
            // Places mostly wait, for the leases of the dead.
            .env("RUST_TEST_THREADS", "4");
        if Path::new(MEMORY).is_dir() {
            command.env("TMPDIR", MEMORY);
        }
        let versions = json!({"etcd": stores.etcd_version, "s3": stores.s3_version});
        (KILLS_FULL, &PLACES[..], versions)
    } else {
        (KILLS, &PLACES[..1], Value::Null)
    };
    command
        .args(["--", "--nocapture"])
        // redb panics on many a damaged page, which is caught; where is of no use, thousands of times.
        .env("RUST_BACKTRACE", "0")
        .env("TIDEMARK_STORE_KILLS", kills.to_string());
    let (text, status) = process::tee(&mut command)?;
    ensure!(
        status.success(),
        "`{}` ended with {status}",
        process::shown(&command)
    );
    let found = text
        .lines()
        .filter_map(|line| Some(line.split_once("figures ")?.1));
    let rows: Vec<Value> = found
        .map(serde_json::from_str)
        .collect::<serde_json::Result<_>>()
        .context("the figures of the kills are no JSON")?;
    good(&rows, places, kills)?;
    figures::keep(
        workspace,
        "store",
        &json!({"versions": versions, "places": rows}),
    )?;
    Ok(format!(
        "{kills} processes killed before their end in {}; nothing named damaged",
        places.join(", ")
    ))
}

/// Whether every place had its kills, and its controls were seen.
fn good(rows: &[Value], places: &[&str], kills: u64) -> Result<()> {
    for place in places {
        let row = rows.iter().find(|row| row["place"] == *place);
        let row = row.with_context(|| format!("no figures of {place}"))?;
        let got = &row["kills"];
        ensure!(*got == kills, "{place}: expected {kills} kills, got {got}");
        for name in ["compared", "controls_seen"] {
            let count = row[name].as_u64().unwrap_or(0);
            ensure!(count > 0, "{place}: {name}: expected 1 or more, got none");
        }
        let died = row["died"].as_object();
        for (step, count) in died.into_iter().flatten() {
            println!("{place:<12} {count:>5} {step}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_counts() {
        let row = |place: &str, kills: u64, compared: u64, seen: u64| json!({"place": place, "kills": kills, "compared": compared, "controls_seen": seen});
        let whole: Vec<Value> = PLACES.iter().map(|place| row(place, 5, 1, 1)).collect();
        good(&whole, &PLACES, 5).unwrap();
        assert!(good(&whole, &PLACES, 6).is_err());
        assert!(good(&whole[1..], &PLACES, 5).is_err());
        for spoiled in [row("s3", 4, 1, 1), row("s3", 5, 0, 1), row("s3", 5, 1, 0)] {
            let mut other = whole.clone();
            other[2] = spoiled;
            assert!(good(&other, &PLACES, 5).is_err());
        }
    }
}
