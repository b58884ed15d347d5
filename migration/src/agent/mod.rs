//! The daemon beside the devices of one host: what answers for them when they are locked and changed.
//!
//! A [`Host`] keeps the layers of each device ([`crate::lock::Layers`]) in a [`Journal`] and configures the
//! device itself, which is a [`Managed`]. [`Server`] puts that behind HTTP and JSON on a Unix socket, or
//! on TCP where both sides show certificates; [`document`] describes it as OpenAPI. [`AgentRemote`] is
//! the other end: a [`crate::lock::Remote`] for a [`crate::lock::LockedSet`].
//!
//! A manager holds its lock as long as the agent hears of it at least once in a lease. After that what
//! it staged is forgotten and its token is void. What it began to apply goes on to its end, and another
//! manager can take that over.

mod client;
mod config;
mod desk;
mod endpoint;
mod ensemble;
mod host;
mod journal;
mod openapi;
mod routes;
mod server;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

pub use crate::tls::TlsError;
pub use client::{AgentRemote, Agents, ClientError};
pub use config::{
    Abilities, DeviceConfig, END_MAX, MANAGERS_MAX, Mode, NAME_MAX, RANGES_MAX, Tracking, Unfit,
};
pub use desk::Managed;
pub use endpoint::{Endpoint, Place};
pub use ensemble::{End, Ensemble, EnsembleError, Step, Taken};
pub use host::{Caller, Host, HostError};
pub use journal::{Journal, JournalError};
pub use openapi::document;
pub use server::{Limits, Server, ServerError, Stop};
pub use tls::Identity;
pub use wire::Status;
