//! Man pages, completions and the book's reference, as the programs themselves write them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::workspace::Workspace;

/// Where the book keeps its reference.
const REFERENCE: &str = "docs/src/reference";

/// Makes all of it anew below `target/generated`, puts the reference into the book, and gives the
/// folder.
pub fn run(workspace: &Workspace) -> Result<PathBuf> {
    let dir = workspace.target().join("generated");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    for (program, word) in [
        ("tidemark", "generate"),
        ("tidemark-vhost-user-blk", "--generate"),
    ] {
        let mut command = workspace.cargo();
        command
            .args(["run", "--quiet", "--package", "cli", "--bin", program, "--"])
            .arg(word)
            .arg(&dir);
        process::stream(&mut command)?;
    }
    let mut pages = 0;
    let made = dir.join("reference");
    for entry in fs::read_dir(&made).with_context(|| format!("cannot list {}", made.display()))? {
        let page = entry?;
        let to = workspace.root().join(REFERENCE).join(page.file_name());
        fs::copy(page.path(), &to).with_context(|| format!("cannot write {}", to.display()))?;
        pages += 1;
    }
    ensure!(pages > 0, "the programs wrote no page of the reference");
    println!(
        "{pages} pages in {REFERENCE}; man pages and completions in {}",
        dir.display()
    );
    Ok(dir)
}
