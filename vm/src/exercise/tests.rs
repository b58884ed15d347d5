use super::*;
use crate::emulated_bus::EmulatedBus;
use crate::error::VmError;
use crate::target::Target;
use device::blk::{BlkDevice, BlkOptions};
use device::function::{FunctionConfig, PciFunction};
use device::tracker::Marking;
use driver::bus::Bus;
use driver::dirty::DirtySet;
use spec::features::Features;
use std::sync::Arc;

fn bus(config: FunctionConfig) -> Arc<dyn Bus> {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(16 << 20).unwrap();
    let options = BlkOptions {
        queues: 2,
        ..BlkOptions::default()
    };
    let device = BlkDevice::open(disk, options).unwrap();
    EmulatedBus::with_memory_at(PciFunction::new(config, device), 16 << 20)
}

#[derive(Default)]
struct Counts {
    ready: u32,
    pages: u64,
}

impl Watcher for Counts {
    fn ready(&mut self, start: &RoundStart) -> Result<(), VmError> {
        self.ready += 1;
        assert_eq!(start.round, self.ready);
        Ok(())
    }

    fn done(&mut self, report: &RoundReport, harvested: &DirtySet) -> Result<(), VmError> {
        assert_eq!(report.round, self.ready);
        self.pages += harvested.count();
        Ok(())
    }
}

fn options() -> TrackOptions {
    TrackOptions {
        rounds: 2,
        requests: 1000,
        pages: 1024,
        writes_percent: 20,
        suspensions: vec![Comeback::Resume, Comeback::Restore, Comeback::Restore],
        ..TrackOptions::default()
    }
}

/// A device that offers packed queues, which the driver then takes.
fn packed() -> FunctionConfig {
    let config = FunctionConfig::default();
    FunctionConfig {
        features: config.features | Features::RING_PACKED,
        ..config
    }
}

#[test]
fn everything_written_is_harvested_across_suspensions_and_resets() {
    harvests_all(FunctionConfig::default(), false);
}

#[test]
fn everything_written_is_harvested_over_packed_queues() {
    harvests_all(packed(), true);
}

fn harvests_all(config: FunctionConfig, packed: bool) {
    let mut watcher = Counts::default();
    let report = track(bus(config), &options(), &mut watcher).unwrap();
    assert!(report.is_good(), "{report:#?}");
    assert_eq!(report.packed, packed);
    assert_eq!(report.granularity, 4096);
    assert_eq!(report.requests.submitted, 2000);
    assert_eq!(watcher.ready, 2);
    for round in &report.rounds {
        assert_eq!(round.requests, 1000);
        assert_eq!(round.falsely_dirty, 0);
        assert!(round.written > 200 && round.harvested == round.written);
        assert!(round.reads > 700 && round.reads < 900, "some are writes");
        assert!(round.harvests_in_flight > 0);
        assert_eq!(round.suspensions.len(), 3);
        for one in &round.suspensions {
            assert_eq!(one.drained + one.carried, one.in_flight, "{one:?}");
            assert_eq!(one.queues.len(), 2);
        }
    }
    let harvested: u64 = report.rounds.iter().map(|round| round.harvested).sum();
    assert_eq!(watcher.pages, harvested);
}

#[test]
fn a_device_that_marks_nothing_loses_all() {
    let config = FunctionConfig {
        marking: Marking::Off,
        ..FunctionConfig::default()
    };
    let report = track(bus(config), &options(), &mut Counts::default()).unwrap();
    assert!(!report.is_good());
    for round in &report.rounds {
        assert!(round.lost > 200 && round.lost == round.written);
    }
}

#[test]
fn larger_pages_are_falsely_dirty_and_nothing_is_lost() {
    let options = TrackOptions {
        granularity: 1 << 17,
        ..options()
    };
    let report = track(
        bus(FunctionConfig::default()),
        &options,
        &mut Counts::default(),
    );
    let report = report.unwrap();
    assert!(report.is_good());
    assert_eq!(report.granularity, 1 << 17);
    assert!(report.rounds.iter().all(|round| round.falsely_dirty > 0));
}

#[test]
fn suspensions_keep_every_request() {
    let (resume, restore) = (Comeback::Resume, Comeback::Restore);
    let cases = [
        (FunctionConfig::default(), resume),
        (FunctionConfig::default(), restore),
        (packed(), resume),
        (packed(), restore),
    ];
    for (config, comeback) in cases {
        let report = suspensions(bus(config), 5, 2, comeback).unwrap();
        assert!(report.is_good(), "{report:#?}");
        assert_eq!(report.suspensions.len(), 5);
        assert!(report.requests.submitted >= 5 * 2 * 32);
        for one in &report.suspensions {
            assert!(one.status.contains("SUSPEND"), "{one:?}");
            assert_eq!(one.drained + one.carried, one.in_flight);
        }
    }
}

#[test]
fn what_a_device_lacks_is_said() {
    let config = FunctionConfig {
        tracker: false,
        features: Features::RING_EVENT_IDX,
        ..FunctionConfig::default()
    };
    let refused = track(bus(config), &options(), &mut Counts::default());
    assert!(refused.unwrap_err().to_string().contains("SUSPEND"));
    let plain = TrackOptions {
        suspensions: Vec::new(),
        ..options()
    };
    let refused = track(bus(config), &plain, &mut Counts::default());
    assert!(refused.unwrap_err().to_string().contains("tracker"));
    let refused = suspensions(bus(config), 1, 1, Comeback::Resume);
    assert!(refused.unwrap_err().to_string().contains("SUSPEND"));
}

#[test]
fn a_probe_tells_what_the_device_is() {
    let probe = probe(Target::Emulated.open().unwrap()).unwrap();
    assert_eq!((probe.vendor, probe.device), (0x1af4, 0x1042));
    assert_eq!(probe.virtio_type, "block");
    assert_eq!(probe.capacity, Some(131_072));
    assert_eq!(probe.queues, [256; 4]);
    assert_eq!(probe.capabilities.len(), 5);
    assert_eq!(probe.tracker.unwrap().enable, 0);
    for name in ["SUSPEND", "QUEUE_STATE", "MQ", "FLUSH"] {
        assert!(probe.feature_names.iter().any(|n| n == name), "{name}");
    }
    assert_eq!(
        names(Features::from_bits_retain(1 | 1 << 9), false),
        ["bit 0", "bit 9"]
    );
}
