//! Where all pages of a checkpoint are: its indexes, read and laid over each other.

use super::bodies::Bodies;
use super::error::{StoreError, damaged};
use super::layout::{Entry, Index, PAGE_BYTES, Root};
use super::record::{Reference, hash};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Most indexes of a checkpoint: the next one is made anew, of all pages.
const INDEXES_MAX: usize = 16;

/// The pages of a checkpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    /// The indexes that tell where they are, in their order.
    pub(super) indexes: Vec<Reference>,
    /// Entries of all indexes but the first.
    pub(super) increments: usize,
    /// What any of the indexes refers to; entries count in it.
    pub(super) packs: Vec<Reference>,
    /// Ascending by page.
    pub(super) entries: Vec<Entry>,
}

impl Pages {
    /// Those that a root tells of.
    pub(super) fn read(bodies: &Bodies, root: &Root, what: &str) -> Result<Self, StoreError> {
        if root.indexes.len() > INDEXES_MAX {
            let expected = format!("at most {INDEXES_MAX} indexes");
            return Err(damaged(what, expected, root.indexes.len()));
        }
        let mut pages = Self::default();
        let mut numbers: HashMap<Reference, u32> = HashMap::new();
        for reference in &root.indexes {
            let index = Index::from_bytes(&reference.id, &bodies.get(reference)?)?;
            let mut own = Vec::with_capacity(index.packs.len());
            for pack in &index.packs {
                let next = u32::try_from(pages.packs.len()).unwrap_or(u32::MAX);
                own.push(*numbers.entry(*pack).or_insert_with(|| {
                    pages.packs.push(*pack);
                    next
                }));
            }
            let renumbered = index.entries.into_iter().map(|entry| {
                let at = usize::try_from(entry.pack).unwrap_or(usize::MAX);
                let pack = own.get(at).copied().unwrap_or(u32::MAX);
                Entry { pack, ..entry }
            });
            let entries: Vec<Entry> = renumbered.collect();
            if !pages.indexes.is_empty() {
                pages.increments += entries.len();
            }
            pages.indexes.push(*reference);
            pages.entries = laid_over(std::mem::take(&mut pages.entries), &entries);
        }
        if let Some(pack) = pages.packs.iter().find(|pack| !root.packs.contains(pack)) {
            let expected = "all packs of its indexes";
            return Err(damaged(what, expected, format!("none called {}", pack.id)));
        }
        if u64::try_from(pages.entries.len()) != Ok(root.pages) {
            let expected = format!("{} pages in its indexes", root.pages);
            return Err(damaged(what, expected, pages.entries.len()));
        }
        Ok(pages)
    }

    /// Where a page is.
    pub(super) fn find(&self, page: u64) -> Option<&Entry> {
        let at = self.entries.binary_search_by_key(&page, |entry| entry.page);
        self.entries.get(at.ok()?)
    }

    /// Whether the next checkpoint with so many `changed` pages is to tell of all pages anew: so that
    /// a checkpoint never has many indexes, and those not much that is out of date.
    pub(super) fn is_worn(&self, changed: usize) -> bool {
        self.indexes.len() >= INDEXES_MAX || 2 * (self.increments + changed) > self.entries.len()
    }

    /// An index of some of these pages, with the packs that they need.
    pub(super) fn index_of(&self, entries: &[Entry]) -> Index {
        let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
        let mut index = Index::default();
        for entry in entries {
            let next = u32::try_from(index.packs.len()).unwrap_or(u32::MAX);
            let pack = *numbers.entry(entry.pack).or_insert_with(|| {
                let at = usize::try_from(entry.pack).unwrap_or(usize::MAX);
                index.packs.extend(self.packs.get(at));
                next
            });
            index.entries.push(Entry { pack, ..*entry });
        }
        index
    }

    /// The bytes of some of these pages, one after the other, each of them what it was.
    pub(super) fn fetch(&self, bodies: &Bodies, entries: &[Entry]) -> Result<Vec<u8>, StoreError> {
        let mut wanted: BTreeMap<u32, Vec<(u32, usize)>> = BTreeMap::new();
        for (at, entry) in entries.iter().enumerate() {
            wanted
                .entry(entry.pack)
                .or_default()
                .push((entry.place, at));
        }
        let mut all = vec![0; entries.len() * PAGE_BYTES];
        for (pack, mut places) in wanted {
            let at = usize::try_from(pack).unwrap_or(usize::MAX);
            let Some(pack) = self.packs.get(at) else {
                continue;
            };
            places.sort_unstable();
            let runs = runs(&places);
            let ranges: Vec<Range<u64>> = runs
                .iter()
                .map(|run| u64::from(run.start) * 4096..u64::from(run.end) * 4096)
                .collect();
            let parts = bodies.parts(pack, &ranges)?;
            for (place, at) in places {
                let found = runs
                    .iter()
                    .zip(&parts)
                    .find(|(run, _)| run.contains(&place));
                let bytes = found.and_then(|(run, part)| {
                    let from = usize::try_from(place - run.start).ok()? * PAGE_BYTES;
                    part.get(from..from + PAGE_BYTES)
                });
                let entry = entries.get(at);
                let sound = bytes.zip(entry).is_some_and(|(b, e)| hash(b) == e.hash);
                let into = all.get_mut(at * PAGE_BYTES..(at + 1) * PAGE_BYTES);
                match (bytes, into) {
                    (Some(bytes), Some(into)) if sound => into.copy_from_slice(bytes),
                    _ => {
                        let page = entry.map_or(0, |entry| entry.page);
                        let expected = format!("page {page:#x} at place {place}");
                        return Err(damaged(pack.id, expected, "other bytes"));
                    }
                }
            }
        }
        Ok(all)
    }
}

/// Places without gaps between them, of sorted ones.
fn runs(places: &[(u32, usize)]) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for (place, _) in places {
        match runs.last_mut() {
            Some(run) if run.contains(place) => {}
            Some(run) if run.end == *place => run.end += 1,
            _ => runs.push(*place..*place + 1),
        }
    }
    runs
}

/// The entries of both, those above where both have one. Both ascend.
pub(super) fn laid_over(below: Vec<Entry>, above: &[Entry]) -> Vec<Entry> {
    if below.is_empty() {
        return above.to_vec();
    }
    let mut all = Vec::with_capacity(below.len() + above.len());
    let mut below = below.into_iter().peekable();
    for entry in above {
        while let Some(lower) = below.next_if(|lower| lower.page < entry.page) {
            all.push(lower);
        }
        below.next_if(|lower| lower.page == entry.page);
        all.push(*entry);
    }
    all.extend(below);
    all
}
