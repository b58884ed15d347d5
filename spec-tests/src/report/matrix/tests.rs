//! The matrix changes when a verdict does, and not otherwise.

use super::*;
use crate::run::Options;

fn judged(id: &str, found: &[(&str, Outcome, &str)]) -> Judged {
    let registry = Registry::load().unwrap();
    let mut report = Report::new(&registry, Identity::default(), &Options::default());
    for (name, outcome, saw) in found {
        let clause = registry.get(name).unwrap();
        report.push(Entry {
            clause: clause.id.clone(),
            short: clause.short.clone(),
            group: clause.group.to_owned(),
            role: clause.role,
            level: clause.level,
            source: clause.source(),
            says: clause.text.clone(),
            case: format!("case_of_{name}"),
            outcome: *outcome,
            note: String::new(),
            did: vec!["write 0x0 to <device_status>".to_owned()],
            saw: vec![(*saw).to_owned()],
            wants: Vec::new(),
            milliseconds: 3,
            waiver: None,
        });
    }
    Judged {
        id: id.to_owned(),
        title: format!("the {id}"),
        how: "by hand".to_owned(),
        report,
    }
}

fn matrix(reports: &[Judged], old: &Matrix) -> Matrix {
    Matrix::new(&Registry::load().unwrap(), reports, old)
}

#[test]
fn numbers_alone_change_nothing() {
    let first = [
        judged("a", &[("RS-1", Outcome::Fail, "status 0x40 after 3 ms")]),
        judged("b", &[("RS-1", Outcome::Pass, "status 0 after 1 ms")]),
    ];
    let again = [
        judged("a", &[("RS-1", Outcome::Fail, "status 0xf after 12 ms")]),
        judged("b", &[("RS-1", Outcome::Pass, "status 0 after 7 ms")]),
    ];
    let old = matrix(&first, &Matrix::default());
    let new = matrix(&again, &old);
    assert_eq!(new.json().unwrap(), old.json().unwrap());
    assert_eq!(new.page(), old.page());
    assert!(new.differences(&old).is_empty());
    // Words are another matter, and so is a verdict.
    let words = [judged("a", &[("RS-1", Outcome::Fail, "no status")])];
    let worded = matrix(&words, &old);
    assert_ne!(worded.json().unwrap(), old.json().unwrap());
    assert!(worded.differences(&old).is_empty());
    let verdict = [judged(
        "b",
        &[("RS-1", Outcome::Fail, "status 1 after 1 ms")],
    )];
    let changed = matrix(&verdict, &old).differences(&old);
    let [difference] = &changed[..] else {
        panic!("{changed:?}");
    };
    assert_eq!(
        difference.to_string(),
        "b: device-reset/D1 in case_of_RS-1 was pass and is fail"
    );
}

#[test]
fn what_comes_and_goes_is_a_difference_and_other_columns_stay() {
    let first = [
        judged(
            "a",
            &[("RS-1", Outcome::Pass, ""), ("RS-2", Outcome::Pass, "")],
        ),
        judged("b", &[("RS-1", Outcome::Pass, "")]),
    ];
    let old = matrix(&first, &Matrix::default());
    let one = matrix(&[judged("a", &[("RS-1", Outcome::Pass, "")])], &old);
    assert_eq!(one.columns.len(), 2);
    assert_eq!(one.totals("b"), old.totals("b"));
    let gone = one.differences(&old);
    assert_eq!(gone.len(), 1);
    assert_eq!((gone[0].was, gone[0].is), (Some(Outcome::Pass), None));
}

#[test]
fn devices_and_drivers_stand_apart_with_their_evidence() {
    let all = [
        judged("device", &[("RS-1", Outcome::Fail, "<status> 3 & more")]),
        judged("driver", &[("ST-1", Outcome::NotExercised, "")]),
    ];
    let page = matrix(&all, &Matrix::default()).page();
    let (devices, drivers) = page.split_once("<h2>Drivers</h2>").unwrap();
    assert!(devices.contains("the device") && !devices.contains("the driver"));
    assert!(drivers.contains("the driver") && drivers.contains("not-exercised"));
    assert!(page.contains("&lt;status&gt; 3 &amp; more"));
    for outside in ["src=", "href=", "<script", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn numbers_are_found_in_any_text() {
    for (text, plain) in [
        ("used 17, want 18", "used #, want #"),
        ("0xdeadBEEF+0x200", "#+#"),
        ("0 µs, fade", "# µs, fade"),
        ("0xg", "#g"),
        ("", ""),
    ] {
        assert_eq!(numberless(text), plain);
    }
}
