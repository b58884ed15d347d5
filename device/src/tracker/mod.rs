//! What is tracked, and where the marks go.

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
    /// IOVA of the bitmap; 0 is no bitmap.
    pub bitmap_addr: u64,
    /// Bytes of the bitmap; 0 is no bitmap.
    pub bitmap_length: u64,
    /// How marks are set.
    pub marking: Marking,
}
