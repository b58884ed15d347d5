//! JUnit's XML, one test suite for each group.

use super::{Entry, FormatError, Outcome, Report, human};
use quick_junit::{NonSuccessKind, Report as Junit, TestCase, TestCaseStatus, TestSuite};
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) fn report(report: &Report) -> Result<String, FormatError> {
    let mut junit = Junit::new(format!("tidemark conform {}", report.identity.target));
    let mut suites: BTreeMap<&str, TestSuite> = BTreeMap::new();
    for entry in &report.entries {
        let suite = suites.entry(&entry.group).or_insert_with(|| {
            let mut suite = TestSuite::new(entry.group.clone());
            for (key, value) in [
                ("suite", &report.suite),
                ("clauses", &report.clauses),
                ("target", &report.identity.target),
                ("seed", &report.seed.to_string()),
            ] {
                suite.add_property((key, value.as_str()));
            }
            suite
        });
        suite.add_test_case(test_case(entry));
    }
    if !report.not_offered.is_empty() {
        let mut suite = TestSuite::new("profile");
        for name in &report.not_offered {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message("claimed and not offered");
            suite.add_test_case(TestCase::new(name.as_str(), status));
        }
        junit.add_test_suite(suite);
    }
    junit.add_test_suites(suites.into_values());
    Ok(junit.to_string()?)
}

fn test_case(entry: &Entry) -> TestCase {
    let mut status = match entry.outcome {
        Outcome::Pass => TestCaseStatus::success(),
        Outcome::Fail | Outcome::UnexpectedPass => {
            TestCaseStatus::non_success(NonSuccessKind::Failure)
        }
        Outcome::Inconclusive => TestCaseStatus::non_success(NonSuccessKind::Error),
        Outcome::Skip | Outcome::NotApplicable | Outcome::Waived | Outcome::NotExercised => {
            TestCaseStatus::skipped()
        }
    };
    if entry.outcome != Outcome::Pass {
        status.set_message(format!("{} {}", entry.outcome.name(), entry.note));
        status.set_description(human::at_length(entry));
    }
    let mut case = TestCase::new(format!("{} {}", entry.clause, entry.case), status);
    case.set_classname(entry.group.clone());
    case.set_time(Duration::from_millis(entry.milliseconds));
    case
}
