//! Virtqueues as the driver builds them.

mod split;

pub use split::{Buffer, ChainState, SplitQueue, SplitQueueState, Used};
