//! Initialisation, suspend, resume, reset, queue reset, errors.

use super::*;

fn slow_to_suspend() -> FunctionConfig {
    let suspend = SuspendBehaviour {
        delay: Duration::from_millis(30),
        ..Default::default()
    };
    FunctionConfig {
        suspend,
        ..FunctionConfig::default()
    }
}

#[test]
fn what_is_offered() {
    let bench = Bench::new(FunctionConfig::default());
    let mut offered = 0_u64;
    for half in [1, 0] {
        bench.write32(0, half);
        offered = offered << 32 | u64::from(bench.read32(4));
    }
    assert_eq!(offered, ALL, "of the device type's bits only its own");
    let none = FunctionConfig {
        features: Features::empty(),
        ..FunctionConfig::default()
    };
    let bench = Bench::new(none);
    bench.write32(0, 1);
    assert_eq!(bench.read32(4), 1, "VERSION_1 is not optional");
}

#[test]
fn features_that_the_device_type_cannot_serve_are_not_agreed_on() {
    let bench = Bench::new(FunctionConfig::default());
    *bench.device.demands.lock().unwrap() = 1 << 9;
    for (features, shown) in [(0, 0x03), (1 << 9, 0x0b)] {
        for status in [0, 1, 3] {
            bench.write8(STATUS, status);
        }
        for (half, value) in [(0, features), (1, 1)] {
            bench.write32(8, half);
            bench.write32(12, value);
        }
        bench.write8(STATUS, 0x0b);
        assert_eq!(bench.status(), shown, "features {features:#x}");
    }
    assert_eq!(*bench.device.negotiated.lock().unwrap(), [1 << 32 | 1 << 9]);
}

#[test]
fn queues_start_with_driver_ok_and_as_configured() {
    let bench = Bench::negotiated(FunctionConfig::default(), ALL & !(1 << 29));
    assert_eq!(*bench.device.negotiated.lock().unwrap(), [ALL & !(1 << 29)]);
    bench.write16(SELECT, 1);
    assert_eq!(bench.read16(SIZE), 128);
    bench.write16(SIZE, 64);
    for (offset, value) in [
        (0x20, 1),
        (0x24, 2),
        (0x28, 3),
        (0x2c, 4),
        (0x30, 5),
        (0x34, 6),
    ] {
        bench.write32(offset, value);
    }
    bench.write16(AVAIL_STATE, 500);
    bench.write16(USED_STATE, 499);
    bench.write16(ENABLE, 1);
    bench.write16(SIZE, 32);
    bench.write16(AVAIL_STATE, 7);
    bench.write32(0x20, 9);
    bench.write16(ENABLE, 0);
    assert!(bench.running_queues().is_empty(), "not before DRIVER_OK");
    bench.write8(STATUS, 0x0f);
    assert_eq!(bench.running_queues(), [1]);
    let expected = QueueConfig {
        packed: false,
        size: 64,
        desc: 2 << 32 | 1,
        driver: 4 << 32 | 3,
        device: 6 << 32 | 5,
        event_idx: false,
        state: QueueState {
            avail: 500,
            used: 499,
        },
    };
    assert_eq!(
        bench.told(|told| told.started[&1]),
        expected,
        "latched at enable (QS-3)"
    );
    bench.write16(SELECT, 0);
    bench.write16(ENABLE, 1);
    assert_eq!(
        bench.running_queues(),
        [0, 1],
        "a queue may be enabled late"
    );
    assert!(bench.told(|told| told.started[&0]).state == QueueState::SPLIT_DEFAULT);
}

#[test]
fn a_queue_that_cannot_start_needs_a_reset() {
    let bench = Bench::negotiated(FunctionConfig::default(), ALL);
    bench.set_up();
    bench.told(|told| told.start_fails = true);
    bench.write8(STATUS, 0x0f);
    assert_eq!(bench.status(), 0x4f);
    assert_eq!(bench.signals(), [0], "ST-7");
    bench.write8(STATUS, 0x0f);
    assert_eq!(bench.status(), 0x4f);
    bench.write8(STATUS, 0);
    assert_eq!((bench.status(), bench.core.stats().errors), (0, 1));
}

#[test]
fn doorbells_are_heard_while_running_only() {
    let bench = Bench::negotiated(FunctionConfig::default(), ALL);
    bench.set_up();
    let ring = || bench.write32(DOORBELLS + 4, 0x8001_0001);
    ring();
    assert_eq!(bench.told(|told| told.kicks.len()), 0, "before DRIVER_OK");
    bench.write8(STATUS, 0x0f);
    ring();
    bench.write16(DOORBELLS + 4, 1);
    bench.write32(DOORBELLS, 1);
    bench.write32(DOORBELLS + 8, 2);
    bench.write32(DOORBELLS + 0xfc, 63);
    assert_eq!(bench.told(|told| told.kicks.clone()), [1]);
    bench.write8(STATUS, 0x1f);
    ring();
    assert_eq!(
        bench.told(|told| told.kicks.clone()),
        [1],
        "suspended (SUS-7)"
    );
    assert_eq!(bench.core.stats().notifications, 1);

    let plain = Bench::negotiated(FunctionConfig::default(), 1 << 32);
    plain.set_up();
    plain.write8(STATUS, 0x0f);
    plain.write16(DOORBELLS + 4, 1);
    assert_eq!(plain.told(|told| told.kicks.clone()), [1]);
}

#[test]
fn suspend_waits_for_every_queue_and_resume_goes_on_from_there() {
    let bench = Bench::running(FunctionConfig::default());
    bench.told(|told| {
        told.stops_wait = true;
        told.live = at(40);
    });
    bench.write8(STATUS, 0x1f);
    assert_eq!(bench.status(), 0x0f);
    bench.write8(STATUS, 0x1f);
    bench.finish(1, at(11));
    assert_eq!(bench.status(), 0x0f, "queue 0 still drains");
    assert_eq!(bench.of_queue(0, AVAIL_STATE), 40, "live");
    bench.finish(0, QueueState { avail: 10, used: 9 });
    assert_eq!(bench.status(), 0x1b);
    assert_eq!(
        bench.of_queue(0, AVAIL_STATE),
        10,
        "select is writable while suspended"
    );
    assert_eq!(bench.of_queue(0, USED_STATE), 9);
    assert_eq!(bench.of_queue(1, AVAIL_STATE), 11);
    assert_eq!(
        bench.of_queue(1, ENABLE),
        1,
        "a suspended queue stays enabled"
    );
    assert_eq!(bench.of_queue(2, AVAIL_STATE), 0);
    bench.write16(AVAIL_STATE, 1);
    bench.write16(SIZE, 4);
    bench.write16(QUEUE_RESET, 1);
    bench.write16(VECTOR, 0);
    bench.write8(CONFIG, 0xaa);
    assert_eq!(bench.of_queue(1, SIZE), 128);
    assert_eq!(bench.of_queue(1, VECTOR), 2);
    assert_eq!(bench.of_queue(1, AVAIL_STATE), 11, "QS-8");
    assert_eq!(bench.read(CONFIG, 1), [1], "SUS-11");
    assert!(bench.signals().is_empty());

    bench.write8(STATUS, 0x1f);
    assert_eq!(bench.status(), 0x0f);
    let states = bench.told(|told| (told.started[&0].state, told.started[&1].state));
    assert_eq!(states, (QueueState { avail: 10, used: 9 }, at(11)));
    let stats = bench.core.stats();
    assert_eq!((stats.suspends, stats.resumes, stats.errors), (1, 1, 0));
}

#[test]
fn a_device_without_queues_suspends_at_once() {
    let bench = Bench::negotiated(FunctionConfig::default(), ALL);
    bench.write8(STATUS, 0x0f);
    bench.write8(STATUS, 0x1f);
    assert_eq!(bench.status(), 0x1b);
    bench.write8(STATUS, 0x1f);
    assert_eq!(bench.status(), 0x0f);
}

#[test]
fn suspend_that_is_delayed() {
    let bench = Bench::running(slow_to_suspend());
    bench.write8(STATUS, 0x1f);
    assert_eq!(bench.status(), 0x0f);
    assert!(
        bench.running_queues().is_empty(),
        "stopped, and not yet presented"
    );
    std::thread::sleep(Duration::from_millis(40));
    assert_eq!(bench.status(), 0x1b);
    bench.write8(STATUS, 0x1f);
    bench.write8(STATUS, 0x1f);
    assert_eq!(bench.status(), 0x0f);
    bench.write8(STATUS, 0);
    assert_eq!(bench.status(), 0, "a reset does not wait for the delay");
}

#[test]
fn suspend_that_fails_and_resume_that_fails() {
    let with = |fails, resume_fails| {
        let suspend = SuspendBehaviour {
            fails,
            resume_fails,
            ..Default::default()
        };
        Bench::running(FunctionConfig {
            suspend,
            ..FunctionConfig::default()
        })
    };
    let bench = with(true, false);
    bench.write8(STATUS, 0x1f);
    assert_eq!(
        (bench.status(), bench.signals()),
        (0x4f, vec![0]),
        "SUS-15, ST-7"
    );
    assert_eq!(bench.read(0x1000, 1), [2], "ISR");
    bench.write8(STATUS, 0);
    assert_eq!(bench.status(), 0);

    let bench = with(false, true);
    bench.write8(STATUS, 0x1f);
    bench.write8(STATUS, 0x1f);
    assert_eq!(
        (bench.status(), bench.signals()),
        (0x5b, vec![]),
        "SUS-16, D-17"
    );
    assert!(
        bench.running_queues().is_empty(),
        "what was started is stopped again"
    );
}

#[test]
fn suspend_is_ignored_where_it_was_not_negotiated() {
    let bench = Bench::negotiated(FunctionConfig::default(), ALL & !(1 << 43));
    bench.set_up();
    bench.write8(STATUS, 0x0f);
    bench.write8(STATUS, 0x1f);
    assert_eq!((bench.status(), bench.running_queues()), (0x0f, vec![0, 1]));
}

#[test]
fn a_change_while_suspended_is_announced_on_resume() {
    let bench = Bench::running(FunctionConfig::default());
    let generation = bench.read(GENERATION, 1)[0];
    bench.write8(STATUS, 0x1f);
    bench.device.config.lock().unwrap()[0] = 9;
    bench.core.notify_config_change();
    bench.core.notify_config_change();
    assert!(bench.signals().is_empty(), "SUS-13");
    bench.write8(STATUS, 0x1f);
    assert_eq!(bench.signals(), [0], "SUS-14");
    assert_eq!(bench.read(CONFIG, 2), [9, 2]);
    assert_eq!(bench.read(GENERATION, 1), [generation + 1], "PC-4");
    bench.core.notify_config_change();
    assert_eq!(bench.signals(), [0]);
}

#[test]
fn reset_wins_over_a_suspend_and_waits_for_the_queues() {
    let bench = Bench::running(FunctionConfig::default());
    bench.told(|told| told.stops_wait = true);
    bench.write8(STATUS, 0x1f);
    bench.finish(0, at(3));
    bench.write8(STATUS, 0);
    assert_eq!(bench.status(), 0x0f);
    bench.write8(STATUS, 1);
    bench.write16(SELECT, 1);
    assert_eq!(bench.status(), 0x0f, "other writes are ignored");
    assert_eq!(
        *bench.device.resets.lock().unwrap(),
        1,
        "only the one of the set-up so far"
    );
    bench.finish(1, at(5));
    assert_eq!(
        (bench.status(), *bench.device.resets.lock().unwrap()),
        (0, 2)
    );
    for queue in 0..2 {
        assert_eq!(bench.of_queue(queue, ENABLE), 0);
        assert_eq!(bench.of_queue(queue, VECTOR), 0xffff, "PC-14");
    }
    bench.told(|told| told.stops_wait = false);
    bench.negotiate(ALL);
    assert_eq!(bench.of_queue(0, AVAIL_STATE), 0, "QS-6");
    bench.set_up();
    bench.write8(STATUS, 0x0f);
    assert_eq!(bench.running_queues(), [0, 1]);
    bench.write8(STATUS, 0x1f);
    bench.write8(STATUS, 0);
    assert_eq!(bench.status(), 0, "while suspended");
}

#[test]
fn queue_reset_is_shown_until_the_queue_has_stopped() {
    let bench = Bench::running(FunctionConfig::default());
    bench.told(|told| told.stops_wait = true);
    bench.write16(SELECT, 1);
    bench.write16(QUEUE_RESET, 0);
    assert_eq!(bench.read16(QUEUE_RESET), 0);
    bench.write16(QUEUE_RESET, 1);
    bench.write16(QUEUE_RESET, 1);
    assert_eq!((bench.read16(QUEUE_RESET), bench.read16(ENABLE)), (1, 1));
    bench.write32(DOORBELLS + 4, 1);
    assert_eq!(bench.told(|told| told.kicks.len()), 0, "VR-1");
    bench.finish(1, at(77));
    assert_eq!(
        (bench.read16(QUEUE_RESET), bench.read16(ENABLE)),
        (0, 0),
        "PC-7"
    );
    assert_eq!(
        (bench.read16(AVAIL_STATE), bench.read16(USED_STATE)),
        (0, 0),
        "VR-2"
    );
    assert_eq!(bench.read16(VECTOR), 0xffff);
    assert_eq!(bench.status(), 0x0f);
    bench.write16(SIZE, 16);
    bench.write16(AVAIL_STATE, 3);
    bench.write16(ENABLE, 1);
    let config = bench.told(|told| told.started[&1]);
    assert_eq!((config.size, config.state.avail), (16, 3), "VR-3");
}

#[test]
fn a_suspend_waits_for_a_queue_reset() {
    let bench = Bench::running(FunctionConfig::default());
    bench.told(|told| told.stops_wait = true);
    bench.write16(SELECT, 0);
    bench.write16(QUEUE_RESET, 1);
    bench.write8(STATUS, 0x1f);
    bench.finish(1, at(1));
    assert_eq!(bench.status(), 0x0f);
    bench.finish(0, at(2));
    assert_eq!(bench.status(), 0x1b);
    assert_eq!(
        (bench.of_queue(0, ENABLE), bench.of_queue(1, ENABLE)),
        (0, 1)
    );
    bench.write8(STATUS, 0x1f);
    assert_eq!((bench.status(), bench.running_queues()), (0x0f, vec![1]));
}

#[test]
fn a_broken_queue_needs_a_reset_which_still_works() {
    let bench = Bench::running(FunctionConfig::default());
    let broken = || QueueError::Broken {
        what: "a loop of descriptors".into(),
    };
    bench.events.queue_used(0);
    bench.events.queue_broken(0, broken());
    bench.events.queue_broken(0, broken());
    assert_eq!((bench.status(), bench.signals()), (0x4f, vec![1, 0]));
    bench.write32(DOORBELLS + 4, 1);
    bench.write8(STATUS, 0x1f);
    assert_eq!(
        (bench.status(), bench.told(|told| told.kicks.len())),
        (0x4f, 0)
    );
    bench.write8(STATUS, 0);
    assert_eq!((bench.status(), bench.running_queues()), (0, vec![]));
    bench.events.queue_used(0);
    assert!(bench.signals().is_empty(), "RS-2: no vector is mapped");
}

#[test]
fn a_drain_that_breaks_fails_the_suspend() {
    let bench = Bench::running(FunctionConfig::default());
    bench.told(|told| told.stops_wait = true);
    bench.write8(STATUS, 0x1f);
    bench.events.queue_broken(
        1,
        QueueError::Broken {
            what: "a test says so".into(),
        },
    );
    assert_eq!(bench.status(), 0x4f);
    bench.finish(0, at(0));
    bench.finish(1, at(0));
    assert_eq!(bench.status(), 0x4f);
    bench.write8(STATUS, 0);
    assert_eq!(bench.status(), 0);
}

#[test]
fn failed_stops_the_device() {
    let bench = Bench::running(FunctionConfig::default());
    bench.write8(STATUS, 0x8f);
    assert_eq!((bench.status(), bench.running_queues()), (0x8f, vec![]));
    bench.write8(STATUS, 0x0f);
    assert_eq!(bench.status(), 0x8f);
    bench.write8(STATUS, 0);
    assert_eq!(bench.status(), 0);
}

#[test]
fn a_function_reset_can_be_waited_for() {
    let bench = Bench::running(FunctionConfig::default());
    bench.told(|told| told.stops_wait = true);
    bench.core.config_write(4, &[6, 0]);
    bench.core.reset();
    assert!(!bench.core.wait_for_reset(Duration::from_millis(5)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            bench.finish(0, at(0));
            bench.finish(1, at(0));
        });
        assert!(bench.core.wait_for_reset(Duration::from_secs(10)));
    });
    let mut command = [0; 2];
    bench.core.config_read(4, &mut command);
    assert_eq!((command, bench.status()), ([0, 0], 0));
}

#[test]
fn a_function_that_is_gone_hears_no_events() {
    let bench = Bench::running(FunctionConfig::default());
    let Bench { core, events, .. } = bench;
    drop(core);
    events.queue_stopped(0, at(0));
    events.queue_used(0);
    events.queue_broken(
        0,
        QueueError::Broken {
            what: "late".into(),
        },
    );
}
