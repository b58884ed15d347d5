//! `tidemark stream`.

use crate::args::{StreamArgs, StreamCommand};
use crate::exit::{Failed, Usage};
use crate::size;
use migration::stream::inspect::{Row, Totals, format_of, walk};
use serde_json::json;
use std::fs::File;
use std::time::{Duration, Instant};

/// Rows that the JSON object holds; of more, it tells how many were left out.
const ROWS_MAX: usize = 100_000;

pub fn run(command: &StreamCommand) -> anyhow::Result<()> {
    match command {
        StreamCommand::Inspect(args) => inspect(args),
        StreamCommand::Verify(args) => verify(args),
    }
}

fn open(args: &StreamArgs) -> Result<File, Usage> {
    File::open(&args.file)
        .map_err(|error| Usage(format!("cannot open {}: {error}", args.file.display())))
}

/// Reads the whole file; the rows that came before a fault are told as well.
fn read(args: &StreamArgs, tell: impl FnMut(&Row)) -> anyhow::Result<Totals> {
    let mut file = open(args)?;
    let failed =
        |error: &dyn std::fmt::Display| Failed(format!("{}: {error}", args.file.display()));
    let format = format_of(&mut file).map_err(|error| failed(&error))?;
    Ok(walk(file, format, tell).map_err(|error| failed(&error))?)
}

fn inspect(args: &StreamArgs) -> anyhow::Result<()> {
    if args.json {
        let (mut rows, mut left_out) = (Vec::new(), 0_u64);
        let totals = read(args, |row| match rows.len() {
            ROWS_MAX => left_out += 1,
            _ => rows.push(row.clone()),
        })?;
        println!(
            "{}",
            json!({"rows": rows, "rows_left_out": left_out, "totals": totals})
        );
        return Ok(());
    }
    println!("      offset       bytes  records  what");
    let totals = read(args, |row| {
        let detail = match row.detail.as_str() {
            "" => String::new(),
            detail => format!(": {detail}"),
        };
        println!(
            "{:>12} {:>11} {:>8}  {}{detail}",
            row.offset, row.bytes, row.records, row.record
        );
    })?;
    summary(&totals);
    Ok(())
}

fn verify(args: &StreamArgs) -> anyhow::Result<()> {
    let begin = Instant::now();
    let totals = read(args, |_| {})?;
    let elapsed = begin.elapsed();
    if args.json {
        println!(
            "{}",
            json!({
                "whole": true,
                "seconds": elapsed.as_secs_f64(),
                "bytes_per_second": rate(totals.bytes, elapsed),
                "overhead": overhead(&totals),
                "totals": totals,
            })
        );
        return Ok(());
    }
    summary(&totals);
    println!(
        "whole: every rule of the format holds, to the last byte; {:.2} GB/s",
        rate(totals.bytes, elapsed) / 1e9
    );
    Ok(())
}

fn summary(totals: &Totals) {
    println!(
        "{} stream, image version {}: {}, {} pages, {} checkpoints, {} states of devices; \
         {:.3} % is not pages",
        totals.format,
        totals.image_version,
        size::show(totals.bytes),
        totals.pages,
        totals.checkpoints,
        totals.devices.len(),
        100.0 * overhead(totals)
    );
}

/// The share of the stream that is not data of pages.
fn overhead(totals: &Totals) -> f64 {
    totals.overhead() as f64 / totals.bytes as f64
}

fn rate(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / elapsed.as_secs_f64()
}
