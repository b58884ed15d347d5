//! Judging drivers: the clauses for which there is a rule.

/// Ids of the clauses that a driver is judged by, in either form.
pub const RULES: &[&str] = &[];
