//! What all steps of a set are made of: ask all at once, wait with a limit, release whatever is held.

mod steps;

use crate::lock::clock::{Happened, Ticket};
use crate::lock::{
    Answer, Cause, Claim, Event, Failure, Inbox, Limits, Phase, Remote, RemoteError, Remotes,
    Reply, Report, Request, Row, Stuck, Terms, Token,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// What is known of a remote's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// Not ours.
    Free,
    /// It may be ours: an answer is missing.
    Unsure,
    /// Ours.
    Held(Token),
}

struct Member<C> {
    remote: Arc<dyn Remote<C>>,
    hold: Hold,
    /// Something may be pending.
    staged: bool,
    outcomes: BTreeMap<Phase, Result<(), RemoteError>>,
    stuck: Option<RemoteError>,
}

/// A set in any state. Dropping it rolls back what is pending and releases what is held.
pub(super) struct Coordinator<C> {
    members: Vec<Member<C>>,
    terms: Terms,
    attempt: u32,
    inbox: Inbox,
    sender: Sender<Event>,
    tickets: u64,
}

/// Which member, and what it said.
type Answers = Vec<(usize, Result<Answer, RemoteError>)>;

/// An answer that no correct remote gives to what it was asked.
fn senseless(answer: &Answer) -> RemoteError {
    RemoteError::Lost(format!(
        "it answered {answer:?}, which is no answer to that"
    ))
}

/// The next pause after one.
struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    /// None longer than this or the limit.
    fn new(limits: &Limits, longest: Duration) -> Self {
        Self {
            next: limits.shortest_pause,
            longest: limits.longest_pause.min(longest),
        }
    }

    fn take(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }
}

impl<C> Coordinator<C> {
    pub(super) fn new(remotes: Remotes<C>, terms: Terms) -> Self {
        let (sender, inbox) = Inbox::new();
        terms.cancel.wake(&sender);
        let member = |remote| Member {
            remote,
            hold: Hold::Free,
            staged: false,
            outcomes: BTreeMap::new(),
            stuck: None,
        };
        Self {
            members: remotes.0.into_iter().map(member).collect(),
            terms,
            attempt: 1,
            inbox,
            sender,
            tickets: 0,
        }
    }

    /// Rolls back, releases and reports.
    pub(super) fn end(mut self) -> Report {
        self.settle();
        self.report()
    }

    /// Parts from those that are not to be kept: they are another's.
    pub(super) fn part(&mut self, keep: impl Fn(&str) -> bool) -> Self {
        let members = std::mem::take(&mut self.members);
        let (kept, others) = members
            .into_iter()
            .partition(|member| keep(member.remote.name()));
        self.members = kept;
        let (sender, inbox) = Inbox::new();
        self.terms.cancel.wake(&sender);
        Self {
            members: others,
            terms: self.terms.clone(),
            attempt: self.attempt,
            inbox,
            sender,
            tickets: 0,
        }
    }

    /// The names of the members, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.remote.name())
    }

    /// What is known so far.
    pub(super) fn report(&self) -> Report {
        let rows = self.members.iter().flat_map(|member| {
            member.outcomes.iter().map(|(phase, outcome)| Row {
                remote: member.remote.name().to_owned(),
                phase: *phase,
                outcome: outcome.clone(),
            })
        });
        let stuck = self.members.iter().filter_map(|member| {
            Some(Stuck {
                remote: member.remote.name().to_owned(),
                why: member.stuck.clone()?,
                command: member.remote.free_command(),
            })
        });
        Report::new(rows.collect(), stuck.collect())
    }

    fn fail(&mut self, cause: Cause) -> Failure {
        self.settle();
        Failure {
            cause,
            report: self.report(),
        }
    }

    /// Rolls back what may be pending, then releases whatever may be held. A failed rollback is
    /// reported and no more: the release forgets what is pending as well.
    fn settle(&mut self) {
        let staged = self.members_where(|member| member.staged);
        if !staged.is_empty() {
            let until = self.request_until();
            let answers = self.ask(&staged, until, false, |token| {
                Some(Request::Rollback { token: token? })
            });
            self.record_done(Phase::Rollback, answers);
            staged
                .iter()
                .for_each(|place| self.members[*place].staged = false);
        }
        let deadline = self.now() + self.terms.limits.release;
        let mut pauses = Pauses::new(&self.terms.limits, Duration::MAX);
        loop {
            let lost = self.release(deadline);
            let pause = self.now() + pauses.take();
            if !lost || pause >= deadline {
                break;
            }
            // Nothing ends this pause but time.
            while self.terms.clock.wait(&self.inbox, pause).is_some() {}
        }
        for member in &mut self.members {
            if member.hold != Hold::Free {
                let released = member.outcomes.get(&Phase::Release).cloned();
                let unknown = RemoteError::Lost("it was not asked".into());
                member.stuck = Some(released.and_then(Result::err).unwrap_or(unknown));
                member.hold = Hold::Free;
            }
        }
    }

    /// Releases whatever may be held, once. Whether an answer is missing.
    fn release(&mut self, deadline: Duration) -> bool {
        let held = self.members_where(|member| {
            let refused = matches!(
                member.outcomes.get(&Phase::Release),
                Some(Err(RemoteError::Refused(_)))
            );
            member.hold != Hold::Free && !refused
        });
        let claim = self.claim();
        let until = deadline.min(self.request_until());
        let answers = self.ask(&held, until, false, |_| Some(Request::Release { claim }));
        let mut lost = false;
        for (place, answer) in answers {
            let outcome = match answer {
                Ok(Answer::Done) => Ok(()),
                Ok(answer) => Err(senseless(&answer)),
                Err(error) => Err(error),
            };
            match &outcome {
                Err(RemoteError::Lost(_)) => lost = true,
                Err(RemoteError::Refused(_)) => {}
                // Another's, or nobody's.
                Ok(()) | Err(_) => self.members[place].hold = Hold::Free,
            }
            self.record(place, Phase::Release, outcome);
        }
        lost
    }

    /// Releases all to come again. Whether all are free.
    fn make_room(&mut self) -> bool {
        self.release(self.now() + self.terms.limits.release);
        self.attempt += 1;
        let free = self.members.iter().all(|member| member.hold == Hold::Free);
        if free {
            for member in &mut self.members {
                member.outcomes.remove(&Phase::Release);
            }
        } else {
            // What is left over is released under the claim that it was locked under, or a later one.
            self.attempt -= 1;
        }
        free
    }

    fn claim(&self) -> Claim {
        Claim {
            id: self.terms.claimant.id,
            attempt: self.attempt,
        }
    }

    fn now(&self) -> Duration {
        self.terms.clock.now()
    }

    fn request_until(&self) -> Duration {
        self.now() + self.terms.limits.request
    }

    fn members_where(&self, wanted: impl Fn(&Member<C>) -> bool) -> Vec<usize> {
        let members = self.members.iter().enumerate();
        members
            .filter(|(_, member)| wanted(member))
            .map(|(place, _)| place)
            .collect()
    }

    fn record(&mut self, place: usize, phase: Phase, outcome: Result<(), RemoteError>) {
        self.members[place].outcomes.insert(phase, outcome);
    }

    /// Whether all are done.
    fn record_done(&mut self, phase: Phase, answers: Answers) -> bool {
        let mut done = true;
        for (place, answer) in answers {
            let outcome = match answer {
                Ok(Answer::Done) => Ok(()),
                Ok(answer) => Err(senseless(&answer)),
                Err(error) => Err(error),
            };
            done &= outcome.is_ok();
            self.record(place, phase, outcome);
        }
        done
    }

    /// Waits; cancelling ends it.
    fn pause(&self, until: Duration) {
        while !self.terms.cancel.is_cancelled() {
            // Late answers to what was given up come here and are of no use.
            if self.terms.clock.wait(&self.inbox, until).is_none() {
                return;
            }
        }
    }

    /// Asks these at once and waits for all of them, until this time at most. `request` makes a
    /// request from the member's token, in the order of `places`; where it makes none, the member has
    /// lost its lock.
    fn ask(
        &mut self,
        places: &[usize],
        until: Duration,
        cancellable: bool,
        mut request: impl FnMut(Option<Token>) -> Option<Request<C>>,
    ) -> Answers {
        let began = self.now();
        let mut answers = Answers::with_capacity(places.len());
        let mut open = BTreeMap::new();
        for &place in places {
            let member = &self.members[place];
            let token = match member.hold {
                Hold::Held(token) => Some(token),
                Hold::Free | Hold::Unsure => None,
            };
            let Some(request) = request(token) else {
                answers.push((place, Err(RemoteError::Fenced("it is not locked".into()))));
                continue;
            };
            self.tickets += 1;
            let ticket = Ticket(self.tickets);
            open.insert(ticket, place);
            member
                .remote
                .send(request, Reply::new(self.sender.clone(), ticket));
        }
        let give_up = loop {
            if open.is_empty() {
                break None;
            }
            if cancellable && self.terms.cancel.is_cancelled() {
                break Some("cancelled while it was waited for".to_owned());
            }
            match self.terms.clock.wait(&self.inbox, until) {
                // An answer to what was given up has no place any more.
                Some(Event(Happened::Answered(ticket, answer))) => {
                    answers.extend(open.remove(&ticket).map(|place| (place, answer)));
                }
                Some(Event(Happened::Cancelled)) => {}
                None => {
                    let waited = until.saturating_sub(began).as_secs_f64();
                    break Some(format!("nothing came within {waited:.1} s"));
                }
            }
        };
        if let Some(reason) = give_up {
            let lost = RemoteError::Lost(reason);
            answers.extend(open.into_values().map(|place| (place, Err(lost.clone()))));
        }
        answers.sort_by_key(|(place, _)| *place);
        answers
    }
}

impl<C> Drop for Coordinator<C> {
    fn drop(&mut self) {
        if self.members.iter().all(|member| member.hold == Hold::Free) {
            return;
        }
        self.settle();
        for Stuck {
            remote,
            why,
            command,
        } in self.report().stuck
        {
            tracing::warn!(remote, %why, command, "a dropped set could not release a remote");
        }
    }
}
