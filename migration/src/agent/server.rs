//! HTTP in front of a host: bounded in everything that a caller could make large or long.

use crate::agent::host::{Caller, Host};
use crate::agent::routes::{Replied, answer, refusal, refuse};
use crate::agent::wire::{BODY_MAX, Kind};
use crate::agent::{Endpoint, Identity, TlsError};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{interval, timeout};
use tokio_rustls::TlsAcceptor;

/// Octets of a request's head.
const HEAD_MAX: usize = 16 << 10;
/// After a connection could not be accepted, for want of descriptors above all.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How much callers may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// From a connection's beginning to its handshake's end, from there or an answer to the end of the
    /// next head, and from there to the end of its body.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            patience: Duration::from_secs(30),
        }
    }
}

/// Why an agent cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be had.
    #[error("cannot listen on {endpoint}: {error}")]
    Bind {
        /// The address.
        endpoint: Endpoint,
        /// Why not.
        error: io::Error,
    },
    /// TCP without certificates.
    #[error(
        "{0}: TCP is served with certificates only; give the authorities, a certificate and its key"
    )]
    Naked(Endpoint),
    /// The certificates are no good.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system refuses.
    #[error("cannot serve: {0}")]
    System(#[from] io::Error),
}

/// A host that can be reached.
#[derive(Debug)]
pub struct Server {
    runtime: Runtime,
    listener: Listener,
    shared: Arc<Shared>,
    stop: Arc<Notify>,
}

#[derive(Debug)]
struct Shared {
    host: Host,
    limits: Limits,
}

enum Listener {
    Unix(UnixListener),
    Tls(TcpListener, TlsAcceptor),
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unix(_) => "Unix",
            Self::Tls(..) => "Tls",
        })
    }
}

/// Ends a [`Server`].
#[derive(Clone, Debug)]
pub struct Stop(Arc<Notify>);

impl Stop {
    /// Accepts nobody any more, and lets [`Server::run`] return.
    pub fn stop(&self) {
        self.0.notify_one();
    }
}

impl Server {
    /// Listens. A socket in the file system that nobody listens on is replaced, and is for this user only.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn bind(
        endpoint: &Endpoint,
        identity: Option<&Identity>,
        host: Host,
        limits: Limits,
    ) -> Result<Self, ServerError> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let bind = |error| ServerError::Bind {
            endpoint: endpoint.clone(),
            error,
        };
        let listener = match endpoint {
            Endpoint::Unix(path) => {
                remove_stale(path).map_err(bind)?;
                let _entered = runtime.enter();
                let listener = UnixListener::bind(path).map_err(bind)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(bind)?;
                Listener::Unix(listener)
            }
            Endpoint::Tls { host, port } => {
                let identity = identity.ok_or_else(|| ServerError::Naked(endpoint.clone()))?;
                let config: Arc<ServerConfig> = identity.server()?;
                let listener = TcpListener::bind((host.as_str(), *port));
                let listener = runtime.block_on(listener).map_err(bind)?;
                Listener::Tls(listener, TlsAcceptor::from(config))
            }
        };
        Ok(Self {
            runtime,
            listener,
            shared: Arc::new(Shared { host, limits }),
            stop: Arc::default(),
        })
    }

    /// The port, of TCP.
    pub fn port(&self) -> Option<u16> {
        match &self.listener {
            Listener::Unix(_) => None,
            Listener::Tls(listener, _) => listener.local_addr().ok().map(|address| address.port()),
        }
    }

    /// What ends it.
    pub fn stopper(&self) -> Stop {
        Stop(Arc::clone(&self.stop))
    }

    /// Serves until it is stopped.
    pub fn run(self) {
        let Self {
            runtime,
            listener,
            shared,
            stop,
        } = self;
        runtime.block_on(async {
            tokio::spawn(accept(listener, Arc::clone(&shared)));
            tokio::spawn(sweep(shared));
            stop.notified().await;
        });
        // Whatever is still being answered is abandoned: what was promised is kept.
        runtime.shutdown_background();
    }
}

/// Removes a socket of an agent that was killed. One that somebody listens on stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    let socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if !socket {
        return Ok(());
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
    }
}

/// Ends leases soon after they have run out, whether anybody asks or not.
async fn sweep(shared: Arc<Shared>) {
    let mut ticks = interval(shared.host.sweep_interval());
    loop {
        ticks.tick().await;
        let shared = Arc::clone(&shared);
        let swept = tokio::task::spawn_blocking(move || shared.host.sweep()).await;
        if let Err(error) = swept {
            tracing::error!(%error, "leases were not looked at");
        }
    }
}

async fn accept(listener: Listener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(shared.limits.connections));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let shared = Arc::clone(&shared);
        let patience = shared.limits.patience;
        let failed = |error: io::Error| tracing::warn!(%error, "a connection was not accepted");
        match &listener {
            Listener::Unix(listener) => match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(async move {
                        serve(stream, Caller::Local, shared).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    failed(error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Listener::Tls(listener, acceptor) => match listener.accept().await {
                Ok((stream, from)) => {
                    // Without, an answer waits for the caller's delayed acknowledgement.
                    let quick = stream.set_nodelay(true);
                    tracing::debug!(?quick, %from, "connected");
                    let shaken = timeout(patience, acceptor.accept(stream));
                    tokio::spawn(async move {
                        match shaken.await {
                            Ok(Ok(stream)) => {
                                let (_, session) = stream.get_ref();
                                let shown = session.peer_certificates().and_then(<[_]>::first);
                                // The handshake demands one.
                                if let Some(certificate) = shown {
                                    let caller =
                                        Caller::Certified(certificate.clone().into_owned());
                                    serve(stream, caller, shared).await;
                                }
                            }
                            Ok(Err(error)) => tracing::warn!(%error, %from, "no handshake"),
                            Err(_) => tracing::warn!(%from, "no handshake in time"),
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    failed(error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn serve<S>(stream: S, caller: Caller, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let patience = shared.limits.patience;
    let service = service_fn(move |request: Request<Incoming>| {
        let (caller, shared) = (caller.clone(), Arc::clone(&shared));
        async move { Ok::<_, Infallible>(respond(request, caller, shared).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

async fn respond(
    request: Request<Incoming>,
    caller: Caller,
    shared: Arc<Shared>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let bad = |why: String| refuse(refusal(Kind::BadRequest, why));
    let patience = shared.limits.patience;
    let body = timeout(patience, Limited::new(body, BODY_MAX).collect()).await;
    let replied = match body {
        Err(_) => bad(format!("the body did not come within {patience:?}")),
        Ok(Err(error)) => bad(format!(
            "the body did not come whole: {error}; at most {BODY_MAX} octets are taken"
        )),
        Ok(Ok(body)) => {
            let body = body.to_bytes();
            let answered =
                move || answer(&shared.host, &caller, &head.method, head.uri.path(), &body);
            // It may wait for a disk.
            match tokio::task::spawn_blocking(answered).await {
                Ok(replied) => replied,
                Err(error) => refuse(refusal(Kind::Failed, error.to_string())),
            }
        }
    };
    response(replied)
}

fn response((status, body): Replied) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
