//! Whose turn it is at a disk that several processes open, one after the other.
//!
//! A process that is killed leaves what it submitted to the kernel behind: a write may still reach
//! the storage after another process has taken over, has done the same write again, and has been
//! given a newer one. So a lock of the file says that somebody has requests with the kernel. It
//! belongs to the open file, which the kernel keeps for as long as a request needs it, whatever
//! became of the process. All share the lock; who comes anew takes it alone once, which is to wait
//! for the requests of everybody who was there before.
//!
//! Only writes that the kernel carries out by itself can be left behind. One that is made by a
//! system call ends before its process does.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The turns of one device.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Steps that are under way, on any queue.
    holders: usize,
    /// Everybody who was there before has been waited for.
    settled: bool,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    file: &'a File,
}

impl Turns {
    /// Takes a turn; waits for requests that other processes have with the kernel if it is the
    /// first. A file system without such locks is told of once, and done without.
    pub(super) fn take<'a>(&'a self, file: &'a File) -> Turn<'a> {
        let mut state = self.lock();
        if !state.settled {
            if let Err(error) = wait_alone(file) {
                tracing::warn!(%error, "the disk cannot be locked: what a killed process left with the kernel is not waited for");
            }
            state.settled = true;
        }
        if state.holders == 0 {
            // Refused where the first was, and told then.
            let _ = interruptible(file, FlockOperation::LockShared);
        }
        state.holders += 1;
        Turn { turns: self, file }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.holders = state.holders.saturating_sub(1);
        if state.holders == 0 {
            let _ = flock(self.file, FlockOperation::Unlock);
        }
    }
}

fn wait_alone(file: &File) -> rustix::io::Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            tracing::info!("waiting for another process's requests to the disk");
            interruptible(file, FlockOperation::LockExclusive)
        }
        other => other,
    }
}

fn interruptible(file: &File, operation: FlockOperation) -> rustix::io::Result<()> {
    loop {
        match flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    fn opened(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// Whether `file` could be had alone now.
    fn is_free(file: &File) -> bool {
        let alone = flock(file, FlockOperation::NonBlockingLockExclusive).is_ok();
        if alone {
            flock(file, FlockOperation::Unlock).unwrap();
        }
        alone
    }

    #[test]
    fn the_first_turn_waits_for_whoever_was_there_and_later_ones_do_not() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        let before = opened(disk.path());
        flock(&before, FlockOperation::LockShared).unwrap();
        let (file, turns) = (opened(disk.path()), Turns::default());
        let (send, taken) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let turn = turns.take(&file);
                send.send(()).unwrap();
                drop(turn);
            });
            // Not a proof that it waits, but a thread that does not wait is seen sooner or later.
            for _ in 0..100 {
                thread::yield_now();
                assert!(taken.try_recv().is_err(), "did not wait");
            }
            flock(&before, FlockOperation::Unlock).unwrap();
            taken.recv().unwrap();
        });
        flock(&before, FlockOperation::LockShared).unwrap();
        let (one, other) = (turns.take(&file), turns.take(&file));
        flock(&before, FlockOperation::Unlock).unwrap();
        drop(one);
        assert!(!is_free(&before), "a turn is under way");
        drop(other);
        assert!(is_free(&before));
    }
}
