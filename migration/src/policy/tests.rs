//! Each policy at its limits.

use super::*;

fn seen(rounds: u32, sent: u64, dirty: Option<u64>) -> Seen {
    Seen {
        rounds,
        sent,
        dirty,
        ..Seen::default()
    }
}

#[test]
fn limits_on_rounds_hold_in_order() {
    let policy = Rounds {
        min_rounds: 4,
        max_rounds: 6,
        stop_pages: 10,
    };
    let sent = |rounds, pages| policy.decide(&seen(rounds, pages, None));
    assert_eq!(sent(3, 0), Decision::Continue, "too early, however little");
    assert_eq!(sent(4, 10), Decision::Stop);
    assert_eq!(sent(4, 11), Decision::Continue);
    assert_eq!(sent(5, 11), Decision::Continue);
    assert_eq!(sent(6, u64::MAX), Decision::Stop);
    assert_eq!(policy.decide(&seen(6, 0, Some(0))), Decision::Continue);
}

#[test]
fn xen_stops_below_50_pages_or_after_5_rounds() {
    let ask = |rounds, dirty| XenDefault.decide(&seen(rounds, 1000, dirty));
    assert_eq!(ask(1, None), Decision::Continue);
    assert_eq!(ask(1, Some(50)), Decision::Continue);
    assert_eq!(ask(1, Some(49)), Decision::Stop);
    assert_eq!(ask(4, Some(u64::MAX)), Decision::Continue);
    assert_eq!(ask(5, None), Decision::Stop);
    assert_eq!(ask(5, Some(u64::MAX)), Decision::Stop);
}

fn limit(then: Unconverged) -> DowntimeLimit {
    DowntimeLimit {
        limit: Duration::from_millis(100),
        min_rounds: 2,
        max_rounds: 4,
        then,
    }
}

/// At 40.96 MB/s 1000 pages take 100 ms.
fn at(rounds: u32, dirty: u64, throttle: u8) -> Seen {
    Seen {
        bandwidth: Some(40_960_000.0),
        throttle,
        ..seen(rounds, 5000, Some(dirty))
    }
}

#[test]
fn a_downtime_limit_stops_when_the_rest_fits_at_the_measured_bandwidth() {
    let policy = limit(Unconverged::Stop);
    assert_eq!(at(2, 1000, 0).downtime(), Some(Duration::from_millis(100)));
    assert_eq!(policy.decide(&at(1, 0, 0)), Decision::Continue, "too early");
    assert_eq!(policy.decide(&at(2, 1000, 0)), Decision::Stop);
    assert_eq!(policy.decide(&at(2, 1001, 0)), Decision::Continue);
    let unknown = Seen {
        bandwidth: None,
        ..at(3, 1, 0)
    };
    assert_eq!(policy.decide(&unknown), Decision::Continue);
    assert_eq!(policy.decide(&seen(9, 0, None)), Decision::Continue);
    let nothing = Seen {
        bandwidth: None,
        ..at(3, 0, 0)
    };
    assert_eq!(policy.decide(&nothing), Decision::Stop);
}

#[test]
fn a_guest_that_does_not_converge_ends_as_it_was_said() {
    let gives_up = |policy: DowntimeLimit, seen| match policy.decide(&seen) {
        Decision::GiveUp(why) => why,
        other => panic!("{other:?}"),
    };
    let why = gives_up(limit(Unconverged::Stop), at(4, 2000, 0));
    assert!(why.contains("after 4 rounds"), "{why}");
    assert!(why.contains("200.0 ms and may be 100.0 ms"), "{why}");

    let extended = limit(Unconverged::Extend(2));
    for rounds in 4..6 {
        assert_eq!(extended.decide(&at(rounds, 2000, 0)), Decision::Continue);
    }
    assert_eq!(extended.decide(&at(5, 1000, 0)), Decision::Stop);
    gives_up(extended, at(6, 2000, 0));

    let throttled = limit(Unconverged::Throttle);
    let (mut rounds, mut percent, mut steps) = (4, 0, Vec::new());
    let why = loop {
        match throttled.decide(&at(rounds, 2000, percent)) {
            Decision::Throttle(next) => {
                assert!(next > percent && next < 100);
                percent = next;
                steps.push(next);
                rounds += 1;
            }
            Decision::GiveUp(why) => break why,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(steps, [20, 30, 40, 50, 60, 70, 80, 90, 99]);
    assert!(why.contains("throttled by 99 %"), "{why}");
    assert_eq!(throttled.decide(&at(9, 900, 50)), Decision::Stop);
}
