//! The step that is a git which knows both formats of references: what our names are held against.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Foreign;
use super::apt::Apt;
use super::foreign::{LAUNCHERS, launcher};
use super::packages::{install, major_minor, version};
use super::step::{Findings, Step};
use crate::process;

/// The program, below the step's folder.
pub const GIT: &str = "usr/bin/git";

/// A git of one Debian release.
pub struct GitStep<'a> {
    /// Where it comes from.
    pub apt: &'a Apt<'a>,
}

impl Step for GitStep<'_> {
    fn name(&self) -> &'static str {
        "git"
    }

    fn recipe(&self) -> String {
        format!(
            "git with dependencies of {}, launchers: {}",
            self.apt.suites(),
            launcher(GIT, GIT)
        )
    }

    fn build(&self, dir: &Path) -> Result<()> {
        install(self.apt, &["git"], dir)?;
        Foreign::new(dir.to_path_buf()).launch("git", GIT)
    }

    fn check(&self, dir: &Path) -> Result<Findings> {
        let foreign = Foreign::new(dir.to_path_buf());
        foreign.libraries(GIT)?;
        let launcher = dir.join(LAUNCHERS).join("git");
        let text = process::capture(Command::new(launcher).arg("--version"))?;
        let version = version(&text).with_context(|| format!("`git --version` printed: {text}"))?;
        ensure!(
            major_minor(version) >= (2, 45),
            "git {version} came, and `git init --ref-format` needs 2.45 or newer"
        );
        Ok(Findings::default().with("git", version))
    }
}
