//! `cargo xtask test`: the parts in order, what each took, and a last line that machines read.

mod agents;
mod backend;
mod book;
mod cargo;
mod conform;
mod faults;
pub(crate) mod guest_boot;
mod guest_disk;
mod house;
mod judge;
mod killed;
mod live;
mod mediate;
mod migrate;
mod names;
mod pci_config;
mod promises;
mod runner;
pub(crate) mod served;
mod store;
mod stream;
mod tree;
mod vfio;

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::testbed;
use crate::workspace::Workspace;

/// What the command line selects.
#[derive(Args)]
pub struct Options {
    /// Run the long variants too
    #[arg(long)]
    pub full: bool,
    /// Run only these parts
    #[arg(long, value_delimiter = ',', value_name = "PART", value_parser = part_names())]
    only: Vec<String>,
    /// List the parts and run none
    #[arg(long)]
    list: bool,
}

/// One part of the tests. It gives a few words on what it did, or the reason of its failure:
/// there is no third outcome, so nothing can be skipped in silence.
struct Part {
    name: &'static str,
    about: &'static str,
    run: fn(&Workspace, &Options) -> Result<String>,
}

const PARTS: &[Part] = &[
    Part {
        name: "setup",
        about: "the test bed is there and boots",
        run: setup,
    },
    Part {
        name: "fmt",
        about: "the formatting of all sources",
        run: cargo::fmt,
    },
    Part {
        name: "house",
        about: "short files, and unsafe where it may stand",
        run: house::run,
    },
    Part {
        name: "clippy",
        about: "the lints, none allowed",
        run: cargo::clippy,
    },
    Part {
        name: "doc",
        about: "the documentation builds without a warning",
        run: cargo::doc,
    },
    Part {
        name: "build",
        about: "the release build",
        run: cargo::build,
    },
    Part {
        name: "unit",
        about: "all tests of all crates",
        run: cargo::unit,
    },
    Part {
        name: "proofs",
        about: "the models of what runs at once; with --full AddressSanitizer as well",
        run: proofs,
    },
    Part {
        name: "names",
        about: "batches of names end as stock git ends them",
        run: names::run,
    },
    Part {
        name: "migrate",
        about: "the main job passes, and fails untracked",
        run: migrate::run,
    },
    Part {
        name: "conform",
        about: "ours keep every clause; each implementation fares as the matrix says",
        run: conform::run,
    },
    Part {
        name: "agents",
        about: "agents are killed while devices are changed: all or none, nothing left locked unsaid",
        run: agents::run,
    },
    Part {
        name: "faults",
        about: "one thing goes wrong in each of many moves and pairs; nothing lost or doubled",
        run: faults::run,
    },
    Part {
        name: "store",
        about: "flipped bits told, processes of the store killed anywhere, nothing named damaged",
        run: store::run,
    },
    Part {
        name: "stream",
        about: "Xen's own verifier takes our streams, and refuses damaged ones",
        run: stream::run,
    },
    Part {
        name: "runner",
        about: "guests as the proofs use them, without ours",
        run: runner::run,
    },
    Part {
        name: "guest",
        about: "stock Linux on our disk: plain, IOMMU, administration and packed queues",
        run: guest_disk::run,
    },
    Part {
        name: "judge",
        about: "Linux drives a device that judges it",
        run: judge::run,
    },
    Part {
        name: "boot",
        about: "firmware and Linux come up from our disk",
        run: guest_boot::run,
    },
    Part {
        name: "vfio",
        about: "our driver in a guest, compared by bytes",
        run: vfio::run,
    },
    Part {
        name: "mediate",
        about: "devices moved and killed under stock Linux, which notices nothing",
        run: mediate::run,
    },
    Part {
        name: "live",
        about: "QEMU moves guests on our disk under load, compared",
        run: live::run,
    },
    Part {
        name: "fuzz",
        about: "kept inputs again, and with --full half an hour of new ones",
        run: crate::fuzz::part,
    },
    Part {
        name: "killed",
        about: "backends killed under load, nothing lost or doubled",
        run: killed::run,
    },
    Part {
        name: "book",
        about: "the commands of README and book run, and their links lead somewhere",
        run: book::run,
    },
    Part {
        name: "promises",
        about: "each promise of the book is enforced by what ran here and passed",
        run: promises::run,
    },
];

struct Outcome {
    name: &'static str,
    seconds: f64,
    result: Result<String>,
}

/// Runs the selected parts, each whatever became of the others. Whether all passed.
pub fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let selected = select(&options.only);
    if options.list {
        for part in selected {
            println!("{:<8} {}", part.name, part.about);
        }
        return Ok(true);
    }
    let mut outcomes = Vec::new();
    for part in selected {
        println!("=== {}: {}", part.name, part.about);
        let began = Instant::now();
        let result = attempt(part, workspace, options);
        let seconds = began.elapsed().as_secs_f64();
        match &result {
            Ok(_) => println!("=== {} passed in {seconds:.1} s", part.name),
            Err(error) => println!("=== {} FAILED in {seconds:.1} s: {error:#}", part.name),
        }
        outcomes.push(Outcome {
            name: part.name,
            seconds,
            result,
        });
    }
    report(&outcomes)
}

/// One part, and a mark that it passed for the part `promises`.
fn attempt(part: &Part, workspace: &Workspace, options: &Options) -> Result<String> {
    promises::unmark(workspace, part.name)?;
    let result = (part.run)(workspace, options)?;
    promises::mark(workspace, part.name, &result)?;
    Ok(result)
}

fn part_names() -> PossibleValuesParser {
    PossibleValuesParser::new(PARTS.iter().map(|part| part.name))
}

/// The parts in their own order; no name selects all.
fn select(only: &[String]) -> impl Iterator<Item = &'static Part> {
    let wanted = |part: &&Part| only.is_empty() || only.iter().any(|name| name == part.name);
    PARTS.iter().filter(wanted)
}

fn report(outcomes: &[Outcome]) -> Result<bool> {
    println!("\n{:<8} {:>8}  result", "part", "seconds");
    for Outcome {
        name,
        seconds,
        result,
    } in outcomes
    {
        let text = match result {
            Ok(text) => format!("passed: {text}"),
            Err(error) => format!("FAILED: {}", error.to_string().lines().next().unwrap_or("")),
        };
        println!("{name:<8} {seconds:>8.1}  {text}");
    }
    let total: f64 = outcomes.iter().map(|outcome| outcome.seconds).sum();
    println!("{:<8} {total:>8.1}\n", "all");
    let failed = outcomes
        .iter()
        .filter(|outcome| outcome.result.is_err())
        .count();
    println!("{} passed, {failed} failed", outcomes.len() - failed);
    std::io::stdout()
        .flush()
        .context("cannot write the last line")?;
    Ok(failed == 0)
}

fn setup(workspace: &Workspace, _options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    Ok(format!(
        "QEMU {} and {}, Linux {} and {}",
        bed.qemu_backports.version,
        bed.qemu_bookworm.version,
        bed.kernel_bookworm.release,
        bed.kernel_trixie.release
    ))
}

fn proofs(workspace: &Workspace, options: &Options) -> Result<String> {
    if options.full {
        crate::proofs::run(workspace)?;
        return Ok("models explored, nothing found by AddressSanitizer".to_owned());
    }
    crate::proofs::interleavings(workspace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_selected_in_their_own_order() {
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|&name| name.to_owned()).collect();
            select(&only).map(|part| part.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&["unit", "fmt"]), ["fmt", "unit"]);
        assert_eq!(names(&[]).len(), PARTS.len());
    }
}
