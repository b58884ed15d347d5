//! What is made from the definitions of the command lines: the book's reference, man pages,
//! completions.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Where the book keeps what is made.
const BOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/reference");

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{program} {args:?}: {errors}"
    );
    String::from_utf8(output.stdout).unwrap()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_books_reference_is_what_the_programs_say() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().to_str().unwrap();
    run(env!("CARGO_BIN_EXE_tidemark"), &["generate", to]);
    let backend = env!("CARGO_BIN_EXE_tidemark-vhost-user-blk");
    run(backend, &["--generate", to]);
    for name in ["tidemark", "tidemark-vhost-user-blk"] {
        let page = format!("{name}.md");
        let made = read(&dir.path().join("reference").join(&page));
        let kept = read(&Path::new(BOOK).join(&page));
        assert!(
            made == kept,
            "docs/src/reference/{page} is old; run `cargo xtask generate`"
        );
        let manual = read(&dir.path().join(format!("man/{name}.1")));
        assert!(manual.contains(".SH OPTIONS"), "{manual}");
    }
    let migrate = read(&dir.path().join("man/tidemark-migrate.1"));
    assert!(migrate.contains("tracker"), "{migrate}");
    assert!(!dir.path().join("man/tidemark-soak.1").exists());
    let codes = read(&dir.path().join("man/tidemark.1"));
    assert!(codes.contains("Exit codes"), "{codes}");
}

#[test]
fn shells_are_taught_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(env!("CARGO_BIN_EXE_tidemark"), &["completions", shell]);
        for word in ["migrate", "conform", "workload"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
    // A script that a shell cannot read completes nothing.
    let script = run(env!("CARGO_BIN_EXE_tidemark"), &["completions", "bash"]);
    let checked = Command::new("bash").args(["-n", "-c", &script]).status();
    assert!(checked.unwrap().success());
}
