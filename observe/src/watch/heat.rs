//! Where pages are dirty, coarse enough to be looked at.

use driver::dirty::DirtySet;
use std::ops::Range;

/// Parts that memory is divided into, at most.
pub const CELLS: u64 = 64;

/// Pages of each of so many pages' cells but the last, which may have fewer: at least 1.
pub fn cell_pages(pages: u64) -> u64 {
    pages.div_ceil(CELLS).max(1)
}

/// How many pages of `range` are in `set`, cell by cell.
pub fn cells(set: &DirtySet, range: Range<u64>) -> Vec<u64> {
    let pages = range.end.saturating_sub(range.start);
    let each = cell_pages(pages);
    let count = usize::try_from(pages.div_ceil(each)).unwrap_or(0);
    let mut cells = vec![0; count];
    for page in set.iter().filter(|page| range.contains(page)) {
        let cell = usize::try_from((page - range.start) / each).ok();
        if let Some(cell) = cell.and_then(|cell| cells.get_mut(cell)) {
            *cell += 1;
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_in_one_cell() {
        let mut set = DirtySet::new(1000);
        set.insert_range(100..500);
        set.insert(999);
        let all = cells(&set, 0..1000);
        assert_eq!(all.len(), 63);
        assert_eq!(all.iter().sum::<u64>(), 401);
        assert_eq!((all[6], all[7], all[62]), (12, 16, 1));
        // Pages outside the range are nobody's.
        assert_eq!(cells(&set, 100..110), [1; 10]);
        assert_eq!(cells(&set, 0..0), [0; 0]);
        assert_eq!(cells(&set, 0..64), [0; 64]);
    }
}
