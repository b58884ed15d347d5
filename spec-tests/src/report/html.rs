//! One page with nothing outside it: clauses down, evidence on click.

use super::{Entry, Outcome, Report, human};
use maud::{DOCTYPE, Markup, html};
use std::collections::BTreeMap;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em}\
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #8884;padding:.3em .6em;text-align:left;vertical-align:top}\
code,pre{font:13px ui-monospace,monospace}pre{white-space:pre-wrap}summary{cursor:pointer}\
.pass{color:#177a3a}.fail,.inconclusive,.unexpected-pass{color:#c0202a;font-weight:600}.waived,.skip{color:#946200}.not-applicable,.not-exercised{color:#777}\
@media(prefers-color-scheme:dark){body{background:#151515;color:#ddd}.pass{color:#5fc98a}.fail,.inconclusive,.unexpected-pass{color:#ff7a80}.waived,.skip{color:#e0b050}}";

pub(super) fn report(report: &Report) -> String {
    let identity = &report.identity;
    let mut groups: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in &report.entries {
        groups.entry(&entry.group).or_default().push(entry);
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "Conformance of " (identity.target) }
                style { (STYLE) }
            }
            body {
                h1 { "Conformance of " code { (identity.target) } }
                p {
                    "PCI " (identity.pci) ", subsystem " (identity.subsystem) ", revision " (identity.revision)
                    ", virtio device " (identity.virtio) ", " (identity.queues) " queues; offers "
                    (identity.features.join(", ")) "."
                }
                p {
                    "Suite " (report.suite) ", clauses " code { (report.clauses) } ", seed " (report.seed)
                    @if let Some(profile) = &report.profile { ", profile " (profile) }
                    "."
                }
                p {
                    @for (outcome, count) in report.totals() {
                        span class=(outcome.name()) { (count) " " (outcome.name()) } " "
                    }
                }
                @for name in &report.not_offered {
                    p.fail { (name) " is claimed by the profile and not offered." }
                }
                @for (group, entries) in groups {
                    h2 { (group) }
                    table {
                        tr { th { "clause" } th { "says" } th { "case" } th { "outcome" } }
                        @for entry in entries { (row(entry)) }
                    }
                }
            }
        }
    };
    page.into_string()
}

fn row(entry: &Entry) -> Markup {
    let open = entry.outcome.is_failure() && entry.outcome != Outcome::UnexpectedPass;
    html! {
        tr {
            td { code title=(entry.source) { (entry.name()) } br; (entry.level.name()) }
            td { (entry.says) }
            td {
                details open[open] {
                    summary { (entry.case) }
                    pre { (human::at_length(entry)) }
                }
            }
            td class=(entry.outcome.name()) { (entry.outcome.name()) }
        }
    }
}
