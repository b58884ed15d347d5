//! Agents as remotes of a locked set.

mod link;

use crate::agent::wire::{
    FreeBody, FreedAnswer, LockBody, LockedAnswer, ReleaseBody, StageBody, TakeOverBody,
    TaskAnswer, TokenBody,
};
use crate::agent::{DeviceConfig, Identity, Place, Status, TlsError};
use crate::lock::{
    Answer, Claim, Claimant, Holder, Progress, Remote, RemoteError, Reply, Request, Token,
};
use hyper::Method;
use link::{Link, Trouble};
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// How long a request may take without another word, to its answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How often a lease is renewed while it lasts.
const RENEWALS: u32 = 3;
/// Between two looks at an apply that was taken over, unless the lease is short.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Why an agent could not be asked, or what it said.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no thread to ask from.
    #[error("cannot ask agents: {0}")]
    System(#[from] io::Error),
    /// The certificates are no good.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The agent refused, or did not answer.
    #[error("{place}: {error}")]
    Remote {
        /// Where the device is.
        place: Place,
        /// What became of it.
        error: RemoteError,
    },
}

/// Asks agents: one thread for all of them.
#[derive(Clone, Debug)]
pub struct Agents {
    thread: Arc<Loop>,
    tls: Option<Arc<ClientConfig>>,
    /// What a person adds to a command to reach agents over TCP.
    options: String,
    limit: Duration,
}

/// The thread. It ends when nobody can ask it any more.
#[derive(Debug)]
struct Loop {
    handle: Handle,
    end: Option<oneshot::Sender<()>>,
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            // It has ended already if this fails.
            let _ = end.send(());
        }
    }
}

impl Agents {
    /// With an identity, those on TCP can be reached as well.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn new(identity: Option<&Identity>) -> Result<Self, ClientError> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        thread::Builder::new()
            .name("agents".to_owned())
            .spawn(move || {
                // Ended or dropped is the same.
                let _ = runtime.block_on(ended);
                runtime.shutdown_background();
            })?;
        let thread = Arc::new(Loop {
            handle,
            end: Some(end),
        });
        let options = identity.map_or_else(String::new, |identity| {
            let Identity {
                authorities,
                certificate,
                key,
            } = identity;
            format!(
                " --ca {} --cert {} --key {}",
                authorities.display(),
                certificate.display(),
                key.display()
            )
        });
        Ok(Self {
            thread,
            tls: identity.map(Identity::client).transpose()?,
            options,
            limit: REQUEST_LIMIT,
        })
    }

    /// A device as a remote. Its lock is renewed as long as this lives and the lock is not released.
    pub fn remote(&self, place: Place) -> AgentRemote {
        AgentRemote {
            name: place.to_string(),
            agents: self.clone(),
            link: Arc::new(Link::new(place, self.tls.clone(), self.limit)),
            renewal: Arc::default(),
        }
    }

    /// What is known of a device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&self, place: &Place) -> Result<Status, ClientError> {
        self.ask(place, Method::GET, "", &Value::Null)
    }

    /// Unlocks a device by force, which its agent logs with this name. Says whom that hit.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn free(&self, place: &Place, who: &str) -> Result<Option<Holder>, ClientError> {
        let body = FreeBody {
            who: who.to_owned(),
        };
        let freed: FreedAnswer = self.ask(place, Method::POST, "/free", &body)?;
        Ok(freed.freed)
    }

    /// Takes over the apply that runs on a device, from a manager that has left it; by `force`, from one
    /// that has not. Waits for its end and releases the device. How it ended.
    ///
    /// # Errors
    /// [`ClientError`]: there is none, or its manager still holds the lock.
    pub fn take_over(
        &self,
        place: &Place,
        who: &Claimant,
        force: bool,
    ) -> Result<Progress, ClientError> {
        let status = self.status(place)?;
        let Some(task) = status.task else {
            let error = RemoteError::Refused("nothing was ever applied there".to_owned());
            let place = place.clone();
            return Err(ClientError::Remote { place, error });
        };
        let claim = Claim {
            id: who.id,
            attempt: 1,
        };
        let body = TakeOverBody {
            task,
            claim,
            who: who.who.clone(),
            force,
        };
        let LockedAnswer { token, lease_ms } = self.ask(place, Method::POST, "/takeover", &body)?;
        let pause = LOOK_AGAIN.min(Duration::from_millis(lease_ms) / RENEWALS);
        let progress = loop {
            let answer: TaskAnswer =
                self.ask(place, Method::POST, "/poll", &TokenBody { token })?;
            match answer.progress {
                Progress::Running => thread::sleep(pause),
                ended => break ended,
            }
        };
        let Value::Object(_) = self.ask(place, Method::POST, "/release", &ReleaseBody { claim })?
        else {
            let error = RemoteError::Lost("its release was not answered".to_owned());
            let place = place.clone();
            return Err(ClientError::Remote { place, error });
        };
        Ok(progress)
    }

    /// Asks and waits.
    fn ask<T: DeserializeOwned + Send + 'static>(
        &self,
        place: &Place,
        method: Method,
        what: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let link = Link::new(place.clone(), self.tls.clone(), self.limit);
        let (path, body) = (link.path(what), body_of(body));
        let (answer, answered) = std::sync::mpsc::channel();
        self.thread.handle.spawn(async move {
            let asked = link.ask(&method, &path, &body).await;
            // Whoever asked waits for it.
            let _ = answer.send(asked);
        });
        let lost = || Trouble::Lost("nobody asked it".to_owned());
        let asked = answered.recv().unwrap_or_else(|_| Err(lost()));
        asked.map_err(|trouble| ClientError::Remote {
            place: place.clone(),
            error: trouble.into(),
        })
    }
}

fn body_of(body: &impl Serialize) -> Value {
    // Of types that are all maps by text: nothing of them cannot be shown.
    serde_json::to_value(body).unwrap_or(Value::Null)
}

/// A device of an agent.
#[derive(Debug)]
pub struct AgentRemote {
    name: String,
    agents: Agents,
    link: Arc<Link>,
    renewal: Arc<Mutex<Option<AbortHandle>>>,
}

impl Remote<DeviceConfig> for AgentRemote {
    fn name(&self) -> &str {
        &self.name
    }

    fn send(&self, request: Request<DeviceConfig>, reply: Reply) {
        if matches!(request, Request::Release { .. }) {
            renew_by(&self.renewal, None);
        }
        let (link, renewal) = (Arc::clone(&self.link), Arc::clone(&self.renewal));
        self.agents.thread.handle.spawn(async move {
            let answer = exchange(&link, &renewal, request).await;
            reply.send(answer);
        });
    }

    fn free_command(&self) -> String {
        format!("tidemark lock free {}{}", self.name, self.agents.options)
    }
}

impl Drop for AgentRemote {
    fn drop(&mut self) {
        renew_by(&self.renewal, None);
    }
}

/// Lets this task renew the lease, in place of another.
fn renew_by(renewal: &Mutex<Option<AbortHandle>>, task: Option<AbortHandle>) {
    let mut renewal = renewal.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(before) = std::mem::replace(&mut *renewal, task) {
        before.abort();
    }
}

async fn exchange(
    link: &Arc<Link>,
    renewal: &Mutex<Option<AbortHandle>>,
    request: Request<DeviceConfig>,
) -> Result<Answer, RemoteError> {
    let post = |what: &str| (Method::POST, link.path(what));
    let asks_lock = matches!(request, Request::Lock { .. });
    let ((method, path), body) = match request {
        Request::Lock { claim, who } => {
            let who = who.who;
            (post("/lock"), body_of(&LockBody { claim, who }))
        }
        Request::Stage { token, change } => {
            let config = change;
            let body = body_of(&StageBody { token, config });
            ((Method::PUT, link.path("/pending")), body)
        }
        Request::Rollback { token } => (post("/rollback"), body_of(&TokenBody { token })),
        Request::Release { claim } => (post("/release"), body_of(&ReleaseBody { claim })),
        Request::Apply { token } => {
            let task: TaskAnswer = link
                .ask(
                    &Method::POST,
                    &link.path("/apply"),
                    &body_of(&TokenBody { token }),
                )
                .await?;
            return Ok(Answer::Applying(task.progress));
        }
        Request::Poll { token } => {
            let task: TaskAnswer = link
                .ask(
                    &Method::POST,
                    &link.path("/poll"),
                    &body_of(&TokenBody { token }),
                )
                .await?;
            return Ok(Answer::Applying(task.progress));
        }
    };
    if !asks_lock {
        let Value::Object(_) = link.ask(&method, &path, &body).await? else {
            return Err(RemoteError::Lost("its answer is no object".to_owned()));
        };
        return Ok(Answer::Done);
    }
    let locked: Result<LockedAnswer, Trouble> = link.ask(&method, &path, &body).await;
    let LockedAnswer { token, lease_ms } = match locked {
        // Surely nothing was done.
        Err(Trouble::Unsent(why)) => return Err(RemoteError::Refused(why)),
        locked => locked?,
    };
    let lease = Duration::from_millis(lease_ms);
    let renewing = tokio::spawn(renew(Arc::clone(link), token, lease / RENEWALS));
    renew_by(renewal, Some(renewing.abort_handle()));
    Ok(Answer::Locked(token))
}

/// Renews a lease until it cannot be any more.
async fn renew(link: Arc<Link>, token: Token, pause: Duration) {
    let (path, body) = (link.path("/renew"), body_of(&TokenBody { token }));
    loop {
        sleep(pause.max(Duration::from_millis(1))).await;
        match link.ask::<Value>(&Method::POST, &path, &body).await {
            Ok(_) => {}
            Err(Trouble::Refused(refusal)) => {
                let place = link.place();
                tracing::warn!(%place, why = refusal.message, "its lease is not renewed any more");
                return;
            }
            Err(trouble) => {
                let place = link.place();
                tracing::warn!(%place, %trouble, "its lease could not be renewed");
            }
        }
    }
}
