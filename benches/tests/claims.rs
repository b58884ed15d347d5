//! The claims report from its command line to its files.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

fn run(args: &[&str], folder: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claims"));
    let output = command.args(args).current_dir(folder).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {text}{error}");
    text
}

/// A quick run has figures and a verdict for each claim; its page needs no other file. Other
/// figures in the JSON file make another page.
#[test]
fn a_report_stands_by_itself_and_follows_its_figures() {
    let folder = tempfile::tempdir().unwrap();
    run(&["--quick"], folder.path());
    let figures = folder.path().join("target/figures");
    let page = fs::read_to_string(figures.join("claims.html")).unwrap();
    for outside in [
        "<script", "<link", "<img", "<iframe", "src=", "url(", "@import",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("<svg") && page.contains("prefers-color-scheme"));
    let text = fs::read_to_string(figures.join("claims.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    let judged = json["judgements"].as_array().unwrap();
    assert_eq!(judged.len(), 14);
    for (number, judgement) in (1..).zip(judged) {
        assert_eq!(judgement["id"], format!("C{number}"));
        assert!(judgement["verdict"].is_string(), "C{number}");
        let grounds = judgement["grounds"].as_array().unwrap();
        assert!(!grounds.is_empty(), "C{number} has no figures");
    }

    // As if data first lost pages, too.
    let all = json["figures"].as_array_mut().unwrap();
    let figure = all
        .iter_mut()
        .find(|figure| figure["topic"] == "injected harvest" && figure["series"] == "data first")
        .unwrap();
    for sample in figure["samples"].as_array_mut().unwrap() {
        *sample = 0.123.into();
    }
    let altered = folder.path().join("altered.json");
    fs::write(&altered, json.to_string()).unwrap();
    let html = folder.path().join("altered.html");
    let files = [altered.to_str().unwrap(), html.to_str().unwrap()];
    let text = run(&["--from", files[0], "--html", files[1]], folder.path());
    assert!(text.contains("C14  depends"), "{text}");
    assert!(fs::read_to_string(&html).unwrap().contains("0.123"));
}

#[test]
fn unknown_options_are_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claims"));
    let output = command.arg("--fast").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--fast: unknown"));
}
