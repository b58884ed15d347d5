//! `tidemark agent`.

use crate::exit::{Unreachable, Usage};
use crate::sandboxed::SandboxArgs;
use anyhow::Context;
use clap::Args;
use migration::agent::{Endpoint, Host, Identity, Limits, Managed, Server, ServerError};
use sandbox::{Grant, Kind, Sandbox, agent_descriptors};
use signal_hook::consts::signal::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread;
use std::time::Duration;
use vm::{Hosted, SeatedGuest, Target};

/// What `tidemark agent` takes.
#[derive(Args, Debug)]
pub struct AgentArgs {
    /// The socket to make and to listen on, for this user only
    #[arg(long, value_name = "PATH", required_unless_present = "listen")]
    socket_path: Option<PathBuf>,
    /// Listens on TCP instead, where both sides show certificates; port 0 takes a free one
    #[arg(
        long,
        value_name = "HOST:PORT",
        conflicts_with = "socket_path",
        requires = "ca"
    )]
    listen: Option<String>,
    #[command(flatten)]
    identity: IdentityArgs,
    /// A device to answer for: NAME=emulated, NAME=vfio-user:PATH, NAME=vfio:0000:03:00.0, or that of a
    /// guest that another program runs, NAME=guest:PATH by the program's --control; several times
    #[arg(long, value_name = "NAME=TARGET", required = true)]
    device: Vec<Named>,
    /// Folder where locks and configurations are kept, which no other agent may use
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// How long a manager that holds a lock may be silent, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(50..=86_400_000))]
    lease: u64,
    /// Ends when the standard input does, as with whoever started it
    #[arg(long)]
    until_eof: bool,
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// Certificates, which TCP takes.
#[derive(Args, Clone, Debug)]
pub struct IdentityArgs {
    /// Certificates of those who may have issued the other side's, in PEM
    #[arg(long, value_name = "FILE", requires = "cert", requires = "key")]
    ca: Option<PathBuf>,
    /// This side's certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "ca")]
    cert: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, value_name = "FILE", requires = "ca")]
    key: Option<PathBuf>,
}

impl IdentityArgs {
    /// All three, or none.
    pub fn identity(&self) -> Option<Identity> {
        Some(Identity {
            authorities: self.ca.clone()?,
            certificate: self.cert.clone()?,
            key: self.key.clone()?,
        })
    }
}

/// A device and what it is called.
#[derive(Clone, Debug)]
struct Named {
    name: String,
    behind: Behind,
}

/// Who drives a device.
#[derive(Clone, Debug)]
enum Behind {
    /// The agent.
    Agent(Target),
    /// Whoever runs the guest that has it, and answers on this socket.
    Guest(PathBuf),
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, target) = text
            .split_once('=')
            .ok_or_else(|| format!("expected NAME=TARGET, got '{text}'"))?;
        Ok(Self {
            name: name.to_owned(),
            behind: match target.strip_prefix("guest:") {
                Some(path) if !path.is_empty() => Behind::Guest(path.into()),
                _ => Behind::Agent(target.parse()?),
            },
        })
    }
}

pub fn run(args: &AgentArgs) -> anyhow::Result<()> {
    let endpoint = match (&args.socket_path, &args.listen) {
        (Some(path), _) => Endpoint::Unix(path.clone()),
        (None, Some(address)) => format!("tls:{address}").parse().map_err(Usage)?,
        (None, None) => return Err(Usage("expected --socket-path or --listen".to_owned()).into()),
    };
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot handle signals")?;
    std::fs::create_dir_all(&args.state)
        .with_context(|| format!("cannot make the folder {}", args.state.display()))?;
    // Files while this is the only thread.
    let given_up = "cannot give up what the process does not need";
    let sandbox = Sandbox::confine(args.sandbox.mode(), Kind::Agent, &grants(args, &endpoint));
    let sandbox = sandbox.context(given_up)?;
    let mut devices = Vec::new();
    for Named { name, behind } in &args.device {
        let device: Box<dyn Managed> = match behind {
            Behind::Agent(target) => {
                let opened = Hosted::open(target);
                let device = opened
                    .map_err(|why| Unreachable(format!("device '{name}' ({target}): {why}")))?;
                Box::new(device)
            }
            Behind::Guest(path) => Box::new(SeatedGuest::new(path.clone())),
        };
        devices.push((name.clone(), device));
    }
    let lease = Duration::from_millis(args.lease);
    let host = Host::open(devices, &args.state, lease)?;
    let limits = Limits {
        connections: usize::from(args.connections),
        ..Limits::default()
    };
    let server = Server::bind(&endpoint, args.identity.identity().as_ref(), host, limits);
    let server = server.map_err(|error| match error {
        error @ ServerError::Bind { .. } => anyhow::Error::new(Unreachable(error.to_string())),
        other => other.into(),
    })?;
    let endpoint = match (endpoint, server.port()) {
        (Endpoint::Tls { host, .. }, Some(port)) => Endpoint::Tls { host, port },
        (endpoint, _) => endpoint,
    };
    let connections = usize::from(args.connections);
    sandbox
        .seal(agent_descriptors(args.device.len(), connections))
        .context(given_up)?;
    let stop = server.stopper();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            stop.stop();
        }
    });
    if args.until_eof {
        let stop = server.stopper();
        thread::spawn(move || {
            // Broken off or at its end: whoever held the other one is gone.
            let ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            tracing::debug!(?ended, "the input");
            stop.stop();
        });
    }
    let mut out = std::io::stdout();
    writeln!(out, "listening on {endpoint}")?;
    out.flush()?;
    server.run();
    if let Endpoint::Unix(path) = &endpoint {
        std::fs::remove_file(path).context("removing the socket")?;
    }
    Ok(())
}

/// What the agent goes on using by name.
fn grants(args: &AgentArgs, endpoint: &Endpoint) -> Vec<Grant> {
    let mut grants = vec![Grant::Folder(args.state.clone())];
    match endpoint {
        Endpoint::Unix(path) => grants.push(Grant::Socket(path.clone())),
        Endpoint::Tls { port, .. } => {
            let IdentityArgs { ca, cert, key } = &args.identity;
            let files = [ca, cert, key].into_iter().flatten();
            grants.extend(files.cloned().map(Grant::Read));
            grants.push(Grant::Listen(*port));
            grants.extend(Grant::names());
        }
    }
    let targets = args.device.iter().filter_map(|named| match &named.behind {
        Behind::Agent(target) => Some(target),
        Behind::Guest(_) => None,
    });
    for target in targets {
        match target {
            Target::Vfio(_) => grants.extend(Grant::vfio()),
            // Its disk is a file without a name.
            Target::Emulated => grants.push(Grant::Write(std::env::temp_dir())),
            Target::VfioUser(_) => {}
        }
    }
    grants
}
