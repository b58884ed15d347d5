//! Pages of a stopped guest, looked at from outside.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::maps::Maps;
use crate::guest::Running;

const PAGE: usize = 4096;

/// The blocks that a disk holds.
pub struct Blocks(HashSet<Vec<u8>>);

impl Blocks {
    /// Reads a disk's first half: reads go there, and nothing is written there.
    pub fn read(disk: &Path) -> Result<Self> {
        let bytes = fs::read(disk).with_context(|| format!("cannot read {}", disk.display()))?;
        let half = &bytes[..bytes.len() / 2];
        Ok(Self(half.chunks_exact(PAGE).map(<[u8]>::to_vec).collect()))
    }
}

/// What a comparison found, in pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judgement {
    /// Pages looked at.
    pub compared: u64,
    /// Pages whose bytes differ: the device wrote them.
    pub changed: u64,
    /// Pages that the guest harvested.
    pub harvested: u64,
    /// Changed and not harvested.
    pub lost: u64,
    /// Harvested and not changed.
    pub falsely_dirty: u64,
    /// Changed into something that is no block of the disk.
    pub foreign: u64,
}

/// The pages of a round as they were at one moment.
pub struct Pages(Vec<Vec<u8>>);

impl Pages {
    /// Reads the pages that a guest has named, through the maps of its device.
    pub fn look(vm: &Running, maps: &Maps, start: &Value) -> Result<Self> {
        let number = |name: &str| {
            start[name]
                .as_u64()
                .with_context(|| format!("no {name} in {start}"))
        };
        let (iova, count) = (number("iova")?, number("pages")?);
        let ram = vm.ram()?;
        let ino = ram.metadata()?.ino();
        let mut seen = HashSet::new();
        let pages = (0..count).map(|page| {
            let offset = maps.offset(iova + page * PAGE as u64, ino)?;
            ensure!(
                seen.insert(offset),
                "two pages of the guest lie at {offset:#x}"
            );
            let mut bytes = vec![0; PAGE];
            ram.read_exact_at(&mut bytes, offset)
                .with_context(|| format!("cannot read the guest's memory at {offset:#x}"))?;
            Ok(bytes)
        });
        Ok(Self(pages.collect::<Result<_>>()?))
    }

    /// Holds what changed since against what was harvested: two hexadecimal digits for each eight
    /// pages, the first page in the lowest bit.
    pub fn judge(&self, after: &Self, harvest: &str, disk: &Blocks) -> Result<Judgement> {
        let harvest = bits(harvest).context("the harvest is not a bitmap")?;
        let count = self.0.len();
        ensure!(
            after.0.len() == count && harvest.len() == count.next_multiple_of(8),
            "{count} pages, then {}, and {} were harvested from",
            after.0.len(),
            harvest.len()
        );
        let prepared = self.0.iter().collect::<HashSet<_>>();
        ensure!(
            prepared.len() == count && self.0.iter().all(|page| !disk.0.contains(page)),
            "the guest did not prepare its pages: some are alike, or hold a block of the disk"
        );
        let mut judgement = Judgement {
            compared: count as u64,
            ..Judgement::default()
        };
        for ((before, after), harvested) in self.0.iter().zip(&after.0).zip(harvest) {
            let changed = before != after;
            judgement.changed += u64::from(changed);
            judgement.harvested += u64::from(harvested);
            judgement.lost += u64::from(changed && !harvested);
            judgement.falsely_dirty += u64::from(harvested && !changed);
            judgement.foreign += u64::from(changed && !disk.0.contains(after));
        }
        Ok(judgement)
    }
}

fn bits(hex: &str) -> Option<Vec<bool>> {
    let digits = hex.as_bytes().chunks(2);
    let bytes = digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
    let bytes = bytes.collect::<Option<Vec<u8>>>()?;
    let bits = bytes
        .iter()
        .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 != 0));
    Some(bits.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: u8) -> Vec<u8> {
        vec![fill; PAGE]
    }

    #[test]
    fn lost_and_falsely_dirty_pages_are_told_apart() {
        let disk = Blocks([page(100), page(101)].into());
        let before = Pages((0..8).map(page).collect());
        let mut after = Pages((0..8).map(page).collect());
        after.0[1] = page(100);
        after.0[2] = page(101);
        after.0[7] = page(9);
        let judgement = before.judge(&after, "2a", &disk).expect("all is well");
        assert_eq!((judgement.compared, judgement.changed), (8, 3));
        assert_eq!((judgement.harvested, judgement.lost), (3, 2));
        assert_eq!((judgement.falsely_dirty, judgement.foreign), (2, 1));
    }

    #[test]
    fn pages_that_were_not_prepared_prove_nothing() {
        let disk = Blocks([page(100)].into());
        let alike = Pages(vec![page(1); 8]);
        assert!(alike.judge(&alike, "00", &disk).is_err());
        let mut holding = Pages((0..8).map(page).collect());
        assert!(holding.judge(&holding, "00", &disk).is_ok());
        assert!(holding.judge(&holding, "0000", &disk).is_err());
        holding.0[3] = page(100);
        assert!(holding.judge(&holding, "00", &disk).is_err());
    }
}
