//! The dirty log: memory in which the backend sets a bit for each page that it writes.

use super::memory::memory_file;
use super::{Frontend, VhostUserError, end_of, wire};
use crate::dirty::harvest::{HarvestWidth, harvest_into};
use crate::dirty::{DirtySet, PAGE_SIZE};
use crate::memory::DmaMemory;
use std::fs::File;
use std::os::fd::AsFd;
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};

/// One log, from guest address 0 up to the end of what it covers.
///
/// The layout is that of the draft tracker's bitmap with pages of 4 KiB: bit `n % 8` of byte
/// `n / 8` is page `n`.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) file: File,
    bitmap: DmaMemory,
    /// Taken from logs that this one replaced, and not yet reported.
    before: DirtySet,
}

impl Log {
    fn new(end: u64) -> Result<Self, VhostUserError> {
        let pages = end.div_ceil(PAGE_SIZE);
        let len = pages.div_ceil(8).next_multiple_of(PAGE_SIZE);
        let make = || -> std::io::Result<_> {
            let file = memory_file("tidemark-log", len)?;
            let bitmap = DmaMemory::from_file(&file, 0, len, 0)?;
            Ok((file, bitmap))
        };
        let (file, bitmap) = make().map_err(|source| VhostUserError::Setup {
            what: "create a dirty log",
            source,
        })?;
        Ok(Self {
            file,
            bitmap,
            before: DirtySet::new(pages),
        })
    }

    /// First guest address that it does not cover.
    pub(super) fn end(&self) -> u64 {
        self.bitmap.len().saturating_mul(8 * PAGE_SIZE)
    }

    fn take(&mut self, into: &mut DirtySet) -> Result<(), VhostUserError> {
        into.union_with(&self.before);
        self.before.clear();
        let len = self.bitmap.len();
        Ok(harvest_into(&self.bitmap, len, HarvestWidth::Word, into)?)
    }
}

impl Frontend {
    /// Starts the dirty log, in the order of QEMU: a log, then the feature, then the used rings.
    ///
    /// What the backend writes before this returns may or may not be in the log, so a first copy of
    /// memory is made after it. Started again while it is on, it goes on with a new, empty log
    /// file; nothing that the old one holds is lost.
    ///
    /// # Errors
    /// [`VhostUserError::FeaturesMissing`] or [`VhostUserError::ProtocolMissing`] if the backend
    /// cannot log, [`VhostUserError::Address`] if no memory is shared; or what the backend says.
    pub fn start_log(&mut self) -> Result<(), VhostUserError> {
        self.offers(VhostUserVirtioFeatures::LOG_ALL.bits())?;
        self.speaks(VhostUserProtocolFeatures::LOG_SHMFD, "LOG_SHMFD")?;
        let end = end_of(&self.shared);
        if end == 0 {
            return Err(VhostUserError::Address {
                what: "a dirty log",
                address: end,
                why: "there is no memory to log; share some first",
            });
        }
        self.log_up_to(end)?;
        self.apply_log(true)
    }

    /// Puts a log that covers guest addresses below `end` in the place of the one there is.
    pub(super) fn log_up_to(&mut self, end: u64) -> Result<(), VhostUserError> {
        let mut log = Log::new(end)?;
        let (socket, file, len) = (&self.socket, log.file.as_fd(), log.bitmap.len());
        self.watchdog.guard("SET_LOG_BASE", || {
            wire::set_log_base(socket, file, len).map_err(vhost::Error::IOError)
        })?;
        // The backend has answered, so the old log gets no more marks.
        if let Some(mut old) = self.log.take() {
            old.take(&mut log.before)?;
        }
        self.log = Some(log);
        Ok(())
    }

    fn apply_log(&mut self, on: bool) -> Result<(), VhostUserError> {
        let log_all = VhostUserVirtioFeatures::LOG_ALL.bits();
        let features = if on {
            self.features | log_all
        } else {
            self.features
        };
        self.ask("SET_FEATURES", |link| link.set_features(features))?;
        let running = (0_u16..).zip(self.queues.clone());
        for (index, setup) in running.filter_map(|(index, setup)| Some((index, setup?))) {
            self.addresses(index, &setup)?;
        }
        self.barrier()
    }

    /// Adds the pages written since the last call to `into` and forgets them. After
    /// [`stop_queue`](Self::stop_queue) of all queues, this is the last word.
    ///
    /// # Errors
    /// [`VhostUserError::NotLogging`].
    pub fn harvest_log(&mut self, into: &mut DirtySet) -> Result<(), VhostUserError> {
        self.log
            .as_mut()
            .ok_or(VhostUserError::NotLogging)?
            .take(into)
    }

    /// Stops the dirty log; what was not harvested is forgotten.
    ///
    /// # Errors
    /// [`VhostUserError::NotLogging`], or what the backend says.
    pub fn stop_log(&mut self) -> Result<(), VhostUserError> {
        // Kept until the backend has answered: the flags of the used rings follow from it.
        let log = self.log.take().ok_or(VhostUserError::NotLogging)?;
        let stopped = self.apply_log(false);
        drop(log);
        stopped
    }

    /// True while the dirty log is on.
    pub fn is_logging(&self) -> bool {
        self.log.is_some()
    }
}
