//! The part that is proof M: stock Linux works on a disk whose server is replaced under it.
//!
//! QEMU talks to `tidemark mediate`, which drives servers A and B. While the guest's journal keeps
//! 32 requests in flight, the device is moved back and forth between them; then servers are killed
//! and fresh ones take over from their in-flight tables. The journal proves that every sector holds
//! what was written last, the kernel's count of bytes agrees with the servers' (so no write was lost
//! or done twice by a move), and the kernel's log has no complaint. The state of each device goes in a
//! stream of Xen's format, as EMULATOR_CONTEXT, which is kept and verified. The negative control is a
//! server that takes over without the table: requests stay in flight, and the journal never ends.

mod bed;
mod passthrough;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use crate::figures;
use crate::guest::Running;
use crate::testbed::{self, Platform, TestBed};
use crate::workspace::Workspace;
use bed::Bed;

const AT_MOST: Duration = Duration::from_secs(180);
const MOVES: usize = 100;
/// Behind a vIOMMU each I/O is mapped and unmapped, which takes the guest its time.
const MOVES_IOMMU: usize = 20;
const KILLS: usize = 6;
/// A kill is worth something if it hits more than this many requests, most of the time.
const MANY: u64 = 8;
/// How long the control is waited for that must not come to an end.
const HANGS: Duration = Duration::from_secs(10);

/// All variants of the proof.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let proof = Proof {
        tidemark: &workspace.tidemark()?,
        in_guest: &workspace.tidemark_static()?,
        bed: &bed,
    };
    let [bookworm, trixie] = bed.vfio_user_platforms();
    let mut moved = Vec::new();
    for platform in [bookworm, trixie] {
        let figures = proof
            .moved(platform, false, MOVES)
            .with_context(|| format!("moves on {}", platform.name()))?;
        moved.push(figures);
    }
    let worst = |figure: &str| {
        let of = |run: &Value| run["downtime_ms"][figure].as_f64().unwrap_or(f64::NAN);
        moved.iter().map(of).fold(0.0, f64::max)
    };
    // Behind the vIOMMU the disk is a slow one, and what is in flight is waited for.
    let (median, most) = (worst("median"), worst("most"));
    let iommu = if options.full { MOVES } else { MOVES_IOMMU };
    let figures = proof.moved(trixie, true, iommu);
    moved.push(figures.context("moves behind a vIOMMU")?);
    let killed = proof.killed(trixie).context("killed servers")?;
    let control = proof.ignored(trixie).context("the negative control")?;
    let inside = proof.inside(trixie).context("a mediator in a guest")?;
    let figures = json!({
        "moved": moved,
        "killed": killed,
        "control": control,
        "in_guest": inside,
    });
    figures::keep(workspace, "mediate", &figures)?;
    Ok(format!(
        "{} moves and {KILLS} takeovers, nothing lost or doubled; downtime {median} ms at the median, {most} at most",
        2 * MOVES + iommu,
    ))
}

struct Proof<'a> {
    bed: &'a TestBed,
    tidemark: &'a Path,
    in_guest: &'a Path,
}

impl Proof<'_> {
    fn bed(&self, platform: Platform<'_>, name: &str) -> Result<Bed<'_>> {
        let dir = self
            .bed
            .run_dir(&format!("mediate-{name}-{}", platform.name()))?;
        Bed::new(self.tidemark, dir)
    }

    /// Moves between two servers under load.
    fn moved(&self, platform: Platform<'_>, iommu: bool, moves: usize) -> Result<Value> {
        let bed = self.bed(platform, if iommu { "iommu" } else { "moves" })?;
        // Behind a vIOMMU the guest maps and unmaps for every request, and is slower than a disk in
        // the page cache; its queue is full only with a disk that is slower still.
        let disk: &[&str] = if iommu { &["--slow-disk", "4"] } else { &[] };
        let servers = [bed.serve("a", "a", disk)?, bed.serve("b", "b", disk)?];
        let mediator = bed.mediate("a", &["--tracker"])?;
        let mut guest = bed.guest(self.bed, platform, self.in_guest)?;
        if iommu {
            guest.iommu();
        }
        guest.watch(mediator.process())?;
        let vm = guest.start(&bed.dir)?;
        worked(&vm)?;
        let mut reports = Vec::new();
        let stream = bed.dir.join("device.xl");
        for name in ["b", "a"].into_iter().cycle().take(moves) {
            let report = bed.shift(name, &["--stream", &stream.to_string_lossy()]);
            let report = report.map_err(|error| vm.explained(error))?;
            bed.travelled(&stream, &report)?;
            reports.push(report);
            // The guest has got on since.
            worked(&vm)?;
        }
        let status = bed.status()?;
        let run = bed.end(vm)?;
        let mediated = mediator.finish()?;
        let served: Vec<Value> = servers
            .into_iter()
            .map(|server| server.stop())
            .collect::<Result<_>>()?;
        let sum = |name: &str| {
            served
                .iter()
                .filter_map(|one| one[name].as_u64())
                .sum::<u64>()
        };
        ensure!(
            mediated["moves"] == moves && mediated["failed_moves"] == 0,
            "the mediator reports {mediated}"
        );
        ensure!(
            sum("suspends") == u64::try_from(moves)? && sum("errors") == 0,
            "the servers report {served:?}"
        );
        // The kernel counts the bytes that it wrote, the servers those that they were given. The
        // firmware only reads.
        ensure!(
            run.bytes_written == sum("bytes_written") && run.bytes_written > 0,
            "the guest wrote {} bytes, the servers {}",
            run.bytes_written,
            sum("bytes_written")
        );
        ensure!(
            status["dirty_pages"].as_u64() > Some(0),
            "nothing was tracked: {status}"
        );
        let carried = |name: &str| {
            let all = reports.iter().filter_map(|report| report[name].as_u64());
            json!({"sum": all.clone().sum::<u64>(), "most": all.max()})
        };
        let figures = json!({
            "platform": platform.name(),
            "iommu": iommu,
            "moves": moves,
            "downtime_ms": spread(&reports, "downtime_ms"),
            "suspend_ms": spread(&reports, "suspend_ms"),
            "maps": carried("maps"),
            "stream_bytes": carried("stream_bytes"),
            "carried_over": carried("carried_over"),
            "requests": sum("requests"),
            "dirty_pages": status["dirty_pages"],
            "journal": run.journal,
        });
        println!("{figures}");
        bed.remove()?;
        Ok(figures)
    }

    /// Kills the server in use under load, again and again.
    fn killed(&self, platform: Platform<'_>) -> Result<Value> {
        let bed = self.bed(platform, "killed")?;
        let slow = ["--slow-disk", "1"];
        let mut server = bed.serve("s0", "s", &slow)?;
        // All use one table, the dead one's.
        let table = bed.table("s");
        let mediator = bed.mediate("s0", &[])?;
        let mut guest = bed.guest(self.bed, platform, self.in_guest)?;
        let vm = guest.watch(mediator.process())?.start(&bed.dir)?;
        worked(&vm)?;
        let mut reports = Vec::new();
        let stream = bed.dir.join("device.xl");
        for kill in 1..=KILLS {
            let next = format!("s{kill}");
            worked(&vm)?;
            server.kill()?;
            server = bed.serve(&next, "s", &slow)?;
            let [table, kept] = [&table, &stream].map(|path| path.to_string_lossy());
            let report = bed.shift(&next, &["--inflight", &table, "--stream", &kept]);
            let report = report.map_err(|error| vm.explained(error))?;
            bed.travelled(&stream, &report)?;
            ensure!(report["takeover"] == true, "not a takeover: {report}");
            reports.push(report);
            worked(&vm)?;
        }
        let run = bed.end(vm)?;
        let mediated = mediator.finish()?;
        ensure!(
            mediated["takeovers"] == KILLS && mediated["failed_moves"] == 0,
            "the mediator reports {mediated}"
        );
        let last = server.stop()?;
        ensure!(last["errors"] == 0, "the last server reports {last}");
        let flying: Vec<u64> = reports
            .iter()
            .filter_map(|report| report["in_flight"].as_u64())
            .collect();
        let many = flying.iter().filter(|&&count| count > MANY).count();
        ensure!(
            2 * many >= KILLS,
            "only {many} of {KILLS} kills hit more than {MANY} requests: {flying:?}"
        );
        let figures = json!({
            "platform": platform.name(),
            "kills": KILLS,
            "in_flight": flying,
            "takeover_ms": spread(&reports, "downtime_ms"),
            "journal": run.journal,
        });
        println!("{figures}");
        bed.remove()?;
        Ok(figures)
    }

    /// A server that takes over and ignores what was in flight: the guest's journal must hang.
    fn ignored(&self, platform: Platform<'_>) -> Result<Value> {
        let bed = self.bed(platform, "ignored")?;
        let server = bed.serve("a", "a", &["--slow-disk", "1"])?;
        let mediator = bed.mediate("a", &[])?;
        let mut guest = bed.guest(self.bed, platform, self.in_guest)?;
        let vm = guest.watch(mediator.process())?.start(&bed.dir)?;
        worked(&vm)?;
        server.kill()?;
        let _ignorant = bed.serve_without_table("b")?;
        let table = bed.table("a");
        let report = bed.shift("b", &["--inflight", &table.to_string_lossy()])?;
        let flying = report["in_flight"].as_u64().unwrap_or(0);
        ensure!(flying > 0, "the kill hit no request: {report}");
        vm.send("stop")?;
        ensure!(
            vm.fact("journal", HANGS).is_err(),
            "{flying} requests were in flight, nobody carried them out, and the journal ended"
        );
        bed.remove()?;
        Ok(json!({"in_flight": flying, "hung_for_s": HANGS.as_secs()}))
    }
}

/// Waits until the guest's journal has come a step further than it was when this was called: the
/// lines that have come meanwhile do not count.
fn worked(vm: &Running) -> Result<()> {
    vm.forget_lines();
    vm.line(AT_MOST).map(drop)
}

/// The least, the median and the most of a figure.
fn spread(reports: &[Value], name: &str) -> Value {
    let mut all: Vec<f64> = reports
        .iter()
        .filter_map(|report| report[name].as_f64())
        .collect();
    all.sort_by(f64::total_cmp);
    let round = |value: Option<&f64>| value.map(|value| (value * 1000.0).round() / 1000.0);
    json!({
        "least": round(all.first()),
        "median": round(all.get(all.len() / 2)),
        "most": round(all.last()),
    })
}
