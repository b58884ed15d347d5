//! What can be locked and changed, and how it is asked.

use crate::lock::clock::{Event, Ticket};
use crate::lock::{Claim, Claimant, Holder, Token};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// A device or a host that is reached by messages.
pub trait Remote<C>: Send + Sync {
    /// Names it in reports; no two of a set have the same.
    fn name(&self) -> &str;

    /// Hands a request over and returns at once: the answer goes to `reply`, from any thread. Requests
    /// may overtake one another. One that is dropped counts as lost.
    fn send(&self, request: Request<C>, reply: Reply);

    /// What to type to free it by force.
    fn free_command(&self) -> String;
}

/// What a remote is asked. Every request may be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<C> {
    /// To give its lock, or to say at once who has it.
    Lock {
        /// Under which it is given.
        claim: Claim,
        /// Who asks.
        who: Claimant,
    },
    /// To take this as its pending configuration.
    Stage {
        /// From the lock.
        token: Token,
        /// The configuration.
        change: C,
    },
    /// To forget its pending configuration.
    Rollback {
        /// From the lock.
        token: Token,
    },
    /// To be free of this claim, now and for ever: what is pending under it is forgotten, and neither
    /// this attempt nor one before it can lock any more. While a configuration is being applied, the
    /// lock ends with that.
    Release {
        /// Which may never have locked.
        claim: Claim,
    },
    /// To begin to make its pending configuration the running one.
    Apply {
        /// From the lock.
        token: Token,
    },
    /// To say how far that is.
    Poll {
        /// From the lock.
        token: Token,
    },
}

/// What a remote says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Request::Lock`].
    Locked(Token),
    /// To [`Request::Stage`], [`Request::Rollback`] and [`Request::Release`].
    Done,
    /// To [`Request::Apply`] and [`Request::Poll`].
    Applying(Progress),
}

/// How far a remote's apply is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum Progress {
    /// It was not asked to.
    NotStarted,
    /// Under way.
    Running,
    /// The running configuration is the one that was staged.
    Finished,
    /// It was tried and failed, for this reason.
    Failed(String),
}

/// Why a remote did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// Somebody else has its lock. Nothing was done.
    #[error("locked by {0}")]
    Held(Holder),
    /// It will not. Nothing was done.
    #[error("refused: {0}")]
    Refused(String),
    /// The token or claim is not valid any more. Nothing was done.
    #[error("not ours any more: {0}")]
    Fenced(String),
    /// No answer came, or none that makes sense: it may have been done, or may be yet.
    #[error("no answer: {0}")]
    Lost(String),
}

/// Where the answer to one request goes.
#[derive(Debug)]
pub struct Reply {
    to: Option<Sender<Event>>,
    ticket: Ticket,
}

impl Reply {
    pub(super) fn new(to: Sender<Event>, ticket: Ticket) -> Self {
        Self {
            to: Some(to),
            ticket,
        }
    }

    /// Answers. Whoever asked may have stopped waiting, which is no error.
    pub fn send(mut self, answer: Result<Answer, RemoteError>) {
        self.post(answer);
    }

    fn post(&mut self, answer: Result<Answer, RemoteError>) {
        if let Some(to) = self.to.take() {
            let _ = to.send(Event::answer(self.ticket, answer));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.post(Err(RemoteError::Lost("the request was dropped".into())));
    }
}

/// Remotes to lock together: some, no two of one name, sorted by their names.
pub struct Remotes<C>(pub(super) Vec<Arc<dyn Remote<C>>>);

/// Why remotes cannot be locked together. Nobody was asked anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Selection {
    /// There are none.
    #[error("no remote is named; name at least one")]
    Empty,
    /// One name comes more than once.
    #[error("remote '{0}' is named more than once; name it once")]
    Twice(String),
    /// Nobody has this name.
    #[error("there is no remote '{0}'; nothing was locked")]
    Unknown(String),
}

impl<C> Remotes<C> {
    /// Takes them together.
    pub fn new(remotes: Vec<Arc<dyn Remote<C>>>) -> Result<Self, Selection> {
        let mut sorted = BTreeMap::new();
        for remote in remotes {
            let name = remote.name().to_owned();
            if sorted.insert(name.clone(), remote).is_some() {
                return Err(Selection::Twice(name));
            }
        }
        if sorted.is_empty() {
            return Err(Selection::Empty);
        }
        Ok(Self(sorted.into_values().collect()))
    }

    /// Finds them by their names.
    pub fn resolve(
        names: &[&str],
        mut find: impl FnMut(&str) -> Option<Arc<dyn Remote<C>>>,
    ) -> Result<Self, Selection> {
        let mut find = |name: &&str| find(name).ok_or_else(|| Selection::Unknown((*name).into()));
        let remotes: Result<Vec<_>, _> = names.iter().map(&mut find).collect();
        Self::new(remotes?)
    }
}

impl<C> std::fmt::Debug for Remotes<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.0.iter().map(|remote| remote.name());
        f.debug_list().entries(names).finish()
    }
}
