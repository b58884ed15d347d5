//! When pre-copy sends another round and when it stops the guest.

/// The limits of pre-copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Rounds before the guest may be stopped, the bulk round included.
    pub min_rounds: u32,
    /// Rounds after which the guest is stopped whatever it dirties, the bulk round included.
    pub max_rounds: u32,
    /// The guest is stopped once a round found at most this many dirty pages of 4 KiB.
    pub stop_pages: u64,
}

impl Policy {
    /// Limits for a memory of `pages` pages: at least three rounds after the bulk, at most seven,
    /// and a stop when 1/128 of the memory or less is dirty.
    pub fn for_memory(pages: u64) -> Self {
        Self {
            min_rounds: 4,
            max_rounds: 8,
            stop_pages: pages / 128,
        }
    }

    /// Whether the guest is to be stopped now, after `rounds` rounds of which the last had `pages`
    /// pages to send.
    pub fn stop_now(&self, rounds: u32, pages: u64) -> bool {
        rounds >= self.max_rounds || (rounds >= self.min_rounds && pages <= self.stop_pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_in_order() {
        let policy = Policy {
            min_rounds: 4,
            max_rounds: 6,
            stop_pages: 10,
        };
        assert!(!policy.stop_now(3, 0), "too early, however little is dirty");
        assert!(policy.stop_now(4, 10));
        assert!(!policy.stop_now(4, 11));
        assert!(!policy.stop_now(5, 11));
        assert!(policy.stop_now(6, u64::MAX));
    }
}
