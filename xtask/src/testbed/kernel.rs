//! The step that is a kernel: Debian's cloud kernel, unpacked, with its modules indexed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::apt::Apt;
use super::step::{Findings, Step};
use super::{Foreign, unpack};
use crate::guest::{BLOCK_MODULES, Modules, VFIO_MODULES};
use crate::process;

/// Depends on the current kernel of the release.
const META: &str = "linux-image-cloud-amd64";

/// A kernel that guests boot.
pub struct KernelStep<'a> {
    /// The step's name.
    pub name: &'static str,
    /// Where it comes from.
    pub apt: &'a Apt<'a>,
    /// How its version begins: each release of Debian keeps to one series.
    pub series: &'static str,
    /// Has depmod.
    pub tools: &'a Foreign,
}

/// The image of a release in a kernel's folder.
pub fn image(dir: &Path, release: &str) -> PathBuf {
    dir.join("boot").join(format!("vmlinuz-{release}"))
}

/// The modules of a release in a kernel's folder.
pub fn modules(dir: &Path, release: &str) -> PathBuf {
    dir.join("lib/modules").join(release)
}

impl Step for KernelStep<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn recipe(&self) -> String {
        format!(
            "what {META} depends on, of {}, with depmod",
            self.apt.suites()
        )
    }

    fn build(&self, dir: &Path) -> Result<()> {
        let names = self.apt.dependencies(META)?;
        let name = names
            .iter()
            .find(|name| name.starts_with("linux-image-"))
            .with_context(|| format!("{META} depends on no kernel but on {names:?}"))?;
        for package in self.apt.download_alone(&[name])? {
            unpack(&package, dir)?;
        }
        // From Debian 13 on, packages have their files below usr alone; depmod looks beside it.
        if !dir.join("lib").exists() {
            symlink("usr/lib", dir.join("lib"))?;
        }
        // The package leaves modules.dep to its installation.
        let mut depmod = self.tools.command_named("bin/kmod", "depmod")?;
        process::capture(depmod.arg("-b").arg(dir).arg(release(dir)?))?;
        Ok(())
    }

    fn check(&self, dir: &Path) -> Result<Findings> {
        let release = release(dir)?;
        ensure!(
            release.starts_with(self.series),
            "the kernel is {release}, and the guest tests expect {}x",
            self.series
        );
        let image = image(dir, &release);
        let size = fs::metadata(&image)
            .with_context(|| format!("no {}", image.display()))?
            .len();
        let modules = Modules::read(&modules(dir, &release))?;
        let needed = modules.load_order(&[BLOCK_MODULES, VFIO_MODULES].concat())?;
        for path in &needed {
            ensure!(
                path.is_file(),
                "modules.dep names a missing {}",
                path.display()
            );
        }
        Ok(Findings::default()
            .with("release", release)
            .with("image bytes", size.to_string())
            .with("modules", needed.len().to_string()))
    }
}

/// The one release that the folder holds.
fn release(dir: &Path) -> Result<String> {
    let parent = dir.join("lib/modules");
    let entries = fs::read_dir(&parent).with_context(|| format!("no {}", parent.display()))?;
    let mut names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let name = names
        .next()
        .with_context(|| format!("{} is empty", parent.display()))??;
    ensure!(
        names.next().is_none(),
        "{} holds several kernels",
        parent.display()
    );
    Ok(name.to_string_lossy().into_owned())
}
