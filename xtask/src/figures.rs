//! What the proofs found, as numbers: printed, and kept for whoever compares runs.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::workspace::Workspace;

/// Prints a part's figures as one JSON object and keeps it as `target/figures/PART.json`.
pub fn keep(workspace: &Workspace, part: &str, figures: &Value) -> Result<()> {
    println!("{part}: {figures}");
    let dir = workspace.target().join("figures");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join(format!("{part}.json"));
    fs::write(&path, serde_json::to_string_pretty(figures)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}
