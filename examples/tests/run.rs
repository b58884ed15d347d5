//! The examples run, and are as short as the book says.

use std::process::Command;

fn runs(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    text
}

/// Lines of code: no blanks, comments or imports.
fn lines(source: &str) -> usize {
    let code = |line: &&str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with("use ") && !line.starts_with("//")
    };
    source.lines().filter(code).count()
}

#[test]
fn the_device_is_embedded_in_40_lines() {
    let text = runs(env!("CARGO_BIN_EXE_embed"), &[]);
    assert!(text.contains("structure 0x0a in BAR 0"), "{text}");
    assert!(text.contains("ACKNOWLEDGE | DRIVER"), "{text}");
    assert!(lines(include_str!("../embed.rs")) <= 40);
}

#[test]
fn pages_are_harvested_in_30_lines() {
    let text = runs(env!("CARGO_BIN_EXE_harvest"), &[]);
    let pages = [3, 14, 15].map(|page| format!("page {page} was written\n"));
    assert_eq!(text, pages.concat());
    assert!(lines(include_str!("../harvest.rs")) <= 30);
}

#[test]
fn a_function_is_judged_in_10_lines() {
    let text = runs(env!("CARGO_BIN_EXE_judge"), &["emulated"]);
    assert!(text.ends_with(": no failure\n"), "{text}");
    assert!(lines(include_str!("../judge.rs")) <= 10);
}

#[test]
fn who_is_not_there_is_not_judged() {
    let judged = Command::new(env!("CARGO_BIN_EXE_judge"))
        .arg("vfio-user:/nowhere/at.sock")
        .output()
        .unwrap();
    assert!(!judged.status.success());
}

#[test]
fn lines_of_code_are_counted() {
    assert_eq!(
        lines("//! x\nuse a;\n\nfn main() {\n    // y\n    z();\n}\n"),
        3
    );
}
