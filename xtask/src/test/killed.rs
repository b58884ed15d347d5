//! The part in which backends are killed under load, again and again, and started anew: the guest's
//! journal proves that no request was lost and none done twice, and its kernel saw nothing odd.
//!
//! What was in flight is what the next backend finds in the table that QEMU keeps. The negative
//! control spoils that table between a kill and the start after it: that must be noticed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Options;
use super::backend::{AT_MOST, Backend, Bench, Programs};
use crate::figures;
use crate::guest::Running;
use crate::testbed;
use crate::workspace::Workspace;

const KILLS: usize = 20;
/// A kill is worth something if it hits more than this many requests.
const MANY: u64 = 8;
const DISK: u64 = 16 << 20;
const SEED: u64 = 0x7469_6465;
/// A disk that is as slow as a real one, so that the emulated guest can get ahead of it.
const SLOW: [&str; 2] = ["--slow-disk", "3"];
const SOCKET: &str = "disk";

const WORK: &str = "\
fact driver \"$(basename \"$(readlink /sys/block/vda/device/driver)\")\"
tidemark journal --disk /dev/vda --depth 64 --writes 60 --progress 20 \
    --control - --json <&3 2>&3 >/tmp/report || true
fact journal \"$(tail -n 1 /tmp/report)\"
fact complaints \"$(dmesg | grep -c -e 'is not a head' -e 'I/O error' || true)\"
";
/// What Linux says of a used buffer that it did not offer.
const COMPLAINT: &str = "is not a head";

/// Both QEMUs.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let programs = Programs::new(workspace)?;
    let [newest, _, oldest, _] = bed.platforms();
    let mut all = Vec::new();
    for platform in [oldest, newest] {
        let bench = Bench::new(&bed, platform, &programs, "killed", DISK)?;
        let figures =
            killed(&bench).with_context(|| format!("killed backends on {}", platform.name()))?;
        bench.clean()?;
        all.push(figures);
    }
    let bench = Bench::new(&bed, newest, &programs, "spoiled", DISK)?;
    let complaint = spoiled(&bench).context("the negative control")?;
    bench.clean()?;
    let figures = json!({ "seed": SEED, "runs": all, "control": complaint });
    figures::keep(workspace, "killed", &figures)?;
    let kills = figures["runs"].as_array().into_iter().flatten();
    let kills: u64 = kills.filter_map(|run| run["kills"].as_u64()).sum();
    Ok(format!("{kills} kills, nothing lost or doubled"))
}

/// A guest at work whose backends are killed.
fn killed(bench: &Bench<'_>) -> Result<Value> {
    let mut random = SEED;
    let mut backend = bench.backend(SOCKET, &SLOW)?;
    let vm = guest(bench)?;
    let (mut flying, mut requests) = (Vec::new(), 0);
    let many = |flying: &[u64]| flying.iter().filter(|&&count| count > MANY).count();
    // Where a kill hits is the seed's choice; it goes on until enough of them hit many requests.
    while flying.len() < KILLS || 2 * many(&flying) < flying.len() && flying.len() < 2 * KILLS {
        backend.at_work(&vm, 1)?;
        let more = next(&mut random) % 150;
        let goal = backend.report()?.requests + more;
        backend.at_work(&vm, goal)?;
        requests += backend.report()?.requests;
        backend.kill()?;
        backend = bench.backend(SOCKET, &SLOW)?;
        // The guest goes on only when QEMU has connected again.
        backend.at_work(&vm, 1)?;
        flying.push(backend.report()?.resubmitted);
    }
    vm.send("stop")?;
    let run = vm.finish(AT_MOST)?;
    let last = backend.finish()?;
    let journal: Value = serde_json::from_str(run.serial.fact("journal")?)?;
    let (kills, many) = (flying.len(), many(&flying));
    let figures = json!({
        "platform": bench.name(),
        "kills": kills,
        "in_flight": flying,
        "kills_with_many_in_flight": many,
        "requests": requests + last.requests,
        "journal": journal,
    });
    println!("{figures}");
    ensure!(journal["good"] == true, "the journal found {journal}");
    run.serial.expect("complaints", "0")?;
    ensure!(
        2 * many >= kills,
        "only {many} of {kills} kills hit more than {MANY} requests: {flying:?}"
    );
    Ok(figures)
}

/// Spoils the table after a kill: one request in flight is said to be used already. Gives what the
/// guest's kernel says of that.
fn spoiled(bench: &Bench<'_>) -> Result<String> {
    let mut backend = bench.backend(SOCKET, &SLOW)?;
    let vm = guest(bench)?;
    for _ in 0..KILLS {
        let goal = backend.report()?.requests + 100;
        backend.at_work(&vm, goal)?;
        backend.kill()?;
        let spoiled = spoil(&table(vm.pid())?)?;
        backend = bench.backend(SOCKET, &SLOW)?;
        if spoiled {
            return noticed(&vm, &backend);
        }
    }
    bail!("no kill hit two requests")
}

/// A request that is done twice is complained of by the guest's kernel, or breaks the ring if the
/// guest has given its descriptors to something else meanwhile.
fn noticed(vm: &Running, backend: &Backend) -> Result<String> {
    let deadline = Instant::now() + AT_MOST;
    loop {
        if backend.report()?.rings_broken > 0 {
            return Ok("the ring broke".to_owned());
        }
        match vm.console(COMPLAINT, Duration::from_secs(1)) {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => {}
            complaint => return complaint,
        }
    }
}

fn guest(bench: &Bench<'_>) -> Result<Running> {
    let guest = bench.guest(SOCKET, WORK, Some(Duration::from_secs(1)))?;
    guest.start(&bench.folder("guest")?)
}

/// The in-flight table, as QEMU keeps it.
fn table(pid: u32) -> Result<File> {
    let dir = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {dir}"))? {
        let path = entry?.path();
        let name = fs::read_link(&path).unwrap_or_default();
        if name.to_string_lossy().contains("tidemark-inflight") {
            let file = File::options().read(true).write(true).open(&path);
            return file.with_context(|| format!("cannot open {}", path.display()));
        }
    }
    bail!("QEMU keeps no in-flight table in {dir}")
}

/// Makes the request that was popped first look like one whose end was published and not yet
/// noted, by the layout of the vhost-user protocol; false if there are not two in flight.
fn spoil(table: &File) -> Result<bool> {
    let mut bytes = vec![0; usize::try_from(table.metadata()?.len())?];
    table.read_exact_at(&mut bytes, 0)?;
    let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let entry = |head: u16| 16 + 16 * usize::from(head);
    let counter = |head: &u16| {
        let at = entry(*head) + 8;
        bytes.get(at..at + 8).map(<[u8]>::to_vec)
    };
    let flying: Vec<u16> = (0..word(10))
        .filter(|&head| bytes[entry(head)] == 1)
        .collect();
    let oldest = flying.iter().min_by_key(|head| {
        let bytes: Option<[u8; 8]> = counter(head).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_ne_bytes)
    });
    let Some(&head) = oldest.filter(|_| flying.len() >= 2) else {
        return Ok(false);
    };
    table.write_all_at(&head.to_ne_bytes(), 12)?;
    table.write_all_at(&word(14).wrapping_sub(1).to_ne_bytes(), 14)?;
    Ok(true)
}

/// The next number of a sequence that the seed decides (SplitMix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
