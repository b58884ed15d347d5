//! The real-guest test bed: QEMU, a Debian kernel and the programs a guest needs, in one folder.
//!
//! Nothing is installed on the host, nothing is mounted and no chroot is entered. Packages are
//! resolved and downloaded by apt with folders of its own (see `apt`), unpacked by dpkg-deb, and
//! their programs run through their own dynamic loader (see `foreign`). So paths are the host's
//! everywhere, two beds can be built at once, and not even root is needed.

mod apt;
mod foreign;
mod kernel;
mod packages;
mod selfcheck;
mod step;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::process;
use crate::workspace::Workspace;
use apt::{Apt, Mirror};
pub use foreign::Foreign;

/// What the test bed consists of. Written to `testbed.json` as its manifest.
#[derive(Serialize)]
pub struct TestBed {
    /// The folder of the whole bed.
    pub dir: PathBuf,
    /// QEMU and its libraries.
    pub qemu: Foreign,
    /// QEMU's version, such as `11.1.3`.
    pub qemu_version: String,
    /// The kernel image to boot.
    pub kernel_image: PathBuf,
    /// The folder with `modules.dep` and the kernel's modules.
    pub kernel_modules: PathBuf,
    /// What `uname -r` says in a guest.
    pub kernel_release: String,
    /// e2fsprogs and kmod, with their libraries, of the guest's Debian.
    pub tools: Foreign,
    /// The version of busybox, which is linked statically.
    pub busybox_version: String,
    /// The version of e2fsprogs.
    pub e2fsprogs_version: String,
}

impl TestBed {
    /// The busybox of the guest; static, so it runs on the host as well.
    pub fn busybox(&self) -> PathBuf {
        self.tools.root.join("bin/busybox")
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
    let bookworm = Apt::new(
        &dir,
        "bookworm",
        &["bookworm", "bookworm-updates", "bookworm-security"],
        &mirror,
    );

    let qemu = step::ensure(&dir, &packages::Qemu { apt: &trixie })?;
    let tools = step::ensure(&dir, &packages::Tools { apt: &bookworm })?;
    let tools_root = Foreign::new(dir.join("tools"));
    let kernel = step::ensure(
        &dir,
        &kernel::Kernel {
            apt: &bookworm,
            tools: &tools_root,
        },
    )?;

    let release = kernel.get("release")?;
    let bed = TestBed {
        qemu: Foreign::new(dir.join("qemu")),
        qemu_version: qemu.get("qemu")?,
        kernel_image: kernel::image(&dir.join("kernel"), &release),
        kernel_modules: kernel::modules(&dir.join("kernel"), &release),
        kernel_release: release,
        tools: tools_root,
        busybox_version: tools.get("busybox")?,
        e2fsprogs_version: tools.get("e2fsprogs")?,
        dir,
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
    process::capture(
        std::process::Command::new("dpkg-deb")
            .arg("-x")
            .arg(package)
            .arg(root),
    )?;
    Ok(())
}
