//! `cargo run --release -p benches --bin claims [-- --quick] [--html FILE] [--json FILE]`: measures
//! the claims of 2023, and writes a report and its figures, into `target/figures` of the working directory unless told
//! otherwise. `--from FILE` measures nothing, and writes the report of an earlier run's JSON file.

use benches::claims::{Effort, Machine, Result, Run, measure, page};
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs};

/// What was asked for.
struct Options {
    quick: bool,
    html: PathBuf,
    json: PathBuf,
    from: Option<PathBuf>,
}

impl Options {
    fn parse() -> Result<Self> {
        let folder = Path::new("target/figures");
        let mut options = Self {
            quick: false,
            html: folder.join("claims.html"),
            json: folder.join("claims.json"),
            from: None,
        };
        let mut args = env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut file = || {
                let file = args.next();
                file.map(PathBuf::from)
                    .ok_or_else(|| format!("{arg}: no file after it"))
            };
            match arg.as_str() {
                "--quick" => options.quick = true,
                "--html" => options.html = file()?,
                "--json" => options.json = file()?,
                "--from" => options.from = Some(file()?),
                other => {
                    let known = "--quick, --html FILE, --json FILE and --from FILE";
                    return Err(format!("{other}: unknown; there are {known}").into());
                }
            }
        }
        Ok(options)
    }
}

fn measured(quick: bool) -> Result<Run> {
    benches::settle();
    let begin = Instant::now();
    let effort = if quick { Effort::Quick } else { Effort::Full };
    let machine = Machine::this();
    let figures = measure::all(effort, |what| {
        println!("{:6.1} s  {what}", begin.elapsed().as_secs_f64());
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Run::new(machine, quick, seconds, figures))
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(fs::write(path, text)?)
}

fn main() -> Result<()> {
    let options = Options::parse()?;
    let json = match &options.from {
        Some(file) => fs::read(file)?,
        None => {
            let json = serde_json::to_vec_pretty(&measured(options.quick)?)?;
            write(&options.json, &json)?;
            json
        }
    };
    // The page is of what the file says, and of nothing else.
    let earlier: Run = serde_json::from_slice(&json)?;
    let run = Run::new(
        earlier.machine,
        earlier.quick,
        earlier.seconds,
        earlier.figures,
    );
    for judgement in &run.judgements {
        println!("{:<4} {}", judgement.id, judgement.verdict);
    }
    write(&options.html, page(&run))?;
    println!("{:6.1} s  {}", run.seconds, options.html.display());
    Ok(())
}
