//! `tidemark conform`: judges a device, clause by clause.

use crate::args::Cli;
use crate::exit::{Failed, Unreachable, Usage};
use crate::generate::generate;
use anyhow::Context;
use clap::{Args, CommandFactory, ValueEnum};
use spec_tests::clause::Registry;
use spec_tests::report::{Format, Report, explain, list, reference as clauses};
use spec_tests::run::profile::Profile;
use spec_tests::run::select::Depth;
use spec_tests::run::{Options, Setup, SetupError, run};
use spec_tests::target::Address;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
pub struct ConformArgs {
    /// Clauses (either id), groups or cases; `*` and `?` are wild. Default: all
    #[arg(value_name = "GLOB")]
    globs: Vec<String>,
    /// Who is judged: `emulated`, `vfio:0000:03:00.0` (bound to vfio-pci), `vfio-user:PATH`, or
    /// `vhost-user:PATH` for rings alone. Nobody else may be driving it
    #[arg(long, value_name = "TARGET", default_value = "emulated")]
    target: Address,
    #[command(flatten)]
    reporting: Reporting,
    /// Lists every clause with its cases, and judges nothing
    #[arg(long, conflicts_with = "explain")]
    list: bool,
    /// Explains a clause or a case, and judges nothing
    #[arg(long, value_name = "ID")]
    explain: Option<String>,
    /// Seconds that the target may take for anything that it must do
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
    /// Command for a shell that starts the target again after it died or hung
    #[arg(long, value_name = "CMD")]
    restart: Option<String>,
    /// Lets cases write to the target's medium, whose contents are lost then
    #[arg(long)]
    allow_write: bool,
}

/// What is judged and how it is told, whoever is judged.
#[derive(Debug, Args)]
pub struct Reporting {
    /// Down to which level clauses are judged
    #[arg(long, value_enum, default_value = "must")]
    level: LevelArg,
    /// What the other side is said to be and what is known to be wrong with it (TOML): what a
    /// device lacks of that is a failure
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// How the report is written
    #[arg(long, value_enum, default_value = "human")]
    format: FormatArg,
    /// Where the report goes. Default: standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// An earlier report (JSON): says what fails that did not
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LevelArg {
    /// What is required or forbidden.
    Must,
    /// What is recommended as well.
    Should,
    /// Everything that has a case.
    All,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    Human,
    Json,
    Junit,
    Html,
    Tap,
}

impl From<FormatArg> for Format {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Human => Self::Human,
            FormatArg::Json => Self::Json,
            FormatArg::Junit => Self::Junit,
            FormatArg::Html => Self::Html,
            FormatArg::Tap => Self::Tap,
        }
    }
}

/// Runs `tidemark conform`.
pub fn conform(args: &ConformArgs) -> anyhow::Result<()> {
    let registry = Registry::load().context("the registry of clauses is broken")?;
    if args.list {
        return print(&list(&registry));
    }
    if let Some(name) = &args.explain {
        let told = explain(&registry, name)
            .ok_or_else(|| Usage(format!("there is no clause or case '{name}': see --list")))?;
        return print(&told);
    }
    let options = args.reporting.options(&args.globs)?;
    let old = args.reporting.baseline()?;
    let limit = Duration::from_secs(args.timeout);
    let target = args.target.clone();
    let target = target.target(limit, args.restart.clone(), args.allow_write);
    let setup = Setup::new(target).map_err(refused)?;
    let progress = std::io::stderr().is_terminal();
    let mut count = 0_usize;
    let report = run(&setup, &registry, &options, &mut |entry| {
        count += 1;
        if progress {
            eprint!("\r\x1b[K{count} {} {}", entry.name(), entry.case);
        }
    })
    .map_err(refused)?;
    if progress {
        eprint!("\r\x1b[K");
    }
    args.reporting.write(&report, old.as_ref())
}

/// Writes everything that is made from definitions: of the command line, and of the clauses.
pub fn reference(dir: &Path) -> anyhow::Result<()> {
    let registry = Registry::load().context("the registry of clauses is broken")?;
    generate(Cli::command(), dir).context("cannot write all of it")?;
    let page = dir.join("reference/clauses.md");
    fs::write(&page, clauses(&registry)).with_context(|| format!("cannot write {}", page.display()))
}

/// Prints, and ends quietly if whoever reads has read enough.
pub fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

fn refused(error: SetupError) -> anyhow::Error {
    match error {
        SetupError::Unreachable(_) => Unreachable(error.to_string()).into(),
        SetupError::Profile(_) | SetupError::Nothing(_) => Usage(error.to_string()).into(),
    }
}

impl Reporting {
    /// What of the registry is asked about.
    ///
    /// # Errors
    /// If there is a profile and it is none.
    pub fn options(&self, globs: &[String]) -> anyhow::Result<Options> {
        let profile = match &self.profile {
            None => None,
            Some(path) => {
                let text = fs::read_to_string(path)
                    .map_err(|error| Usage(format!("{}: {error}", path.display())))?;
                Some(
                    Profile::parse(&text)
                        .map_err(|error| Usage(format!("{}: {error}", path.display())))?,
                )
            }
        };
        Ok(Options {
            globs: globs.to_vec(),
            depth: match self.level {
                LevelArg::Must => Depth::Must,
                LevelArg::Should => Depth::Should,
                LevelArg::All => Depth::All,
            },
            seed: self.seed,
            profile,
        })
    }

    /// Writes the report where it is to go, and says what is worse than in an older one.
    ///
    /// # Errors
    /// If it cannot be written, or has failures.
    pub fn write(&self, report: &Report, old: Option<&Report>) -> anyhow::Result<()> {
        let text = report.write(self.format.into())?;
        match &self.output {
            Some(path) => fs::write(path, text)
                .with_context(|| format!("the report cannot be written to {}", path.display()))?,
            None => print(&text)?,
        }
        if let Some(old) = old {
            let worse = report.regressions(old);
            eprintln!("{} failures that the baseline has not", worse.len());
            for entry in worse {
                eprintln!("  {} {}", entry.clause, entry.case);
            }
        }
        match report.failures() {
            0 => Ok(()),
            count => Err(Failed(format!("{count} verdicts count as failures")).into()),
        }
    }

    /// Whether the report goes to a file.
    pub fn has_output(&self) -> bool {
        self.output.is_some()
    }

    /// The older report, if one is named.
    ///
    /// # Errors
    /// If it is none.
    pub fn baseline(&self) -> anyhow::Result<Option<Report>> {
        let Some(path) = &self.baseline else {
            return Ok(None);
        };
        let text = fs::read_to_string(path)
            .map_err(|error| Usage(format!("{}: {error}", path.display())))?;
        let report = serde_json::from_str(&text).map_err(|error| {
            Usage(format!(
                "{} is no report of --format json: {error}",
                path.display()
            ))
        })?;
        Ok(Some(report))
    }
}
