//! Programs of other projects from the registry: one version each, built once.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::workspace::Workspace;

/// A program from the registry.
pub struct Tool {
    /// The package and the program.
    pub name: &'static str,
    /// The one version.
    pub version: &'static str,
}

impl Tool {
    /// The program, built with its own lock file into `target/tools` if it is not there.
    pub fn ensure(&self, workspace: &Workspace) -> Result<PathBuf> {
        let (name, version) = (self.name, self.version);
        let root = workspace
            .target()
            .join("tools")
            .join(format!("{name}-{version}"));
        let program = root.join("bin").join(name);
        if !program.is_file() {
            println!("building {name} {version}, once; this takes some minutes");
            let mut command = workspace.cargo();
            command
                .args(["install", "--locked", "--version", version, "--root"])
                .arg(&root)
                .arg(name);
            process::stream(&mut command)
                .with_context(|| format!("{name} {version} cannot be built"))?;
        }
        ensure!(
            program.is_file(),
            "cargo install made no {}",
            program.display()
        );
        Ok(program)
    }
}
