//! `tidemark judge`: judges the driver that connects, clause by clause.

use crate::conform::{Reporting, print};
use crate::exit::{Unreachable, Usage};
use anyhow::{Context, anyhow};
use clap::Args;
use device::serve::vfio_user::{Served, VfioUserServer};
use serde_json::json;
use spec_tests::clause::Registry;
use spec_tests::judge::{Judge, Ledger, Plan, explain, list, report};
use spec_tests::report::Outcome;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How long after a notification requests are answered: the time in which buffers are exposed.
const LAG: Duration = Duration::from_millis(1);

#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// Clauses (either id), groups or rules; `*` and `?` are wild. Default: all
    #[arg(value_name = "GLOB")]
    globs: Vec<String>,
    /// Where the function is served that watches its driver
    #[arg(long, value_name = "vfio-user:PATH", value_parser = socket, required_unless_present_any = ["list", "explain", "plans"])]
    serve: Option<PathBuf>,
    /// What is offered and provoked: `watch`, another plan (see --plans), or `all`, one after the
    /// other. Default: watch
    #[arg(long, value_name = "PLAN")]
    plan: Vec<String>,
    /// The disk that is offered: it is written to. Default: 8 MiB of zeroes
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    #[command(flatten)]
    reporting: Reporting,
    /// Lists every rule with its clause, and judges nothing
    #[arg(long, conflicts_with = "explain")]
    list: bool,
    /// Explains a rule or a clause, and judges nothing
    #[arg(long, value_name = "ID")]
    explain: Option<String>,
    /// Lists the plans, and judges nothing
    #[arg(long, conflicts_with_all = ["list", "explain"])]
    plans: bool,
    /// The driver: a command that connects to the socket, run once for each plan. Without it, one
    /// client is awaited
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

fn socket(text: &str) -> Result<PathBuf, String> {
    match text.split_once(':') {
        Some(("vfio-user", path)) if !path.is_empty() => Ok(path.into()),
        _ => Err(format!("expected vfio-user:PATH, got '{text}'")),
    }
}

/// Runs `tidemark judge`.
pub fn judge(args: &JudgeArgs) -> anyhow::Result<()> {
    let registry = Registry::load().context("the registry of clauses is broken")?;
    if args.list {
        return print(&list(&registry));
    }
    if let Some(name) = &args.explain {
        let told = explain(&registry, name)
            .ok_or_else(|| Usage(format!("no rule judges '{name}': see --list")))?;
        return print(&told);
    }
    if args.plans {
        return print(&(names().join("\n") + "\n"));
    }
    let options = args.reporting.options(&args.globs)?;
    let old = args.reporting.baseline()?;
    let plans = args.chosen()?;
    let path = args
        .serve
        .as_deref()
        .ok_or_else(|| Usage("--serve vfio-user:PATH is expected".to_owned()))?;
    let mut book = Ledger::default();
    for plan in &plans {
        let judge = Judge::new(plan.clone()).context("the function cannot be made")?;
        serve(&judge, path, &args.command, plan.name)?;
        judge.book(|seen| book.absorb(seen));
    }
    if book.is_empty() {
        let path = path.display();
        return Err(Unreachable(format!(
            "nobody drove the function: a client was expected to connect to {path} and to look for a \
             virtio device there"
        ))
        .into());
    }
    let name = match args.command.as_slice() {
        [] => "a driver".to_owned(),
        command => command.join(" "),
    };
    let report = report(&registry, &options, &plans, &name, &book)
        .ok_or_else(|| Usage(format!("no rule fits {:?}: see --list", args.globs)))?;
    let written = args.reporting.write(&report, old.as_ref());
    if args.reporting.has_output() {
        let totals = report.totals();
        let count = |outcome| totals.get(&outcome).copied().unwrap_or(0);
        let exercised = report.entries.len() - count(Outcome::NotExercised);
        let waived = count(Outcome::Waived);
        println!(
            "{}",
            json!({"exercised": exercised, "waived": waived, "failed": report.failures()})
        );
    }
    written
}

fn names() -> Vec<&'static str> {
    Plan::all().iter().map(|plan| plan.name).collect()
}

impl JudgeArgs {
    fn chosen(&self) -> anyhow::Result<Vec<Plan>> {
        let mut plans = Vec::new();
        for name in &self.plan {
            if name == "all" {
                plans.extend(Plan::all());
            } else {
                let known = names().join(", ");
                let plan = Plan::named(name);
                plans.push(plan.ok_or_else(|| Usage(format!("no plan '{name}': {known}, all")))?);
            }
        }
        if plans.is_empty() {
            plans.push(Plan::default());
        }
        for plan in &mut plans {
            plan.disk.clone_from(&self.disk);
        }
        Ok(plans)
    }
}

/// Serves the function to the command, or to one client, until that is gone.
fn serve(judge: &Arc<Judge>, path: &Path, command: &[String], plan: &str) -> anyhow::Result<()> {
    let server = VfioUserServer::bind(path, Arc::clone(judge) as Arc<dyn Served>)
        .map_err(|error| Unreachable(error.to_string()))?;
    let server = Arc::new(server);
    eprintln!("tidemark: listening on {}", path.display());
    let worker = thread::spawn({
        let judge = Arc::clone(judge);
        move || judge.work(LAG)
    });
    let done = match command {
        [] => server.run().map(drop).map_err(anyhow::Error::from),
        [program, arguments @ ..] => run(&server, path, program, arguments, plan),
    };
    judge.finish();
    worker
        .join()
        .map_err(|_| anyhow!("the thread that answers requests has panicked"))?;
    done
}

/// Serves whoever the command brings, until the command has ended.
fn run(
    server: &Arc<VfioUserServer>,
    path: &Path,
    program: &str,
    arguments: &[String],
    plan: &str,
) -> anyhow::Result<()> {
    let last = Arc::new(AtomicBool::new(false));
    let serving = thread::spawn({
        let (server, last) = (Arc::clone(server), Arc::clone(&last));
        move || {
            loop {
                if let Err(error) = server.run() {
                    eprintln!("tidemark: {error}");
                }
                if last.load(Ordering::SeqCst) {
                    return;
                }
            }
        }
    });
    let ended = Command::new(program).args(arguments).status();
    // One client more, who says nothing, comes after all that the command brought.
    last.store(true, Ordering::SeqCst);
    drop(UnixStream::connect(path));
    serving
        .join()
        .map_err(|_| anyhow!("the thread that serves has panicked"))?;
    let ended = ended.map_err(|error| Usage(format!("{program}: {error}")))?;
    // A driver that is provoked may rightly fail: the verdict is on what it did.
    eprintln!("tidemark: plan {plan}: the driver's command ended with {ended}");
    Ok(())
}
