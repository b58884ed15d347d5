//! Which clauses and cases a run is about.

use crate::cases::{self, Case};
use crate::clause::{Clause, Level, Registry};

/// Down to which level clauses are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// MUST and MUST NOT.
    #[default]
    Must,
    /// SHOULD and SHOULD NOT as well.
    Should,
    /// Everything that has a case.
    All,
}

impl Depth {
    pub(crate) fn takes(self, level: Level) -> bool {
        match level {
            Level::Must | Level::MustNot => true,
            Level::Should | Level::ShouldNot => self != Self::Must,
            Level::May | Level::Fact => self == Self::All,
        }
    }
}

/// A case, and those of its clauses that are asked about.
#[derive(Debug)]
pub struct Chosen<'a> {
    /// The case.
    pub case: &'static Case,
    /// The clauses.
    pub clauses: Vec<&'a Clause>,
}

/// The cases that `globs` name, by clause (either id), group or case; no globs name all.
pub fn choose<'a>(registry: &'a Registry, globs: &[String], depth: Depth) -> Vec<Chosen<'a>> {
    let mut chosen = Vec::new();
    for case in cases::all() {
        let asked = |clause: &Clause| {
            let named = |glob: &String| named(glob, clause) || matches(glob, case.name);
            depth.takes(clause.level) && (globs.is_empty() || globs.iter().any(named))
        };
        let clauses: Vec<_> = case
            .clauses
            .iter()
            .filter_map(|name| registry.get(name))
            .filter(|clause| asked(clause))
            .collect();
        if !clauses.is_empty() {
            chosen.push(Chosen { case, clauses });
        }
    }
    chosen
}

/// Whether `glob` fits a clause, by either id or by its group.
pub(crate) fn named(glob: &str, clause: &Clause) -> bool {
    let short = clause.short.as_deref();
    matches(glob, &clause.id)
        || matches(glob, clause.group)
        || short.is_some_and(|short| matches(glob, short))
}

/// Whether `glob` fits all of `text`: `*` stands for any characters, `?` for one.
pub fn matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Where the last star was, and how much it has swallowed: on a mismatch it swallows one more.
    let mut star: Option<(usize, usize)> = None;
    while let Some(letter) = text.get(seen) {
        match glob.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || wanted == letter => {
                at += 1;
                seen += 1;
            }
            _ => match star {
                Some((place, swallowed)) => {
                    star = Some((place, swallowed + 1));
                    at = place + 1;
                    seen = swallowed + 1;
                }
                None => return false,
            },
        }
    }
    glob.get(at..)
        .is_some_and(|rest| rest.iter().all(|letter| *letter == '*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_fit_whole_names() {
        for (glob, text) in [
            ("*", ""),
            ("a*c", "abbc"),
            ("a*c", "abcbc"),
            ("SUS-1?", "SUS-12"),
            ("x", "x"),
        ] {
            assert!(matches(glob, text), "{glob} {text}");
        }
        for (glob, text) in [("a", "ab"), ("a*c", "abcb"), ("SUS-1?", "SUS-1"), ("", "x")] {
            assert!(!matches(glob, text), "{glob} {text}");
        }
    }

    #[test]
    fn a_clause_is_found_by_either_id_and_by_its_group() {
        let registry = Registry::load().unwrap();
        let count = |glob: &str, depth| choose(&registry, &[glob.to_owned()], depth).len();
        assert!(count("SUS-12", Depth::Must) > 0);
        let long = "general-initialization-and-device-operation-device-suspend/D3";
        assert_eq!(count("SUS-12", Depth::Must), count(long, Depth::Must));
        assert!(count("suspend", Depth::All) > count("suspend", Depth::Must));
        assert_eq!(count("no-such-clause", Depth::All), 0);
    }
}
