//! Commands and their answers, apart from where they stand in memory.

use spec::admin::{CommandHeader, qualifier, status};
use std::collections::BTreeSet;
use zerocopy::{FromBytes, FromZeros, IntoBytes, little_endian::U64};

use crate::tracker::records::{Recorder, Taken};
use std::sync::Arc;

/// A command, read once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command<'a> {
    pub(super) opcode: u16,
    pub(super) group_type: u16,
    pub(super) member: u64,
    /// `command_specific_data`, as much as there is.
    pub(super) data: &'a [u8],
    /// Bytes that the buffer has for `command_specific_result`.
    pub(super) room: usize,
}

/// Success.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) output: u32,
    pub(super) result: Vec<u8>,
    /// Records that go out after the result, and are given back if they do not.
    pub(super) records: Option<(Arc<Recorder>, Taken)>,
}

/// Anything else. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A status that is not OK, and its qualifier.
    Status(u16, u16),
    /// It is to be asked again when a member has moved.
    Wait,
}

impl Refusal {
    pub(super) const fn einval(qualifier: u16) -> Self {
        Self::Status(status::EINVAL, qualifier)
    }
    /// Something in the command's own data.
    pub(super) const FIELD: Self = Self::einval(qualifier::INVALID_FIELD);
}

impl Reply {
    pub(super) fn with(result: Vec<u8>) -> Self {
        Self {
            result,
            ..Self::default()
        }
    }
}

impl<'a> Command<'a> {
    /// From the device-readable part. What is missing reads 0 (AQ-1).
    pub(super) fn read(bytes: &'a [u8], room: usize) -> Self {
        let (header, data) = take::<CommandHeader>(bytes);
        Self {
            opcode: header.opcode.get(),
            group_type: header.group_type.get(),
            member: header.group_member_id.get(),
            data,
            room,
        }
    }
}

/// The structure at the beginning of `bytes`, and what follows it. What is missing reads 0.
pub(super) fn take<T: FromBytes + IntoBytes + FromZeros>(bytes: &[u8]) -> (T, &[u8]) {
    let mut value = T::new_zeroed();
    let len = bytes.len().min(size_of::<T>());
    let (now, rest) = bytes.split_at(len);
    value.as_mut_bytes()[..len].copy_from_slice(now);
    (value, rest)
}

/// A list of bits as 64-bit words, as long as its largest needs.
pub(super) fn list(bits: &BTreeSet<u16>) -> Vec<u8> {
    let max = bits.last().copied().unwrap_or(0);
    let mut words = vec![U64::ZERO; spec::admin::list_words(max)];
    for bit in bits {
        let (word, bit) = (usize::from(bit / 64), bit % 64);
        words[word] |= U64::new(1 << bit);
    }
    words.as_bytes().to_vec()
}

/// The bits of a list of any length; `None` if one of them is no 16-bit number.
pub(super) fn read_list(bytes: &[u8]) -> Option<BTreeSet<u16>> {
    let mut bits = BTreeSet::new();
    for (at, byte) in bytes.iter().enumerate() {
        for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
            bits.insert(u16::try_from(at * 8 + bit).ok()?);
        }
    }
    Some(bits)
}
