use super::*;
use crate::testing::memory;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

const SCANNERS: [Scanner; 3] = [Scanner::Scalar, Scanner::Avx2, Scanner::Avx512];

/// Mostly zero, as bitmaps are.
fn sparse(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let marks = prop::collection::vec((0..len.max(1), any::<u8>()), 0..12);
    (0..=len, marks).prop_map(|(len, marks)| {
        let mut bytes = vec![0; len];
        for (at, value) in marks {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes
    })
}

proptest! {
    #[test]
    fn scanners_agree_with_a_loop(bytes in sparse(3000), start in 0..64_usize, from in 0..400_usize) {
        let memory = memory(0x2000, 0);
        memory.write(start as u64, &bytes).unwrap();
        let window = memory.slice(start as u64, bytes.len() as u64).unwrap();
        let view = window.bytes();
        let expected = bytes.iter().skip(from).position(|&byte| byte != 0).map(|at| at + from);
        for scanner in SCANNERS {
            prop_assert_eq!(scanner.bytes(view, from), expected);
        }
        if start % 8 == 0 {
            let words = window.words().unwrap();
            let plain: Vec<u64> = bytes.chunks_exact(8)
                .map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
            let from = from / 8;
            let expected = plain.iter().skip(from).position(|&w| w != 0).map(|at| at + from);
            for scanner in SCANNERS {
                prop_assert_eq!(scanner.words(words, from), expected);
            }
        }
    }

    #[test]
    fn harvest_takes_what_a_loop_takes(bytes in sparse(3000), byte_wise in any::<bool>()) {
        let width = if byte_wise { HarvestWidth::Byte } else { HarvestWidth::Word };
        let bitmap = memory(0x1000, 0);
        bitmap.write(0, &bytes).unwrap();
        // What lies behind the length is none of ours.
        let length = bytes.len() as u64;
        bitmap.store_u8(length, 0xff, Ordering::Relaxed).unwrap();
        let mut expected = BTreeMap::new();
        for (at, byte) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            *expected.entry(at / 8).or_insert(0) |= u64::from(*byte) << (at % 8 * 8);
        }
        let mut taken = BTreeMap::new();
        harvest(&bitmap, length, width, |word, bits| *taken.entry(word).or_insert(0) |= bits).unwrap();
        prop_assert_eq!(taken, expected);
        prop_assert_eq!(Scanner::Scalar.bytes(bitmap.bytes(), 0), Some(bytes.len()));

        bitmap.write(0, &bytes).unwrap();
        let mut set = DirtySet::new(length * 8 - 3.min(length * 8));
        harvest_into(&bitmap, length, width, &mut set).unwrap();
        for page in 0..length * 8 + 8 {
            let byte = bytes.get(usize::try_from(page / 8).unwrap()).copied().unwrap_or(0);
            prop_assert_eq!(set.contains(page), byte >> (page % 8) & 1 == 1 && page < set.len());
        }
    }
}

#[test]
fn large_dense_bitmaps_are_taken_whole() {
    let length = PARALLEL_BYTES as u64 + 13;
    let bitmap = memory(length.next_multiple_of(4096), 0);
    for (index, word) in (0_u64..).zip(bitmap.words().unwrap()) {
        if index * 8 + 8 <= length && index % 3 == 0 {
            word.store((1 << (index % 64)).to_owned(), Ordering::Relaxed);
        }
    }
    bitmap
        .store_u8(length - 1, 0x80, Ordering::Relaxed)
        .unwrap();
    assert!(looks_dense(
        bitmap.slice(0, length).unwrap().words().unwrap()
    ));
    let mut set = DirtySet::new(length * 8);
    harvest_into(&bitmap, length, HarvestWidth::Word, &mut set).unwrap();
    let words = length / 8;
    assert_eq!(set.count(), words.div_ceil(3) + 1);
    assert!(set.contains(length * 8 - 1) && set.contains(3 * 64 + 3));
    assert_eq!(scan_nonzero(bitmap.words().unwrap(), 0), None);
}

#[test]
fn too_long_a_bitmap_is_refused_before_anything_is_taken() {
    let bitmap = memory(0x1000, 0);
    bitmap.store_u64(0, 1, Ordering::Relaxed).unwrap();
    let mut set = DirtySet::new(64);
    assert!(harvest_into(&bitmap, 0x1001, HarvestWidth::Word, &mut set).is_err());
    assert!(harvest_into(&bitmap, u64::MAX, HarvestWidth::Byte, &mut set).is_err());
    assert!(set.is_empty());
    assert_eq!(bitmap.load_u64(0, Ordering::Relaxed), Ok(1));
}

/// Markers set every bit of their share once; harvesters take meanwhile. Each bit must come out
/// exactly once: none lost, none twice.
fn race(width: HarvestWidth, mark: fn(&DmaMemory, u64)) {
    const BITS: u64 = 1 << 16;
    let bitmap = memory(BITS / 8, 0);
    let done = AtomicBool::new(false);
    let mut seen = vec![0_u32; usize::try_from(BITS).unwrap()];
    let mut sink = |word: usize, bits: u64| {
        for bit in (0..64).filter(|bit| bits >> bit & 1 == 1) {
            seen[word * 64 + bit] += 1;
        }
    };
    std::thread::scope(|scope| {
        let markers: Vec<_> = (0..2)
            .map(|which| {
                let bitmap = bitmap.clone();
                scope.spawn(move || {
                    // Odd stride: walks through all bits, the two markers share every word.
                    for step in (which..BITS).step_by(2) {
                        mark(&bitmap, step.wrapping_mul(40_503) % BITS);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            for marker in markers {
                marker.join().unwrap();
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            harvest(&bitmap, BITS / 8, width, &mut sink).unwrap();
        }
        harvest(&bitmap, BITS / 8, width, &mut sink).unwrap();
    });
    assert!(seen.iter().all(|&count| count == 1));
}

#[test]
fn no_mark_is_lost_or_doubled_by_words() {
    race(HarvestWidth::Word, |bitmap, bit| {
        let word = &bitmap.words().unwrap()[usize::try_from(bit / 64).unwrap()];
        word.fetch_or(1 << (bit % 64), Ordering::Release);
    });
}

#[test]
fn no_mark_is_lost_or_doubled_by_bytes() {
    race(HarvestWidth::Byte, |bitmap, bit| {
        let byte = &bitmap.bytes()[usize::try_from(bit / 8).unwrap()];
        byte.fetch_or(1 << (bit % 8), Ordering::Release);
    });
}
