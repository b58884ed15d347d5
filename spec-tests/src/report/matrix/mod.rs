//! Many reports side by side: clauses down, implementations across.
//!
//! The matrix is its own JSON file, and the page is made of nothing else. It must not change
//! unless a verdict does, so it holds no times, and what differs from the matrix before in numbers
//! alone (addresses, indices, counts of polls) keeps the text that it had.

mod page;

use super::{Entry, Identity, Outcome, Report};
use crate::clause::{Level, Registry, Role};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Who was judged, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Name, unique in the matrix.
    pub id: String,
    /// What people call it.
    pub title: String,
    /// Where it was and how it was reached.
    pub how: String,
    /// Who is bound by its clauses.
    pub role: Role,
    /// What it said of itself, without where it was.
    pub identity: Identity,
}

/// What one case found at one or more implementations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The verdict.
    pub outcome: Outcome,
    /// Why, where the outcome alone does not say it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// What was done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub did: Vec<String>,
    /// What was seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saw: Vec<String>,
    /// What the clause wants to be seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wants: Vec<String>,
}

/// One clause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its short id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short: Option<String>,
    /// Its group.
    pub group: String,
    /// Who is bound.
    pub role: Role,
    /// How strongly.
    pub level: Level,
    /// With what authority, and where it stands.
    pub source: String,
    /// What it says, in our words.
    pub says: String,
    /// By case and column, the key of the evidence.
    pub cases: BTreeMap<String, BTreeMap<String, String>>,
}

/// The matrix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    /// Version of the suite.
    pub suite: String,
    /// Hash of the clauses.
    pub clauses: String,
    /// The implementations, in their order.
    pub columns: Vec<Column>,
    /// By the clause's id.
    pub rows: BTreeMap<String, Row>,
    /// By key: the case's name and a number.
    pub evidence: BTreeMap<String, Evidence>,
}

/// One implementation's report and what it is called.
#[derive(Clone, Debug, Deserialize)]
pub struct Judged {
    /// Name, unique in the matrix.
    pub id: String,
    /// What people call it.
    pub title: String,
    /// Where it was and how it was reached.
    pub how: String,
    /// What was found.
    pub report: Report,
}

/// A verdict that two matrices do not agree about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The implementation.
    pub column: String,
    /// The clause.
    pub clause: String,
    /// The case.
    pub case: String,
    /// What it was; none if it was not there.
    pub was: Option<Outcome>,
    /// What it is; none if it is not there.
    pub is: Option<Outcome>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |outcome: Option<Outcome>| outcome.map_or("absent", Outcome::name);
        let (was, is) = (name(self.was), name(self.is));
        let Self {
            column,
            clause,
            case,
            ..
        } = self;
        write!(f, "{column}: {clause} in {case} was {was} and is {is}")
    }
}

impl Matrix {
    /// What `reports` found, in their order. Implementations of `old` that have no report now keep
    /// what they had, and evidence that differs from the old one in numbers alone keeps its text.
    pub fn new(registry: &Registry, reports: &[Judged], old: &Self) -> Self {
        let mut this = Self {
            suite: env!("CARGO_PKG_VERSION").to_owned(),
            clauses: registry.hash(),
            columns: old.columns.clone(),
            ..Self::default()
        };
        for judged in reports {
            let column = Column::new(judged);
            match this.columns.iter_mut().find(|known| known.id == column.id) {
                Some(known) => *known = column,
                None => this.columns.push(column),
            }
        }
        for column in &old.columns {
            if !reports.iter().any(|judged| judged.id == column.id) {
                this.keep(old, &column.id);
            }
        }
        for judged in reports {
            for entry in &judged.report.entries {
                this.add(&judged.id, entry, old);
            }
        }
        this
    }

    /// Takes over what an implementation had.
    fn keep(&mut self, old: &Self, column: &str) {
        for (id, row) in &old.rows {
            for (case, cells) in &row.cases {
                let Some(key) = cells.get(column) else {
                    continue;
                };
                if let Some(evidence) = old.evidence.get(key) {
                    self.evidence.insert(key.clone(), evidence.clone());
                    self.cell(id, row, case, column, key.clone());
                }
            }
        }
    }

    fn cell(&mut self, id: &str, row: &Row, case: &str, column: &str, key: String) {
        let mine = self.rows.entry(id.to_owned()).or_insert_with(|| Row {
            cases: BTreeMap::new(),
            ..row.clone()
        });
        let cells = mine.cases.entry(case.to_owned()).or_default();
        cells.insert(column.to_owned(), key);
    }

    fn add(&mut self, column: &str, entry: &Entry, old: &Self) {
        let evidence = Evidence {
            outcome: entry.outcome,
            note: entry.note.clone(),
            did: entry.did.clone(),
            saw: entry.saw.clone(),
            wants: entry.wants.clone(),
        };
        let key = self.key(column, entry, &evidence, old);
        self.evidence.entry(key.clone()).or_insert(evidence);
        let row = Row {
            short: entry.short.clone(),
            group: entry.group.clone(),
            role: entry.role,
            level: entry.level,
            source: entry.source.clone(),
            says: entry.says.clone(),
            cases: BTreeMap::new(),
        };
        self.cell(&entry.clause, &row, &entry.case, column, key);
    }

    /// The key under which evidence stands, or is to stand. The text of the old matrix is put there
    /// if it may stay.
    fn key(&mut self, column: &str, entry: &Entry, evidence: &Evidence, old: &Self) -> String {
        let had = old
            .rows
            .get(&entry.clause)
            .and_then(|row| row.cases.get(&entry.case)?.get(column));
        if let Some(key) = had
            && let Some(known) = old.evidence.get(key)
            && known.says_the_same(evidence)
        {
            self.evidence
                .entry(key.clone())
                .or_insert_with(|| known.clone());
            return key.clone();
        }
        let mine = |all: &Self, fits: &dyn Fn(&Evidence) -> bool| {
            let of_case = all
                .evidence
                .iter()
                .filter(|(key, _)| case_of(key) == entry.case);
            of_case
                .filter(|(_, known)| fits(known))
                .map(|(key, _)| key.clone())
                .next()
        };
        // What counts as a failure is shown as it was seen; of the rest one example does.
        let known = mine(self, &|known| known == evidence).or_else(|| {
            match evidence.outcome.is_failure() {
                true => None,
                false => mine(self, &|known| known.says_the_same(evidence)),
            }
        });
        known.unwrap_or_else(|| {
            let taken =
                |key: &String| self.evidence.contains_key(key) || old.evidence.contains_key(key);
            let mut numbers = (1_u32..).map(|number| format!("{}~{number}", entry.case));
            numbers.find(|key| !taken(key)).unwrap_or_default()
        })
    }

    /// Every verdict by clause, case and column.
    fn verdicts(&self) -> BTreeMap<(&str, &str, &str), Outcome> {
        let mut all = BTreeMap::new();
        for (clause, row) in &self.rows {
            for (case, cells) in &row.cases {
                for (column, key) in cells {
                    if let Some(evidence) = self.evidence.get(key) {
                        all.insert(
                            (clause.as_str(), case.as_str(), column.as_str()),
                            evidence.outcome,
                        );
                    }
                }
            }
        }
        all
    }

    /// The verdicts of this matrix that `old` does not agree with, among implementations that this
    /// one has.
    pub fn differences(&self, old: &Self) -> Vec<Difference> {
        let (new, was) = (self.verdicts(), old.verdicts());
        let columns: BTreeSet<&str> = self.columns.iter().map(|one| one.id.as_str()).collect();
        let keys: BTreeSet<_> = new.keys().chain(was.keys()).copied().collect();
        let mut all = Vec::new();
        for key in keys {
            let (before, now) = (was.get(&key).copied(), new.get(&key).copied());
            let (clause, case, column) = key;
            if before != now && columns.contains(column) {
                all.push(Difference {
                    column: column.to_owned(),
                    clause: clause.to_owned(),
                    case: case.to_owned(),
                    was: before,
                    is: now,
                });
            }
        }
        all
    }

    /// How often each outcome was found at an implementation.
    pub fn totals(&self, column: &str) -> BTreeMap<Outcome, usize> {
        let mut totals = BTreeMap::new();
        for ((_, _, mine), outcome) in self.verdicts() {
            if mine == column {
                *totals.entry(outcome).or_default() += 1;
            }
        }
        totals
    }

    /// The matrix as its JSON file has it.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The matrix as one page with nothing outside it.
    pub fn page(&self) -> String {
        page::page(self)
    }
}

/// The case that a key is for.
fn case_of(key: &str) -> &str {
    key.rsplit_once('~').map_or(key, |(case, _)| case)
}

impl Column {
    fn new(judged: &Judged) -> Self {
        let entries = &judged.report.entries;
        let drives = entries.iter().any(|entry| entry.role == Role::Driver);
        Self {
            id: judged.id.clone(),
            title: judged.title.clone(),
            how: judged.how.clone(),
            role: if drives { Role::Driver } else { Role::Device },
            identity: Identity {
                target: String::new(),
                ..judged.report.identity.clone()
            },
        }
    }
}

impl Evidence {
    /// Whether it differs from `other` in numbers at most.
    fn says_the_same(&self, other: &Self) -> bool {
        let lines = |all: &[String]| all.iter().map(|line| numberless(line)).collect::<Vec<_>>();
        self.outcome == other.outcome
            && numberless(&self.note) == numberless(&other.note)
            && lines(&self.did) == lines(&other.did)
            && lines(&self.saw) == lines(&other.saw)
            && lines(&self.wants) == lines(&other.wants)
    }
}

/// A text with `#` for every number, decimal or hexadecimal.
fn numberless(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let digits = match rest.strip_prefix("0x") {
            Some(digits) => digits.trim_start_matches(|letter: char| letter.is_ascii_hexdigit()),
            None => rest.trim_start_matches(|letter: char| letter.is_ascii_digit()),
        };
        if digits.len() < rest.len() {
            plain.push('#');
            rest = digits;
        } else {
            plain.push(first);
            rest = rest.get(first.len_utf8()..).unwrap_or("");
        }
    }
    plain
}

#[cfg(test)]
mod tests;
