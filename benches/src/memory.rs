//! Memory files to benchmark on.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::io;

/// A memory file of `len` bytes, all of it present.
///
/// # Errors
///
/// What the system says.
pub fn memory_file(len: u64) -> io::Result<File> {
    use std::os::unix::fs::FileExt;
    let fd = memfd_create("bench", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, len)?;
    let file = File::from(fd);
    let zeroes = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let now = zeroes
            .len()
            .min(usize::try_from(len - at).unwrap_or(usize::MAX));
        file.write_all_at(&zeroes[..now], at)?;
        at += u64::try_from(now).unwrap_or(u64::MAX);
    }
    Ok(file)
}

/// Numbers that look random and are the same every time (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Iterator for Random {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    }
}
