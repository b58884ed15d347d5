//! Processes that put, remove and collect, killed at a moment that a seed chooses: after each step that
//! they tell, and anywhere before the next one.

use crate::guest::{Guest, Random};
use crate::place::Place;
use crate::victim::{End, Moment, Victim, tidemark};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Kills without a word about it.
const KILLS: u64 = 12;
/// Most kills of a lane.
const LANE_KILLS: u64 = 250;
/// Where the first lane begins.
const SEED: u64 = 42;
const GUESTS: u64 = 4;
/// Longer than any announcement outlives who made it here.
const LEASE_MAX: Duration = Duration::from_secs(60);
/// Names of a batch: all or none.
const BATCH: u64 = 300;
/// When more batches are there, one is removed before another is put: each look at the store stays as
/// short in the thousandth run as in the first.
const BATCHES: usize = 6;

/// A step of processes that were not killed: how often it came, and the shortest way to the next one.
#[derive(Clone, Debug)]
struct Step {
    times: usize,
    gap: Duration,
}

struct Bed<'p> {
    place: &'p Place,
    random: Random,
    /// The streams, and what `get` must give for them.
    streams: Vec<(PathBuf, Vec<u8>)>,
    /// Names that are there for sure, with the number of their stream.
    named: BTreeMap<String, usize>,
    /// What processes go through, by what they do.
    usual: BTreeMap<&'static str, BTreeMap<String, Step>>,
    /// How often a step was aimed at, by what tells it.
    aimed: BTreeMap<(&'static str, String), u64>,
    /// How often one died after a step, by what it did.
    died: BTreeMap<(&'static str, String), u64>,
    kills: u64,
    missed: u64,
    /// Streams that were got back and held against what was put.
    compared: u64,
}

/// What may have happened in a run: names of which all or none are there, and their stream.
#[derive(Default)]
struct Unsure {
    names: Vec<String>,
    stream: usize,
}

impl Bed<'_> {
    fn ask(&self, arguments: &[&str]) -> Result<Value, String> {
        let ended = Victim::start(tidemark(self.place, arguments)).end();
        ended.done()
    }

    fn names(&self) -> Result<Vec<String>, String> {
        let listed = self.ask(&["list"])?;
        let names = listed["names"].as_array().unwrap().iter();
        let mut names: Vec<String> = names
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Learns from one that went through all.
    fn learn(&mut self, does: &'static str, end: &End) {
        let steps = self.usual.entry(does).or_default();
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for (at, (when, step)) in end.steps.iter().enumerate() {
            let Some((next, _)) = end.steps.get(at + 1) else {
                continue;
            };
            let gap = *next - *when;
            let known = steps.entry(step.clone());
            let known = known.or_insert(Step { times: 1, gap });
            let count = times.entry(step).or_default();
            *count += 1;
            known.times = known.times.max(*count);
            known.gap = known.gap.min(gap);
        }
    }

    /// A moment after the step that was aimed at least, and before the next one. Not the step after
    /// which the fewest died: some come only after another's death, and would be aimed at for ever.
    fn moment(&mut self, does: &'static str) -> Moment {
        let steps = self.usual[does].clone();
        let aimed = |step: &String| {
            let aimed = self.aimed.get(&(does, step.clone()));
            aimed.copied().unwrap_or(0)
        };
        let least = steps.keys().map(aimed).min();
        let (step, usual) = {
            let all: Vec<_> = steps
                .iter()
                .filter(|(step, _)| Some(aimed(step)) == least)
                .collect();
            let one = usize::try_from(self.random.below(all.len() as u64)).unwrap();
            all[one]
        };
        *self.aimed.entry((does, step.clone())).or_default() += 1;
        let gap = u64::try_from(usual.gap.as_micros()).unwrap();
        let time = usize::try_from(self.random.below(usual.times as u64)).unwrap() + 1;
        Moment {
            step: step.clone(),
            time,
            delay: Duration::from_micros(self.random.below(gap)),
        }
    }

    /// Kills one at a moment of its own. Whether it had ended by itself.
    fn kill(&mut self, does: &'static str, victim: Victim) -> bool {
        let moment = self.moment(does);
        let end = victim.kill_at(&moment);
        if end.was_killed() {
            self.kills += 1;
            *self.died.entry((does, end.last().to_owned())).or_default() += 1;
            return false;
        }
        self.missed += 1;
        end.done()
            .unwrap_or_else(|told| panic!("{moment:?}: {told}"));
        self.learn(does, &end);
        true
    }

    /// Holds the store against what is known, and against what may have happened.
    fn holds(&mut self, unsure: &Unsure) -> Result<(), String> {
        let verified = self.ask(&["verify"])?;
        if verified["faults"] != json!([]) {
            return Err(verified["faults"].to_string());
        }
        let names = self.names()?;
        let among = |name: &&String| unsure.names.contains(name);
        let there = names.iter().filter(among).count();
        if there != 0 && there != unsure.names.len() {
            return Err(format!("{there} of {} of a batch", unsure.names.len()));
        }
        for name in &unsure.names {
            match there {
                0 => self.named.remove(name),
                _ => self.named.insert(name.clone(), unsure.stream),
            };
        }
        if !names.iter().eq(self.named.keys()) {
            return Err(format!(
                "{} names instead of {}",
                names.len(),
                self.named.len()
            ));
        }
        let place = self.random.below(names.len() as u64);
        match names.get(usize::try_from(place).unwrap()) {
            Some(name) => self.check(name),
            None => Ok(()),
        }
    }

    fn check(&mut self, name: &str) -> Result<(), String> {
        self.compared += 1;
        let to = self.place.file("got");
        self.ask(&["get", name, "--to", to.to_str().unwrap()])?;
        let sound = fs::read(&to).unwrap() == self.streams[self.named[name]].1;
        sound
            .then_some(())
            .ok_or_else(|| format!("{name} is not what was put"))
    }

    /// A command that puts a batch, and what may have happened after it.
    fn putting(&mut self, batch: &str, count: u64) -> (Victim, Unsure) {
        let stream = usize::try_from(self.random.below(GUESTS)).unwrap();
        let names: Vec<String> = (0..count).map(|n| format!("{batch}-{n}")).collect();
        let from = self.streams[stream].0.display().to_string();
        let list = self.list(&names);
        let command = tidemark(self.place, &["put", "--list", &list, "--from", &from]);
        (Victim::start(command), Unsure { names, stream })
    }

    /// The same for one that removes the batch that a name is of.
    fn removing(&mut self, one: &str) -> (Victim, Unsure) {
        let batch = format!("{}-", one.rsplit_once('-').unwrap().0);
        let names = self.named.keys().filter(|name| name.starts_with(&batch));
        let names: Vec<String> = names.cloned().collect();
        let list = self.list(&names);
        let command = tidemark(self.place, &["rm", "--list", &list]);
        let stream = self.named[one];
        (Victim::start(command), Unsure { names, stream })
    }

    /// How many batches are there.
    fn batches(&self) -> usize {
        let all = self.named.keys().filter_map(|name| name.rsplit_once('-'));
        all.map(|(batch, _)| batch).collect::<BTreeSet<_>>().len()
    }

    fn collecting(&self) -> Victim {
        Victim::start(tidemark(self.place, &["gc"]))
    }

    fn list(&self, names: &[String]) -> String {
        let list = self.place.file("list");
        fs::write(&list, names.join("\n") + "\n").unwrap();
        list.display().to_string()
    }

    /// Collects until nothing is there but what names need: in etcd the announcement of one that was
    /// killed outlives it by its lease.
    fn collect_all(&self) {
        let began = Instant::now();
        loop {
            self.ask(&["gc"]).unwrap();
            let unnamed = self.ask(&["verify"]).unwrap()["unnamed"].clone();
            if unnamed == 0 {
                return;
            }
            assert!(began.elapsed() < LEASE_MAX, "{unnamed} objects stay");
        }
    }

    /// Each of what can be killed, once to its end: what it goes through.
    fn get_to_know(&mut self) {
        for (batch, count) in [
            ("vm/0/epoch/00000", 1),
            ("vm/1/epoch/00000", BATCH),
            ("vm/2/epoch/00000", 1),
        ] {
            let (victim, unsure) = self.putting(batch, count);
            self.went_through("put", victim, &unsure);
        }
        let (victim, unsure) = self.removing("vm/1/epoch/00000-0");
        let gone = Unsure {
            names: Vec::new(),
            ..unsure
        };
        self.named.retain(|name, _| !unsure.names.contains(name));
        self.went_through("rm", victim, &gone);
        let victim = self.collecting();
        self.went_through("gc", victim, &Unsure::default());
    }

    fn went_through(&mut self, does: &'static str, victim: Victim, unsure: &Unsure) {
        let end = victim.end();
        end.done().unwrap_or_else(|told| panic!("{does}: {told}"));
        self.learn(does, &end);
        self.holds(unsure).unwrap();
        assert!(unsure.names.iter().all(|n| self.named.contains_key(n)));
    }

    fn run(&mut self, run: u64) {
        let full = self.batches() > BATCHES;
        let unsure = match self.random.below(8) {
            // A batch is removed.
            choice if full || (choice == 0 && self.named.len() > 1) => {
                let place = usize::try_from(self.random.below(self.named.len() as u64)).unwrap();
                let one = self.named.keys().nth(place).unwrap().clone();
                let (victim, unsure) = self.removing(&one);
                if self.kill("rm", victim) {
                    self.named.retain(|name, _| !unsure.names.contains(name));
                    Unsure::default()
                } else {
                    unsure
                }
            }
            1 | 2 => {
                let victim = self.collecting();
                self.kill("gc", victim);
                Unsure::default()
            }
            // A batch is put, beside a collection or not; either may be the one that dies.
            choice => {
                let count = [BATCH, 1][usize::try_from(self.random.below(3)).unwrap().min(1)];
                // Few directories: most puts find a checkpoint to share with.
                let (victim, unsure) =
                    self.putting(&format!("vm/{}/epoch/{run:05}", run % 5), count);
                let gc = (choice <= 4).then(|| self.collecting());
                let ended = match gc {
                    Some(gc) if self.random.below(2) == 0 => {
                        self.kill("gc", gc);
                        victim.end().done().unwrap();
                        true
                    }
                    gc => {
                        let ended = self.kill("put", victim);
                        if let Some(gc) = gc {
                            gc.end().done().unwrap();
                        }
                        ended
                    }
                };
                if ended {
                    let known = unsure
                        .names
                        .iter()
                        .map(|name| (name.clone(), unsure.stream));
                    self.named.extend(known);
                    Unsure::default()
                } else {
                    unsure
                }
            }
        };
        let held = self.holds(&unsure);
        held.unwrap_or_else(|told| panic!("run {run}: {told}"));
    }

    /// What a careless store would leave must be seen: half a batch, and in a folder, bodies that were
    /// not whole before their names and bodies that went before them. How many of these were.
    fn controls(&mut self) -> u64 {
        let (victim, unsure) = self.putting("control/batch", BATCH);
        victim.end().done().unwrap();
        self.holds(&unsure).unwrap();
        self.ask(&["rm", "control/batch-7"]).unwrap();
        let told = self.holds(&unsure).unwrap_err();
        assert_eq!(told, format!("{} of {BATCH} of a batch", BATCH - 1));
        self.named.remove("control/batch-7");
        if self.place.names.is_some() {
            return 1;
        }
        let none = Unsure::default();
        self.holds(&none).unwrap();
        self.collect_all();
        let mut seen = 1;
        for path in self.place.objects() {
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            let told = self.holds(&none).unwrap_err();
            assert!(told.contains("is damaged"), "{}: {told}", path.display());
            fs::remove_file(&path).unwrap();
            let told = self.holds(&none).unwrap_err();
            assert!(told.contains("is not there"), "{}: {told}", path.display());
            fs::write(&path, &bytes).unwrap();
            seen += 2;
            if seen > 12 {
                break;
            }
        }
        self.holds(&none).unwrap();
        seen
    }
}

/// What became of one lane.
struct Lane {
    died: BTreeMap<(&'static str, String), u64>,
    kills: u64,
    missed: u64,
    compared: u64,
    names: usize,
    controls: u64,
}

/// Kills so many in a store of its own.
fn lane(place: &Place, seed: u64, kills: u64) -> Lane {
    let mut random = Random::new(seed);
    // More pages than a pack has.
    let mut guest = Guest::new(&mut random, 3000);
    let mut streams = Vec::new();
    for number in 0..GUESTS {
        let path = place.file(&format!("{number}.stream"));
        let stream = guest.stream();
        fs::write(&path, &stream).unwrap();
        streams.push((path, stream));
        guest.run(&mut random, 300);
    }
    let mut bed = Bed {
        place,
        random,
        streams,
        named: BTreeMap::new(),
        usual: BTreeMap::new(),
        aimed: BTreeMap::new(),
        died: BTreeMap::new(),
        kills: 0,
        missed: 0,
        compared: 0,
    };
    bed.get_to_know();
    let mut run = 0;
    while bed.kills < kills {
        run += 1;
        assert!(run <= 3 * kills + 20, "only {} of {run} died", bed.kills);
        bed.run(run);
    }
    let controls = bed.controls();
    // Whatever the killed ones left goes, and all that has a name stays.
    bed.collect_all();
    let names: Vec<String> = bed.named.keys().cloned().collect();
    for name in names.iter().step_by(names.len() / 20 + 1) {
        bed.check(name).unwrap();
    }
    Lane {
        died: bed.died,
        kills: bed.kills,
        missed: bed.missed,
        compared: bed.compared,
        names: bed.named.len(),
        controls,
    }
}

/// Kills as many as are wanted, in lanes that have a store each: while one waits for the lease of
/// somebody dead, others work.
pub fn run(what: &str, place: fn() -> Place) {
    let told = std::env::var("TIDEMARK_STORE_KILLS").ok();
    let kills = told.map_or(KILLS, |told| told.parse().expect("a number of kills"));
    let lanes = kills.div_ceil(LANE_KILLS);
    let share = |number| kills / lanes + u64::from(number < kills % lanes);
    let lanes: Vec<Lane> = std::thread::scope(|scope| {
        let started = |number| {
            scope.spawn(move || {
                let done = lane(&place(), SEED + number, share(number));
                println!("{what}, lane {number}: {} killed", done.kills);
                done
            })
        };
        let started: Vec<_> = (0..lanes).map(started).collect();
        let ended = started.into_iter().map(|lane| lane.join());
        ended.map(|lane| lane.expect("a lane failed")).collect()
    });
    let mut died: BTreeMap<String, u64> = BTreeMap::new();
    for ((does, step), count) in lanes.iter().flat_map(|lane| &lane.died) {
        *died.entry(format!("{does}, after '{step}'")).or_default() += count;
    }
    let does = |what| died.keys().any(|step| step.starts_with(what));
    assert!(does("put") && does("gc"), "{died:?}");
    assert!(died.len() > 3 || kills < 10, "{died:?}");
    let sum = |of: fn(&Lane) -> u64| lanes.iter().map(of).sum::<u64>();
    let figures = json!({
        "place": what, "kills": sum(|lane| lane.kills), "ended_before": sum(|lane| lane.missed),
        "died": died, "names_at_the_end": lanes.iter().map(|lane| lane.names).sum::<usize>(),
        "compared": sum(|lane| lane.compared), "controls_seen": sum(|lane| lane.controls),
    });
    println!("figures {figures}");
}
