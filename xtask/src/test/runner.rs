//! The part that proves what the other guest parts rest on, without a device of ours: the static
//! build where there is no library, handshakes over the guest's line, and a migration whose two
//! sides are compared byte for byte.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Options;
use crate::guest::Guest;
use crate::process;
use crate::testbed::{self, Platform, TestBed};
use crate::workspace::Workspace;

const AT_MOST: Duration = Duration::from_secs(120);
const MEGABYTES: u32 = 256;

/// Runs while the host holds the guest's line.
const STATIC: &str = "\
fact version \"$(tidemark --version)\"
fact answer \"$(ask how many)\"
";
/// Dirties memory on both sides of a migration until the host has seen enough.
const BUSY: &str = "\
ask started
(read -r line <&3; echo \"$line\" > /tmp/enough) &
passes=0
while [ ! -e /tmp/enough ]; do
    dd if=/dev/urandom of=/tmp/noise bs=1M count=4
    passes=$((passes + 1))
done
fact passes $passes
";

/// The static build on each kernel, and a migration on each QEMU.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let tidemark = workspace.tidemark_static()?;
    let version = process::capture(std::process::Command::new(&tidemark).arg("--version"))?;
    for platform in bed.vfio_user_platforms() {
        in_guest(&bed, platform, &tidemark, version.trim_end())
            .with_context(|| format!("the static build on {}", platform.name()))?;
    }
    let mut pages = 0;
    let [first, _, second, _] = bed.platforms();
    for platform in [first, second] {
        pages += migrated(&bed, platform)
            .with_context(|| format!("a migration on {}", platform.name()))?;
    }
    Ok(format!(
        "{} runs in guests, {pages} pages equal after migrations",
        version.trim_end()
    ))
}

fn in_guest(bed: &TestBed, platform: Platform<'_>, tidemark: &Path, version: &str) -> Result<()> {
    let dir = bed.run_dir("static")?;
    let mut guest = Guest::new(bed, platform, STATIC);
    let vm = guest
        .file("/bin/tidemark", tidemark)
        .memory(MEGABYTES)
        .start(&dir)?;
    vm.fact("version", AT_MOST)?;
    let asked = vm.line(AT_MOST)?;
    ensure!(asked == "how many", "the guest asked {asked:?}");
    vm.qmp().stop()?;
    let bytes = vm.ram()?.metadata()?.len();
    ensure!(bytes == vm.ram_bytes(), "{bytes} bytes of memory");
    vm.qmp().cont()?;
    vm.send(&bytes.to_string())?;
    let run = vm.finish(AT_MOST)?;
    run.serial.expect("version", version)?;
    run.serial.expect("answer", &bytes.to_string())
}

/// Migrates a guest that dirties its memory, once half-way and once to the end, and gives the
/// number of pages that were compared.
fn migrated(bed: &TestBed, platform: Platform<'_>) -> Result<u64> {
    let dir = bed.run_dir("migration")?;
    let (here, there) = (dir.join("source"), dir.join("destination"));
    std::fs::create_dir(&here)?;
    std::fs::create_dir(&there)?;
    let sockets = tempfile::tempdir()?;
    let address = format!("unix:{}", sockets.path().join("migration").display());

    let source = Guest::new(bed, platform, BUSY)
        .memory(MEGABYTES)
        .start(&here)?;
    let asked = source.line(AT_MOST)?;
    ensure!(asked == "started", "the guest asked {asked:?}");
    let destination = Guest::new(bed, platform, BUSY)
        .memory(MEGABYTES)
        .incoming(&address)
        .start(&there)?;
    source.send("go")?;

    source
        .qmp()
        .migrate(&address, json!({"max-bandwidth": 1 << 20}))?;
    source.qmp().migration(&["active"], AT_MOST)?;
    source.qmp().migrate_cancel()?;
    source.qmp().migrated("cancelled", AT_MOST)?;
    // A destination that lost its source half-way has ended.
    drop(destination);
    let destination = Guest::new(bed, platform, BUSY)
        .memory(MEGABYTES)
        .incoming(&address)
        .start(&there)?;
    source
        .qmp()
        .migrate(&address, json!({"max-bandwidth": 1u64 << 30}))?;
    source.qmp().migrated("completed", AT_MOST)?;
    destination.qmp().migrated("completed", AT_MOST)?;

    let mut saved = [here.join("memory"), there.join("memory")];
    let bytes = source.ram_bytes();
    source.qmp().pmemsave(0, bytes, &saved[0])?;
    destination.qmp().pmemsave(0, bytes, &saved[1])?;
    let differing = differing(&saved)?;
    ensure!(differing == 0, "{differing} pages differ after a migration");
    for file in &mut saved {
        std::fs::remove_file(file)?;
    }
    source.quit()?;
    destination.qmp().cont()?;
    destination.send("enough")?;
    let run = destination.finish(AT_MOST)?;
    let passes: u64 = run.serial.fact("passes")?.parse()?;
    ensure!(passes > 0, "the guest was idle");
    Ok(bytes / 4096)
}

/// How many pages of two files of one length are not equal.
pub(super) fn differing(files: &[impl AsRef<Path>; 2]) -> Result<usize> {
    let read = |file: &Path| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(file)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let [one, other] = [read(files[0].as_ref())?, read(files[1].as_ref())?];
    ensure!(one.len() == other.len(), "one side has less memory");
    let pages = one.chunks(4096).zip(other.chunks(4096));
    Ok(pages.filter(|(one, other)| one != other).count())
}
