//! The steps that are packages with their dependencies: QEMU, and the guest's programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::apt::Apt;
use super::foreign::{LAUNCHERS, launcher};
use super::step::{Findings, Step};
use super::{Foreign, unpack};
use crate::guest::QEMU;
use crate::process;

/// The daemon that serves disks without a virtual machine: what our speed is held against.
const STORAGE_DAEMON: &str = "usr/bin/qemu-storage-daemon";

/// A QEMU with its storage daemon, of one Debian release.
pub struct QemuStep<'a> {
    /// The step's name.
    pub name: &'static str,
    /// Where it comes from.
    pub apt: &'a Apt<'a>,
    /// The oldest version that serves the purpose, by major and minor number.
    pub at_least: (u32, u32),
    /// A device that it must know.
    pub device: &'static str,
}

const QEMU_PACKAGES: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

impl Step for QemuStep<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn recipe(&self) -> String {
        format!(
            "{} with dependencies of {}, launchers: {}",
            QEMU_PACKAGES.join(" "),
            self.apt.suites(),
            launcher(STORAGE_DAEMON, STORAGE_DAEMON)
        )
    }

    fn build(&self, dir: &Path) -> Result<()> {
        install(self.apt, &QEMU_PACKAGES, dir)?;
        Foreign::new(dir.to_path_buf()).launch("qemu-storage-daemon", STORAGE_DAEMON)
    }

    fn check(&self, dir: &Path) -> Result<Findings> {
        let foreign = Foreign::new(dir.to_path_buf());
        let text = process::capture(foreign.command(QEMU)?.arg("--version"))?;
        let version = version(&text)
            .with_context(|| format!("`qemu-system-x86_64 --version` printed: {text}"))?;
        let (major, minor) = self.at_least;
        ensure!(
            major_minor(version) >= self.at_least,
            "QEMU {version} came, and the guest tests need {major}.{minor} or newer"
        );
        let devices = process::capture(foreign.command(QEMU)?.args(["-device", "help"]))?;
        let device = self.device;
        ensure!(
            devices.contains(&format!("\"{device}\"")),
            "QEMU {version} has no device {device}"
        );
        let text = process::capture(Command::new(storage_daemon(dir)).arg("--version"))?;
        ensure!(
            text.contains(version),
            "QEMU {version} came with a storage daemon of another version: {text}"
        );
        let libraries = foreign.libraries(QEMU)?.len() + foreign.libraries(STORAGE_DAEMON)?.len();
        Ok(Findings::default()
            .with("qemu", version)
            .with("libraries", libraries.to_string()))
    }
}

/// Starts the storage daemon in a folder of QEMU, for programs that know nothing of a foreign
/// loader.
pub fn storage_daemon(dir: &Path) -> PathBuf {
    dir.join(LAUNCHERS).join("qemu-storage-daemon")
}

const TOOLS_PACKAGES: [&str; 5] = ["busybox-static", "e2fsprogs", "kmod", "mtools", "syslinux"];
/// The names under which syslinux calls the one program of mtools.
const MTOOLS: [&str; 3] = ["mattrib", "mcopy", "mmove"];

/// What guests run, and what the host uses on their images: busybox, e2fsprogs, kmod; and for disks
/// to boot from, mtools and syslinux.
pub struct Tools<'a> {
    /// Where they come from.
    pub apt: &'a Apt<'a>,
}

impl Step for Tools<'_> {
    fn name(&self) -> &'static str {
        "tools"
    }

    fn recipe(&self) -> String {
        format!(
            "{} with dependencies of {}, launchers: {}",
            TOOLS_PACKAGES.join(" "),
            self.apt.suites(),
            launcher("usr/bin/mtools", &MTOOLS.join(" "))
        )
    }

    fn build(&self, dir: &Path) -> Result<()> {
        install(self.apt, &TOOLS_PACKAGES, dir)?;
        let foreign = Foreign::new(dir.to_path_buf());
        let mut names = MTOOLS.into_iter();
        names.try_for_each(|name| foreign.launch(name, "usr/bin/mtools"))
    }

    fn check(&self, dir: &Path) -> Result<Findings> {
        let foreign = Foreign::new(dir.to_path_buf());
        let busybox = process::capture(&mut Command::new(dir.join("bin/busybox")))?;
        for program in [
            "sbin/mke2fs",
            "sbin/e2fsck",
            "sbin/debugfs",
            "bin/kmod",
            "usr/bin/mtools",
            "usr/bin/syslinux",
        ] {
            foreign.libraries(program)?;
        }
        let mut findings = Findings::default();
        for (name, text) in [
            ("busybox", busybox),
            (
                "e2fsprogs",
                process::capture(foreign.command("sbin/mke2fs")?.arg("-V"))?,
            ),
            (
                "e2fsck",
                process::capture(foreign.command("sbin/e2fsck")?.arg("-V"))?,
            ),
            (
                "debugfs",
                process::capture(foreign.command("sbin/debugfs")?.arg("-V"))?,
            ),
            (
                "kmod",
                process::capture(foreign.command("bin/kmod")?.arg("--version"))?,
            ),
            (
                "mtools",
                process::capture(Command::new(dir.join(LAUNCHERS).join("mcopy")).arg("-V"))?,
            ),
            (
                "syslinux",
                process::capture(foreign.command("usr/bin/syslinux")?.arg("--version"))?,
            ),
        ] {
            let version = version(&text).with_context(|| format!("{name} printed: {text}"))?;
            findings = findings.with(name, version);
        }
        Ok(findings)
    }
}

/// The release of Xen that Debian 12 has; its packages carry the version in their names.
const XEN: &str = "xen-utils-4.17";
const PYTHON: &str = "python3.11";
const XEN_VERIFIER: &str = "usr/lib/xen-4.17/bin/verify-stream-v2";
const XEN_MODULES: &str = "usr/lib/xen-4.17/lib/python";

/// Xen's verifier of migration streams, and the Python that it is written for. Its package alone:
/// what that depends on is a hypervisor's.
pub struct XenStep<'a> {
    /// Where they come from.
    pub apt: &'a Apt<'a>,
}

impl Step for XenStep<'_> {
    fn name(&self) -> &'static str {
        "xen"
    }

    fn recipe(&self) -> String {
        let suites = self.apt.suites();
        format!("{PYTHON} with dependencies and {XEN} alone of {suites}")
    }

    fn build(&self, dir: &Path) -> Result<()> {
        install(self.apt, &[PYTHON], dir)?;
        for package in self.apt.download_alone(&[XEN])? {
            unpack(&package, dir)?;
        }
        Ok(())
    }

    fn check(&self, dir: &Path) -> Result<Findings> {
        let foreign = Foreign::new(dir.to_path_buf());
        foreign.libraries(&format!("usr/bin/{PYTHON}"))?;
        let text = process::capture(python(&foreign)?.arg("--version"))?;
        let version = version(&text).with_context(|| format!("python printed: {text}"))?;
        let modules = "import xen.migration.libxl as xl; print(hex(xl.HDR_IDENT))";
        let ident = process::capture(python(&foreign)?.args(["-c", modules]))?;
        ensure!(
            ident.trim() == "0x4c6962786c466d74",
            "Xen's modules say that a stream starts with {ident}"
        );
        let help = process::capture(python(&foreign)?.arg(xen_verifier(&foreign)).arg("--help"))?;
        ensure!(
            help.contains("libxl"),
            "Xen's verifier knows no libxl streams: {help}"
        );
        Ok(Findings::default()
            .with("python", version)
            .with("xen", XEN.trim_start_matches("xen-utils-")))
    }
}

/// Python with Xen's modules, out of the folder of [`XenStep`].
pub fn python(foreign: &Foreign) -> Result<Command> {
    let mut command = foreign.command(&format!("usr/bin/{PYTHON}"))?;
    command
        .args(["-B", "-s"])
        .env("PYTHONHOME", foreign.root.join("usr"))
        .env("PYTHONPATH", foreign.root.join(XEN_MODULES))
        .env("LC_ALL", "C");
    Ok(command)
}

/// The script itself.
pub fn xen_verifier(foreign: &Foreign) -> PathBuf {
    foreign.root.join(XEN_VERIFIER)
}

/// Unpacks packages and what they depend on.
pub(super) fn install(apt: &Apt<'_>, packages: &[&str], dir: &Path) -> Result<()> {
    for package in apt.download_with_dependencies(packages)? {
        unpack(&package, dir)?;
    }
    Ok(())
}

/// The first word of a program's version text that is a version: `QEMU emulator version 11.1.3 …`,
/// `BusyBox v1.35.0 …`, `kmod version 30`.
pub(super) fn version(text: &str) -> Option<&str> {
    let words = text
        .split_whitespace()
        .map(|word| word.strip_prefix('v').unwrap_or(word));
    words.into_iter().find(|word| {
        word.starts_with(|first: char| first.is_ascii_digit())
            && word
                .chars()
                .all(|letter| letter.is_ascii_digit() || letter == '.')
    })
}

/// Major and minor number of a version; zero for what is no number.
pub fn major_minor(version: &str) -> (u32, u32) {
    let mut numbers = version
        .split('.')
        .map(|number| number.parse().unwrap_or_default());
    (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::{major_minor, version};

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert_eq!(major_minor("11.1.3"), (11, 1));
        assert!(major_minor("7.2") < major_minor("11.0.0"));
        assert_eq!(major_minor("x"), (0, 0));
    }

    #[test]
    fn versions_are_found_in_what_programs_print() {
        let qemu =
            "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright (c) 2003";
        assert_eq!(version(qemu), Some("11.1.3"));
        assert_eq!(
            version("BusyBox v1.35.0 (Debian 1:1.35.0-4+b1) multi-call"),
            Some("1.35.0")
        );
        assert_eq!(
            version("mke2fs 1.47.0 (5-Feb-2023)\n\tUsing EXT2FS"),
            Some("1.47.0")
        );
        assert_eq!(version("kmod version 30\n+ZSTD"), Some("30"));
        assert_eq!(version("no digits here"), None);
    }
}
