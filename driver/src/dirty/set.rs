//! A set of pages.

use super::PAGE_SIZE;
use bitvec::prelude::{BitVec, Lsb0};
use std::fmt;
use std::ops::Range;

const BITS: u64 = 64;

/// A set of pages of [`PAGE_SIZE`](super::PAGE_SIZE) bytes, numbered from address 0.
///
/// The set has a length in pages, as the memory has that it describes. Pages at or beyond it belong
/// to nobody: inserting them does nothing and the set never contains them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct DirtySet {
    /// Bits of the last word beyond the length are always 0.
    bits: BitVec<u64, Lsb0>,
}

impl fmt::Debug for DirtySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirtySet({}/{} pages)", self.count(), self.len())
    }
}

/// Word number and bit of a page. `None` where no such word can exist.
fn place(page: u64) -> Option<(usize, u64)> {
    Some((usize::try_from(page / BITS).ok()?, 1 << (page % BITS)))
}

impl DirtySet {
    /// An empty set over `pages` pages. Takes `pages / 8` bytes: the number must be one's own.
    pub fn new(pages: u64) -> Self {
        let pages = usize::try_from(pages).unwrap_or(usize::MAX);
        Self {
            bits: BitVec::repeat(false, pages),
        }
    }

    /// Number of pages that the set can hold.
    pub fn len(&self) -> u64 {
        self.bits.len() as u64
    }

    /// True if no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.as_words().iter().all(|&word| word == 0)
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        let ones = self
            .as_words()
            .iter()
            .map(|word| u64::from(word.count_ones()));
        ones.sum()
    }

    /// True if the page is in the set.
    pub fn contains(&self, page: u64) -> bool {
        place(page).is_some_and(|(word, bit)| {
            self.as_words()
                .get(word)
                .is_some_and(|bits| bits & bit != 0)
        })
    }

    /// Adds a page; true if it was not there and is now.
    pub fn insert(&mut self, page: u64) -> bool {
        if page >= self.len() {
            return false;
        }
        let Some((word, bit)) = place(page) else {
            return false;
        };
        match self.bits.as_raw_mut_slice().get_mut(word) {
            Some(bits) => {
                let new = *bits & bit == 0;
                *bits |= bit;
                new
            }
            None => false,
        }
    }

    /// Removes a page; true if it was there.
    pub fn remove(&mut self, page: u64) -> bool {
        let Some((word, bit)) = place(page) else {
            return false;
        };
        match self.bits.as_raw_mut_slice().get_mut(word) {
            Some(bits) => {
                let was = *bits & bit != 0;
                *bits &= !bit;
                was
            }
            None => false,
        }
    }

    /// Adds the pages of `range`, as far as the set reaches.
    pub fn insert_range(&mut self, range: Range<u64>) {
        self.each_word(range, |word, mask| *word |= mask);
    }

    /// Removes the pages of `range`.
    pub fn remove_range(&mut self, range: Range<u64>) {
        self.each_word(range, |word, mask| *word &= !mask);
    }

    /// Adds every page that `len` bytes at `address` touch.
    pub fn insert_bytes(&mut self, address: u64, len: u64) {
        if len != 0 {
            let last = address.saturating_add(len - 1);
            self.insert_range(address / PAGE_SIZE..last / PAGE_SIZE + 1);
        }
    }

    /// Removes every page.
    pub fn clear(&mut self) {
        self.bits.as_raw_mut_slice().fill(0);
    }

    /// Adds the pages of `other`, as far as this set reaches.
    pub fn union_with(&mut self, other: &Self) {
        for (mine, theirs) in self
            .bits
            .as_raw_mut_slice()
            .iter_mut()
            .zip(other.as_words())
        {
            *mine |= theirs;
        }
        self.trim();
    }

    /// Removes the pages of `other`.
    pub fn subtract(&mut self, other: &Self) {
        for (mine, theirs) in self
            .bits
            .as_raw_mut_slice()
            .iter_mut()
            .zip(other.as_words())
        {
            *mine &= !theirs;
        }
    }

    /// Keeps only the pages that are in `other` too.
    pub fn intersect_with(&mut self, other: &Self) {
        let theirs = other.as_words().iter().chain(std::iter::repeat(&0));
        for (mine, theirs) in self.bits.as_raw_mut_slice().iter_mut().zip(theirs) {
            *mine &= theirs;
        }
    }

    /// The pages of this set that are not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.subtract(other);
        rest
    }

    /// The pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.runs().flatten()
    }

    /// The pages as maximal runs in ascending order.
    pub fn runs(&self) -> Runs<'_> {
        Runs {
            words: self.as_words(),
            from: 0,
        }
    }

    /// The set as words: page `n` is bit `n % 64` of word `n / 64`.
    pub fn as_words(&self) -> &[u64] {
        self.bits.as_raw_slice()
    }

    /// Adds the pages of one word: bit `b` is page `64 * index + b`. What lies beyond the set is
    /// dropped.
    pub fn or_word(&mut self, index: u64, bits: u64) {
        let bits = bits & self.mask(index);
        let word = usize::try_from(index).ok();
        if let Some(word) = word.and_then(|word| self.bits.as_raw_mut_slice().get_mut(word)) {
            *word |= bits;
        }
    }

    /// The bits of word `index` that the set's length covers.
    fn mask(&self, index: u64) -> u64 {
        match self.len().saturating_sub(index.saturating_mul(BITS)) {
            0 => 0,
            left @ 1..BITS => (1 << left) - 1,
            _ => !0,
        }
    }

    /// Word `index`, 0 beyond the end.
    pub(super) fn word(&self, index: u64) -> u64 {
        let word = usize::try_from(index).ok();
        word.and_then(|word| self.as_words().get(word).copied())
            .unwrap_or(0)
    }

    /// Moves the pages of `range` to `into`, which must reach as far.
    pub(super) fn move_range(&mut self, range: Range<u64>, into: &mut Self) {
        let mut index = range.start / BITS;
        self.each_word(range, |word, mask| {
            into.or_word(index, *word & mask);
            *word &= !mask;
            index += 1;
        });
    }

    /// The words before number `at` and the rest. Whoever writes them calls [`trim`](Self::trim).
    pub(super) fn split_words(&mut self, at: usize) -> (&mut [u64], &mut [u64]) {
        let words = self.bits.as_raw_mut_slice();
        words.split_at_mut(at.min(words.len()))
    }

    /// Drops bits beyond the length.
    pub(super) fn trim(&mut self) {
        let last = (self.as_words().len() as u64).saturating_sub(1);
        let mask = self.mask(last);
        if let Some(word) = self.bits.as_raw_mut_slice().last_mut() {
            *word &= mask;
        }
    }

    fn each_word(&mut self, range: Range<u64>, mut edit: impl FnMut(&mut u64, u64)) {
        let end = range.end.min(self.len());
        if range.start >= end {
            return;
        }
        let (first, last) = (range.start / BITS, (end - 1) / BITS);
        let head = !0 << (range.start % BITS);
        let tail = !0 >> (BITS - 1 - (end - 1) % BITS);
        let (Ok(from), Ok(to)) = (usize::try_from(first), usize::try_from(last)) else {
            return;
        };
        match self.bits.as_raw_mut_slice().get_mut(from..=to) {
            Some([only]) => edit(only, head & tail),
            Some([first, middle @ .., last]) => {
                edit(first, head);
                middle.iter_mut().for_each(|word| edit(word, !0));
                edit(last, tail);
            }
            _ => {}
        }
    }
}

/// The runs of a [`DirtySet`], see [`DirtySet::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    words: &'a [u64],
    /// The next page to look at.
    from: u64,
}

impl Runs<'_> {
    /// The first page from `from` on whose bit, after exclusive or with `flip`, is 1.
    fn seek(&self, from: u64, flip: u64) -> Option<u64> {
        let first = from / BITS;
        let mut mask = !0 << (from % BITS);
        let words = self.words.get(usize::try_from(first).ok()?..)?;
        for (index, word) in (first..).zip(words) {
            let hits = (word ^ flip) & mask;
            if hits != 0 {
                return Some(index * BITS + u64::from(hits.trailing_zeros()));
            }
            mask = !0;
        }
        None
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let start = self.seek(self.from, 0)?;
        let end = self.seek(start, !0);
        // Only a set whose length is a multiple of 64 ends inside a run.
        self.from = end.unwrap_or(self.words.len() as u64 * BITS);
        Some(start..self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Remove(u64),
        Range(u64, u64),
        Without(u64, u64),
        Word(u64, u64),
        Bytes(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..400_u64).prop_map(Step::Insert),
            (0..400_u64).prop_map(Step::Remove),
            (0..400_u64, 0..400_u64).prop_map(|(a, b)| Step::Range(a, b)),
            (0..400_u64, 0..400_u64).prop_map(|(a, b)| Step::Without(a, b)),
            (0..7_u64, any::<u64>()).prop_map(|(a, b)| Step::Word(a, b)),
            (0..1_500_000_u64, 0..300_000_u64).prop_map(|(a, b)| Step::Bytes(a, b)),
        ]
    }

    /// The slow, obvious version.
    fn apply(len: u64, steps: &[Step]) -> (DirtySet, BTreeSet<u64>) {
        let mut set = DirtySet::new(len);
        let mut oracle = BTreeSet::new();
        for step in steps.iter().cloned() {
            match step {
                Step::Insert(page) => {
                    let new = page < len && !oracle.contains(&page);
                    assert_eq!(set.insert(page), new);
                    oracle.extend((page < len).then_some(page));
                }
                Step::Remove(page) => assert_eq!(set.remove(page), oracle.remove(&page)),
                Step::Range(a, b) => {
                    set.insert_range(a..b);
                    oracle.extend(a..b.min(len));
                }
                Step::Without(a, b) => {
                    set.remove_range(a..b);
                    oracle.retain(|page| !(a..b).contains(page));
                }
                Step::Word(index, bits) => {
                    set.or_word(index, bits);
                    let pages = (0..64).filter(|bit| bits >> bit & 1 == 1);
                    oracle.extend(pages.map(|bit| index * 64 + bit).filter(|page| *page < len));
                }
                Step::Bytes(address, bytes) => {
                    set.insert_bytes(address, bytes);
                    let pages = (0..len).filter(|page| {
                        bytes != 0 && page * 4096 < address + bytes && address < page * 4096 + 4096
                    });
                    oracle.extend(pages);
                }
            }
        }
        (set, oracle)
    }

    fn pages(set: &DirtySet) -> BTreeSet<u64> {
        set.iter().collect()
    }

    proptest! {
        #[test]
        fn behaves_like_a_tree(
            len in prop_oneof![Just(0_u64), Just(64), Just(320), 0..350_u64],
            steps in prop::collection::vec(step(), 0..12),
            other_len in 0..350_u64,
            other in prop::collection::vec(step(), 0..12),
        ) {
            let (set, oracle) = apply(len, &steps);
            prop_assert_eq!(pages(&set), oracle.clone());
            prop_assert_eq!(set.len(), len);
            prop_assert_eq!(set.count(), oracle.len() as u64);
            prop_assert_eq!(set.is_empty(), oracle.is_empty());
            for page in 0..410 {
                prop_assert_eq!(set.contains(page), oracle.contains(&page));
            }
            let runs: Vec<_> = set.runs().collect();
            for pair in runs.windows(2) {
                prop_assert!(pair[0].end < pair[1].start, "runs are maximal and ascend");
            }
            prop_assert!(runs.iter().all(|run| run.start < run.end && run.end <= len));

            let (theirs, their_oracle) = apply(other_len, &other);
            let mut union = set.clone();
            union.union_with(&theirs);
            let expected = oracle.union(&their_oracle).copied().filter(|page| *page < len);
            prop_assert_eq!(pages(&union), expected.collect());
            let mut both = set.clone();
            both.intersect_with(&theirs);
            prop_assert_eq!(pages(&both), oracle.intersection(&their_oracle).copied().collect());
            let rest = set.difference(&theirs);
            prop_assert_eq!(pages(&rest), oracle.difference(&their_oracle).copied().collect());
            let mut none = set;
            none.clear();
            prop_assert!(none.is_empty() && none.len() == len);
        }
    }

    #[test]
    fn numbers_at_the_end_of_the_world() {
        let mut set = DirtySet::new(100);
        set.insert_range(99..u64::MAX);
        set.insert_bytes(u64::MAX, u64::MAX);
        set.or_word(u64::MAX, !0);
        assert!(!set.insert(u64::MAX) && !set.contains(u64::MAX) && !set.remove(u64::MAX));
        assert_eq!(set.runs().next(), Some(99..100));
        assert_eq!(set.runs().count(), 1);
    }
}
