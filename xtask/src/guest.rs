//! Real guests: a stock kernel under QEMU with an init made for one test.
//!
//! A test gives a script and the files that it uses, adds devices to QEMU's command line, boots,
//! and judges what the script said over the serial line. Guests run under TCG: that `/dev/kvm`
//! opens proves nothing, and the same machine everywhere makes runs comparable.

mod archive;
mod modules;
mod serial;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{self, Watched};
use crate::testbed::TestBed;
use archive::Archive;
pub use modules::Modules;
pub use serial::Serial;

/// QEMU's program below the test bed's folder of it.
pub const QEMU: &str = "usr/bin/qemu-system-x86_64";
/// What a guest needs for an ext4 file system on a virtio disk. ext4 asks for the checksum by
/// name at mount time, which no dependency in `modules.dep` shows.
pub const BLOCK_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// The file that keeps what a guest said.
pub const SERIAL_LOG: &str = "serial.log";

const INIT: &str = include_str!("guest/init.sh");
const FACT: &str = "#!/bin/busybox sh\necho \"@$1=$2\"\n";
/// `init_on_alloc=0`: by Debian's default the CPU clears each page before the device writes it,
/// and so hides a device that does not mark. `panic=-1`: a guest that dies ends at once.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet init_on_alloc=0";
const MEMORY: &str = "512M";

/// A guest before its start.
pub struct Guest<'a> {
    bed: &'a TestBed,
    archive: Archive,
    qemu: Vec<OsString>,
}

/// A guest that ran to its end and reached the end of its script.
pub struct Run {
    /// What it said.
    pub serial: Serial,
    /// From QEMU's start to its end.
    pub seconds: f64,
}

impl<'a> Guest<'a> {
    /// A guest that runs the script with `sh -ex` as its only work. The script reports with
    /// `fact NAME VALUE`; the first command that fails ends the guest.
    pub fn new(bed: &'a TestBed, script: &str) -> Self {
        let mut archive = Archive::default();
        archive.device("/dev/console", (5, 1));
        archive.text("/init", INIT);
        archive.text("/bin/fact", FACT);
        archive.text("/test.sh", script);
        archive.file("/bin/busybox", bed.busybox());
        for dir in ["/proc", "/sys", "/mnt", "/tmp"] {
            archive.dir(dir);
        }
        Self {
            bed,
            archive,
            qemu: Vec::new(),
        }
    }

    /// Gives the guest all that it takes to make and mount an ext4 file system on a virtio disk.
    pub fn ext4(&mut self) -> Result<&mut Self> {
        self.archive.file(
            "/etc/mke2fs.conf",
            self.bed.tools.root.join("etc/mke2fs.conf"),
        );
        self.modules(BLOCK_MODULES)?
            .program("sbin/mke2fs", "/sbin/mkfs.ext4")
    }

    /// Modules to insert before the script starts; what they depend on comes along.
    fn modules(&mut self, names: &[&str]) -> Result<&mut Self> {
        let modules = Modules::read(&self.bed.kernel_modules)?;
        let mut order = String::new();
        for path in modules.load_order(names)? {
            let name = path
                .file_name()
                .context("a module has a name")?
                .to_string_lossy();
            // Guests get plain modules: busybox's insmod reads no compressed ones.
            let name = name.trim_end_matches(".xz");
            let content = if path.extension().is_some_and(|extension| extension == "xz") {
                self.unpacked(&path)?
            } else {
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?
            };
            self.archive.bytes(&format!("/modules/{name}"), content);
            order.push_str(&format!("/modules/{name}\n"));
        }
        self.archive.text("/modules.order", &order);
        Ok(self)
    }

    /// A program of the test bed's tools under a name in the guest, with its libraries.
    fn program(&mut self, program: &str, name: &str) -> Result<&mut Self> {
        self.archive.file(name, self.bed.tools.root.join(program));
        for (path, source) in self.bed.tools.libraries(program)? {
            self.archive.file(&path, source);
        }
        Ok(self)
    }

    /// A file with the given content.
    pub fn bytes(&mut self, path: &str, content: Vec<u8>) -> &mut Self {
        self.archive.bytes(path, content);
        self
    }

    /// A copy of a folder with all below it.
    pub fn tree(&mut self, path: &str, source: &Path) -> Result<&mut Self> {
        self.archive.tree(path, source)?;
        Ok(self)
    }

    /// More of QEMU's command line, such as a device.
    pub fn qemu<'b>(&mut self, arguments: impl IntoIterator<Item = &'b str>) -> &mut Self {
        self.qemu.extend(arguments.into_iter().map(OsString::from));
        self
    }

    /// Attaches the PCI function that a vfio-user server offers on a socket.
    pub fn vfio_user(&mut self, socket: &Path) -> &mut Self {
        let device = serde_json::json!({
            "driver": "vfio-user-pci",
            "socket": {"path": socket, "type": "unix"},
        });
        self.qemu(["-device", &device.to_string()])
    }

    /// Runs the guest to its end. Its logs go to the folder and stay there.
    pub fn boot(&self, dir: &Path, at_most: Duration) -> Result<Run> {
        let began = Instant::now();
        let initrd = dir.join("initrd.cpio");
        let file =
            File::create(&initrd).with_context(|| format!("cannot create {}", initrd.display()))?;
        self.archive
            .write(BufWriter::new(file))
            .context("cannot write the guest's initramfs")?;

        let (serial, log) = (dir.join(SERIAL_LOG), dir.join("qemu.log"));
        let output = File::create(&log)?;
        let mut command = self.command(&initrd, &serial)?;
        command.stdout(output.try_clone()?).stderr(output);
        let mut qemu = Watched::spawn(&mut command)?;
        let status = qemu.wait(at_most)?;
        drop(qemu);
        fs::remove_file(initrd)?;

        let text = Serial::new(&fs::read(&serial).unwrap_or_default());
        let complaint = match status {
            None => format!("the guest had not ended after {} s", at_most.as_secs()),
            Some(status) if !status.success() => format!("QEMU ended with {status}"),
            Some(_) => match text.finished() {
                Ok(()) => {
                    text.expect("kernel", &self.bed.kernel_release)?;
                    return Ok(Run {
                        serial: text,
                        seconds: began.elapsed().as_secs_f64(),
                    });
                }
                Err(error) => format!("{error:#}"),
            },
        };
        bail!(
            "{complaint}\nQEMU said (all of it in {}):\n{}\nthe guest said (all of it in {}):\n{}",
            log.display(),
            process::tail(&fs::read_to_string(&log).unwrap_or_default()),
            serial.display(),
            text.tail()
        )
    }

    fn command(&self, initrd: &Path, serial: &Path) -> Result<std::process::Command> {
        let root = &self.bed.qemu.root;
        let mut command = self.bed.qemu.command(QEMU)?;
        command.env(
            "QEMU_MODULE_DIR",
            root.join("usr/lib/x86_64-linux-gnu/qemu"),
        );
        command.arg("-L").arg(root.join("usr/share/qemu"));
        command.arg("-L").arg(root.join("usr/share/seabios"));
        // Devices in other processes reach the guest's memory by its file descriptor only.
        let memory = format!("memory-backend-memfd,id=m0,size={MEMORY},share=on");
        command.args([
            "-machine",
            "q35,memory-backend=m0",
            "-object",
            &memory,
            "-m",
            MEMORY,
        ]);
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.arg("-serial").arg(joined("file:", serial));
        command.arg("-kernel").arg(&self.bed.kernel_image);
        command
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", KERNEL_ARGUMENTS]);
        command.args(&self.qemu);
        Ok(command)
    }

    fn unpacked(&self, path: &Path) -> Result<Vec<u8>> {
        // The guest's busybox, for the host need not have xz.
        let mut command = std::process::Command::new(self.bed.busybox());
        let output = command.arg("xzcat").arg(path).output()?;
        if !output.status.success() || output.stdout.is_empty() {
            bail!(
                "cannot unpack {}: {}",
                path.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(output.stdout)
    }
}

fn joined(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}
