//! The page of promises, as data.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

/// One promise.
#[derive(Debug)]
pub struct Promise {
    /// Its number, from 1 on.
    pub number: usize,
    /// What enforces it, at least one.
    pub enforcers: Vec<Enforcer>,
}

/// What enforces a promise, as the command that runs it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Enforcer {
    /// A test.
    Test {
        /// The program that has it: the package, and `--lib`, `--bin NAME` or `--test NAME`.
        program: (String, String),
        /// The test's whole name.
        name: String,
    },
    /// A part of `cargo xtask test`.
    Part(String),
}

impl fmt::Display for Enforcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Test {
                program: (package, target),
                name,
            } => write!(f, "cargo test -p {package} {target} {name}"),
            Self::Part(name) => write!(f, "cargo xtask test --only {name}"),
        }
    }
}

/// Reads the page: headings `### N. TITLE`, numbered without a gap, each followed by a list whose every
/// item is a command.
pub fn read(text: &str) -> Result<Vec<Promise>> {
    let mut promises: Vec<Promise> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let place = || format!("line {}: {line}", index + 1);
        if let Some(heading) = line.strip_prefix("### ") {
            let number = promises.len() + 1;
            let due = format!("{number}. ");
            ensure!(
                heading.starts_with(&due),
                "{}: expected a heading that begins with `### {due}`",
                place()
            );
            promises.push(Promise {
                number,
                enforcers: Vec::new(),
            });
        } else if let Some(item) = line.strip_prefix("- ") {
            let promise = promises
                .last_mut()
                .with_context(|| format!("{}: it stands before the first promise", place()))?;
            promise.enforcers.push(enforcer(item).with_context(place)?);
        }
    }
    ensure!(!promises.is_empty(), "no promise in it");
    for promise in &promises {
        ensure!(
            !promise.enforcers.is_empty(),
            "promise {} is enforced by nothing",
            promise.number
        );
    }
    Ok(promises)
}

fn enforcer(item: &str) -> Result<Enforcer> {
    let command = item
        .strip_prefix('`')
        .and_then(|rest| rest.strip_suffix('`'))
        .context("expected one command in backquotes and nothing else")?;
    let words: Vec<&str> = command.split(' ').collect();
    let test = |package: &str, target: String, name: &str| Enforcer::Test {
        program: (package.to_owned(), target),
        name: name.to_owned(),
    };
    Ok(match words[..] {
        ["cargo", "xtask", "test", "--only", part] => Enforcer::Part(part.to_owned()),
        ["cargo", "test", "-p", package, "--lib", name] => test(package, "--lib".into(), name),
        [
            "cargo",
            "test",
            "-p",
            package,
            kind @ ("--test" | "--bin"),
            target,
            name,
        ] => test(package, format!("{kind} {target}"), name),
        _ => bail!(
            "expected `cargo xtask test --only PART` or \
             `cargo test -p PACKAGE --lib|--test TARGET|--bin TARGET NAME`"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        format!("{:#}", read(text).expect_err("it is no page"))
    }

    #[test]
    fn a_promise_without_anything_that_enforces_it_is_none() {
        let text = "### 1. One\n\n- `cargo xtask test --only live`\n\n### 2. Two\n\nOnly words.\n";
        assert!(refused(text).contains("promise 2"));
    }

    #[test]
    fn numbers_have_no_gap() {
        assert!(
            refused("### 1. One\n- `cargo xtask test --only a`\n### 3. Three\n")
                .contains("`### 2. `")
        );
    }

    #[test]
    fn what_is_no_command_is_told_with_its_line() {
        for item in [
            "- words",
            "- `cargo test names`",
            "- `cargo xtask test`, and more",
        ] {
            let told = refused(&format!("### 1. One\n\n{item}\n"));
            assert!(told.contains("line 3"), "{told}");
        }
        assert!(refused("- `cargo xtask test --only live`\n").contains("line 1"));
        assert!(refused("").contains("no promise"));
    }
}
