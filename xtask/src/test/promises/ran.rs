//! Which tests there are, and what has run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process;
use crate::workspace::Workspace;

/// Every test of the workspace, by the program that has it.
pub struct Tests {
    programs: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Tests {
    /// Asks every test program, which are built if they are not.
    pub fn list(workspace: &Workspace) -> Result<Self> {
        let mut cargo = workspace.cargo();
        cargo
            .args(["test", "--workspace", "--no-run", "--quiet"])
            .arg("--message-format=json")
            .stderr(Stdio::inherit());
        let messages = process::capture(&mut cargo)?;
        let mut programs = BTreeMap::new();
        for line in messages.lines() {
            let message: Value = serde_json::from_str(line)
                .with_context(|| format!("cargo says what is no JSON: {line}"))?;
            if let Some((program, path)) = program(&message) {
                let names = names(workspace, &path)?;
                programs.insert(program, names);
            }
        }
        ensure!(!programs.is_empty(), "cargo named no test program");
        Ok(Self { programs })
    }

    /// In how many programs a test of that name is, if `program` is one of them.
    pub fn programs_with(&self, program: &(String, String), name: &str) -> Option<usize> {
        self.programs
            .get(program)
            .filter(|names| names.contains(name))?;
        let with = self.programs.values();
        Some(with.filter(|names| names.contains(name)).count())
    }

    /// Made up.
    #[cfg(test)]
    pub fn of(listed: &[(&str, &str, &str)]) -> Self {
        let mut programs: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for &(package, target, name) in listed {
            let program = (package.to_owned(), target.to_owned());
            programs.entry(program).or_default().insert(name.to_owned());
        }
        Self { programs }
    }
}

/// The test program that a message of cargo's speaks of.
fn program(message: &Value) -> Option<((String, String), PathBuf)> {
    let path = message["executable"].as_str()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    // Packages are called as their folders are.
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    let package = folder.file_name()?.to_str()?.to_owned();
    let name = message["target"]["name"].as_str()?;
    let target = match message["target"]["kind"][0].as_str()? {
        "lib" => "--lib".to_owned(),
        kind => format!("--{kind} {name}"),
    };
    Some(((package, target), path.into()))
}

fn names(workspace: &Workspace, path: &Path) -> Result<BTreeSet<String>> {
    let mut command = Command::new(path);
    command
        .arg("--list")
        .current_dir(workspace.root())
        .env("CARGO_MANIFEST_DIR", workspace.root().join("xtask"));
    let listed = process::capture(&mut command)?;
    let names = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// What has run and passed, as it was left behind.
pub struct Ran {
    tests: BTreeMap<String, usize>,
    parts: BTreeSet<String>,
}

impl Ran {
    /// Reads what the parts have left; what has never run left nothing.
    pub fn read(workspace: &Workspace) -> Result<Self> {
        let said = match fs::read_to_string(KeptTests::path(workspace)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            said => said.context("cannot read what the tests said")?,
        };
        let mut parts = BTreeSet::new();
        for part in super::PARTS {
            if marked(workspace, part.name).exists() {
                parts.insert(part.name.to_owned());
            }
        }
        Ok(Self {
            tests: passed(&said),
            parts,
        })
    }

    /// Whether a part has passed.
    pub fn part(&self, name: &str) -> bool {
        self.parts.contains(name)
    }

    /// How many tests of that name have passed.
    pub fn passes(&self, name: &str) -> usize {
        self.tests.get(name).copied().unwrap_or_default()
    }

    /// Made up.
    #[cfg(test)]
    pub fn of(said: &str, parts: &[&str]) -> Self {
        Self {
            tests: passed(said),
            parts: parts.iter().map(|&part| part.to_owned()).collect(),
        }
    }
}

/// The names in lines `test NAME ... ok` and `test [KIND] NAME ... ok`, counted.
fn passed(said: &str) -> BTreeMap<String, usize> {
    let mut tests: BTreeMap<String, usize> = BTreeMap::new();
    let lines = said.lines().filter_map(|line| {
        let name = line
            .strip_prefix("test ")?
            .strip_suffix("... ok")?
            .trim_end();
        let name = match name.split_once("] ") {
            Some((kind, name)) if kind.starts_with('[') => name,
            _ => name,
        };
        // What is to panic has that said behind its name.
        Some(name.split(" - ").next().unwrap_or(name).trim())
    });
    for name in lines {
        *tests.entry(name.to_owned()).or_default() += 1;
    }
    tests
}

/// What all tests said in their last run.
pub struct KeptTests;

impl KeptTests {
    fn path(workspace: &Workspace) -> PathBuf {
        workspace.target().join("figures/unit.txt")
    }

    /// Keeps it.
    pub fn keep(workspace: &Workspace, said: &str) -> Result<()> {
        write(&Self::path(workspace), said)
    }
}

/// Notes that a part has passed.
pub fn mark(workspace: &Workspace, part: &str, result: &str) -> Result<()> {
    write(&marked(workspace, part), result)
}

/// Forgets that a part has ever passed, since it begins anew.
pub fn unmark(workspace: &Workspace, part: &str) -> Result<()> {
    let path = marked(workspace, part);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn marked(workspace: &Workspace, part: &str) -> PathBuf {
    workspace.target().join("figures/passed").join(part)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_both_test_programs_print_them() {
        let said = "test a::b ... ok\ntest a::b ... ok\ntest c - should panic ... ok\n\
            test [project] SUS-1 some_case ... ok\ntest d ... FAILED\ntest e ... ignored\n\
            test f   ... ok\n";
        let passed = passed(said);
        assert_eq!(passed.get("a::b"), Some(&2));
        assert_eq!(passed.get("SUS-1 some_case"), Some(&1));
        for (name, ran) in [("c", true), ("f", true), ("d", false), ("e", false)] {
            assert_eq!(passed.contains_key(name), ran, "{name}");
        }
    }

    #[test]
    fn test_programs_are_told_from_other_artifacts() {
        let message = |kind: &str, test: bool| {
            serde_json::json!({"reason": "compiler-artifact", "executable": "/x/moves-1",
                "manifest_path": "/w/vm/Cargo.toml", "profile": {"test": test},
                "target": {"name": "moves", "kind": [kind]}})
        };
        let is = |message: &Value| program(message).map(|((package, target), _)| (package, target));
        assert_eq!(
            is(&message("test", true)),
            Some(("vm".into(), "--test moves".into()))
        );
        assert_eq!(
            is(&message("lib", true)),
            Some(("vm".into(), "--lib".into()))
        );
        assert_eq!(is(&message("bin", false)), None);
    }
}
