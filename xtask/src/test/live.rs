//! The part in which QEMU itself moves guests whose disk is ours, while they work on it: from one
//! process to another and back, given up half-way in between, every page of memory compared.
//!
//! Guests boot with `init_on_alloc=0` and read into memory that nothing else touches, so a page that
//! the device wrote and did not mark is on one side only. Every run has its negative control: with
//! marking off the same move must differ.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use super::backend::{AT_MOST, Backend, Bench, Programs, Report};
use super::runner::differing;
use crate::figures;
use crate::guest::Running;
use crate::testbed;
use crate::workspace::Workspace;

const DISK: u64 = 64 << 20;
/// Slow enough that the guest reads much on the way; then fast enough to end.
const SLOW: u64 = 24 << 20;
const FAST: u64 = 4 << 30;
/// A move counts only if the device wrote so many pages on the way.
const WRITTEN: u64 = 10_000;

/// Reads and writes as fast as it can until the host says so; its progress is the host's clock.
const WORK: &str = "\
fact driver \"$(basename \"$(readlink /sys/block/vda/device/driver)\")\"
tidemark journal --disk /dev/vda --depth 16 --block 64K --writes 20 --arena 64M \
    --progress 50 --control - --json <&3 2>&3 >/tmp/report || true
fact journal \"$(tail -n 1 /tmp/report)\"
fact features \"$(cat /sys/block/vda/device/features)\"
";

/// One QEMU with its backend.
struct Side {
    backend: Backend,
    vm: Running,
    dir: PathBuf,
    /// Where it waits for a migration.
    address: String,
}

/// Both QEMUs, with the kernel of their own time, and over packed queues the newest; both in the long
/// variant.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let programs = Programs::new(workspace)?;
    let [newest, _, oldest, _] = bed.platforms();
    let mut all = Vec::new();
    let mut runs = vec![(oldest, false), (newest, false), (newest, true)];
    if options.full {
        runs.push((oldest, true));
    }
    for (platform, packed) in runs {
        let bench = Bench::new(&bed, platform, &programs, "live", DISK)?;
        let bench = if packed { bench.packed() } else { bench };
        let figures =
            moves(&bench).with_context(|| format!("live migration on {}", bench.name()))?;
        bench.clean()?;
        all.push(figures);
    }
    figures::keep(workspace, "live", &json!(all))?;
    let moves = all.iter().flat_map(|run| [&run["there"], &run["back"]]);
    let compared = moves.filter_map(|figures| figures["pages_compared"].as_u64());
    let compared: u64 = compared.sum();
    Ok(format!(
        "{compared} pages compared, none lost; without marks many"
    ))
}

fn moves(bench: &Bench<'_>) -> Result<Value> {
    println!("on {}", bench.name());
    let first = Side::start(bench, "first", false, &[])?;
    first.at_work()?;
    // Given up half-way, when the guest's memory has been sent once.
    let never = Side::start(bench, "never", true, &[])?;
    let cancelled = first.cancelled(&never)?;
    drop(never);
    first.at_work()?;

    let second = Side::start(bench, "second", true, &[])?;
    let there = first.moved(&second)?;
    first.end()?;
    second.at_work()?;
    let third = Side::start(bench, "third", true, &[])?;
    let back = second.moved(&third)?;
    second.end()?;
    third.at_work()?;
    third.vm.send("stop")?;
    let run = third.vm.finish(AT_MOST)?;
    bench.judge_ring(run.serial.fact("features")?)?;
    let journal: Value = serde_json::from_str(run.serial.fact("journal")?)?;
    ensure!(journal["good"] == true, "the journal found {journal}");
    let last = third.backend.finish()?;
    ensure!(last.errors == 0, "{} requests failed", last.errors);

    let control = control(bench).context("the negative control")?;
    Ok(json!({
        "platform": bench.name(),
        "cancelled": cancelled,
        "there": there,
        "back": back,
        "pages_lost_without_marks": control,
        "journal": journal,
    }))
}

impl Side {
    /// A QEMU on a backend of its own; the destination of a migration if it is to wait for one.
    fn start(bench: &Bench<'_>, name: &str, waits: bool, more: &[&str]) -> Result<Self> {
        let dir = bench.folder(name)?;
        let backend = bench.backend(name, more)?;
        let mut guest = bench.guest(name, WORK, None)?;
        guest.watch(backend.process())?;
        let address = format!("unix:{}.migration", bench.socket(name).display());
        if waits {
            guest.incoming(&address);
        }
        let vm = guest.start(&dir)?;
        let limit = json!({"downtime-limit": 1500});
        vm.qmp().execute("migrate-set-parameters", limit)?;
        Ok(Self {
            backend,
            vm,
            dir,
            address,
        })
    }

    /// Starts a migration and gives it up in its second pass.
    fn cancelled(&self, to: &Self) -> Result<Value> {
        let before = self.backend.report()?;
        let qmp = self.vm.qmp();
        qmp.migrate(&to.address, json!({"max-bandwidth": SLOW}))?;
        self.pass(2)?;
        qmp.migrate_cancel()?;
        qmp.migrated("cancelled", AT_MOST)?;
        let after = self.backend.report()?;
        self.at_work()?;
        let later = self.backend.report()?;
        let logged = after.pages_logged - before.pages_logged;
        ensure!(logged > 0, "the device wrote nothing before the end");
        // LOG_ALL is off again.
        self.at_work()?;
        let last = self.backend.report()?.pages_logged;
        ensure!(
            last == later.pages_logged,
            "pages are still logged after a migration was given up"
        );
        Ok(json!({ "pages_written": logged }))
    }

    /// Moves the guest at work, compares all memory and lets it go on; gives the figures.
    fn moved(&self, to: &Self) -> Result<Value> {
        let before = self.backend.report()?;
        let first_pass = self.migrate(to, Some(before.pages_logged + WRITTEN))?;
        let end = self.vm.qmp().query_migrate()?;
        let after = self.backend.report()?;
        let differing = compare(self, to)?;
        let written = after.pages_logged - before.pages_logged;
        let again = after.pages_logged - first_pass.pages_logged;
        let figures = json!({
            "pages_compared": self.vm.ram()?.metadata()?.len() / 4096,
            "pages_lost": differing,
            "pages_written": written,
            "pages_written_after_first_round": again,
            "rounds": end.ram.dirty_sync_count,
            "milliseconds": end.total_time,
            "downtime_milliseconds": end.downtime,
            "requests": after.requests - before.requests,
        });
        println!("moved: {figures}");
        ensure!(differing == 0, "{differing} pages differ");
        ensure!(
            written >= WRITTEN && again > 0 && end.ram.dirty_sync_count >= 3,
            "the move proves nothing: {figures}"
        );
        ensure!(
            after.log_starts == before.log_starts + 1,
            "the log of data was switched on {} times",
            after.log_starts - before.log_starts
        );
        to.vm.qmp().cont()?;
        Ok(figures)
    }

    /// Lets a migration end when the device has written enough, if it marks at all, and gives what
    /// it had written when all memory had been sent once.
    fn migrate(&self, to: &Self, written: Option<u64>) -> Result<Report> {
        let qmp = self.vm.qmp();
        qmp.migrate(&to.address, json!({"max-bandwidth": SLOW}))?;
        self.pass(2)?;
        let first_pass = self.backend.report()?;
        if let Some(written) = written {
            while self.backend.report()?.pages_logged < written {
                self.vm.line(AT_MOST)?;
            }
            self.pass(3)?;
        }
        qmp.execute("migrate-set-parameters", json!({"max-bandwidth": FAST}))?;
        qmp.migrated("completed", AT_MOST)?;
        to.vm.qmp().migrated("completed", AT_MOST)?;
        Ok(first_pass)
    }

    /// Waits until the guest has done a good deal of work from now on.
    fn at_work(&self) -> Result<()> {
        let goal = self.backend.report()?.requests + 300;
        self.backend.at_work(&self.vm, goal)
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
        ensure!(report.errors == 0, "{} requests failed", report.errors);
        Ok(report)
    }
}

/// The same move with marking off, which must lose pages.
fn control(bench: &Bench<'_>) -> Result<usize> {
    let from = Side::start(bench, "unmarked", false, &["--marking", "off"])?;
    from.at_work()?;
    let to = Side::start(bench, "loser", true, &[])?;
    from.migrate(&to, None)?;
    let differing = compare(&from, &to)?;
    println!("without marks {differing} pages differ");
    ensure!(differing > 0, "no page differs although none was marked");
    Ok(differing)
}

/// How many pages of memory differ between two sides that stand still.
fn compare(one: &Side, other: &Side) -> Result<usize> {
    let saved = [one, other].map(|side| side.dir.join("memory"));
    for (side, file) in [one, other].iter().zip(&saved) {
        let bytes = side.vm.ram()?.metadata()?.len();
        side.vm.qmp().pmemsave(0, bytes, file)?;
    }
    let differing = differing(&saved)?;
    saved.iter().try_for_each(fs::remove_file)?;
    Ok(differing)
}
