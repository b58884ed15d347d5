//! `cargo xtask fuzz`: libFuzzer on every target, with a summary; or a planted bug for each oracle,
//! which has to be found.
//!
//! The toolchain is the workspace's stable one: cargo-fuzz asks the compiler for coverage, which it
//! gives only when it is told to act as its own bootstrap (`RUSTC_BOOTSTRAP=1`).

mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::figures;
use crate::process;
use crate::test;
use crate::tool::Tool;
use crate::workspace::Workspace;
use report::Report;

/// The one that builds the targets.
const CARGO_FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
};
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Processes at once: a core for each, and their workers beside them.
const LANES: usize = 2;
/// Seconds that one input may take before it counts as hung.
const HANG_SECONDS: u64 = 25;
/// Seconds that a planted bug has to be found in.
const PLANTED_SECONDS: u64 = 120;
/// Mebibytes of a process. The oracle of a single run is much tighter.
const MEMORY_MIB: u64 = 3072;
/// Of `cargo xtask test --full`.
const FULL_MINUTES: u64 = 30;
/// Names a plant to the process, see `fuzz::targets`.
const PLANT: &str = "TIDEMARK_FUZZ_PLANT";

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How long, all targets together
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Only this target; may be given several times
    #[arg(long, value_name = "TARGET")]
    target: Vec<String>,
    /// Plant a bug for each oracle instead; each has to be found within two minutes
    #[arg(long)]
    planted: bool,
    /// What the targets are built with [default: address; with --planted none, which is faster]
    #[arg(long, value_enum)]
    sanitizer: Option<Sanitizer>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sanitizer {
    Address,
    None,
}

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::None => "none",
        }
    }
}

/// The targets, built, and where everything of theirs is.
struct Fuzzers<'w> {
    workspace: &'w Workspace,
    sanitizer: Sanitizer,
    names: Vec<String>,
}

/// Runs all for `options.minutes`, or every plant. Whether nothing was found, or all plants.
pub fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let default = if options.planted {
        Sanitizer::None
    } else {
        Sanitizer::Address
    };
    let sanitizer = options.sanitizer.unwrap_or(default);
    let fuzzers = Fuzzers::build(workspace, sanitizer, &options.target)?;
    if options.planted {
        fuzzers.plants()
    } else {
        fuzzers.fuzz(options.minutes)
    }
}

/// The part of `cargo xtask test`: what was found once is not found again; with `--full`, half an hour
/// of new inputs and all planted bugs.
pub fn part(workspace: &Workspace, options: &test::Options) -> Result<String> {
    let replay = ["test", "--quiet", "--workspace", "--test", "replay"];
    process::stream(workspace.cargo().args(replay))?;
    if !options.full {
        return Ok("kept inputs replayed".to_owned());
    }
    let fuzzing = |planted| Options {
        minutes: FULL_MINUTES,
        target: Vec::new(),
        planted,
        sanitizer: None,
    };
    ensure!(
        run(workspace, &fuzzing(true))?,
        "a planted bug was not found"
    );
    ensure!(
        run(workspace, &fuzzing(false))?,
        "something was found; its input and how to run it again stand above"
    );
    Ok(format!("{FULL_MINUTES} minutes, nothing found"))
}

impl<'w> Fuzzers<'w> {
    fn build(workspace: &'w Workspace, sanitizer: Sanitizer, wanted: &[String]) -> Result<Self> {
        let all = targets(&workspace.root().join("fuzz/libfuzzer/targets"))?;
        for name in wanted {
            ensure!(
                all.contains(name),
                "no target {name}; there are {}",
                all.join(", ")
            );
        }
        let fuzzers = Self {
            workspace,
            sanitizer,
            names: if wanted.is_empty() {
                all
            } else {
                wanted.to_vec()
            },
        };
        let target_dir = fuzzers.target_dir();
        let mut command = Command::new(CARGO_FUZZ.ensure(workspace)?);
        command
            .current_dir(workspace.root().join("fuzz/libfuzzer"))
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["fuzz", "build", "--fuzz-dir", ".", "--target", TRIPLE])
            .args(["--sanitizer", sanitizer.name(), "--target-dir"])
            .arg(&target_dir);
        process::stream(&mut command)?;
        Ok(fuzzers)
    }

    fn target_dir(&self) -> PathBuf {
        let name = format!("fuzz-{}", self.sanitizer.name());
        self.workspace.target().join(name)
    }

    fn program(&self, name: &str) -> PathBuf {
        self.target_dir().join(TRIPLE).join("release").join(name)
    }

    /// A folder of a target's, made if it is not there.
    fn folder(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let folder = self.workspace.target().join("fuzzing").join(kind);
        let folder = folder.join(name);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    /// Runs a target once, for at most `seconds`.
    fn once(&self, name: &str, seconds: u64, plant: Option<&str>) -> Result<Report> {
        let label = plant.map_or_else(|| name.to_owned(), |plant| format!("{name}-{plant}"));
        let artifacts = self.folder("found", &label)?;
        let log = self.folder("logs", name)?.join(format!("{label}.log"));
        let output =
            fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let nothing = tempfile::tempdir()?;
        let mut command = Command::new(self.program(name));
        let args = [
            format!("-max_total_time={seconds}"),
            format!("-timeout={HANG_SECONDS}"),
            format!("-rss_limit_mb={MEMORY_MIB}"),
            "-print_final_stats=1".to_owned(),
            "-detect_leaks=0".to_owned(),
            // Long inputs from the start: short ones are few steps.
            "-max_len=1024".to_owned(),
            "-len_control=0".to_owned(),
            format!("-artifact_prefix={}/", artifacts.display()),
        ];
        command.args(args);
        match plant {
            // From nothing: an input that is kept would find it at once.
            Some(plant) => command.env(PLANT, plant).arg(nothing.path()),
            None => command
                .arg(self.folder("corpus", name)?)
                .arg(self.workspace.root().join("fuzz/corpus").join(name)),
        };
        let began = Instant::now();
        let status = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .status()
            .with_context(|| format!("could not start `{}`", process::shown(&command)))?;
        let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        let report = Report::parse(&text, status.success(), began.elapsed());
        if plant.is_none() {
            ensure!(
                report.executions > 0,
                "{name} did not run: {}\n{}",
                log.display(),
                process::tail(&text)
            );
        }
        Ok(report)
    }

    /// Every job, as many at a time as there are lanes; the results in the jobs' order.
    fn all<J: Sync, R: Send>(jobs: &[J], each: impl Fn(&J) -> Result<R> + Sync) -> Result<Vec<R>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..LANES {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(job) = jobs.get(index) else {
                            break;
                        };
                        let result = each(job);
                        if let Ok(mut done) = done.lock() {
                            done.push((index, result));
                        }
                    }
                });
            }
        });
        let Ok(mut done) = done.into_inner() else {
            bail!("a run of a fuzzer panicked");
        };
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }

    fn fuzz(&self, minutes: u64) -> Result<bool> {
        let share = minutes.saturating_mul(60).saturating_mul(LANES as u64);
        let seconds = (share / (self.names.len() as u64)).max(5);
        println!(
            "fuzz: {} targets, {seconds} s each, {LANES} at a time, sanitizer {}",
            self.names.len(),
            self.sanitizer.name()
        );
        let reports = Self::all(&self.names, |name| self.once(name, seconds, None))?;
        println!("\n{}", Report::HEADER);
        let mut rows = Vec::new();
        let mut clean = true;
        for (name, report) in self.names.iter().zip(&reports) {
            println!("{}", report.row(name));
            rows.push(report.figures(name));
            if let Some(input) = &report.artifact {
                clean = false;
                println!("    {}", report.said.as_deref().unwrap_or("no words"));
                println!("    input: {input}");
                println!("    again: {} {input}", self.program(name).display());
            } else if !report.success {
                clean = false;
                println!("    ended badly, see target/fuzzing/logs/{name}/{name}.log");
            }
        }
        let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
        let figures = json!({
            "sanitizer": self.sanitizer.name(),
            "minutes": minutes,
            "lanes": LANES,
            "executions": sum(|report| report.executions),
            "edges": sum(|report| report.edges),
            "crashes": sum(|report| report.crashes()),
            "hangs": sum(|report| report.hangs()),
            "targets": rows,
        });
        figures::keep(self.workspace, "fuzz", &figures)?;
        Ok(clean)
    }

    fn plants(&self) -> Result<bool> {
        let jobs = plants(&self.workspace.root().join("fuzz/plants"), &self.names)?;
        println!("fuzz: {} planted bugs, {LANES} at a time", jobs.len());
        let reports = Self::all(&jobs, |(name, plant)| {
            self.once(name, PLANTED_SECONDS, Some(plant))
        })?;
        let mut rows = Vec::new();
        let mut all = true;
        for ((name, plant), report) in jobs.iter().zip(&reports) {
            let found = report.artifact.is_some();
            all &= found;
            let seconds = report.elapsed.as_secs_f64();
            println!(
                "{name:<12} {plant:<14} {} after {seconds:.1} s and {} executions: {}",
                if found { "found" } else { "NOT FOUND" },
                report.executions,
                report.said.as_deref().unwrap_or("-")
            );
            rows.push(json!({
                "target": name,
                "plant": plant,
                "found": found,
                "seconds": seconds,
                "executions": report.executions,
                "said": report.said,
            }));
        }
        let figures = json!({ "plants": rows, "all_found": all });
        figures::keep(self.workspace, "fuzz-planted", &figures)?;
        Ok(all)
    }
}

/// The names of the files of a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// A target for each program.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let files = names(folder)?;
    let stems = files.iter().filter_map(|name| name.strip_suffix(".rs"));
    Ok(stems.map(str::to_owned).collect())
}

/// Target and plant for each input that is kept for one.
fn plants(folder: &Path, targets: &[String]) -> Result<Vec<(String, String)>> {
    let mut jobs = Vec::new();
    for target in targets {
        for plant in names(&folder.join(target))? {
            jobs.push((target.clone(), plant));
        }
    }
    ensure!(!jobs.is_empty(), "no plants in {}", folder.display());
    Ok(jobs)
}
