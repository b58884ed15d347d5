//! The part in which agents are killed: at random while a manager changes their devices, and at each phase
//! of a guest's move; in which two managers race; and the table of every fault on a virtual clock.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use crate::figures;
use crate::process;
use crate::workspace::Workspace;

/// Changes of four agents, in most of which one is killed.
const RUNS: u64 = 100;
const RUNS_FULL: u64 = 1000;
/// Moves of a guest, in each of which an agent is killed: so many times each of six phases.
const MOVES: u64 = 18;
const MOVES_FULL: u64 = 120;
const PHASES: usize = 6;
/// Races of two managers.
const RACES: u64 = 10;
const RACES_FULL: u64 = 100;
/// Combinations of a first fault in each of four remotes.
const MULTISETS: u64 = 20_475;

/// The table, then the processes.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let of = |some, many| if options.full { many } else { some };
    let wanted = Wanted {
        runs: of(RUNS, RUNS_FULL),
        moves: of(MOVES, MOVES_FULL),
        races: of(RACES, RACES_FULL),
    };
    let mut table = workspace.cargo();
    table.args(["test", "--workspace", "--lib"]);
    table.args(["lock::tests::faults", "--", "--nocapture"]);
    let table = read(&mut table)?;
    let mut agents = workspace.cargo();
    agents.args(["test", "--workspace", "--test", "agents"]);
    // One after the other: each has processes enough.
    agents.args(["--", "--nocapture", "--test-threads=1"]);
    agents.env("TIDEMARK_AGENT_RUNS", wanted.runs.to_string());
    agents.env("TIDEMARK_MOVES", wanted.moves.to_string());
    agents.env("TIDEMARK_RACES", wanted.races.to_string());
    let agents = read(&mut agents)?;
    let all = json!({ "table": table, "agents": agents });
    figures::keep(workspace, "agents", &all)?;
    let kills = good(&table, &agents, &wanted)?;
    let Wanted { runs, moves, races } = wanted;
    Ok(format!(
        "{MULTISETS} fault tables twice and all pairs; {runs} changes of 4 agents, {kills} killed: all or \
         none; {moves} moves of 4 devices, an agent killed in each: nothing lost; {races} races, one winner \
         each"
    ))
}

/// How many of each.
#[derive(Debug)]
struct Wanted {
    runs: u64,
    moves: u64,
    races: u64,
}

/// The figures that a test printed, each on a line of its own.
fn read(command: &mut std::process::Command) -> Result<Vec<Value>> {
    let (text, status) = process::tee(command)?;
    ensure!(
        status.success(),
        "`{}` ended with {status}",
        process::shown(command)
    );
    let found = text
        .lines()
        .filter_map(|line| Some(line.split_once("figures ")?.1));
    let all: serde_json::Result<Vec<Value>> = found.map(serde_json::from_str).collect();
    all.context("the figures of the runs are no JSON")
}

/// The one object with this key.
fn the<'v>(figures: &'v [Value], key: &str) -> Result<&'v Value> {
    let found: Vec<&Value> = figures
        .iter()
        .filter(|one| one.get(key).is_some())
        .collect();
    let [one] = found[..] else {
        anyhow::bail!("expected the figures of one test with '{key}', got {figures:?}");
    };
    Ok(one)
}

/// How many were killed in changes, if everything is as it must be.
fn good(table: &[Value], agents: &[Value], wanted: &Wanted) -> Result<u64> {
    let tables = table.iter().filter(|row| row["runs"] == MULTISETS);
    let tables = tables.count();
    ensure!(
        tables == 2,
        "expected 2 tables of {MULTISETS} runs, got {tables}"
    );
    let pairs = table.iter().any(|row| row["what"] == "pairs");
    ensure!(pairs, "expected the pairs of faults, got {table:?}");
    let killed = the(agents, "runs")?;
    let kills = killed["killed"].as_u64().unwrap_or(0);
    let runs = wanted.runs;
    ensure!(
        killed["runs"] == runs && kills >= runs / 2,
        "expected {runs} runs, and a kill in half of them at least, got {killed}"
    );
    for outcome in ["applied", "undone"] {
        let count = killed[outcome].as_u64();
        ensure!(count > Some(0), "no run was {outcome}: {killed}");
    }
    let moves = the(agents, "moves")?;
    ensure!(
        moves["moves"] == wanted.moves && moves["killed"] == wanted.moves,
        "expected {} moves, and a kill in each, got {moves}",
        wanted.moves
    );
    let phases = moves["phases"].as_object().context("no phases")?;
    ensure!(
        phases.len() == PHASES,
        "expected kills at {PHASES} phases, got {moves}"
    );
    for outcome in ["stayed", "moved"] {
        let count: u64 = phases
            .values()
            .filter_map(|one| one[outcome].as_u64())
            .sum();
        ensure!(count > 0, "in no move the guest {outcome}: {moves}");
    }
    let races = the(agents, "races")?;
    let won = races["won"].as_array().context("no winners")?;
    let won: u64 = won.iter().filter_map(Value::as_u64).sum();
    ensure!(
        races["races"] == wanted.races && won == wanted.races,
        "expected one winner in each of {} races, got {races}",
        wanted.races
    );
    Ok(kills)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_counts() {
        let row = json!({ "what": "multisets", "runs": MULTISETS });
        let table = [
            row.clone(),
            row.clone(),
            json!({ "what": "pairs", "runs": 1 }),
        ];
        let wanted = Wanted {
            runs: 100,
            moves: 12,
            races: 3,
        };
        let phase = |number: usize| (number.to_string(), json!({ "stayed": 1, "moved": 1 }));
        let phases: serde_json::Map<_, _> = (0..PHASES).map(phase).collect();
        let agents = [
            json!({ "runs": 100, "killed": 60, "applied": 30, "undone": 50 }),
            json!({ "moves": 12, "killed": 12, "phases": phases }),
            json!({ "races": 3, "won": [1, 2] }),
        ];
        assert_eq!(good(&table, &agents, &wanted).unwrap(), 60);
        assert!(good(&table[1..], &agents, &wanted).is_err());
        assert!(good(&table[..2], &agents, &wanted).is_err());
        for one in 0..agents.len() {
            let mut fewer = agents.to_vec();
            fewer.remove(one);
            assert!(good(&table, &fewer, &wanted).is_err(), "without {one}");
            let keys: Vec<String> = agents[one].as_object().unwrap().keys().cloned().collect();
            for key in keys {
                let mut spoiled = agents.to_vec();
                spoiled[one][&key] = json!(0);
                assert!(good(&table, &spoiled, &wanted).is_err(), "{key}");
            }
        }
    }
}
