//! The step that proves the bed: with each QEMU, each kernel boots, finds QEMU's own disk, writes
//! a file system on it and inserts what VFIO needs. What fails later with our device then points
//! at our device.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::step::{Findings, Step};
use super::{Platform, TestBed};
use crate::guest::{Guest, SERIAL_LOG, Serial, VFIO_MODULES};

/// Writes, unmounts and reads back.
const SCRIPT: &str = "\
mkfs.ext4 -q -F /dev/vda
mount -t ext4 /dev/vda /mnt
cp /bin/busybox /mnt/copy
umount /mnt
mount -t ext4 -o ro /dev/vda /mnt
cmp /bin/busybox /mnt/copy
umount /mnt
fact compared equal
test -d /sys/bus/pci/drivers/vfio-pci
fact vfio there
";

/// A boot with QEMU's own virtio-blk device, on every platform.
pub struct SelfCheck<'a> {
    /// All steps before this one.
    pub bed: &'a TestBed,
}

impl Step for SelfCheck<'_> {
    fn name(&self) -> &'static str {
        "self-check"
    }

    fn recipe(&self) -> String {
        let bed = self.bed;
        let platforms = bed.platforms().map(|platform| platform.name());
        format!(
            "{}, busybox {}, e2fsprogs {}: {SCRIPT}",
            platforms.join(", "),
            bed.busybox_version,
            bed.e2fsprogs_version
        )
    }

    fn build(&self, dir: &Path) -> Result<()> {
        for platform in self.bed.platforms() {
            let dir = dir.join(platform.name());
            fs::create_dir(&dir)?;
            self.boot(platform, &dir)
                .with_context(|| format!("the guest on {}", platform.name()))?;
        }
        Ok(())
    }

    fn check(&self, dir: &Path) -> Result<Findings> {
        for platform in self.bed.platforms() {
            let path = dir.join(platform.name()).join(SERIAL_LOG);
            let text = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
            let serial = Serial::new(&text);
            serial.expect("kernel", &platform.kernel.release)?;
            serial.expect("compared", "equal")?;
            serial.expect("vfio", "there")?;
        }
        Ok(Findings::default().with(
            "guests",
            format!(
                "{} wrote and read back through QEMU's own virtio-blk",
                self.bed.platforms().len()
            ),
        ))
    }
}

impl SelfCheck<'_> {
    fn boot(&self, platform: Platform<'_>, dir: &Path) -> Result<()> {
        let image = dir.join("disk.img");
        fs::File::create(&image)?.set_len(64 << 20)?;
        let disk = serde_json::json!({"driver": "file", "node-name": "d0", "filename": image});
        let mut guest = Guest::new(self.bed, platform, SCRIPT);
        guest.ext4()?.modules(VFIO_MODULES)?.arguments([
            "-blockdev",
            &disk.to_string(),
            "-device",
            "virtio-blk-pci,drive=d0",
        ]);
        let run = guest.boot(dir, Duration::from_secs(120))?;
        run.serial.expect("compared", "equal")?;
        fs::remove_file(image)?;
        Ok(())
    }
}
