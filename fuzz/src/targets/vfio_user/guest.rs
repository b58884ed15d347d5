//! Guest memory, and what the client has let the device do with it: which pages are granted at the
//! moment, and which have to be in the next report of DMA logging.
//!
//! Where the client does not know (what it posted has no answer), a map counts as made and an unmap
//! as not, so that nothing is demanded which may not be.

use super::client::Heard;
use super::wire::{Message, command, feature, quad, word};
use crate::rig::{GuestMemory, PAGE, PAGES, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Where logging of everything ends, unless memory is mapped beyond.
const EVERYTHING: u64 = 1 << 40;

/// Guest memory that the device may write.
#[derive(Clone, Debug)]
struct Window {
    iovas: Range<u64>,
    /// Where in the file it begins.
    offset: u64,
}

/// DMA logging that is on for sure.
#[derive(Debug, Default)]
struct Log {
    ranges: Vec<Range<u64>>,
    /// For each page of memory the pages of IOVA through which it could be written since the start.
    ways: BTreeMap<u64, BTreeSet<u64>>,
    /// Pages of IOVA that were reported and not judged yet.
    told: BTreeSet<u64>,
    /// Pages of memory that were written, and have been taken away since.
    owed: BTreeSet<u64>,
}

/// What the client knows.
#[derive(Debug)]
pub struct Guest {
    pub memory: GuestMemory,
    windows: Vec<Window>,
    log: Option<Log>,
}

impl Store for Guest {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.memory.put(at, bytes);
    }
}

impl Guest {
    /// Memory of which nothing is granted.
    pub fn new() -> Self {
        let mut memory = GuestMemory::new();
        let now = memory.now();
        for page in 0..PAGES {
            memory.deny(page, &now);
        }
        Self {
            memory,
            windows: Vec::new(),
            log: None,
        }
    }

    /// Whether writes are logged, for sure.
    pub fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    /// Memory as it is before a report, which has to have all that is in it.
    pub fn before(&self, message: &Message) -> Option<Vec<u8>> {
        let reports = number(message) == Some((feature::LOG_REPORT, feature::GET));
        (self.is_logged() && reports).then(|| self.memory.now())
    }

    /// What follows from a message.
    ///
    /// # Panics
    ///
    /// `oracle grant`, `oracle tracking`.
    pub fn heed(&mut self, message: &Message, heard: &Heard, before: Option<Vec<u8>>) {
        match (message.command, heard) {
            (command::DMA_MAP, Heard::Done(_) | Heard::Posted) => self.map(message),
            (command::DMA_UNMAP, Heard::Done(_)) => self.unmap(&message.body),
            (command::FEATURE, Heard::Done(payload)) => match (number(message), before) {
                (Some((feature::LOG_START, feature::SET)), _) => self.start(&message.body),
                (Some((feature::LOG_STOP, feature::SET)), _) => self.log = None,
                (_, Some(before)) => self.report(payload, &before),
                _ => {}
            },
            (command::FEATURE, Heard::Posted)
                if number(message) == Some((feature::LOG_STOP, feature::SET)) =>
            {
                self.log = None;
            }
            _ => {}
        }
    }

    /// The session is over: nothing is granted any more.
    pub fn end(&mut self) {
        self.log = None;
        self.windows.clear();
        self.follow();
    }

    fn map(&mut self, message: &Message) {
        let body = &message.body;
        let (flags, offset) = (word(body, 4), quad(body, 8));
        let (iova, size) = (quad(body, 16), quad(body, 24));
        let fits = offset
            .checked_add(size)
            .is_some_and(|end| end <= PAGES * PAGE);
        let writable = flags & 2 != 0;
        if let Some(end) = iova.checked_add(size)
            && message.guest
            && writable
            && fits
            && size != 0
        {
            let iovas = iova..end;
            self.windows.push(Window { iovas, offset });
            self.follow();
        }
    }

    fn unmap(&mut self, body: &[u8]) {
        let (iova, size) = (quad(body, 8), quad(body, 16));
        let gone = match word(body, 4) {
            0 => iova..iova.saturating_add(size),
            _ => 0..u64::MAX,
        };
        let parts = |window: Window| {
            let Range { start, end } = window.iovas;
            let below = start..end.min(gone.start);
            let above = start.max(gone.end)..end;
            let parts = [below, above].into_iter().filter(|part| !part.is_empty());
            parts.map(move |iovas| Window {
                offset: window.offset + (iovas.start - start),
                iovas,
            })
        };
        if !gone.is_empty() {
            let windows = std::mem::take(&mut self.windows);
            self.windows = windows.into_iter().flat_map(parts).collect();
            self.follow();
        }
    }

    /// Grants and denies pages as the windows have it, and judges those that are taken away as they are
    /// then: nothing may come later.
    fn follow(&mut self) {
        self.memory.judge_grants();
        let (ways, now) = (self.ways(), self.memory.now());
        for page in 0..PAGES {
            let was = self.memory.is_granted(page * PAGE, PAGE);
            match (was, ways.contains_key(&page)) {
                (false, true) => self.memory.grant(page),
                (true, false) => {
                    let written = self.memory.deny(page, &now);
                    if let Some(log) = self.log.as_mut().filter(|_| written) {
                        log.owed.insert(page);
                    }
                }
                _ => {}
            }
        }
        if let Some(log) = &mut self.log {
            for (page, more) in ways {
                log.ways.entry(page).or_default().extend(more);
            }
        }
    }

    /// For each page of memory that may be written the pages of IOVA through which it is.
    fn ways(&self) -> BTreeMap<u64, BTreeSet<u64>> {
        let mut ways = BTreeMap::<_, BTreeSet<_>>::new();
        for Window { iovas, offset } in &self.windows {
            let last = offset + (iovas.end - iovas.start) - 1;
            for page in offset / PAGE..=last / PAGE {
                let into = (page * PAGE).saturating_sub(*offset);
                let way = (iovas.start + into) / PAGE;
                ways.entry(page).or_default().insert(way);
            }
        }
        ways
    }

    fn start(&mut self, body: &[u8]) {
        let count = usize::try_from(word(body, 16)).unwrap_or(usize::MAX);
        let ranges = body.get(24..).unwrap_or_default().chunks_exact(16);
        let range = |bytes: &[u8]| quad(bytes, 0)..quad(bytes, 0).saturating_add(quad(bytes, 8));
        let ranges: Vec<_> = match count {
            0 => std::iter::once(0..EVERYTHING).collect(),
            _ => ranges.take(count).map(range).collect(),
        };
        // What was written until now is nobody's to report.
        self.memory.judge_grants();
        let now = self.memory.now();
        for page in 0..PAGES {
            if self.memory.is_granted(page * PAGE, PAGE) {
                self.memory.rebase_page(page, &now);
            }
        }
        self.log = Some(Log {
            ranges,
            ways: self.ways(),
            ..Log::default()
        });
    }

    /// `oracle tracking`: what had changed before the report is in it, or was in one before it, as far
    /// as it covers all ways to a page. Judged anew from there.
    fn report(&mut self, payload: &[u8], before: &[u8]) {
        let Some(log) = &mut self.log else {
            return;
        };
        let (iova, length, unit) = (quad(payload, 8), quad(payload, 16), quad(payload, 24));
        let Some(bitmap) = payload.get(32..).filter(|bitmap| !bitmap.is_empty()) else {
            // There was no room.
            return;
        };
        let words = length.div_ceil(unit).div_ceil(64);
        assert_eq!(
            u64::try_from(bitmap.len()),
            Ok(words * 8),
            "oracle answers: bytes of a bitmap of {length:#x} bytes by {unit:#x}"
        );
        let within = |way: &u64, range: &Range<u64>| {
            let from = way * PAGE;
            range.start <= from && from.saturating_add(PAGE) <= range.end
        };
        let range = iova..iova + length;
        let covered = |way: &u64| within(way, &range);
        let told = |way: &u64| {
            let bit = (way * PAGE - iova) / unit;
            let byte = usize::try_from(bit / 8).ok().and_then(|at| bitmap.get(at));
            byte.is_some_and(|byte| byte >> (bit % 8) & 1 != 0)
        };
        let logged = |way: &u64| log.ranges.iter().any(|range| within(way, range));
        let earlier = std::mem::take(&mut log.told);
        for (page, ways) in &log.ways {
            let now = ways.iter().filter(|way| covered(way) && told(way));
            let now: BTreeSet<_> = now.copied().collect();
            log.told.extend(&now);
            if !ways.iter().all(covered) || !ways.iter().all(logged) {
                log.told.extend(ways.intersection(&earlier));
                continue;
            }
            let written = log.owed.remove(page) || self.memory.differs(*page, before);
            let reported = !now.is_empty() || !ways.is_disjoint(&earlier);
            assert!(
                reported || !written,
                "oracle tracking: page {page} changed and is not reported at any of {ways:x?}: lost"
            );
            if self.memory.is_granted(page * PAGE, PAGE) {
                self.memory.rebase_page(*page, before);
            }
        }
    }
}

/// A feature that is carried out, and the way; none if it is only asked whether there is one.
fn number(message: &Message) -> Option<(u32, u32)> {
    let flags = word(&message.body, 4);
    let feature = message.command == command::FEATURE && flags & feature::PROBE == 0;
    feature.then_some((flags & 0xffff, flags & (feature::GET | feature::SET)))
}
