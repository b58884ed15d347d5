//! Real guests: a stock kernel under QEMU with an init made for one test.
//!
//! A test gives a script and the files that it uses, adds devices to QEMU's command line, boots,
//! and judges what the script said over the serial line. Guests run under TCG: that `/dev/kvm`
//! opens proves nothing, and the same machine everywhere makes runs comparable.
//!
//! How a proof is written:
//!
//! ```ignore
//! let script = "fact disk \"$(cat /sys/block/vda/size)\"\n\
//!               answer=$(ask quiet)\n\
//!               test \"$answer\" = go\n";
//! let [platform, _] = bed.vfio_user_platforms();
//! let mut guest = Guest::new(&bed, platform, script);
//! guest.ext4()?.iommu().vfio_user(&socket);
//! guest.watch(&device)?;                      // its early end is the guest's
//! let vm = guest.start(&dir)?;
//! vm.fact("disk", LIMIT)?;                    // an event, not a poll
//! assert_eq!(vm.line(LIMIT)?, "quiet");       // the guest waits in `ask` ...
//! vm.qmp().stop()?;
//! let memory = vm.ram()?;                     // ... and cannot run: read its memory
//! vm.qmp().cont()?;
//! vm.send("go")?;
//! let run = vm.finish(LIMIT)?;                // last marker, kernel, clean exit
//! run.serial.expect("driver", "virtio_blk")?;
//! ```
//!
//! [`Guest::boot`] is start and finish in one. The guest has `/dev/ttyS1`, in raw mode and open as
//! file 3 of the script, for lines to and from the host; a program in the guest may use it as well.

mod archive;
mod hub;
mod modules;
mod qmp;
mod running;
mod serial;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{Exit, Watched};
use crate::testbed::{Platform, TestBed};
use archive::Archive;
pub use modules::Modules;
pub use running::{Run, Running};
pub use serial::Serial;

/// QEMU's program below the test bed's folder of it.
pub const QEMU: &str = "usr/bin/qemu-system-x86_64";
/// What a guest needs for an ext4 file system on a virtio disk. ext4 asks for the checksum by
/// name at mount time, which no dependency in `modules.dep` shows.
pub const BLOCK_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];
/// What a guest needs to give a PCI function to one of its programs.
pub const VFIO_MODULES: &[&str] = &["vfio_iommu_type1", "vfio_pci"];

/// The file that keeps what a guest said.
pub const SERIAL_LOG: &str = "serial.log";

const INIT: &str = include_str!("guest/init.sh");
const FACT: &str = "#!/bin/busybox sh\necho \"@$1=$2\"\n";
/// Tells the host a line and gives the host's next one.
const ASK: &str = "#!/bin/busybox sh\necho \"$*\" >&3\nread -r answer <&3\necho \"$answer\"\n";
/// `init_on_alloc=0`: by Debian's default the CPU clears each page before the device writes it,
/// and so hides a device that does not mark. `panic=-1`: a guest that dies ends at once.
/// `no_timer_check`: on a busy host the emulated timer's interrupt may come too late for Linux, which
/// then gives up at boot; under KVM it does not look either.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet init_on_alloc=0 no_timer_check";
/// Strict: each unmap reaches the device at once, not in batches later.
const IOMMU_ARGUMENTS: &str = " intel_iommu=on iommu=nopt iommu.strict=1";

/// A guest before its start.
pub struct Guest<'a> {
    bed: &'a TestBed,
    platform: Platform<'a>,
    archive: Archive,
    modules: Vec<PathBuf>,
    megabytes: u32,
    cpus: u32,
    iommu: bool,
    firmware: bool,
    incoming: bool,
    kernel_arguments: String,
    sockets: usize,
    arguments: Vec<OsString>,
    watched: Vec<Exit>,
}

impl<'a> Guest<'a> {
    /// A guest that runs the script with `sh -ex` as its only work. The script reports with
    /// `fact NAME VALUE` and talks to the host with `ask WORDS`; the first command that fails ends
    /// the guest.
    pub fn new(bed: &'a TestBed, platform: Platform<'a>, script: &str) -> Self {
        let mut archive = Archive::default();
        archive.device("/dev/console", (5, 1));
        archive.text("/init", INIT);
        archive.text("/bin/fact", FACT);
        archive.text("/bin/ask", ASK);
        archive.text("/test.sh", script);
        archive.file("/bin/busybox", bed.busybox());
        for dir in ["/proc", "/sys", "/mnt", "/tmp"] {
            archive.dir(dir);
        }
        Self {
            bed,
            platform,
            archive,
            modules: Vec::new(),
            megabytes: 512,
            cpus: 1,
            iommu: false,
            firmware: false,
            incoming: false,
            kernel_arguments: KERNEL_ARGUMENTS.into(),
            sockets: 0,
            arguments: Vec::new(),
            watched: Vec::new(),
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
    pub fn modules(&mut self, names: &[&str]) -> Result<&mut Self> {
        let modules = Modules::read(&self.platform.kernel.modules)?;
        for path in modules.load_order(names)? {
            if self.modules.contains(&path) {
                continue;
            }
            let name = module_name(&path)?;
            // Guests get plain modules: busybox's insmod reads no compressed ones.
            if path.extension().is_some_and(|extension| extension == "xz") {
                let content = self.unpacked(&path)?;
                self.archive.bytes(&name, content);
            } else {
                self.archive.file(&name, path.clone());
            }
            self.modules.push(path);
        }
        let mut order = String::new();
        for path in &self.modules {
            order.push_str(&module_name(path)?);
            order.push('\n');
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

    /// A copy of a host's file, such as a program that is linked statically.
    pub fn file(&mut self, path: &str, source: &Path) -> &mut Self {
        self.archive.file(path, source.to_path_buf());
        self
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

    /// The guest's memory in MiB, 512 unless told; QEMU before 9.0 gets two pages less. Below 2048 a guest-physical address is the
    /// offset in the memory's file.
    pub fn memory(&mut self, megabytes: u32) -> &mut Self {
        self.megabytes = megabytes;
        self
    }

    /// Bytes of memory that the guest gets. Before version 9, when QEMU reads its log of dirty pages
    /// 64 pages at a time, it does not tell the processors that they have to mark again, and a
    /// migration misses what they write from then on. It reads a memory of another length page by
    /// page, and rightly.
    fn ram_bytes(&self) -> u64 {
        let bytes = u64::from(self.megabytes) << 20;
        match self.platform.qemu.at_least(9, 0) {
            true => bytes,
            false => bytes + (8 << 10),
        }
    }

    /// The guest's processors, 1 unless told.
    pub fn cpus(&mut self, cpus: u32) -> &mut Self {
        self.cpus = cpus;
        self
    }

    /// More for the kernel's command line.
    pub fn kernel_arguments(&mut self, more: &str) -> &mut Self {
        self.kernel_arguments.push(' ');
        self.kernel_arguments.push_str(more);
        self
    }

    /// Puts all devices behind an Intel IOMMU, which the kernel uses strictly: every map and unmap
    /// is told to a device in another process.
    pub fn iommu(&mut self) -> &mut Self {
        self.iommu = true;
        self.kernel_arguments.push_str(IOMMU_ARGUMENTS);
        self
    }

    /// Starts the firmware's own way, from a disk, without a kernel from QEMU's command line. What
    /// the guest was given stays out unless the disk has it: see [`Guest::boot_files`].
    pub fn firmware(&mut self) -> &mut Self {
        self.firmware = true;
        self
    }

    /// Makes the guest the destination of a migration, from an address such as `unix:PATH`. Its
    /// processors stay stopped at the end, so that its memory can be compared: [`cont`](qmp::Qmp::cont) starts
    /// them.
    pub fn incoming(&mut self, from: &str) -> &mut Self {
        self.incoming = true;
        self.arguments(["-S", "-incoming", from])
    }

    /// More of QEMU's command line, such as a device.
    pub fn arguments<'b>(&mut self, arguments: impl IntoIterator<Item = &'b str>) -> &mut Self {
        self.arguments
            .extend(arguments.into_iter().map(OsString::from));
        self
    }

    /// Attaches the PCI function that a vfio-user server offers on a socket. The functions are the
    /// firmware's boot disks in the order in which they were attached.
    pub fn vfio_user(&mut self, socket: &Path) -> &mut Self {
        let device = serde_json::json!({
            "driver": "vfio-user-pci",
            "socket": {"path": socket, "type": "unix"},
            "bootindex": self.next_socket(),
        });
        self.arguments(["-device", &device.to_string()])
    }

    /// Attaches the disk that a vhost-user server offers on a socket. With a pause, QEMU connects
    /// again that long after the server has gone; whole seconds serve every QEMU.
    pub fn vhost_user_blk(
        &mut self,
        socket: &Path,
        queues: u16,
        packed: bool,
        reconnect: Option<Duration>,
    ) -> &mut Self {
        let name = format!("vhost{}", self.next_socket());
        let mut chardev = format!("socket,id={name},path={}", socket.display());
        // QEMU 9.2 brought the new option, and 10 dropped the old one.
        match reconnect {
            Some(pause) if self.platform.qemu.at_least(9, 2) => {
                chardev.push_str(&format!(",reconnect-ms={}", pause.as_millis()));
            }
            Some(pause) => chardev.push_str(&format!(",reconnect={}", pause.as_secs().max(1))),
            None => {}
        }
        let packed = if packed { "on" } else { "off" };
        let device =
            format!("vhost-user-blk-pci,chardev={name},num-queues={queues},packed={packed}");
        self.arguments(["-chardev", &chardev, "-device", &device])
    }

    /// Ends every wait for the guest early if this process ends before it.
    pub fn watch(&mut self, process: &Watched) -> Result<&mut Self> {
        self.watched.push(process.exit()?);
        Ok(self)
    }

    /// Runs the guest to its end. Its logs go to the folder and stay there.
    pub fn boot(&self, dir: &Path, at_most: Duration) -> Result<Run> {
        self.start(dir)?.finish(at_most)
    }

    /// Starts the guest. Its logs go to the folder and stay there.
    pub fn start(&self, dir: &Path) -> Result<Running> {
        Running::start(self, dir)
    }

    /// Writes what a disk needs for the guest to come up from it, and gives the kernel's command
    /// line.
    pub fn boot_files(&self, kernel: &Path, initrd: &Path) -> Result<&str> {
        fs::copy(&self.platform.kernel.image, kernel)
            .with_context(|| format!("cannot write {}", kernel.display()))?;
        self.write_initrd(initrd)?;
        Ok(&self.kernel_arguments)
    }

    fn write_initrd(&self, initrd: &Path) -> Result<()> {
        let file =
            File::create(initrd).with_context(|| format!("cannot create {}", initrd.display()))?;
        self.archive
            .write(BufWriter::new(file))
            .context("cannot write the guest's initramfs")
    }

    fn next_socket(&mut self) -> usize {
        self.sockets += 1;
        self.sockets
    }

    /// QEMU's command line without the channels that [`Running`] adds.
    fn command(&self, initrd: &Path) -> Result<Command> {
        let qemu = self.platform.qemu;
        let mut command = qemu.files.command(QEMU)?;
        // QEMU looks for its parts beside its executable, which is the dynamic loader here.
        let parts = qemu.files.root.join("usr/lib/x86_64-linux-gnu/qemu");
        command.env("QEMU_MODULE_DIR", parts);
        for dir in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(qemu.files.root.join(dir));
        }
        // Devices in other processes reach the guest's memory by its file descriptor only.
        let kilobytes = self.ram_bytes() >> 10;
        let memory = format!("memory-backend-memfd,id=m0,size={kilobytes}K,share=on");
        let machine = match self.iommu {
            true => "q35,memory-backend=m0,kernel-irqchip=off",
            false => "q35,memory-backend=m0",
        };
        command.args(["-machine", machine, "-object", &memory]);
        command.args(["-m", &format!("{kilobytes}K")]);
        // QEMU 7.2 spoils the flags when an interrupt meets CMPXCHG16B, and a kernel that uses it
        // in its allocator, as 6.12 does, dies of that sooner or later.
        let cpu = match qemu.at_least(8, 0) {
            true => "max",
            false => "max,-cx16",
        };
        command.args(["-accel", "tcg,thread=multi", "-cpu", cpu]);
        command.args(["-smp", &self.cpus.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none"]);
        if self.iommu {
            // Before the devices: it takes only those that come after it.
            command.args(["-device", "intel-iommu,caching-mode=on"]);
        }
        if !self.firmware {
            command.arg("-kernel").arg(&self.platform.kernel.image);
            command.arg("-initrd").arg(initrd);
            command.args(["-append", &self.kernel_arguments]);
        }
        command.args(&self.arguments);
        Ok(command)
    }

    fn unpacked(&self, path: &Path) -> Result<Vec<u8>> {
        // The guest's busybox, for the host need not have xz.
        let mut command = Command::new(self.bed.busybox());
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

/// Where a module is in the guest.
fn module_name(path: &Path) -> Result<String> {
    let name = path.file_name().context("a module has a name")?;
    let name = name.to_string_lossy();
    Ok(format!("/modules/{}", name.trim_end_matches(".xz")))
}
