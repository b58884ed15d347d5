//! Page-write recording by command (project rules; see [`spec::records`]).

use super::command::take;
use super::{Admin, Command, NO_RESOURCE, Refusal, Reply, Target};
use crate::dma::Dma;
use crate::tracker::records::{Recorder, RecordsConfig};
use spec::admin::{qualifier, status};
use spec::records::{Extent, Limits, Read, Start, output};
use std::ops::Range;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Pages of 4 KiB to 1 GiB, as the tracker has them.
const PAGE_SIZES: u64 = (1 << 31) - (1 << 12);
/// Most records of one read: 16 MiB of them.
const READ_MAX: usize = 1 << 21;

/// One recording: of the function itself, or of a member.
#[derive(Debug)]
pub(super) struct Recording {
    recorder: Arc<Recorder>,
    on: bool,
}

impl Recording {
    /// Records no more, and forgets.
    pub(super) fn end(self, dma: &Dma) {
        if self.on {
            dma.detach_recorder(&self.recorder);
        }
    }
}

fn key(command: &Command<'_>) -> (u16, u64) {
    (command.group_type, command.member)
}

/// The range, if it is one: not empty, within the address space, of whole pages.
fn range(start: u64, length: u64, page_size: u64) -> Result<Range<u64>, Refusal> {
    let end = start.checked_add(length).ok_or(Refusal::FIELD)?;
    let whole = start.is_multiple_of(page_size) && length.is_multiple_of(page_size);
    if length == 0 || !whole {
        return Err(Refusal::FIELD);
    }
    Ok(start..end)
}

impl Admin {
    pub(super) fn recording_limits(&self) -> Reply {
        let limits = Limits {
            page_sizes: PAGE_SIZES.into(),
            max_ranges: u32::from(self.config.max_ranges).into(),
            max_records: self.config.max_records.into(),
        };
        Reply::with(limits.as_bytes().to_vec())
    }

    /// WR-4 to WR-7: judged as a whole before anything changes.
    pub(super) fn recording_start(
        &self,
        command: &Command<'_>,
        target: &Target<'_>,
    ) -> Result<Reply, Refusal> {
        let (start, mut data) = take::<Start>(command.data);
        let page_size = start.page_size.get();
        let count = start.count.get();
        if !page_size.is_power_of_two() || page_size & PAGE_SIZES == 0 {
            return Err(Refusal::FIELD);
        }
        if count == 0 || count > u32::from(self.config.max_ranges) {
            return Err(Refusal::FIELD);
        }
        let mut ranges = Vec::new();
        for _ in 0..count {
            let (extent, rest) = take::<Extent>(data);
            data = rest;
            ranges.push(range(extent.start.get(), extent.length.get(), page_size)?);
        }
        ranges.sort_by_key(|range| range.start);
        if ranges.windows(2).any(|pair| pair[0].end > pair[1].start) {
            return Err(Refusal::FIELD);
        }
        let config = RecordsConfig {
            page_shift: page_size.trailing_zeros(),
            ranges,
            capacity: self.config.max_records,
        };
        let mut state = self.state();
        if state.recordings.get(&key(command)).is_some_and(|r| r.on) {
            return Err(Refusal::Status(status::EBUSY, qualifier::INVALID_COMMAND));
        }
        let recorder = Arc::new(Recorder::new(&config).map_err(|_| NO_RESOURCE)?);
        target.dma.attach_recorder(Arc::clone(&recorder));
        let recording = Recording { recorder, on: true };
        state.recordings.insert(key(command), recording);
        Ok(Reply::default())
    }

    pub(super) fn recording_stop(
        &self,
        command: &Command<'_>,
        target: &Target<'_>,
    ) -> Result<Reply, Refusal> {
        let mut state = self.state();
        let recording = state.recordings.get_mut(&key(command));
        let recording = recording.filter(|recording| recording.on);
        let recording = recording.ok_or(Refusal::einval(qualifier::INVALID_COMMAND))?;
        target.dma.detach_recorder(&recording.recorder);
        recording.on = false;
        Ok(Reply::default())
    }

    pub(super) fn recording_read(
        &self,
        command: &Command<'_>,
        target: &Target<'_>,
    ) -> Result<Reply, Refusal> {
        let (read, _) = take::<Read>(command.data);
        let recorder = {
            let state = self.state();
            let recording = state.recordings.get(&key(command));
            let recording = recording.ok_or(Refusal::einval(qualifier::INVALID_COMMAND))?;
            Arc::clone(&recording.recorder)
        };
        let page_size = 1 << recorder.page_shift();
        if ![0, page_size].contains(&read.page_size.get()) {
            return Err(Refusal::FIELD);
        }
        let range = range(read.start.get(), read.length.get(), page_size)?;
        let most = (command.room / 8).min(READ_MAX);
        let taken = recorder.take(&range, most, || target.dma.quiet(|| recorder.turn()));
        let mut word = u32::try_from(taken.records.len()).unwrap_or(0) & output::COUNT;
        if taken.more {
            word |= output::MORE;
        }
        if taken.overflow {
            word |= output::OVERFLOW;
        }
        Ok(Reply {
            output: word,
            result: Vec::new(),
            records: Some((recorder, taken)),
        })
    }
}
