//! The routes of an agent: one table, which is served and described.

use crate::agent::host::{Caller, Host, HostError};
use crate::agent::openapi::document;
use crate::agent::wire::{
    FreeBody, FreedAnswer, Kind, LockBody, LockedAnswer, Refusal, ReleaseBody, StageBody,
    TakeOverBody, TaskAnswer, TokenBody, claimant,
};
use crate::agent::{DeviceConfig, NAME_MAX};
use crate::lock::{Answer, RemoteError, Request, Token};
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Document,
    List,
    Show,
    Task,
    Lock,
    Renew,
    Stage,
    Rollback,
    Apply,
    Poll,
    Release,
    TakeOver,
    Free,
}

/// A route: a method and a path, parts of which in braces stand for names.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) op: Op,
    /// What it does, for the document.
    pub(super) about: &'static str,
    /// The schemas of its body and its answer.
    pub(super) body: Option<&'static str>,
    pub(super) answer: &'static str,
}

macro_rules! routes {
    ($($method:ident $path:literal $op:ident $body:expr, $answer:literal: $about:literal;)*) => {
        &[$(Route {
            method: Method::$method,
            path: $path,
            op: Op::$op,
            about: $about,
            body: $body,
            answer: $answer,
        }),*]
    };
}

/// All routes.
pub(super) const ROUTES: &[Route] = routes! {
    GET "/openapi.json" Document None, "Document": "This document.";
    GET "/v1/devices" List None, "Statuses": "What is known of every device.";
    GET "/v1/devices/{device}" Show None, "Status": "What is known of a device.";
    GET "/v1/devices/{device}/tasks/{task}" Task None, "Task": "How far an apply is; needs no lock.";
    POST "/v1/devices/{device}/lock" Lock Some("Lock"), "Locked": "Gives its lock, or says at once who has it.";
    POST "/v1/devices/{device}/renew" Renew Some("Token"), "Done": "Begins the holder's lease anew.";
    PUT "/v1/devices/{device}/pending" Stage Some("Stage"), "Done": "Takes a configuration as pending.";
    POST "/v1/devices/{device}/rollback" Rollback Some("Token"), "Done": "Forgets what is pending.";
    POST "/v1/devices/{device}/apply" Apply Some("Token"), "Task": "Begins to make what is pending the running configuration.";
    POST "/v1/devices/{device}/poll" Poll Some("Token"), "Task": "Says how far that is, and begins the lease anew.";
    POST "/v1/devices/{device}/release" Release Some("Release"), "Done": "Ends a claim, now and for ever.";
    POST "/v1/devices/{device}/takeover" TakeOver Some("TakeOver"), "Locked": "Gives the lock of a running apply whose manager has left it.";
    POST "/v1/devices/{device}/free" Free Some("Free"), "Freed": "Unlocks by force, which is logged.";
};

/// An answer: a status and a body.
pub(super) type Replied = (StatusCode, Value);

/// What a path names.
#[derive(Debug, Default, PartialEq, Eq)]
struct Named<'a> {
    device: &'a str,
    task: &'a str,
}

/// Whether a path is of this form, and what it names.
fn matches<'a>(form: &str, path: &'a str) -> Option<Named<'a>> {
    let mut named = Named::default();
    let mut parts = path.split('/');
    for expected in form.split('/') {
        let part = parts.next()?;
        match expected {
            "{device}" if !part.is_empty() => named.device = part,
            "{task}" if !part.is_empty() => named.task = part,
            _ if part == expected => {}
            _ => return None,
        }
    }
    parts.next().is_none().then_some(named)
}

/// Answers a request. May write to disk, and never waits for a device to be configured.
pub(super) fn answer(
    host: &Host,
    caller: &Caller,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Replied {
    let mut others = Vec::new();
    for route in ROUTES {
        let Some(named) = matches(route.path, path) else {
            continue;
        };
        if route.method == *method {
            return carry_out(host, caller, route.op, &named, body).unwrap_or_else(refuse);
        }
        others.push(route.method.as_str());
    }
    let path: String = path.chars().take(NAME_MAX).collect();
    if others.is_empty() {
        let message = format!("there is nothing at {path}; GET /openapi.json says what there is");
        return refuse(refusal(Kind::NotFound, message));
    }
    let message = format!("{path} takes {}, not {method}", others.join(", "));
    let (_, body) = refuse(refusal(Kind::BadRequest, message));
    (StatusCode::METHOD_NOT_ALLOWED, body)
}

/// As it goes out.
pub(super) fn refuse(refusal: Refusal) -> Replied {
    let status = refusal.error.status();
    (status, shown(&refusal))
}

pub(super) fn refusal(error: Kind, message: String) -> Refusal {
    Refusal {
        error,
        message,
        holder: None,
    }
}

fn shown(value: &impl Serialize) -> Value {
    // Of types that are all maps by text: nothing of them cannot be shown.
    serde_json::to_value(value).unwrap_or(Value::Null)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        refusal(
            Kind::BadRequest,
            format!("the body is not what was expected: {error}"),
        )
    })
}

fn carry_out(
    host: &Host,
    caller: &Caller,
    op: Op,
    named: &Named<'_>,
    body: &[u8],
) -> Result<Replied, Refusal> {
    let ok = |value: Value| Ok((StatusCode::OK, value));
    let desk = || host.desk(named.device).map_err(Refusal::from);
    let ask = |request: Request<DeviceConfig>| {
        desk().and_then(|desk| desk.ask(request).map_err(Refusal::from))
    };
    let senseless =
        |answer: &Answer| refusal(Kind::Failed, format!("{answer:?} is no answer to that"));
    let done = |answer: Answer| match answer {
        Answer::Done => ok(serde_json::json!({})),
        other => Err(senseless(&other)),
    };
    let task = |token: Token, status: StatusCode, answer: Answer| match answer {
        Answer::Applying(progress) => Ok((
            status,
            shown(&TaskAnswer {
                task: token.id,
                progress,
            }),
        )),
        other => Err(senseless(&other)),
    };
    match op {
        Op::Document => ok(document()),
        Op::List => ok(shown(&host.statuses())),
        Op::Show => ok(shown(&desk()?.status())),
        Op::Task => {
            let status = desk()?.status();
            let wanted = named.task.parse::<Uuid>().ok();
            match (status.task, status.progress) {
                (Some(task), Some(progress)) if Some(task) == wanted => {
                    ok(shown(&TaskAnswer { task, progress }))
                }
                _ => Err(refusal(
                    Kind::NotFound,
                    "no such task is the device's last one".to_owned(),
                )),
            }
        }
        Op::Lock => {
            let LockBody { claim, who } = read(body)?;
            named_well(caller, &who)?;
            let who = claimant(claim, who);
            match ask(Request::Lock { claim, who })? {
                Answer::Locked(token) => ok(locked(desk()?.lease(), token)),
                other => Err(senseless(&other)),
            }
        }
        Op::Renew => {
            let TokenBody { token } = read(body)?;
            desk()?.renew(token)?;
            ok(serde_json::json!({}))
        }
        Op::Stage => {
            let StageBody { token, config } = read(body)?;
            let change = config;
            done(ask(Request::Stage { token, change })?)
        }
        Op::Rollback => {
            let TokenBody { token } = read(body)?;
            done(ask(Request::Rollback { token })?)
        }
        Op::Apply => {
            let TokenBody { token } = read(body)?;
            task(token, StatusCode::ACCEPTED, ask(Request::Apply { token })?)
        }
        Op::Poll => {
            let TokenBody { token } = read(body)?;
            task(token, StatusCode::OK, ask(Request::Poll { token })?)
        }
        Op::Release => {
            let ReleaseBody { claim } = read(body)?;
            done(ask(Request::Release { claim })?)
        }
        Op::TakeOver => {
            let TakeOverBody {
                task,
                claim,
                who,
                force,
            } = read(body)?;
            named_well(caller, &who)?;
            let who = claimant(claim, who);
            let desk = desk()?;
            let token = desk.take_over(task, claim, who, force)?;
            ok(locked(desk.lease(), token))
        }
        Op::Free => {
            let FreeBody { who } = read(body)?;
            named_well(caller, &who)?;
            let freed = desk()?.free(&who)?;
            ok(shown(&FreedAnswer { freed }))
        }
    }
}

fn locked(lease: std::time::Duration, token: Token) -> Value {
    let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    shown(&LockedAnswer { token, lease_ms })
}

/// Whether this is a name, and one of the caller's.
fn named_well(caller: &Caller, who: &str) -> Result<(), HostError> {
    if who.is_empty() || who.len() > NAME_MAX {
        let why = format!("'who' has {} octets; expected 1 to {NAME_MAX}", who.len());
        return Err(RemoteError::Refused(why).into());
    }
    caller.is(who)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_matched_whole() {
        let form = "/v1/devices/{device}/tasks/{task}";
        let named = Named {
            device: "d",
            task: "7",
        };
        assert_eq!(matches(form, "/v1/devices/d/tasks/7"), Some(named));
        for path in [
            "/v1/devices/d/tasks",
            "/v1/devices//tasks/7",
            "/v1/devices/d/tasks/7/",
            "/v1/devices/d/tasks/7/8",
            "v1/devices/d/tasks/7",
            "",
        ] {
            assert_eq!(matches(form, path), None, "{path}");
        }
    }
}
