//! What a destination cannot take it refuses by name, of every device, before any device of the source
//! is stopped. What it need not take it skips.

use driver::memory::DmaMemory;
use migration::observe::Silent;
use migration::policy::Rounds;
use migration::precopy::{Options, migrate};
use migration::receive::receive;
use migration::stream::live;
use migration::stream::{Context, SectionKind};
use migration::{DeviceRecord, Guest, GuestError, NamedSource, Paused};
use serde_json::Value;
use spec::features::Features;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vm::guest::{EmulatedGuest, Pattern, Shape};
use vm::{Arrival, Hosting, InProcess, Limits, MarkingMode, Means, evidence, migrate_in_process};

const DEVICES: u16 = 3;

fn plan(destination: Limits) -> InProcess {
    InProcess {
        shape: Shape {
            memory: 16 << 20,
            devices: DEVICES,
            queues: 1,
            queue_size: 256,
            depth: 16,
            blocks: 512,
            pattern: Pattern::Random,
            writes_percent: 30,
            seed: 0x71de,
            marking: MarkingMode::Bits,
            means: Means {
                records: None,
                parts: true,
            },
            reset_every: 0,
            packed: false,
        },
        granularity: 4096,
        policy: Rounds {
            min_rounds: 2,
            max_rounds: 3,
            stop_pages: 64,
        },
        plain_copies: 0,
        before: 500,
        after: 500,
        destination,
    }
}

#[test]
fn what_cannot_be_taken_is_named_before_anything_stops() {
    let none = Limits::default();
    let features = |features_off| Limits {
        features_off,
        ..none
    };
    let cases = [
        ("device 0, DEV_FEATURES", features(Features::RING_RESET)),
        ("RING_EVENT_IDX", features(Features::RING_EVENT_IDX)),
        (
            "VQ_CFG of queue 0",
            Limits {
                queue_size_max: Some(128),
                ..none
            },
        ),
        (
            "CAP_ID_LIST_QUERY",
            Limits {
                no_parts: true,
                ..none
            },
        ),
    ];
    for (name, destination) in cases {
        let folder = tempfile::tempdir().unwrap();
        let outcome = migrate_in_process(&plan(destination), folder.path(), &mut Silent).unwrap();
        let error = outcome.error.as_ref().expect("refused").to_string();
        assert!(error.contains(name), "{name}: {error}");
        assert_eq!(outcome.stops, 0, "{name}: a device was stopped");
        assert!(outcome.report.rounds.is_empty(), "{name}: {outcome:#?}");
        assert!(outcome.report.granularity.is_empty(), "{name}: tracked");
        assert!(outcome.resumed && !outcome.moved, "{name}");
        assert!(
            outcome.guest_objections().is_empty(),
            "{name}: {outcome:#?}"
        );
    }
}

/// A guest one of whose devices has one part more than ours do.
struct Newer {
    guest: EmulatedGuest,
    device: u16,
    part: Vec<u8>,
}

impl Guest for Newer {
    fn describe(&self) -> Vec<u8> {
        let mut described: Value = serde_json::from_slice(&self.guest.describe()).unwrap();
        let parts = &mut described["parts"][usize::from(self.device)];
        let more: String = self.part.iter().map(|byte| format!("{byte:02x}")).collect();
        *parts = format!("{}{more}", parts.as_str().unwrap()).into();
        serde_json::to_vec(&described).unwrap()
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
        let mut records = self.guest.save()?;
        let record = &mut records[usize::from(self.device) + 1];
        let mut parts = record.context.section(SectionKind::Parts).unwrap().to_vec();
        parts.extend(&self.part);
        record.context = Context::of(SectionKind::Parts, parts);
        Ok(records)
    }
}

/// A part of a type that is nobody's, with 3 bytes.
fn part(flags: u8) -> Vec<u8> {
    let mut part = vec![0x77, 0x05, flags, 0];
    part.extend([0; 8]);
    part.extend([3, 0, 0, 0, 1, 2, 3]);
    part
}

/// A side of the move, with disks that are there or are made.
fn hosting(folder: &Path, side: &str, blocks: u64) -> Hosting {
    let disks: Vec<PathBuf> = (0..DEVICES)
        .map(|number| folder.join(format!("disk{number}-{blocks}")))
        .collect();
    for (number, disk) in (0..).zip(&disks).filter(|(_, disk)| !disk.exists()) {
        File::create(disk).unwrap();
        evidence::format_disk(disk, number, blocks).unwrap();
    }
    Hosting {
        disks,
        evidence: Some(folder.to_owned()),
        side: side.to_owned(),
        limits: Limits::default(),
        hold: None,
        disk_fault: None,
    }
}

/// Moves a guest whose device `device` has such a part: how that ended, and how often a device was
/// stopped or let go on. The disks have `blocks` blocks at the destination, 512 at the source.
fn move_newer(device: u16, part: Vec<u8>, blocks: u64) -> (Result<(), String>, u64) {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(Limits::default());
    let mut guest =
        EmulatedGuest::boot(&plan.shape, &hosting(folder.path(), "source", 512)).unwrap();
    assert!(guest.run_for(plan.before, Duration::from_secs(20)).unwrap());
    let (here, there) = UnixStream::pair().unwrap();
    let mut guest = Newer {
        guest,
        device,
        part,
    };
    let destination = hosting(folder.path(), "destination", blocks);
    let moved = std::thread::scope(|scope| {
        let arrival = scope.spawn(move || {
            let mut arrival = Arrival::new(destination, 1 << 30);
            let received = receive(&mut live::Destination::new(there), &mut arrival);
            received.map_err(|error| error.to_string())?;
            let after = arrival.finish(500, Duration::from_secs(20));
            after.map(drop).map_err(|error| error.to_string())
        });
        let options = Options {
            policy: &plan.policy,
            bandwidth: None,
            granularity: 4096,
            plain_copies: 0,
            cancel: &migration::Cancel::default(),
        };
        let mut stream = live::Source::new(here);
        let moved = migrate(&mut guest, &mut stream, &options, &mut Silent);
        drop(stream);
        let arrived = arrival.join().unwrap();
        match moved {
            Ok(_) => arrived,
            Err(failure) => {
                assert!(failure.resumed && failure.round == 0, "{failure:?}");
                Err(failure.error.to_string())
            }
        }
    });
    (moved, guest.guest.stops())
}

#[test]
fn a_mandatory_part_that_one_of_many_devices_has_is_refused_for_all() {
    let (moved, stops) = move_newer(2, part(0), 512);
    let error = moved.expect_err("a part that nobody knows");
    assert!(error.contains("device 2, part 0x577"), "{error}");
    assert_eq!(stops, 0, "nothing of the source was stopped");
}

#[test]
fn an_optional_part_that_nobody_knows_is_skipped() {
    let (moved, stops) = move_newer(1, part(1), 512);
    assert_eq!(moved, Ok(()));
    assert_eq!(stops, u64::from(DEVICES), "each once");
}

#[test]
fn parts_that_are_none_are_refused_before_anything_stops() {
    let mut cut = part(1);
    cut.pop();
    let (moved, stops) = move_newer(0, cut, 512);
    let error = moved.expect_err("a part without its end");
    assert!(
        error.contains("device 0") && error.contains("3 bytes expected"),
        "{error}"
    );
    assert_eq!(stops, 0);
}

#[test]
fn a_disk_of_another_size_is_refused_before_anything_stops() {
    let (moved, stops) = move_newer(0, part(1), 1024);
    let error = moved.expect_err("a disk that grew");
    assert!(error.contains("device 0, DEV_CFG"), "{error}");
    assert_eq!(stops, 0);
}
