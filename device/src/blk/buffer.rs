//! Memory through which data passes between guest and disk, so that neither waits for the other.

/// What O_DIRECT asks of memory, on every storage that is known.
const ALIGN: usize = 4096;
/// log2 of the smallest and the largest buffer that is kept.
const CLASSES: std::ops::RangeInclusive<u32> = 12..=20;
/// Bytes of buffers that are kept for their next use.
const KEPT_MAX: usize = 2 << 20;

/// Memory that begins on a page.
#[derive(Debug)]
pub(super) struct Buffer {
    /// A page longer than what is used. Never grown, so it stays where it is.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(capacity: usize) -> Self {
        let memory = vec![0; capacity.saturating_add(ALIGN)];
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self {
            memory,
            start,
            len: 0,
        }
    }

    fn capacity(&self) -> usize {
        self.memory.len() - ALIGN
    }

    /// The data.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The data, to be changed.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Buffers that wait for their next use.
#[derive(Debug, Default)]
pub(super) struct Spares {
    /// By log2 of their capacity, from the smallest on.
    classes: [Vec<Buffer>; 9],
    kept: usize,
}

impl Spares {
    /// A buffer of `len` bytes, which hold whatever they held before.
    pub(super) fn take(&mut self, len: usize) -> Buffer {
        let capacity = len.next_power_of_two().max(1 << CLASSES.start());
        let spare = self.class(capacity).and_then(Vec::pop);
        let mut buffer = match spare {
            Some(buffer) => {
                self.kept -= buffer.capacity();
                buffer
            }
            None => Buffer::new(capacity),
        };
        buffer.len = len;
        buffer
    }

    /// Keeps a buffer, unless there are enough.
    pub(super) fn give_back(&mut self, buffer: Buffer) {
        let capacity = buffer.capacity();
        if self.kept + capacity > KEPT_MAX {
            return;
        }
        if let Some(class) = self.class(capacity) {
            class.push(buffer);
            self.kept += capacity;
        }
    }

    fn class(&mut self, capacity: usize) -> Option<&mut Vec<Buffer>> {
        let power = capacity.trailing_zeros().checked_sub(*CLASSES.start())?;
        self.classes.get_mut(usize::try_from(power).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_on_a_page_and_are_used_again() {
        let mut spares = Spares::default();
        for len in [1, 512, 4096, 4097, 1 << 20, 3 << 20] {
            let mut buffer = spares.take(len);
            assert_eq!(buffer.bytes().len(), len);
            assert!(buffer.bytes().as_ptr().addr().is_multiple_of(ALIGN));
            buffer.bytes_mut().fill(7);
            spares.give_back(buffer);
            let again = spares.take(len);
            // A new one is zeroed; where it lies is the allocator's business.
            let kept = again.bytes().iter().all(|byte| *byte == 7);
            assert_eq!(kept, len <= 1 << 20, "{len}");
            spares.give_back(again);
        }
        assert!(spares.kept <= KEPT_MAX);
    }

    #[test]
    fn no_more_is_kept_than_is_allowed() {
        let mut spares = Spares::default();
        let buffers: Vec<_> = (0..4).map(|_| spares.take(1 << 20)).collect();
        buffers.into_iter().for_each(|b| spares.give_back(b));
        assert_eq!(spares.kept, KEPT_MAX);
    }
}
