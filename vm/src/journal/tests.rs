use super::*;
use std::collections::HashMap;
use std::io;
use std::sync::Condvar;
use std::sync::atomic::AtomicU64;

/// What a disk does wrong, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Answers a write and does not carry it out.
    Drops,
    /// Carries an old write out again, after the new one has been read.
    Replays,
    /// Writes half of the sectors.
    TearsBlock,
    /// Writes half of a sector.
    TearsSector,
    /// Puts two sectors in each other's place.
    Swaps,
    /// Writes a neighbouring block instead.
    Strays,
    /// Answers with an error.
    Fails,
}

struct State {
    bytes: Vec<u8>,
    writes: u64,
    /// By offset, the write before the last.
    old: HashMap<u64, Vec<u8>>,
    read_since: HashMap<u64, bool>,
    struck: bool,
}

/// A disk in memory that does one thing wrong.
struct Faulty {
    fault: Fault,
    state: Mutex<State>,
    /// Set when it has struck: a later write would cover the fault.
    stop: AtomicBool,
}

const BLOCK: usize = 4096;

impl Faulty {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            state: Mutex::new(State {
                bytes: vec![0; 4 << 20],
                writes: 0,
                old: HashMap::new(),
                read_since: HashMap::new(),
                struck: false,
            }),
            stop: AtomicBool::new(false),
        }
    }
}

impl Disk for Faulty {
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        state.read_since.insert(offset, true);
        data.copy_from_slice(&state.bytes[at..at + data.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        let at = usize::try_from(offset).unwrap();
        // The formatting is big, and left alone.
        let strike = data.len() == BLOCK && !state.struck && {
            state.writes += 1;
            state.writes > 100
        };
        let mut data = data.to_vec();
        let (mut at, last) = (at, at + BLOCK == state.bytes.len());
        if strike {
            state.struck = true;
            match self.fault {
                Fault::None => {}
                Fault::Drops => data.clear(),
                Fault::Fails => {
                    self.stop.store(true, Ordering::Relaxed);
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Fault::TearsBlock => data.truncate(BLOCK / 2),
                Fault::TearsSector => data.truncate(BLOCK - 256),
                Fault::Swaps => data.rotate_left(512),
                Fault::Strays if last => at -= BLOCK,
                Fault::Strays => at += BLOCK,
                Fault::Replays => {
                    // An old write of a block whose new content somebody has seen.
                    let seen = |at: &u64| state.read_since.get(at).copied().unwrap_or(false);
                    let victim = state
                        .old
                        .keys()
                        .copied()
                        .find(|at| *at != offset && seen(at));
                    match victim.and_then(|at| state.old.remove(&at).map(|old| (at, old))) {
                        Some((victim, old)) => {
                            let victim = usize::try_from(victim).unwrap();
                            state.bytes[victim..victim + old.len()].copy_from_slice(&old);
                        }
                        None => state.struck = false,
                    }
                }
            }
        }
        if state.struck && self.fault != Fault::None {
            self.stop.store(true, Ordering::Relaxed);
        }
        if data.len() == BLOCK {
            let before = state.bytes[at..at + BLOCK].to_vec();
            state.old.insert(offset, before);
            state.read_since.insert(offset, false);
        }
        state.bytes[at..at + data.len()].copy_from_slice(&data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> u64 {
        self.state.lock().unwrap().bytes.len() as u64
    }
}

fn options() -> Options {
    Options {
        depth: 4,
        requests: Some(4000),
        ..Options::default()
    }
}

fn run_on(disk: &dyn Disk, options: &Options) -> Report {
    run(disk, options, &AtomicBool::new(false), &|_| {}).unwrap()
}

fn with(fault: Fault) -> Report {
    let disk = Faulty::new(fault);
    let options = Options {
        // What would overtake the fault depends on the machine.
        depth: 1,
        ..options()
    };
    let report = run(&disk, &options, &disk.stop, &|_| {}).unwrap();
    let struck = disk.state.lock().unwrap().struck;
    assert!(struck, "{fault:?} never happened");
    assert_eq!(report.is_good(), fault == Fault::None, "{report:?}");
    report
}

#[test]
fn a_good_disk_is_good() {
    let report = with(Fault::None);
    assert_eq!(report.requests, 4000);
    assert_eq!(report.reads + report.writes + report.flushes, 4000);
    assert_eq!(report.flushes, 4000 / 64);
    assert_eq!(report.sectors_verified, 8192);
    assert!(report.reads > 1000 && report.writes > 1000);
}

#[test]
fn a_dropped_write_is_lost() {
    let report = with(Fault::Drops);
    assert_eq!((report.counts.lost, report.counts.total()), (8, 8));
}

#[test]
fn an_old_write_again_is_stale() {
    let report = with(Fault::Replays);
    assert_eq!((report.counts.stale, report.counts.total()), (8, 8));
}

#[test]
fn part_of_a_write_is_torn() {
    let report = with(Fault::TearsBlock);
    assert_eq!((report.counts.torn, report.counts.total()), (4, 4));
    let report = with(Fault::TearsSector);
    assert_eq!((report.counts.torn, report.counts.total()), (1, 1));
}

#[test]
fn sectors_in_the_wrong_place_are_misplaced() {
    let report = with(Fault::Swaps);
    assert_eq!((report.counts.misplaced, report.counts.total()), (8, 8));
    let report = with(Fault::Strays);
    let counts = report.counts;
    assert_eq!((counts.misplaced, counts.lost), (8, 8), "{counts:?}");
}

#[test]
fn an_error_fails_and_leaves_either_content_right() {
    let report = with(Fault::Fails);
    assert_eq!((report.failed, report.counts.total()), (1, 0));
}

/// Answers only when as many requests are there as shall be in flight.
struct Barrier {
    inner: Faulty,
    depth: u64,
    waiting: Mutex<u64>,
    met: Condvar,
}

impl Disk for Barrier {
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if data.len() == BLOCK {
            let mut waiting = self.waiting.lock().unwrap();
            *waiting += 1;
            self.met.notify_all();
            while *waiting < self.depth {
                waiting = self.met.wait(waiting).unwrap();
            }
        }
        self.inner.read(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }
}

#[test]
fn as_many_requests_are_in_flight_as_was_asked_for() {
    let disk = Barrier {
        inner: Faulty::new(Fault::None),
        depth: 16,
        waiting: Mutex::new(0),
        met: Condvar::new(),
    };
    let options = Options {
        depth: 16,
        writes_percent: 0,
        flush_every: 0,
        requests: Some(100),
        ..options()
    };
    // It would hang if one request waited for another.
    assert_eq!(run_on(&disk, &options).max_in_flight, 16);
}

#[test]
fn the_disk_is_verified_later_by_its_digest() {
    let disk = Faulty::new(Fault::None);
    let report = run_on(&disk, &options());
    let later = verify(&disk, &options()).unwrap();
    assert!(later.is_good());
    assert_eq!(later.digest, report.digest);
    // Another write of the same block, whole and in its place: only the digest tells.
    let mut block = vec![0; BLOCK];
    for (sector, bytes) in (0..).zip(block.chunks_exact_mut(512)) {
        sector::Stamp {
            seed: 1,
            sector,
            sequence: 1 << 40,
        }
        .fill(bytes);
    }
    disk.write(0, &block).unwrap();
    let later = verify(&disk, &options()).unwrap();
    assert!(later.is_good());
    assert_ne!(later.digest, report.digest);
    disk.write(512, &block[..512]).unwrap();
    assert_eq!(verify(&disk, &options()).unwrap().counts.misplaced, 1);
}

#[test]
fn it_ends_when_told_to() {
    let disk = Faulty::new(Fault::None);
    let stop = Arc::new(AtomicBool::new(false));
    let seen = AtomicU64::new(0);
    let options = Options {
        requests: None,
        progress: 500,
        ..options()
    };
    let (said, hears) = std::os::unix::net::UnixStream::pair().unwrap();
    stop_on_line(io::BufReader::new(hears), Arc::clone(&stop));
    let report = run(&disk, &options, &stop, &|requests| {
        assert!(requests.is_multiple_of(500));
        if seen.fetch_add(1, Ordering::Relaxed) == 3 {
            io::Write::write_all(&mut &said, b"go on\nstop\n").unwrap();
        }
    });
    assert!(report.unwrap().is_good());
    assert!(seen.into_inner() >= 4);
}

#[test]
fn a_file_is_a_disk() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(8 << 20).unwrap();
    let disk = FileDisk::open(file.path(), true).unwrap();
    let options = Options {
        arena: 16 << 20,
        requests: Some(500),
        ..options()
    };
    let report = run_on(&disk, &options);
    assert!(report.is_good(), "{report:?}");
    assert!(FileDisk::open(std::path::Path::new("/dev/null"), false).is_err());
    assert!(FileDisk::open(std::path::Path::new("/nowhere"), false).is_err());
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let disk = Faulty::new(Fault::None);
    let good = options();
    for bad in [
        Options {
            block: 1000,
            ..good.clone()
        },
        Options {
            block: 1 << 20,
            ..good.clone()
        },
        Options {
            span: 1 << 30,
            ..good.clone()
        },
        Options {
            span: 4097,
            ..good.clone()
        },
        Options {
            depth: 0,
            ..good.clone()
        },
        Options {
            depth: 900,
            ..good.clone()
        },
        Options {
            writes_percent: 101,
            ..good.clone()
        },
        Options {
            arena: 4096,
            ..good.clone()
        },
    ] {
        let refused = run(&disk, &bad, &AtomicBool::new(false), &|_| {});
        assert!(matches!(refused, Err(VmError::Shape { .. })), "{bad:?}");
    }
}
