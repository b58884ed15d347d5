//! Which bytes of a redb database its checksums cover, read from the file by redb's description of
//! its format (`docs/design.md` of redb 4.5) and not by its code.
//!
//! A database is trees of pages that are never changed in place. One of two commit slots in the
//! header is current; it holds its own checksum and those of two root pages, and so on downwards. A
//! page's checksum ends where its last entry does.

use std::ops::Range;

const PAGE: usize = 4096;
/// Offsets in the header, and of the slots.
const GOD_BYTE: usize = 9;
const REGION_HEADER_PAGES: usize = 16;
const SLOTS: usize = 64;
const SLOT: usize = 128;
/// Page number, checksum, length of a tree.
const TREE: usize = 32;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;

/// What no flipped bit need be told of, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unused {
    /// The rest of the header: padding, and numbers that redb works out again from the file's
    /// length and the slots.
    Header,
    /// The slot of the commit before the current one.
    OlderCommit,
    /// Pages of no tree of the current commit: free, or of older commits.
    FreePage,
    /// What follows the last entry of a page.
    EndOfPage,
}

/// A database of one region.
pub struct RedbFile<'b> {
    bytes: &'b [u8],
    /// The slot of the current commit.
    current: Range<usize>,
    /// The pages of its trees, each with where its entries end.
    pages: Vec<(Range<usize>, usize)>,
}

/// The widths of a tree's keys and values, if all are alike: else their ends stand in each page.
type Widths = [Option<usize>; 2];

fn u16_at(bytes: &[u8], at: usize) -> usize {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).into()
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
        .try_into()
        .unwrap()
}

/// A page by its number: order, region, index within it, counted in pages of its order.
fn page(bytes: &[u8], number: &[u8]) -> Range<usize> {
    let number = u64::from_le_bytes(number[..8].try_into().unwrap());
    assert_eq!((number >> 20) & 0xf_ffff, 0, "a small file has one region");
    let length = PAGE << (number >> 59);
    let index = usize::try_from(number & 0xf_ffff).unwrap();
    let data = PAGE + PAGE * u32_at(bytes, REGION_HEADER_PAGES);
    let start = data + index * length;
    start..start + length
}

/// The places of a leaf's values.
fn values(leaf: &[u8], [key, value]: Widths) -> Vec<Range<usize>> {
    let count = u16_at(leaf, 2);
    let key_ends = 4;
    let value_ends = key_ends + if key.is_none() { 4 * count } else { 0 };
    let keys = value_ends + if value.is_none() { 4 * count } else { 0 };
    let mut from = match key {
        Some(width) => keys + count * width,
        None => u32_at(leaf, key_ends + 4 * (count - 1)),
    };
    let place = |at| {
        let start = from;
        from = match value {
            Some(width) => start + width,
            None => u32_at(leaf, value_ends + 4 * at),
        };
        start..from
    };
    (0..count).map(place).collect()
}

impl<'b> RedbFile<'b> {
    pub fn read(bytes: &'b [u8]) -> Self {
        let slot = SLOTS + SLOT * usize::from(bytes[GOD_BYTE] & 1);
        let mut this = Self {
            bytes,
            current: slot..slot + SLOT,
            pages: Vec::new(),
        };
        // The tables of the user and those of redb itself, its allocator's state among them.
        for (there, tree) in [(1, 8), (2, 8 + TREE)] {
            if bytes[slot + there] == 0 {
                continue;
            }
            for definition in this.tree(&bytes[slot + tree..], [None, None]) {
                // Kind, u64 count, whether there is a tree, the tree, widths of keys and of values.
                let (tree, widths) = (10, 10 + TREE);
                let width = |at: usize| (definition[at] != 0).then(|| u32_at(definition, at + 1));
                if definition[tree - 1] != 0 {
                    this.tree(&definition[tree..], [width(widths), width(widths + 5)]);
                }
            }
        }
        this
    }

    /// Takes in all pages from a root on; the values.
    fn tree(&mut self, root: &[u8], widths: Widths) -> Vec<&'b [u8]> {
        let place = page(self.bytes, root);
        let page = &self.bytes[place.clone()];
        let (end, below) = match page[0] {
            LEAF => {
                let values = values(page, widths);
                let end = values.last().expect("no page is empty").end;
                (end, values.into_iter().map(|at| &page[at]).collect())
            }
            BRANCH => {
                let keys = u16_at(page, 2);
                let numbers = 8 + 16 * (keys + 1);
                let ends = numbers + 8 * (keys + 1);
                let end = match widths[0] {
                    Some(width) => ends + keys * width,
                    None => u32_at(page, ends + 4 * (keys - 1)),
                };
                let children = page[numbers..ends].chunks(8);
                let below = children.flat_map(|child| self.tree(child, widths));
                (end, below.collect())
            }
            other => panic!("the page at {place:?} is neither leaf nor branch: {other}"),
        };
        self.pages.push((place, end));
        below
    }

    /// Why a byte is of no use; nothing, if a checksum covers it or there is none to cover it.
    pub fn unused(&self, at: usize) -> Option<Unused> {
        if at < PAGE {
            let slots = SLOTS..SLOTS + 2 * SLOT;
            return match at {
                _ if self.current.contains(&at) => None,
                _ if slots.contains(&at) => Some(Unused::OlderCommit),
                _ => Some(Unused::Header),
            };
        }
        match self.pages.iter().find(|(page, _)| page.contains(&at)) {
            None => Some(Unused::FreePage),
            Some((page, end)) if at - page.start >= *end => Some(Unused::EndOfPage),
            Some(_) => None,
        }
    }
}
