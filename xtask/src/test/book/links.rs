//! Pages, their links, and the summary.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

/// The book's folder.
const BOOK: &str = "docs/src";
/// What lists its pages.
const SUMMARY: &str = "SUMMARY.md";

/// Every page of the book, and those beside it in the root.
pub fn pages(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(root, &mut found, false)?;
    collect(&root.join(BOOK), &mut found, true)?;
    found.sort();
    Ok(found)
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>, deep: bool) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && deep {
            collect(&path, found, deep)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    Ok(())
}

/// What is wrong with the pages, a line each.
pub fn check(root: &Path, pages: &[PathBuf]) -> Result<Vec<String>> {
    let mut texts = BTreeMap::new();
    for page in pages {
        let text = fs::read_to_string(page);
        let text = text.with_context(|| format!("cannot read {}", page.display()))?;
        texts.insert(page.clone(), text);
    }
    let mut broken = Vec::new();
    let book = root.join(BOOK);
    let mut listed = BTreeSet::new();
    for (page, text) in &texts {
        let name = page.strip_prefix(root).unwrap_or(page).display();
        let folder = page.parent().unwrap_or(root);
        for target in links(text) {
            let (file, anchor) = target.split_once('#').unwrap_or((target.as_str(), ""));
            let to = match file {
                "" => page.clone(),
                file => plain(&folder.join(file)),
            };
            if !to.exists() {
                broken.push(format!("{name}: the link to `{target}` leads nowhere"));
                continue;
            }
            if page.ends_with(Path::new(BOOK).join(SUMMARY)) {
                listed.insert(to.clone());
            }
            let known = texts.get(&to).is_none_or(|text| has(text, anchor));
            if !anchor.is_empty() && !known {
                broken.push(format!("{name}: `{target}`: there is no such heading"));
            }
        }
    }
    for page in texts.keys().filter(|page| page.starts_with(&book)) {
        if !listed.contains(page) && !page.ends_with(SUMMARY) {
            let name = page.strip_prefix(root).unwrap_or(page).display();
            broken.push(format!("{name} is not in the book's {SUMMARY}"));
        }
    }
    Ok(broken)
}

/// A path without `..` and `.`, so that one file has one name.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// Lines outside of fences.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// Every link to something here, and every file that is included, wherever it stands.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        for rest in line.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") {
                found.push(target.to_owned());
            }
        }
    }
    for rest in text.split("{{#include ").skip(1) {
        found.push(rest.split("}}").next().unwrap_or_default().to_owned());
    }
    found
}

/// Whether a page has a heading with this anchor, as mdBook makes them.
fn has(text: &str, anchor: &str) -> bool {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings
        .map(|line| line.trim_start_matches('#').trim())
        .any(|heading| slug(heading) == anchor)
}

fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter_map(|c| match c {
        c if c.is_alphanumeric() || c == '_' || c == '-' => Some(c),
        c if c.is_whitespace() => Some('-'),
        _ => None,
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(files: &[(&str, &str)]) -> Vec<String> {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join(BOOK)).expect("a folder in it");
        for (name, text) in files {
            fs::write(root.path().join(name), text).expect("a file");
        }
        let pages = pages(root.path()).expect("pages");
        check(root.path(), &pages).expect("readable pages")
    }

    #[test]
    fn a_sound_book_is_sound() {
        let files = [
            (
                "README.md",
                "[book](docs/src/SUMMARY.md) [web](https://host/page)",
            ),
            ("docs/src/SUMMARY.md", "- [One](one.md)\n- [Two](two.md)\n"),
            (
                "docs/src/one.md",
                "# One\n\n[here](#one) [there](two.md#what-it-is-again)\n",
            ),
            (
                "docs/src/two.md",
                "# Two\n\n## What it is, again?\n```\n](nowhere.md)\n```\n",
            ),
        ];
        assert_eq!(book(&files), [""; 0]);
    }

    #[test]
    fn each_fault_is_found() {
        let summary = (
            "docs/src/SUMMARY.md",
            "- [One](one.md)\n- [Gone](gone.md)\n",
        );
        let files = [
            summary,
            (
                "docs/src/one.md",
                "# One\n[a](two.md#three) [b](nowhere.md)\n{{#include none.rs}}",
            ),
            ("docs/src/two.md", "# Two\n"),
        ];
        let broken = book(&files);
        for fault in [
            "gone.md",
            "#three",
            "nowhere.md",
            "none.rs",
            "two.md is not in",
        ] {
            assert!(
                broken.iter().any(|line| line.contains(fault)),
                "{fault}: {broken:?}"
            );
        }
        assert_eq!(broken.len(), 5, "{broken:?}");
    }
}
