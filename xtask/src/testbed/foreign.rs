//! Programs of another Debian release, run on the host through their own dynamic loader.
//!
//! Preferred over a chroot: sockets, images and kernels keep the host's paths, no `/dev` has to
//! be bound into the folder (a mount that a killed run leaves behind, and that a careless
//! `rm -r` follows), and no root is needed. What it asks for in return: QEMU finds its firmware
//! and modules relative to its executable, which is the loader then, so both are passed
//! explicitly.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::process;

/// Where Debian's amd64 libraries are. The loader is among them.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
/// The dynamic loader's file name, and its path as programs name it.
const LOADER: &str = "ld-linux-x86-64.so.2";
const INTERPRETER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Where a folder's launchers are.
pub const LAUNCHERS: &str = "launch";

/// A script that starts a program of the folder it is in, wherever that folder is.
pub fn launcher(program: &str, name: &str) -> String {
    let [first, second] = LIBRARIES;
    format!(
        "#!/bin/sh
root=$(dirname \"$(dirname \"$(readlink -f \"$0\")\")\")
for dir in {first} {second}; do
    loader=$root/$dir/{LOADER}
    [ -f \"$loader\" ] && break
done
export QEMU_MODULE_DIR=\"$root/{second}/qemu\" GCONV_PATH=\"$root/{second}/gconv\"
exec \"$loader\" --inhibit-cache --library-path \"$root/{first}:$root/{second}\" \\
    --argv0 {name} \"$root/{program}\" \"$@\"
"
    )
}

/// A folder with unpacked packages.
#[derive(Clone, Serialize)]
pub struct Foreign {
    /// The folder.
    pub root: PathBuf,
}

impl Foreign {
    /// Over a folder, which may be empty still.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// A command that runs a program of the folder, given by its path below it.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.command_named(program, program)
    }

    /// The same for a program that acts by the name it is called by. Its links of those names may
    /// be absolute, and would lead to the host's.
    pub fn command_named(&self, program: &str, name: &str) -> Result<Command> {
        let path = self.root.join(program);
        ensure!(
            path.is_file(),
            "the test bed has no {}; run `cargo xtask setup`",
            path.display()
        );
        let mut command = self.loader()?;
        command.args(["--argv0", name]).arg(path);
        Ok(command)
    }

    /// Makes a launcher for a program under a name, for who starts it by itself.
    pub fn launch(&self, name: &str, program: &str) -> Result<()> {
        let dir = self.root.join(LAUNCHERS);
        fs::create_dir_all(&dir)?;
        let path = dir.join(name);
        fs::write(&path, launcher(program, name))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", path.display()))
    }

    /// The files that a program of the folder needs to run in a guest, as pairs of the guest's
    /// path and the host's: the loader and the libraries, which the loader itself lists. One that
    /// is taken from the host is an error.
    pub fn libraries(&self, program: &str) -> Result<Vec<(String, PathBuf)>> {
        let mut command = self.loader()?;
        let text = process::capture(command.arg("--list").arg(self.root.join(program)))?;
        let mut files = vec![(INTERPRETER.to_owned(), self.loader_path()?)];
        for (name, path) in listed(&text) {
            let path = PathBuf::from(path);
            ensure!(
                path.starts_with(&self.root),
                "{program} has no {name} in the test bed, and would take {}",
                path.display()
            );
            files.push((format!("/lib/x86_64-linux-gnu/{name}"), path));
        }
        Ok(files)
    }

    fn loader_path(&self) -> Result<PathBuf> {
        let mut places = LIBRARIES.iter().map(|dir| self.root.join(dir).join(LOADER));
        places.find(|path| path.is_file()).with_context(|| {
            format!(
                "no {LOADER} in {}; run `cargo xtask setup`",
                self.root.display()
            )
        })
    }

    fn loader(&self) -> Result<Command> {
        let path: Vec<_> = LIBRARIES
            .map(|dir| self.root.join(dir).display().to_string())
            .into();
        let mut command = Command::new(self.loader_path()?);
        // The host's cache would serve a library that is missing here. Its default folders still
        // would, which is why every step's check goes through `libraries`.
        command
            .arg("--inhibit-cache")
            .arg("--library-path")
            .arg(path.join(":"));
        Ok(command)
    }
}

/// Reads `name => path (address)` lines; the loader and the vDSO have no arrow.
fn listed(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let (name, rest) = line.trim().split_once(" => ")?;
        let (path, _address) = rest.rsplit_once(" (")?;
        (!name.starts_with('/')).then_some((name, path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_are_listed() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /r b/libc.so.6 (0x2)\n\
                    \t/lib64/ld-linux-x86-64.so.2 => /r b/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(
            listed(text).collect::<Vec<_>>(),
            [("libc.so.6", "/r b/libc.so.6")]
        );
    }
}
