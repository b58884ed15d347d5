//! A step of the setup: built once, stamped, checked in every run and built again when broken.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::remove;

/// What a step found in its folder, by name: versions, mostly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings(BTreeMap<String, String>);

impl Findings {
    /// Adds one.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// One that the step promises.
    pub fn get(&self, name: &str) -> Result<String> {
        self.0
            .get(name)
            .cloned()
            .with_context(|| format!("the step recorded no {name}"))
    }

    fn shown(&self) -> String {
        let pairs: Vec<_> = self
            .0
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        pairs.join(", ")
    }
}

/// One artefact of the test bed, in a folder of its own.
pub trait Step {
    /// Names the folder and the line of progress.
    fn name(&self) -> &'static str;

    /// All that decides what is built: a stamp with another recipe is void.
    fn recipe(&self) -> String;

    /// Fills the folder.
    fn build(&self, dir: &Path) -> Result<()>;

    /// Proves that the folder's content works, and tells what it is.
    fn check(&self, dir: &Path) -> Result<Findings>;
}

/// The last file that a build writes.
#[derive(Serialize, Deserialize)]
struct Stamp {
    recipe: String,
    findings: Findings,
}

const STAMP: &str = "stamp.json";

/// Keeps a folder that proves sound and builds any other.
pub fn ensure<S: Step>(bed: &Path, step: &S) -> Result<Findings> {
    let began = Instant::now();
    let name = step.name();
    let dir = bed.join(name);
    print!("setup: {name:<15} ");
    std::io::stdout().flush()?;
    let (verb, findings) = match kept(&dir, step) {
        Ok(findings) => ("kept", findings),
        Err(reason) => {
            if dir.exists() {
                println!("broken, building it again: {reason:#}");
                print!("setup: {name:<15} ");
                std::io::stdout().flush()?;
            }
            let built = build(bed, &dir, step);
            if built.is_err() {
                println!("failed after {:.1} s", began.elapsed().as_secs_f64());
            }
            (
                "built",
                built.with_context(|| format!("setup step {name} failed"))?,
            )
        }
    };
    println!(
        "{verb} in {:.1} s: {}",
        began.elapsed().as_secs_f64(),
        findings.shown()
    );
    Ok(findings)
}

fn kept<S: Step>(dir: &Path, step: &S) -> Result<Findings> {
    let text = fs::read_to_string(dir.join(STAMP)).context("no stamp")?;
    let stamp: Stamp = serde_json::from_str(&text).context("the stamp is unreadable")?;
    anyhow::ensure!(stamp.recipe == step.recipe(), "built by another recipe");
    let found = step.check(dir)?;
    anyhow::ensure!(
        found == stamp.findings,
        "found {}, and the stamp says {}",
        found.shown(),
        stamp.findings.shown()
    );
    Ok(found)
}

fn build<S: Step>(bed: &Path, dir: &Path, step: &S) -> Result<Findings> {
    remove(dir)?;
    // Built beside and moved into place, so that a folder of the right name is always whole.
    let partial = bed.join(format!("{}.partial", step.name()));
    remove(&partial)?;
    fs::create_dir_all(&partial)?;
    step.build(&partial)?;
    let findings = step.check(&partial)?;
    let stamp = Stamp {
        recipe: step.recipe(),
        findings: findings.clone(),
    };
    fs::write(
        partial.join(STAMP),
        serde_json::to_string_pretty(&stamp)? + "\n",
    )?;
    fs::rename(&partial, dir)?;
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[derive(Default)]
    struct Counted {
        builds: Cell<u32>,
        recipe: &'static str,
    }

    impl Step for Counted {
        fn name(&self) -> &'static str {
            "counted"
        }

        fn recipe(&self) -> String {
            self.recipe.to_owned()
        }

        fn build(&self, dir: &Path) -> Result<()> {
            self.builds.set(self.builds.get() + 1);
            Ok(fs::write(dir.join("artefact"), "1")?)
        }

        fn check(&self, dir: &Path) -> Result<Findings> {
            let text = fs::read_to_string(dir.join("artefact")).context("no artefact")?;
            Ok(Findings::default().with("artefact", text))
        }
    }

    #[test]
    fn a_sound_step_is_kept_and_a_broken_one_is_built_again() -> Result<()> {
        let bed = tempfile::tempdir()?;
        let mut step = Counted::default();
        ensure(bed.path(), &step)?;
        ensure(bed.path(), &step)?;
        assert_eq!(step.builds.get(), 1, "a sound step is kept");

        fs::remove_file(bed.path().join("counted/artefact"))?;
        ensure(bed.path(), &step)?;
        assert_eq!(step.builds.get(), 2, "a missing artefact");

        fs::write(bed.path().join("counted/artefact"), "2")?;
        ensure(bed.path(), &step)?;
        assert_eq!(
            step.builds.get(),
            3,
            "an artefact that is not the stamped one"
        );

        step.recipe = "new";
        ensure(bed.path(), &step)?;
        assert_eq!(step.builds.get(), 4, "another recipe");
        Ok(())
    }
}
