//! The part that damages stores and kills their processes, wherever they are: in a folder, in Debian's
//! etcd, and in an S3 server that others wrote.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use crate::figures;
use crate::process;
use crate::testbed;
use crate::workspace::Workspace;

/// Processes that are killed in a folder, and in each other place: who dies with etcd's lock keeps it for
/// seconds.
const KILLS: [u64; 2] = [100, 40];
const KILLS_FULL: [u64; 2] = [1000, 1000];
const PLACES: [&str; 4] = ["folder", "etcd", "s3", "etcd_and_s3"];
const FEATURES: [&str; 3] = ["--workspace", "--features", "cli/etcd,cli/s3"];

/// All tests of the store with all its clients. The long variant also lints what is built for those
/// alone.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let stores = testbed::stores(workspace)?;
    let with_clients = |what: &str| {
        let mut command = workspace.cargo();
        command
            .arg(what)
            .args(FEATURES)
            .env("PROTOC", &stores.protoc)
            .env("PROTOC_INCLUDE", &stores.protoc_include);
        command
    };
    if options.full {
        let mut lints = with_clients("clippy");
        process::stream(lints.args(["--all-targets", "--", "-D", "warnings"]))?;
    }
    let kills = if options.full { KILLS_FULL } else { KILLS };
    let mut command = with_clients("test");
    command
        .args(["--test", "store", "--", "--nocapture"])
        .env("TIDEMARK_ETCD", &stores.etcd)
        .env("TIDEMARK_S3", &stores.s3)
        .env("AWS_ACCESS_KEY_ID", "tidemark")
        .env("AWS_SECRET_ACCESS_KEY", "known to nobody else")
        .env("TIDEMARK_STORE_KILLS", kills[0].to_string())
        .env("TIDEMARK_STORE_KILLS_ELSEWHERE", kills[1].to_string());
    if options.full {
        command.env("TIDEMARK_STORE_ALL_BYTES", "1");
    }
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
    good(&rows, kills)?;
    let versions = json!({"etcd": stores.etcd_version, "s3": stores.s3_version});
    figures::keep(
        workspace,
        "store",
        &json!({"versions": versions, "places": rows}),
    )?;
    Ok(format!(
        "{} processes killed before their end in a folder, {} each with etcd {}, with {} and with both; \
         nothing named damaged",
        kills[0], kills[1], stores.etcd_version, stores.s3_version
    ))
}

/// Whether every place had its kills, and its controls were seen.
fn good(rows: &[Value], kills: [u64; 2]) -> Result<()> {
    for (number, place) in PLACES.into_iter().enumerate() {
        let row = rows.iter().find(|row| row["place"] == place);
        let row = row.with_context(|| format!("no figures of {place}"))?;
        for (name, expected) in [("kills", kills[number.min(1)]), ("damaged", 0)] {
            let got = &row[name];
            ensure!(
                *got == expected,
                "{place}: expected {expected} {name}, got {got}"
            );
        }
        let seen = row["controls_seen"].as_u64().unwrap_or(0);
        ensure!(seen > 0, "{place}: no control was seen");
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
        let row = |place: &str, kills: u64, damaged: u64, seen: u64| json!({"place": place, "kills": kills, "damaged": damaged, "controls_seen": seen});
        let mut whole: Vec<Value> = PLACES.iter().map(|place| row(place, 5, 0, 1)).collect();
        whole[0] = row("folder", 9, 0, 1);
        good(&whole, [9, 5]).unwrap();
        assert!(good(&whole, [9, 6]).is_err());
        assert!(good(&whole, [5, 5]).is_err());
        assert!(good(&whole[1..], [9, 5]).is_err());
        for spoiled in [row("s3", 4, 0, 1), row("s3", 5, 1, 1), row("s3", 5, 0, 0)] {
            let mut other = whole.clone();
            other[2] = spoiled;
            assert!(good(&other, [9, 5]).is_err());
        }
    }
}
