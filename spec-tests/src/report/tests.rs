//! Every format tells the same story.

use super::*;

fn entry(clause: &str, outcome: Outcome) -> Entry {
    let registry = Registry::load().unwrap();
    let clause = registry.get(clause).unwrap();
    Entry {
        clause: clause.id.clone(),
        short: clause.short.clone(),
        group: clause.group.to_owned(),
        role: clause.role,
        level: clause.level,
        source: clause.source(),
        says: clause.text.clone(),
        case: "a_case".to_owned(),
        outcome,
        note: String::new(),
        did: vec!["write 0x0 to <device_status>".to_owned()],
        saw: vec!["status 0x40 & more".to_owned()],
        wants: vec!["status 0".to_owned()],
        milliseconds: 3,
        waiver: None,
    }
}

fn report(outcomes: &[(&str, Outcome)]) -> Report {
    let registry = Registry::load().unwrap();
    let mut report = Report::new(&registry, Identity::default(), &Options::default());
    for (clause, outcome) in outcomes {
        report.push(entry(clause, *outcome));
    }
    report
}

#[test]
fn json_comes_back_as_it_was() {
    let report = report(&[("RS-1", Outcome::Fail), ("ST-5", Outcome::Pass)]);
    let text = report.write(Format::Json).unwrap();
    let again: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(again.totals(), report.totals());
    assert_eq!(again.failures(), 1);
    assert_eq!(again.clauses, report.clauses);
}

#[test]
fn a_regression_is_what_failed_only_now() {
    let old = report(&[
        ("RS-1", Outcome::Pass),
        ("ST-5", Outcome::Fail),
        ("RS-2", Outcome::NotApplicable),
    ]);
    let new = report(&[
        ("RS-1", Outcome::Fail),
        ("ST-5", Outcome::Fail),
        ("RS-2", Outcome::Inconclusive),
    ]);
    let worse: Vec<_> = new
        .regressions(&old)
        .iter()
        .map(|entry| entry.name().to_owned())
        .collect();
    assert_eq!(worse, ["RS-1", "RS-2"]);
    assert!(old.regressions(&new).is_empty());
}

#[test]
fn every_format_shows_the_failure_and_its_evidence() {
    let report = report(&[("RS-1", Outcome::Fail), ("ST-5", Outcome::Skip)]);
    for format in [
        Format::Human,
        Format::Json,
        Format::Junit,
        Format::Html,
        Format::Tap,
    ] {
        let text = report.write(format).unwrap();
        for part in ["device-reset/D1", "a_case", "status 0x40"] {
            assert!(text.contains(part), "{format:?} lacks {part}:\n{text}");
        }
    }
    let html = report.write(Format::Html).unwrap();
    assert!(html.contains("&lt;device_status&gt;") && !html.contains("<device_status>"));
    assert!(
        report
            .write(Format::Tap)
            .unwrap()
            .contains("not ok 1 - device-reset/D1 a_case")
    );
}
