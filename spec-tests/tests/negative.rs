//! The judge must be able to say no: broken devices are failed, by the clauses that they break and
//! by no other.

mod mutants;

use mutants::{Lie, Mutant};
use spec_tests::cases;
use spec_tests::clause::Registry;
use spec_tests::run::{Attempt, Verdict};
use spec_tests::target::{Emulated, Target};
use std::collections::BTreeSet;
use std::time::Duration;

/// Ids of the clauses that a target is found to break. What merely could not be judged because of
/// that is not among them.
fn broken(target: &dyn Target) -> BTreeSet<&'static str> {
    let registry = Registry::load().unwrap();
    let mut broken = BTreeSet::new();
    for case in cases::all() {
        let attempt = Attempt::new(target, case);
        for id in case.clauses {
            let verdict = attempt.verdict(target, registry.get(id).unwrap());
            if let Verdict::Fail(report) = verdict {
                println!("{report}");
                broken.insert(*id);
            }
        }
    }
    broken
}

fn check(target: &dyn Target, must: &[&str], may: &[&str]) {
    let found = broken(target);
    let missed: Vec<_> = must.iter().filter(|id| !found.contains(*id)).collect();
    let allowed = |id: &str| must.contains(&id) || may.contains(&id);
    let innocent: Vec<_> = found.iter().filter(|id| !allowed(id)).collect();
    assert!(
        missed.is_empty(),
        "not found broken: {missed:?}; found {found:?}"
    );
    assert!(
        innocent.is_empty(),
        "found broken and are not: {innocent:?}"
    );
}

macro_rules! mutants {
    ($($name:ident $lie:ident must [$($must:literal),*] may [$($may:literal),*];)*) => {$(
        #[test]
        fn $name() {
            check(&Mutant(Lie::$lie), &[$($must),*], &[$($may),*]);
        }
    )*};
}

/// The one that matters most: a device that forgets to mark loses pages, and the suite says so.
#[test]
fn a_device_that_marks_nothing_is_failed() {
    let target = Emulated {
        forgets_marks: true,
        limit: Duration::from_millis(200),
        ..Emulated::default()
    };
    let must = [
        "DT-1", "DT-4", "DT-8", "DT-9", "T-F3", "T-F5", "T-F6", "T-F7", "TL-6",
    ];
    check(&target, &must, &["TL-7", "DT-3"]);
}

mutants! {
    hides_suspend HidesSuspend must ["SUS-15"] may ["SUS-2", "D-15"];
    keeps_driver_ok KeepsDriverOk must ["SUS-15"] may ["SUS-2", "D-15"];
    // It goes on running behind a status that says otherwise: almost everything is wrong.
    hasty_suspend HastySuspend must ["SUS-12", "SUS-13", "SUS-11"]
        may ["SUS-10", "SUS-17", "S23-5", "S23-8", "QS-5", "QS-8", "TL-6", "D-16"];
    touches_while_suspended TouchesWhileSuspended must ["SUS-12"] may [];
    marks_beyond_length MarksBeyondLength must ["DT-2"] may ["T-F4", "T-F6", "DT-3", "DT-10", "DT-11"];
    marks_when_off MarksWhenOff must ["DT-10"] may ["T-F5"];
    keeps_tracking_over_reset KeepsTrackingOverReset must ["DT-6", "T-F8"] may [];
    takes_pasid TakesPasid must ["DT-5", "TL-5"] may [];
    dirty_reserved DirtyReserved must ["TL-2"] may [];
    keeps_queue_enable KeepsQueueEnable must ["PC-6"] may ["PC-7", "VR-2"];
    keeps_vectors KeepsVectors must ["PC-14"] may [];
    state_off_by_one StateOffByOne must ["QS-5"] may ["QS-3", "QS-8"];
    drops_state DropsState must ["QS-3"] may ["QS-5"];
    keeps_state KeepsState must ["QS-6", "QS-7"] may [];
    loses_reset LosesReset must ["RS-1", "PC-5"] may ["S23-6"];
    accepts_everything AcceptsEverything must ["feature-bits/D2"] may [];
    // The window is another way to the true features.
    offers_reserved OffersReserved must ["feature-bits/D3"] may ["feature-bits/D2", "virtio-over-pci-bus-pci-device-layout-pci-configuration-access-capability/D3"];
    no_version_1 NoVersion1 must ["reserved-feature-bits/D1"] may ["feature-bits/D2", "virtio-over-pci-bus-pci-device-layout-pci-configuration-access-capability/D3"];
    couples_halves CouplesHalves must ["PC-1", "TL-4"] may [];
    frozen_generation FrozenGeneration must ["PC-4"] may [];
    phantom_queues PhantomQueues must ["PC-8"] may [];
    fires_always FiresAlways
        must ["ST-5", "RS-2", "VR-1", "SUS-12", "SUS-13", "PC-15"]
        may ["virtqueues-used-buffer-notification-suppression/D2"];
    sticky_isr StickyIsr
        must ["virtio-over-pci-bus-pci-device-layout-isr-status-capability/D5"]
        may [];
    corrupts_offsets CorruptsOffsets
        must [
            "virtio-over-pci-bus-pci-device-layout-notification-capability/D3",
            "virtio-over-pci-bus-pci-device-layout-notification-capability/D6",
            "virtio-over-pci-bus-pci-device-layout-device-specific-configuration/D1"
        ]
        may [
            "virtio-over-pci-bus-pci-device-layout-notification-capability/D4",
            "virtio-over-pci-bus-pci-device-layout-notification-capability/D5",
            "virtio-over-pci-bus-pci-device-layout-notification-capability/D8",
            "virtio-over-pci-bus-pci-device-layout-notification-capability/D9"
        ];
}
