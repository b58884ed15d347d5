//! The frontend's memory: a table of regions, each known by two addresses.
//!
//! Rings are given as addresses in the frontend's own process, buffers as guest physical addresses.
//! The maps of the one door are keyed by the latter.

use super::Refused;
use crate::dma::{Dma, Map};
use std::fs::File;
use std::ops::Range;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::Permissions;

/// Most regions: as many as a KVM guest has memory slots on x86, less those that it keeps.
pub(super) const REGIONS_MAX: usize = 509;

/// A region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    /// Guest physical address.
    gpa: u64,
    /// Bytes.
    size: u64,
    /// Address in the frontend.
    user: u64,
}

impl Region {
    fn new(region: &VhostUserMemoryRegion) -> Self {
        Self {
            gpa: region.guest_phys_addr,
            size: region.memory_size,
            user: region.user_addr,
        }
    }

    fn gpas(&self) -> Range<u64> {
        self.gpa..self.gpa.saturating_add(self.size)
    }

    fn users(&self) -> Range<u64> {
        self.user..self.user.saturating_add(self.size)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: Range<u64>, b: Range<u64>| a.start < b.end && b.start < a.end;
        meet(self.gpas(), other.gpas()) || meet(self.users(), other.users())
    }
}

/// The regions in force.
#[derive(Debug, Default)]
pub(super) struct Regions(Vec<Region>);

impl Regions {
    /// Puts a whole table in force, in one step; the table stays as it was if it is refused.
    pub(super) fn replace(
        &mut self,
        dma: &Dma,
        table: &[VhostUserMemoryRegion],
        files: &[File],
    ) -> Result<(), Refused> {
        let mut regions = Self::default();
        for region in table {
            regions.insert(Region::new(region))?;
        }
        let maps: Vec<_> = table.iter().zip(files).map(map).collect();
        dma.replace_maps(&maps).map_err(bad)?;
        *self = regions;
        Ok(())
    }

    /// Adds a region.
    pub(super) fn add(
        &mut self,
        dma: &Dma,
        region: &VhostUserMemoryRegion,
        file: &File,
    ) -> Result<(), Refused> {
        self.insert(Region::new(region))?;
        let Map {
            iova,
            size,
            offset,
            perm,
            ..
        } = map((region, file));
        dma.map(iova, size, file, offset, perm).map_err(|error| {
            self.0.pop();
            bad(error)
        })
    }

    /// Removes a region; returns when nothing goes through it.
    pub(super) fn remove(
        &mut self,
        dma: &Dma,
        region: &VhostUserMemoryRegion,
    ) -> Result<(), Refused> {
        let gone = Region::new(region);
        let at = self.0.iter().position(|&region| region == gone);
        let at = at.ok_or_else(|| {
            Refused::Memory(format!("{gone:x?} is to be removed, and is no region"))
        })?;
        self.0.remove(at);
        dma.unmap(gone.gpa, gone.size);
        Ok(())
    }

    /// The guest physical address of an address in the frontend.
    pub(super) fn gpa(&self, user: u64) -> Option<u64> {
        let region = self
            .0
            .iter()
            .find(|region| region.users().contains(&user))?;
        Some(region.gpa + (user - region.user))
    }

    fn insert(&mut self, region: Region) -> Result<(), Refused> {
        if self.0.len() == REGIONS_MAX {
            let what = format!("more than {REGIONS_MAX} regions");
            return Err(Refused::Memory(what));
        }
        if let Some(other) = self.0.iter().find(|other| other.overlaps(&region)) {
            let what = format!("{region:x?} overlaps {other:x?}");
            return Err(Refused::Memory(what));
        }
        self.0.push(region);
        Ok(())
    }
}

fn map<'a>((region, file): (&VhostUserMemoryRegion, &'a File)) -> Map<'a> {
    Map {
        iova: region.guest_phys_addr,
        size: region.memory_size,
        file,
        offset: region.mmap_offset,
        perm: Permissions::ReadWrite,
    }
}

fn bad(error: crate::dma::DmaError) -> Refused {
    Refused::Memory(error.to_string())
}
