//! The way to one agent: a connection that is kept while it is good.

use crate::agent::wire::{BODY_MAX, Refusal};
use crate::agent::{Endpoint, Place};
use crate::lock::RemoteError;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Why there is no answer, or none that was hoped for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// Nothing was sent.
    #[error("nothing was sent: {0}")]
    Unsent(String),
    /// It was sent, in part at least.
    #[error("{0}")]
    Lost(String),
    /// The agent said no.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

impl From<Trouble> for RemoteError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Unsent(why) | Trouble::Lost(why) => Self::Lost(why),
            Trouble::Refused(refusal) => refusal.into(),
        }
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// The way to one device of an agent.
pub(super) struct Link {
    place: Place,
    tls: Option<Arc<ClientConfig>>,
    limit: Duration,
    /// A connection that nobody uses at the moment.
    idle: Mutex<Option<Sender>>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", self.place)
    }
}

impl Link {
    pub(super) fn new(place: Place, tls: Option<Arc<ClientConfig>>, limit: Duration) -> Self {
        Self {
            place,
            tls,
            limit,
            idle: Mutex::default(),
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The path of something about the device.
    pub(super) fn path(&self, what: &str) -> String {
        format!("/v1/devices/{}{what}", self.place.device)
    }

    /// Asks, within the limit of time.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: &Value,
    ) -> Result<T, Trouble> {
        let body = match body {
            Value::Null => Bytes::new(),
            body => Bytes::from(body.to_string()),
        };
        let asked = timeout(self.limit, self.exchange(method, path, body)).await;
        let (status, text) = asked.unwrap_or_else(|_| {
            Err(Trouble::Lost(format!(
                "nothing came within {:?}",
                self.limit
            )))
        })?;
        if status.is_success() {
            return serde_json::from_slice(&text)
                .map_err(|error| Trouble::Lost(format!("its answer makes no sense: {error}")));
        }
        match serde_json::from_slice(&text) {
            Ok(refusal) => Err(Trouble::Refused(refusal)),
            Err(_) => Err(Trouble::Lost(format!(
                "it answered {status}, and no reason"
            ))),
        }
    }

    async fn exchange(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Trouble> {
        let kept = self.take_idle();
        if let Some(mut sender) = kept
            && sender.ready().await.is_ok()
        {
            match self.through(sender, method, path, body.clone()).await {
                // The agent hung up, or was another meanwhile. All requests may be repeated.
                Err(error) => tracing::debug!(%error, place = %self.place, "asking anew"),
                Ok(answer) => return Ok(answer),
            }
        }
        let sender = self.connect().await?;
        let answered = self.through(sender, method, path, body).await;
        answered.map_err(|error| Trouble::Lost(format!("{}: {error}", self.place.agent)))
    }

    async fn through(
        &self,
        mut sender: Sender,
        method: &Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(HOST, "agent")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let response: Response<Incoming> = sender.send_request(request).await?;
        let status = response.status();
        let text = Limited::new(response.into_body(), BODY_MAX)
            .collect()
            .await?;
        self.put_back(sender);
        Ok((status, text.to_bytes()))
    }

    fn take_idle(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.take().filter(|sender| !sender.is_closed())
    }

    fn put_back(&self, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        *idle = Some(sender);
    }

    async fn connect(&self) -> Result<Sender, Trouble> {
        let unsent =
            |why: String| Trouble::Unsent(format!("{} cannot be reached: {why}", self.place.agent));
        match &self.place.agent {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                shake(stream.map_err(|error| unsent(error.to_string()))?)
                    .await
                    .map_err(unsent)
            }
            Endpoint::Tls { host, port } => {
                let Some(config) = &self.tls else {
                    return Err(unsent("no certificate was given for TCP".to_owned()));
                };
                let name = ServerName::try_from(host.clone());
                let name = name.map_err(|error| unsent(error.to_string()))?;
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                let stream = stream.map_err(|error| unsent(error.to_string()))?;
                stream
                    .set_nodelay(true)
                    .map_err(|error| unsent(error.to_string()))?;
                let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream);
                let stream = stream.await.map_err(|error| unsent(error.to_string()))?;
                shake(stream).await.map_err(unsent)
            }
        }
    }
}

async fn shake<S>(stream: S) -> Result<Sender, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
    });
    Ok(sender)
}
