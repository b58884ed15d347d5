//! The part that kills processes of the store at any moment, wherever the store is: in a folder, and in
//! the long variant in Debian's etcd and in an S3 server that others wrote.

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

/// Kills the store's processes in a folder; the long variant also where other programs keep names and
/// bodies, which takes minutes to build, and lints what is built for those alone.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let mut command = workspace.cargo();
    command.args(["test", "--test", "store"]);
    let (kills, places, versions) = if options.full {
        let stores = testbed::stores(workspace)?;
        let mut lints = workspace.cargo();
        lints.args(["clippy", "-p", "migration", "-p", "cli", "--all-targets"]);
        command.args(["-p", "cli"]);
        for command in [&mut lints, &mut command] {
            command
                .args(FEATURES)
                .env("PROTOC", &stores.protoc)
                .env("PROTOC_INCLUDE", &stores.protoc_include);
        }
        process::stream(lints.args(["--", "-D", "warnings"]))?;
        command
            .env("TIDEMARK_ETCD", &stores.etcd)
            .env("TIDEMARK_S3", &stores.s3)
            .env("AWS_ACCESS_KEY_ID", "tidemark")
            .env("AWS_SECRET_ACCESS_KEY", "known to nobody else");
        let versions = json!({"etcd": stores.etcd_version, "s3": stores.s3_version});
        (KILLS_FULL, &PLACES[..], versions)
    } else {
        command.arg("--workspace");
        (KILLS, &PLACES[..1], Value::Null)
    };
    command
        .args(["--", "--nocapture"])
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
    let in_time = good(&rows, places, kills)?;
    figures::keep(
        workspace,
        "store",
        &json!({"versions": versions, "places": rows}),
    )?;
    Ok(format!(
        "{kills} processes killed in {}, {in_time} of them before their end; nothing named damaged",
        places.join(", ")
    ))
}

/// How many died before their end, if every place had its kills.
fn good(rows: &[Value], places: &[&str], kills: u64) -> Result<u64> {
    let mut in_time = 0;
    for place in places {
        let row = rows.iter().find(|row| row["place"] == *place);
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
        assert_eq!(good(&whole, &PLACES, 5).unwrap(), 8);
        assert!(good(&whole, &PLACES, 6).is_err());
        assert!(good(&whole[1..], &PLACES, 5).is_err());
        for spoiled in [row("s3", 4, 2, 0), row("s3", 5, 0, 0), row("s3", 5, 2, 1)] {
            let mut other = whole.clone();
            other[2] = spoiled;
            assert!(good(&other, &PLACES, 5).is_err());
        }
    }
}
