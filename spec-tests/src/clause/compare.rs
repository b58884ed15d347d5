//! Holds the registry against a list of the statements of another version of the standard.

use super::{Level, Provenance, Registry, Role, sentence_hash};
use std::collections::BTreeMap;
use std::fmt;

/// Sections that bear on no device of this suite: other device types, and legacy interfaces.
const OUT_OF_SCOPE: [&str; 3] = [
    "network-device",
    "console-device",
    "device-groups-group-administration-commands-legacy",
];

/// How a list of statements differs from the registry. Ids, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// In the list and not in the registry.
    pub added: Vec<String>,
    /// In both, with another sentence, role or level.
    pub changed: Vec<String>,
    /// In the registry and not in the list.
    pub removed: Vec<String>,
    /// In both, and the same.
    pub same: usize,
    /// In the list, about other devices or legacy interfaces.
    pub out_of_scope: usize,
}

/// Why a list cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// Its first line does not name the columns.
    #[error(
        "the first line must be 'id role level section source text' with tabs between, got '{0}'"
    )]
    Header(String),
    /// A line has another number of columns.
    #[error("line {line}: expected 6 columns with tabs between, got {got}")]
    Columns {
        /// Counted from 1.
        line: usize,
        /// How many there are.
        got: usize,
    },
}

impl Differences {
    /// Compares with a list with the columns id, role, level, section, source and text.
    ///
    /// # Errors
    /// [`ListError`] if it is none.
    pub fn new(registry: &Registry, list: &str) -> Result<Self, ListError> {
        let mut lines = (1..).zip(list.lines());
        let header = lines.next().map_or("", |(_, line)| line);
        if header.split('\t').collect::<Vec<_>>()
            != ["id", "role", "level", "section", "source", "text"]
        {
            return Err(ListError::Header(header.to_owned()));
        }
        let mut this = Self::default();
        let mut listed = BTreeMap::new();
        for (line, text) in lines.filter(|(_, text)| !text.is_empty()) {
            let columns: Vec<_> = text.split('\t').collect();
            let &[id, role, level, _, _, sentence] = columns.as_slice() else {
                let got = columns.len();
                return Err(ListError::Columns { line, got });
            };
            listed.insert(id, (role, level, sentence));
        }
        for (id, (role, level, sentence)) in &listed {
            let section = id.rsplit_once('/').map_or(*id, |(section, _)| section);
            let Some(clause) = registry.get(id) else {
                if OUT_OF_SCOPE.iter().any(|out| section.starts_with(out)) {
                    this.out_of_scope += 1;
                } else {
                    this.added.push((*id).to_owned());
                }
                continue;
            };
            let same = clause.hash.as_deref() == Some(sentence_hash(sentence).as_str())
                && clause.role == role_of(role)
                && level_of(level) == Some(clause.level);
            if same {
                this.same += 1;
            } else {
                this.changed.push((*id).to_owned());
            }
        }
        let ours = registry.iter().filter(|clause| {
            clause.provenance == Provenance::Virtio14 && clause.level != Level::Fact
        });
        let gone = ours.filter(|clause| !listed.contains_key(clause.id.as_str()));
        this.removed = gone.map(|clause| clause.id.clone()).collect();
        Ok(this)
    }

    /// Whether the list says what the registry says.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

fn role_of(word: &str) -> Role {
    match word {
        "device" => Role::Device,
        "driver" => Role::Driver,
        _ => Role::Neither,
    }
}

/// SHALL says what MUST says (RFC 2119), and RECOMMENDED what SHOULD says.
fn level_of(word: &str) -> Option<Level> {
    Some(match word {
        "MUST" | "SHALL" => Level::Must,
        "MUST NOT" | "SHALL NOT" => Level::MustNot,
        "SHOULD" | "RECOMMENDED" => Level::Should,
        "SHOULD NOT" => Level::ShouldNot,
        "MAY" | "OPTIONAL" => Level::May,
        _ => return None,
    })
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, ids) in [
            ("added", &self.added),
            ("changed", &self.changed),
            ("removed", &self.removed),
        ] {
            for id in ids {
                writeln!(f, "{what:<8} {id}")?;
            }
        }
        write!(
            f,
            "{} added, {} changed, {} removed, {} the same, {} out of scope",
            self.added.len(),
            self.changed.len(),
            self.removed.len(),
            self.same,
            self.out_of_scope
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "id\trole\tlevel\tsection\tsource\ttext\n";

    #[test]
    fn what_is_new_other_or_gone_is_listed() {
        let registry = Registry::load().unwrap();
        let list = format!(
            "{HEADER}device-reset/D1\tdevice\tMUST\ts\tf:1\tanother sentence\n\
             device-reset/D99\tdevice\tMUST\ts\tf:2\ta new one\n\
             network-device-device-operation/D1\tdevice\tMUST\ts\tf:3\tnot ours\n"
        );
        let found = Differences::new(&registry, &list).unwrap();
        assert_eq!(found.changed, ["device-reset/D1"]);
        assert_eq!(found.added, ["device-reset/D99"]);
        assert!(found.removed.contains(&"device-reset/D2".to_owned()));
        assert_eq!((found.same, found.out_of_scope), (0, 1));
        assert!(!found.is_empty());
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let registry = Registry::load().unwrap();
        assert!(matches!(
            Differences::new(&registry, "x"),
            Err(ListError::Header(_))
        ));
        let short = format!("{HEADER}device-reset/D1\tdevice\n");
        let refused = Differences::new(&registry, &short);
        assert!(matches!(
            refused,
            Err(ListError::Columns { line: 2, got: 2 })
        ));
    }
}
