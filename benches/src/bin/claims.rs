//! `cargo run --release -p benches --bin claims [-- --quick] [folder]`: measures the claims of 2023,
//! and writes `claims.html` and `claims.json` into the folder, the current one without any.

use benches::claims::{Effort, Machine, Result, Run, measure, page};
use std::path::PathBuf;
use std::time::Instant;
use std::{env, fs};

fn main() -> Result<()> {
    let quick = env::args().any(|arg| arg == "--quick");
    let folder = env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let folder = PathBuf::from(folder.unwrap_or_else(|| ".".to_owned()));
    fs::create_dir_all(&folder)?;
    benches::settle();
    let begin = Instant::now();
    let effort = if quick { Effort::Quick } else { Effort::Full };
    let figures = measure::all(effort, |what| {
        println!("{:6.1} s  {what}", begin.elapsed().as_secs_f64());
    })?;
    let run = Run::new(
        Machine::this(),
        quick,
        begin.elapsed().as_secs_f64(),
        figures,
    );
    for judgement in &run.judgements {
        println!("{:<4} {}", judgement.id, judgement.verdict);
    }
    let (html, json) = (folder.join("claims.html"), folder.join("claims.json"));
    fs::write(&html, page(&run))?;
    fs::write(&json, serde_json::to_vec_pretty(&run)?)?;
    println!(
        "{:6.1} s  {} and {}",
        run.seconds,
        html.display(),
        json.display()
    );
    Ok(())
}
