//! What the machine permits: the denominators of the ratios.

use std::hint::black_box;

/// Reads all of `words` with the widest vectors this CPU has; the compiler sees plain loads, since
/// nobody else has this memory. The fastest read there is, and no way to read a shared bitmap.
pub fn simd_read(words: &[u64]) -> u64 {
    #[inline(always)]
    fn or_all(words: &[u64]) -> u64 {
        let mut lanes = [0u64; 32];
        let mut chunks = words.chunks_exact(32);
        for chunk in &mut chunks {
            for (lane, word) in lanes.iter_mut().zip(chunk) {
                *lane |= word;
            }
        }
        lanes
            .iter()
            .chain(chunks.remainder())
            .fold(0, |all, word| all | word)
    }
    black_box(pulp::Arch::new().dispatch(|| or_all(black_box(words))))
}

/// Pushes everything else out of the caches by reading `ballast` twice.
///
/// `ballast` is to be several times the last level cache.
pub fn evict(ballast: &[u64]) {
    black_box(simd_read(ballast) | simd_read(ballast));
}

/// Name of the vector extension that [`simd_read`] runs with.
pub fn simd_name() -> String {
    format!("{:?}", pulp::Arch::new())
        .split('(')
        .next()
        .unwrap_or_default()
        .to_owned()
}
