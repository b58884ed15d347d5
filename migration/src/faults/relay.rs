//! The one in the middle.

use super::{Script, Step, Way};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Bytes that are taken at once.
const CHUNK: usize = 64 << 10;

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    threads: [JoinHandle<u64>; 2],
}

/// Passes bytes between two connections, as the script says, until both ways have ended.
///
/// # Errors
/// If the system has no descriptors or threads.
pub fn relay(
    first: UnixStream,
    second: UnixStream,
    script: impl Script + 'static,
) -> io::Result<Relay> {
    let script: Arc<Mutex<dyn Script>> = Arc::new(Mutex::new(script));
    let forth = (first.try_clone()?, second.try_clone()?);
    let other = Arc::clone(&script);
    let spawn = |way, from, to, script: Arc<Mutex<dyn Script>>| {
        let thread = std::thread::Builder::new().name(format!("relay {way:?}"));
        thread.spawn(move || pass(way, from, to, &script))
    };
    Ok(Relay {
        threads: [
            spawn(Way::Forth, forth.0, forth.1, script)?,
            spawn(Way::Back, second, first, other)?,
        ],
    })
}

impl Relay {
    /// Waits until both ways have ended; how many bytes came in, forth and back.
    pub fn join(self) -> (u64, u64) {
        let [forth, back] = self.threads.map(|thread| thread.join().unwrap_or(0));
        (forth, back)
    }
}

fn pass(way: Way, mut from: UnixStream, mut to: UnixStream, script: &Mutex<dyn Script>) -> u64 {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    'open: loop {
        let bytes = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        // Judged before it arrives, and passed on without the lock: whoever is blocked here does
        // not block the other way.
        let steps = {
            let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
            script.bytes(way, at, bytes)
        };
        at += u64::try_from(bytes.len()).unwrap_or(0);
        for step in steps {
            match step {
                Step::Pass(bytes) => {
                    if to.write_all(&bytes).is_err() {
                        break 'open;
                    }
                }
                Step::Wait(time) => std::thread::sleep(time),
                Step::Hold(gate) => gate.pass(),
                Step::Cut => {
                    hang_up(&from, Shutdown::Both);
                    hang_up(&to, Shutdown::Both);
                    break 'open;
                }
            }
        }
    }
    script
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .ended(way);
    // The other way may still have something to say, and to whom.
    hang_up(&to, Shutdown::Write);
    hang_up(&from, Shutdown::Read);
    at
}

fn hang_up(socket: &UnixStream, how: Shutdown) {
    // One that is gone already serves as well.
    let ended = socket.shutdown(how);
    tracing::debug!(?ended, "hanging up");
}
