//! The three steps: lock, stage, apply.

use super::{Coordinator, Hold, Member, Pauses, senseless};
use crate::lock::{Answer, Cause, Failure, Phase, Progress, RemoteError, Request};
use std::time::Duration;

/// What came of asking for locks.
#[derive(Default)]
struct Tries {
    /// One failed in another way than by being another's.
    broken: bool,
    /// One is another's.
    contended: bool,
    /// Those that an older manager has.
    older: Vec<usize>,
}

impl<C> Coordinator<C> {
    /// Locks all, or releases all.
    pub(in crate::lock) fn lock(mut self) -> Result<Self, Failure> {
        let limit = self.terms.limits.lock;
        let deadline = self.now() + limit;
        let mut pauses = Pauses::new(&self.terms.limits, limit / 16);
        // To be had before any other is asked for: those that an older manager had.
        let mut first: Vec<usize> = Vec::new();
        loop {
            let missing = self.members_where(|member| !matches!(member.hold, Hold::Held(_)));
            let asked = if first.is_empty() { &missing } else { &first };
            let asked_all = asked.len() == missing.len();
            let Tries {
                broken,
                contended,
                older,
            } = self.try_lock(asked, deadline);
            if self.terms.cancel.is_cancelled() {
                return Err(self.fail(Cause::Cancelled));
            }
            if broken {
                return Err(self.fail(Cause::Lock));
            }
            if !contended {
                if asked_all {
                    return Ok(self);
                }
                first.clear();
                continue;
            }
            let pause = self.now() + pauses.take();
            // Whoever is older waits with what it has. Whoever is younger makes room, and has nothing
            // until the older one is through. So waiting goes from older to younger only, never in a
            // circle, and the oldest comes through whatever the others do.
            if pause >= deadline || (!older.is_empty() && !self.make_room()) {
                return Err(self.fail(Cause::Lock));
            }
            first = older;
            self.pause(pause.max(self.now()));
        }
    }

    /// Asks these for their locks, once.
    fn try_lock(&mut self, places: &[usize], deadline: Duration) -> Tries {
        let claim = self.claim();
        let who = self.terms.claimant.clone();
        let until = deadline.min(self.request_until());
        let request = |_| {
            let who = who.clone();
            Some(Request::Lock { claim, who })
        };
        let mut tries = Tries::default();
        for (place, answer) in self.ask(places, until, true, request) {
            let outcome = match answer {
                Ok(Answer::Locked(token)) => Ok(token),
                Ok(answer) => Err(senseless(&answer)),
                Err(error) => Err(error),
            };
            self.members[place].hold = match &outcome {
                Ok(token) => Hold::Held(*token),
                Err(RemoteError::Lost(_)) => Hold::Unsure,
                Err(_) => Hold::Free,
            };
            match &outcome {
                Err(RemoteError::Held(holder)) => {
                    tries.contended = true;
                    if holder.claimant.id < who.id {
                        tries.older.push(place);
                    }
                }
                Err(_) => tries.broken = true,
                Ok(_) => {}
            }
            let known = self.members[place].outcomes.get(&Phase::Lock);
            if matches!(outcome, Err(RemoteError::Lost(_)))
                && matches!(known, Some(Err(RemoteError::Held(_))))
            {
                // The last question before the deadline: who had it tells more than that silence.
                continue;
            }
            self.record(place, Phase::Lock, outcome.map(|_| ()));
        }
        tries
    }

    /// Gives all members their changes, or rolls back and releases all.
    pub(in crate::lock) fn stage(
        mut self,
        changes: Vec<Result<C, String>>,
    ) -> Result<Self, Failure> {
        for member in &mut self.members {
            // Of an earlier change.
            for phase in [Phase::Apply, Phase::Poll] {
                member.outcomes.remove(&phase);
            }
        }
        let mut wanted = Vec::with_capacity(changes.len());
        let mut broken = false;
        for (place, change) in changes.into_iter().enumerate() {
            if let Err(reason) = &change {
                broken = true;
                self.record(
                    place,
                    Phase::Stage,
                    Err(RemoteError::Refused(reason.clone())),
                );
            }
            wanted.push(change.ok());
        }
        if broken {
            return Err(self.fail(Cause::Stage));
        }
        if self.terms.cancel.is_cancelled() {
            return Err(self.fail(Cause::Cancelled));
        }
        let all = self.members_where(|_| true);
        for member in &mut self.members {
            member.staged = true;
        }
        let until = self.request_until();
        let mut places = wanted.into_iter();
        let answers = self.ask(&all, until, true, |token| {
            let change = places.next().flatten()?;
            Some(Request::Stage {
                token: token?,
                change,
            })
        });
        let done = self.record_done(Phase::Stage, answers);
        match () {
            () if self.terms.cancel.is_cancelled() => Err(self.fail(Cause::Cancelled)),
            () if !done => Err(self.fail(Cause::Stage)),
            () => Ok(self),
        }
    }

    /// Begins on all and waits for all. From the first that may have begun there is no way back.
    pub(in crate::lock) fn apply(mut self) -> Result<Self, Failure> {
        if self.terms.cancel.is_cancelled() {
            return Err(self.fail(Cause::Cancelled));
        }
        let deadline = self.now() + self.terms.limits.apply;
        let all = self.members_where(|_| true);
        let mut going = self.begin(&all, deadline);
        if going.is_empty() && self.members.iter().all(|member| member.staged) {
            return Err(self.fail(Cause::NotStarted));
        }
        let mut pauses = Pauses::new(&self.terms.limits, Duration::MAX);
        while !going.is_empty() {
            let until = deadline.min(self.request_until());
            let answers = self.ask(&going, until, true, |token| {
                Some(Request::Poll { token: token? })
            });
            going.clear();
            let mut again = Vec::new();
            for (place, answer) in answers {
                if matches!(
                    answer,
                    Ok(Answer::Applying(
                        Progress::Running | Progress::Finished | Progress::Failed(_)
                    ))
                ) {
                    // It had begun, if the answer to that was lost.
                    self.record(place, Phase::Apply, Ok(()));
                }
                let outcome = match answer {
                    Ok(Answer::Applying(Progress::Finished)) => Ok(()),
                    Ok(Answer::Applying(Progress::Failed(reason))) => {
                        Err(RemoteError::Refused(reason))
                    }
                    Ok(Answer::Applying(Progress::Running)) => {
                        going.push(place);
                        Err(RemoteError::Lost(
                            "it was still applying when last asked".into(),
                        ))
                    }
                    Ok(Answer::Applying(Progress::NotStarted)) => {
                        again.push(place);
                        Err(RemoteError::Lost("it had not begun when last asked".into()))
                    }
                    Ok(answer) => Err(senseless(&answer)),
                    Err(RemoteError::Lost(reason)) => {
                        going.push(place);
                        Err(RemoteError::Lost(reason))
                    }
                    Err(error) => Err(error),
                };
                self.record(place, Phase::Poll, outcome);
            }
            if !again.is_empty() {
                // The request was lost on its way.
                going.extend(self.begin(&again, deadline));
                going.sort_unstable();
            }
            let pause = self.now() + pauses.take();
            if pause >= deadline || self.terms.cancel.is_cancelled() {
                break;
            }
            if !going.is_empty() {
                self.pause(pause);
            }
        }
        let finished =
            |member: &Member<C>| matches!(member.outcomes.get(&Phase::Poll), Some(Ok(())));
        if self.members.iter().all(finished) {
            return Ok(self);
        }
        Err(self.fail(Cause::Incomplete))
    }

    /// Asks these to begin. Those that may have.
    fn begin(&mut self, places: &[usize], deadline: Duration) -> Vec<usize> {
        let until = deadline.min(self.request_until());
        let answers = self.ask(places, until, false, |token| {
            Some(Request::Apply { token: token? })
        });
        let mut begun = Vec::new();
        for (place, answer) in answers {
            let outcome = match answer {
                Ok(Answer::Applying(_)) => Ok(()),
                Ok(answer) => Err(senseless(&answer)),
                Err(error) => Err(error),
            };
            if matches!(outcome, Ok(()) | Err(RemoteError::Lost(_))) {
                self.members[place].staged = false;
                begun.push(place);
            }
            // Of an earlier phase of the set, maybe.
            self.members[place].outcomes.remove(&Phase::Poll);
            self.record(place, Phase::Apply, outcome);
        }
        begun
    }
}
