//! The matrix as a page: no script, nothing outside it; evidence opens on a click.

use super::{Column, Evidence, Matrix, Row};
use crate::clause::Role;
use crate::report::Outcome;
use maud::{DOCTYPE, Markup, html};
use std::collections::BTreeMap;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:100em;padding:0 1em}\
table{border-collapse:collapse}td,th{border-bottom:1px solid #8884;padding:.25em .5em;text-align:left;vertical-align:top}\
thead th{position:sticky;top:0;background:Canvas}th.turned{writing-mode:vertical-rl;transform:rotate(180deg);font-weight:400;padding:.5em .1em}\
td.cell{text-align:center;padding:.1em}code,pre{font:13px ui-monospace,monospace}pre{white-space:pre-wrap;margin:.5em 0 0}\
td code{overflow-wrap:anywhere}button{font:inherit;color:inherit;background:none;border:0;cursor:pointer;padding:.15em .45em}\
[popover]{max-width:60em;max-height:80vh;overflow:auto;border:1px solid #888;padding:1em;border-radius:.4em}\
.pass{color:#177a3a}.fail,.inconclusive,.unexpected-pass{color:#c0202a;font-weight:600}.waived,.skip{color:#946200}.not-applicable,.not-exercised{color:#777}\
body:has(#differing:checked) tr.alike{display:none}\
@media(prefers-color-scheme:dark){:root{color-scheme:dark}.pass{color:#5fc98a}.fail,.inconclusive,.unexpected-pass{color:#ff7a80}.waived,.skip{color:#e0b050}}";

/// One sign for each outcome.
const fn sign(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "✓",
        Outcome::Fail => "✗",
        Outcome::Inconclusive => "?",
        Outcome::UnexpectedPass => "!",
        Outcome::Waived => "w",
        Outcome::Skip => "s",
        Outcome::NotApplicable => "–",
        Outcome::NotExercised => "·",
    }
}

pub(super) fn page(matrix: &Matrix) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "Virtio conformance: the matrix" }
                style { (STYLE) }
            }
            body {
                h1 { "Virtio conformance: the matrix" }
                p {
                    "Every clause of the suite that has a case or a rule, and what each implementation "
                    "was found to do. A click on a sign shows the evidence. Suite " (matrix.suite)
                    ", clauses " code { (matrix.clauses) } "; made by " code { "cargo xtask matrix" }
                    ". A cross is an observation, not a judgement of whose fault it is: the book's page "
                    "on deviations says that of each."
                }
                p {
                    @for outcome in Outcome::ALL {
                        span class=(outcome.name()) { (sign(outcome)) " " (outcome.name()) } "  "
                    }
                }
                p { label { input id="differing" type="checkbox"; " only rows in which implementations differ" } }
                (section(matrix, Role::Device, "Devices"))
                (section(matrix, Role::Driver, "Drivers"))
                @for (key, evidence) in &matrix.evidence { (told(key, evidence)) }
            }
        }
    };
    page.into_string()
}

fn section(matrix: &Matrix, role: Role, title: &str) -> Markup {
    let columns: Vec<&Column> = matrix
        .columns
        .iter()
        .filter(|column| column.role == role)
        .collect();
    let mut groups: BTreeMap<&str, Vec<(&str, &Row)>> = BTreeMap::new();
    for (id, row) in &matrix.rows {
        let mine = |cells: &BTreeMap<String, String>| {
            columns.iter().any(|column| cells.contains_key(&column.id))
        };
        if row.cases.values().any(mine) {
            groups.entry(&row.group).or_default().push((id, row));
        }
    }
    html! {
        @if !columns.is_empty() {
            h2 { (title) }
            (summary(matrix, &columns))
            @for (group, rows) in groups {
                h3 { (group) }
                table {
                    thead {
                        tr {
                            th { "clause" } th { "says" } th { "case" }
                            @for column in &columns { th.turned { (column.title) } }
                        }
                    }
                    tbody {
                        @for (id, row) in rows { (lines(matrix, id, row, &columns)) }
                    }
                }
            }
        }
    }
}

fn summary(matrix: &Matrix, columns: &[&Column]) -> Markup {
    html! {
        table {
            thead {
                tr {
                    th { "implementation" } th { "how it was reached" } th { "what it is" }
                    @for outcome in Outcome::ALL { th.turned { (outcome.name()) } }
                }
            }
            tbody {
                @for column in columns {
                    @let totals = matrix.totals(&column.id);
                    @let identity = &column.identity;
                    tr {
                        td { (column.title) }
                        td { (column.how) }
                        td {
                            @if !identity.pci.is_empty() {
                                details {
                                    summary { "PCI " (identity.pci) ", " (identity.queues) " queues" }
                                    "subsystem " (identity.subsystem) ", revision " (identity.revision)
                                    ", virtio device " (identity.virtio) "; offers "
                                    (identity.features.join(", "))
                                }
                            }
                        }
                        @for outcome in Outcome::ALL {
                            td class=(outcome.name()) {
                                @if let Some(count) = totals.get(&outcome) { (count) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The lines of a clause, one for each of its cases.
fn lines(matrix: &Matrix, id: &str, row: &Row, columns: &[&Column]) -> Markup {
    let name = row.short.as_deref().unwrap_or(id);
    html! {
        @for (case, cells) in &row.cases {
            @let found: Vec<_> = columns.iter().map(|column| {
                let key = cells.get(&column.id)?;
                Some((key, matrix.evidence.get(key)?.outcome))
            }).collect();
            @if found.iter().any(Option::is_some) {
                tr.alike[alike(&found)] {
                    td { code title={ (id) ": " (row.source) } { (name) } br; (row.level.name()) }
                    td { (row.says) }
                    td { code { (case) } }
                    @for cell in &found {
                        td.cell {
                            @if let Some((key, outcome)) = cell {
                                button class=(outcome.name()) title=(outcome.name()) popovertarget=(key) {
                                    (sign(*outcome))
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Whether those that were judged fared alike, apart from those that lack what it is about.
fn alike(found: &[Option<(&String, Outcome)>]) -> bool {
    let mut judged = found
        .iter()
        .flatten()
        .map(|(_, outcome)| *outcome)
        .filter(|outcome| {
            !matches!(
                outcome,
                Outcome::NotApplicable | Outcome::NotExercised | Outcome::Skip
            )
        });
    match judged.next() {
        None => true,
        Some(first) => judged.all(|outcome| outcome == first),
    }
}

fn told(key: &str, evidence: &Evidence) -> Markup {
    html! {
        div popover id=(key) {
            span class=(evidence.outcome.name()) { (evidence.outcome.name()) }
            " in " code { (super::case_of(key)) }
            pre {
                @if !evidence.note.is_empty() { "because " (evidence.note) "\n" }
                @for line in &evidence.did { "did     " (line) "\n" }
                @for line in &evidence.saw { "saw     " (line) "\n" }
                @for line in &evidence.wants { "wants   " (line) "\n" }
            }
        }
    }
}
