//! Who watches a migration, and who judges its switch-over.

use crate::guest::Guest;
use crate::policy::Seen;
use crate::report::RoundReport;
use driver::dirty::DirtySet;

/// Told what a migration does, and asked once whether it may be completed.
pub trait Observer {
    /// The sources are about to be asked what the running guest dirtied for round `round`. May
    /// wait, and so pace the rounds.
    fn before_round(&mut self, round: u32) {
        let _ = round;
    }
    /// The sources have reported for round `round`: so many pages of 4 KiB are dirty. `seen` is what
    /// the policy knew before.
    fn dirty(&mut self, round: u32, pages: u64, seen: &Seen) {
        let _ = (round, pages, seen);
    }
    /// A round starts; `pages` pages of 4 KiB are to be sent. `last`: the guest is paused.
    fn round_started(&mut self, round: u32, pages: u64, last: bool) {
        let _ = (round, pages, last);
    }
    /// The pages of the round, by number, before the first of them is sent.
    fn sending(&mut self, round: u32, pages: &DirtySet) {
        let _ = (round, pages);
    }
    /// So many pages of the round have been sent.
    fn progress(&mut self, round: u32, sent: u64) {
        let _ = (round, sent);
    }
    /// The destination has acknowledged the round.
    fn round_ended(&mut self, report: &RoundReport) {
        let _ = report;
    }
    /// Both sides hold the guest and neither runs it. An error sends it back to the source; its
    /// text says why.
    fn switch_over(&mut self, guest: &dyn Guest) -> Result<(), String> {
        let _ = guest;
        Ok(())
    }
}

/// Watches nothing and approves of everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
