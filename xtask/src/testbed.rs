//! The test bed: two QEMUs, two Debian kernels, the programs a guest needs, and a git, in one folder.
//!
//! Nothing is installed on the host, nothing is mounted and no chroot is entered. Packages are
//! resolved and downloaded by apt with folders of its own (see `apt`), unpacked by dpkg-deb, and
//! their programs run through their own dynamic loader (see `foreign`). So paths are the host's
//! everywhere, two beds can be built at once, and not even root is needed.

mod apt;
mod foreign;
mod git;
mod kernel;
mod packages;
mod selfcheck;
mod step;
mod stores;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::process;
use crate::workspace::Workspace;
use apt::{Apt, Mirror};
pub use foreign::{Foreign, LAUNCHERS};
pub use stores::Stores;

/// The suites of Debian's release that the guests' tools come from.
const BOOKWORM: [&str; 3] = ["bookworm", "bookworm-updates", "bookworm-security"];

/// A QEMU of one Debian release.
#[derive(Serialize)]
pub struct Qemu {
    /// Its programs and their libraries.
    pub files: Foreign,
    /// Its version, such as `11.1.3`.
    pub version: String,
    /// Starts its `qemu-storage-daemon`, which serves disks without a virtual machine.
    pub storage_daemon: PathBuf,
}

impl Qemu {
    /// Whether it is of this version or a newer one.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        packages::major_minor(&self.version) >= (major, minor)
    }
}

/// A kernel of one Debian release.
#[derive(Serialize)]
pub struct Kernel {
    /// The image to boot.
    pub image: PathBuf,
    /// The folder with `modules.dep` and the modules.
    pub modules: PathBuf,
    /// What `uname -r` says in a guest.
    pub release: String,
}

/// What checks our streams that is not ours.
#[derive(Serialize)]
pub struct Xen {
    /// The script, and the Python that runs it.
    pub files: Foreign,
    /// The release of Xen.
    pub version: String,
}

impl Xen {
    /// A command that starts Python with Xen's modules.
    pub fn python(&self) -> Result<Command> {
        packages::python(&self.files)
    }

    /// Xen's `verify-stream-v2`.
    pub fn verifier(&self) -> PathBuf {
        packages::xen_verifier(&self.files)
    }
}

/// What a guest runs on.
#[derive(Clone, Copy)]
pub struct Platform<'a> {
    /// The machine.
    pub qemu: &'a Qemu,
    /// The system.
    pub kernel: &'a Kernel,
}

impl Platform<'_> {
    /// A short name, fit for a folder: `qemu-11.1.3-linux-6.1.0-56-cloud-amd64`.
    pub fn name(&self) -> String {
        format!("qemu-{}-linux-{}", self.qemu.version, self.kernel.release)
    }
}

/// What the test bed consists of. Written to `testbed.json` as its manifest.
#[derive(Serialize)]
pub struct TestBed {
    /// The folder of the whole bed.
    pub dir: PathBuf,
    /// The newest QEMU that Debian's stable release can have: the one with `vfio-user-pci`.
    pub qemu_backports: Qemu,
    /// Debian 12's own QEMU, for vhost-user; it has no `vfio-user-pci`.
    pub qemu_bookworm: Qemu,
    /// Debian 12's kernel.
    pub kernel_bookworm: Kernel,
    /// Debian 13's kernel.
    pub kernel_trixie: Kernel,
    /// e2fsprogs, kmod and busybox, with their libraries, of Debian 12.
    pub tools: Foreign,
    /// Git of Debian's stable release, with both formats of references.
    pub git: Foreign,
    /// The version of git.
    pub git_version: String,
    /// Xen's verifier of migration streams.
    pub xen: Xen,
    /// The version of busybox, which is linked statically.
    pub busybox_version: String,
    /// The version of e2fsprogs.
    pub e2fsprogs_version: String,
}

impl TestBed {
    /// All pairs of a QEMU and a kernel.
    pub fn platforms(&self) -> [Platform<'_>; 4] {
        let old = [&self.kernel_bookworm, &self.kernel_trixie].map(|kernel| Platform {
            qemu: &self.qemu_bookworm,
            kernel,
        });
        let ([new_first, new_second], [first, second]) = (self.vfio_user_platforms(), old);
        [new_first, new_second, first, second]
    }

    /// The pairs whose QEMU takes a vfio-user device.
    pub fn vfio_user_platforms(&self) -> [Platform<'_>; 2] {
        [&self.kernel_bookworm, &self.kernel_trixie].map(|kernel| Platform {
            qemu: &self.qemu_backports,
            kernel,
        })
    }

    /// The busybox of the guest; static, so it runs on the host as well.
    pub fn busybox(&self) -> PathBuf {
        self.tools.root.join("bin/busybox")
    }

    /// Runs git.
    pub fn git(&self) -> Result<Command> {
        self.git.command(git::GIT)
    }

    /// An empty folder for what one guest run leaves behind; it stays for a look after a failure.
    pub fn run_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join("run").join(name);
        remove(&dir)?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }
}

/// Builds what is missing or broken and leaves the rest; one line of progress for each step.
pub fn ensure(workspace: &Workspace) -> Result<TestBed> {
    let began = Instant::now();
    let dir = workspace.testbed();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    // Two runs at once would delete each other's half-built folders.
    let lock = File::create(dir.join("lock")).context("cannot create the test bed's lock")?;
    lock.lock().context("cannot lock the test bed")?;

    let mirror = Mirror::default();
    let trixie = Apt::new(&dir, "trixie", &["trixie", "trixie-backports"], &mirror);
    let bookworm = Apt::new(&dir, "bookworm", &BOOKWORM, &mirror);

    let tools = step::ensure(&dir, &packages::Tools { apt: &bookworm })?;
    let tools_root = Foreign::new(dir.join("tools"));
    let qemu = |step: packages::QemuStep<'_>| {
        anyhow::Ok(Qemu {
            version: step::ensure(&dir, &step)?.get("qemu")?,
            storage_daemon: packages::storage_daemon(&dir.join(step.name)),
            files: Foreign::new(dir.join(step.name)),
        })
    };
    let kernel = |name, apt, series| {
        let step = kernel::KernelStep {
            name,
            apt,
            series,
            tools: &tools_root,
        };
        let release = step::ensure(&dir, &step)?.get("release")?;
        anyhow::Ok(Kernel {
            image: kernel::image(&dir.join(name), &release),
            modules: kernel::modules(&dir.join(name), &release),
            release,
        })
    };
    let bed = TestBed {
        qemu_backports: qemu(packages::QemuStep {
            name: "qemu-backports",
            apt: &trixie,
            // The one that the guest tests were written for.
            at_least: (11, 0),
            device: "vfio-user-pci",
        })?,
        qemu_bookworm: qemu(packages::QemuStep {
            name: "qemu-bookworm",
            apt: &bookworm,
            at_least: (7, 2),
            device: "vhost-user-blk-pci",
        })?,
        kernel_bookworm: kernel("kernel-bookworm", &bookworm, "6.1.")?,
        kernel_trixie: kernel("kernel-trixie", &trixie, "6.12.")?,
        git_version: step::ensure(&dir, &git::GitStep { apt: &trixie })?.get("git")?,
        git: Foreign::new(dir.join("git")),
        xen: Xen {
            version: step::ensure(&dir, &packages::XenStep { apt: &bookworm })?.get("xen")?,
            files: Foreign::new(dir.join("xen")),
        },
        busybox_version: tools.get("busybox")?,
        e2fsprogs_version: tools.get("e2fsprogs")?,
        tools: tools_root.clone(),
        dir: dir.clone(),
    };
    step::ensure(&bed.dir, &selfcheck::SelfCheck { bed: &bed })?;
    // All packages are unpacked, and lists of packages are fetched anew by the next download.
    remove(&bed.dir.join("apt"))?;

    let manifest = bed.dir.join("testbed.json");
    fs::write(&manifest, serde_json::to_string_pretty(&bed)? + "\n")
        .with_context(|| format!("cannot write {}", manifest.display()))?;
    println!(
        "setup: ready in {:.1} s: {}",
        began.elapsed().as_secs_f64(),
        manifest.display()
    );
    Ok(bed)
}

/// The same for what only the store's proof needs.
pub fn stores(workspace: &Workspace) -> Result<Stores> {
    let dir = workspace.testbed();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let lock = File::create(dir.join("lock")).context("cannot create the test bed's lock")?;
    lock.lock().context("cannot lock the test bed")?;
    let mirror = Mirror::default();
    let bookworm = Apt::new(&dir, "bookworm", &BOOKWORM, &mirror);
    let etcd = step::ensure(&dir, &stores::EtcdStep { apt: &bookworm })?;
    let s3 = step::ensure(&dir, &stores::S3Step { apt: &bookworm })?;
    remove(&dir.join("apt"))?;
    stores::found(&dir, &etcd, &s3)
}

/// Removes a folder with all it holds; one that is not there is fine.
fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Unpacks a Debian package into a folder.
fn unpack(package: &Path, root: &Path) -> Result<()> {
    process::capture(Command::new("dpkg-deb").arg("-x").arg(package).arg(root))?;
    Ok(())
}
