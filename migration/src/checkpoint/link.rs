//! The connection of a pair, and the switch that ends it.
//!
//! The descriptor belongs to the [`Line`]. Whoever decides a failover holds a [`Switch`], which can
//! hang the line up and so wake whoever is blocked in it, but never closes it: the number cannot
//! come to mean something else while anybody may still use it. It is closed once, by
//! [`Line::close`], for which a completed failover must be shown.

use super::failover::{Begun, Failover, FailoverError, State};
use crate::stream::{Connection, GatherWrite};
use driver::memory::DmaMemory;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A connection that can be ended from another thread.
pub trait HangUp: Send + Sync {
    /// Ends both directions. Whoever is blocked in it wakes with an end or an error; the descriptor
    /// stays open.
    fn hang_up(&self);
    /// How long a read or a write may take; for ever without.
    ///
    /// # Errors
    /// What the system says.
    fn set_patience(&self, patience: Option<Duration>) -> io::Result<()>;
}

macro_rules! sockets {
    ($($socket:ty)*) => {$(
        impl HangUp for $socket {
            fn hang_up(&self) {
                // One that is not connected any more needs none.
                let ended = self.shutdown(Shutdown::Both);
                tracing::debug!(?ended, "hanging up");
            }

            fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
                self.set_read_timeout(patience)?;
                self.set_write_timeout(patience)
            }
        }
    )*};
}
sockets! { UnixStream TcpStream }

impl HangUp for Connection {
    fn hang_up(&self) {
        Connection::hang_up(self);
    }

    fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.set_timeout(patience)
    }
}

/// One end of a pair's connection.
#[derive(Debug)]
pub struct Line<S>(Arc<S>);

impl<S: HangUp + 'static> Line<S> {
    /// The connection, and the switch of this side's failover.
    pub fn new(socket: S) -> (Self, Switch) {
        let socket = Arc::new(socket);
        let ear: Weak<S> = Arc::downgrade(&socket);
        let switch = Switch(Arc::new(Shared {
            failover: Failover::default(),
            line: ear,
            asked: Mutex::new(false),
            decided: Condvar::new(),
        }));
        (Self(socket), switch)
    }

    /// How long the peer may take for what is due; for ever without.
    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.0.set_patience(patience)
    }

    /// Closes the connection: the guest runs here.
    pub fn close(self, completed: &Completed) {
        let Completed(()) = completed;
        drop(self);
    }
}

impl<S> Read for Line<S>
where
    for<'a> &'a S: Read,
{
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(into)
    }
}

impl<S> Write for Line<S>
where
    for<'a> &'a S: Write,
{
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self.0).write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

impl<S> GatherWrite for Line<S>
where
    for<'a> &'a S: GatherWrite,
{
    fn write_gathered(
        &mut self,
        head: &[u8],
        memory: &DmaMemory,
        ranges: &[(u64, usize)],
    ) -> io::Result<()> {
        (&*self.0).write_gathered(head, memory, ranges)
    }
}

/// Shows that a failover has been completed.
#[derive(Debug)]
pub struct Completed(());

#[derive(Debug)]
struct Shared<L: ?Sized> {
    failover: Failover,
    /// A checkpoint has been asked for.
    asked: Mutex<bool>,
    decided: Condvar,
    line: Weak<L>,
}

trait Shares: Send + Sync {
    fn failover(&self) -> &Failover;
    fn decided(&self) -> (&Mutex<bool>, &Condvar);
    fn hang_up(&self);
}

impl<S: HangUp> Shares for Shared<S> {
    fn failover(&self) -> &Failover {
        &self.failover
    }

    fn decided(&self) -> (&Mutex<bool>, &Condvar) {
        (&self.asked, &self.decided)
    }

    fn hang_up(&self) {
        if let Some(line) = self.line.upgrade() {
            line.hang_up();
        }
    }
}

/// Decides about one side's failover, from any thread.
#[derive(Clone)]
pub struct Switch(Arc<dyn Shares>);

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Switch").field(&self.state()).finish()
    }
}

impl Switch {
    /// Where the failover stands.
    pub fn state(&self) -> State {
        self.0.failover().state()
    }

    /// The guest is to run here, alone: the heartbeat of the other side is lost. The thread that
    /// makes checkpoints is woken and carries it out; if it is loading a checkpoint, it does so
    /// after that.
    ///
    /// # Errors
    /// [`FailoverError::AlreadyActivated`] for a second request.
    pub fn fail_over(&self) -> Result<Begun, FailoverError> {
        self.0.failover().request()?;
        self.begin()
    }

    fn begin(&self) -> Result<Begun, FailoverError> {
        // Whoever loads a checkpoint may begin what was asked for during the load, and then it
        // begins, which is all that was asked.
        let begun = match self.0.failover().begin() {
            Err(FailoverError::Wrong { .. }) => Begun::Active,
            other => other?,
        };
        if begun == Begun::Active {
            self.0.hang_up();
            let guard = self.asked();
            self.0.decided().1.notify_all();
            drop(guard);
        }
        Ok(begun)
    }

    /// Refuses to go on if anybody asked for a failover.
    pub(super) fn check(&self) -> Result<(), FailoverError> {
        match self.state() {
            State::None => Ok(()),
            state => Err(FailoverError::Pending(state)),
        }
    }

    pub(super) fn begin_load(&self) -> Result<(), FailoverError> {
        self.0.failover().begin_load()
    }

    /// A load has ended; begins what was put off meanwhile.
    pub(super) fn end_load(&self) -> Result<(), FailoverError> {
        if self.0.failover().end_load() {
            self.begin()?;
        }
        self.check()
    }

    /// Waits until a failover is decided. Whoever makes checkpoints does so when they have ended.
    pub fn wait(&self) {
        let decided = self.0.decided().1;
        let mut guard = self.asked();
        while !matches!(self.state(), State::Active | State::Completed) {
            guard = decided.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks for a checkpoint now, whatever the period.
    pub fn ask(&self) {
        *self.asked() = true;
        self.0.decided().1.notify_all();
    }

    /// Waits until a checkpoint is due, after `period` at the latest, or a failover is asked for.
    pub(super) fn sleep(&self, period: Duration) {
        let begin = Instant::now();
        let decided = self.0.decided().1;
        let mut asked = self.asked();
        loop {
            let left = period.saturating_sub(begin.elapsed());
            let due = std::mem::take(&mut *asked) || left.is_zero();
            if due || self.state() != State::None {
                return;
            }
            let waited = decided.wait_timeout(asked, left);
            (asked, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn asked(&self) -> MutexGuard<'_, bool> {
        let asked = self.0.decided().0.lock();
        asked.unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest runs here.
    ///
    /// # Errors
    /// [`FailoverError::Wrong`] unless a failover is active.
    pub fn complete(&self) -> Result<Completed, FailoverError> {
        self.0.failover().complete()?;
        Ok(Completed(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Debug, Default)]
    struct Counted {
        hung_up: Arc<AtomicU32>,
        closed: Arc<AtomicU32>,
    }

    impl HangUp for Counted {
        fn hang_up(&self) {
            self.hung_up.fetch_add(1, Ordering::Relaxed);
        }

        fn set_patience(&self, _: Option<Duration>) -> io::Result<()> {
            Ok(())
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.closed.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_descriptor_is_closed_once_and_after_the_failover() {
        let socket = Counted::default();
        let (hung_up, closed) = (Arc::clone(&socket.hung_up), Arc::clone(&socket.closed));
        let (line, switch) = Line::new(socket);
        assert!(switch.complete().is_err(), "nobody asked");
        assert_eq!(switch.fail_over(), Ok(Begun::Active));
        assert_eq!(hung_up.load(Ordering::Relaxed), 1);
        assert!(matches!(
            switch.fail_over(),
            Err(FailoverError::AlreadyActivated(State::Active))
        ));
        assert_eq!(
            hung_up.load(Ordering::Relaxed),
            1,
            "only the first hangs up"
        );
        switch.wait();
        let completed = switch.complete().unwrap();
        assert_eq!(closed.load(Ordering::Relaxed), 0, "open until it is closed");
        line.close(&completed);
        assert_eq!(closed.load(Ordering::Relaxed), 1);
        assert!(switch.fail_over().is_err());
        drop(switch);
        assert_eq!(closed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_blocked_reader_wakes() {
        let (here, _there) = UnixStream::pair().unwrap();
        let (mut line, switch) = Line::new(here);
        let reader = std::thread::spawn(move || line.read(&mut [0; 4]).unwrap());
        switch.fail_over().unwrap();
        assert_eq!(reader.join().unwrap(), 0);
    }

    #[test]
    fn what_is_asked_during_a_load_hangs_up_after_it() {
        let socket = Counted::default();
        let hung_up = Arc::clone(&socket.hung_up);
        let (_line, switch) = Line::new(socket);
        switch.begin_load().unwrap();
        assert_eq!(switch.fail_over(), Ok(Begun::Deferred));
        assert_eq!(hung_up.load(Ordering::Relaxed), 0);
        assert!(switch.end_load().is_err(), "no checkpoint follows");
        assert_eq!(hung_up.load(Ordering::Relaxed), 1);
        assert_eq!(switch.state(), State::Active);
    }
}
