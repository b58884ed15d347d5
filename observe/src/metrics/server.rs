//! One caller at a time, a bounded head, a bounded time, one answer, and the connection is closed.

use super::{Families, Process, Source};
use device::serve::socket::{SocketError, SocketFile};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Octets of a request's head. Prometheus' own has about 300.
const HEAD_MAX: usize = 4096;
/// Header lines of a request.
const HEADERS_MAX: usize = 32;
/// From a connection's beginning to the end of its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a connection could not be accepted, for want of descriptors above all.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system refuses what else is needed.
    #[error("cannot serve metrics: {0}")]
    System(#[from] io::Error),
}

/// A socket that callers may connect to already; nobody answers yet. All that is needed later is
/// open, and there is no thread: a process that gives up rights does so now, before
/// [`MetricsSocket::serve`], whose thread then has none of them.
#[derive(Debug)]
pub struct MetricsSocket {
    listener: UnixListener,
    file: SocketFile,
    process: Process,
    patience: Duration,
}

impl MetricsSocket {
    /// Listens on `path`, in place of a server that died; for this user only.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn bind(path: &Path) -> Result<Self, MetricsError> {
        let (listener, file) = SocketFile::listen(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            file,
            process: Process::open()?,
            patience: PATIENCE,
        })
    }

    /// Gives callers another time than 5 seconds, from connecting to the end of their answer.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Answers from now on, on a thread of its own, with what the process and `sources` say then.
    ///
    /// Afterwards the thread needs ppoll, accept4, ioctl (FIONBIO), recvfrom or read, sendto or
    /// write, shutdown and close, for the process's own figures pread64, lseek, getdents64,
    /// prlimit64 and clock_gettime, and what an allocator needs: nothing is opened any more.
    ///
    /// # Errors
    /// [`MetricsError::System`] if there is no descriptor or no thread left.
    pub fn serve(self, sources: Vec<Box<dyn Source>>) -> Result<MetricsServer, MetricsError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?;
        let stop = Arc::new(stop);
        let process: Box<dyn Source> = Box::new(self.process);
        let serving = Serving {
            listener: self.listener,
            stop: Arc::clone(&stop),
            sources: std::iter::once(process).chain(sources).collect(),
            patience: self.patience,
        };
        let thread = thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || serving.run())?;
        Ok(MetricsServer {
            file: self.file,
            stop,
            thread: Some(thread),
        })
    }
}

/// Metrics that can be asked for. Dropped, it answers no more and the socket is gone.
#[derive(Debug)]
pub struct MetricsServer {
    file: SocketFile,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        let told = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take().filter(|_| told.is_ok()) {
            // It waits for nothing but what the descriptor interrupts.
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Serving {
    listener: UnixListener,
    stop: Arc<OwnedFd>,
    sources: Vec<Box<dyn Source>>,
    patience: Duration,
}

/// Why a connection ends without an answer, or all end.
enum End {
    /// The caller has gone, or took too long.
    Caller(io::Error),
    /// Everything ends.
    Stop,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Caller(error)
    }
}

impl Serving {
    fn run(&self) {
        loop {
            if self.wait(&self.listener, PollFlags::IN, None).is_err() {
                return;
            }
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => {
                    tracing::warn!(%error, "a caller for metrics was not accepted");
                    thread::sleep(ACCEPT_PAUSE);
                    continue;
                }
            };
            match self.answer(stream) {
                Ok(()) => {}
                Err(End::Stop) => return,
                Err(End::Caller(error)) => tracing::debug!(%error, "a caller for metrics is gone"),
            }
        }
    }

    /// Waits until `descriptor` is ready, at most until the end of the caller's time.
    fn wait(
        &self,
        descriptor: impl AsFd,
        flags: PollFlags,
        until: Option<Instant>,
    ) -> Result<(), End> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(End::Caller(io::ErrorKind::TimedOut.into()));
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut ready = [
                PollFd::new(&*self.stop, PollFlags::IN),
                PollFd::new(&descriptor, flags),
            ];
            match poll(&mut ready, left.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(End::Caller(error.into())),
            }
            let [stop, caller] = ready;
            if !stop.revents().is_empty() {
                return Err(End::Stop);
            }
            if !caller.revents().is_empty() {
                return Ok(());
            }
        }
    }

    fn answer(&self, mut stream: UnixStream) -> Result<(), End> {
        let until = Instant::now() + self.patience;
        stream.set_nonblocking(true)?;
        let asked = self.head(&mut stream, until)?;
        let reply = match asked {
            Asked::Metrics { body } => {
                let mut families = Families::default();
                for source in &self.sources {
                    source.collect(&mut families);
                }
                match families.encode() {
                    Ok(text) => Reply::new("200 OK", TEXT, text).with_body(body),
                    Err(error) => {
                        tracing::error!(%error, "metrics cannot be told");
                        Reply::plain("500 Internal Server Error", &error.to_string())
                    }
                }
            }
            Asked::Other(status, text) => Reply::plain(status, text),
        };
        let mut rest = reply.octets.as_slice();
        while !rest.is_empty() {
            self.wait(&stream, PollFlags::OUT, Some(until))?;
            match stream.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(stream.shutdown(std::net::Shutdown::Write)?)
    }

    /// Reads a head and judges it.
    fn head(&self, stream: &mut UnixStream, until: Instant) -> Result<Asked, End> {
        let mut octets = [0; HEAD_MAX];
        let mut length = 0;
        loop {
            let Some(room) = octets.get_mut(length..).filter(|room| !room.is_empty()) else {
                let text = "a head of at most 4096 octets was expected";
                return Ok(Asked::Other("431 Request Header Fields Too Large", text));
            };
            self.wait(&*stream, PollFlags::IN, Some(until))?;
            match stream.read(room) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => length += count,
                Err(error) if is_passing(&error) => continue,
                Err(error) => return Err(error.into()),
            }
            let head = octets.get(..length).unwrap_or_default();
            if let Some(asked) = judge(head) {
                return Ok(asked);
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    let kind = error.kind();
    matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// What a caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Metrics {
        /// Not with HEAD.
        body: bool,
    },
    /// What there is not: the status line, and the text for people.
    Other(&'static str, &'static str),
}

/// What a head asks for; none if it is not whole yet.
fn judge(head: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => {
            let text = "at most 32 header lines were expected";
            return Some(Asked::Other("431 Request Header Fields Too Large", text));
        }
        Err(_) => {
            let text = "a request of HTTP/1.1 was expected";
            return Some(Asked::Other("400 Bad Request", text));
        }
    }
    let path = request.path.unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    Some(match (request.method, path) {
        (Some("GET"), "/metrics") => Asked::Metrics { body: true },
        (Some("HEAD"), "/metrics") => Asked::Metrics { body: false },
        (_, "/metrics") => Asked::Other("405 Method Not Allowed", "GET was expected"),
        _ => Asked::Other("404 Not Found", "/metrics was expected"),
    })
}

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A whole answer.
struct Reply {
    octets: Vec<u8>,
    /// Where its body begins.
    head: usize,
}

impl Reply {
    fn new(status: &str, kind: &str, body: String) -> Self {
        let allow = if status.starts_with("405") {
            "Allow: GET, HEAD\r\n"
        } else {
            ""
        };
        let mut octets = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}\
             Connection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        let head = octets.len();
        octets.extend(body.into_bytes());
        Self { octets, head }
    }

    fn plain(status: &str, text: &str) -> Self {
        Self::new(status, "text/plain; charset=utf-8", format!("{text}\n"))
    }

    fn with_body(mut self, body: bool) -> Self {
        if !body {
            self.octets.truncate(self.head);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_judged() {
        let other = |status| Some(Asked::Other(status, ""));
        let asked = |head: &str| match judge(head.as_bytes()) {
            Some(Asked::Other(status, text)) => {
                assert!(!text.is_empty());
                other(status)
            }
            asked => asked,
        };
        assert_eq!(
            asked("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
            Some(Asked::Metrics { body: true })
        );
        assert_eq!(
            asked("HEAD /metrics?x=1 HTTP/1.0\r\n\r\n"),
            Some(Asked::Metrics { body: false })
        );
        for partial in ["", "G", "GET /metrics HTTP/1.1\r\n", "GET /metrics"] {
            assert_eq!(asked(partial), None, "{partial}");
        }
        assert_eq!(
            asked("POST /metrics HTTP/1.1\r\n\r\n"),
            other("405 Method Not Allowed")
        );
        assert_eq!(
            asked("GET /metric HTTP/1.1\r\n\r\n"),
            other("404 Not Found")
        );
        assert_eq!(
            asked("GET /metrics SPDY/9\r\n\r\n"),
            other("400 Bad Request")
        );
        assert_eq!(asked("\0\u{1}\r\n\r\n"), other("400 Bad Request"));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(33));
        assert_eq!(asked(&many), other("431 Request Header Fields Too Large"));
    }
}
