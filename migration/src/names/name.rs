//! Hierarchical names, well-formed by git's rules.

use crate::names::Extent;
use std::fmt;
use std::str::FromStr;

/// How many octets a name may have. Project rule; git leaves it to the file system.
pub const NAME_OCTETS: usize = 1024;

/// What stands for the slash inside a [`Name`]. It is below every octet that a name may have, so that
/// plain comparison puts all that is below a name right behind it.
const SEPARATOR: u8 = 0;

/// A well-formed name such as `vm/7/disk0/epoch/42`.
///
/// Sorted by components and, within one, by octets without a sign.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Why octets are no name. The rules are those of `git check-ref-format --allow-onelevel`, and a limit
/// to the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There is nothing, a slash at either end, or one right after another.
    #[error("a component is empty; components are separated by single slashes")]
    EmptyComponent,
    /// A component begins with a dot.
    #[error("a component begins with '.'")]
    LeadingDot,
    /// The last octet is a dot.
    #[error("the name ends with '.'")]
    TrailingDot,
    /// A component ends with `.lock`.
    #[error("a component ends with \".lock\"")]
    LockSuffix,
    /// There are two dots in a row.
    #[error("it has \"..\" in it")]
    TwoDots,
    /// There is an at sign before an opening brace.
    #[error("it has \"@{{\" in it")]
    AtBrace,
    /// The name is a single at sign.
    #[error("\"@\" alone is no name")]
    At,
    /// A control character, a space or one of `~ ^ : ? * [ \`.
    #[error("octet {0:#04x} is not allowed (control, space and ~ ^ : ? * [ \\ are not)")]
    Octet(u8),
    /// It has more than [`NAME_OCTETS`].
    #[error("it has {0} octets, {NAME_OCTETS} are allowed")]
    TooLong(usize),
}

impl Name {
    /// Checks octets, which need not be UTF-8.
    pub fn new(octets: &[u8]) -> Result<Self, Malformed> {
        if octets.len() > NAME_OCTETS {
            return Err(Malformed::TooLong(octets.len()));
        }
        if octets == b"@" {
            return Err(Malformed::At);
        }
        octets
            .split(|&octet| octet == b'/')
            .try_for_each(component)?;
        if octets.ends_with(b".") {
            return Err(Malformed::TrailingDot);
        }
        let stored = octets.iter().map(|&octet| match octet {
            b'/' => SEPARATOR,
            octet => octet,
        });
        Ok(Self(stored.collect()))
    }

    /// The octets, slashes included.
    pub fn octets(&self) -> Vec<u8> {
        let octets = self.0.iter().map(|&octet| match octet {
            SEPARATOR => b'/',
            octet => octet,
        });
        octets.collect()
    }
}

/// What stands in a store in the place of a name, and how it comes back from there.
impl Name {
    /// The octets with a NUL for each slash: compared plainly, they sort as names do, and all that is
    /// below a name follows it at once.
    pub fn sort_key(&self) -> &[u8] {
        &self.0
    }

    /// The name with this [`sort_key`](Self::sort_key), which may be from anywhere.
    ///
    /// # Errors
    /// As [`new`](Self::new); a slash is as malformed here as a NUL is there.
    pub fn from_sort_key(key: &[u8]) -> Result<Self, Malformed> {
        if key.contains(&b'/') {
            return Err(Malformed::Octet(b'/'));
        }
        let slash = |octet: &u8| match *octet {
            SEPARATOR => b'/',
            octet => octet,
        };
        Self::new(&key.iter().map(slash).collect::<Vec<u8>>())
    }

    /// Whether this one is the other or below it.
    pub fn is_within(&self, directory: &Self) -> bool {
        directory.reaches(self)
    }

    /// The directory that it is in, if it is in one.
    pub fn directory(&self) -> Option<Self> {
        let end = self.0.iter().rposition(|octet| *octet == SEPARATOR)?;
        Some(Self(self.0.get(..end)?.into()))
    }
}

fn component(part: &[u8]) -> Result<(), Malformed> {
    if part.is_empty() {
        return Err(Malformed::EmptyComponent);
    }
    let refused = |octet: &&u8| matches!(octet, 0..=b' ' | 0x7f) || b"~^:?*[\\".contains(octet);
    if let Some(&octet) = part.iter().find(refused) {
        return Err(Malformed::Octet(octet));
    }
    if part.starts_with(b".") {
        return Err(Malformed::LeadingDot);
    }
    if part.ends_with(b".lock") {
        return Err(Malformed::LockSuffix);
    }
    let has = |pair: &[u8; 2]| part.windows(2).any(|window| window == pair);
    match () {
        () if has(b"..") => Err(Malformed::TwoDots),
        () if has(b"@{") => Err(Malformed::AtBrace),
        () => Ok(()),
    }
}

impl Extent for Name {
    fn reaches(&self, later: &Self) -> bool {
        match later.0.strip_prefix(&*self.0) {
            Some([]) => true,
            Some(rest) => rest[0] == SEPARATOR,
            None => false,
        }
    }

    fn outlasts(&self, earlier: &Self) -> bool {
        // Of two names one covers the other or neither does.
        !earlier.reaches(self)
    }
}

impl FromStr for Name {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        Self::new(text.as_bytes())
    }
}

/// Octets that are not printable ASCII are escaped.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match str::from_utf8(&self.octets()) {
            Ok(text) => f.pad(text),
            Err(_) => f.pad(&self.octets().escape_ascii().to_string()),
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.octets().escape_ascii())
    }
}
