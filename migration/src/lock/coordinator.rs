//! What all steps of a set are made of: ask all at once, wait with a limit, release whatever is held.

use crate::lock::clock::{Happened, Ticket};
use crate::lock::{
    Answer, Cancel, Cause, Claim, Claimant, Clock, Event, Failure, Inbox, Phase, Progress, Remote,
    RemoteError, Remotes, Reply, Report, Request, Row, Stuck, SystemClock, Token,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until all locks are had, waiting for other managers included.
    pub lock: Duration,
    /// One request, to its answer.
    pub request: Duration,
    /// Until all have come to the end of their apply.
    pub apply: Duration,
    /// Until all are released, with retries.
    pub release: Duration,
    /// The first pause before anything is asked again. Each is twice as long as the one before.
    pub shortest_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lock: Duration::from_secs(10),
            request: Duration::from_secs(2),
            apply: Duration::from_secs(60),
            release: Duration::from_secs(5),
            shortest_pause: Duration::from_millis(10),
            longest_pause: Duration::from_secs(3),
        }
    }
}

/// On what terms a set is locked.
#[derive(Clone)]
pub struct Terms {
    /// Who locks it.
    pub claimant: Claimant,
    /// How long that may take.
    pub limits: Limits,
    /// Ends the waiting.
    pub cancel: Cancel,
    /// Measures it.
    pub clock: Arc<dyn Clock>,
}

impl Terms {
    /// The defaults, in real time, for a claimant of this name.
    pub fn new(who: impl Into<String>) -> Self {
        Self {
            claimant: Claimant::new(who),
            limits: Limits::default(),
            cancel: Cancel::default(),
            clock: Arc::new(SystemClock::default()),
        }
    }
}

impl std::fmt::Debug for Terms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terms")
            .field("claimant", &self.claimant)
            .field("limits", &self.limits)
            .field("cancel", &self.cancel)
            .finish_non_exhaustive()
    }
}

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

    /// Locks all, or releases all.
    pub(super) fn lock(mut self) -> Result<Self, Failure> {
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
            self.record(place, Phase::Lock, outcome.map(|_| ()));
        }
        tries
    }

    /// Gives all members their changes, or rolls back and releases all.
    pub(super) fn stage(mut self, changes: Vec<Result<C, String>>) -> Result<Self, Failure> {
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
    pub(super) fn apply(mut self) -> Result<Self, Failure> {
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

    /// Rolls back, releases and reports.
    pub(super) fn end(mut self) -> Report {
        self.settle();
        self.report()
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
