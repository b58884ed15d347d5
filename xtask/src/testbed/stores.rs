//! The steps that only the store's proof needs: Debian's etcd, the compiler that etcd's client is
//! built with, and an S3 server that others wrote.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Foreign;
use super::apt::Apt;
use super::foreign::{LAUNCHERS, launcher};
use super::packages::{install, version};
use super::step::{Findings, Step};
use crate::process;

const PACKAGES: [&str; 3] = ["etcd-server", "protobuf-compiler", "libprotobuf-dev"];
const ETCD: &str = "usr/bin/etcd";
const PROTOC: &str = "usr/bin/protoc";

/// What the store is held against.
pub struct Stores {
    /// Starts etcd.
    pub etcd: PathBuf,
    /// The version of etcd.
    pub etcd_version: String,
    /// Starts the compiler of protocol buffers.
    pub protoc: PathBuf,
    /// The files that come with it.
    pub protoc_include: PathBuf,
    /// The S3 server.
    pub s3: PathBuf,
    /// Its name and version.
    pub s3_version: String,
}

/// etcd, and protoc.
pub struct EtcdStep<'a> {
    /// Where they come from.
    pub apt: &'a Apt<'a>,
}

impl Step for EtcdStep<'_> {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn recipe(&self) -> String {
        format!(
            "{} with dependencies of {}, launchers: {}{}",
            PACKAGES.join(" "),
            self.apt.suites(),
            launcher(ETCD, "etcd"),
            launcher(PROTOC, "protoc")
        )
    }

    fn build(&self, dir: &Path) -> Result<()> {
        install(self.apt, &PACKAGES, dir)?;
        let foreign = Foreign::new(dir.to_path_buf());
        foreign.launch("etcd", ETCD)?;
        foreign.launch("protoc", PROTOC)
    }

    fn check(&self, dir: &Path) -> Result<Findings> {
        let launched = |name: &str, argument: &str| {
            process::capture(Command::new(dir.join(LAUNCHERS).join(name)).arg(argument))
        };
        let text = launched("etcd", "--version")?;
        let etcd = version(&text).with_context(|| format!("`etcd --version` printed: {text}"))?;
        let text = launched("protoc", "--version")?;
        let protoc = version(&text);
        let protoc = protoc.with_context(|| format!("`protoc --version` printed: {text}"))?;
        ensure!(
            include(dir).join("google/protobuf/any.proto").is_file(),
            "protoc came without the files it includes"
        );
        Ok(Findings::default()
            .with("etcd", etcd)
            .with("protoc", protoc))
    }
}

fn include(dir: &Path) -> PathBuf {
    dir.join("usr/include")
}

const PYTHON: &str = "usr/bin/python3.11";
/// Debian's pip, as the one file that its `venv` brings along.
const PIP: &str = "python3-pip-whl";
/// A server that speaks S3, with all that it needs, as PyPI has them.
const MOTO: &str = include_str!("moto.txt");
const MODULES: &str = "site";

/// A script that starts the server.
const START_S3: &str = "#!/bin/sh
root=$(dirname \"$(dirname \"$(readlink -f \"$0\")\")\")
export PYTHONHOME=\"$root/usr\" PYTHONPATH=\"$root/site\" LC_ALL=C
exec \"$root/launch/python\" -B -s -m moto.server \"$@\"
";

/// An S3 server that others wrote: moto, which keeps everything in memory, and the Python it runs on.
pub struct S3Step<'a> {
    /// Where Python comes from.
    pub apt: &'a Apt<'a>,
}

impl S3Step<'_> {
    fn python(dir: &Path, modules: &Path) -> Command {
        let mut command = Command::new(dir.join(LAUNCHERS).join("python"));
        command
            .args(["-s"])
            .env("PYTHONHOME", dir.join("usr"))
            .env("PYTHONPATH", modules)
            .env("LC_ALL", "C");
        command
    }
}

impl Step for S3Step<'_> {
    fn name(&self) -> &'static str {
        "s3"
    }

    fn recipe(&self) -> String {
        let suites = self.apt.suites();
        format!(
            "{PYTHON} with dependencies and {PIP} alone of {suites}, from PyPI:\n{MOTO}, launchers: \
             {}{START_S3}",
            launcher(PYTHON, "python")
        )
    }

    fn build(&self, dir: &Path) -> Result<()> {
        install(self.apt, &["python3.11"], dir)?;
        for package in self.apt.download_alone(&[PIP])? {
            super::unpack(&package, dir)?;
        }
        let foreign = Foreign::new(dir.to_path_buf());
        foreign.launch("python", PYTHON)?;
        let wheels = dir.join("usr/share/python-wheels");
        let wheel = fs::read_dir(&wheels)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|ending| ending == "whl"))
            .with_context(|| format!("{PIP} came without a wheel in {}", wheels.display()))?;
        let wanted = dir.join("moto.txt");
        fs::write(&wanted, MOTO)?;
        let mut pip = Self::python(dir, &wheel);
        // Nothing is built, and nothing comes that the list does not name.
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps"])
            .args(["--only-binary", ":all:", "--disable-pip-version-check"])
            .args(["--root-user-action", "ignore"])
            .arg("--target")
            .arg(dir.join(MODULES))
            .arg("-r")
            .arg(&wanted);
        process::capture(&mut pip).context(
            "pip could not install moto; `pip download moto` shows whether PyPI answers",
        )?;
        let start = dir.join(LAUNCHERS).join("s3");
        fs::write(&start, START_S3)?;
        fs::set_permissions(&start, Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", start.display()))
    }

    fn check(&self, dir: &Path) -> Result<Findings> {
        let mut ask = Self::python(dir, &dir.join(MODULES));
        ask.args(["-B", "-c"])
            .arg("import moto, moto.server, moto.s3.models; print(moto.__version__)");
        let text = process::capture(&mut ask)?;
        let found = version(&text).with_context(|| format!("moto printed: {text}"))?;
        ensure!(
            MOTO.lines().any(|line| line == format!("moto=={found}")),
            "moto {found} came instead of the one that is pinned"
        );
        Ok(Findings::default().with("moto", found))
    }
}

/// What the steps made in the folder of the bed.
pub fn found(bed: &Path, etcd: &Findings, s3: &Findings) -> Result<Stores> {
    let root = bed.join("etcd");
    Ok(Stores {
        etcd: root.join(LAUNCHERS).join("etcd"),
        etcd_version: etcd.get("etcd")?,
        protoc: root.join(LAUNCHERS).join("protoc"),
        protoc_include: include(&root),
        s3: bed.join("s3").join(LAUNCHERS).join("s3"),
        s3_version: format!("moto {}", s3.get("moto")?),
    })
}
