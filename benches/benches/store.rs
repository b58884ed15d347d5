//! A durable batch of names: ours beside `git update-ref`, whole processes, on the same disk, both
//! syncing.
//!
//! Ours does more: it puts a body before it names it. Both check each name against all.

use benches::{Bound, Line, Mode, Ratio, finish, interleave, settle, wanted};
use migration::names::{Mode as Apply, Name};
use migration::store::{Address, Extent, Store, Wanted};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const STORED: usize = 100_000;
const NEW: usize = 10_000;
/// The child's first argument.
const BATCH: &str = "--put-names-of-the-input";

/// The names of one round: no two rounds have one in common.
fn names(round: usize, count: usize) -> Vec<String> {
    let name = |number: usize| {
        let (vm, host, disk) = (number / 200, number % 16, number / 50 % 4);
        format!("vm/{vm:05}/host/{host:03}/dev/disk{disk}/epoch/{round:03}{number:08}")
    };
    (0..count).map(name).collect()
}

/// What the child does: one batch, whole and durable.
fn put(store: &str) {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).expect("names");
    let address = Address::parse(store, None).expect("a folder");
    let store = Store::open(&address, true).expect("a store");
    let mut deposit = store.deposit(None).expect("a body");
    deposit.pages(&[0], &[0; 4096]).expect("a page");
    let sealed = deposit.seal(Extent::Whole, b"{}", &[]).expect("a body");
    let name = |line: &str| -> (Name, Wanted<'_>) {
        (line.parse().expect("a name"), Wanted::Put(&sealed))
    };
    let wanted: Vec<_> = text.lines().map(name).collect();
    let applied = store.commit(&wanted, Apply::Atomic).expect("a commit");
    assert_eq!(applied.made, wanted.len());
}

/// Runs a command on some input; how long it took from its start to its end.
fn timed(command: &mut Command, input: &str) -> Duration {
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().expect("a child");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("input");
    drop(stdin);
    assert!(child.wait().expect("a child").success(), "{command:?}");
    start.elapsed()
}

fn ours(store: &Path, names: &[String]) -> Duration {
    let this = std::env::current_exe().expect("this program");
    let mut command = Command::new(this);
    timed(command.arg(BATCH).arg(store), &(names.join("\n") + "\n"))
}

/// Git as the test bed has it, whose format of references is known.
fn git() -> PathBuf {
    let bed = std::env::var_os("TIDEMARK_TESTBED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/testbed"),
        PathBuf::from,
    );
    let git = bed.join("git/launch/git");
    assert!(
        git.is_file(),
        "{} is not there: run `cargo xtask setup`",
        git.display()
    );
    git
}

/// A repository with one object.
struct Git<'p> {
    program: &'p Path,
    folder: PathBuf,
    object: String,
}

impl<'p> Git<'p> {
    fn new(program: &'p Path, folder: &Path, format: &str) -> Self {
        let folder = folder.join(format);
        let git = Self {
            program,
            folder,
            object: String::new(),
        };
        let mut init = git.command();
        init.args([
            "init",
            "--quiet",
            "--bare",
            &format!("--ref-format={format}"),
            ".",
        ]);
        fs::create_dir_all(&git.folder).expect("a folder");
        timed(&mut init, "");
        let mut hash = git.command();
        hash.args([
            "commit-tree",
            "-m",
            "x",
            "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
        ]);
        let mut tree = git.command();
        timed(
            tree.args(["hash-object", "-t", "tree", "-w", "--stdin"]),
            "",
        );
        let output = hash.output().expect("git");
        assert!(output.status.success(), "{output:?}");
        let object = String::from_utf8(output.stdout)
            .expect("an id")
            .trim()
            .to_owned();
        Self { object, ..git }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.current_dir(&self.folder).env_clear();
        for who in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{who}_NAME"), "a")
                .env(format!("GIT_{who}_EMAIL"), "a@b");
        }
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    /// Makes all names; whether it is on the disk before the end, as `fsync` says.
    fn update(&self, names: &[String], fsync: &str) -> Duration {
        let lines = names
            .iter()
            .map(|name| format!("create refs/{name} {}\n", self.object));
        let mut command = self.command();
        command.args([
            "-c",
            &format!("core.fsync={fsync}"),
            "-c",
            "core.fsyncMethod=fsync",
        ]);
        timed(
            command.args(["update-ref", "--stdin"]),
            &lines.collect::<String>(),
        )
    }
}

fn measure(lines: &mut Vec<Line>, folder: &Path, git: &Path, version: &str, format: &str) {
    let store = folder.join(format!("beside-{format}"));
    ours(&store, &names(0, STORED));
    let git = Git::new(git, folder, format);
    // What is there before need not have been synced name by name.
    git.update(&names(0, STORED), "none");
    let mut pack = git.command();
    timed(pack.args(["pack-refs", "--all"]), "");
    let [mut mine, mut theirs] = [1.., 1..].map(|rounds| rounds.map(|round| names(round, NEW)));
    let next = |names: &mut dyn Iterator<Item = Vec<String>>| names.next().unwrap_or_default();
    // Each of its references is a file of its own, and a sync.
    let rounds = if format == "files" { 3 } else { 9 };
    let ratio: Ratio = interleave(
        rounds,
        || ours(&store, &next(&mut mine)),
        // What we do: everything on the disk before the end.
        || git.update(&next(&mut theirs), "committed"),
    );
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    lines.push(Line {
        name: format!("durable batch of {NEW} : git {version} update-ref, {format}"),
        bound: Bound::AtMost(1.0),
        figure: ratio.median(),
        spread: ratio.spread(),
        detail: format!(
            "{:.1} ms : {:.1} ms",
            milliseconds(ratio.subject),
            milliseconds(ratio.peer)
        ),
    });
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(BATCH) {
        put(&arguments.next().unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    let mode = Mode::from_args();
    let mut lines = Vec::new();
    if wanted("store") {
        // Where builds are is a disk; where temporary files are may be memory.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let git = git();
        let output = Command::new(&git).arg("--version").output().expect("git");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.trim().trim_start_matches("git version ");
        settle();
        for format in ["reftable", "files"] {
            measure(&mut lines, folder.path(), &git, version, format);
            lines
                .iter()
                .last()
                .into_iter()
                .for_each(|line| line.print(mode));
        }
    }
    finish(&lines)
}
