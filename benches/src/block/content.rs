//! What blocks hold: each a function of its number and of how often it was written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// The disk as it must be: how often each block was written.
#[derive(Clone, Debug)]
pub struct Expected {
    written: Vec<u32>,
}

impl Expected {
    /// A disk of `blocks` blocks, each in its first state.
    pub fn new(blocks: u32) -> Self {
        Self {
            written: vec![0; usize::try_from(blocks).unwrap_or(0)],
        }
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.written.len()).unwrap_or(u32::MAX)
    }

    /// Makes `into` what `block` is to hold after it has been written once more.
    pub fn write(&mut self, block: u32, into: &mut [u8; BLOCK]) {
        let written = &mut self.written[index(block)];
        *written += 1;
        fill(block, *written, into);
    }

    /// Whether `data` is what `block` holds.
    pub fn holds(&self, block: u32, data: &[u8; BLOCK]) -> bool {
        let mut expected = [0; BLOCK];
        fill(block, self.written[index(block)], &mut expected);
        *data == expected
    }

    /// Writes all blocks to a new file.
    ///
    /// # Errors
    /// As the system has it.
    pub fn create(&self, file: &File) -> io::Result<()> {
        let mut data = [0; BLOCK];
        for (block, &written) in (0..).zip(&self.written) {
            fill(block, written, &mut data);
            file.write_all_at(&data, offset(block))?;
        }
        file.sync_all()
    }

    /// How many blocks of the file differ.
    ///
    /// # Errors
    /// As the system has it.
    pub fn wrong(&self, file: &File) -> io::Result<usize> {
        let mut data = [0; BLOCK];
        let mut wrong = 0;
        for block in 0..self.blocks() {
            file.read_exact_at(&mut data, offset(block))?;
            wrong += usize::from(!self.holds(block, &data));
        }
        Ok(wrong)
    }
}

fn index(block: u32) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}

fn offset(block: u32) -> u64 {
    u64::from(block) * 4096
}

fn fill(block: u32, written: u32, into: &mut [u8; BLOCK]) {
    let seed = (u64::from(block) << 32 | u64::from(written)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (words, _) = into.as_chunks_mut::<8>();
    for (word, n) in words.iter_mut().zip(0_u64..) {
        *word = seed
            .wrapping_add(n.wrapping_mul(0x94d0_49bb_1331_11eb))
            .to_le_bytes();
    }
}
