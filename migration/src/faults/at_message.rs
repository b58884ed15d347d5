//! Faults at a place of the checkpoint protocol, wherever its bytes come to lie.

use super::{Script, Step, Way};
use crate::checkpoint::checker::{Checker, LibxcMemory};
use crate::checkpoint::{Kind, Side};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What happens when the message passes.
pub enum Deed {
    /// The connection ends so many bytes behind the message's first one.
    Cut(usize),
    /// This is done before the message arrives.
    Call(Box<dyn FnOnce() + Send>),
}

impl std::fmt::Debug for Deed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cut(behind) => write!(f, "Cut({behind})"),
            Self::Call(_) => f.write_str("Call"),
        }
    }
}

/// Judges the conversation of a pair, and does something at one of its messages.
#[derive(Debug)]
pub struct AtMessage {
    checker: Checker<LibxcMemory>,
    at: Option<(Kind, u64, Deed)>,
    fired: Arc<AtomicBool>,
    in_order: Arc<AtomicBool>,
}

impl AtMessage {
    /// Does nothing; the conversation is judged all the same.
    pub fn watch() -> Self {
        Self {
            checker: Checker::new(LibxcMemory::default()),
            at: None,
            fired: Arc::default(),
            in_order: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Does it at the `nth` message of this kind, counted from 1.
    pub fn new(kind: Kind, nth: u64, deed: Deed) -> Self {
        Self {
            at: Some((kind, nth, deed)),
            ..Self::watch()
        }
    }

    /// Becomes true when it is done.
    pub fn fired(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.fired)
    }

    /// Becomes false when somebody says what the protocol does not have.
    pub fn in_order(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.in_order)
    }
}

impl Script for AtMessage {
    fn bytes(&mut self, way: Way, at: u64, bytes: &[u8]) -> Vec<Step> {
        let from = match way {
            Way::Forth => Side::Primary,
            Way::Back => Side::Secondary,
        };
        let pass = |bytes: &[u8]| Step::Pass(bytes.to_vec());
        let seen = match self.checker.feed(from, bytes) {
            Ok(seen) => seen,
            Err(verdict) => {
                tracing::error!(%verdict, "a pair is out of order");
                self.in_order.store(false, Ordering::Release);
                return vec![pass(bytes)];
            }
        };
        let wanted = |kind: Kind, nth: u64| {
            let mut seen = seen.iter();
            seen.find(|s| s.message.kind() == kind && s.nth == nth)
        };
        let Some((kind, nth, deed)) = self.at.take() else {
            return vec![pass(bytes)];
        };
        let Some(message) = wanted(kind, nth) else {
            self.at = Some((kind, nth, deed));
            return vec![pass(bytes)];
        };
        self.fired.store(true, Ordering::Release);
        match deed {
            Deed::Cut(behind) => {
                let start = usize::try_from(message.at.saturating_sub(at)).unwrap_or(0);
                let end = start.saturating_add(behind).min(bytes.len());
                vec![pass(bytes.get(..end).unwrap_or_default()), Step::Cut]
            }
            Deed::Call(deed) => {
                deed();
                vec![pass(bytes)]
            }
        }
    }
}
