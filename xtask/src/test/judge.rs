//! The part that judges a driver which others wrote: Linux drives the function that watches it.
//!
//! Each kernel meets several plans, and what it did under all of them together counts. What it is
//! known to do otherwise stands in a profile, with the reason.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use super::served::Served;
use crate::figures;
use crate::guest::Guest;
use crate::testbed::{self, Platform, TestBed};
use crate::workspace::Workspace;

const AT_MOST: Duration = Duration::from_secs(120);
const DISK: u64 = 64 << 20;
/// Clauses that each kernel exercises at least.
const AT_LEAST: usize = 60;
/// The plans for a disk, by name.
const DISKS: [&str; 8] = [
    "watch",
    "plain-rings",
    "notify-data",
    "both-data",
    "in-order",
    "packed",
    "packed-plain",
    "transitional",
];
const ENTROPY: &str = "entropy";
/// What Linux is known to do otherwise.
const PROFILE: &str = include_str!("judge/linux.toml");

/// Reads, writes, flushes and discards, and takes the device from its driver and gives it back.
const DISK_WORK: &str = "\
test -b /dev/vda
cat /sys/block/vda/serial
mkfs.ext4 -q -F /dev/vda
mount -t ext4 -o discard /dev/vda /mnt
dd if=/dev/urandom of=/mnt/file bs=64k count=32 conv=fsync
rm /mnt/file
sync
umount /mnt
dd if=/dev/vda of=/dev/null bs=128k count=64 iflag=direct
device=$(basename \"$(readlink /sys/block/vda/device)\")
echo $device > /sys/bus/virtio/drivers/virtio_blk/unbind
echo $device > /sys/bus/virtio/drivers/virtio_blk/bind
test -b /dev/vda
dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct
fact done yes
";
const ENTROPY_WORK: &str = "\
dd if=/dev/hwrng of=/tmp/random bs=16 count=8
fact done yes
";

/// Boots each kernel under each plan.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let tidemark = workspace.tidemark()?;
    let (mut runs, mut least) = (Vec::new(), usize::MAX);
    for platform in bed.vfio_user_platforms() {
        let mut exercised = BTreeSet::new();
        for plan in DISKS.into_iter().chain([ENTROPY]) {
            let report = boot(&bed, platform, &tidemark, plan);
            let report = report.with_context(|| format!("{plan} on {}", platform.name()))?;
            exercised.extend(clauses(&report)?);
        }
        println!("{}: {} clauses exercised", platform.name(), exercised.len());
        least = least.min(exercised.len());
        runs.push(json!({
            "kernel": platform.kernel.release,
            "qemu": platform.qemu.version,
            "exercised": exercised,
        }));
    }
    ensure!(
        least >= AT_LEAST,
        "a kernel exercised {least} clauses; {AT_LEAST} were expected"
    );
    figures::keep(workspace, "judge", &json!({"runs": runs}))?;
    Ok(format!("{least} clauses exercised by each kernel"))
}

/// The clauses of a report whose situation arose.
fn clauses(report: &Value) -> Result<Vec<String>> {
    let entries = report["entries"].as_array().context("no entries")?;
    let arose = |entry: &&Value| entry["outcome"] != "not-exercised";
    Ok(entries
        .iter()
        .filter(arose)
        .filter_map(|entry| Some(entry["clause"].as_str()?.to_owned()))
        .collect())
}

/// One boot, and the judge's report on it. A violation that is not in the profile is an error.
fn boot(bed: &TestBed, platform: Platform<'_>, tidemark: &Path, plan: &str) -> Result<Value> {
    let dir = bed.run_dir("judge")?;
    let (disk, profile) = (dir.join("disk.img"), dir.join("linux.toml"));
    let report = dir.join("report.json");
    File::create(&disk)?.set_len(DISK)?;
    fs::write(&profile, PROFILE)?;
    let work = if plan == ENTROPY {
        ENTROPY_WORK
    } else {
        DISK_WORK
    };
    let mut guest = Guest::new(bed, platform, work);
    guest.ext4()?.modules(&["virtio_rng"])?;
    let sockets = tempfile::tempdir()?;
    let socket = sockets.path().join("judge.sock");
    let mut command = Command::new(tidemark);
    command
        .arg("judge")
        .arg("--serve")
        .arg(format!("vfio-user:{}", socket.display()))
        .args(["--plan", plan, "--level", "all", "--format", "json"])
        .arg("--disk")
        .arg(&disk)
        .arg("--profile")
        .arg(&profile)
        .arg("--output")
        .arg(&report);
    let judge = Served::spawn(&mut command)?;
    guest.vfio_user(&socket).watch(judge.process())?;
    let run = guest.boot(&dir, AT_MOST);
    let (run, _) = judge.finish_with(run).with_context(|| {
        let violations = fs::read_to_string(&report).unwrap_or_default();
        violations_of(&violations)
    })?;
    run.serial.expect("done", "yes")?;
    let report = serde_json::from_str(&fs::read_to_string(&report)?)?;
    fs::remove_dir_all(&dir)?;
    Ok(report)
}

/// What a report has of violations, one a line.
fn violations_of(report: &str) -> String {
    let report: Value = serde_json::from_str(report).unwrap_or_default();
    let entries = report["entries"].as_array().cloned().unwrap_or_default();
    let failed = entries.iter().filter(|entry| entry["outcome"] == "fail");
    failed
        .map(|entry| format!("{} {}: {}\n", entry["clause"], entry["case"], entry["saw"]))
        .collect()
}
