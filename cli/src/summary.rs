//! What a move looked like, for people and for machines.

use crate::args::MigrateArgs;
use crate::conducted::Figures;
use crate::size;
use serde_json::{Value, json};
use std::time::Duration;
use vm::Outcome;

/// The one line that sums up a run that is no proof.
pub fn verdict(outcome: &Outcome, objections: &[String]) -> String {
    let whole = match (outcome.resumed, outcome.guest_objections().is_empty()) {
        (true, true) => "; the guest runs on at its source, whole",
        (true, false) => "; the guest runs on at its source, damaged",
        _ => "",
    };
    format!("not verified: {}{whole}", objections.join("; "))
}

/// Prints the table, or with `--json` the object.
pub fn print(
    args: &MigrateArgs,
    outcome: &Outcome,
    conducted: Option<&Figures>,
    objections: &[String],
    total: Duration,
) {
    if args.json {
        let mut object = object(outcome, objections, total);
        object["agents"] = json!(conducted.map(Figures::object));
        println!("{object}");
    } else {
        if let Some(conducted) = conducted {
            print!("{conducted}");
        }
        table(outcome, objections, total);
    }
}

fn table(outcome: &Outcome, objections: &[String], total: Duration) {
    let report = &outcome.report;
    println!("round      pages      bytes  unchanged      time   harvest");
    for round in &report.rounds {
        let name = if round.last {
            "last".to_owned()
        } else {
            round.round.to_string()
        };
        println!(
            "{name:>5} {:>10} {:>10} {:>10} {:>7.1}ms {:>7.2}ms  {}",
            round.pages,
            size::show(round.bytes),
            round.unchanged,
            millis(Duration::from_nanos(round.elapsed_ns)),
            millis(Duration::from_nanos(round.harvest_ns)),
            round
                .shares
                .iter()
                .map(|s| format!("{} {} ({} unchanged)", s.name, s.pages, s.unchanged))
                .collect::<Vec<_>>()
                .join(", "),
        );
    }
    let line = |name: &str, value: String| println!("{name:<22} {value}");
    for (source, granularity) in &report.granularity {
        line(
            "granularity",
            format!("{source}: {}", size::show(*granularity)),
        );
    }
    line("rounds re-dirtied", report.redirtied_rounds().to_string());
    let paused = report.paused;
    line(
        "in flight at SUSPEND",
        format!(
            "{} ({} carried over, {} attempts before)",
            paused.in_flight, paused.carried, paused.retries
        ),
    );
    if outcome.moved {
        line(
            "downtime",
            format!(
                "{:.1} ms, of which pausing {:.1} ms; judging {:.0} ms apart",
                millis(report.downtime),
                millis(paused.elapsed),
                millis(report.judging)
            ),
        );
    }
    if let Some(rate) = report.bulk_rate() {
        let mut text = format!("{:.2} GB/s", rate / 1e9);
        if let Some(plain) = report.plain_rate() {
            let spread: Vec<String> = report
                .plain_copies
                .iter()
                .map(|t| format!("{:.0}", millis(*t)))
                .collect();
            text += &format!(
                ", {:.0} % of a plain copy ({:.2} GB/s; {} ms)",
                100.0 * rate / plain,
                plain / 1e9,
                spread.join(", ")
            );
        }
        line("bulk round", text);
    }
    line("device writes tracked", outcome.device_writes.to_string());
    if outcome.resets > 0 {
        line("resets meanwhile", outcome.resets.to_string());
    }
    if let Some(memory) = &outcome.memory {
        line(
            "memory",
            format!(
                "{} pages compared, {} lost by the tracker, {} by the CPU's log, {} others",
                memory.compared, memory.lost_device, memory.lost_cpu, memory.lost_unused
            ),
        );
    }
    if let Some(r) = &outcome.requests {
        line(
            "requests",
            format!(
                "{} submitted, {} completed ({} across the move), {} lost, {} doubled, {} failed, \
                 {} of {} reads wrong",
                r.submitted, r.completed, r.moved, r.lost, r.doubled, r.failed, r.corrupt, r.reads
            ),
        );
    }
    if let Some(after) = &outcome.after {
        line(
            "at the destination",
            format!("{} requests", after.completed),
        );
    }
    if let Some(disk) = &outcome.disk {
        line(
            "disk",
            format!(
                "{} blocks, {} written, {} wrong",
                disk.blocks, disk.written, disk.wrong
            ),
        );
    }
    if outcome.put_back > 0 {
        line("pages put back", outcome.put_back.to_string());
    }
    let verdict = if objections.is_empty() {
        "verified"
    } else {
        "NOT verified"
    };
    line(
        "result",
        format!("{verdict} in {:.1} s", total.as_secs_f64()),
    );
}

fn object(outcome: &Outcome, objections: &[String], total: Duration) -> Value {
    let report = &outcome.report;
    let ratio = report
        .bulk_rate()
        .zip(report.plain_rate())
        .map(|(bulk, plain)| bulk / plain);
    let plain: Vec<f64> = report
        .plain_copies
        .iter()
        .map(Duration::as_secs_f64)
        .collect();
    json!({
        "verified": objections.is_empty(),
        "objections": objections,
        "moved": outcome.moved,
        "resumed_at_source": outcome.resumed,
        "source_whole": outcome.resumed && outcome.guest_objections().is_empty(),
        "seconds": total.as_secs_f64(),
        "rounds": report.rounds,
        "redirtied_rounds": report.redirtied_rounds(),
        "granularity": report.granularity.iter()
            .map(|(name, bytes)| json!({"source": name, "bytes": bytes})).collect::<Vec<_>>(),
        "in_flight_at_suspend": report.paused.in_flight,
        "carried_over": report.paused.carried,
        "pause_retries": report.paused.retries,
        "downtime_seconds": outcome.moved.then_some(report.downtime.as_secs_f64()),
        "judging_seconds": report.judging.as_secs_f64(),
        "bulk_bytes_per_second": report.bulk_rate(),
        "plain_bytes_per_second": report.plain_rate(),
        "plain_copy_seconds": plain,
        "ratio_to_plain_copy": ratio,
        "device_writes": outcome.device_writes,
        "resets": outcome.resets,
        "memory": outcome.memory,
        "lost_pages": outcome.memory.as_ref().map(|m| m.lost_device),
        "requests": outcome.requests,
        "requests_at_destination": outcome.after.map(|after| after.completed),
        "disk": outcome.disk,
        "pages_put_back": outcome.put_back,
        "devices_at_source": outcome.devices.iter()
            .map(|(tracking, suspended)| json!({"tracking": tracking, "suspended": suspended}))
            .collect::<Vec<_>>(),
    })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
