//! What the driver sees in the BARs, and the capabilities that say where it is.

pub mod caps;
pub(crate) mod common;
pub(crate) mod isr;
pub mod msix;
pub(crate) mod notify;
pub mod registers;
pub(crate) mod tracker;

/// Copies the bytes of `value` (little-endian, at `from`) into the part of `data` (at `at`) that
/// overlaps them. Both positions are offsets in one BAR.
pub(crate) fn overlay(data: &mut [u8], at: usize, value: &[u8], from: usize) {
    for (i, byte) in value.iter().enumerate() {
        let slot = (from + i)
            .checked_sub(at)
            .and_then(|index| data.get_mut(index));
        if let Some(slot) = slot {
            *slot = *byte;
        }
    }
}

/// A little-endian number of at most 4 bytes, or `None` for a longer slice.
pub(crate) fn number(data: &[u8]) -> Option<u32> {
    let mut bytes = [0; 4];
    bytes.get_mut(..data.len())?.copy_from_slice(data);
    Some(u32::from_le_bytes(bytes))
}

/// The lower 16 bits.
pub(crate) fn low16(value: u32) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// Replaces one 32-bit half of a 64-bit field (PC-1).
pub(crate) fn set_half(field: &mut u64, high: bool, value: u32) {
    let shift = if high { 32 } else { 0 };
    *field = (*field & !(0xffff_ffff << shift)) | (u64::from(value) << shift);
}

/// One 32-bit half of a 64-bit field (PC-1).
pub(crate) fn half(field: u64, high: bool) -> u32 {
    let [a, b, c, d, e, f, g, h] = field.to_le_bytes();
    u32::from_le_bytes(if high { [e, f, g, h] } else { [a, b, c, d] })
}
