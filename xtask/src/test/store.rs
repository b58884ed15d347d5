//! The part that kills processes of the store at any moment, wherever the store is: in a folder, in
//! Debian's etcd, in an S3 server that others wrote.

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
const FEATURES: [&str; 2] = ["--features", "etcd,s3"];

/// Lints what only the features build, then everything that a store must do, in each place.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let stores = testbed::stores(workspace)?;
    let kills = if options.full { KILLS_FULL } else { KILLS };
    let cargo = |words: &[&str]| {
        let mut command = workspace.cargo();
        command.args(words).args(FEATURES);
        command.env("PROTOC", &stores.protoc);
        command.env("PROTOC_INCLUDE", &stores.protoc_include);
        command
    };
    let mut lints = cargo(&["clippy", "-p", "migration", "-p", "cli", "--all-targets"]);
    process::stream(lints.args(["--", "-D", "warnings"]))?;
    let mut command = cargo(&["test", "-p", "cli", "--test", "store"]);
    command
        .args(["--", "--nocapture"])
        .env("TIDEMARK_ETCD", &stores.etcd)
        .env("TIDEMARK_S3", &stores.s3)
        .env("AWS_ACCESS_KEY_ID", "tidemark")
        .env("AWS_SECRET_ACCESS_KEY", "known to nobody else")
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
    figures::keep(
        workspace,
        "store",
        &json!({"etcd": stores.etcd_version, "s3": stores.s3_version, "places": rows}),
    )?;
    let in_time = good(&rows, kills)?;
    Ok(format!(
        "{kills} processes killed in each of {} places, {in_time} of them before their end; \
         nothing named damaged (etcd {}, {})",
        PLACES.len(),
        stores.etcd_version,
        stores.s3_version
    ))
}

/// How many died before their end, if every place had its kills.
fn good(rows: &[Value], kills: u64) -> Result<u64> {
    let mut in_time = 0;
    for place in PLACES {
        let row = rows.iter().find(|row| row["place"] == place);
        let row = row.with_context(|| format!("no figures of {place}"))?;
        for (name, expected) in [("kills", kills), ("damaged", 0)] {
            let got = &row[name];
            ensure!(
                *got == expected,
                "{place}: expected {expected} {name}, got {got}"
            );
        }
        let died = row["killed_in_time"].as_u64().unwrap_or(0);
        ensure!(died > 0, "{place}: nobody was killed before the end");
        in_time += died;
    }
    Ok(in_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_counts() {
        let row = |place: &str, kills: u64, died: u64, damaged: u64| json!({"place": place, "kills": kills, "killed_in_time": died, "damaged": damaged});
        let whole: Vec<Value> = PLACES.iter().map(|place| row(place, 5, 2, 0)).collect();
        assert_eq!(good(&whole, 5).unwrap(), 8);
        assert!(good(&whole, 6).is_err());
        assert!(good(&whole[1..], 5).is_err());
        for spoiled in [row("s3", 4, 2, 0), row("s3", 5, 0, 0), row("s3", 5, 2, 1)] {
            let mut other = whole.clone();
            other[2] = spoiled;
            assert!(good(&other, 5).is_err());
        }
    }
}
