//! The Debian package: built, unpacked, and its programs run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::generate;
use crate::process;
use crate::tool::Tool;
use crate::workspace::Workspace;

const CARGO_DEB: Tool = Tool {
    name: "cargo-deb",
    version: "3.8.0",
};

/// What must be in it, beside the programs.
const CONTENT: [&str; 8] = [
    "usr/share/man/man1/tidemark.1.gz",
    "usr/share/man/man1/tidemark-migrate.1.gz",
    "usr/share/man/man1/tidemark-vhost-user-blk.1.gz",
    "usr/share/bash-completion/completions/tidemark",
    "usr/share/zsh/vendor-completions/_tidemark",
    "usr/share/fish/vendor_completions.d/tidemark.fish",
    "usr/share/doc/tidemark/book/tutorial.md",
    "usr/share/doc/tidemark/LICENSE-BSD-3-Clause",
];

/// Builds the package and proves what is in it.
pub fn run(workspace: &Workspace) -> Result<()> {
    generate::run(workspace)?;
    let package = workspace.target().join("debian/tidemark.deb");
    let mut command = Command::new(CARGO_DEB.ensure(workspace)?);
    command
        .current_dir(workspace.root())
        .args(["--package", "cli", "--locked", "--output"])
        .arg(&package);
    process::stream(&mut command)?;
    check(&package)?;
    println!("{} holds what it must", package.display());
    Ok(())
}

/// Unpacks the package, looks for its files and runs its programs.
fn check(package: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    process::stream(Command::new("dpkg-deb").arg("-x").arg(package).arg(root))
        .context("dpkg-deb unpacks packages; it is part of Debian's dpkg")?;
    for file in CONTENT {
        ensure!(root.join(file).is_file(), "the package holds no /{file}");
    }
    let said = process::capture(&mut Command::new(root.join("usr/bin/tidemark")))?;
    ensure!(said.contains("Try first"), "tidemark says {said}");
    let judged = ["conform", "SUS-*"];
    process::capture(Command::new(root.join("usr/bin/tidemark")).args(judged))?;

    let descriptor = root.join("usr/share/qemu/vhost-user/50-tidemark-vhost-user-blk.json");
    let descriptor: Value = serde_json::from_str(
        &fs::read_to_string(&descriptor)
            .with_context(|| format!("cannot read {}", descriptor.display()))?,
    )?;
    let backend = descriptor["binary"]
        .as_str()
        .context("it names no binary")?;
    let backend = root.join(backend.trim_start_matches('/'));
    let said = process::capture(Command::new(&backend).arg("--print-capabilities"))?;
    let said: Value = serde_json::from_str(&said).context("capabilities are JSON")?;
    ensure!(
        said["type"] == descriptor["type"],
        "the descriptor says {}, the program {said}",
        descriptor["type"]
    );
    Ok(())
}
