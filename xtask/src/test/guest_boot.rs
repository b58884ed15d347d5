//! The part that is a machine's whole way up: the firmware finds our disk, boots a loader from it,
//! and Linux comes up without a kernel on QEMU's command line.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Options;
use super::pci_config::{self, Capabilities, PASID, TRACKER};
use super::served::Served;
use crate::figures;
use crate::guest::{BLOCK_MODULES, Guest};
use crate::process;
use crate::testbed::{self, LAUNCHERS, Platform, TestBed};
use crate::workspace::Workspace;

const AT_MOST: Duration = Duration::from_secs(180);
const DISK: u64 = 64 << 20;
/// What Linux reads of the disk: little against what the firmware must have read.
const READ: usize = 1 << 20;

/// Boots each kernel from our disk.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let tidemark = workspace.tidemark()?;
    let mut runs = Vec::new();
    for platform in bed.vfio_user_platforms() {
        let run = boot(&bed, platform, &tidemark);
        runs.push(run.with_context(|| format!("booting on {}", platform.name()))?);
    }
    let shown = format!("{} boots by the firmware's driver", runs.len());
    figures::keep(workspace, "boot", &json!({"runs": runs}))?;
    Ok(shown)
}

fn boot(bed: &TestBed, platform: Platform<'_>, tidemark: &Path) -> Result<serde_json::Value> {
    let dir = bed.run_dir("guest-boot")?;
    let script = format!(
        "fact command_line \"$(cat /proc/cmdline)\"\n\
         fact driver \"$(basename \"$(readlink /sys/block/vda/device/driver)\")\"\n\
         dd if=/dev/vda of=/tmp/start bs={READ} count=1 iflag=direct\n\
         fact start \"$(sha256sum /tmp/start | cut -d ' ' -f 1)\"\n\
         {}",
        pci_config::REPORT
    );
    let mut guest = Guest::new(bed, platform, &script);
    guest.modules(BLOCK_MODULES)?.firmware();
    let disk = disk(bed, &guest, &dir)?;
    let files = fs::metadata(dir.join("vmlinuz"))?.len() + fs::metadata(dir.join("initrd"))?.len();

    let sockets = tempfile::tempdir()?;
    let socket = sockets.path().join("disk.sock");
    // The PASID capability is announced too, to see whether QEMU lets the guest see it.
    let device = Served::vfio_user(tidemark, &socket, &disk, &["--pasid"])?;
    guest.vfio_user(&socket).watch(device.process())?;
    let run = guest.boot(&dir, AT_MOST);
    let (run, report) = device.finish_with(run)?;

    run.serial.expect("driver", "virtio_blk")?;
    let command_line = run.serial.fact("command_line")?;
    ensure!(
        command_line.contains("BOOT_IMAGE=vmlinuz"),
        "the kernel was not started by the loader on the disk, but with {command_line:?}"
    );
    let start = dir.join("start");
    fs::write(&start, &fs::read(&disk)?[..READ])?;
    let sum = process::capture(Command::new("sha256sum").arg(&start))?;
    let sum = sum.split(' ').next().unwrap_or_default();
    run.serial.expect("start", sum)?;
    let read = report["bytes_read"].as_u64().context("no `bytes_read`")?;
    ensure!(
        read >= files,
        "the device was read {read} bytes of, and kernel and initramfs on it have {files}"
    );
    let seen = Capabilities::parse(run.serial.fact("config")?)?;
    ensure!(
        seen.virtio.contains(&TRACKER),
        "the guest does not see the tracker's capability: {seen:?}"
    );
    let figures = json!({
        "kernel": platform.kernel.release,
        "qemu": platform.qemu.version,
        "seconds": run.seconds,
        "kernel_and_initramfs_bytes": files,
        "bytes_read": read,
        "requests": report["requests"],
        "resets": report["resets"],
        "config_bytes_seen": seen.bytes,
        "tracker_seen": true,
        "pasid_seen": seen.extended.contains(&PASID),
    });
    fs::remove_dir_all(&dir)?;
    Ok(figures)
}

/// A disk with one FAT file system over all of it and a loader in its first sector. It is made
/// without mounting anything.
pub fn disk(bed: &TestBed, guest: &Guest<'_>, dir: &Path) -> Result<PathBuf> {
    let file = |name: &str| dir.join(name);
    let arguments = guest.boot_files(&file("vmlinuz"), &file("initrd"))?;
    fs::write(
        file("syslinux.cfg"),
        format!(
            "DEFAULT linux\nLABEL linux\n KERNEL vmlinuz\n INITRD initrd\n APPEND {arguments}\n"
        ),
    )?;
    let disk = file("disk.img");
    File::create(&disk)?.set_len(DISK)?;
    let mtools = |name: &str| bed.tools.command_named("usr/bin/mtools", name);
    // The geometry that firmware makes up for a disk of this size.
    let format = format!("-T {} -h 255 -s 63 ::", DISK / 512);
    process::capture(
        mtools("mformat")?
            .arg("-i")
            .arg(&disk)
            .args(format.split(' ')),
    )?;
    let mut copy = mtools("mcopy")?;
    copy.arg("-i").arg(&disk);
    for name in ["vmlinuz", "initrd", "syslinux.cfg"] {
        copy.arg(file(name));
    }
    process::capture(copy.arg("::"))?;
    let mut install = bed.tools.command("usr/bin/syslinux")?;
    // It calls mtools by name.
    let path = std::env::var("PATH").unwrap_or_default();
    let launchers = bed.tools.root.join(LAUNCHERS);
    install.env("PATH", format!("{}:{path}", launchers.display()));
    process::capture(install.arg("--install").arg(&disk))?;
    Ok(disk)
}
