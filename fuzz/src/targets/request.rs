//! Block requests and stray buffers, as hostile drivers describe them.

use crate::input::Input;
use crate::rig::{PAGE, READ_ONLY, Rings, SECTORS, Store, UNMAPPED, WRITABLE};

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

/// Makes a chain of these pieces, as many as the ring has entries, the head in the table's entry
/// `first`, and makes it available as the `available`th; the next one's number.
pub fn offer(
    memory: &mut impl Store,
    rings: Rings,
    first: u16,
    available: u16,
    pieces: &[Piece],
) -> u16 {
    let most = pieces.len().min(usize::from(rings.size));
    for (index, &(at, len, flags)) in (0_u16..).zip(&pieces[..most]) {
        let last = usize::from(index) + 1 == most;
        let here = (first + index) % rings.size;
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend((if last { flags } else { flags | NEXT }).to_le_bytes());
        bytes.extend(((here + 1) % rings.size).to_le_bytes());
        memory.put(rings.desc + 16 * u64::from(here), &bytes);
    }
    let slot = rings.driver + 4 + 2 * u64::from(available % rings.size);
    memory.put(slot, &first.to_le_bytes());
    let next = available.wrapping_add(1);
    memory.put(rings.driver + 2, &next.to_le_bytes());
    next
}

/// A plain read of a sector as the first request of a ring of zeroes; where its status will be, which
/// is 0xff until then.
pub fn plain(memory: &mut impl Store, rings: Rings) -> u64 {
    let (header, data, answer) = (32 * PAGE, 33 * PAGE, 34 * PAGE);
    memory.put(header, &[0; 16]);
    memory.put(answer, &[0xff]);
    let pieces = [(header, 16, 0), (data, 512, WRITE), (answer, 1, WRITE)];
    offer(memory, rings, 0, 0, &pieces);
    answer
}
