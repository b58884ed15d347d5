//! `cargo xtask matrix`: judges every implementation, sets the reports side by side and writes what
//! is committed under `docs/matrix`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{Column, Judged, Programs, docs, text};
use crate::process;
use crate::testbed;
use crate::workspace::Workspace;

/// What the command line selects.
#[derive(Args)]
pub struct Options {
    /// Judge only the implementations whose names begin so; the others keep what they have
    #[arg(long, value_delimiter = ',', value_name = "COLUMN")]
    only: Vec<String>,
    /// List the implementations, and judge none
    #[arg(long)]
    list: bool,
}

/// Runs it.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let bed = testbed::ensure(workspace)?;
    let programs = Programs::new(workspace, &bed)?;
    let mut columns = programs.columns();
    columns.retain(|column| {
        let named = |name: &String| column.id.starts_with(name.as_str());
        options.only.is_empty() || options.only.iter().any(named)
    });
    ensure!(
        !columns.is_empty(),
        "no implementation has such a name: see --list"
    );
    if options.list {
        for Column { id, .. } in columns {
            println!("{id}");
        }
        return Ok(());
    }
    let judged = programs.judge(&columns)?;
    let made = side_by_side(workspace, &judged, false)?;
    for difference in &made.differences {
        println!("{difference}");
    }
    let docs = docs(workspace);
    fs::create_dir_all(&docs)?;
    for file in [&made.json, &made.page] {
        let name = file.file_name().context("a file has a name")?;
        fs::copy(file, docs.join(name))?;
    }
    println!(
        "{} implementations judged, {} verdicts differ from before; see {}",
        columns.len(),
        made.differences.len(),
        docs.display()
    );
    Ok(())
}

/// A matrix that was made and is not committed yet.
pub struct Made {
    json: PathBuf,
    page: PathBuf,
    /// The verdicts that the committed one has otherwise, one a line.
    pub differences: Vec<String>,
}

/// Sets reports beside those that are committed. With `known`, only those verdicts are compared
/// that both have: cases that came since the last matrix are no difference.
pub fn side_by_side(workspace: &Workspace, judged: &[Judged], known: bool) -> Result<Made> {
    let dir = workspace.target().join("matrix");
    fs::create_dir_all(&dir)?;
    let reports = dir.join("reports.json");
    let values: Vec<_> = judged.iter().map(|one| &one.value).collect();
    fs::write(&reports, serde_json::to_string(&values)?)?;
    let (json, page) = (dir.join("matrix.json"), dir.join("matrix.html"));
    let old = docs(workspace).join("matrix.json");
    let mut command = workspace.cargo();
    command.args([
        "run",
        "--quiet",
        "--package",
        "spec-tests",
        "--bin",
        "matrix",
        "--",
    ]);
    if known {
        command.arg("--known");
    }
    for path in [&reports, &old, &json, &page] {
        command.arg(text(path)?);
    }
    let said = process::capture(&mut command)?;
    Ok(Made {
        json,
        page,
        differences: said.lines().map(str::to_owned).collect(),
    })
}
