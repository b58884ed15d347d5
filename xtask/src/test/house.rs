//! The rules of the house that no compiler checks: short files, and `unsafe` where it may stand.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Options;
use crate::workspace::Workspace;

/// Lines that a source file may have, its tests included.
const LINES: usize = 800;

/// The modules that map memory, view it as atomics, scan it or lend it to the kernel, and the sandbox's two; nobody
/// else may be unsafe.
const UNSAFE: &[&str] = &[
    "device/src/blk/ring.rs",
    "device/src/dma/guard.rs",
    "device/src/tracker/bitmap.rs",
    "device/src/tracker/records/table.rs",
    "device/src/tracker/window.rs",
    "driver/src/bus/vfio/raw.rs",
    "driver/src/dirty/scan.rs",
    "driver/src/memory/raw.rs",
    // The handler that names a call which was stopped, and the test that makes such calls.
    "sandbox/src/stop.rs",
    "sandbox/tests/stopped/raw.rs",
];

/// Checks every source file.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let mut files = Vec::new();
    sources(workspace.root(), &mut files)?;
    ensure!(!files.is_empty(), "no source file found");
    let (mut longest, mut broken) = (0, Vec::new());
    for file in &files {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file
            .strip_prefix(workspace.root())
            .unwrap_or(file)
            .display()
            .to_string();
        let lines = text.lines().count();
        longest = longest.max(lines);
        if lines > LINES {
            broken.push(format!(
                "{name} has {lines} lines, at most {LINES} are allowed"
            ));
        }
        if is_unsafe(&text) && !UNSAFE.contains(&name.as_str()) {
            broken.push(format!(
                "{name} is unsafe and not in the list of those that may be"
            ));
        }
    }
    ensure!(broken.is_empty(), "{}", broken.join("; "));
    Ok(format!(
        "{} files, the longest of {longest} lines",
        files.len()
    ))
}

/// Whether a line of code, comments aside, has the keyword.
fn is_unsafe(text: &str) -> bool {
    let keyword = |code: &str| {
        ["{", "fn", "impl", "trait", "extern"]
            .iter()
            .any(|next| code.contains(&["unsafe", next].join(" ")))
    };
    text.lines()
        .map(|line| line.split("//").next().unwrap_or(""))
        .any(keyword)
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found)?;
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_unsafe;

    #[test]
    fn the_keyword_is_found_in_code_only() {
        let block = ["let x = unsafe", "{ y };"].join(" ");
        assert!(is_unsafe(&block));
        assert!(!is_unsafe(&format!("// {block}")));
        assert!(!is_unsafe("#![deny(unsafe_code)]"));
    }
}
