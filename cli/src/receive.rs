//! `tidemark receive`.

use crate::args::{ReceiveArgs, Target};
use crate::ensemble;
use crate::exit::{Failed, Usage};
use anyhow::Context;
use migration::MigrationError;
use migration::receive::{Lanes, receive_over};
use migration::stream::file::Restore;
use migration::stream::parallel::join;
use migration::stream::{DestinationStream, live};
use migration::transport::Listener;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;
use vm::{Arrival, Hosting, Limits};

/// How long the guest may take for its requests here.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the first line of output says once a source may connect.
pub const LISTENING: &str = "listening on ";

pub fn run(args: &ReceiveArgs) -> anyhow::Result<()> {
    for disk in &args.disk {
        std::fs::metadata(disk)
            .map_err(|error| Usage(format!("cannot open the disk {}: {error}", disk.display())))?;
    }
    let seats = match &args.control {
        Some(folder) => ensemble::seats(folder, args.disk.len())?,
        None => Vec::new(),
    };
    let (mut stream, lanes) = open(args)?;

    let hosting = Hosting {
        disks: args.disk.clone(),
        evidence: args.evidence.clone(),
        side: "destination".to_owned(),
        limits: Limits::default(),
        hold: None,
        disk_fault: None,
    };
    let mut arrival = Arrival::new(hosting, args.memory_max).seated(seats);
    let received = receive_over(stream.as_mut(), lanes, &mut arrival)
        .map_err(|error| Failed(format!("no guest arrived: {error}")))?;
    let after = arrival.finish(args.requests, PATIENCE)?;
    if args.json {
        let object = serde_json::json!({
            "arrived": true,
            "records": received.records,
            "pages": received.pages,
            "requests": after.completed,
            "drained": after.drained,
        });
        println!("{object}");
    } else {
        println!(
            "the guest arrived in {} pages, completed {} requests here and was stopped",
            received.pages, after.completed
        );
    }
    // The source waits for the hang-up: only now is everything in its place.
    drop(stream);
    Ok(())
}

type Opened = (Box<dyn DestinationStream>, Lanes<'static>);

/// Where the guest comes from.
fn open(args: &ReceiveArgs) -> anyhow::Result<Opened> {
    let alone = |file| -> Opened { (Box::new(Restore::new(file)), Lanes::default()) };
    Ok(match (&args.listen, &args.from) {
        (Some(target @ (Target::Unix(_) | Target::Tcp(_) | Target::Tls(_))), _) => {
            listen(target, args)?
        }
        (_, Some(Target::File(path))) => {
            let file = File::open(path)
                .map_err(|error| Usage(format!("cannot open {}: {error}", path.display())))?;
            alone(file)
        }
        (_, Some(Target::Standard)) => {
            let input = std::io::stdin().as_fd().try_clone_to_owned();
            alone(File::from(input.context("taking the standard input")?))
        }
        _ => {
            let why = "expected --listen unix:PATH, tcp:HOST:PORT or tls:HOST:PORT, or --from file:PATH or -";
            return Err(Usage(why.to_owned()).into());
        }
    })
}

/// Waits for a source.
fn listen(at: &Target, args: &ReceiveArgs) -> anyhow::Result<Opened> {
    let terms = args.connection.terms(at)?;
    let address = at.address().context("nowhere to listen at")?;
    let listener = Listener::bind(&address, &terms).map_err(|error| Usage(error.to_string()))?;
    let mut out = std::io::stdout();
    writeln!(out, "{LISTENING}{}", listener.address())?;
    out.flush()?;
    let refused = |error: MigrationError| Failed(format!("no guest arrived: {error}"));
    let mut sockets = listener.accept(&terms).map_err(refused)?;
    if terms.connections == 1
        && let Some(only) = sockets.pop()
    {
        return Ok((Box::new(live::Destination::new(only)), Lanes::default()));
    }
    let (stream, lanes) = join(sockets).map_err(refused)?;
    Ok((Box::new(stream), lanes))
}
