//! Where things are: the workspace, its build output, its cargo.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process;

const PROGRAM: [&str; 5] = ["build", "--quiet", "--release", "--package", "cli"];
/// What guests run.
const GUEST: &str = "x86_64-unknown-linux-gnu";

/// The workspace that this program was started for.
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Asks the environment that `cargo xtask` sets, so that a moved or copied workspace works.
    pub fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").context(
            "CARGO_MANIFEST_DIR is not set, so the workspace is unknown; start as `cargo xtask`",
        )?;
        let root = Path::new(&manifest).parent().map(Path::to_path_buf);
        let root = root.context("CARGO_MANIFEST_DIR has no parent folder")?;
        ensure!(
            root.join("Cargo.toml").is_file(),
            "{} holds no Cargo.toml; start as `cargo xtask` inside the workspace",
            root.display()
        );
        Ok(Self { root })
    }

    /// The folder of the workspace.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A cargo command that runs in the workspace's root.
    pub fn cargo(&self) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(&self.root);
        command
    }

    /// Where cargo puts what it builds.
    pub fn target(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| self.root.join("target"), |dir| self.root.join(dir))
    }

    /// Where the test bed lives: `$TIDEMARK_TESTBED`, or a folder that `cargo clean` takes along.
    pub fn testbed(&self) -> PathBuf {
        env::var_os("TIDEMARK_TESTBED").map_or_else(
            || self.root.join("target/testbed"),
            |dir| self.root.join(dir),
        )
    }

    /// The release build of `tidemark`, brought up to date first: a stale program would be judged
    /// in place of the sources.
    pub fn tidemark(&self) -> Result<PathBuf> {
        self.program("tidemark")
    }

    /// The same for any program of the package `cli`.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        process::stream(self.cargo().args(PROGRAM).args(["--bin", name]))?;
        made(self.target().join("release").join(name))
    }

    /// `tidemark` for the inside of a guest, which has no libraries: linked statically.
    pub fn tidemark_static(&self) -> Result<PathBuf> {
        // Flags decide what is built again, so this build has a folder of its own. A target is
        // named, so that the flags leave build scripts and procedural macros alone.
        let dir = self.target().join("static");
        let mut command = self.cargo();
        command
            .args(PROGRAM)
            .args(["--bin", "tidemark", "--target", GUEST, "--target-dir"])
            .arg(&dir)
            .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
            // A guest unpacks it on an emulated processor, where no optimisation shows.
            .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
            .env("CARGO_PROFILE_RELEASE_LTO", "off");
        process::stream(&mut command).context(
            "no static tidemark; the linker needs the C library's static form, which is in \
             Debian's libc6-dev",
        )?;
        made(dir.join(GUEST).join("release/tidemark"))
    }
}

fn made(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.is_file(), "cargo build made no {}", path.display());
    Ok(path)
}
