//! What agents and their clients say to each other, as JSON.

use crate::agent::{Abilities, DeviceConfig, HostError};
use crate::lock::{Claim, Claimant, Holder, Progress, RemoteError, Token};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest body of a request or an answer, in octets: a configuration at all its limits, twice.
pub(super) const BODY_MAX: usize = 256 << 10;

/// Asks for a lock.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LockBody {
    pub(super) claim: Claim,
    pub(super) who: String,
}

/// Stages a configuration.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StageBody {
    pub(super) token: Token,
    pub(super) config: DeviceConfig,
}

/// Whatever needs no more than a token.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenBody {
    pub(super) token: Token,
}

/// Takes a claim back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseBody {
    pub(super) claim: Claim,
}

/// Takes an apply over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TakeOverBody {
    pub(super) task: Uuid,
    pub(super) claim: Claim,
    pub(super) who: String,
    #[serde(default)]
    pub(super) force: bool,
}

/// Unlocks by force.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FreeBody {
    pub(super) who: String,
}

/// A lock was given.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LockedAnswer {
    pub(super) token: Token,
    pub(super) lease_ms: u64,
}

/// How far an apply is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TaskAnswer {
    pub(super) task: Uuid,
    pub(super) progress: Progress,
}

/// Whom an unlocking hit.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FreedAnswer {
    pub(super) freed: Option<Holder>,
}

/// What anyone may know of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// What it can be configured to do.
    pub abilities: Abilities,
    /// What it runs with.
    pub running: DeviceConfig,
    /// What is staged.
    pub pending: Option<DeviceConfig>,
    /// Who has its lock since when.
    pub holder: Option<Holder>,
    /// How much longer the holder may be silent, in milliseconds.
    pub lease_left_ms: Option<u64>,
    /// How often it was reset.
    pub generation: u64,
    /// The last apply that began.
    pub task: Option<Uuid>,
    /// How far that is.
    pub progress: Option<Progress>,
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// The lock is another's.
    Held,
    /// It will not.
    Refused,
    /// The token or claim is void.
    Fenced,
    /// There is no such thing.
    NotFound,
    /// Not with this certificate.
    Forbidden,
    /// The request makes no sense.
    BadRequest,
    /// It failed, and may have been done.
    Failed,
}

/// A refusal.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) error: Kind,
    pub(super) message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) holder: Option<Holder>,
}

impl Kind {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Held => StatusCode::LOCKED,
            Self::Refused => StatusCode::CONFLICT,
            Self::Fenced => StatusCode::PRECONDITION_FAILED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<HostError> for Refusal {
    fn from(error: HostError) -> Self {
        let (kind, message, holder) = match error {
            HostError::Remote(RemoteError::Held(holder)) => {
                (Kind::Held, format!("locked by {holder}"), Some(holder))
            }
            HostError::Remote(RemoteError::Refused(why)) => (Kind::Refused, why, None),
            HostError::Remote(RemoteError::Fenced(why)) => (Kind::Fenced, why, None),
            HostError::Remote(RemoteError::Lost(why)) => (Kind::Failed, why, None),
            error @ (HostError::Unknown(_) | HostError::Name(_) | HostError::Twice(_)) => {
                (Kind::NotFound, error.to_string(), None)
            }
            error @ HostError::Forbidden(_) => (Kind::Forbidden, error.to_string(), None),
            error @ (HostError::Journal(_) | HostError::Device { .. }) => {
                (Kind::Failed, error.to_string(), None)
            }
        };
        Self {
            error: kind,
            message,
            holder,
        }
    }
}

impl From<Refusal> for RemoteError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.message;
        match (refusal.error, refusal.holder) {
            (Kind::Held, Some(holder)) => Self::Held(holder),
            (Kind::Fenced, _) => Self::Fenced(message),
            (Kind::Failed, _) => Self::Lost(message),
            (
                Kind::Held | Kind::Refused | Kind::NotFound | Kind::Forbidden | Kind::BadRequest,
                _,
            ) => Self::Refused(message),
        }
    }
}

/// The claimant that asks under a claim.
pub(super) fn claimant(claim: Claim, who: String) -> Claimant {
    Claimant { id: claim.id, who }
}
