//! The agents of a guest's devices: given ones, or ones that are started for the occasion.

use crate::agent::IdentityArgs;
use crate::exit::{Unreachable, Usage};
use anyhow::Context;
use clap::Args;
use migration::agent::{Agents, Endpoint, Ensemble, Mode, Place};
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use vm::Seat;

/// Who starts, suspends and resumes a guest's devices.
#[derive(Args, Debug)]
pub struct AgentsArgs {
    /// The agent's device for each device of the guest, in their order: DEVICE@unix:PATH or
    /// DEVICE@tls:HOST:PORT. All are started, suspended and let go on together, or none. Default: agents
    /// that are started for the run, if there are several devices
    #[arg(long, value_name = "DEVICE@AGENT", requires = "control")]
    agent: Vec<Place>,
    /// The same at the other side, where they hold the places of the devices
    #[arg(long, value_name = "DEVICE@AGENT", requires = "agent")]
    agent_there: Vec<Place>,
    /// Folder for a socket for each device, 0.sock and on, by which its agent reaches it (guest:PATH)
    #[arg(long, value_name = "DIR", requires = "agent")]
    control: Option<PathBuf>,
    /// Starts, suspends and resumes the devices without agents, one after the other
    #[arg(long, conflicts_with = "agent")]
    no_agents: bool,
    /// What holders of locks are called; over TCP it stands in the certificate
    #[arg(
        long,
        value_name = "NAME",
        default_value = "tidemark",
        requires = "agent"
    )]
    who: String,
    #[command(flatten)]
    identity: IdentityArgs,
}

/// An agent that was started for the occasion.
#[derive(Debug)]
struct Own {
    child: Child,
}

impl Own {
    /// One for these devices, which are reached by sockets in `control`. Listens when this returns.
    fn start(socket: &Path, control: &Path, devices: &[usize]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        command.arg("agent").arg("--until-eof");
        command.arg("--socket-path").arg(socket);
        command.arg("--state").arg(socket.with_extension("state"));
        for &device in devices {
            let seat = seat_path(control, device);
            command.arg("--device");
            command.arg(format!("disk{device}=guest:{}", seat.display()));
        }
        if std::env::var_os("RUST_LOG").is_none() {
            // A guest that leaves takes its devices with it, which an agent warns of.
            command.env("RUST_LOG", "error");
        }
        // Its end is that of its input. A terminal's signals are for this program alone.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.process_group(0);
        let mut this = Self {
            child: command.spawn().context("starting an agent")?,
        };
        tracing::info!(pid = this.child.id(), socket = %socket.display(), "agent");
        let out = this.child.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(out)
            .read_line(&mut line)
            .context("waiting for an agent")?;
        if !line.starts_with("listening on ") {
            let line = line.trim_end();
            let why = format!("an agent did not start: expected 'listening on ...', got '{line}'");
            return Err(Unreachable(why).into());
        }
        Ok(this)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let ended = self.child.wait();
        tracing::debug!(?ended, "agent");
    }
}

fn seat_path(control: &Path, device: usize) -> PathBuf {
    control.join(format!("{device}.sock"))
}

/// Makes a place for each device, and lets agents reach it by a socket in this folder.
pub fn seats(control: &Path, devices: usize) -> anyhow::Result<Vec<Arc<Seat>>> {
    std::fs::create_dir_all(control)
        .map_err(|error| Usage(format!("cannot make {}: {error}", control.display())))?;
    let mut seats = Vec::new();
    for device in 0..devices {
        let path = seat_path(control, device);
        // What a program that was killed has left is in the way; one that lives is not robbed.
        if UnixStream::connect(&path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused) {
            std::fs::remove_file(&path).context("removing a socket that nobody listens on")?;
        }
        let listener = UnixListener::bind(&path)
            .map_err(|error| Usage(format!("cannot listen on unix:{}: {error}", path.display())))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .context("keeping the socket to this user")?;
        let seat = Arc::new(Seat::default());
        let serving = Arc::clone(&seat);
        let thread = std::thread::Builder::new().name(format!("seat{device}"));
        thread
            .spawn(move || vm::serve_seat(&listener, &serving))
            .context("starting a thread")?;
        seats.push(seat);
    }
    Ok(seats)
}

/// The agents of a guest's devices on this side, before they conduct them.
#[derive(Debug)]
pub struct Crew {
    /// Where they reach the devices.
    pub seats: Vec<Arc<Seat>>,
    here: Vec<Place>,
    there: Vec<Place>,
    /// Where those of the other side reach theirs, if that is this program's as well.
    control_there: Option<PathBuf>,
    folder: PathBuf,
    devices: usize,
    own: Vec<Own>,
}

impl Crew {
    /// Makes the places of so many devices, if they are to have agents: `able` says whether they can. If
    /// nobody is named and there are several devices, the agents will be this program's own.
    pub fn prepare(
        args: &AgentsArgs,
        devices: usize,
        able: Result<(), &str>,
        folder: &Path,
    ) -> anyhow::Result<Option<Self>> {
        let given = !args.agent.is_empty();
        if let Err(why) = able {
            if given {
                return Err(Usage(format!("--agent: {why}")).into());
            }
            return Ok(None);
        }
        if args.no_agents || !given && devices < 2 {
            return Ok(None);
        }
        for (name, places) in [
            ("--agent", &args.agent),
            ("--agent-there", &args.agent_there),
        ] {
            if !places.is_empty() && places.len() != devices {
                let got = places.len();
                let why = format!("{name}: expected {devices}, one for each device, got {got}");
                return Err(Usage(why).into());
            }
        }
        let folder = folder.join("agents");
        let control = args.control.clone();
        let control = control.unwrap_or_else(|| folder.join("here"));
        Ok(Some(Self {
            seats: seats(&control, devices)?,
            here: args.agent.clone(),
            there: args.agent_there.clone(),
            control_there: (!given).then(|| folder.join("there")),
            folder,
            devices,
            own: Vec::new(),
        }))
    }

    /// Where the other side is to let agents reach its devices, if it is this program's.
    pub fn control_there(&self) -> Option<&Path> {
        self.control_there.as_deref()
    }

    /// Starts agents if none were named: one for each device here; and one for all those `there`, if that
    /// side is this program's. The devices sit in their places.
    pub fn conduct(
        &mut self,
        args: &AgentsArgs,
        there: bool,
        moves: bool,
        mode: Mode,
    ) -> anyhow::Result<Ensemble> {
        let all: Vec<usize> = (0..self.devices).collect();
        if self.here.is_empty() {
            for device in 0..self.devices {
                let socket = self.folder.join(format!("here{device}"));
                let control = self.folder.join("here");
                self.own.push(Own::start(&socket, &control, &[device])?);
                self.here.push(place(device, socket));
            }
            if let Some(control) = self.control_there.as_ref().filter(|_| there) {
                let socket = self.folder.join("host-there");
                self.own.push(Own::start(&socket, control, &all)?);
                let places = all.iter().map(|device| place(*device, socket.clone()));
                self.there.extend(places);
            }
        }
        let agents = Agents::new(args.identity.identity().as_ref())?;
        let (here, there) = (self.here.clone(), self.there.clone());
        let who = args.who.clone();
        Ok(Ensemble::new(agents, who, here, there, moves, mode))
    }
}

fn place(device: usize, socket: PathBuf) -> Place {
    Place {
        device: format!("disk{device}"),
        agent: Endpoint::Unix(socket),
    }
}
