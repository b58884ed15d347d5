use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// Sends 0, 1, 2 ... 99 forth through a relay with these faults.
fn through(faults: Vec<(u64, Fault)>) -> Vec<u8> {
    let (mut here, first) = UnixStream::pair().unwrap();
    let (second, mut there) = UnixStream::pair().unwrap();
    let plan = |(at, fault)| Planned {
        way: Way::Forth,
        at,
        fault,
    };
    let script = AtBytes::new(faults.into_iter().map(plan).collect());
    let (planned, fired) = (script.planned.len(), script.fired());
    let relay = relay(first, second, script).unwrap();
    let bytes: Vec<u8> = (0..100).collect();
    here.write_all(&bytes).unwrap();
    drop(here);
    let mut came = Vec::new();
    there.read_to_end(&mut came).unwrap();
    drop(there);
    relay.join();
    assert_eq!(fired.all().len(), planned, "every fault happened");
    came
}

#[test]
fn nothing_happens_without_faults() {
    assert_eq!(through(Vec::new()), (0..100).collect::<Vec<u8>>());
}

#[test]
fn each_fault_does_what_it_says() {
    for cut in [0, 1, 50, 99] {
        let came = through(vec![(u64::from(cut), Fault::Cut)]);
        assert_eq!(came, (0..cut).collect::<Vec<u8>>());
    }
    let came = through(vec![(7, Fault::Flip(3)), (8, Fault::Flip(0))]);
    assert_eq!(came[6..10], [6, 7 ^ 8, 8 ^ 1, 9]);
    let came = through(vec![(10, Fault::Duplicate(3))]);
    assert_eq!(came[9..17], [9, 10, 11, 12, 10, 11, 12, 13]);
    let came = through(vec![
        (10, Fault::Short(5)),
        (12, Fault::Delay(Duration::from_micros(10))),
    ]);
    assert_eq!(came, (0..100).collect::<Vec<u8>>());
}

#[test]
fn two_connections_are_reordered_by_a_gate() {
    let gate = Gate::default();
    let held = std::thread::spawn({
        let gate = gate.clone();
        move || through(vec![(50, Fault::Hold(gate))])
    });
    assert!(!held.is_finished());
    let other = through(vec![(99, Fault::Open(gate))]);
    // Only now the first can come to its end.
    assert_eq!(held.join().unwrap(), other);
}

#[test]
fn a_seed_decides_everything() {
    let plan = |seed| {
        let script = AtBytes::seeded(seed, 1000, 10);
        format!("{:?}", script.planned)
    };
    for seed in 0..100 {
        assert_eq!(plan(seed), plan(seed));
        assert!(plan(seed).contains("at"), "at least one fault");
    }
    assert_ne!(plan(1), plan(2));
}
