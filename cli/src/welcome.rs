//! What `tidemark` says when nothing is asked of it.

use crate::args::Cli;
use clap::CommandFactory;
use std::fmt::Write;

/// What to try first, in this order: each ends in seconds and needs nothing but this program.
const FIRST: [(&str, &str); 4] = [
    (
        "tidemark migrate",
        "moves a busy guest between two processes, and proves that nothing was lost",
    ),
    (
        "tidemark migrate --tracker off",
        "the same with the device's marks off: pages are lost, and it says so",
    ),
    (
        "tidemark conform",
        "judges the built-in device, clause by clause; --target for yours",
    ),
    (
        "tidemark watch",
        "shows a device's rounds, dirty memory, queues and state in the terminal",
    ),
];

/// What this program is for, what to try first, and all that it can do.
pub fn text() -> String {
    let mut text = String::from(
        "Which pages did the device write? Tidemark moves, tracks, suspends and judges virtio devices.\n\n\
         Try first:\n",
    );
    for (command, what) in FIRST {
        let _ = writeln!(text, "  {command:<32}{what}");
    }
    text.push_str("\nAll commands (`tidemark COMMAND --help` explains one):\n");
    for command in Cli::command().get_subcommands() {
        if !command.is_hide_set() {
            let about = command.get_about().map(ToString::to_string);
            let name = command.get_name();
            let _ = writeln!(text, "  {name:<14}{}", about.unwrap_or_default());
        }
    }
    text.push_str("\nThe book begins at docs/src/introduction.md; its tutorial takes an hour.\n");
    text
}
