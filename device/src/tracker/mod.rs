//! What is tracked, and where the marks go.

mod bitmap;
mod log;
pub mod protocol;
pub mod records;
mod window;

pub use bitmap::{Bitmap, MarkAt, Written};
pub use log::{DirtyLog, LogError};
pub(crate) use window::Window;

/// How a mark is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Marking {
    /// The page's bit, by an atomic OR.
    #[default]
    Bit,
    /// The whole byte that holds the bit, by a plain store of 0xFF (draft 2023 permits it).
    Byte,
    /// Nothing: the negative control of every test of tracking.
    Off,
}

/// One configuration of the tracker, as its registers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackerConfig {
    /// Tracking is on, for the PASID of this function's DMA.
    pub enabled: bool,
    /// Page size exponent above 4 KiB, at most [`spec::tracker::GRA_POWER_MAX`].
    pub gra_power: u8,
    /// IOVA of the bitmap, a multiple of [`spec::tracker::BITMAP_ALIGN`]; 0 is no bitmap.
    pub bitmap_addr: u64,
    /// Bytes of the bitmap; 0 is no bitmap.
    pub bitmap_length: u64,
    /// How marks are set.
    pub marking: Marking,
}

impl TrackerConfig {
    /// Whether any mark is to be set at all.
    pub(crate) fn is_active(&self) -> bool {
        self.enabled
            && self.marking != Marking::Off
            && self.gra_power <= spec::tracker::GRA_POWER_MAX
            && self.bitmap_addr != 0
            && self.bitmap_addr.is_multiple_of(spec::tracker::BITMAP_ALIGN)
            && self.bitmap_length != 0
    }
}

/// What the tracker could not do, since it was last enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackerStats {
    /// Pages that bursts wrote while tracking was on; a page that is written again counts again.
    pub pages: u64,
    /// Marks dropped because their bit lies beyond `bitmap_length`. Draft 2023 forbids setting them
    /// and gives no other rule; counting is a project rule.
    pub beyond_length: u64,
    /// Marks kept in the shadow because their part of the bitmap was not mapped. Project rule:
    /// they are delivered when it is mapped again.
    pub shadowed: u64,
    /// Words of the shadow that still wait for delivery.
    pub undelivered: u64,
}
