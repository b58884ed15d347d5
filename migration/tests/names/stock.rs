//! Stock git: where it is, and how it is asked.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// The oldest git with reference formats to choose from.
const AT_LEAST: (u32, u32) = (2, 45);
/// The launcher of the test bed's git, below the test bed.
const LAUNCHER: &str = "git/launch/git";

/// A git that serves.
#[derive(Clone)]
pub struct Git {
    command: Vec<String>,
}

impl Git {
    /// The one that `TIDEMARK_GIT` names (a JSON list of words), else the host's, else the test bed's.
    /// None of them is a failure.
    pub fn find() -> Self {
        if let Ok(words) = std::env::var("TIDEMARK_GIT") {
            let command =
                serde_json::from_str(&words).expect("TIDEMARK_GIT is a JSON list of words");
            let git = Self { command };
            assert!(
                git.serves(),
                "TIDEMARK_GIT={words} is no git of {AT_LEAST:?} or newer"
            );
            return git;
        }
        let bed = std::env::var_os("TIDEMARK_TESTBED").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/testbed"),
            PathBuf::from,
        );
        let launcher = bed.join(LAUNCHER);
        ["git".into(), launcher.display().to_string()]
            .map(|word| Self { command: vec![word] })
            .into_iter()
            .find(Self::serves)
            .unwrap_or_else(|| {
                panic!(
                    "no git of version {AT_LEAST:?} or newer: neither `git` nor {}; run `cargo xtask setup`",
                    launcher.display()
                )
            })
    }

    fn serves(&self) -> bool {
        let Some((program, words)) = self.command.split_first() else {
            return false;
        };
        let output = Command::new(program).args(words).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let text = text.unwrap_or_default();
        let version = text.strip_prefix("git version ").unwrap_or_default();
        let mut numbers = version
            .split('.')
            .map_while(|number| number.trim().parse().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= AT_LEAST
    }

    /// A command of git in a folder, without the host's configuration and without waiting for disks.
    pub fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .args(["-c", "core.fsync=none"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", dir)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_DIR", dir)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn output(&self, dir: &Path, words: &[&str]) -> Vec<u8> {
        let output = self.command(dir).args(words).output().expect("git starts");
        assert!(
            output.status.success(),
            "git {words:?} ended with {}",
            output.status
        );
        output.stdout
    }

    /// Whether `git check-ref-format` takes a name.
    pub fn takes(&self, dir: &Path, octets: &[u8]) -> bool {
        let mut command = self.command(dir);
        command
            .args(["check-ref-format", "--allow-onelevel"])
            .arg(OsStr::from_bytes(octets));
        command.status().expect("git starts").success()
    }
}

/// An empty repository, and a process of git that takes one transaction after another.
pub struct Repository<'a> {
    git: &'a Git,
    dir: &'a Path,
    object: String,
    updating: Option<(Child, BufReader<ChildStdout>)>,
}

impl<'a> Repository<'a> {
    /// Makes it in an empty folder.
    pub fn new(git: &'a Git, dir: &'a Path, format: &str) -> Self {
        let format = format!("--ref-format={format}");
        git.output(dir, &["init", "--quiet", "--bare", "--template=", &format]);
        let object = git.output(dir, &["hash-object", "-w", "-t", "blob", "--stdin"]);
        let object = String::from_utf8(object)
            .expect("hexadecimal")
            .trim()
            .to_owned();
        Self {
            git,
            dir,
            object,
            updating: None,
        }
    }

    /// Whether git makes these changes, all or none; each is a name and whether it is to be created.
    pub fn update<'b>(&mut self, changes: impl Iterator<Item = (&'b [u8], bool)>) -> bool {
        let mut text = b"start\0".to_vec();
        for (octets, create) in changes {
            text.extend(if create { &b"create "[..] } else { b"delete " });
            text.extend(octets);
            text.push(0);
            text.extend(self.object.as_bytes());
            text.push(0);
        }
        text.extend(b"commit\0");
        let mut start = || {
            let mut command = self.git.command(self.dir);
            command
                .args(["update-ref", "-z", "--stdin"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let mut child = command.spawn().expect("git starts");
            let output = BufReader::new(child.stdout.take().expect("piped"));
            (child, output)
        };
        let (child, output) = self.updating.get_or_insert_with(&mut start);
        // A refusal ends git, possibly before it has read everything; its answer tells.
        let _ = child.stdin.as_mut().expect("piped").write_all(&text);
        let mut line = String::new();
        while output.read_line(&mut line).expect("git's output") > 0 {
            if line.ends_with("commit: ok\n") {
                return true;
            }
        }
        let status = child.wait().expect("it ended");
        assert_eq!(status.code(), Some(128), "{line}");
        self.updating = None;
        false
    }

    /// Moves all references into the packed form.
    pub fn pack(&self) {
        self.git.output(self.dir, &["pack-refs", "--all"]);
    }

    /// All names, sorted by their octets.
    pub fn names(&self) -> Vec<Vec<u8>> {
        let text = self
            .git
            .output(self.dir, &["for-each-ref", "--format=%(refname)"]);
        let lines = text
            .split(|octet| *octet == b'\n')
            .filter(|line| !line.is_empty());
        lines.map(<[u8]>::to_vec).collect()
    }
}

impl Drop for Repository<'_> {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.updating.take() {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}
