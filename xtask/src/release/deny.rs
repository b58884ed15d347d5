//! Licences, sources and known faults of the dependencies, held to `deny.toml`.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::process;
use crate::tool::Tool;
use crate::workspace::Workspace;

const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
};

/// What of it is checked.
#[derive(Args)]
pub struct Options {
    /// Only what needs the network's list of known faults, which is left out otherwise
    #[arg(long)]
    advisories: bool,
}

/// Checks all dependencies, with every feature.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let program = CARGO_DENY.ensure(workspace)?;
    let checks: &[&str] = if options.advisories {
        &["advisories"]
    } else {
        &["bans", "licenses", "sources"]
    };
    let mut command = Command::new(program);
    command
        .current_dir(workspace.root())
        .args(["--all-features", "check"])
        .args(checks);
    process::stream(&mut command).with_context(|| match options.advisories {
        true => "advisories: either one applies, or the list of them could not be fetched",
        false => "deny.toml does not allow all of the dependencies",
    })?;
    if !options.advisories {
        println!(
            "NOT checked: known faults; that takes the network: `cargo xtask deny --advisories`"
        );
    }
    Ok(())
}
