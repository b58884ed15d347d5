//! Which addresses the device uses for memory: any that the IOMMU does not keep for itself.

use std::ops::Range;

/// Maps begin and end at multiples of this many bytes.
pub(super) const PAGE: u64 = 4096;
/// Below, firmware and the IOMMU have business on some machines. A low start keeps bitmaps of
/// trackers, which begin at address 0, short.
const FIRST: u64 = 16 << 20;
/// Every IOMMU that VFIO supports on x86 translates at least so much: three levels of tables.
const END: u64 = 1 << 39;

/// Addresses that are free. None comes back: memory stays mapped as long as its bus.
#[derive(Debug)]
pub(super) struct IovaSpace {
    free: Vec<Range<u64>>,
}

impl IovaSpace {
    /// All addresses from `first` on but `reserved`, which may overlap and come in any order.
    pub(super) fn from(first: u64, reserved: &[Range<u64>]) -> Self {
        let mut reserved = reserved.to_vec();
        reserved.sort_unstable_by_key(|range| range.start);
        let (mut free, mut next) = (Vec::new(), first.max(FIRST));
        for range in reserved {
            let end = (range.start / PAGE * PAGE).min(END);
            if next < end {
                free.push(next..end);
            }
            let after = range.end.checked_next_multiple_of(PAGE).unwrap_or(END);
            next = next.max(after);
        }
        if next < END {
            free.push(next..END);
        }
        Self { free }
    }

    /// Takes `size` bytes, a multiple of [`PAGE`], from the lowest range that has them.
    pub(super) fn take(&mut self, size: u64) -> Option<u64> {
        let fits = |range: &&mut Range<u64>| range.end - range.start >= size;
        let range = self.free.iter_mut().find(fits)?;
        let start = range.start;
        range.start += size;
        Some(start)
    }
}

/// Reads a group's `reserved_regions`: lines of first address, last address, kind.
pub(super) fn reserved(text: &str) -> Option<Vec<Range<u64>>> {
    let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let first = number(words.next()?)?;
            let last = number(words.next()?)?;
            Some(first..last.saturating_add(1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_addresses_are_never_given() {
        let text = "0x00000000fee00000 0x00000000feefffff msi\n\
            0x0000000002000000 0x0000000002000fff direct\n\
            0x000000fd00000000 0x000000ffffffffff reserved\n";
        let reserved = reserved(text).unwrap();
        assert_eq!(reserved.len(), 3);
        let mut space = IovaSpace::from(0, &reserved);
        assert_eq!(space.take(16 << 20), Some(16 << 20));
        assert_eq!(
            space.take(PAGE),
            Some(0x200_1000),
            "behind the direct range"
        );
        let all = IovaSpace::from(0, &reserved).free;
        for range in &all {
            assert!(range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE));
            assert!(
                reserved
                    .iter()
                    .all(|r| r.end <= range.start || range.end <= r.start)
            );
        }
        assert_eq!(all.last(), Some(&(0xfef0_0000..END)), "{all:x?}");
    }

    #[test]
    fn the_end_is_the_end() {
        let mut space = IovaSpace::from(0, &[]);
        assert_eq!(space.take(END), None);
        assert_eq!(space.take(END - FIRST), Some(FIRST));
        assert_eq!(space.take(PAGE), None);
        assert!(
            IovaSpace::from(0, std::slice::from_ref(&(0..u64::MAX)))
                .free
                .is_empty()
        );
        assert_eq!(reserved("0x0 msi"), None);
        assert_eq!(reserved(""), Some(Vec::new()));
    }
}
