//! Four agents in processes of their own, and a manager that changes their devices while a seed chooses
//! whom it loses: at a request, one of them is killed (SIGKILL), and comes back at once or when all is
//! over.
//!
//! `TIDEMARK_AGENT_RUNS` says how many runs. The last line has the figures as one JSON object.

mod moved;
mod process;
mod protected;
mod race;
mod relay;

use migration::agent::{AgentRemote, Agents, DeviceConfig, Mode, Tracking};
use migration::lock::{Cause, Failure, LockedSet, Remote, Remotes, Reply, Report, Request, Terms};
use process::Agent;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const AGENTS: usize = 4;
/// Runs without a word about it.
const RUNS: u64 = 8;
/// How long a manager may be silent.
const LEASE: Duration = Duration::from_secs(1);
/// Requests of a change in which nobody is killed: lock, stage, apply, poll and release of all.
const REQUESTS: u64 = 5 * AGENTS as u64;
/// Until everything is free again.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sequence that a seed determines (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// What is to happen.
struct Plan {
    /// At which request, counted over all agents.
    at: u64,
    /// To which agent.
    victim: usize,
    /// Before that request is sent, or right after.
    before: bool,
    /// Whether it comes back at once.
    returns: bool,
}

struct Shared {
    agents: Vec<Mutex<Agent>>,
    plan: Plan,
    requests: Mutex<u64>,
}

impl Shared {
    /// Counts a request; whether it is the one.
    fn counts(&self) -> bool {
        let mut requests = self.requests.lock().unwrap();
        *requests += 1;
        *requests == self.plan.at
    }

    fn strike(&self) {
        let mut agent = self.agents[self.plan.victim].lock().unwrap();
        agent.kill();
        if self.plan.returns {
            agent.start();
        }
    }
}

/// A remote at one of whose requests somebody is killed.
struct Watched {
    inner: AgentRemote,
    shared: Arc<Shared>,
}

impl Remote<DeviceConfig> for Watched {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn send(&self, request: Request<DeviceConfig>, reply: Reply) {
        let strikes = self.shared.counts();
        if strikes && self.shared.plan.before {
            self.shared.strike();
        }
        self.inner.send(request, reply);
        if strikes && !self.shared.plan.before {
            self.shared.strike();
        }
    }

    fn free_command(&self) -> String {
        self.inner.free_command()
    }
}

/// A configuration that no other run has.
fn config(seed: u64) -> DeviceConfig {
    let start = seed << 12;
    DeviceConfig {
        tracking: Some(Tracking {
            ranges: std::iter::once(start..start + 8192).collect(),
            granularity: 4096,
            pasid: None,
            mode: Mode::Bitmap,
        }),
        suspended: seed.is_multiple_of(2),
        managers: Vec::new(),
    }
}

fn terms(who: String) -> Terms {
    let mut terms = Terms::new(who);
    terms.limits.lock = Duration::from_secs(2);
    terms.limits.request = Duration::from_secs(2);
    terms.limits.apply = Duration::from_secs(4);
    terms.limits.release = Duration::from_secs(1);
    terms
}

/// One change, and whom it cost. Checks everything that must hold after it.
fn run(folder: &Path, seed: u64, agents: Vec<Agent>) -> (Vec<Agent>, Option<Cause>, bool) {
    let mut random = Random(seed);
    let plan = Plan {
        // Beyond the last one now and then: nobody is killed.
        at: 1 + random.below(REQUESTS + REQUESTS / 4),
        victim: usize::try_from(random.below(AGENTS as u64)).unwrap(),
        before: random.below(2) == 0,
        returns: random.below(2) == 0,
    };
    let (at, victim, returns) = (plan.at, plan.victim, plan.returns);
    let client = Agents::new(None).unwrap();
    let places: Vec<_> = agents.iter().map(Agent::place).collect();
    let old: Vec<_> = places
        .iter()
        .map(|place| client.status(place).unwrap().running)
        .collect();
    let shared = Arc::new(Shared {
        agents: agents.into_iter().map(Mutex::new).collect(),
        plan,
        requests: Mutex::new(0),
    });
    let remote = |place: &migration::agent::Place| {
        Arc::new(Watched {
            inner: client.remote(place.clone()),
            shared: Arc::clone(&shared),
        }) as Arc<dyn Remote<DeviceConfig>>
    };
    let remotes = Remotes::new(places.iter().map(remote).collect()).unwrap();
    let new = config(seed);
    let done = LockedSet::lock(remotes, terms(format!("run {seed}")))
        .and_then(|set| set.for_each(|_| Ok(new.clone())))
        .and_then(LockedSet::apply)
        .map(LockedSet::release);
    let (cause, report) = match done {
        Ok(report) => (None, report),
        Err(Failure { cause, report }) => (Some(cause), report),
    };
    let requests = *shared.requests.lock().unwrap();
    let Some(shared) = Arc::into_inner(shared) else {
        panic!("the set is gone");
    };
    let mut agents: Vec<Agent> = shared
        .agents
        .into_iter()
        .map(|agent| agent.into_inner().unwrap())
        .collect();
    let struck = requests >= at;
    if struck && !returns {
        agents[victim].start();
    }
    let shown = format!(
        "seed {seed} in {}: {victim} killed at {at}, returns {returns}: {cause:?}\n{report}",
        folder.display()
    );
    assert!(struck || cause.is_none(), "nobody was killed; {shown}");
    check(&client, &places, &old, &new, cause, &report, &shown);
    (agents, cause, struck)
}

fn check(
    client: &Agents,
    places: &[migration::agent::Place],
    old: &[DeviceConfig],
    new: &DeviceConfig,
    cause: Option<Cause>,
    report: &Report,
    shown: &str,
) {
    let mut all_new = true;
    for (place, old) in places.iter().zip(old) {
        let status = client.status(place).unwrap();
        let name = place.to_string();
        let stuck = report.stuck.iter().find(|stuck| stuck.remote == name);
        if status.holder.is_some() || status.pending.is_some() {
            let stuck = stuck.unwrap_or_else(|| panic!("{place} is locked, unsaid; {shown}"));
            assert_eq!(stuck.command, format!("tidemark lock free {place}"));
        }
        if !matches!(cause, None | Some(Cause::Incomplete)) {
            assert_eq!(status.running, *old, "{place} has changed; {shown}");
        }
        all_new &= status.running == *new;
    }
    if cause.is_none() {
        assert!(all_new, "Ok, and not all have it; {shown}");
    }
    // Nobody renews any more: leases end what nobody could release.
    let begin = Instant::now();
    while places
        .iter()
        .any(|place| client.status(place).unwrap().holder.is_some())
    {
        assert!(begin.elapsed() < PATIENCE, "locked for ever; {shown}");
        std::thread::yield_now();
    }
}

#[test]
fn whoever_is_killed_all_or_none_are_changed() {
    let told = std::env::var("TIDEMARK_AGENT_RUNS").ok();
    let runs = told.map_or(RUNS, |told| told.parse().expect("a number of runs"));
    let folder = tempfile::tempdir().unwrap();
    let mut agents: Vec<Agent> = (0..AGENTS)
        .map(|number| Agent::new(folder.path(), number, LEASE))
        .collect();
    let mut causes: BTreeMap<String, u64> = BTreeMap::new();
    let (mut killed, mut applied) = (0, 0);
    for seed in 1..=runs {
        let (back, cause, struck) = run(folder.path(), seed, agents);
        agents = back;
        killed += u64::from(struck);
        applied += u64::from(cause.is_none());
        let cause = cause.map_or("Applied".to_owned(), |cause| format!("{cause:?}"));
        *causes.entry(cause).or_default() += 1;
    }
    let incomplete = causes.get("Incomplete").copied().unwrap_or(0);
    let figures = serde_json::json!({
        "runs": runs, "killed": killed, "applied": applied,
        "undone": runs - applied - incomplete, "causes": causes,
    });
    println!("figures {figures}");
}
