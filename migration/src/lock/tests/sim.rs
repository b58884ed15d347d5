//! Remotes on a virtual clock that do what they are told to do wrong.

use crate::lock::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// Half a round trip.
pub const HALF: Duration = Duration::from_micros(2500);
/// A round trip.
pub const RTT: Duration = Duration::from_millis(5);
/// What a device takes to apply, by itself.
pub const DEVICE: Duration = Duration::from_millis(20);
/// What all run at first.
pub const OLD: u32 = 1;
/// What is staged.
pub const NEW: u32 = 2;

type Action = Box<dyn FnOnce(&mut Agenda) + Send>;

/// What will happen when, and who waits.
pub struct Agenda {
    now: Duration,
    number: u64,
    events: BTreeMap<(Duration, u64), Action>,
    /// Managers that have not ended.
    active: usize,
    /// Those that wait, and until when.
    waiting: BTreeMap<usize, Duration>,
    /// Those of them that found nothing since the last event.
    looked: BTreeSet<usize>,
}

impl Agenda {
    /// Lets something happen in a while.
    pub fn after(&mut self, delay: Duration, action: impl FnOnce(&mut Self) + Send + 'static) {
        self.number += 1;
        self.events
            .insert((self.now + delay, self.number), Box::new(action));
    }
}

/// A world with a clock that stands still while a manager thinks. One manager runs at a time, in the
/// order of their numbers, so that every run is the same.
pub struct World {
    agenda: Mutex<Agenda>,
    changed: Condvar,
}

impl World {
    /// One for so many managers, which must all wait before time moves.
    pub fn new(managers: usize) -> Arc<Self> {
        let agenda = Agenda {
            now: Duration::ZERO,
            number: 0,
            events: BTreeMap::new(),
            active: managers,
            waiting: BTreeMap::new(),
            looked: BTreeSet::new(),
        };
        Arc::new(Self {
            agenda: Mutex::new(agenda),
            changed: Condvar::new(),
        })
    }

    pub fn agenda(&self) -> MutexGuard<'_, Agenda> {
        self.agenda.lock().expect("no manager panicked")
    }

    pub fn now(&self) -> Duration {
        self.agenda().now
    }

    /// One manager less.
    pub fn leave(&self) {
        self.agenda().active -= 1;
        self.changed.notify_all();
    }

    /// Lets everything happen that is still to happen.
    pub fn drain(&self) {
        let mut agenda = self.agenda();
        while let Some(((at, _), action)) = agenda.events.pop_first() {
            agenda.now = at;
            action(&mut agenda);
        }
    }

    fn wait(&self, me: usize, inbox: &Inbox, until: Duration) -> Option<Event> {
        let mut agenda = self.agenda();
        agenda.waiting.insert(me, until);
        self.changed.notify_all();
        loop {
            if agenda.waiting.len() < agenda.active {
                agenda = self.changed.wait(agenda).expect("no manager panicked");
                continue;
            }
            let Agenda {
                waiting, looked, ..
            } = &*agenda;
            let next = waiting
                .keys()
                .find(|manager| !looked.contains(manager))
                .copied();
            if next == Some(me) {
                let event = inbox.try_take();
                if event.is_some() || agenda.now >= until {
                    agenda.waiting.remove(&me);
                    return event;
                }
                agenda.looked.insert(me);
            } else if next.is_some() {
                self.changed.notify_all();
                agenda = self.changed.wait(agenda).expect("no manager panicked");
            } else {
                let deadline = *agenda.waiting.values().min().expect("I wait");
                match agenda.events.first_key_value() {
                    Some((&(at, _), _)) if at <= deadline => {
                        let (_, action) = agenda.events.pop_first().expect("it is there");
                        agenda.now = at;
                        action(&mut agenda);
                    }
                    _ => agenda.now = deadline,
                }
                agenda.looked.clear();
            }
        }
    }
}

/// The world's clock, for one manager.
pub struct SimClock {
    pub world: Arc<World>,
    pub me: usize,
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        self.world.now()
    }

    fn wait(&self, inbox: &Inbox, until: Duration) -> Option<Event> {
        self.world.wait(self.me, inbox, until)
    }
}

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It is refused.
    Error,
    /// No answer comes.
    Timeout,
    /// The remote dies, and does not come back.
    Crash,
    /// It takes long.
    Slow,
}

/// A fault of the first request of its phase. `late` chooses between two ways of each kind: whether the
/// request is carried out before the answer is lost or the remote dies; whether what is slow is
/// slower than its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub phase: Phase,
    pub kind: Kind,
    pub late: bool,
}

pub const PHASES: [Phase; 6] = [
    Phase::Lock,
    Phase::Stage,
    Phase::Rollback,
    Phase::Release,
    Phase::Apply,
    Phase::Poll,
];
pub const KINDS: [Kind; 4] = [Kind::Error, Kind::Timeout, Kind::Crash, Kind::Slow];

/// A remote's inside.
pub struct Inside {
    pub layers: Layers<u32>,
    pub down: bool,
    /// The phases of all requests that came, in order.
    pub asked: Vec<Phase>,
    /// To come, one after another.
    faults: Vec<Fault>,
    /// How many of them have happened.
    pub happened: usize,
    /// Never answered.
    kept: Vec<Reply>,
}

impl Inside {
    /// Carries a request out; what an apply begins ends after the device's own time.
    fn carry_out(
        this: &Arc<Mutex<Self>>,
        agenda: &mut Agenda,
        request: Request<u32>,
    ) -> Result<Answer, RemoteError> {
        let now = SystemTime::UNIX_EPOCH + agenda.now;
        let begins = matches!(request, Request::Apply { .. });
        let answer = this.lock().expect("whole").layers.answer(request, now);
        if begins {
            let this = Arc::clone(this);
            agenda.after(DEVICE, move |_| {
                let mut inside = this.lock().expect("whole");
                if !inside.down {
                    inside.layers.finish(Ok(()));
                }
            });
        }
        answer
    }

    pub fn arrive(
        this: &Arc<Mutex<Self>>,
        agenda: &mut Agenda,
        request: Request<u32>,
        reply: Reply,
    ) {
        let phase = phase(&request);
        let fault = {
            let mut inside = this.lock().expect("whole");
            inside.asked.push(phase);
            if inside.down {
                drop(inside);
                let lost = Err(RemoteError::Lost("unreachable".into()));
                return agenda.after(HALF, move |_| reply.send(lost));
            }
            let next = inside
                .faults
                .first()
                .copied()
                .filter(|fault| fault.phase == phase);
            if next.is_some() {
                inside.faults.remove(0);
                inside.happened += 1;
            }
            next
        };
        let Some(Fault { kind, late, .. }) = fault else {
            let answer = Self::carry_out(this, agenda, request);
            return agenda.after(HALF, move |_| reply.send(answer));
        };
        match kind {
            Kind::Error if phase == Phase::Poll => {
                // What a poll can bring is that the apply failed.
                this.lock()
                    .expect("whole")
                    .layers
                    .finish(Err("the device cannot".into()));
                let answer = Self::carry_out(this, agenda, request);
                agenda.after(HALF, move |_| reply.send(answer));
            }
            Kind::Error => {
                let refused = Err(RemoteError::Refused("injected".into()));
                agenda.after(HALF, move |_| reply.send(refused));
            }
            Kind::Timeout | Kind::Crash => {
                if late {
                    // Whether it works is all that counts: nobody hears of it.
                    let _ = Self::carry_out(this, agenda, request);
                }
                let mut inside = this.lock().expect("whole");
                inside.down |= kind == Kind::Crash;
                inside.kept.push(reply);
            }
            Kind::Slow => {
                let limit = limits().request;
                let delay = if late { limit * 3 } else { limit / 2 };
                let this = Arc::clone(this);
                agenda.after(delay, move |agenda| {
                    if !this.lock().expect("whole").down {
                        let answer = Self::carry_out(&this, agenda, request);
                        agenda.after(HALF, move |_| reply.send(answer));
                    }
                });
            }
        }
    }
}

fn phase<C>(request: &Request<C>) -> Phase {
    match request {
        Request::Lock { .. } => Phase::Lock,
        Request::Stage { .. } => Phase::Stage,
        Request::Rollback { .. } => Phase::Rollback,
        Request::Release { .. } => Phase::Release,
        Request::Apply { .. } => Phase::Apply,
        Request::Poll { .. } => Phase::Poll,
    }
}

/// A remote behind a wire that takes time.
pub struct SimRemote {
    name: String,
    world: Arc<World>,
    pub inside: Arc<Mutex<Inside>>,
}

impl SimRemote {
    pub fn new(world: &Arc<World>, name: &str, faults: &[Fault]) -> Arc<Self> {
        let inside = Inside {
            layers: Layers::new(OLD),
            down: false,
            asked: Vec::new(),
            faults: faults.to_vec(),
            happened: 0,
            kept: Vec::new(),
        };
        Arc::new(Self {
            name: name.to_owned(),
            world: Arc::clone(world),
            inside: Arc::new(Mutex::new(inside)),
        })
    }

    pub fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().expect("whole")
    }
}

impl Remote<u32> for SimRemote {
    fn name(&self) -> &str {
        &self.name
    }

    fn send(&self, request: Request<u32>, reply: Reply) {
        let inside = Arc::clone(&self.inside);
        let arrive = move |agenda: &mut Agenda| Inside::arrive(&inside, agenda, request, reply);
        self.world.agenda().after(HALF, arrive);
    }

    fn free_command(&self) -> String {
        format!("tidemark lock free --force {}", self.name)
    }
}

/// Remotes `r00`, `r01`, ... with these faults.
pub fn remotes(world: &Arc<World>, faults: &[&[Fault]]) -> Vec<Arc<SimRemote>> {
    let remote = |(place, faults): (usize, &&[Fault])| {
        SimRemote::new(world, &format!("r{place:02}"), faults)
    };
    faults.iter().enumerate().map(remote).collect()
}

/// As a set's constructor takes them.
pub fn together(remotes: &[Arc<SimRemote>]) -> Remotes<u32> {
    let remotes = remotes
        .iter()
        .map(|remote| Arc::clone(remote) as Arc<dyn Remote<u32>>);
    Remotes::new(remotes.collect()).expect("names of their own")
}

/// Short ones.
pub fn limits() -> Limits {
    Limits {
        lock: Duration::from_secs(2),
        request: Duration::from_millis(200),
        apply: Duration::from_secs(5),
        release: Duration::from_secs(1),
        shortest_pause: Duration::from_millis(10),
        longest_pause: Duration::from_secs(3),
    }
}

/// The terms of manager number `me`; the smaller the number, the older it is.
pub fn terms(world: &Arc<World>, me: usize) -> Terms {
    let claimant = Claimant {
        id: Uuid::from_u128(0x7000 + me as u128),
        who: format!("manager {me}"),
    };
    Terms {
        claimant,
        limits: limits(),
        cancel: Cancel::default(),
        clock: Arc::new(SimClock {
            world: Arc::clone(world),
            me,
        }),
    }
}
