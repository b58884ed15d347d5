//! The part that is a real guest: stock Debian makes a file system on our disk and copies a tree
//! onto it; then the host checks the file system and compares every file.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Options;
use super::served::Served;
use super::tree::{self, Totals};
use crate::figures;
use crate::guest::Guest;
use crate::process;
use crate::testbed::{self, TestBed};
use crate::workspace::Workspace;

/// Some 24 MiB, and what it grows to in the long variant.
const FILES: usize = 300;
const FILES_FULL: usize = 1500;
const AT_LEAST: u64 = 20 << 20;
const AT_MOST: Duration = Duration::from_secs(180);
const AT_MOST_FULL: Duration = Duration::from_secs(600);
/// What the guest must have found: the kernel's drivers of the PCI function and of the virtio
/// device on it, and the identity of a modern virtio-blk function, which QEMU's own disk lacks.
const FOUND: [(&str, &str); 3] = [
    ("pci_driver", "virtio-pci"),
    ("driver", "virtio_blk"),
    ("pci_id", "0x1af4:0x1042"),
];

const PREPARE: &str = "\
test -b /dev/vda
fact driver \"$(basename \"$(readlink /sys/block/vda/device/driver)\")\"
fact pci_driver \"$(basename \"$(readlink /sys/block/vda/device/../driver)\")\"
fact pci_id \"$(cat /sys/block/vda/device/../vendor):$(cat /sys/block/vda/device/../device)\"
mkfs.ext4 -q -F /dev/vda
mount -t ext4 /dev/vda /mnt
cp -a /tree/. /mnt/
";
/// The caches are dropped, so that what is verified comes from the device and not from memory.
const VERIFY: &str = "\
sync
fact sparse_blocks \"$(stat -c %b /mnt/sparse)\"
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
mount -t ext4 -o ro /dev/vda /mnt
cd /mnt
sha256sum -c /sums > /tmp/verified || { grep -v ': OK$' /tmp/verified; false; }
fact verified \"$(wc -l < /tmp/verified)\"
cd /
umount /mnt
";

/// Boots the guest on the device and judges everything that came of it.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let tidemark = workspace.tidemark()?;
    let dir = bed.run_dir("guest-disk")?;
    let began = Instant::now();

    let (files, at_most) = if options.full {
        (FILES_FULL, AT_MOST_FULL)
    } else {
        (FILES, AT_MOST)
    };
    let source = dir.join("source");
    tree::make(&source, files)?;
    let disk = dir.join("disk.img");
    File::create(&disk)?.set_len(512 << 20)?;

    let [platform, _] = bed.vfio_user_platforms();
    let mut guest = Guest::new(&bed, platform, &script());
    guest.ext4()?.tree("/tree", &source)?;
    for (index, piece) in tree::sparse_pieces().into_iter().enumerate() {
        guest.bytes(&format!("/pieces/{index}"), piece);
    }
    tree::make_sparse(&source.join("sparse"))?;
    guest.bytes("/sums", sums(&source)?.into_bytes());

    // A socket's path is limited to 108 bytes, which a deep workspace would exceed.
    let sockets = tempfile::tempdir()?;
    let socket = sockets.path().join("disk.sock");
    let device = Served::vfio_user(&tidemark, &socket, &disk)?;
    guest.vfio_user(&socket).watch(device.process())?;
    let run = guest.boot(&dir, at_most);
    // What the device says at its end explains a failed guest, so both are awaited.
    let report = device.finish();
    let run = match (run, &report) {
        (Err(guest), Err(device)) => {
            return Err(guest.context(format!("the device failed too: {device:#}")));
        }
        (run, _) => run?,
    };
    let report = report?;
    let requests = report.get("requests").and_then(serde_json::Value::as_u64);
    let requests =
        requests.with_context(|| format!("the device reported no `requests` in {report}"))?;
    ensure!(
        requests > 0,
        "the device served no request: the guest used another disk"
    );

    for (fact, expected) in FOUND {
        run.serial.expect(fact, expected)?;
    }
    let blocks: u64 = run.serial.fact("sparse_blocks")?.parse()?;
    ensure!(
        blocks * 512 < tree::SPARSE_LENGTH / 2,
        "the sparse file took {blocks} sectors"
    );

    let totals = compare(&bed, &dir, &disk, &source)?;
    run.serial.expect("verified", &totals.files.to_string())?;
    ensure!(
        totals.bytes >= AT_LEAST,
        "only {} bytes were compared",
        totals.bytes
    );
    let figures = serde_json::json!({
        "kernel": platform.kernel.release,
        "qemu": platform.qemu.version,
        "seconds": began.elapsed().as_secs_f64(),
        "guest_seconds": run.seconds,
        "requests": requests,
        "entries": totals.entries,
        "files": totals.files,
        "bytes": totals.bytes,
    });
    figures::keep(workspace, "guest", &figures)?;
    fs::remove_dir_all(&dir)?;
    Ok(format!(
        "{requests} requests, {} files and {} MiB equal",
        totals.files,
        totals.bytes >> 20
    ))
}

/// The guest's work, with the sparse file made in place: an archive has no holes.
fn script() -> String {
    let mut script = format!("{PREPARE}truncate -s {} /mnt/sparse\n", tree::SPARSE_LENGTH);
    for (index, (offset, _)) in tree::SPARSE_PIECES.iter().enumerate() {
        script.push_str(&format!(
            "dd if=/pieces/{index} of=/mnt/sparse bs=512 seek={} conv=notrunc\n",
            offset / 512
        ));
    }
    script + VERIFY
}

/// The checksums of all files, as `sha256sum -c` reads them.
fn sums(source: &Path) -> Result<String> {
    let mut command = std::process::Command::new("find");
    command
        .args([".", "-type", "f", "-exec", "sha256sum", "{}", "+"])
        .current_dir(source);
    process::capture(&mut command)
}

/// Checks the file system and compares its files with the source.
fn compare(bed: &TestBed, dir: &Path, disk: &Path, source: &Path) -> Result<Totals> {
    let mut fsck = bed.tools.command("sbin/e2fsck")?;
    process::capture(fsck.arg("-fn").arg(disk)).context("the guest's file system is damaged")?;
    let copy = dir.join("copy");
    fs::create_dir(&copy)?;
    let mut debugfs = bed.tools.command("sbin/debugfs")?;
    // Its own folder is the destination: a path in the request would be split at spaces.
    debugfs
        .current_dir(&copy)
        .args(["-R", "rdump / ."])
        .arg(disk);
    process::capture(&mut debugfs)?;
    tree::compare(source, &copy)
}
