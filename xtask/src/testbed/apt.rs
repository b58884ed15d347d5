//! apt with folders of its own: resolves and downloads packages of a release that is not the
//! host's, without a trace on the host and without waiting for the host's locks.

use std::cell::{Cell, OnceCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::remove;
use crate::process;

/// Signs all Debian releases. The folder of trusted keys serves where the file is missing.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where the host itself gets its packages from: asked once, and only when something is missing.
#[derive(Default)]
pub struct Mirror {
    rows: OnceCell<Vec<Row>>,
}

/// One index that the host's apt would download.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    uri: String,
    suite: String,
}

impl Mirror {
    fn rows(&self) -> Result<&[Row]> {
        if let Some(rows) = self.rows.get() {
            return Ok(rows);
        }
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        ensure!(
            release.lines().any(|line| line == "ID=debian") && std::env::consts::ARCH == "x86_64",
            "the test bed is made of Debian's amd64 packages, and this is not Debian on x86_64 \
             (tried /etc/os-release); run it on Debian 12, for example in a container: \
             `docker run -it -v \"$PWD:/src\" -w /src rust:bookworm cargo xtask setup`"
        );
        let text = process::capture(Command::new("apt-get").args([
            "indextargets",
            // A machine that has never run `apt-get update` knows its sources all the same.
            "--no-release-info",
            "--format",
            "$(REPO_URI)|$(RELEASE)",
            "Created-By: Packages",
        ]))
        .context("cannot read the mirror from apt's configuration; try `apt-get indextargets`")?;
        Ok(self.rows.get_or_init(|| parse_rows(&text)))
    }

    /// The address that serves a suite: as configured, or the same as a suite of the same kind of
    /// another release.
    fn uri(&self, suite: &str) -> Result<&str> {
        let kind = |suite: &str| suite.ends_with("-security");
        let rows = self.rows()?;
        // Sources may name the host's release by its codename or by its age.
        let codename = codename().unwrap_or_default();
        let of_host = |row: &&Row| {
            let release = row.suite.split('-').next().unwrap_or_default();
            [codename.as_str(), "stable", "oldstable"].contains(&release)
                && kind(&row.suite) == kind(suite)
        };
        let row = rows
            .iter()
            .find(|row| row.suite == suite)
            .or_else(|| rows.iter().find(of_host));
        row.map(|row| row.uri.as_str()).with_context(|| {
            format!(
                "apt's configuration names no mirror for {suite}; it has {:?}; add Debian's \
                 sources to /etc/apt/sources.list.d and run `apt-get update`",
                rows.iter().map(|row| &row.suite).collect::<Vec<_>>()
            )
        })
    }
}

fn codename() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME=").map(str::to_owned))
}

fn parse_rows(text: &str) -> Vec<Row> {
    text.lines()
        .filter_map(|line| line.split_once('|'))
        .map(|(uri, suite)| Row {
            uri: uri.to_owned(),
            suite: suite.to_owned(),
        })
        .collect()
}

/// One release's packages.
pub struct Apt<'a> {
    dir: PathBuf,
    suites: &'static [&'static str],
    mirror: &'a Mirror,
    refreshed: Cell<bool>,
}

impl<'a> Apt<'a> {
    /// Nothing is read or written before the first download.
    pub fn new(
        bed: &Path,
        name: &str,
        suites: &'static [&'static str],
        mirror: &'a Mirror,
    ) -> Self {
        let dir = bed.join("apt").join(name);
        Self {
            dir,
            suites,
            mirror,
            refreshed: Cell::new(false),
        }
    }

    /// The suites, for a step's recipe.
    pub fn suites(&self) -> String {
        self.suites.join("+")
    }

    /// Downloads the packages and all they depend on.
    pub fn download_with_dependencies(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        self.download(|| {
            let mut command = self.command("apt-get");
            // The newest suite wins where several carry a package.
            let newest = self.suites.last().copied().unwrap_or_default();
            command.arg(format!("-oAPT::Default-Release={newest}"));
            command
                .args(["--yes", "--download-only", "install"])
                .args(packages);
            command
        })
    }

    /// Downloads the packages alone.
    pub fn download_alone(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        self.download(|| {
            let mut command = self.command("apt-get");
            command
                .arg("download")
                .args(packages)
                .current_dir(self.archives());
            command
        })
    }

    /// What a package depends on directly.
    pub fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        self.refresh()?;
        let mut command = self.command("apt-cache");
        let text = process::capture(command.args(["depends", "--important", package]))?;
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_owned).collect())
    }

    fn download(&self, command: impl FnOnce() -> Command) -> Result<Vec<PathBuf>> {
        self.refresh()?;
        remove(&self.archives())?;
        fs::create_dir_all(self.archives().join("partial"))?;
        process::capture(&mut command()).context(
            "apt could not download; `apt-get update` and `apt-get download busybox-static` show \
             whether the mirror answers",
        )?;
        let entries = fs::read_dir(self.archives())?.collect::<Result<Vec<_>, _>>()?;
        let mut packages: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        packages.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        if packages.is_empty() {
            bail!(
                "apt reported success and left no package in {}",
                self.archives().display()
            );
        }
        Ok(packages)
    }

    /// Fetches the lists of packages, once in this run: older ones may name files that are gone.
    fn refresh(&self) -> Result<()> {
        if self.refreshed.get() {
            return Ok(());
        }
        remove(&self.dir)?;
        fs::create_dir_all(self.dir.join("lists/partial"))?;
        fs::create_dir_all(self.archives().join("partial"))?;
        // An empty status: dependencies are resolved as if nothing were installed.
        fs::write(self.dir.join("status"), "")?;
        let signed = if Path::new(KEYRING).is_file() {
            format!("[signed-by={KEYRING}] ")
        } else {
            String::new()
        };
        let mut sources = String::new();
        for suite in self.suites {
            sources.push_str(&format!(
                "deb {signed}{} {suite} main\n",
                self.mirror.uri(suite)?
            ));
        }
        fs::write(self.dir.join("sources.list"), &sources)?;
        process::capture(self.command("apt-get").arg("update")).with_context(|| {
            format!(
                "apt cannot read the package lists of {}; if the host's own `apt-get update` fails \
                 too, mend the network or /etc/apt first; tried\n{sources}",
                self.suites()
            )
        })?;
        self.refreshed.set(true);
        Ok(())
    }

    fn archives(&self) -> PathBuf {
        self.dir.join("archives")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut path = |option: &str, path: &Path| {
            command.arg(format!("-o{option}={}", path.display()));
        };
        path("Dir::Etc::sourcelist", &self.dir.join("sources.list"));
        path("Dir::Etc::sourceparts", Path::new("/dev/null"));
        path("Dir::Etc::preferences", Path::new("/dev/null"));
        path("Dir::Etc::preferencesparts", Path::new("/dev/null"));
        path("Dir::State::lists", &self.dir.join("lists"));
        path("Dir::State::status", &self.dir.join("status"));
        path(
            "Dir::State::extended_states",
            &self.dir.join("extended_states"),
        );
        path("Dir::Cache::archives", &self.archives());
        command.args([
            // Caches would go to the host's folder, and one run has little use for them.
            "-oDir::Cache::pkgcache=",
            "-oDir::Cache::srcpkgcache=",
            // apt's own unprivileged user cannot write into our folder.
            "-oAPT::Sandbox::User=root",
            "-oAPT::Install-Recommends=false",
            "-oAPT::Update::Error-Mode=any",
            // The host's hooks would tell desktop services of packages that it does not have.
            "-o#clear=APT::Update::Post-Invoke",
            "-oAcquire::Retries=3",
            "-oAcquire::http::Timeout=30",
            "-oAcquire::Languages=none",
            "-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "-qq",
        ]);
        command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(rows: &str) -> Mirror {
        Mirror {
            rows: parse_rows(rows).into(),
        }
    }

    #[test]
    fn a_configured_suite_keeps_its_own_address() {
        let mirror = mirror("m://a/|bookworm\nm://b/|bookworm-security\n");
        assert_eq!(mirror.uri("bookworm-security").ok(), Some("m://b/"));
        assert_eq!(mirror.uri("bookworm").ok(), Some("m://a/"));
    }

    #[test]
    fn another_release_comes_from_the_address_of_its_kind() {
        let mirror = mirror("m://b/|stable-security\nm://a/|stable\n");
        assert_eq!(mirror.uri("trixie-backports").ok(), Some("m://a/"));
        assert_eq!(mirror.uri("bookworm-security").ok(), Some("m://b/"));
    }

    #[test]
    fn a_missing_mirror_is_named() {
        let error = mirror("").uri("trixie").expect_err("there is no row");
        assert!(error.to_string().contains("trixie"), "{error}");
    }
}
