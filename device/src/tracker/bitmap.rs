//! The guest's bitmap: a table of stretches of its memory, and a shadow for what is not mapped.
//! Or a log in a file of its own, which is one stretch that no map moves.
#![expect(unsafe_code, reason = "takes atomic views of the guest's bitmap")]

use super::protocol::{self, Fenced, MarkWord};
use super::records::Recorder;
use super::window::Words;
use super::{DirtyLog, Marking, TrackerConfig, TrackerStats, Window};
use rangemap::RangeMap;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::bitmap::{self, BitmapSlice, WithBitmapSlice};

/// The bitmap in force, or none.
///
/// Lives beside the IOVA map and the log under one lock: whoever marks holds both still, so a window
/// is never used after its mapping is gone.
#[derive(Debug, Default)]
pub struct Bitmap {
    config: TrackerConfig,
    /// log2 of the tracked page size.
    shift: u32,
    /// Bits the bitmap has.
    bits: u64,
    /// Stretches by byte of the bitmap.
    windows: RangeMap<u64, Window>,
    /// The words that the first stretch holds from word 0 on: all of the bitmap but its tail,
    /// unless it is scattered or marked by bytes.
    hot: Words,
    /// Words that wait for their part of the bitmap to be mapped, by index.
    shadow: Mutex<BTreeMap<u64, u64>>,
    /// Pages that bursts wrote.
    pages: AtomicU64,
    beyond_length: AtomicU64,
    shadowed: AtomicU64,
    /// Who records the same writes, whether there is a bitmap or not.
    recorders: Vec<Arc<Recorder>>,
}

/// What a burst wrote, to be marked together when all of it has landed.
///
/// Kept as words and masks, so that what remains to do after the data is a load and a test each.
#[derive(Clone, Debug)]
pub struct Written<'a> {
    bitmap: &'a Bitmap,
    words: Vec<(&'a AtomicU64, u64)>,
    pages: u64,
    /// What few bursts have, kept apart so that all others stay small.
    rest: Option<Box<Rest>>,
}

/// What words and masks do not say of a burst.
#[derive(Clone, Debug, Default)]
struct Rest {
    /// First and last page of what does not lie in whole words of one stretch.
    cold: Vec<(u64, u64)>,
    /// Address and bytes, if there is a recorder.
    recorded: Vec<(u64, u64)>,
}

impl<'a> Written<'a> {
    /// Nothing written yet.
    pub(crate) fn new(bitmap: &'a Bitmap) -> Self {
        // What most bursts need: growing by steps costs more than the marks.
        let room = if bitmap.is_active() { 32 } else { 0 };
        Self {
            bitmap,
            words: Vec::with_capacity(room),
            pages: 0,
            rest: None,
        }
    }

    #[cold]
    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    /// Notes a write of `len` bytes at `iova`.
    #[inline]
    pub fn record(&mut self, iova: u64, len: u64) {
        if !self.bitmap.recorders.is_empty() {
            self.rest().recorded.push((iova, len));
        }
        let Some(more) = len.checked_sub(1).filter(|_| self.bitmap.is_active()) else {
            return;
        };
        let shift = self.bitmap.shift;
        let (first, last) = (iova >> shift, iova.saturating_add(more) >> shift);
        self.pages += last - first + 1;
        // SAFETY: the lock that guards the bitmap keeps the maps still for as long as `'a`.
        let hot = unsafe { self.bitmap.hot.as_slice() };
        let words = index(first / 64)..=index(last / 64);
        match hot.get(words) {
            Some([word]) => self.words.push((word, mask(first, last))),
            Some(words) => {
                let marks = words.iter().zip(first / 64..);
                let range = |word| (first.max(word * 64), last.min(word * 64 + 63));
                self.words
                    .extend(marks.map(|(word, n)| (word, mask(range(n).0, range(n).1))));
            }
            None => self.rest().cold.push((first, last)),
        }
    }

    /// Pages to be marked, those of several writes more than once.
    #[inline]
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Sets the marks.
    #[inline]
    pub(crate) fn mark(&self) {
        if let Some(rest) = self.rest.as_deref()
            && !rest.recorded.is_empty()
        {
            for recorder in &self.bitmap.recorders {
                recorder.mark(&rest.recorded);
            }
        }
        if self.pages == 0 {
            return;
        }
        let fenced = Fenced::after_data::<AtomicU64>();
        // Words that are marked already are nearly all there are: eight of them cost one branch.
        let (groups, rest) = self.words.as_chunks::<8>();
        for group in groups {
            let missing = group.map(|(word, mask)| protocol::missing(fenced, word, mask));
            if missing.iter().fold(0, |any, missing| any | missing) != 0 {
                let missing = group
                    .iter()
                    .zip(missing)
                    .filter(|(_, missing)| *missing != 0);
                missing.for_each(|((word, mask), _)| protocol::mark(*word, *mask));
            }
        }
        for &(word, mask) in rest {
            protocol::mark_fenced(fenced, word, mask);
        }
        for &(first, last) in self.rest.iter().flat_map(|rest| &rest.cold) {
            self.bitmap.mark_pages(first, last, Some(fenced));
        }
    }
}

/// The bitmap from one IOVA on, as vm-memory's accessors mark it: always by the locked operation.
#[derive(Clone, Debug)]
pub struct MarkAt<'a> {
    bitmap: &'a Bitmap,
    iova: u64,
}

impl Bitmap {
    /// The bitmap of `config`, with nothing resolved yet.
    pub(crate) fn new(config: TrackerConfig) -> Self {
        if !config.is_active() {
            return Self {
                config,
                ..Self::default()
            };
        }
        Self {
            config,
            shift: 12 + u32::from(config.gra_power),
            bits: config.bitmap_length.saturating_mul(8),
            ..Self::default()
        }
    }

    /// The whole of `log`, which lies in no guest's memory and is not resolved by its map.
    pub(crate) fn in_log(log: &DirtyLog) -> Self {
        let Some(window) = log.window().filter(|_| log.marking() != Marking::Off) else {
            return Self::default();
        };
        let mut bitmap = Self {
            config: TrackerConfig {
                enabled: true,
                bitmap_length: log.bytes(),
                marking: log.marking(),
                ..TrackerConfig::default()
            },
            shift: 12,
            bits: log.bytes().saturating_mul(8),
            ..Self::default()
        };
        bitmap.windows.insert(0..log.bytes(), window);
        bitmap.refresh_hot();
        bitmap
    }

    /// Counts `pages` that bursts wrote.
    pub(crate) fn count(&self, pages: u64) {
        self.pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// Goes on counting where `before` stands.
    pub(crate) fn count_on(&mut self, before: &Self) {
        *self.pages.get_mut() += before.pages.load(Ordering::Relaxed);
        *self.beyond_length.get_mut() += before.beyond_length.load(Ordering::Relaxed);
    }

    /// Whether a mark would have any effect.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.bits != 0
    }

    pub(crate) fn config(&self) -> TrackerConfig {
        self.config
    }

    /// Has `recorders` record, too; with marking switched off they hear of nothing either.
    pub(crate) fn set_recorders(&mut self, recorders: &[Arc<Recorder>]) {
        self.recorders.clear();
        if self.config.marking != Marking::Off {
            self.recorders.extend_from_slice(recorders);
        }
    }

    pub(crate) fn stats(&self) -> TrackerStats {
        let shadow = self.shadow.lock().unwrap_or_else(PoisonError::into_inner);
        TrackerStats {
            pages: self.pages.load(Ordering::Relaxed),
            beyond_length: self.beyond_length.load(Ordering::Relaxed),
            shadowed: self.shadowed.load(Ordering::Relaxed),
            undelivered: shadow.len().try_into().unwrap_or(u64::MAX),
        }
    }

    /// IOVAs the bitmap occupies; none for a log.
    pub(crate) fn iovas(&self) -> Range<u64> {
        if !self.is_active() || self.config.bitmap_addr == 0 {
            return 0..0;
        }
        let start = self.config.bitmap_addr;
        start..start.saturating_add(self.config.bitmap_length)
    }

    /// `iovas`, all within [`Bitmap::iovas`], are now reached through `window`; marks that waited
    /// for them are delivered.
    pub(crate) fn resolve(&mut self, iovas: Range<u64>, window: Window) {
        let bytes = self.bytes_of(&iovas);
        self.windows.insert(bytes.clone(), window);
        self.refresh_hot();
        let waiting: Vec<(u64, u64)> = {
            let mut shadow = self.shadow.lock().unwrap_or_else(PoisonError::into_inner);
            let words = bytes.start / 8..bytes.end.div_ceil(8);
            let waiting = shadow
                .range(words.clone())
                .map(|(&w, &b)| (w, b))
                .collect::<Vec<_>>();
            shadow.retain(|word, _| !words.contains(word));
            waiting
        };
        for (word, bits) in waiting {
            self.mark_word(word, bits, None);
        }
    }

    /// `iovas` are no longer mapped: marks there go to the shadow from now on.
    pub(crate) fn forget(&mut self, iovas: Range<u64>) {
        let bytes = self.bytes_of(&iovas);
        self.windows.remove(bytes);
        self.refresh_hot();
    }

    /// Marks pages `first` to `last`.
    #[inline(never)]
    fn mark_pages(&self, first: u64, mut last: u64, fenced: Option<Fenced>) {
        if !self.is_active() || last < first {
            return;
        }
        if last >= self.bits {
            let dropped = last - first.max(self.bits) + 1;
            self.beyond_length.fetch_add(dropped, Ordering::Relaxed);
            if first >= self.bits {
                return;
            }
            last = self.bits - 1;
        }
        if self.config.marking == Marking::Byte {
            for byte in first / 8..=last / 8 {
                self.mark_byte(byte);
            }
            return;
        }
        for word in first / 64..=last / 64 {
            let mask = mask(first.max(word * 64), last.min(word * 64 + 63));
            self.mark_word(word, mask, fenced);
        }
    }

    /// Sets `mask` in word `word`, which holds at least one byte of the bitmap.
    #[inline]
    fn mark_word(&self, word: u64, mask: u64, fenced: Option<Fenced>) {
        // SAFETY: the lock that guards `self` keeps the maps still, and with them the words.
        let hot = unsafe { self.hot.as_slice() };
        match hot.get(index(word)) {
            Some(word) => set(word, mask, fenced),
            None => self.mark_cold(word, mask, fenced),
        }
    }

    /// A word of a scattered bitmap, of its tail, or of a part that is not mapped.
    #[cold]
    fn mark_cold(&self, word: u64, mask: u64, fenced: Option<Fenced>) {
        let byte = word * 8;
        let Some(window) = self.window(byte) else {
            return self.mark_shadow(word, mask);
        };
        let Ok(host) = usize::try_from(byte) else {
            return;
        };
        if byte + 8 > self.config.bitmap_length {
            return self.mark_tail(byte, mask, fenced);
        }
        // SAFETY: `window` was found for `byte`, maps are page-grained and the bitmap is 8-aligned,
        // so the word's eight bytes share its window; the lock that guards `self` keeps maps still.
        if let Some(word) = unsafe { window.word(host) } {
            set(word, mask, fenced);
        }
    }

    /// The last word of a bitmap whose length is no multiple of 8: byte by byte, on both sides.
    fn mark_tail(&self, byte: u64, mask: u64, fenced: Option<Fenced>) {
        for (byte, mask) in (byte..self.config.bitmap_length).zip(mask.to_le_bytes()) {
            if let Some(cell) = self.cell(byte).filter(|_| mask != 0) {
                set(cell, mask.into(), fenced);
            }
        }
    }

    /// Sets a whole byte, without reading it.
    #[inline]
    fn mark_byte(&self, byte: u64) {
        match self.cell(byte) {
            Some(cell) => cell.store(0xff, Ordering::Release),
            None => self.mark_shadow(byte / 8, 0xff << (byte % 8 * 8)),
        }
    }

    fn cell(&self, byte: u64) -> Option<&AtomicU8> {
        let host = usize::try_from(byte).ok()?;
        let window = self.window(byte)?;
        // SAFETY: `window` was found for `byte`; the lock that guards `self` keeps maps still.
        unsafe { window.byte(host) }
    }

    fn window(&self, byte: u64) -> Option<&Window> {
        self.windows.get(&byte)
    }

    #[cold]
    fn mark_shadow(&self, word: u64, mask: u64) {
        let pages = u64::from(mask.count_ones());
        self.shadowed.fetch_add(pages, Ordering::Relaxed);
        let mut shadow = self.shadow.lock().unwrap_or_else(PoisonError::into_inner);
        *shadow.entry(word).or_default() |= mask;
    }

    fn refresh_hot(&mut self) {
        self.hot = Words::default();
        if self.config.marking != Marking::Bit {
            return;
        }
        if let Some((bytes, window)) = self.windows.iter().next().filter(|(b, _)| b.start == 0) {
            let words = bytes.end.min(self.config.bitmap_length) / 8;
            self.hot = Words::new(window, words);
        }
    }

    fn bytes_of(&self, iovas: &Range<u64>) -> Range<u64> {
        let base = self.config.bitmap_addr;
        iovas.start.saturating_sub(base)..iovas.end.saturating_sub(base)
    }
}

/// Bits `first` to `last` of the word that both lie in.
#[inline(always)]
fn mask(first: u64, last: u64) -> u64 {
    (u64::MAX << (first % 64)) & (u64::MAX >> (63 - last % 64))
}

/// A word's number as an index; beyond any slice if it is none.
#[inline(always)]
fn index(word: u64) -> usize {
    usize::try_from(word).unwrap_or(usize::MAX)
}

#[inline(always)]
fn set<W: MarkWord>(word: &W, mask: u64, fenced: Option<Fenced>) {
    match fenced {
        Some(fenced) => protocol::mark_fenced(fenced, word, mask),
        None => protocol::mark(word, mask),
    }
}

impl<'a> WithBitmapSlice<'a> for Bitmap {
    type S = MarkAt<'a>;
}

impl bitmap::Bitmap for Bitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(0).mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.slice_at(0).dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> MarkAt<'_> {
        MarkAt {
            bitmap: self,
            iova: widen(offset),
        }
    }
}

impl<'a> WithBitmapSlice<'_> for MarkAt<'a> {
    type S = Self;
}

impl BitmapSlice for MarkAt<'_> {}

impl bitmap::Bitmap for MarkAt<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(more) = len.checked_sub(1) {
            let first = self.iova.saturating_add(widen(offset));
            let last = first.saturating_add(widen(more));
            for recorder in &self.bitmap.recorders {
                recorder.mark_one(first, widen(len));
            }
            let shift = self.bitmap.shift;
            self.bitmap.mark_pages(first >> shift, last >> shift, None);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let bitmap = self.bitmap;
        let bit = self.iova.saturating_add(widen(offset)) >> bitmap.shift;
        bit < bitmap.bits
            && bitmap
                .cell(bit / 8)
                .is_some_and(|cell| cell.load(Ordering::Relaxed) & (1 << (bit % 8)) != 0)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            bitmap: self.bitmap,
            iova: self.iova.saturating_add(widen(offset)),
        }
    }
}

/// `usize` is never wider than 64 bits where Linux runs.
fn widen(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
