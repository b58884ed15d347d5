//! A guest with real devices as a checkpointed pair: at each message either side is lost, and the
//! other goes on with nothing lost and nothing shown that it does not know.

use driver::dirty::DirtySet;
use driver::memory::DmaMemory;
use migration::checkpoint::{Kind, Line, Primary, Protected, Secondary, Side, Standby, Survived};
use migration::faults::{AtMessage, Deed, relay};
use migration::{DeviceRecord, Guest, GuestError, NamedSource, Paused};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;
use vm::guest::block::Stamp;
use vm::guest::journal::{Event, Journal, read};
use vm::guest::{EmulatedGuest, Layout, Pattern, Shape};
use vm::{Backup, Hosting, Limits, MarkingMode, Means, evidence};

const MEMORY: u64 = 16 << 20;
const BLOCKS: u64 = 1024;
/// More than the disk has: a write that waits for room keeps one of the threads that do I/O, and here
/// both sides share those, which no two processes do.
const HOLD: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

fn shape(marking: MarkingMode) -> Shape {
    Shape {
        memory: MEMORY,
        devices: 1,
        queues: 2,
        queue_size: 256,
        depth: 16,
        blocks: BLOCKS,
        pattern: Pattern::Random,
        writes_percent: 40,
        seed: 11,
        marking,
        means: Means::default(),
        reset_every: 0,
        packed: false,
    }
}

fn contents(memory: &DmaMemory) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(memory.len()).unwrap()];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

fn disk(folder: &Path, side: &str) -> PathBuf {
    let path = folder.join(format!("{side}.img"));
    File::create(&path).unwrap();
    evidence::format_disk(&path, 0, BLOCKS).unwrap();
    path
}

/// Which write each block of a disk shows; every block must be a whole one.
fn sequences(disk: &Path) -> Vec<u32> {
    let bytes = std::fs::read(disk).unwrap();
    let (pages, _) = bytes.as_chunks::<4096>();
    let sequence = |(block, page): (u64, &[u8; 4096])| {
        let (_, sequence) = Stamp::head(page);
        let sequence = u32::try_from(sequence).unwrap();
        assert!(
            Stamp::of(0, block, sequence).matches(page),
            "block {block} is torn"
        );
        sequence
    };
    (0..).zip(pages).map(sequence).collect()
}

fn hosting(disk: &Path, folder: &Path, side: &str) -> Hosting {
    Hosting {
        disks: vec![disk.to_owned()],
        evidence: Some(folder.to_owned()),
        side: side.to_owned(),
        limits: Limits::default(),
        hold: Some(HOLD),
        disk_fault: None,
    }
}

/// The guest, and its memory whenever it was saved.
struct Watched {
    guest: EmulatedGuest,
    snapshots: Vec<Vec<u8>>,
}

impl Guest for Watched {
    fn describe(&self) -> Vec<u8> {
        self.guest.describe()
    }
    fn memory(&self) -> Vec<DmaMemory> {
        self.guest.memory()
    }
    fn sources(&mut self) -> &mut [NamedSource] {
        self.guest.sources()
    }
    fn pause(&mut self) -> Result<Paused, GuestError> {
        self.guest.pause()
    }
    fn resume(&mut self) -> Result<(), GuestError> {
        self.guest.resume()
    }
    fn save(&mut self) -> Result<Vec<DeviceRecord>, GuestError> {
        let saved = self.guest.save();
        self.snapshots.push(contents(self.guest.ram()));
        saved
    }
}

impl Protected for Watched {
    fn hold(&mut self) -> Result<(), GuestError> {
        self.guest.hold()
    }
    fn owes(&self) -> bool {
        self.guest.owes()
    }
    fn make_true(&mut self) -> Result<(), GuestError> {
        self.guest.make_true()
    }
    fn release(&mut self) -> Result<(), GuestError> {
        self.guest.release()
    }
    fn let_out(&mut self) -> Result<(), GuestError> {
        self.guest.let_out()
    }
}

/// The backup, its memory at each load, and its disk when it takes over.
struct Kept {
    backup: Backup,
    disk: PathBuf,
    snapshots: Vec<Vec<u8>>,
    known: Vec<u32>,
}

impl Standby for Kept {
    fn prepare(&mut self, description: &[u8]) -> Result<(), GuestError> {
        self.backup.prepare(description)
    }
    fn memory(&self) -> Vec<DmaMemory> {
        self.backup.memory()
    }
    fn cache(&self) -> Result<Option<DmaMemory>, GuestError> {
        self.backup.cache()
    }
    fn stop(&mut self, own: &mut DirtySet) -> Result<(), GuestError> {
        self.backup.stop(own)
    }
    fn load(&mut self, records: &[DeviceRecord]) -> Result<(), GuestError> {
        let now = contents(&self.backup.memory()[0]);
        if self.snapshots.last() != Some(&now) {
            self.snapshots.push(now);
        }
        self.backup.load(records)
    }
    fn settle(&mut self) -> Result<(), GuestError> {
        self.backup.settle()
    }
    fn take_over(&mut self) -> Result<(), GuestError> {
        if self.known.is_empty() {
            self.backup.pay()?;
            self.known = sequences(&self.disk);
        }
        self.backup.take_over()
    }
}

/// One run. None: nothing happens before the end.
#[derive(Clone, Copy, Debug)]
struct Plan {
    at: Option<(Kind, u64, usize)>,
    survivor: Side,
    runs: bool,
    marking: MarkingMode,
}

/// Runs it, and gives how many checkpoints the survivor had; an error if the secondary's memory
/// was once not the primary's.
fn run(plan: Plan) -> Result<u64, String> {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (mine, theirs) = (disk(folder, "primary"), disk(folder, "secondary"));
    let (here, first) = UnixStream::pair().unwrap();
    let (second, there) = UnixStream::pair().unwrap();
    let script = match plan.at {
        None => AtMessage::watch(),
        Some((kind, nth, behind)) => AtMessage::new(kind, nth, Deed::Cut(behind)),
    };
    let (fired, in_order) = (script.fired(), script.in_order());
    let relay = relay(first, second, script).unwrap();
    let (line, switch) = Line::new(here);
    let (their_line, their_switch) = Line::new(there);
    let decided = their_switch.clone();
    let place = hosting(&theirs, folder, "secondary");
    let their_disk = theirs.clone();
    let other = std::thread::spawn(move || {
        let mut kept = Kept {
            backup: Backup::new(place, MEMORY, plan.runs),
            disk: their_disk,
            snapshots: Vec::new(),
            known: Vec::new(),
        };
        let paired = Secondary::pair(&mut kept, their_line, decided, PATIENCE);
        let Ok(mut secondary) = paired else {
            return (kept, None);
        };
        let ended = secondary.run(|_, _| {});
        println!("{plan:?}: the secondary's checkpoints ended: {ended}");
        let goes_on = plan.survivor == Side::Secondary;
        let taken = goes_on.then(|| secondary.take_over().unwrap());
        (kept, taken)
    });

    let mut guest =
        EmulatedGuest::boot(&shape(plan.marking), &hosting(&mine, folder, "primary")).unwrap();
    guest.ask_for_checkpoints(&switch);
    // The disks are the same now: from here on both must have every write.
    Protected::hold(&mut guest).unwrap();
    guest.run_for(300, PATIENCE).unwrap();
    let mut watched = Watched {
        guest,
        snapshots: Vec::new(),
    };
    let mut survived = None;
    match Primary::pair(&mut watched, line, switch.clone(), PATIENCE) {
        Ok((mut primary, _)) => {
            for _ in 0..5 {
                primary
                    .guest()
                    .guest
                    .run_for(300, Duration::from_millis(200))
                    .unwrap();
                if let Err(error) = primary.checkpoint() {
                    println!("{plan:?}: the primary's checkpoints ended: {error}");
                    break;
                }
            }
            match plan.survivor {
                Side::Primary => {
                    switch.fail_over().unwrap();
                    survived = Some(primary.survive().unwrap());
                }
                Side::Secondary => drop(primary),
            }
        }
        Err((_, alone)) => survived = Some(alone),
    }
    let Watched {
        mut guest,
        snapshots,
    } = watched;
    let result = match survived {
        Some(survived) => {
            goes_on(&mut guest, folder, "primary", &mine);
            assert_eq!(survived.aftermath, [""; 0], "{plan:?}");
            (Some(survived), None)
        }
        None => {
            // Lost, with everything that it held.
            drop(guest);
            their_switch.fail_over().unwrap();
            (None, Some(sequences(&mine)))
        }
    };
    let (kept, taken) = other.join().unwrap();
    relay.join();
    assert!(in_order.load(Ordering::Acquire), "{plan:?}");
    assert_eq!(fired.load(Ordering::Acquire), plan.at.is_some(), "{plan:?}");
    for (number, (theirs, mine)) in kept.snapshots.iter().zip(&snapshots).enumerate() {
        let pages = theirs.chunks(4096).zip(mine.chunks(4096));
        let differ = pages.filter(|(theirs, mine)| theirs != mine).count();
        if differ > 0 {
            return Err(format!("checkpoint {number}: {differ} pages differ"));
        }
    }
    let (survived, seen): (Option<Survived>, _) = result;
    if let (Some(epochs), Some(seen)) = (taken, seen) {
        assert_eq!(
            kept.snapshots.len(),
            usize::try_from(epochs).unwrap() + 1,
            "{plan:?}"
        );
        for (block, (seen, known)) in seen.iter().zip(&kept.known).enumerate() {
            assert!(
                seen <= known,
                "block {block}: {seen} was seen, {known} is known; {plan:?}"
            );
        }
        let mut guest = kept.backup.into_guest().unwrap();
        goes_on(&mut guest, folder, "secondary", &theirs);
        return Ok(epochs);
    }
    Ok(survived.map_or(0, |survived| survived.epochs))
}

/// The guest works, finds on its disk what it wrote, and comes to its end.
fn goes_on(guest: &mut EmulatedGuest, folder: &Path, side: &str, disk: &Path) {
    assert!(
        guest.run_for(1000, PATIENCE).unwrap(),
        "{side}: it stands still"
    );
    guest.drain().unwrap();
    let layout = Layout::new(guest.shape()).unwrap();
    let on_disk = sequences(disk);
    let mut completed = 0;
    for place in &layout.places {
        let mut open = BTreeSet::new();
        read(
            &Journal::path(folder, side, place.vcpu),
            |entry| match entry.event {
                Event::ReadSubmitted | Event::WriteSubmitted => {
                    assert!(open.insert(entry.id), "{side}: request {} twice", entry.id);
                }
                Event::Completed => {
                    // What was in flight at the checkpoint was submitted elsewhere.
                    open.remove(&entry.id);
                    completed += 1;
                }
                bad => panic!("{side}: {bad:?} {entry:?}"),
            },
        )
        .unwrap();
        assert!(open.is_empty(), "{side}: {} lost", open.len());
        for block in 0..place.blocks {
            let at = place.sequences + block * 4;
            let acknowledged = guest.ram().load_u32(at, Ordering::Relaxed).unwrap();
            let number = usize::try_from(block * 2 + u64::from(place.queue)).unwrap();
            assert_eq!(on_disk[number], acknowledged, "{side}: block {number}");
        }
    }
    assert!(completed >= 1000, "{side}: {completed}");
}

fn plan(at: Option<(Kind, u64, usize)>, survivor: Side) -> Plan {
    Plan {
        at,
        survivor,
        runs: false,
        marking: MarkingMode::Bits,
    }
}

#[test]
fn either_side_goes_on_when_the_other_is_lost_between_checkpoints() {
    for runs in [false, true] {
        for survivor in [Side::Primary, Side::Secondary] {
            let plan = Plan {
                runs,
                ..plan(None, survivor)
            };
            assert_eq!(run(plan), Ok(5), "{plan:?}");
        }
    }
}

#[test]
fn either_side_goes_on_at_each_message_of_the_first_and_the_fourth_checkpoint() {
    for kind in Kind::ALL {
        for nth in [1, 4] {
            for survivor in [Side::Primary, Side::Secondary] {
                if kind == Kind::Ready && (nth > 1 || survivor == Side::Secondary) {
                    continue;
                }
                let plan = Plan {
                    runs: nth == 4,
                    ..plan(Some((kind, nth, 4 * usize::from(nth == 4))), survivor)
                };
                let epochs = run(plan).unwrap();
                assert!(
                    (nth.saturating_sub(1)..=nth).contains(&epochs),
                    "{epochs}: {plan:?}"
                );
            }
        }
    }
}

/// The negative control: with the devices' marking off, the memories differ.
#[test]
fn without_marking_the_secondary_is_not_the_primary() {
    let plan = Plan {
        marking: MarkingMode::Off,
        ..plan(None, Side::Primary)
    };
    assert!(run(plan).unwrap_err().contains("pages differ"));
}
