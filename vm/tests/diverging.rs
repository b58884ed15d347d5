//! Two sides that run the same guest: as long as their disks say the same no checkpoint is made, and
//! one is when they do not. The control is the same pair without a comparison, which notices nothing.

use driver::dirty::PAGE_SIZE;
use migration::checkpoint::compare::Compared;
use migration::checkpoint::{Comparison, Line, Primary, Reporter, Secondary, Switch, Witness};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;
use vm::guest::{EmulatedGuest, Pattern, Shape};
use vm::{Backup, Hosting, Limits, MarkingMode, Means, evidence};

const MEMORY: u64 = 16 << 20;
const BLOCKS: u64 = 512;
const PATIENCE: Duration = Duration::from_secs(30);
/// No checkpoint of its own accord.
const NEVER: Duration = Duration::from_secs(3600);
/// Requests after which a pair that was to notice something would have.
const ENOUGH: u64 = 8000;
/// Outputs of both sides that say enough.
const ALIKE: u64 = 4000;

fn shape() -> Shape {
    Shape {
        memory: MEMORY,
        devices: 1,
        queues: 2,
        queue_size: 64,
        depth: 1,
        blocks: BLOCKS,
        pattern: Pattern::Random,
        writes_percent: 40,
        seed: 5,
        marking: MarkingMode::Bits,
        means: Means::default(),
        reset_every: 0,
        packed: false,
    }
}

fn hosting(folder: &Path, side: &str) -> (Hosting, PathBuf) {
    let disk = folder.join(format!("{side}.img"));
    File::create(&disk).unwrap();
    evidence::format_disk(&disk, 0, BLOCKS).unwrap();
    let hosting = Hosting {
        disks: vec![disk.clone()],
        evidence: None,
        side: side.to_owned(),
        limits: Limits::default(),
        // All there is: a lack of room asks for no checkpoint.
        hold: Some(2 * BLOCKS * PAGE_SIZE),
        disk_fault: None,
    };
    (hosting, disk)
}

/// What a pair did until it made a checkpoint or had done enough, by the requests that the primary
/// completed and by what was compared: how many checkpoints it made, and what was compared.
fn run(
    compares: bool,
    differs: bool,
    enough: impl Fn(u64, Compared) -> bool + Send,
) -> (u64, Compared) {
    let folder = tempfile::tempdir().unwrap();
    let (mine, _) = hosting(folder.path(), "primary");
    let (theirs, their_disk) = hosting(folder.path(), "secondary");
    let (here, there) = UnixStream::pair().unwrap();
    let (hearing, telling) = UnixStream::pair().unwrap();
    let (line, switch) = Line::new(here);
    let (their_line, their_switch) = Line::new(there);
    let reporter = Reporter::new();
    let comparison = Comparison::new(switch.clone());
    if differs {
        // Whatever the copy reads is not what the primary reads.
        let disk = File::options().write(true).open(&their_disk).unwrap();
        for block in 0..BLOCKS {
            disk.write_all_at(&[0xd1; 8], block * PAGE_SIZE + 2048)
                .unwrap();
        }
    }
    let made = std::thread::scope(|scope| {
        scope.spawn(|| comparison.hear(hearing).unwrap());
        scope.spawn(|| reporter.run(telling).unwrap());
        let teller = Arc::clone(&reporter);
        scope.spawn(move || {
            let mut backup = Backup::new(theirs, MEMORY, true);
            if compares {
                backup = backup.telling(teller as Arc<dyn Witness>);
            }
            let secondary = Secondary::pair(&mut backup, their_line, their_switch, PATIENCE);
            secondary.unwrap().run(|_, _| {});
        });
        let mut guest = EmulatedGuest::boot(&shape(), &mine).unwrap();
        guest.ask_for_checkpoints(&switch);
        if compares {
            guest.tell(Some(Arc::clone(&comparison) as Arc<dyn Witness>));
        }
        let counters = guest.counters();
        let paired = Primary::pair(&mut guest, line, switch.clone(), PATIENCE);
        let (mut primary, _) = paired.unwrap();
        let (ends, ended) = channel::<()>();
        let watched: Switch = switch.clone();
        let figures = &comparison;
        let watcher = scope.spawn(move || {
            while !enough(counters.read().completed, figures.figures()) {
                if ended.recv_timeout(Duration::from_millis(5)).is_ok() {
                    break;
                }
            }
            // Two may have seen enough at once.
            let _ = watched.fail_over();
        });
        let mut made = 0;
        primary.run(NEVER, |_| {
            made += 1;
            let _ = ends.send(());
        });
        watcher.join().unwrap();
        assert!(primary.survive().unwrap().aftermath.is_empty());
        reporter.close();
        made
    });
    (made, comparison.figures())
}

#[test]
fn the_same_outputs_need_no_checkpoint() {
    let (made, compared) = run(true, false, |_, compared| compared.alike >= ALIKE);
    assert_eq!(made, 0, "{compared:?}");
    assert_eq!((compared.diverged, compared.ahead), (0, 0));
    assert!(compared.alike >= ALIKE, "{compared:?}");
}

#[test]
fn different_outputs_make_a_checkpoint() {
    let (made, compared) = run(true, true, |_, _| false);
    assert!(made > 0, "{compared:?}");
    assert!(compared.diverged > 0, "{compared:?}");
}

/// The negative control: periodic checkpoints alone do not notice.
#[test]
fn without_a_comparison_nobody_notices() {
    let (made, compared) = run(false, true, |completed, _| completed >= ENOUGH);
    assert_eq!(made, 0);
    assert_eq!(compared, Compared::default());
}
