//! Man pages, completions and the reference, made from the definition of a command line.

use clap::Command;
use clap_complete::Shell;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

/// Writes a program's man pages to `man/`, its completions to `completions/` and its page of the
/// book's reference to `reference/`, all below `dir`.
///
/// # Errors
/// If a folder or file cannot be made.
pub fn generate(mut command: Command, dir: &Path) -> io::Result<()> {
    let folder = |name: &str| -> io::Result<_> {
        let path = dir.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    };
    let name = command.get_name().to_owned();
    let page = folder("reference")?.join(format!("{name}.md"));
    fs::write(page, reference(command.clone()))?;
    // Before completions, which add `help` and all below it to the command.
    clap_mangen::generate_to(command.clone(), folder("man")?)?;
    let completions = folder("completions")?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, &name, &completions)?;
    }
    Ok(())
}

/// The program's help, command by command, as a page of the book.
fn reference(mut command: Command) -> String {
    // Commands learn here what they are called in full.
    command.build();
    let mut page = format!(
        "# {0}\n\nMade from the program by `cargo xtask generate`; `{0} --help` says the same.\n",
        command.get_name()
    );
    section(&command, &mut page);
    page
}

fn section(command: &Command, page: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let help = command.clone().render_long_help().to_string();
    let _ = write!(page, "\n## {name}\n\n```text\n");
    for line in help.trim_end().lines() {
        let _ = writeln!(page, "{}", line.trim_end());
    }
    page.push_str("```\n");
    let shown = |inner: &&Command| !inner.is_hide_set() && inner.get_name() != "help";
    for inner in command.get_subcommands().filter(shown) {
        section(inner, page);
    }
}
