//! Ranges of guest memory that are tracked for a device and a PASID.

use crate::names::Extent;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Width of a PASID. PCI Express.
pub const PASID_BITS: u32 = spec::tracker::PASID_MASK.count_ones();

/// One range of I/O virtual addresses, never empty, that a tracker of a device watches, for one PASID or
/// for requests without one.
///
/// Sorted by device, PASID (none first) and address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrackedRange {
    device: Arc<str>,
    pasid: Option<u32>,
    start: u64,
    end: u64,
}

/// Why this is no range to track.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRange {
    /// The end is not behind the start.
    #[error("{start:#x}..{end:#x} is empty; expected an end behind the start")]
    Empty {
        /// First address.
        start: u64,
        /// Address behind the last one.
        end: u64,
    },
    /// The PASID is wider than the field that carries it.
    #[error("PASID {0:#x} is wider than {PASID_BITS} bits")]
    Pasid(u32),
}

impl TrackedRange {
    /// The addresses of `range`, in octets, of a device and a PASID.
    pub fn new(
        device: &Arc<str>,
        pasid: Option<u32>,
        range: &Range<u64>,
    ) -> Result<Self, MalformedRange> {
        let &Range { start, end } = range;
        if let Some(pasid) = pasid.filter(|pasid| pasid >> PASID_BITS != 0) {
            return Err(MalformedRange::Pasid(pasid));
        }
        if start >= end {
            return Err(MalformedRange::Empty { start, end });
        }
        Ok(Self {
            device: Arc::clone(device),
            pasid,
            start,
            end,
        })
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The PASID; none stands for requests without one.
    pub fn pasid(&self) -> Option<u32> {
        self.pasid
    }

    /// The addresses.
    pub fn addresses(&self) -> Range<u64> {
        self.start..self.end
    }

    fn space(&self) -> (&str, Option<u32>) {
        (&self.device, self.pasid)
    }
}

impl Extent for TrackedRange {
    fn reaches(&self, later: &Self) -> bool {
        self.end > later.start && self.space() == later.space()
    }

    fn outlasts(&self, earlier: &Self) -> bool {
        (self.space(), self.end) > (earlier.space(), earlier.end)
    }
}

impl fmt::Display for TrackedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.device)?;
        if let Some(pasid) = self.pasid {
            write!(f, "PASID {pasid:#x} ")?;
        }
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}
