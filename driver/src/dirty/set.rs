//! A set of pages.

/// A set of pages of [`PAGE_SIZE`](super::PAGE_SIZE) bytes, numbered from address 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtySet {}
