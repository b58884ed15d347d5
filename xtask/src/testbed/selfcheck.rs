//! The step that proves the bed: a guest boots, finds QEMU's own disk and writes a file system on
//! it. What fails later with our device then points at our device.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::TestBed;
use super::step::{Findings, Step};
use crate::guest::{Guest, SERIAL_LOG, Serial};

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
";

/// A boot with QEMU's own virtio-blk device.
pub struct SelfCheck<'a> {
    /// All steps before this one.
    pub bed: &'a TestBed,
}

impl Step for SelfCheck<'_> {
    const NAME: &'static str = "self-check";

    fn recipe(&self) -> String {
        let bed = self.bed;
        format!(
            "QEMU {}, Linux {}, busybox {}, e2fsprogs {}: {SCRIPT}",
            bed.qemu_version, bed.kernel_release, bed.busybox_version, bed.e2fsprogs_version
        )
    }

    fn build(&self, dir: &Path) -> Result<()> {
        let image = dir.join("disk.img");
        fs::File::create(&image)?.set_len(64 << 20)?;
        let disk = serde_json::json!({"driver": "file", "node-name": "d0", "filename": image});
        let mut guest = Guest::new(self.bed, SCRIPT);
        guest.ext4()?.qemu([
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

    fn check(&self, dir: &Path) -> Result<Findings> {
        let path = dir.join(SERIAL_LOG);
        let text = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
        let serial = Serial::new(&text);
        serial.expect("kernel", &self.bed.kernel_release)?;
        serial.expect("compared", "equal")?;
        Ok(Findings::default().with("guest", "wrote and read back through QEMU's own virtio-blk"))
    }
}
