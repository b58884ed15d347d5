//! A device in a thread of its own that looks for questions all the time, as its driver does for
//! answers: what records cost if asking costs next to nothing.

use super::bed::Recorded;
use super::{Error, Result};
use driver::dirty::DirtySet;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

/// The driver's end. The device goes home when it is dropped.
#[derive(Debug)]
pub struct Mailbox {
    questions: SyncSender<Vec<u64>>,
    answers: Receiver<(Vec<u64>, bool)>,
}

fn receive<T>(from: &Receiver<T>) -> Option<T> {
    loop {
        match from.try_recv() {
            Ok(value) => return Some(value),
            Err(TryRecvError::Empty) => std::hint::spin_loop(),
            Err(TryRecvError::Disconnected) => return None,
        }
    }
}

impl Mailbox {
    /// Starts a device that answers with so many records at most.
    pub fn open<'scope>(
        scope: &'scope Scope<'scope, '_>,
        recorded: &'scope Recorded,
        most: usize,
    ) -> (Self, ScopedJoinHandle<'scope, ()>) {
        let (questions, asked) = sync_channel::<Vec<u64>>(1);
        let (answer, answers) = sync_channel(1);
        let device = scope.spawn(move || {
            while let Some(mut records) = receive(&asked) {
                records.clear();
                let (more, _) = recorded.take(most, |page| records.push(page));
                if answer.send((records, more)).is_err() {
                    return;
                }
            }
        });
        (Self { questions, answers }, device)
    }

    /// Fetches all records; `buffer` goes to and fro.
    ///
    /// # Errors
    /// The device is gone.
    pub fn read_all(&self, buffer: &mut Vec<u64>, into: &mut DirtySet) -> Result<()> {
        let gone = || Error::from("the device is gone");
        loop {
            let question = self.questions.send(std::mem::take(buffer));
            question.map_err(|_| gone())?;
            let (records, more) = receive(&self.answers).ok_or_else(gone)?;
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
