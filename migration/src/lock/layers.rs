//! A remote's own side: two layers of configuration under one lock.

use crate::lock::{Answer, Claim, Claimant, Holder, Progress, RemoteError, Request, Token};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::SystemTime;
use uuid::Uuid;

/// Claims whose release is remembered. They are sorted by age, and the oldest go first.
const REMEMBERED: usize = 1024;

/// The running and the pending configuration of a device, and who may change them.
///
/// It can be written down whole and taken up again: a remote that does so before each answer keeps its
/// promises across its own end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layers<C> {
    running: C,
    pending: Option<C>,
    progress: Progress,
    lock: Option<Lock>,
    /// Up to which attempt a claimant's claims are void.
    released: BTreeMap<Uuid, u32>,
    generation: u64,
    /// The last apply that began, by the token it was asked for with, and how far it is.
    task: Option<(Uuid, Progress)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    holder: Holder,
    attempt: u32,
    token: Token,
    /// The lock ends with the apply that runs.
    ending: bool,
}

impl Lock {
    fn new(claim: Claim, who: Claimant, now: SystemTime, generation: u64) -> (Self, Token) {
        let token = Token {
            id: Uuid::now_v7(),
            generation,
        };
        let lock = Self {
            holder: Holder {
                claimant: who,
                since: now,
            },
            attempt: claim.attempt,
            token,
            ending: false,
        };
        (lock, token)
    }
}

impl<C: Clone> Layers<C> {
    /// An unlocked device that runs this.
    pub fn new(running: C) -> Self {
        Self {
            running,
            pending: None,
            progress: Progress::NotStarted,
            lock: None,
            released: BTreeMap::new(),
            generation: 0,
            task: None,
        }
    }

    /// What the device runs with.
    pub fn running(&self) -> &C {
        &self.running
    }

    /// What is staged.
    pub fn pending(&self) -> Option<&C> {
        self.pending.as_ref()
    }

    /// Who has the lock.
    pub fn holder(&self) -> Option<&Holder> {
        self.lock.as_ref().map(|lock| &lock.holder)
    }

    /// Whether a configuration is being applied: what is [pending](Self::pending).
    pub fn is_applying(&self) -> bool {
        self.progress == Progress::Running
    }

    /// How often the device was reset.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The last apply that began, and how far it is. Anyone may know, lock or not.
    pub fn task(&self) -> Option<(Uuid, &Progress)> {
        let task = self.task.as_ref();
        task.map(|(id, progress)| (*id, progress))
    }

    /// Answers a request at a time of the remote's clock. What [`Request::Apply`] begins is for the
    /// caller to do, with what is [pending](Self::pending), and to [end](Self::finish).
    pub fn answer(&mut self, request: Request<C>, now: SystemTime) -> Result<Answer, RemoteError> {
        match request {
            Request::Lock { claim, who } => self.lock(claim, who, now).map(Answer::Locked),
            Request::Release { claim } => {
                self.release(claim);
                Ok(Answer::Done)
            }
            Request::Stage { token, change } => {
                self.idle(token)?;
                self.pending = Some(change);
                self.progress = Progress::NotStarted;
                Ok(Answer::Done)
            }
            Request::Rollback { token } => {
                self.idle(token)?;
                self.pending = None;
                Ok(Answer::Done)
            }
            Request::Apply { token } => {
                self.check(token)?;
                if self.progress == Progress::NotStarted {
                    if self.pending.is_none() {
                        return Err(RemoteError::Refused("nothing is staged".into()));
                    }
                    self.progress = Progress::Running;
                    self.task = Some((token.id, Progress::Running));
                }
                Ok(Answer::Applying(self.progress.clone()))
            }
            Request::Poll { token } => {
                self.check(token)?;
                Ok(Answer::Applying(self.progress.clone()))
            }
        }
    }

    /// The apply that runs has ended; of none, nothing becomes. The error is its reason.
    pub fn finish(&mut self, result: Result<(), String>) {
        if self.progress != Progress::Running {
            return;
        }
        let pending = self.pending.take();
        self.progress = match (result, pending) {
            (Ok(()), Some(pending)) => {
                self.running = pending;
                Progress::Finished
            }
            (Ok(()), None) => Progress::Failed("nothing was staged".into()),
            (Err(reason), _) => Progress::Failed(reason),
        };
        if let Some((_, progress)) = &mut self.task {
            progress.clone_from(&self.progress);
        }
        if self.lock.as_ref().is_some_and(|lock| lock.ending) {
            self.lock = None;
        }
    }

    /// The device was reset: its lock and what is pending are gone, and tokens of before are void. It
    /// runs with this from now on.
    pub fn reset(&mut self, running: C) {
        self.generation += 1;
        self.running = running;
        self.free();
    }

    /// The holder was not heard of for too long: what it has not begun to apply is forgotten, and
    /// nothing that it asked for comes into force any more. Says whom that hit, if anyone.
    pub fn expire(&mut self) -> Option<Holder> {
        let lock = self.lock.as_ref().filter(|lock| !lock.ending)?;
        let (holder, attempt) = (lock.holder.clone(), lock.attempt);
        self.release(Claim {
            id: holder.claimant.id,
            attempt,
        });
        Some(holder)
    }

    /// Gives the lock of an apply that runs, and whose manager has left it, to another. That of a
    /// manager which may still come back for it is refused, unless by `force`.
    ///
    /// # Errors
    /// [`RemoteError::Held`] if its manager has not left; [`RemoteError::Refused`] if no such task runs.
    pub fn take_over(
        &mut self,
        task: Uuid,
        claim: Claim,
        who: Claimant,
        now: SystemTime,
        force: bool,
    ) -> Result<Token, RemoteError> {
        let runs = self.task.as_ref().is_some_and(|(id, _)| *id == task) && self.is_applying();
        let Some(lock) = self.lock.as_ref().filter(|_| runs) else {
            let why = format!("task {task} does not run; ask for the lock instead");
            return Err(RemoteError::Refused(why));
        };
        let same = lock.holder.claimant.id == claim.id;
        if same && !lock.ending && lock.attempt == claim.attempt {
            return Ok(lock.token);
        }
        if !lock.ending && !force {
            return Err(RemoteError::Held(lock.holder.clone()));
        }
        self.expire();
        let (lock, token) = Lock::new(claim, who, now, self.generation);
        self.lock = Some(lock);
        Ok(token)
    }

    /// Frees it by force and says whom that hit.
    pub fn force(&mut self) -> Option<Holder> {
        let holder = self.holder().cloned();
        self.free();
        holder
    }

    fn free(&mut self) {
        self.lock = None;
        self.pending = None;
        self.progress = Progress::NotStarted;
    }

    fn lock(&mut self, claim: Claim, who: Claimant, now: SystemTime) -> Result<Token, RemoteError> {
        if self
            .released
            .get(&claim.id)
            .is_some_and(|last| claim.attempt <= *last)
        {
            return Err(RemoteError::Fenced("this claim was released before".into()));
        }
        match &mut self.lock {
            Some(lock) if lock.holder.claimant.id != claim.id || lock.ending => {
                Err(RemoteError::Held(lock.holder.clone()))
            }
            Some(lock) => {
                lock.attempt = claim.attempt.max(lock.attempt);
                Ok(lock.token)
            }
            None => {
                let (lock, token) = Lock::new(claim, who, now, self.generation);
                self.lock = Some(lock);
                self.progress = Progress::NotStarted;
                Ok(token)
            }
        }
    }

    fn release(&mut self, claim: Claim) {
        let last = self.released.entry(claim.id).or_default();
        *last = claim.attempt.max(*last);
        if self.released.len() > REMEMBERED {
            self.released.pop_first();
        }
        let ours =
            |lock: &&mut Lock| lock.holder.claimant.id == claim.id && lock.attempt <= claim.attempt;
        if let Some(lock) = self.lock.as_mut().filter(ours) {
            if self.progress == Progress::Running {
                lock.ending = true;
            } else {
                self.lock = None;
                self.pending = None;
            }
        }
    }

    fn check(&self, token: Token) -> Result<(), RemoteError> {
        if token.generation != self.generation {
            return Err(RemoteError::Fenced("the device was reset since".into()));
        }
        match &self.lock {
            Some(lock) if lock.token == token => Ok(()),
            Some(lock) => Err(RemoteError::Held(lock.holder.clone())),
            None => Err(RemoteError::Fenced("the lock was released".into())),
        }
    }

    fn idle(&self, token: Token) -> Result<(), RemoteError> {
        self.check(token)?;
        match self.progress {
            Progress::Running => Err(RemoteError::Refused(
                "a configuration is being applied; poll until that has ended".into(),
            )),
            _ => Ok(()),
        }
    }
}
