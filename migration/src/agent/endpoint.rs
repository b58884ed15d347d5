//! Where an agent is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of an agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    /// A Unix socket: `unix:PATH`.
    Unix(PathBuf),
    /// TCP, with certificates on both sides: `tls:HOST:PORT`.
    Tls {
        /// A name or an address; it stands in the agent's certificate.
        host: String,
        /// The port.
        port: u16,
    },
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected unix:PATH or tls:HOST:PORT, got '{text}'");
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tls", address)) => {
                let (host, port) = address.rsplit_once(':').ok_or_else(expected)?;
                let host = host.trim_start_matches('[').trim_end_matches(']');
                if host.is_empty() {
                    return Err(expected());
                }
                Ok(Self::Tls {
                    host: host.to_owned(),
                    port: port.parse().map_err(|_| expected())?,
                })
            }
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls { host, port } if host.contains(':') => write!(f, "tls:[{host}]:{port}"),
            Self::Tls { host, port } => write!(f, "tls:{host}:{port}"),
        }
    }
}

/// A device of an agent, as people write it: `disk0@unix:/run/tidemark/agent.sock`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The device's name at its agent.
    pub device: String,
    /// The agent.
    pub agent: Endpoint,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('@') {
            Some((device, agent)) if !device.is_empty() => Ok(Self {
                device: device.to_owned(),
                agent: agent.parse()?,
            }),
            _ => Err(format!(
                "expected DEVICE@unix:PATH or DEVICE@tls:HOST:PORT, got '{text}'"
            )),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.device, self.agent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_shown_alike() {
        for text in [
            "disk0@unix:/run/a@b.sock",
            "disk0@tls:host:7001",
            "d@tls:[::1]:9",
        ] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "disk0",
            "@unix:/x",
            "disk0@unix:",
            "disk0@tls:host",
            "d@tcp:h:1",
            "d@tls::1",
        ] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
