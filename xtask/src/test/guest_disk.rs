//! The part that is a real guest: stock Debian makes a file system on our disk and copies a tree
//! onto it; then the host checks the file system and compares every file. With both kernels, and
//! with an IOMMU in the guest's machine, which maps and unmaps memory around every request. And with
//! administration queues on offer: a kernel that knows them uses them, one that does not is none the
//! wiser. And over packed queues.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use super::backend::RING_PACKED;
use super::pci_config::{self, Capabilities, TRACKER};
use super::served::Served;
use super::tree::{self, Totals};
use crate::figures;
use crate::guest::Guest;
use crate::process;
use crate::testbed::{self, Platform, TestBed};
use crate::workspace::Workspace;

/// Some 24 MiB, what it grows to in the long variant, and what an IOMMU's maps leave time for.
const FILES: usize = 300;
const FILES_FULL: usize = 1500;
const FILES_FEW: usize = 40;
const AT_LEAST: u64 = 20 << 20;
const AT_MOST: Duration = Duration::from_secs(180);
const AT_MOST_FULL: Duration = Duration::from_secs(600);
/// Maps that an IOMMU run makes at least, and that another makes at most: the machine's memory is
/// mapped in a few pieces, some of them several times while the firmware shadows its ROM.
const MAPS_IOMMU: u64 = 2000;
const MAPS_PLAIN: u64 = 100;
/// VIRTIO_F_ACCESS_PLATFORM and VIRTIO_F_ADMIN_VQ, as places in what Linux prints of the features it
/// took.
const ACCESS_PLATFORM: usize = 33;
const ADMIN_VQ: usize = 41;
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
fact features \"$(cat /sys/block/vda/device/features)\"
fact iommu \"$(cat /sys/block/vda/device/../iommu_group/type || echo none)\"
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

/// What a guest's device or machine has beside the usual.
#[derive(Clone, Copy, PartialEq, Eq)]
enum With {
    Nothing,
    Iommu,
    AdminQueues,
    PackedQueues,
}

impl With {
    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Iommu => "IOMMU",
            Self::AdminQueues => "administration queues",
            Self::PackedQueues => "packed queues",
        }
    }
}

/// One guest.
struct Case<'a> {
    platform: Platform<'a>,
    with: With,
    files: usize,
    at_most: Duration,
}

/// Boots each guest on the device and judges everything that came of it.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let tidemark = workspace.tidemark()?;
    let (mut runs, mut requests, mut bytes) = (Vec::new(), 0, 0);
    let all = [
        With::Nothing,
        With::Iommu,
        With::AdminQueues,
        With::PackedQueues,
    ];
    for with in all {
        for platform in bed.vfio_user_platforms() {
            let (files, at_most) = match (options.full, with) {
                (true, With::Nothing) => (FILES_FULL, AT_MOST_FULL),
                (true, _) => (FILES, AT_MOST_FULL),
                (false, With::Nothing) => (FILES, AT_MOST),
                (false, _) => (FILES_FEW, AT_MOST),
            };
            let case = Case {
                platform,
                with,
                files,
                at_most,
            };
            let figures = case.run(&bed, &tidemark);
            let figures = figures.with_context(|| {
                format!("the guest on {}, with {}", platform.name(), with.name())
            })?;
            requests += figures["requests"].as_u64().unwrap_or_default();
            bytes += figures["bytes"].as_u64().unwrap_or_default();
            runs.push(figures);
        }
    }
    let shown = format!(
        "{} guests, {requests} requests, {} MiB of files equal",
        runs.len(),
        bytes >> 20
    );
    figures::keep(workspace, "guest", &json!({"runs": runs}))?;
    Ok(shown)
}

impl Case<'_> {
    fn run(&self, bed: &TestBed, tidemark: &Path) -> Result<Value> {
        let began = Instant::now();
        let dir = bed.run_dir("guest-disk")?;
        let source = dir.join("source");
        tree::make(&source, self.files)?;
        let disk = dir.join("disk.img");
        File::create(&disk)?.set_len(512 << 20)?;

        let mut guest = Guest::new(bed, self.platform, &script());
        guest.ext4()?.tree("/tree", &source)?;
        for (index, piece) in tree::sparse_pieces().into_iter().enumerate() {
            guest.bytes(&format!("/pieces/{index}"), piece);
        }
        tree::make_sparse(&source.join("sparse"))?;
        guest.bytes("/sums", sums(&source)?.into_bytes());
        if self.with == With::Iommu {
            guest.iommu();
        }
        let options: &[&str] = match self.with {
            With::AdminQueues => &["--admin-queues", "2"],
            With::PackedQueues => &["--ring", "packed"],
            With::Nothing | With::Iommu => &[],
        };

        // A socket's path is limited to 108 bytes, which a deep workspace would exceed.
        let sockets = tempfile::tempdir()?;
        let socket = sockets.path().join("disk.sock");
        let device = Served::vfio_user(tidemark, &socket, &disk, options)?;
        guest.vfio_user(&socket).watch(device.process())?;
        let run = guest.boot(&dir, self.at_most);
        let (run, report) = device.finish_with(run)?;
        let counted = |name: &str| {
            let count = report.get(name).and_then(Value::as_u64);
            count.with_context(|| format!("the device reported no `{name}` in {report}"))
        };

        let requests = counted("requests")?;
        ensure!(
            requests > 0,
            "the device served no request: the guest used another disk"
        );
        for (fact, expected) in FOUND {
            run.serial.expect(fact, expected)?;
        }
        let features = run.serial.fact("features")?;
        ensure!(
            features.as_bytes().get(ACCESS_PLATFORM) == Some(&b'1'),
            "the guest's addresses need not be the device's: it took the features {features}"
        );
        let packed = features.as_bytes().get(RING_PACKED) == Some(&b'1');
        ensure!(
            packed == (self.with == With::PackedQueues),
            "packed queues were taken: {packed}; it took the features {features}"
        );
        let seen = Capabilities::parse(run.serial.fact("config")?)?;
        ensure!(
            seen.virtio.contains(&TRACKER),
            "the guest does not see the tracker's capability: {seen:?}"
        );
        let (maps, unmaps) = (counted("dma_maps")?, counted("dma_unmaps")?);
        let (domain, mapped) = match self.with {
            With::Iommu => ("DMA", maps >= MAPS_IOMMU && unmaps >= MAPS_IOMMU),
            _ => ("none", maps <= MAPS_PLAIN),
        };
        run.serial.expect("iommu", domain)?;
        ensure!(
            mapped,
            "the device was told of {maps} maps and {unmaps} unmaps, with an IOMMU domain {domain}"
        );
        let commands = self.judge_commands(features, &report)?;
        let blocks: u64 = run.serial.fact("sparse_blocks")?.parse()?;
        ensure!(
            blocks * 512 < tree::SPARSE_LENGTH / 2,
            "the sparse file took {blocks} sectors"
        );

        let totals = compare(bed, &dir, &disk, &source)?;
        run.serial.expect("verified", &totals.files.to_string())?;
        ensure!(
            totals.bytes >= AT_LEAST,
            "only {} bytes were compared",
            totals.bytes
        );
        fs::remove_dir_all(&dir)?;
        Ok(json!({
            "kernel": self.platform.kernel.release,
            "qemu": self.platform.qemu.version,
            "with": self.with.name(),
            "seconds": began.elapsed().as_secs_f64(),
            "guest_seconds": run.seconds,
            "requests": requests,
            "interrupts": counted("interrupts")?,
            "dma_maps": maps,
            "dma_unmaps": unmaps,
            "admin_commands": commands,
            "entries": totals.entries,
            "files": totals.files,
            "bytes": totals.bytes,
        }))
    }
}

impl Case<'_> {
    /// What the device answered to administration commands. Linux waits for each while it looks for
    /// its devices, so one that was not answered would have held the guest up; but it has to have
    /// sent some, or nothing is shown.
    fn judge_commands(&self, features: &str, report: &Value) -> Result<Value> {
        let commands = &report["admin_commands"];
        let answers = commands.as_array();
        let answers = answers.with_context(|| format!("no `admin_commands` in {report}"))?;
        let taken = features.as_bytes().get(ADMIN_VQ) == Some(&b'1');
        let knows = knows_admin_queues(&self.platform.kernel.release);
        ensure!(
            taken == (knows && self.with == With::AdminQueues),
            "administration queues were taken: {taken}; the kernel knows them: {knows}"
        );
        ensure!(
            taken != answers.is_empty(),
            "administration queues were taken: {taken}; answered was {commands}"
        );
        // It asks for what an owner of virtual functions can do. This function is none, and has to
        // say so; the kernel then leaves it at that.
        let right = |answer: &Value| {
            answer["command"] == "LIST_QUERY"
                && answer["status"] == "EINVAL"
                && answer["qualifier"] == "INVALID_GROUP"
        };
        ensure!(answers.iter().all(right), "answered was {commands}");
        if taken {
            println!("{}: answered {commands}", self.platform.name());
        }
        Ok(commands.clone())
    }
}

/// Whether a kernel of this release has a driver for administration queues, which came with 6.8.
fn knows_admin_queues(release: &str) -> bool {
    let mut numbers = release
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(8))
}

/// The guest's work, with the sparse file made in place: an archive has no holes.
fn script() -> String {
    let mut script = format!(
        "{}{PREPARE}truncate -s {} /mnt/sparse\n",
        pci_config::REPORT,
        tree::SPARSE_LENGTH
    );
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
