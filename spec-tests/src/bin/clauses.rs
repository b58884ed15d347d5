//! `clauses --against LIST.tsv`: how the registry differs from a list of the statements of another
//! version of the standard. Without an argument: what is judged, and what is not and why.

#![forbid(unsafe_code)]

use spec_tests::clause::Registry;
use spec_tests::clause::compare::Differences;
use spec_tests::report::coverage_line;
use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => account(),
        ["--against", list] => against(list),
        _ => {
            eprintln!("usage: clauses [--against LIST.tsv]");
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("clauses: {error}");
        ExitCode::from(2)
    })
}

fn account() -> Result<ExitCode, Box<dyn Error>> {
    print!("{}", coverage_line(&Registry::load()?));
    Ok(ExitCode::SUCCESS)
}

/// Exit code 1 if there is a difference.
fn against(path: &str) -> Result<ExitCode, Box<dyn Error>> {
    let list = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let found = Differences::new(&Registry::load()?, &list)?;
    println!("{found}");
    Ok(ExitCode::from(u8::from(!found.is_empty())))
}
