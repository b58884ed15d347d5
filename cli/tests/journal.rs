//! `tidemark journal` as people and machines call it.

use std::os::unix::fs::FileExt;
use std::process::{Command, Output};

fn journal(disk: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.arg("journal").arg("--disk").arg(disk);
    command.args(arguments).output().unwrap()
}

fn object(output: &Output) -> serde_json::Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn a_run_is_verified_later_and_a_changed_byte_is_found() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(4 << 20).unwrap();
    let ran = journal(
        disk.path(),
        &["--requests", "2000", "--progress", "500", "--json"],
    );
    assert_eq!(ran.status.code(), Some(0));
    let said = String::from_utf8(ran.stderr.clone()).unwrap();
    assert!(said.contains("journal: 2000 requests"), "{said}");
    let report = object(&ran);
    assert_eq!(report["requests"], 2000);
    let digest = report["digest"].as_str().unwrap();

    let verify = ["--verify-only", "--digest", digest, "--json"];
    let verified = journal(disk.path(), &verify);
    assert_eq!(verified.status.code(), Some(0));
    assert_eq!(object(&verified)["digest"], digest);

    disk.as_file().write_at(b"x", 12345).unwrap();
    let verified = journal(disk.path(), &verify);
    assert_eq!(verified.status.code(), Some(1));
    assert_eq!(object(&verified)["torn"], 1);
}

#[test]
fn exit_codes_tell_usage_from_an_unreachable_disk() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(journal(disk.path(), &[]).status.code(), Some(2), "no bound");
    let nowhere = std::path::Path::new("/nowhere/disk");
    assert_eq!(journal(nowhere, &["--seconds", "1"]).status.code(), Some(3));
}
