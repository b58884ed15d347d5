//! Everything that can happen to a running guest, in one place, so that one wait sees it all: what
//! the guest says, what QEMU answers, and the end of QEMU or of a process that the guest needs.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::Value;

use crate::process::Exit;

/// A device that ended is the reason for the guest's end, or its consequence: QEMU may have closed
/// the device's socket and not ended yet. So QEMU gets this long to end after its device.
const GRACE: Duration = Duration::from_secs(5);

/// What has happened so far.
#[derive(Default)]
pub struct State {
    /// All that the guest wrote to its console.
    pub serial: Vec<u8>,
    /// The facts in it.
    pub facts: BTreeMap<String, String>,
    /// Lines that the guest sent and nobody has taken.
    pub lines: VecDeque<String>,
    /// QEMU's answers that nobody has taken.
    pub answers: VecDeque<Value>,
    /// QEMU's events that nobody has taken.
    pub events: VecDeque<Value>,
    reading: usize,
    ended: bool,
    lost: Option<(String, Instant)>,
}

impl State {
    /// Whether QEMU has ended and all that it said has been read.
    pub fn ended(&self) -> bool {
        self.ended && self.reading == 0
    }
}

/// The state and the news of its change.
#[derive(Default)]
pub struct Hub {
    state: Mutex<State>,
    changed: Condvar,
}

impl Hub {
    /// The state as it is now.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, how: impl FnOnce(&mut State)) {
        how(&mut self.lock());
        self.changed.notify_all();
    }

    /// Reads a channel to its end, line by line, line ends included.
    pub fn read(
        self: &Arc<Self>,
        channel: impl Read + Send + 'static,
        mut take: impl FnMut(&mut State, &[u8]) + Send + 'static,
    ) -> JoinHandle<()> {
        self.change(|state| state.reading += 1);
        let hub = Arc::clone(self);
        thread::spawn(move || {
            let mut channel = BufReader::new(channel);
            let mut line = Vec::new();
            // An error is the end as well: a socket whose other side was killed gives one.
            while channel.read_until(b'\n', &mut line).unwrap_or(0) > 0 {
                hub.change(|state| take(state, &line));
                line.clear();
            }
            hub.change(|state| state.reading -= 1);
        })
    }

    /// Waits for the end of QEMU, and notes the end of any process that it needs.
    pub fn watch(self: &Arc<Self>, qemu: Exit, mut others: Vec<Exit>) -> JoinHandle<()> {
        let hub = Arc::clone(self);
        thread::spawn(move || {
            loop {
                let exits: Vec<&Exit> = [&qemu].into_iter().chain(&others).collect();
                let mut fds: Vec<_> = exits
                    .iter()
                    .map(|exit| PollFd::new(&exit.fd, PollFlags::IN))
                    .collect();
                match poll(&mut fds, None) {
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(_) => return,
                }
                let gone: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
                if gone[0] {
                    return hub.change(|state| state.ended = true);
                }
                if let Some(index) = gone[1..].iter().position(|gone| *gone) {
                    let name = others.remove(index).name;
                    hub.change(|state| state.lost = Some((name, Instant::now())));
                }
            }
        })
    }

    /// Waits until `pick` finds something. It cannot any more when QEMU has ended, and has little
    /// time left when a process that the guest needs has ended.
    pub fn wait<T>(
        &self,
        what: &str,
        at_most: Duration,
        mut pick: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + at_most;
        let mut state = self.lock();
        loop {
            if let Some(found) = pick(&mut state) {
                return Ok(found);
            }
            if state.ended() {
                bail!("QEMU ended, and {what} never came");
            }
            let until = match &state.lost {
                Some((_, at)) => deadline.min(*at + GRACE),
                None => deadline,
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(match &state.lost {
                    Some((name, _)) => anyhow::anyhow!("`{name}` ended before {what} came"),
                    None => anyhow::anyhow!("{what} had not come after {} s", at_most.as_secs()),
                });
            }
            let waited = self.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What a channel's line holds, without its end.
pub fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end().to_owned()
}

/// Waits for a reader; it has ended when its channel has.
pub fn join(thread: JoinHandle<()>) -> Result<()> {
    thread.join().ok().context("a reader of the guest panicked")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::Watched;

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_line_ends_the_wait_for_it() -> Result<()> {
        let hub = Arc::new(Hub::default());
        let reader = hub.read(&b"one\r\ntwo"[..], |state, line| {
            state.lines.push_back(text(line));
        });
        for expected in ["one", "two"] {
            let line = hub.wait("a line", LONG, |state| state.lines.pop_front())?;
            assert_eq!(line, expected);
        }
        join(reader)
    }

    #[test]
    fn the_end_of_qemu_ends_every_wait() -> Result<()> {
        let hub = Arc::new(Hub::default());
        let qemu = Watched::spawn(&mut Command::new("true"))?;
        let watch = hub.watch(qemu.exit()?, Vec::new());
        let error = hub.wait("a line", LONG, |state| state.lines.pop_front());
        let text = format!("{:#}", error.expect_err("nobody wrote"));
        assert!(text.contains("QEMU ended, and a line"), "{text}");
        join(watch)
    }

    #[test]
    fn a_lost_device_ends_a_wait_long_before_its_deadline() -> Result<()> {
        let hub = Arc::new(Hub::default());
        let qemu = Watched::spawn(Command::new("sleep").arg("600"))?;
        let device = Watched::spawn(Command::new("sh").args(["-c", "exit 3"]))?;
        let watch = hub.watch(qemu.exit()?, vec![device.exit()?]);
        let error = hub.wait("a line", LONG, |state| state.lines.pop_front());
        let text = format!("{:#}", error.expect_err("nobody wrote"));
        assert!(
            text.contains("exit 3") && text.contains("ended before"),
            "{text}"
        );
        drop(qemu);
        join(watch)
    }
}
