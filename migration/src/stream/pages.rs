//! The head of a PAGE_DATA record: which pages it brings.

use super::framing::{Bad, widen};
use driver::dirty::PAGE_SIZE;

/// The most pages of a record.
pub const BATCH_PAGES: usize = 1024;

/// Bytes between a record's head and its entries: the count and a reserved field.
pub(super) const COUNT_BYTES: usize = 8;

const TYPE_SHIFT: u32 = 60;
const PFN_BITS: u32 = 52;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageType {
    /// 0: memory of the guest.
    Normal,
    /// 1 to 4: a page table of that level. Paravirtual guests only.
    Table(u8),
    /// 9 to 12: a page table of that level (less 8) that the hypervisor has pinned.
    PinnedTable(u8),
    /// 13: the hardware under it is broken. Without data.
    Broken,
    /// 14: allocated and never written. Without data.
    Allocated,
    /// 15: not there. Without data.
    Absent,
}

impl PageType {
    fn value(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::Table(level) => level,
            Self::PinnedTable(level) => level + 8,
            Self::Broken => 13,
            Self::Allocated => 14,
            Self::Absent => 15,
        }
    }

    fn from_value(value: u64) -> Option<Self> {
        let value = u8::try_from(value).ok()?;
        Some(match value {
            0 => Self::Normal,
            1..=4 => Self::Table(value),
            9..=12 => Self::PinnedTable(value - 8),
            13 => Self::Broken,
            14 => Self::Allocated,
            15 => Self::Absent,
            _ => return None,
        })
    }

    /// Whether 4096 bytes of data come with it.
    pub fn has_data(self) -> bool {
        !matches!(self, Self::Broken | Self::Allocated | Self::Absent)
    }
}

/// A page of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number: its address divided by 4096.
    pub pfn: u64,
    /// What it is.
    pub kind: PageType,
}

impl Entry {
    /// A page of the guest's memory.
    pub fn normal(pfn: u64) -> Self {
        Self {
            pfn,
            kind: PageType::Normal,
        }
    }

    /// As bytes. A number of more than 52 bits loses the others; no memory has such.
    pub fn to_bytes(self) -> [u8; 8] {
        let pfn = self.pfn & ((1 << PFN_BITS) - 1);
        (pfn | u64::from(self.kind.value()) << TYPE_SHIFT).to_le_bytes()
    }

    /// From its bytes; `at` is where they stand in the body.
    fn parse(at: usize, bytes: [u8; 8]) -> Result<Self, Bad> {
        let word = u64::from_le_bytes(bytes);
        let reserved = word >> PFN_BITS & 0xff;
        if reserved != 0 {
            let got = format!("{word:#018x}");
            return Err(Bad::new(at, "0 in bits 52 to 59 of a page's entry", got));
        }
        let kind = word >> TYPE_SHIFT;
        let Some(kind) = PageType::from_value(kind) else {
            return Err(Bad::new(
                at,
                "page type 0 to 4 or 9 to 15",
                kind.to_string(),
            ));
        };
        Ok(Self {
            pfn: word & ((1 << PFN_BITS) - 1),
            kind,
        })
    }
}

/// Checks the count of a record with a body of `length` bytes, before any of its entries is read.
pub(super) fn parse_count(bytes: [u8; COUNT_BYTES], length: u32) -> Result<usize, Bad> {
    let [a, b, c, d, reserved @ ..] = bytes;
    let count = u32::from_le_bytes([a, b, c, d]);
    let most = usize::try_from(count)
        .ok()
        .filter(|count| (1..=BATCH_PAGES).contains(count));
    let Some(pages) = most else {
        let expected = format!("a count of 1 to {BATCH_PAGES} pages");
        return Err(Bad::new(0, expected, count.to_string()));
    };
    if reserved != [0; 4] {
        return Err(Bad::new(
            4,
            "0 in a reserved field",
            format!("{reserved:02x?}"),
        ));
    }
    let least = COUNT_BYTES + 8 * pages;
    if u64::from(length) < widen(least) {
        let expected = format!("a body of at least {least} bytes for {pages} pages");
        return Err(Bad::new(0, expected, format!("{length} bytes")));
    }
    Ok(pages)
}

/// Reads the entries of a record with a body of `length` bytes, and gives the bytes of their data.
pub(super) fn parse_entries(bytes: &[u8], length: u32) -> Result<(Vec<Entry>, u64), Bad> {
    let mut entries = Vec::with_capacity(bytes.len() / 8);
    for (number, entry) in bytes.as_chunks::<8>().0.iter().enumerate() {
        entries.push(Entry::parse(COUNT_BYTES + 8 * number, *entry)?);
    }
    let with_data = entries.iter().filter(|entry| entry.kind.has_data());
    let data = widen(with_data.count()).saturating_mul(PAGE_SIZE);
    let body = widen(COUNT_BYTES + bytes.len()) + data;
    if body != u64::from(length) {
        let expected = format!("a body of {body} bytes, which the entries add up to");
        return Err(Bad::new(0, expected, format!("{length} bytes")));
    }
    Ok((entries, data))
}
