//! `tidemark judge` from outside: a driver as its command, and nobody.

use serde_json::Value;
use std::fs;
use std::process::{Command, Output};

fn judge(socket: &str, more: &[&str], driver: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidemark"))
        .args(["judge", "--serve", &format!("vfio-user:{socket}")])
        .args(more)
        .arg("--")
        .args(driver)
        .output()
        .unwrap()
}

#[test]
fn our_driver_keeps_what_it_meets() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (socket, report) = (path("judge.sock"), path("report.json"));
    let target = format!("vfio-user:{socket}");
    let plans = ["watch", "packed", "zoned", "needs-reset"].map(|plan| ["--plan", plan]);
    let more = [
        &plans.concat()[..],
        &["--level", "all", "--format", "json", "--output", &report],
    ]
    .concat();
    let tidemark = env!("CARGO_BIN_EXE_tidemark");
    let output = judge(&socket, &more, &[tidemark, "suspend", "--target", &target]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
    let entries = report["entries"].as_array().unwrap();
    let outcome = |rule: &str| {
        let entry = entries.iter().find(|entry| entry["case"] == rule);
        entry.unwrap()["outcome"].as_str().unwrap().to_owned()
    };
    for rule in [
        "waits_for_the_reset",
        "verifies_the_suspend",
        "aligns_packed_rings",
        "does_not_drive_zones_unknowingly",
    ] {
        assert_eq!(outcome(rule), "pass", "{rule}");
    }
    assert_eq!(outcome("zone_writes_fit"), "not-exercised");
}

#[test]
fn a_driver_that_never_came_is_no_good_driver() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("judge.sock").display().to_string();
    let output = judge(&socket, &[], &["true"]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("nobody drove the function"), "{said}");
}
