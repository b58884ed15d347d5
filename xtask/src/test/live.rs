//! The part in which QEMU itself moves guests whose disk is ours, while they work on it: from one
//! process to another and back, given up half-way in between, every page of memory compared.
//!
//! Guests boot with `init_on_alloc=0` and read into memory that nothing else touches, so a page that
//! the device wrote and did not mark is on one side only. Every run has its negative control: with
//! marking off the same move must differ.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Options;
use super::backend::{Backend, Report};
use super::runner::differing;
use crate::figures;
use crate::guest::{Guest, Migration, Running};
use crate::testbed::{self, Platform, TestBed};
use crate::workspace::Workspace;

const AT_MOST: Duration = Duration::from_secs(120);
const MEGABYTES: u32 = 256;
const PAGES: u64 = (MEGABYTES as u64) << 8;
const DISK: u64 = 64 << 20;
/// Fast enough to end, slow enough that the guest reads much on the way.
const BANDWIDTH: u64 = 24 << 20;
const SLOW: u64 = 4 << 20;
/// A move counts only if the device wrote so many pages on the way.
const WRITTEN: u64 = 10_000;

/// Reads and writes as fast as it can until the host says so; its progress is the host's clock.
const WORK: &str = "\
fact driver \"$(basename \"$(readlink /sys/block/vda/device/driver)\")\"
tidemark journal --disk /dev/vda --depth 16 --block 64K --writes 20 --arena 64M \
    --progress 50 --control - --json <&3 2>&3 >/tmp/report || true
fact journal \"$(tail -n 1 /tmp/report)\"
";

/// Everything that a run needs.
struct Bed<'a> {
    bed: &'a TestBed,
    platform: Platform<'a>,
    tidemark: &'a Path,
    program: &'a Path,
    dir: PathBuf,
    disk: PathBuf,
    sockets: TempDir,
}

/// One QEMU with its backend.
struct Side {
    backend: Backend,
    vm: Running,
    dir: PathBuf,
}

/// Both QEMUs, with the kernel of their own time.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let tidemark = workspace.tidemark_static()?;
    let program = workspace.program("tidemark-vhost-user-blk")?;
    let [newest, _, oldest, _] = bed.platforms();
    let mut all = Vec::new();
    for platform in [oldest, newest] {
        let figures = moves(&bed, platform, &tidemark, &program)
            .with_context(|| format!("live migration on {}", platform.name()))?;
        all.push(figures);
    }
    figures::keep(workspace, "live", &json!(all))?;
    let compared = all.iter().map(|run| run["pages_compared"].as_u64());
    let compared: u64 = compared.map(Option::unwrap_or_default).sum();
    Ok(format!(
        "{compared} pages compared, none lost; without marks many"
    ))
}

fn moves(bed: &TestBed, platform: Platform<'_>, tidemark: &Path, program: &Path) -> Result<Value> {
    let dir = bed.run_dir(&format!("live-{}", platform.name()))?;
    let disk = dir.join("disk.img");
    File::create(&disk)?.set_len(DISK)?;
    let bed = Bed {
        bed,
        platform,
        tidemark,
        program,
        disk,
        dir,
        sockets: tempfile::tempdir()?,
    };

    let first = bed.side("first", None, &[])?;
    first.at_work()?;
    // Given up half-way, when the guest's memory has been sent once.
    let second = bed.side("second", Some("second"), &[])?;
    let cancelled = bed.cancelled(&first, "second")?;
    drop(second);
    first.at_work()?;

    let second = bed.side("second", Some("second"), &[])?;
    let there = bed.moved(&first, &second, "second", 0)?;
    first.end()?;
    second.at_work()?;
    let third = bed.side("third", Some("third"), &[])?;
    let back = bed.moved(&second, &third, "third", 0)?;
    let middle = second.end()?;
    third.at_work()?;
    third.vm.send("stop")?;
    let run = third.vm.finish(AT_MOST)?;
    let journal: Value = serde_json::from_str(run.serial.fact("journal")?)?;
    ensure!(journal["good"] == true, "the journal found {journal}");
    let last = third.backend.finish()?;
    ensure!(middle.errors + last.errors == 0, "requests failed");

    let control = bed.control().context("the negative control")?;
    fs::remove_dir_all(&bed.dir)?;
    Ok(json!({
        "platform": platform.name(),
        "pages_compared": 2 * PAGES,
        "pages_lost": 0,
        "pages_lost_without_marks": control,
        "cancelled": cancelled,
        "there": there,
        "back": back,
        "journal": journal,
    }))
}

impl Bed<'_> {
    /// A QEMU on a backend of its own; with a name to come from, the destination of a migration.
    fn side(&self, name: &str, from: Option<&str>, more: &[&str]) -> Result<Side> {
        let dir = self.dir.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir(&dir)?;
        let socket = self.sockets.path().join(format!("{name}.disk"));
        let backend = Backend::start(self.program, &socket, &self.disk, more)?;
        let mut guest = Guest::new(self.bed, self.platform, WORK);
        guest.modules(&["virtio_pci", "virtio_blk"])?;
        guest.file("/bin/tidemark", self.tidemark);
        guest.memory(MEGABYTES).vhost_user_blk(&socket, 1, None);
        guest.watch(backend.process())?;
        if let Some(from) = from {
            guest.incoming(&self.address(from));
        }
        let vm = guest.start(&dir)?;
        vm.qmp()
            .execute("migrate-set-parameters", json!({"downtime-limit": 1500}))?;
        Ok(Side { backend, vm, dir })
    }

    fn address(&self, name: &str) -> String {
        let path = self.sockets.path().join(format!("{name}.migration"));
        format!("unix:{}", path.display())
    }

    /// Starts a migration and gives it up in its second pass.
    fn cancelled(&self, from: &Side, to: &str) -> Result<Value> {
        let before = from.backend.report()?;
        let qmp = from.vm.qmp();
        qmp.migrate(&self.address(to), json!({"max-bandwidth": BANDWIDTH}))?;
        from.pass(2)?;
        qmp.execute("migrate-set-parameters", json!({"max-bandwidth": SLOW}))?;
        qmp.migrate_cancel()?;
        qmp.migrated("cancelled", AT_MOST)?;
        let after = from.backend.report()?;
        from.at_work()?;
        let later = from.backend.report()?;
        let logged = after.pages_logged - before.pages_logged;
        ensure!(logged > 0, "the device wrote nothing before the end");
        // LOG_ALL is off again.
        from.at_work()?;
        let last = from.backend.report()?.pages_logged;
        ensure!(
            last == later.pages_logged,
            "pages are still logged after a migration was given up"
        );
        Ok(json!({ "pages_written": logged }))
    }

    /// Moves a guest at work and compares all memory; gives the figures.
    fn moved(&self, from: &Side, to: &Side, name: &str, lost: usize) -> Result<Value> {
        let before = from.backend.report()?;
        let (first_pass, end) = self.migrate(from, name)?;
        to.vm.qmp().migrated("completed", AT_MOST)?;
        let after = from.backend.report()?;
        let differing = compare(from, to)?;
        let written = after.pages_logged - before.pages_logged;
        let again = after.pages_logged - first_pass.pages_logged;
        let figures = json!({
            "pages_differing": differing,
            "pages_written": written,
            "pages_written_after_first_round": again,
            "rounds": end.ram.dirty_sync_count,
            "milliseconds": end.total_time,
            "downtime_milliseconds": end.downtime,
            "requests": after.requests - before.requests,
        });
        println!("{}: to {name}: {figures}", self.platform.name());
        ensure!(
            differing == lost,
            "{differing} pages differ, expected {lost}"
        );
        ensure!(
            written >= WRITTEN && again > 0 && end.ram.dirty_sync_count >= 3,
            "the move proves nothing: {figures}"
        );
        Ok(figures)
    }

    fn migrate(&self, from: &Side, name: &str) -> Result<(Report, Migration)> {
        let qmp = from.vm.qmp();
        qmp.migrate(&self.address(name), json!({"max-bandwidth": BANDWIDTH}))?;
        from.pass(2)?;
        let first_pass = from.backend.report()?;
        Ok((first_pass, qmp.migrated("completed", AT_MOST)?))
    }

    /// The same move with marking off, which must lose pages.
    fn control(&self) -> Result<usize> {
        let from = self.side("unmarked", None, &["--marking", "off"])?;
        from.at_work()?;
        let to = self.side("loser", Some("loser"), &[])?;
        self.migrate(&from, "loser")?;
        to.vm.qmp().migrated("completed", AT_MOST)?;
        let differing = compare(&from, &to)?;
        println!(
            "{}: without marks {differing} pages differ",
            self.platform.name()
        );
        ensure!(differing > 0, "no page differs although none was marked");
        Ok(differing)
    }
}

impl Side {
    /// Waits until the guest has done a good deal of work from now on.
    fn at_work(&self) -> Result<()> {
        let goal = self.backend.report()?.requests + 300;
        while self.backend.report()?.requests < goal {
            self.vm.line(AT_MOST)?;
        }
        Ok(())
    }

    /// Waits until a migration has begun a pass over dirty memory.
    fn pass(&self, number: u64) -> Result<()> {
        loop {
            let event = self.vm.qmp().event("MIGRATION_PASS", AT_MOST)?;
            if event["data"]["pass"].as_u64() >= Some(number) {
                return Ok(());
            }
        }
    }

    /// Ends a source that has given its guest away.
    fn end(self) -> Result<Report> {
        self.vm.quit()?;
        let report = self.backend.finish()?;
        ensure!(report.rings_broken == 0, "a ring broke");
        Ok(report)
    }
}

/// How many pages of memory differ between two sides that stand still.
fn compare(one: &Side, other: &Side) -> Result<usize> {
    let saved = [one, other].map(|side| side.dir.join("memory"));
    for (side, file) in [one, other].iter().zip(&saved) {
        let bytes = u64::from(MEGABYTES) << 20;
        side.vm.qmp().pmemsave(0, bytes, file)?;
    }
    let differing = differing(&saved)?;
    saved.iter().try_for_each(fs::remove_file)?;
    Ok(differing)
}
