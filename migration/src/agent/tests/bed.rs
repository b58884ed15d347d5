//! An agent on a thread, and its devices.

use crate::agent::*;
use crate::lock::{
    Answer, Claim, Claimant, LockedSet, Remote, RemoteError, Remotes, Request, Terms, Token,
};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// Long enough for any machine.
pub(super) const LONG: Duration = Duration::from_secs(600);

/// What a test sees and steers of a device.
#[derive(Default)]
pub(super) struct Inside {
    pub(super) config: Mutex<DeviceConfig>,
    pub(super) applied: AtomicU32,
    pub(super) reset: AtomicBool,
    held: Mutex<bool>,
    freed: Condvar,
}

impl Inside {
    /// Whether it takes its time for what it applies.
    pub(super) fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.freed.notify_all();
    }

    pub(super) fn config(&self) -> DeviceConfig {
        self.config.lock().unwrap().clone()
    }
}

struct Fake(Arc<Inside>);

impl Managed for Fake {
    fn abilities(&self) -> Abilities {
        Abilities {
            tracking: true,
            pasid: false,
            suspend: true,
        }
    }

    fn apply(&mut self, config: &DeviceConfig) -> Result<(), String> {
        let held = self.0.held.lock().unwrap();
        drop(self.0.freed.wait_while(held, |held| *held).unwrap());
        *self.0.config.lock().unwrap() = config.clone();
        self.0.applied.fetch_add(1, Ordering::SeqCst);
        self.0.reset.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn was_reset(&mut self) -> bool {
        self.0.reset.load(Ordering::SeqCst)
    }
}

/// A host with these devices, from what is kept in a folder.
pub(super) fn host(folder: &Path, lease: Duration, devices: &[(&str, &Arc<Inside>)]) -> Host {
    let device = |(name, inside): &(&str, &Arc<Inside>)| {
        let fake: Box<dyn Managed> = Box::new(Fake(Arc::clone(inside)));
        ((*name).to_owned(), fake)
    };
    Host::open(devices.iter().map(device).collect(), folder, lease).unwrap()
}

/// An agent that runs.
pub(super) struct Running {
    pub(super) endpoint: Endpoint,
    pub(super) folder: TempDir,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// With one device, `disk0`.
    pub(super) fn new(inside: &Arc<Inside>, lease: Duration, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::Unix(folder.path().join("agent.sock"));
        let host = host(&folder.path().join("state"), lease, &[("disk0", inside)]);
        Self::serve(folder, endpoint, None, host, limits)
    }

    pub(super) fn serve(
        folder: TempDir,
        endpoint: Endpoint,
        identity: Option<&Identity>,
        host: Host,
        limits: Limits,
    ) -> Self {
        let server = Server::bind(&endpoint, identity, host, limits).unwrap();
        let endpoint = match (endpoint, server.port()) {
            (Endpoint::Tls { host, .. }, Some(port)) => Endpoint::Tls { host, port },
            (endpoint, _) => endpoint,
        };
        let stop = server.stopper();
        Self {
            endpoint,
            folder,
            stop,
            thread: Some(std::thread::spawn(move || server.run())),
        }
    }

    pub(super) fn place(&self) -> Place {
        Place {
            device: "disk0".to_owned(),
            agent: self.endpoint.clone(),
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        match &self.endpoint {
            Endpoint::Unix(path) => path.clone(),
            Endpoint::Tls { .. } => panic!("TCP"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A configuration that shows.
pub(super) fn suspended() -> DeviceConfig {
    DeviceConfig {
        suspended: true,
        ..DeviceConfig::default()
    }
}

/// One device as a set of its own.
pub(super) fn alone(agents: &Agents, place: &Place) -> Remotes<DeviceConfig> {
    let remote: Arc<dyn Remote<DeviceConfig>> = Arc::new(agents.remote(place.clone()));
    Remotes::new(vec![remote]).unwrap()
}

/// Locks, stages, applies and releases.
pub(super) fn change(agents: &Agents, place: &Place, config: &DeviceConfig) {
    let report = LockedSet::lock(alone(agents, place), Terms::new("test"))
        .and_then(|set| set.for_each(|_| Ok(config.clone())))
        .and_then(LockedSet::apply)
        .unwrap()
        .release();
    assert_eq!(report.stuck, []);
}

/// Locks a device of a host directly, without a client that renews.
pub(super) fn lock(host: &Host, device: &str, who: &str) -> (Claim, Token) {
    let who = Claimant::new(who);
    let claim = Claim {
        id: who.id,
        attempt: 1,
    };
    let asked = host.desk(device).unwrap().ask(Request::Lock { claim, who });
    match asked.unwrap() {
        Answer::Locked(token) => (claim, token),
        other => panic!("{other:?}"),
    }
}

pub(super) fn ask(
    host: &Host,
    device: &str,
    request: Request<DeviceConfig>,
) -> Result<Answer, RemoteError> {
    let asked = host.desk(device).unwrap().ask(request);
    asked.map_err(|error| match error {
        HostError::Remote(error) => error,
        other => panic!("{other}"),
    })
}

/// Waits until something is so, which it becomes without our doing.
pub(super) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = SystemTime::now();
    while !so() {
        assert!(begin.elapsed().unwrap() < LONG, "{what} never came");
        std::thread::yield_now();
    }
}

/// Asks a device over a connection of its own, as any HTTP client does.
pub(super) fn post(agent: &Running, method: &str, what: &str, body: &Value) -> Value {
    let body = body.to_string();
    let mut stream = UnixStream::connect(agent.socket()).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} /v1/devices/disk0/{what} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}
