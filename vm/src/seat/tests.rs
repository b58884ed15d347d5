use super::*;
use crate::evidence::format_disk;
use crate::guest::{EmulatedGuest, Pattern, Shape};
use crate::{Hosting, MarkingMode, Means};
use migration::Guest;
use migration::agent::{
    Agents, Endpoint, Ensemble, Host, Limits, Mode, Place, Server, Step, Stop, Tracking,
};
use migration::lock::{Cause, LockedSet, Phase, Remote, RemoteError, Remotes, Terms};
use std::fs::File;
use std::path::Path;
use std::thread::JoinHandle;

const DEVICES: u16 = 3;
const MEMORY: u64 = 16 << 20;
const LEASE: Duration = Duration::from_secs(600);

/// A guest whose devices sit in served places.
fn guest(folder: &Path) -> (EmulatedGuest, Vec<Arc<Seat>>, Vec<PathBuf>) {
    let blocks = 1024;
    let mut disks = Vec::new();
    for number in 0..DEVICES {
        let path = folder.join(format!("disk{number}"));
        File::create(&path).unwrap();
        format_disk(&path, number, blocks).unwrap();
        disks.push(path);
    }
    let shape = Shape {
        memory: MEMORY,
        devices: DEVICES,
        queues: 1,
        queue_size: 64,
        depth: 8,
        blocks,
        pattern: Pattern::Random,
        writes_percent: 30,
        seed: 1,
        marking: MarkingMode::Bits,
        means: Means::default(),
        reset_every: 0,
        packed: false,
    };
    let hosting = Hosting {
        disks,
        side: "source".to_owned(),
        ..Hosting::default()
    };
    let mut guest = EmulatedGuest::boot(&shape, &hosting).unwrap();
    let (mut seats, mut paths) = (Vec::new(), Vec::new());
    for number in 0..DEVICES {
        let path = folder.join(format!("{number}.seat"));
        let listener = UnixListener::bind(&path).unwrap();
        let seat = Arc::new(Seat::default());
        let serving = Arc::clone(&seat);
        std::thread::spawn(move || serve_seat(&listener, &serving));
        seats.push(seat);
        paths.push(path);
    }
    guest.seat(&seats);
    (guest, seats, paths)
}

fn tracked() -> DeviceConfig {
    DeviceConfig {
        tracking: Some(Tracking {
            ranges: vec![std::ops::Range {
                start: 0,
                end: MEMORY,
            }],
            granularity: 4096,
            pasid: None,
            mode: Mode::Bitmap,
        }),
        ..DeviceConfig::default()
    }
}

fn suspended() -> DeviceConfig {
    DeviceConfig {
        suspended: true,
        ..tracked()
    }
}

/// Whether each device tracks and is suspended, by its registers.
fn states(guest: &EmulatedGuest) -> Vec<(bool, bool)> {
    guest.device_states().unwrap()
}

#[test]
fn an_agent_configures_the_device_of_a_running_guest() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, seats, paths) = guest(folder.path());
    guest.run_for(100, Duration::from_secs(60)).unwrap();
    let mut device = SeatedGuest::new(paths[1].clone());
    assert!(device.was_reset(), "nobody has configured it");
    let refused = device.apply(&tracked()).unwrap_err();
    assert!(refused.contains("lock it anew"), "{refused}");
    device.apply(&DeviceConfig::default()).unwrap();
    assert!(!device.was_reset());
    device.apply(&tracked()).unwrap();
    let only = |state| vec![(false, false), state, (false, false)];
    assert_eq!(states(&guest), only((true, false)));
    device.apply(&suspended()).unwrap();
    assert_eq!(states(&guest), only((true, true)));

    // The guest comes first. What comes late from before that does nothing.
    seats[1].take_back().unwrap();
    assert_eq!(states(&guest), only((false, false)));
    assert!(device.apply(&suspended()).is_err());
    assert_eq!(states(&guest), only((false, false)));
    assert!(device.was_reset());
    device.apply(&DeviceConfig::default()).unwrap();
    device.apply(&suspended()).unwrap();

    // The guest goes: its device is not touched any more, whoever asks.
    drop(guest);
    assert!(device.was_reset());
    assert!(device.apply(&tracked()).is_err());
}

#[test]
fn a_device_that_its_guest_resets_is_not_configured_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let (guest, _seats, paths) = guest(folder.path());
    let mut device = SeatedGuest::new(paths[0].clone());
    device.apply(&DeviceConfig::default()).unwrap();
    device.apply(&tracked()).unwrap();
    assert!(!device.was_reset());
    guest.reset_device(0).unwrap();
    assert!(device.was_reset());
    assert!(device.apply(&tracked()).is_err());
}

#[test]
fn where_no_guest_is_nothing_can_be_tracked() {
    let folder = tempfile::tempdir().unwrap();
    let mut device = SeatedGuest::new(folder.path().join("nobody"));
    assert!(device.was_reset(), "it may have been anything");
    device.apply(&DeviceConfig::default()).unwrap();
    assert!(!device.was_reset());
    let refused = device.apply(&tracked()).unwrap_err();
    assert!(refused.contains("no guest at"), "{refused}");
}

/// Agents on threads.
struct Fleet {
    folder: PathBuf,
    running: Vec<(Stop, JoinHandle<()>)>,
}

impl Fleet {
    fn start(folder: &Path, paths: &[PathBuf]) -> Self {
        let mut running = Vec::new();
        for (number, path) in paths.iter().enumerate() {
            let device = Box::new(SeatedGuest::new(path.clone())) as Box<dyn Managed>;
            let state = folder.join(format!("{number}.state"));
            let host = Host::open(vec![("disk".to_owned(), device)], &state, LEASE).unwrap();
            let endpoint = place(folder, number).agent;
            let server = Server::bind(&endpoint, None, host, Limits::default()).unwrap();
            let stop = server.stopper();
            running.push((stop, std::thread::spawn(move || server.run())));
        }
        Self {
            folder: folder.to_owned(),
            running,
        }
    }

    fn places(&self) -> Vec<Place> {
        let numbers = 0..self.running.len();
        numbers.map(|number| place(&self.folder, number)).collect()
    }

    fn ensemble(&self) -> Ensemble {
        let agents = Agents::new(None).unwrap();
        let (here, there) = (self.places(), Vec::new());
        Ensemble::new(agents, "test".to_owned(), here, there, true, Mode::Bitmap)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for (stop, thread) in self.running.drain(..) {
            stop.stop();
            thread.join().unwrap();
        }
    }
}

fn place(folder: &Path, number: usize) -> Place {
    Place {
        device: "disk".to_owned(),
        agent: Endpoint::Unix(folder.join(format!("{number}.agent"))),
    }
}

#[test]
fn all_devices_of_a_guest_are_changed_together() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, _seats, paths) = guest(folder.path());
    let fleet = Fleet::start(folder.path(), &paths);
    guest.conduct(fleet.ensemble());
    let whole = [std::ops::Range {
        start: 0,
        end: MEMORY,
    }];
    guest.run_for(100, Duration::from_secs(60)).unwrap();
    guest.begin_tracking(&whole, 4096).unwrap();
    assert_eq!(states(&guest), [(true, false); 3]);
    for named in guest.sources().iter_mut().skip(1) {
        assert_eq!(named.source.start(&whole, 4096).unwrap(), 4096);
        assert!(named.source.start(&whole, 8192).is_err());
    }
    guest.pause().unwrap();
    assert_eq!(states(&guest), [(true, true); 3]);
    guest.resume().unwrap();
    assert_eq!(states(&guest), [(true, false); 3]);
    guest.end_conduct(migration::agent::End::Stays).unwrap();
    assert_eq!(states(&guest), [(false, false); 3]);
    let agents = Agents::new(None).unwrap();
    for place in fleet.places() {
        assert_eq!(agents.status(&place).unwrap().holder, None);
    }
}

/// One device is another's: nothing is changed, neither the guest's devices nor that other's lock.
#[test]
fn before_anything_is_applied_all_is_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, _seats, paths) = guest(folder.path());
    let fleet = Fleet::start(folder.path(), &paths);
    let agents = Agents::new(None).unwrap();
    let held = fleet.places().remove(1);
    let remote = Arc::new(agents.remote(held.clone())) as Arc<dyn Remote<DeviceConfig>>;
    let set = LockedSet::lock(Remotes::new(vec![remote]).unwrap(), Terms::new("other")).unwrap();
    guest.conduct(fleet.ensemble());
    guest.run_for(100, Duration::from_secs(60)).unwrap();
    let whole = [std::ops::Range {
        start: 0,
        end: MEMORY,
    }];
    let error = guest.begin_tracking(&whole, 4096).unwrap_err();
    assert!(error.to_string().contains("locked by other ("), "{error}");
    let taken = &guest.ensemble().unwrap().steps()[&Step::Track];
    assert_eq!(taken.cause, Some(Cause::Lock));
    let row = &taken.report.rows[0];
    assert_eq!((&row.remote, row.phase), (&held.to_string(), Phase::Lock));
    assert!(matches!(row.outcome, Err(RemoteError::Held(_))));
    guest.resume().unwrap();
    assert_eq!(states(&guest), [(false, false); 3]);
    for place in fleet.places() {
        let status = agents.status(&place).unwrap();
        assert_eq!(status.running, DeviceConfig::default());
        assert_eq!(status.holder.is_some(), place == held);
    }
    // The other one's lock is still good.
    let applied = set
        .for_each(|_| Ok(tracked()))
        .and_then(LockedSet::apply)
        .unwrap();
    assert_eq!(
        states(&guest),
        [(false, false), (true, false), (false, false)]
    );
    drop(applied);
}
