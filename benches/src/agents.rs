//! Agents in processes of their own, behind wires that delay, and simulated ones in this process.

use migration::agent::{DeviceConfig, Endpoint, Host, Limits, Managed, Place, Server};
use migration::lock::{Layers, Remote, Reply, Request};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use vm::{Hosted, Target};

/// The argument that makes the benchmark an agent.
pub const SERVE: &str = "--serve-agent";
/// Far longer than a benchmark holds a lock.
const LEASE: Duration = Duration::from_secs(60);

/// Serves one emulated device as `tidemark agent` does, until it is killed, if the program's arguments
/// say so.
pub fn serve_if_told() -> bool {
    let mut arguments = std::env::args().skip_while(|argument| argument != SERVE);
    let (Some(_), Some(folder)) = (arguments.next(), arguments.next()) else {
        return false;
    };
    let folder = Path::new(&folder);
    let device = Hosted::open(&Target::Emulated).expect("an emulated device");
    let devices = vec![("disk0".to_owned(), Box::new(device) as Box<dyn Managed>)];
    let host = Host::open(devices, &folder.join("state"), LEASE).expect("a host");
    let endpoint = Endpoint::Unix(folder.join("agent.sock"));
    let server = Server::bind(&endpoint, None, host, Limits::default()).expect("a socket");
    println!("listening");
    server.run();
    true
}

/// An agent that runs, and the wire to it.
#[derive(Debug)]
pub struct Far {
    child: Child,
    wire: PathBuf,
}

impl Far {
    /// Starts an agent in `folder` whose messages take so long each way.
    pub fn start(folder: &Path, delay: Duration) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg(SERVE)
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let wire = folder.join("wire.sock");
        let listener = UnixListener::bind(&wire)?;
        let behind = folder.join("agent.sock");
        thread::spawn(move || {
            for caller in listener.incoming().map_while(Result::ok) {
                if let Err(error) = connect(&caller, &behind, delay) {
                    eprintln!("a wire broke: {error}");
                }
            }
        });
        Ok(Self { child, wire })
    }

    /// Its device, as it is reached over the wire.
    pub fn place(&self) -> Place {
        Place {
            device: "disk0".to_owned(),
            agent: Endpoint::Unix(self.wire.clone()),
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        drop(killed);
    }
}

fn connect(caller: &UnixStream, behind: &Path, delay: Duration) -> io::Result<()> {
    let agent = UnixStream::connect(behind)?;
    carry(caller.try_clone()?, agent.try_clone()?, delay);
    carry(agent, caller.try_clone()?, delay);
    Ok(())
}

/// Carries octets from one end to the other, each as long after it came as every other.
fn carry(mut from: UnixStream, mut to: UnixStream, delay: Duration) {
    let (sender, due) = channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut chunk = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            if sender
                .send((Instant::now() + delay, chunk[..length].to_vec()))
                .is_err()
            {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (at, chunk) in due {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&chunk).is_err() {
                break;
            }
        }
    });
}

/// A simulated remote: its layers, and a wire that takes a round trip for each request.
#[derive(Clone)]
pub struct Simulated {
    name: String,
    layers: Arc<Mutex<Layers<DeviceConfig>>>,
    wire: Sender<Sent>,
    round_trip: Duration,
}

/// A request on its way.
struct Sent {
    due: Instant,
    layers: Arc<Mutex<Layers<DeviceConfig>>>,
    request: Request<DeviceConfig>,
    reply: Reply,
}

impl Simulated {
    /// So many of them, each so far away, in real time. Devices take no time to configure.
    pub fn fleet(count: usize, round_trip: Duration) -> Vec<Self> {
        let (wire, sent) = channel::<Sent>();
        thread::spawn(move || {
            for sent in sent {
                // All take equally long, so that they come in the order in which they are due.
                thread::sleep(sent.due.saturating_duration_since(Instant::now()));
                let mut layers = sent.layers.lock().unwrap_or_else(PoisonError::into_inner);
                let answer = layers.answer(sent.request, SystemTime::now());
                layers.finish(Ok(()));
                sent.reply.send(answer);
            }
        });
        let one = |number| Self {
            name: format!("simulated{number:03}"),
            layers: Arc::new(Mutex::new(Layers::new(DeviceConfig::default()))),
            wire: wire.clone(),
            round_trip,
        };
        (0..count).map(one).collect()
    }
}

impl std::fmt::Debug for Simulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Simulated({})", self.name)
    }
}

impl Remote<DeviceConfig> for Simulated {
    fn name(&self) -> &str {
        &self.name
    }

    fn send(&self, request: Request<DeviceConfig>, reply: Reply) {
        let sent = Sent {
            due: Instant::now() + self.round_trip,
            layers: Arc::clone(&self.layers),
            request,
            reply,
        };
        // What is dropped answers for itself.
        let _ = self.wire.send(sent);
    }

    fn free_command(&self) -> String {
        "none: it is simulated".to_owned()
    }
}
