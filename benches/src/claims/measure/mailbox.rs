//! A device in a thread of its own that is asked for its records.

use super::bed::Recorded;
use super::{Error, Result};
use driver::dirty::DirtySet;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

/// How both sides wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// By looking all the time.
    Spinning,
    /// By sleeping until the other side wakes it, as behind an eventfd.
    Woken,
}

/// The buffer of an answer, and whether there may be more.
type Answer = (Vec<u64>, bool);

/// The driver's end. The device goes home when it is dropped.
#[derive(Debug)]
pub struct Mailbox {
    questions: SyncSender<Vec<u64>>,
    answers: Receiver<Answer>,
    wait: Wait,
}

fn receive<T>(from: &Receiver<T>, wait: Wait) -> Option<T> {
    match wait {
        Wait::Woken => from.recv().ok(),
        Wait::Spinning => loop {
            match from.try_recv() {
                Ok(value) => return Some(value),
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                Err(TryRecvError::Disconnected) => return None,
            }
        },
    }
}

impl Mailbox {
    /// Starts a device that answers with so many records at most.
    pub fn open<'scope>(
        scope: &'scope Scope<'scope, '_>,
        recorded: &'scope Recorded,
        most: usize,
        wait: Wait,
    ) -> (Self, ScopedJoinHandle<'scope, ()>) {
        let (questions, asked) = sync_channel::<Vec<u64>>(1);
        let (answer, answers) = sync_channel(1);
        let device = scope.spawn(move || {
            while let Some(mut records) = receive(&asked, wait) {
                records.clear();
                let (more, _) = recorded.take(most, |page| records.push(page));
                if answer.send((records, more)).is_err() {
                    return;
                }
            }
        });
        let mailbox = Self {
            questions,
            answers,
            wait,
        };
        (mailbox, device)
    }

    /// Fetches all records.
    ///
    /// # Errors
    /// The device is gone.
    pub fn read_all(&self, buffer: &mut Vec<u64>, into: &mut DirtySet) -> Result<()> {
        loop {
            self.questions
                .send(std::mem::take(buffer))
                .map_err(|_| "the device is gone")?;
            let answer = receive(&self.answers, self.wait);
            let (records, more) = answer.ok_or_else(|| Error::from("the device is gone"))?;
            for page in &records {
                into.insert(*page);
            }
            *buffer = records;
            if !more {
                return Ok(());
            }
        }
    }
}
