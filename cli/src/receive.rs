//! `tidemark receive`.

use crate::args::{ReceiveArgs, Target};
use crate::exit::{Failed, Usage};
use anyhow::Context;
use migration::receive::receive;
use migration::stream::file::Restore;
use migration::stream::{DestinationStream, live};
use std::fs::File;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
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
    let mut stream: Box<dyn DestinationStream> = match (&args.listen, &args.from) {
        (Some(Target::Unix(path)), _) => Box::new(listen(path)?),
        (_, Some(Target::File(path))) => {
            let file = File::open(path)
                .map_err(|error| Usage(format!("cannot open {}: {error}", path.display())))?;
            Box::new(Restore::new(file))
        }
        _ => {
            let why = "expected --listen unix:PATH or --from file:PATH";
            return Err(Usage(why.to_owned()).into());
        }
    };

    let hosting = Hosting {
        disks: args.disk.clone(),
        evidence: args.evidence.clone(),
        side: "destination".to_owned(),
        limits: Limits::default(),
        hold: None,
        disk_fault: None,
    };
    let mut arrival = Arrival::new(hosting, args.memory_max);
    let received = receive(stream.as_mut(), &mut arrival)
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

/// Waits for a source.
fn listen(path: &Path) -> anyhow::Result<live::Destination<UnixStream>> {
    let listener = UnixListener::bind(path)
        .map_err(|error| Usage(format!("cannot listen on unix:{}: {error}", path.display())))?;
    let mut out = std::io::stdout();
    writeln!(out, "{LISTENING}unix:{}", path.display())?;
    out.flush()?;
    let (socket, _) = listener.accept().context("waiting for a source")?;
    std::fs::remove_file(path).context("removing the socket")?;
    Ok(live::Destination::new(socket))
}
