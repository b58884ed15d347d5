//! Who stands still for longer than its lease has lost the lock, and who waited for it has not.

use crate::guest::{Guest, Random};
use crate::server;
use crate::victim::{Victim, tidemark};
use rustix::process::Signal;
use std::fs;

/// So many that most of a batch is still to be written when its process is stopped at the begin.
const NAMES: u64 = 20_000;

#[test]
fn a_lease_lost_while_waiting_is_taken_anew() {
    let place = server::etcd();
    let from = place.file("stream").display().to_string();
    fs::write(&from, Guest::new(&mut Random::new(9), 10).stream()).unwrap();
    let put = |batch: &str| {
        let names = (0..NAMES).map(|n| format!("{batch}/{n}\n"));
        let list = place.file(batch).display().to_string();
        fs::write(&list, names.collect::<String>()).unwrap();
        Victim::start(tidemark(&place, &["put", "--list", &list, "--from", &from]))
    };
    let one = |name: &str| Victim::start(tidemark(&place, &["put", name, "--from", &from]));

    let mut first = put("first");
    first.until("batch begun");
    first.signal(Signal::STOP);
    let mut waiting = one("waited/0");
    waiting.until("the lock is another's");
    waiting.signal(Signal::STOP);
    // The lease of the first was granted before that of the one that waits, and this one's after it:
    // when the next has the lock, and then one more, all of them have run out.
    let mut second = put("second");
    second.until("batch begun");
    second.signal(Signal::STOP);
    one("after/0").end().done().unwrap();

    waiting.signal(Signal::CONT);
    waiting.end().done().unwrap();
    for stopped in [first, second] {
        stopped.signal(Signal::CONT);
        let told = stopped.end().done().unwrap_err();
        assert!(told.contains("the lock of the names was lost"), "{told}");
    }
    let listed = Victim::start(tidemark(&place, &["list"])).end().done();
    let listed = listed.unwrap();
    let names = listed["names"].as_array().unwrap().iter();
    let names: Vec<_> = names.filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["after/0", "waited/0"]);
}
