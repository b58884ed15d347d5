//! Where a store is: a place for bodies and a place for names.

use super::error::StoreError;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// A place for names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamesAt {
    /// A folder of this host.
    Folder(PathBuf),
    /// `etcd://HOST:PORT[,HOST:PORT…]/PREFIX`, with `?lease=SECONDS`: for many hosts.
    Etcd {
        /// The members of the cluster, as `HOST:PORT`.
        members: Vec<String>,
        /// What all keys begin with.
        prefix: String,
        /// Seconds for which the lock of a manager that fell silent stays taken.
        lease: u32,
    },
}

/// The lease that is taken if the URL names none.
const LEASE: u32 = 15;
/// From what etcd grants to what nobody would wait for.
const LEASES: RangeInclusive<u32> = 2..=3600;

/// A place for bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodiesAt {
    /// A folder of this host.
    Folder(PathBuf),
    /// `s3://BUCKET/PREFIX`, with `?endpoint=URL` where it is not Amazon's.
    Bucket {
        /// The bucket.
        bucket: String,
        /// What all objects' paths begin with.
        prefix: String,
        /// Where the service is, if the URL says so.
        endpoint: Option<String>,
    },
}

/// A store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Where its bodies are.
    pub bodies: BodiesAt,
    /// Where its names are.
    pub names: NamesAt,
}

fn bad(text: &str, what: &'static str, why: &str) -> StoreError {
    StoreError::Address {
        text: text.to_owned(),
        what,
        why: why.to_owned(),
    }
}

impl Address {
    /// From `FOLDER` or `s3://BUCKET/PREFIX` for bodies, and `FOLDER` or `etcd://HOST:PORT/PREFIX` for
    /// names; without the latter, names are in the bodies' folder.
    ///
    /// # Errors
    /// [`StoreError::Address`] says what was expected.
    pub fn parse(bodies: &str, names: Option<&str>) -> Result<Self, StoreError> {
        let parsed = match bodies.split_once("://") {
            Some(("s3", rest)) => {
                let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
                let endpoint = query.strip_prefix("endpoint=").map(str::to_owned);
                if endpoint.is_none() && !query.is_empty() {
                    return Err(bad(bodies, "bodies", "expected ?endpoint=URL"));
                }
                let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
                if bucket.is_empty() {
                    return Err(bad(bodies, "bodies", "expected s3://BUCKET/PREFIX"));
                }
                BodiesAt::Bucket {
                    bucket: bucket.to_owned(),
                    prefix: prefix.trim_matches('/').to_owned(),
                    endpoint,
                }
            }
            Some(_) => {
                let why = "expected a folder or s3://BUCKET/PREFIX";
                return Err(bad(bodies, "bodies", why));
            }
            None if bodies.is_empty() => {
                return Err(bad(bodies, "bodies", "expected a folder"));
            }
            None => BodiesAt::Folder(bodies.into()),
        };
        let names = match (names, &parsed) {
            (Some(names), _) => Self::names(names)?,
            (None, BodiesAt::Folder(folder)) => NamesAt::Folder(folder.clone()),
            (None, BodiesAt::Bucket { .. }) => {
                let why = "a bucket holds no names: expected a folder or etcd://HOST:PORT/PREFIX \
                           for them as well";
                return Err(bad(bodies, "names", why));
            }
        };
        Ok(Self {
            bodies: parsed,
            names,
        })
    }

    fn names(text: &str) -> Result<NamesAt, StoreError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text {
                "" => Err(bad(text, "names", "expected a folder")),
                folder => Ok(NamesAt::Folder(folder.into())),
            };
        };
        let why =
            "expected a folder or etcd://HOST:PORT/PREFIX, with ?lease=SECONDS from 2 to 3600";
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let lease = match query.strip_prefix("lease=").map(str::parse) {
            None if query.is_empty() => LEASE,
            Some(Ok(lease)) if LEASES.contains(&lease) => lease,
            _ => return Err(bad(text, "names", why)),
        };
        let (members, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let members: Vec<String> = members.split(',').map(str::to_owned).collect();
        let prefix = prefix.trim_matches('/');
        let complete = members.iter().all(|m| !m.is_empty()) && !prefix.is_empty();
        if scheme != "etcd" || !complete {
            return Err(bad(text, "names", why));
        }
        Ok(NamesAt::Etcd {
            members,
            prefix: prefix.to_owned(),
            lease,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let folder = Address::parse("a/b", None).unwrap();
        assert_eq!(folder.names, NamesAt::Folder("a/b".into()));
        let both = Address::parse(
            "s3://b/c/d?endpoint=http://h:1",
            Some("etcd://h:2379,i:2379/p/q"),
        );
        let expected = Address {
            bodies: BodiesAt::Bucket {
                bucket: "b".to_owned(),
                prefix: "c/d".to_owned(),
                endpoint: Some("http://h:1".to_owned()),
            },
            names: NamesAt::Etcd {
                members: vec!["h:2379".to_owned(), "i:2379".to_owned()],
                prefix: "p/q".to_owned(),
                lease: LEASE,
            },
        };
        assert_eq!(both.unwrap(), expected);
        let short = Address::parse("f", Some("etcd://h:1/p?lease=3")).unwrap();
        assert!(matches!(short.names, NamesAt::Etcd { lease: 3, .. }));
        for (bodies, names) in [
            ("", None),
            ("s3://b", None),
            ("s3:///p", Some("f")),
            ("s3://b?region=x", Some("f")),
            ("http://b/p", Some("f")),
            ("f", Some("")),
            ("f", Some("etcd://h:1")),
            ("f", Some("etcd:///p")),
            ("f", Some("redis://h:1/p")),
            ("f", Some("etcd://h:1/p?lease=1")),
            ("f", Some("etcd://h:1/p?lease=3601")),
            ("f", Some("etcd://h:1/p?patience=3")),
        ] {
            assert!(Address::parse(bodies, names).is_err(), "{bodies} {names:?}");
        }
    }
}
