//! `matrix [--known] REPORTS OLD JSON PAGE`: sets reports side by side.
//!
//! REPORTS is a JSON list of objects with `id`, `title`, `how` and `report`, the report being one
//! of `--format json`. OLD is the matrix before, if the file is there. JSON and PAGE are written.
//! Each verdict that OLD has otherwise is a line on standard output; with `--known` only those that
//! both have.

#![forbid(unsafe_code)]

use spec_tests::clause::Registry;
use spec_tests::report::matrix::{Judged, Matrix};
use std::error::Error;
use std::fs;
use std::io::ErrorKind;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (known, paths) = match arguments.split_first() {
        Some((first, paths)) if first == "--known" => (true, paths),
        _ => (false, &arguments[..]),
    };
    let [reports, old, json, page] = paths else {
        eprintln!("usage: matrix [--known] REPORTS OLD JSON PAGE");
        return ExitCode::from(2);
    };
    match make(known, reports, old, json, page) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("matrix: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(
    known: bool,
    reports: &str,
    old: &str,
    json: &str,
    page: &str,
) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(reports).map_err(|error| format!("{reports}: {error}"))?;
    let reports: Vec<Judged> =
        serde_json::from_str(&text).map_err(|error| format!("{reports}: {error}"))?;
    let old: Matrix = match fs::read_to_string(old) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| format!("{old}: {error}"))?,
        Err(error) if error.kind() == ErrorKind::NotFound => Matrix::default(),
        Err(error) => return Err(format!("{old}: {error}").into()),
    };
    let matrix = Matrix::new(&Registry::load()?, &reports, &old);
    for difference in matrix.differences(&old) {
        if !known || difference.was.is_some() && difference.is.is_some() {
            println!("{difference}");
        }
    }
    fs::write(json, matrix.json()?)?;
    fs::write(page, matrix.page())?;
    Ok(())
}
