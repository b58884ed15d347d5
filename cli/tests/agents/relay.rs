//! A wire to an agent, on which a request is seen go by: the moment at which the agent is killed.

use crate::process::Agent;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// When an agent is killed.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The method and the path of a request.
    pub request: String,
    /// At the how-many-eth of those, from 1.
    pub nth: u32,
    /// Before the agent has it; otherwise when it has answered, and nobody has heard of that.
    pub before: bool,
    /// Whether it comes back at once.
    pub returns: bool,
}

struct Shared {
    agent: Arc<Mutex<Agent>>,
    moment: Option<Moment>,
    seen: AtomicU32,
    struck: AtomicBool,
}

/// The wire.
pub struct Relay(Arc<Shared>);

impl Shared {
    /// Whether this is the moment.
    fn is_due(&self, chunk: &[u8]) -> bool {
        let Some(moment) = &self.moment else {
            return false;
        };
        // A request begins with a chunk of its own: nobody sends the next one before the answer.
        let line = format!("{} HTTP/1.1\r\n", moment.request);
        chunk.starts_with(line.as_bytes())
            && self.seen.fetch_add(1, Ordering::SeqCst) + 1 == moment.nth
    }

    fn strike(&self) {
        let mut agent = self.agent.lock().unwrap();
        agent.kill();
        self.struck.store(true, Ordering::SeqCst);
        if self.moment.as_ref().is_some_and(|moment| moment.returns) {
            agent.start();
        }
    }
}

impl Relay {
    /// Listens at `path` for callers of the agent.
    pub fn start(path: &Path, agent: &Arc<Mutex<Agent>>, moment: Option<Moment>) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let shared = Arc::new(Shared {
            agent: Arc::clone(agent),
            moment,
            seen: AtomicU32::new(0),
            struck: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for caller in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&serving);
                thread::spawn(move || connect(&shared, caller));
            }
        });
        Self(shared)
    }

    /// Whether the agent was killed.
    pub fn struck(&self) -> bool {
        self.0.struck.load(Ordering::SeqCst)
    }
}

fn connect(shared: &Arc<Shared>, caller: UnixStream) {
    let socket = shared.agent.lock().unwrap().socket().to_owned();
    // A caller of an agent that is gone finds its end at once.
    let Ok(agent) = UnixStream::connect(socket) else {
        return;
    };
    let swallow = Arc::new(AtomicBool::new(false));
    let (mut from, mut to) = (agent.try_clone().unwrap(), caller.try_clone().unwrap());
    let (answers, swallows) = (Arc::clone(shared), Arc::clone(&swallow));
    let back = thread::spawn(move || {
        let mut chunk = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            if swallows.load(Ordering::SeqCst) {
                answers.strike();
                break;
            }
            if to.write_all(&chunk[..length]).is_err() {
                break;
            }
        }
        // It may be closed already.
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to) = (caller, agent);
    let mut chunk = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        if shared.is_due(&chunk[..length]) {
            if shared.moment.as_ref().is_some_and(|moment| moment.before) {
                shared.strike();
                break;
            }
            swallow.store(true, Ordering::SeqCst);
        }
        if to.write_all(&chunk[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
    back.join().unwrap();
}
