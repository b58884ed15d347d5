//! Drivers that others wrote, judged by `tidemark judge`: Linux drives the function that watches it,
//! under one plan after the other, and so does the firmware.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Programs, check};
use crate::guest::Guest;
use crate::process::Watched;
use crate::test::guest_boot;
use crate::test::served::Served;
use crate::testbed::{Kernel, Platform, TestBed};

/// One boot under one plan takes no longer.
const AT_MOST: Duration = Duration::from_secs(180);
const DISK: u64 = 64 << 20;
/// Linux leaves the device to the firmware.
const NO_VIRTIO: &str = "initcall_blacklist=virtio_pci_driver_init";

/// Plans of a disk that Linux can work with. Their layouts of capabilities keep the firmware away.
const DISKS: [&str; 9] = [
    "watch",
    "plain-rings",
    "notify-data",
    ONE_VECTOR,
    "in-order",
    "packed",
    "packed-plain",
    "transitional",
    "admin",
];
const ENTROPY: &str = "entropy";
/// A disk with the layout that the firmware knows.
const FIRMWARE: &str = "plain-layout";

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
/// With one MSI-X vector Linux falls back on INTx, which the function does not have, and gives up.
const ONE_VECTOR: &str = "both-data";
const NO_DISK: &str = "\
test ! -e /dev/vda
fact done yes
";
const FIRMWARE_WORK: &str = "\
fact command_line \"$(cat /proc/cmdline)\"
fact done yes
";

/// Whose driver is judged.
#[derive(Clone, Copy)]
pub enum Driver {
    /// Linux's, of this release's kernel.
    Linux(fn(&TestBed) -> &Kernel),
    /// SeaBIOS's, of the QEMU that speaks vfio-user.
    Firmware,
    /// This project's, which is a client of the judge's socket.
    Ours,
}

/// Judges a driver under all its plans. Gives the report and the seconds that it took.
pub fn judge(programs: &Programs<'_>, id: &str, driver: Driver) -> Result<(Value, f64)> {
    let dir = programs.bed.run_dir(&format!("judge-{id}"))?;
    let sockets = tempfile::tempdir()?;
    let socket = sockets.path().join("judge.sock");
    let output = dir.join("report.json");
    let mut command = Command::new(&programs.tidemark);
    command
        .arg("judge")
        .arg("--serve")
        .arg(format!("vfio-user:{}", socket.display()))
        .args(["--level", "all", "--format", "json", "--output"])
        .arg(&output);
    let began = Instant::now();
    let (status, said) = match driver {
        Driver::Ours => beside(programs, command, &socket, &dir)?,
        _ => in_guests(programs, driver, command, &socket, &dir)?,
    };
    check(status.code().unwrap_or(-1), &said)?;
    let text = fs::read_to_string(&output)
        .with_context(|| format!("no report in {}", output.display()))?;
    let seconds = began.elapsed().as_secs_f64();
    fs::remove_dir_all(&dir)?;
    Ok((serde_json::from_str(&text)?, seconds))
}

/// Our driver, started by the judge once for each plan.
fn beside(
    programs: &Programs<'_>,
    mut command: Command,
    socket: &Path,
    dir: &Path,
) -> Result<(ExitStatus, String)> {
    let log = dir.join("said.log");
    let said = File::create(&log)?;
    command
        .args(["--plan", "all", "--"])
        .arg(&programs.tidemark);
    command
        .args(["suspend", "--target"])
        .arg(format!("vfio-user:{}", socket.display()))
        .stdout(said.try_clone()?)
        .stderr(said);
    let status = Watched::spawn(&mut command)?.wait(AT_MOST)?;
    let status = status.context("it takes too long, and was ended")?;
    Ok((status, fs::read_to_string(&log)?))
}

/// One boot for each plan, all of them at the same judge.
fn in_guests(
    programs: &Programs<'_>,
    driver: Driver,
    mut command: Command,
    socket: &Path,
    dir: &Path,
) -> Result<(ExitStatus, String)> {
    let bed = programs.bed;
    let (kernel, plans) = match driver {
        Driver::Linux(kernel) => (kernel(bed), [&DISKS[..], &[ENTROPY]].concat()),
        _ => (&bed.kernel_bookworm, vec![FIRMWARE]),
    };
    let platform = Platform {
        qemu: &bed.qemu_backports,
        kernel,
    };
    let guests = plans
        .into_iter()
        .map(|plan| Ok((plan, guest(programs, platform, plan)?)))
        .collect::<Result<Vec<_>>>()?;
    let disk = dir.join("disk.img");
    match guests.first() {
        Some((FIRMWARE, guest)) => drop(guest_boot::disk(bed, guest, dir)?),
        _ => File::create(&disk)?.set_len(DISK)?,
    }
    command.arg("--disk").arg(&disk);
    for (plan, _) in &guests {
        command.args(["--plan", plan]);
    }
    let serving = Served::spawn(&mut command)?;
    for (number, (plan, mut guest)) in guests.into_iter().enumerate() {
        if number > 0 {
            serving.listens()?;
        }
        boot(&mut guest, dir, socket, &serving).with_context(|| format!("plan {plan}"))?;
    }
    let (status, _, said) = serving.end()?;
    Ok((status, said))
}

fn guest<'a>(programs: &Programs<'a>, platform: Platform<'a>, plan: &str) -> Result<Guest<'a>> {
    let work = match plan {
        FIRMWARE => FIRMWARE_WORK,
        ENTROPY => ENTROPY_WORK,
        ONE_VECTOR => NO_DISK,
        _ => DISK_WORK,
    };
    let mut guest = Guest::new(programs.bed, platform, work);
    match plan {
        FIRMWARE => guest.kernel_arguments(NO_VIRTIO).firmware(),
        _ => guest.ext4()?.modules(&["virtio_rng"])?,
    };
    Ok(guest)
}

fn boot(guest: &mut Guest<'_>, dir: &Path, socket: &Path, serving: &Served) -> Result<()> {
    guest.vfio_user(socket).watch(serving.process())?;
    let run = guest.boot(dir, AT_MOST)?;
    run.serial.expect("done", "yes")
}
