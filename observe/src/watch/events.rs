//! A migration that runs elsewhere: what `tidemark migrate --progress json` prints.

use super::feed::{Feed, Update, WAITING};
use super::heat::CELLS;
use super::view::Round;
use serde::Deserialize;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;
use std::thread;

/// Octets of a line; a longer one ends the reading.
const LINE_MAX: u64 = 1 << 16;

/// Reads events from `input`, a line each, until it ends.
pub fn read_events(input: impl Read + Send + 'static) -> Feed {
    let (updates, told) = sync_channel(WAITING);
    thread::spawn(move || {
        let mut input = BufReader::new(input);
        let mut reader = Reader::default();
        let trouble = loop {
            let mut line = Vec::new();
            match (&mut input).take(LINE_MAX).read_until(b'\n', &mut line) {
                Ok(0) => break None,
                Ok(_) if !line.ends_with(b"\n") && line.len() as u64 == LINE_MAX => {
                    break Some(format!(
                        "a line of at most {LINE_MAX} octets was expected; are these the events of \
                         `tidemark migrate --progress json`?"
                    ));
                }
                Ok(_) => {}
                Err(error) => break Some(format!("the events cannot be read: {error}")),
            }
            let line = String::from_utf8_lossy(&line);
            for update in reader.line(line.trim_end()) {
                if updates.send(update).is_err() {
                    return;
                }
            }
        };
        // Who does not listen any more does not miss it.
        let _ = updates.send(Update::Ended(trouble));
    });
    Feed {
        updates: told,
        stop: Arc::new(AtomicBool::new(false)),
        ends: false,
    }
}

/// The events that are of interest; their other members are not.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    /// A round begins.
    Round { last: bool },
    /// Where its pages are.
    Map { memory_pages: u64, cells: Vec<u64> },
    /// It is over.
    RoundEnd {
        round: u32,
        pages: u64,
        bytes: u64,
        elapsed_ns: u64,
        last: bool,
    },
    /// Reports and progress.
    #[serde(other)]
    Else,
}

#[derive(Debug, Default)]
struct Reader {
    /// Of the round that goes on.
    cells: Vec<u64>,
}

impl Reader {
    /// What a line tells.
    fn line(&mut self, line: &str) -> Vec<Update> {
        let Ok(event) = serde_json::from_str(line) else {
            return vec![Update::Other(line.to_owned())];
        };
        match event {
            Event::Else => Vec::new(),
            Event::Round { last: false } => vec![Update::Moves {
                requests: 0,
                queues: Vec::new(),
            }],
            Event::Round { last: true } => vec![Update::Suspended {
                status: "paused for the last round".to_owned(),
                indices: Vec::new(),
            }],
            Event::Map {
                memory_pages,
                mut cells,
            } => {
                cells.truncate(usize::try_from(CELLS).unwrap_or(0));
                self.cells = cells;
                vec![Update::Memory {
                    pages: memory_pages,
                }]
            }
            Event::RoundEnd {
                round,
                pages,
                bytes,
                elapsed_ns,
                last,
            } => vec![Update::Round(Round {
                round,
                pages,
                bytes,
                written: None,
                lost: None,
                harvests: None,
                seconds: elapsed_ns as f64 / 1e9,
                suspended: last,
                cells: std::mem::take(&mut self.cells),
            })],
        }
    }
}
