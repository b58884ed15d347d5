//! Our vhost-user block device against qemu-storage-daemon's, and against itself with the dirty log
//! on.
//!
//! Both serve the same file to the same client, one queue at depth 32, round by round in turn. The
//! daemon is given the best of its ways to do I/O, found in the same run. Every byte that is read is
//! compared, every round ends with a completed flush (not in the time), and the file is compared
//! with what must be in it at the end. The log is harvested every 4096 requests while it is on;
//! every page that was read into must be in it, and with the device's marking switched off none is.

use benches::block::client::{Client, DEPTH, Work};
use benches::block::content::Expected;
use benches::block::server::{Cache, Server, StorageDaemon, tidemark};
use benches::{Bound, Line, Mode, Ratio, finish, interleave_until, settle, wanted};
use std::cell::RefCell;
use std::fs::File;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// 256 MiB of disk.
const BLOCKS: u32 = 1 << 16;
/// Rounds in which the daemon's ways to do I/O are compared.
const TRIALS: usize = 15;
/// Rounds that are judged: more, as long as the machine is too noisy for the bound.
const ROUNDS: RangeInclusive<usize> = 31..=121;
/// The same for the closer bound.
const TRACKING_ROUNDS: RangeInclusive<usize> = 31..=361;
const IOPS_BOUND: f64 = 0.9;
const TRACKING_BOUND: f64 = 1.03;

/// One running server and the client at its queue.
struct Run {
    name: String,
    client: RefCell<Client>,
    server: Server,
}

impl Run {
    fn new(name: String, mut server: Server) -> Result<Self, String> {
        let client = RefCell::new(Client::new(server.connect()?)?);
        println!("{name}: {}", server.command);
        Ok(Self {
            name,
            client,
            server,
        })
    }
}

/// Requests of a round: a tenth of a second or so.
fn requests(cache: Cache, work: Work) -> u32 {
    match (cache, work) {
        (Cache::Page, Work::Read) => 16384,
        (Cache::Page, Work::Write) => 8192,
        (Cache::Direct, _) => 4096,
    }
}

/// The file, and what is in it.
struct Disk {
    path: PathBuf,
    file: File,
    expected: RefCell<Expected>,
}

impl Disk {
    fn new(folder: &Path) -> Result<Self, String> {
        let path = folder.join("disk");
        let expected = Expected::new(BLOCKS);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .and_then(|file| expected.create(&file).map(|()| file))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self {
            path,
            file,
            expected: RefCell::new(expected),
        })
    }

    /// A round of requests. A benchmark that reads wrong data has no figure to show.
    fn round(&self, run: &Run, cache: Cache, work: Work, logged: bool) -> Duration {
        let mut client = run.client.borrow_mut();
        let mut round = || {
            if logged {
                client.log(true)?;
            }
            let time =
                client.round(work, requests(cache, work), &mut self.expected.borrow_mut())?;
            if logged {
                let lost = client.unlogged();
                assert_eq!(lost, 0, "{}: pages are missing in the log", run.name);
                client.log(false)?;
            }
            Ok::<_, String>(time)
        };
        round().unwrap_or_else(|error| panic!("{}: {error}", run.server.command))
    }
}

fn label(cache: Cache, work: Work) -> String {
    let work = match work {
        Work::Read => "read",
        Work::Write => "write",
    };
    format!("block/4 KiB random {work}, depth {DEPTH}, {cache}")
}

fn line(name: String, bound: Bound, ratio: &Ratio, requests: &str) -> Line {
    let [low, high] = ratio.confidence();
    Line {
        name,
        bound,
        figure: ratio.median(),
        spread: ratio.spread(),
        detail: format!(
            "{requests}; {} rounds, median 95 % sure in [{low:.3}, {high:.3}]",
            ratio.rounds()
        ),
    }
}

/// The daemon's fastest way to do this work, by the median of a few rounds in turn.
fn best<'a>(peers: &'a [Run], disk: &Disk, cache: Cache, work: Work) -> &'a Run {
    let mut times = vec![Vec::new(); peers.len()];
    for _ in 0..TRIALS {
        for (peer, times) in peers.iter().zip(&mut times) {
            times.push(disk.round(peer, cache, work, false));
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let medians: Vec<_> = times.iter_mut().map(median).collect();
    for (peer, time) in peers.iter().zip(&medians) {
        println!("{}: {}: {time:.1?} a round", label(cache, work), peer.name);
    }
    let ranked = peers.iter().zip(medians).min_by_key(|(_, time)| *time);
    ranked.expect("QEMU has a way to do I/O").0
}

/// Judges both kinds of work in one cache mode, printing each line as it comes.
fn judge(
    daemon: &StorageDaemon,
    disk: &Disk,
    sockets: &Path,
    cache: Cache,
) -> Result<Vec<Line>, String> {
    let socket = |name: &str| sockets.join(format!("{name}-{}", cache.direct()));
    let mut peers = Vec::new();
    for aio in cache.aio() {
        let server = daemon.serve(&disk.path, cache, aio, &socket(aio))?;
        peers.push(Run::new(format!("aio={aio}"), server)?);
    }
    let ours = tidemark(&disk.path, cache, &socket("ours"), &[])?;
    let ours = Run::new("tidemark".to_owned(), ours)?;

    let mut lines = Vec::new();
    for work in [Work::Read, Work::Write] {
        let count = f64::from(requests(cache, work));
        let iops = |time: Duration| format!("{:.1}k", count / time.as_secs_f64() / 1e3);
        let peer = best(&peers, disk, cache, work);
        // A ratio of IOPS: the peer's time is above, ours below.
        let ratio = interleave_until(
            ROUNDS,
            1.0 - IOPS_BOUND,
            || disk.round(peer, cache, work, false),
            || disk.round(&ours, cache, work, false),
        );
        lines.push(line(
            format!(
                "{}: IOPS / {} {}",
                label(cache, work),
                daemon.name(),
                peer.name
            ),
            Bound::AtLeast(IOPS_BOUND),
            &ratio,
            &format!("{} : {}", iops(ratio.peer), iops(ratio.subject)),
        ));
        let ratio = interleave_until(
            TRACKING_ROUNDS,
            TRACKING_BOUND - 1.0,
            || disk.round(&ours, cache, work, true),
            || disk.round(&ours, cache, work, false),
        );
        lines.push(line(
            format!(
                "{}: time, LOG_ALL on and harvested / off",
                label(cache, work)
            ),
            Bound::AtMost(TRACKING_BOUND),
            &ratio,
            &format!("{} : {}", iops(ratio.subject), iops(ratio.peer)),
        ));
    }
    Ok(lines)
}

/// The check of the check: without marking, the log has none of the pages.
fn control(disk: &Disk, sockets: &Path) -> Result<(), String> {
    let off = ["--marking", "off"];
    let server = tidemark(&disk.path, Cache::Page, &sockets.join("control"), &off)?;
    let run = Run::new("control".to_owned(), server)?;
    let mut client = run.client.borrow_mut();
    client.log(true)?;
    client.round(Work::Read, 4096, &mut disk.expected.borrow_mut())?;
    let (read, lost) = (client.touched(), client.unlogged());
    if read == 0 || lost != read {
        return Err(format!(
            "with marking off the log misses {lost} of {read} pages, not all"
        ));
    }
    println!("control: with marking off the log misses all {read} pages that were read into");
    Ok(())
}

fn run(mode: Mode) -> Result<Vec<Line>, String> {
    let daemon = StorageDaemon::find()?;
    println!("peer: {}", daemon.version);
    // On a disk, not in memory, and where `cargo clean` takes it along; sockets have short names.
    let told = |error: std::io::Error| error.to_string();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(told)?;
    let sockets = tempfile::tempdir().map_err(told)?;
    let disk = Disk::new(folder.path())?;
    control(&disk, sockets.path())?;
    settle();
    let mut lines = Vec::new();
    for cache in [Cache::Page, Cache::Direct] {
        let judged = judge(&daemon, &disk, sockets.path(), cache)?;
        judged.iter().for_each(|line| line.print(mode));
        lines.extend(judged);
    }
    match disk.expected.borrow().wrong(&disk.file).map_err(told)? {
        0 => println!("all {BLOCKS} blocks hold what was written to them"),
        wrong => return Err(format!("{wrong} of {BLOCKS} blocks are wrong")),
    }
    Ok(lines)
}

fn main() -> ExitCode {
    if !wanted("block") {
        return ExitCode::SUCCESS;
    }
    match run(Mode::from_args()) {
        Ok(lines) => finish(&lines),
        Err(error) => {
            eprintln!("block: {error}");
            ExitCode::FAILURE
        }
    }
}
