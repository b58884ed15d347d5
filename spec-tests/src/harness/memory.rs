//! Parts of the case's memory, and what a device changed in it.

use crate::constants::PAGE;
use std::collections::BTreeSet;

/// A part of a case's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Bytes from the start of the memory.
    pub offset: u64,
    /// The first byte's address as the device knows it.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
}

impl Span {
    /// `len` bytes of this, from `offset` on. The caller keeps it inside.
    #[must_use]
    pub fn part(self, offset: u64, len: u64) -> Self {
        Self {
            offset: self.offset + offset,
            iova: self.iova + offset,
            len,
        }
    }
}

/// Numbers of the 4 KiB pages, counted from address 0, whose bytes differ. `base` is the address
/// of the first byte and a multiple of a page.
pub fn changed_pages(before: &[u8], after: &[u8], base: u64) -> BTreeSet<u64> {
    let page = usize::try_from(PAGE).unwrap_or(usize::MAX);
    let pairs = before.chunks(page).zip(after.chunks(page));
    let first = base / PAGE;
    (first..)
        .zip(pairs)
        .filter(|(_, (a, b))| a != b)
        .map(|(number, _)| number)
        .collect()
}

/// Numbers of the 4 KiB pages that a span touches.
pub fn pages_of(span: Span) -> BTreeSet<u64> {
    if span.len == 0 {
        return BTreeSet::new();
    }
    (span.iova / PAGE..=(span.iova + span.len - 1) / PAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_one_page() {
        let before = vec![0; 3 * 4096];
        let mut after = before.clone();
        after[4096] = 1;
        assert_eq!(
            changed_pages(&before, &after, 0x10_0000),
            BTreeSet::from([0x101])
        );
        assert!(changed_pages(&before, &before, 0).is_empty());
    }

    #[test]
    fn a_span_over_a_border_is_two_pages() {
        let span = Span {
            offset: 0,
            iova: 0x1fff,
            len: 2,
        };
        assert_eq!(pages_of(span), BTreeSet::from([1, 2]));
        assert_eq!(pages_of(span.part(0, 1)), BTreeSet::from([1]));
        assert!(pages_of(span.part(0, 0)).is_empty());
    }
}
