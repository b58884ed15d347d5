//! The registry as a page of the book.

use super::human::how;
use crate::clause::coverage::Coverage;
use crate::clause::{Provenance, Registry};
use crate::{cases, judge};
use std::fmt::Write;

/// Every clause with its authority, its paraphrase and what judges it: a page in Markdown that
/// depends on the registry, the cases and the rules alone.
pub fn reference(registry: &Registry) -> String {
    let mut page = String::from(
        "# The clauses\n\n\
         Made from the registry by `cargo xtask generate`. The words are ours and not the standard's; \
         `tidemark conform --explain ID` says all that is known of one. Where a clause is judged, its cases \
         (for devices) or rules (for drivers) are named; where not, the reason stands in brackets. Only what \
         is not marked otherwise is a requirement of OASIS.\n\n```text\n",
    );
    page.push_str(&Coverage::new(registry, cases::all(), judge::judged()).to_string());
    page.push_str("```\n");
    for (group, _) in registry.groups() {
        let _ = write!(
            page,
            "\n## {group}\n\n| clause | who | what | judged by |\n|---|---|---|---|\n"
        );
        for clause in registry.iter().filter(|clause| clause.group == group) {
            let short = clause.short.as_ref();
            let short = short.map_or_else(String::new, |short| format!("{short}<br>"));
            let source = match clause.provenance {
                Provenance::Virtio14 => String::new(),
                other => format!(" *({})*", other.name()),
            };
            let who = format!("{:?}", clause.role).to_lowercase();
            let _ = writeln!(
                page,
                "| {short}`{}` | {who} {} | {}{source} | {} |",
                clause.id,
                clause.level.name(),
                cell(&clause.text),
                cell(&how(clause))
            );
        }
    }
    page
}

/// Text that does not end its cell of a table, nor is taken for a tag.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_page_is_what_is_made() {
        let registry = Registry::load().expect("a sound registry");
        let made = reference(&registry);
        let kept = include_str!("../../../docs/src/reference/clauses.md");
        assert!(
            made == kept,
            "docs/src/reference/clauses.md is old; run `cargo xtask generate`"
        );
    }

    #[test]
    fn a_cell_stays_one() {
        assert_eq!(cell("a | b <c>"), "a \\| b &lt;c>");
    }
}
