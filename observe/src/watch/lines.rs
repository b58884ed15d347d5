//! A line for each round, for those who have no terminal.

use super::feed::{Feed, Update};
use super::view::View;
use std::io::{self, Write};

/// Takes in all that `feed` tells, until it ends; prints a line for each round, if there is somewhere
/// to print.
///
/// # Errors
/// What the output says. What happened until then is in `view`.
pub fn show_lines(feed: &Feed, view: &mut View, mut out: Option<&mut dyn Write>) -> io::Result<()> {
    if let Some(out) = &mut out {
        writeln!(out, "round      pages      bytes   lost      time  state")?;
    }
    for update in &feed.updates {
        let ended = matches!(update, Update::Ended(_));
        let is_round = matches!(update, Update::Round(_));
        view.take(update);
        if let (true, Some(out), Some(round)) = (is_round, &mut out, view.rounds.last()) {
            let lost = round.lost.map_or("-".to_owned(), |lost| lost.to_string());
            writeln!(
                out,
                "{:>5} {:>10} {:>10} {lost:>6} {:>6.1} ms  {}",
                round.round,
                round.pages,
                round.bytes,
                round.seconds * 1e3,
                if round.suspended {
                    "suspended"
                } else {
                    "running"
                },
            )?;
            out.flush()?;
        }
        if ended {
            break;
        }
    }
    Ok(())
}
