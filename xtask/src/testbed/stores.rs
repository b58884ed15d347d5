//! The steps that only the store's proof needs: Debian's etcd, the compiler that etcd's client is
//! built with, and an S3 server that others wrote.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Foreign;
use super::apt::Apt;
use super::foreign::{LAUNCHERS, launcher};
use super::packages::{install, version};
use super::step::{Findings, Step};
use crate::process;
use crate::workspace::Workspace;

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

const S3: &str = "s3s-fs";
const S3_VERSION: &str = "0.14.1";

/// An S3 server over a folder, from crates.io, by its own locked dependencies.
pub struct S3Step<'a> {
    /// Whose cargo builds it.
    pub workspace: &'a Workspace,
}

impl Step for S3Step<'_> {
    fn name(&self) -> &'static str {
        "s3"
    }

    fn recipe(&self) -> String {
        format!("{S3} {S3_VERSION} with its feature binary, unoptimised")
    }

    fn build(&self, dir: &Path) -> Result<()> {
        let mut command = self.workspace.cargo();
        command.args([
            "install",
            S3,
            "--version",
            S3_VERSION,
            "--locked",
            "--debug",
        ]);
        command
            .args(["--features", "binary", "--no-track", "--root"])
            .arg(dir);
        // Its build folder is large, and of no further use.
        let target = dir.join("target");
        process::stream(command.env("CARGO_TARGET_DIR", &target))?;
        super::remove(&target)
    }

    fn check(&self, dir: &Path) -> Result<Findings> {
        let text = process::capture(Command::new(dir.join("bin").join(S3)).arg("--version"))?;
        let found = version(&text).with_context(|| format!("{S3} printed: {text}"))?;
        ensure!(
            found == S3_VERSION,
            "{S3} {found} came instead of {S3_VERSION}"
        );
        Ok(Findings::default().with(S3, found))
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
        s3: bed.join("s3/bin").join(S3),
        s3_version: format!("{S3} {}", s3.get(S3)?),
    })
}
