//! Guest memory of 64 pages, a shadow copy of it, and a log of marks.

use device::dma::{Dma, MAP_ALIGN};
use device::tracker::records::{Recorder, RecordsConfig};
use device::tracker::{DirtyLog, Marking};
use rustix::fs::MemfdFlags;
use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::Permissions;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Pages of the memory file; page n is at IOVA n times 4096.
pub const PAGES: u64 = 64;
/// Pages that the device may read and write.
pub const WRITABLE: Range<u64> = 0..48;
/// Pages that it may read only.
pub const READ_ONLY: Range<u64> = 48..56;
/// Pages that are there and not granted.
pub const UNMAPPED: Range<u64> = 56..64;

const _: () = assert!(PAGE == MAP_ALIGN);

/// Whoever stores into guest memory as its CPU does.
pub trait Store {
    /// What lies beyond the end is left out.
    fn put(&mut self, at: u64, bytes: &[u8]);
}

/// Guest memory as the harness sees it: through the file, not through a map.
#[derive(Debug)]
pub struct GuestMemory {
    file: File,
    log: File,
    logged: bool,
    /// Who records beside the tracker, one for each function.
    recorders: Vec<Arc<Recorder>>,
    /// Pages that were in a recorder once.
    recorded: Mutex<BTreeSet<u64>>,
    /// What is there if the device wrote nothing.
    shadow: Vec<u8>,
    /// Pages that the device may write.
    granted: Vec<bool>,
    /// Pages that the device could have written and mark elsewhere, or not at all.
    excluded: Vec<bool>,
}

impl Default for GuestMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for GuestMemory {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        Self::put(self, at, bytes);
    }
}

fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// An anonymous file of zeroes.
pub(super) fn memory_file(name: &str, bytes: u64) -> File {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).expect("memory");
    let file = File::from(file);
    file.set_len(bytes).expect("its size");
    file
}

impl GuestMemory {
    /// Zeroes where something is granted, and something to be overwritten where nothing is.
    pub fn new() -> Self {
        let file = memory_file("fuzz-guest", PAGES * PAGE);
        let mut shadow = vec![0; usize_of(PAGES * PAGE)];
        // Every page that is not granted has something to be overwritten.
        let canary = usize_of(READ_ONLY.start * PAGE)..;
        shadow[canary].fill(0xa5);
        file.write_all_at(&shadow, 0).expect("written");
        Self {
            file,
            log: memory_file("fuzz-log", PAGE),
            logged: false,
            recorders: Vec::new(),
            recorded: Mutex::default(),
            shadow,
            granted: (0..PAGES).map(|page| WRITABLE.contains(&page)).collect(),
            excluded: vec![false; usize_of(PAGES)],
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file of the log.
    pub fn log(&self) -> &File {
        &self.log
    }

    /// Somebody has the device mark in the log, from here on.
    pub fn watch_log(&mut self) {
        self.logged = true;
    }

    /// Marks need not be in the log any more.
    pub fn forget_log(&mut self) {
        self.logged = false;
    }

    /// Grants what is to be granted, and nothing else.
    ///
    /// # Panics
    ///
    /// It cannot be mapped.
    pub fn map_all(&mut self, dma: &Dma) {
        for (page, granted) in (0..PAGES).zip(&mut self.granted) {
            *granted = WRITABLE.contains(&page);
        }
        let maps = [
            (WRITABLE, Permissions::ReadWrite),
            (READ_ONLY, Permissions::Read),
        ];
        let maps = maps.map(|(pages, perm)| device::dma::Map {
            iova: pages.start * PAGE,
            size: (pages.end - pages.start) * PAGE,
            file: &self.file,
            offset: pages.start * PAGE,
            perm,
        });
        dma.replace_maps(&maps).expect("mapped");
    }

    pub(super) fn log_to(&mut self, dma: &Dma) {
        let log = DirtyLog::open(&self.log, 0, PAGES / 8, Marking::Bit).expect("a log");
        dma.set_log(Some(log));
        dma.set_log_data(true);
        self.logged = true;
    }

    pub(super) fn record(&mut self, dma: &Dma) {
        let recorder = Recorder::new(&RecordsConfig {
            page_shift: 12,
            ranges: std::iter::once(0..PAGES * PAGE).collect(),
            capacity: 4096,
        });
        let recorder = Arc::new(recorder.expect("room for a few records"));
        dma.attach_recorder(Arc::clone(&recorder));
        self.recorders.push(recorder);
    }

    /// Pages that were recorded, with the device at rest.
    fn recorded(&self) -> BTreeSet<u64> {
        let recorded = self.recorded.lock();
        let mut recorded = recorded.unwrap_or_else(PoisonError::into_inner);
        for recorder in &self.recorders {
            loop {
                let taken = recorder.take(&(0..PAGES * PAGE), 4096, || recorder.turn());
                recorded.extend(taken.records.iter().map(|at| at.get() / PAGE));
                let more = taken.more;
                recorder.delivered(taken);
                if !more {
                    break;
                }
            }
        }
        recorded.clone()
    }

    /// Takes a page away from the device, and judges it as it is then: nothing may come later.
    ///
    /// # Panics
    ///
    /// The oracles'.
    pub fn unmap(&mut self, dma: &Dma, page: u64) {
        dma.unmap(page * PAGE, PAGE);
        let now = self.now();
        let changed = self.deny(page, &now);
        assert!(
            !changed || !self.logged || self.marked().contains(&page),
            "oracle tracking: page {page} changed, was unmapped, and is not marked: lost"
        );
    }

    /// A page was taken away from the device: what it has in `now`, which is all of memory since then,
    /// is what it has to hold. Whether the device had written there.
    pub fn deny(&mut self, page: u64, now: &[u8]) -> bool {
        let written = self.differs(page, now);
        self.rebase_page(page, now);
        self.set_granted(page, false);
        written
    }

    /// The device was given a page.
    pub fn grant(&mut self, page: u64) {
        self.set_granted(page, true);
    }

    fn set_granted(&mut self, page: u64, to: bool) {
        if let Some(granted) = self.granted.get_mut(usize_of(page)) {
            *granted = to;
        }
    }

    /// Whether a page of `now`, which is all of memory, is not as the driver left it.
    pub fn differs(&self, page: u64, now: &[u8]) -> bool {
        let at = usize_of(page * PAGE)..usize_of((page + 1) * PAGE);
        self.shadow.get(at.clone()) != now.get(at)
    }

    /// What a page of `now`, which is all of memory, has counts as the driver's.
    pub fn rebase_page(&mut self, page: u64, now: &[u8]) {
        let at = usize_of(page * PAGE)..usize_of((page + 1) * PAGE);
        if let (Some(shadow), Some(now)) = (self.shadow.get_mut(at.clone()), now.get(at)) {
            shadow.copy_from_slice(now);
        }
    }

    /// Grants a page.
    ///
    /// # Panics
    ///
    /// It cannot be mapped.
    pub fn map(&mut self, dma: &Dma, page: u64) {
        dma.map(
            page * PAGE,
            PAGE,
            &self.file,
            page * PAGE,
            Permissions::ReadWrite,
        )
        .expect("mapped");
        self.grant(page);
    }

    /// From now on, what is there counts as the driver's: with the device at rest.
    pub fn rebase(&mut self) {
        self.shadow = self.now();
    }

    /// Whether the device may write all of a range.
    pub fn is_granted(&self, at: u64, bytes: u64) -> bool {
        let Some(last) = at.checked_add(bytes.max(1) - 1) else {
            return false;
        };
        let mut pages = at / PAGE..=(last / PAGE).min(PAGES);
        pages.all(|page| self.granted.get(usize_of(page)).copied().unwrap_or(false))
    }

    /// The page is not judged any more: the tracker itself writes there, unmarked.
    pub fn exclude(&mut self, page: u64) {
        if let Some(excluded) = self.excluded.get_mut(usize_of(page)) {
            *excluded = true;
        }
    }

    /// Whether the page is not judged.
    pub fn is_excluded(&self, page: u64) -> bool {
        self.excluded.get(usize_of(page)).copied().unwrap_or(true)
    }

    /// Stores as the guest's CPU does. What lies beyond the end is left out.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        let size = self.shadow.len();
        let start = usize_of(at).min(size);
        let bytes = &bytes[..bytes.len().min(size - start)];
        self.shadow[start..start + bytes.len()].copy_from_slice(bytes);
        self.file.write_all_at(bytes, at).expect("written");
    }

    /// Loads as the guest's CPU does; 0 beyond the end.
    pub fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        if at.checked_add(8).is_some_and(|end| end <= PAGES * PAGE) {
            self.file.read_exact_at(&mut bytes, at).expect("read");
        }
        bytes
    }

    /// Loads 16 bits.
    pub fn get16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    /// All of memory as it is.
    pub fn now(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.shadow.len()];
        self.file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    /// Pages that are not as the driver left them.
    pub fn changed(&self) -> Vec<u64> {
        let now = self.now();
        let pages = 0..PAGES;
        pages.filter(|page| self.differs(*page, &now)).collect()
    }

    /// Pages whose bit is set in the log.
    fn marked(&self) -> Vec<u64> {
        let mut log = [0; 64];
        self.log.read_exact_at(&mut log, 0).expect("read");
        assert!(
            log[usize_of(PAGES / 8)..].iter().all(|&byte| byte == 0),
            "oracle grant: marks beyond the end of the log"
        );
        let bit = |page: &u64| log[usize_of(page / 8)] & (1 << (page % 8)) != 0;
        (0..PAGES).filter(bit).collect()
    }

    /// `oracle grant`. May be called at any time.
    ///
    /// # Panics
    ///
    /// The oracle's.
    pub fn judge_grants(&self) {
        for page in self.changed() {
            assert!(
                self.granted[usize_of(page)],
                "oracle grant: page {page} was written and not granted for that"
            );
        }
        if self.logged {
            let stray = self
                .marked()
                .into_iter()
                .find(|page| READ_ONLY.contains(page));
            assert_eq!(
                stray, None,
                "oracle tracking: a page is marked that cannot have been written"
            );
        }
    }

    /// `oracle tracking` with the device at rest: every page that changed is in the log and was recorded,
    /// if there is one and somebody did.
    ///
    /// # Panics
    ///
    /// The oracle's.
    pub fn judge_marks(&self) {
        if self.logged {
            let marked = self.marked();
            self.judge_marked(|page| marked.contains(&page));
        }
        if !self.recorders.is_empty() {
            let recorded = self.recorded();
            self.judge_marked(|page| recorded.contains(&page));
        }
    }

    /// `oracle tracking` with marks from elsewhere.
    ///
    /// # Panics
    ///
    /// The oracle's.
    pub fn judge_marked(&self, marked: impl Fn(u64) -> bool) {
        for page in self.changed() {
            assert!(
                self.is_excluded(page) || marked(page),
                "oracle tracking: page {page} changed and is not marked: lost"
            );
        }
    }
}
