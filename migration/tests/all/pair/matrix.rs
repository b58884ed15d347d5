//! {primary, secondary} goes on × {idle, during a checkpoint, at each message}, after three
//! checkpoints and at the first.

use super::{Hit, NEVER, PATIENCE, Plan, run};
use crate::pair::guests::{Copy, Machine};
use migration::checkpoint::{
    Begun, CheckpointError, FailoverError, Kind, Line, Primary, Secondary, Side,
};
use migration::faults::{AtBytes, AtMessage, Deed, Random, relay};
use std::os::unix::net::UnixStream;

const SIDES: [Side; 2] = [Side::Primary, Side::Secondary];

#[test]
fn idle_and_after_three_checkpoints() {
    for survivor in SIDES {
        for runs in [false, true] {
            let plan = Plan {
                at: None,
                survivor,
                checkpoints: 3,
                seed: 1,
                runs,
            };
            let mut outcome = run(plan);
            assert_eq!(outcome.reports.len(), 4);
            outcome.judge(&plan);
            match survivor {
                Side::Primary => assert_eq!(outcome.survived.unwrap().epochs, 3),
                Side::Secondary => assert_eq!(outcome.taken_over, Some(3)),
            }
        }
    }
}

/// At each of the seven messages, of the first checkpoint and of the fourth: cut before it, in it,
/// behind it, and with a failover asked for while it is on its way.
#[test]
fn at_each_message_either_side_goes_on_from_a_whole_checkpoint() {
    let hits = [Hit::Cut(0), Hit::Cut(2), Hit::Cut(4), Hit::Ask];
    let (mut fired, mut whole) = (0, std::collections::BTreeSet::new());
    for kind in Kind::ALL {
        for nth in [1, 4] {
            for hit in hits {
                for survivor in SIDES {
                    // Before READY there is no pair, and so nobody to go on but the primary.
                    let early = kind == Kind::Ready;
                    if early && (nth > 1 || (survivor == Side::Secondary && hit != Hit::Cut(4))) {
                        continue;
                    }
                    let plan = Plan {
                        at: Some((kind, nth, hit)),
                        survivor,
                        checkpoints: 6,
                        seed: fired,
                        runs: nth == 4,
                    };
                    let mut outcome = run(plan);
                    assert!(outcome.fired, "{plan:?}");
                    outcome.judge(&plan);
                    fired += 1;
                    whole.extend(outcome.taken_over);
                }
            }
        }
    }
    println!("{fired} runs, every fault fired; taken over after {whole:?} checkpoints");
    assert!(whole.len() > 3, "{whole:?}");
}

/// What is cut is cut, but a secondary that has everything finishes loading it.
#[test]
fn a_failover_during_the_load_comes_after_it() {
    let plan = Plan {
        at: Some((Kind::Received, 2, Hit::Ask)),
        survivor: Side::Secondary,
        checkpoints: 6,
        seed: 5,
        runs: true,
    };
    let mut outcome = run(plan);
    outcome.judge(&plan);
    assert_eq!(outcome.taken_over, Some(2), "the one that was being loaded");
}

/// Seeded faults at any byte: whatever happens is an error that is told, and a survivor is whole.
#[test]
fn seeded_faults_lose_nothing() {
    let (mut hit, mut harmless) = (0_u32, 0_u32);
    for seed in 0..120 {
        let survivor = SIDES[usize::try_from(seed % 2).unwrap()];
        let done = seeded(seed, survivor);
        if done { hit += 1 } else { harmless += 1 }
    }
    println!("{hit} runs ended by a fault, {harmless} that no fault ended");
    assert!(hit >= 60, "{hit} of 120");
}

/// Whether a fault ended it.
fn seeded(seed: u64, survivor: Side) -> bool {
    let (here, first) = UnixStream::pair().unwrap();
    let (second, there) = UnixStream::pair().unwrap();
    // The first copy is about 200 KiB, eight checkpoints about 20 KiB each.
    let script = AtBytes::seeded(seed, 350_000, 100);
    let fired = script.fired();
    let relay = relay(first, second, script).unwrap();
    let (line, mine) = Line::new(here);
    let (their_line, theirs) = Line::new(there);
    let their_switch = theirs.clone();
    let other = std::thread::spawn(move || {
        let mut copy = Copy::new(seed.is_multiple_of(3));
        let paired = Secondary::pair(&mut copy, their_line, their_switch, PATIENCE);
        let Ok(mut secondary) = paired else {
            return (copy, None);
        };
        let ended = secondary.run(|_, _| {});
        assert!(!ended.to_string().is_empty());
        if survivor == Side::Primary {
            return (copy, None);
        }
        let taken = secondary.take_over();
        (copy, taken.ok())
    });
    let mut machine = Machine::new(seed);
    let mut random = Random::new(seed);
    let mut failed = true;
    if let Ok((mut primary, _)) = Primary::pair(&mut machine, line, mine.clone(), PATIENCE) {
        failed = (0..8).any(|_| {
            primary.guest().work(&mut random);
            primary.checkpoint().is_err()
        });
        match survivor {
            Side::Primary => {
                mine.fail_over().unwrap();
                assert_eq!(primary.survive().unwrap().aftermath, [""; 0]);
                assert!(machine.runs);
                assert_eq!(machine.seen, machine.produced);
            }
            Side::Secondary => drop(primary),
        }
    }
    if survivor == Side::Secondary {
        theirs.fail_over().unwrap();
    }
    let (copy, taken) = other.join().unwrap();
    relay.join();
    if let Some(epochs) = taken {
        // A bit that flips in memory on its way shows nowhere: the stream has no sums. Everything
        // else is the checkpoint of the primary.
        let flipped = fired
            .all()
            .iter()
            .any(|planned| planned.fault.name() == "flip");
        let now = crate::common::contents(&copy.memory());
        let whole = &machine.snapshots[usize::try_from(epochs).unwrap()];
        assert!(now == *whole || flipped, "seed {seed}");
        assert!(
            flipped || machine.seen.iter().all(|out| copy.output.contains(out)),
            "seed {seed}"
        );
    }
    failed && !fired.all().is_empty()
}

/// The primary goes on, pairs again with a fresh secondary, and that one is the same again.
#[test]
fn a_survivor_pairs_again() {
    let plan = Plan {
        at: Some((Kind::Loaded, 2, Hit::Cut(0))),
        survivor: Side::Primary,
        checkpoints: 4,
        seed: 9,
        runs: false,
    };
    let mut outcome = run(plan);
    outcome.judge(&plan);
    assert!(outcome.survived.as_ref().unwrap().put_back > 0);
    let mut machine = outcome.primary;
    let (here, there) = UnixStream::pair().unwrap();
    let (line, mine) = Line::new(here);
    let (their_line, theirs) = Line::new(there);
    let decided = theirs.clone();
    let other = std::thread::spawn(move || {
        let mut copy = Copy::new(true);
        let mut secondary = Secondary::pair(&mut copy, their_line, decided, PATIENCE).unwrap();
        secondary.run(|_, _| {});
        assert_eq!(secondary.take_over().unwrap(), 3);
        copy
    });
    let mut random = Random::new(4);
    let (mut primary, first) = Primary::pair(&mut machine, line, mine, PATIENCE).unwrap();
    assert!(first.pages >= super::PAGES);
    for _ in 0..3 {
        primary.guest().work(&mut random);
        primary.checkpoint().unwrap();
    }
    drop(primary);
    theirs.fail_over().unwrap();
    let copy = other.join().unwrap();
    let now = crate::common::contents(&copy.memory());
    assert!(Some(&now) == machine.snapshots.last());
}

/// The guest goes on when everything has been set aside, before the secondary has it, unless it is
/// owed something that holds only when the checkpoint is whole.
#[test]
fn a_guest_that_is_owed_nothing_goes_on_before_anything_is_sent() {
    for owed in [false, true] {
        let (here, first) = UnixStream::pair().unwrap();
        let (second, there) = UnixStream::pair().unwrap();
        let (tells, told) = std::sync::mpsc::channel();
        let (sees, seen) = std::sync::mpsc::channel();
        let (line, mine) = Line::new(here);
        let (their_line, theirs) = Line::new(there);
        // Each message is held until it has been looked whether the guest runs.
        let (at, look): (_, Box<dyn FnOnce() + Send>) = match owed {
            false => {
                let look = move || sees.send(told.recv_timeout(NEVER).is_ok()).unwrap();
                (Kind::Size, Box::new(look))
            }
            true => {
                let look = move || sees.send(told.try_recv().is_ok()).unwrap();
                (Kind::Loaded, Box::new(look))
            }
        };
        let script = AtMessage::new(at, 1, Deed::Call(look));
        let relay = relay(first, second, script).unwrap();
        let other = std::thread::spawn(move || {
            let mut copy = Copy::new(false);
            Secondary::pair(&mut copy, their_line, theirs, PATIENCE)
                .unwrap()
                .run(|_, _| {});
        });
        let mut machine = Machine::new(3);
        let (mut primary, _) = Primary::pair(&mut machine, line, mine.clone(), NEVER).unwrap();
        let mut random = Random::new(3);
        // Which is owed something by what it has said so far.
        for _ in 0..1 + u64::from(owed) {
            primary.guest().work(&mut random);
        }
        primary.guest().told = Some(tells);
        primary.checkpoint().unwrap();
        assert_eq!(seen.recv().unwrap(), !owed);
        let guest = primary.guest();
        assert_eq!(guest.seen, guest.produced);
        mine.fail_over().unwrap();
        primary.survive().unwrap();
        other.join().unwrap();
        relay.join();
    }
}

/// Asked for between the two looks of step 3: nothing is sent any more.
#[test]
fn a_failover_that_is_asked_for_ends_the_loop_and_a_second_is_refused() {
    let (here, there) = UnixStream::pair().unwrap();
    let (line, mine) = Line::new(here);
    let (their_line, theirs) = Line::new(there);
    let other = std::thread::spawn(move || {
        let mut copy = Copy::new(false);
        let mut secondary = Secondary::pair(&mut copy, their_line, theirs, PATIENCE).unwrap();
        secondary.run(|_, _| {})
    });
    let mut machine = Machine::new(3);
    let (mut primary, _) = Primary::pair(&mut machine, line, mine.clone(), PATIENCE).unwrap();
    let asker = std::thread::spawn(move || {
        assert_eq!(mine.fail_over(), Ok(Begun::Active));
        assert!(matches!(
            mine.fail_over(),
            Err(FailoverError::AlreadyActivated(_))
        ));
    });
    // Waits for its period, and is woken.
    let ended = primary.run(NEVER, |_| ());
    assert!(matches!(ended, CheckpointError::Failover(_)), "{ended}");
    asker.join().unwrap();
    primary.survive().unwrap();
    let told = other.join().unwrap();
    let text = told.to_string();
    assert!(
        text.contains("checkpoint-request") && text.contains("end of the connection"),
        "{text}"
    );
}
