//! Block requests and stray buffers, as hostile drivers describe them.

use crate::input::Input;
use crate::rig::{PAGE, READ_ONLY, SECTORS, Store, UNMAPPED, WRITABLE};

/// Descriptor flags.
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// The buffer is a table.
pub const INDIRECT: u16 = 4;

/// Where headers, status bytes and data of well-formed requests are.
const HEADERS: u64 = 16 * PAGE;
const STATUSES: u64 = 17 * PAGE;
const DATA: u64 = 20 * PAGE;
const DATA_PAGES: u64 = 16;
/// Where indirect tables are.
pub const TABLES: u64 = 12 * PAGE;

/// A piece of a chain: address, bytes, flags without NEXT.
pub type Piece = (u64, u32, u16);

/// An address that may be anywhere.
pub fn address(input: &mut Input<'_>) -> u64 {
    let offset = u64::from(input.u16()) % PAGE;
    match input.below(10) {
        0..=3 => DATA + PAGE * (u64::from(input.u8()) % DATA_PAGES) + offset,
        // The rings themselves.
        4 => offset + PAGE * (u64::from(input.u8()) % 2),
        5 => READ_ONLY.start * PAGE + offset,
        6 => UNMAPPED.start * PAGE + offset,
        // Across the end of what is granted.
        7 => WRITABLE.end * PAGE - 1 - offset % 16,
        8 => u64::MAX - offset,
        _ => input.u64(),
    }
}

/// A length that may be anything.
pub fn length(input: &mut Input<'_>) -> u32 {
    match input.below(8) {
        0 => 0,
        1 => 1,
        2 => 16,
        3 => 512,
        4 => 4096,
        5 => u32::from(input.u16()),
        6 => u32::MAX - u32::from(input.u8()),
        _ => input.u32(),
    }
}

/// A block request that is almost or entirely sound; its header is in memory when this returns.
/// `slot` keeps requests apart.
pub fn request(input: &mut Input<'_>, memory: &mut impl Store, slot: u16) -> Vec<Piece> {
    let slot = u64::from(slot % 32);
    let kind = input.pick(&[0_u32, 0, 1, 1, 4, 8, 11, 13, 5, u32::MAX]);
    let sector = match input.below(8) {
        0..=5 => u64::from(input.u8()) % 8,
        6 => SECTORS - 1,
        _ => input.u64(),
    };
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    memory.put(HEADERS + 16 * slot, &header);
    let mut pieces = vec![(HEADERS + 16 * slot, 16, 0)];
    let write = if matches!(kind, 0 | 8) { WRITE } else { 0 };
    for _ in 0..input.below(6) {
        let page = u64::from(input.u8());
        let piece = match input.below(8) {
            7 => (address(input), length(input), input.u16() & WRITE),
            6 => (DATA + PAGE * (page % DATA_PAGES) + 0xe00, 1024, write),
            5 if matches!(kind, 11 | 13) => {
                let at = DATA + PAGE * (page % DATA_PAGES);
                let mut range = u64::from(input.u8()).to_le_bytes().to_vec();
                range.extend(u32::from(input.u8()).to_le_bytes());
                range.extend(u32::from(input.u8() & 1).to_le_bytes());
                memory.put(at, &range);
                (at, 16, 0)
            }
            _ => (DATA + PAGE * (page % DATA_PAGES), 512, write),
        };
        pieces.push(piece);
    }
    if !input.once_in(16) {
        memory.put(STATUSES + slot, &[0xff]);
        pieces.push((STATUSES + slot, 1, WRITE));
    }
    pieces
}

/// Pieces of any kind.
pub fn stray(input: &mut Input<'_>) -> Vec<Piece> {
    (0..input.below(5) + 1)
        .map(|_| (address(input), length(input), input.u16() & WRITE))
        .collect()
}
