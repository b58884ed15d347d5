//! From bytes of a fuzzer to values: a small decoder that never fails.
//!
//! Few bytes give many meanings: choices take one byte each, so that a mutation of one byte is a
//! mutation of one thing. What is missing at the end reads 0.

/// Bytes that are consumed from the front.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Nothing is left: whatever is taken now reads 0.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `len` bytes, or as many as there are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (now, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        now
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `count`, which is 1 to 256, from one byte.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.u8()) % count.max(1)
    }

    /// Whether one byte is odd.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// True once in `count` times.
    pub fn once_in(&mut self, count: usize) -> bool {
        self.below(count) == count.saturating_sub(1)
    }

    /// One of `choices`, by one byte.
    ///
    /// # Panics
    ///
    /// There is none.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        assert!(!choices.is_empty(), "something to choose from");
        choices[self.below(choices.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::Input;

    #[test]
    fn what_is_missing_reads_zero() {
        let mut input = Input::new(&[1, 2, 3]);
        assert_eq!((input.u16(), input.u16(), input.u64()), (0x0201, 3, 0));
        assert!(input.is_empty());
        assert_eq!(input.below(7), 0);
    }

    #[test]
    fn choices_take_one_byte() {
        let mut input = Input::new(&[5, 0xff, 9]);
        assert_eq!(input.pick(&[10, 11, 12]), 12);
        assert_eq!(input.bytes(9), [0xff, 9]);
    }
}
