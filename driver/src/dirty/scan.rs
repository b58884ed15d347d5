//! Finding words that are not zero, at the speed of memory.
//!
//! The compiler never vectorises atomic loads, which costs a scan half its speed or more, and vector
//! intrinsics on memory that others write are a data race. So the loop is assembly, and what it
//! *means* is stated here: for every 8 bytes of the range one relaxed, aligned 8-byte load. (Every
//! 8-byte lane of a vector load that stays within a cache line is read at once on x86-64.) It only
//! chooses words; taking them is always a swap.

#![expect(unsafe_code, reason = "vector loads of memory that others write")]

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Bytes that one round of the vector loops looks at.
#[cfg(target_arch = "x86_64")]
const BLOCK: usize = 256;
/// Where blocks start, so that no vector crosses a cache line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// How the scan reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanner {
    /// One relaxed atomic load for each word (or byte).
    Scalar,
    /// 32-byte loads.
    Avx2,
    /// 64-byte loads.
    Avx512,
}

impl Scanner {
    /// The fastest one that this processor has.
    pub fn best() -> Self {
        [Self::Avx512, Self::Avx2]
            .into_iter()
            .find(|scanner| scanner.is_available())
            .unwrap_or(Self::Scalar)
    }

    /// True if this processor has it; one that it has not scans like [`Scanner::Scalar`].
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => std::arch::is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => std::arch::is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The first word from `from` on that is not zero. A word that becomes so during the scan may
    /// or may not be seen.
    pub fn words(self, words: &[AtomicU64], from: usize) -> Option<usize> {
        self.find(words, from, |word| word.load(Ordering::Relaxed) != 0)
    }

    /// The first byte from `from` on that is not zero, under the same conditions.
    pub fn bytes(self, bytes: &[AtomicU8], from: usize) -> Option<usize> {
        self.find(bytes, from, |byte| byte.load(Ordering::Relaxed) != 0)
    }

    /// Items before the first line boundary and behind the last whole block are looked at singly,
    /// as are those of the block that the vectors choose.
    fn find<T>(self, items: &[T], from: usize, hit: impl Fn(&T) -> bool) -> Option<usize> {
        let rest = items.get(from..)?;
        #[cfg(target_arch = "x86_64")]
        if self.is_available() && self != Self::Scalar {
            let size = size_of::<T>();
            let head = rest.as_ptr().align_offset(LINE).min(rest.len());
            if let Some(found) = rest.iter().take(head).position(&hit) {
                return Some(from + found);
            }
            let mut at = head;
            loop {
                let aligned = rest.get(at..).unwrap_or_default();
                at += self.blocks(aligned) * (BLOCK / size);
                // Either a block with a hit, or the end, shorter than a block.
                let block = rest.get(at..).unwrap_or_default();
                let near = block.iter().take(BLOCK / size);
                if let Some(found) = near.clone().position(&hit) {
                    return Some(from + at + found);
                }
                // Somebody else took what the vectors saw: go on behind it.
                at += near.len();
                if at >= rest.len() {
                    return None;
                }
            }
        }
        rest.iter().position(hit).map(|found| from + found)
    }

    /// How many whole blocks at the start of `items` are zero.
    #[cfg(target_arch = "x86_64")]
    fn blocks<T>(self, items: &[T]) -> usize {
        let blocks = size_of_val(items) / BLOCK;
        let start = items.as_ptr().cast::<u8>();
        if blocks == 0 {
            return 0;
        }
        match self {
            Self::Scalar => 0,
            // SAFETY: `find` comes here only if the processor has AVX2; `blocks` blocks, at least
            // one, lie within `items`.
            Self::Avx2 => unsafe { x86::avx2(start, blocks) },
            // SAFETY: the same with AVX-512F.
            Self::Avx512 => unsafe { x86::avx512(start, blocks) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::BLOCK;
    use std::arch::asm;

    /// How many of `blocks` blocks at `start` are zero before the first that is not.
    ///
    /// # Safety
    /// The processor has AVX2, `blocks` is not 0, and that many blocks can be read at `start`.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(start: *const u8, blocks: usize) -> usize {
        let end = start.wrapping_add(blocks * BLOCK);
        let mut at = start;
        // That others write the same memory is no data race of this program's: assembly has the
        // meaning of the machine's loads, which the module states as relaxed atomics.
        //
        // SAFETY: reads from `at` up to `end` only, which the caller vouches for; writes nothing.
        // VZEROUPPER changes every vector register, so all of them are given up.
        unsafe {
            asm!(
                "2:",
                "vmovdqa {a}, ymmword ptr [{at}]",
                "vmovdqa {b}, ymmword ptr [{at} + 32]",
                "vpor {a}, {a}, ymmword ptr [{at} + 64]",
                "vpor {b}, {b}, ymmword ptr [{at} + 96]",
                "vpor {a}, {a}, ymmword ptr [{at} + 128]",
                "vpor {b}, {b}, ymmword ptr [{at} + 160]",
                "vpor {a}, {a}, ymmword ptr [{at} + 192]",
                "vpor {b}, {b}, ymmword ptr [{at} + 224]",
                "vpor {a}, {a}, {b}",
                "vptest {a}, {a}",
                "jnz 3f",
                "add {at}, 256",
                "cmp {at}, {end}",
                "jb 2b",
                "3:",
                "vzeroupper",
                a = out(ymm_reg) _,
                b = out(ymm_reg) _,
                at = inout(reg) at,
                end = in(reg) end,
                out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
                out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(readonly, nostack),
            );
        }
        at.addr().wrapping_sub(start.addr()) / BLOCK
    }

    /// [`avx2`] with vectors of 64 bytes.
    ///
    /// # Safety
    /// The processor has AVX-512F, `blocks` is not 0, and that many blocks can be read at `start`.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(start: *const u8, blocks: usize) -> usize {
        let end = start.wrapping_add(blocks * BLOCK);
        let mut at = start;
        // SAFETY: as in `avx2`. Registers 16 and up need no VZEROUPPER.
        unsafe {
            asm!(
                "2:",
                "vmovdqa64 zmm16, zmmword ptr [{at}]",
                "vmovdqa64 zmm17, zmmword ptr [{at} + 64]",
                "vporq zmm16, zmm16, zmmword ptr [{at} + 128]",
                "vporq zmm17, zmm17, zmmword ptr [{at} + 192]",
                "vporq zmm16, zmm16, zmm17",
                "vptestmq k1, zmm16, zmm16",
                "kortestw k1, k1",
                "jnz 3f",
                "add {at}, 256",
                "cmp {at}, {end}",
                "jb 2b",
                "3:",
                at = inout(reg) at,
                end = in(reg) end,
                out("zmm16") _, out("zmm17") _, out("k1") _,
                options(readonly, nostack),
            );
        }
        at.addr().wrapping_sub(start.addr()) / BLOCK
    }
}
