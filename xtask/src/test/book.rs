//! The book and the README: every page is in the summary, every link leads somewhere, and every
//! command that is marked to be run is run and ends as it is said to.
//!
//! A fenced block of language `sh` has a line before it that says what becomes of it:
//!
//! * `<!-- run -->`: all of it is run and must succeed.
//! * `<!-- fails: N -->`: it is one command, which must end with code N.
//! * `<!-- part: NAME -->`: it takes longer; that part of the tests runs the same.
//! * `<!-- by hand: WHY -->`: nobody runs it, for a reason.
//!
//! The blocks of one page are run in order by one shell in a fresh folder, so what one block makes or
//! starts is there for the next. `cargo` goes to the workspace, the others are its programs.

mod blocks;
mod links;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use super::{Options, PARTS};
use crate::process::{Watched, tail};
use crate::workspace::Workspace;
use blocks::{Block, Fate};

/// How long all the blocks of a page may take.
const AT_MOST: Duration = Duration::from_secs(300);

/// Looks at all pages, then runs what is to be run.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let root = workspace.root();
    let pages = links::pages(root)?;
    let broken = links::check(root, &pages)?;
    ensure!(broken.is_empty(), "{}", broken.join("\n"));

    let mut scripts = Vec::new();
    let (mut commands, mut elsewhere) = (0, 0);
    for page in &pages {
        let name = page
            .strip_prefix(root)
            .unwrap_or(page)
            .display()
            .to_string();
        let text = fs::read_to_string(page).with_context(|| format!("cannot read {name}"))?;
        let blocks = blocks::read(&text).with_context(|| name.clone())?;
        for block in &blocks {
            if let Fate::Part(part) = &block.fate {
                let known = PARTS.iter().any(|known| known.name == part);
                ensure!(known, "{name}, line {}: `{part}` is no part", block.line);
            }
        }
        let own = blocks.iter().filter(|block| block.fate.is_run()).count();
        commands += own;
        elsewhere += blocks.len() - own;
        if own > 0 {
            scripts.push((name, script(&blocks)));
        }
    }
    ensure!(commands > 0, "no block is marked to be run");
    let programs = programs(workspace)?;
    for (name, script) in &scripts {
        let began = std::time::Instant::now();
        carry_out(workspace, &programs, script).with_context(|| name.clone())?;
        println!("{name}: ran in {:.1} s", began.elapsed().as_secs_f64());
    }
    Ok(format!(
        "{} pages, every link leads somewhere; {commands} blocks ran, {elsewhere} are others' or by hand",
        pages.len()
    ))
}

/// Where the programs are, brought up to date.
fn programs(workspace: &Workspace) -> Result<PathBuf> {
    workspace.program("tidemark-vhost-user-blk")?;
    let tidemark = workspace.tidemark()?;
    let dir = tidemark.parent().context("the program is in no folder")?;
    Ok(dir.to_path_buf())
}

/// One script of all blocks of a page that are run.
fn script(blocks: &[Block]) -> String {
    let mut script = String::from(
        "set -eu\ncargo() { here=$PWD; cd \"$WORKSPACE\"; code=0; command cargo \"$@\" || code=$?; cd \"$here\"; \
         return $code; }\n",
    );
    for block in blocks {
        let told = format!("echo '--- line {}' >&2\n", block.line);
        match block.fate {
            Fate::Run => script.push_str(&format!("{told}{}\n", block.text)),
            Fate::Fails(code) => script.push_str(&format!(
                "{told}code=0\n{} || code=$?\n[ $code = {code} ] || {{ echo \"exit code $code, {code} expected\" >&2; exit 99; }}\n",
                block.text.trim_end()
            )),
            Fate::Part(_) | Fate::ByHand => {}
        }
    }
    script
}

/// Runs a script in a folder of its own; whatever it leaves running is ended.
fn carry_out(workspace: &Workspace, programs: &Path, script: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let said = tempfile::NamedTempFile::new()?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .current_dir(folder.path())
        .env("PATH", format!("{}:{path}", programs.display()))
        .env("WORKSPACE", workspace.root())
        .env_remove("RUST_LOG")
        .stdout(Stdio::from(said.reopen()?))
        .stderr(Stdio::from(said.reopen()?))
        .process_group(0);
    let mut shell = Watched::spawn(&mut command)?;
    let status = shell.wait(AT_MOST);
    let group = i32::try_from(shell.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // Fails if nothing is left, which is as well.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let said = fs::read(said.path())?;
    let said = tail(&String::from_utf8_lossy(&said));
    let status = status?.with_context(|| format!("it ran for {} s\n{said}", AT_MOST.as_secs()))?;
    ensure!(status.success(), "it ended with {status}\n{said}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Result<()> {
        let workspace = Workspace::find()?;
        carry_out(&workspace, Path::new("/bin"), &script(&blocks::read(text)?))
    }

    fn page(marker: &str, text: &str) -> String {
        format!("<!-- {marker} -->\n```sh\n{text}\n```\n")
    }

    #[test]
    fn blocks_of_a_page_are_run_in_order_and_in_one_place() {
        let text =
            page("run", "echo one > a\nsleep 600 &") + &page("run", "[ \"$(cat a)\" = one ]");
        outcome(&text).expect("what the first block leaves is there");
    }

    #[test]
    fn a_command_that_fails_fails_its_page() {
        let error = outcome(&page("run", "true\nfalse\ntrue")).expect_err("false is a failure");
        assert!(format!("{error:#}").contains("--- line 2"), "{error:#}");
    }

    #[test]
    fn a_command_that_is_to_fail_must_do_so_as_it_is_said() {
        outcome(&page("fails: 3", "sh -c 'exit 3'")).expect("3 is what was said");
        assert!(outcome(&page("fails: 1", "sh -c 'exit 3'")).is_err());
        assert!(outcome(&page("fails: 1", "true")).is_err());
    }

    #[test]
    fn what_is_anothers_is_not_run() {
        outcome(&page("part: live", "false")).expect("nothing runs");
        outcome(&page("by hand: no card here", "false")).expect("nothing runs");
    }
}
