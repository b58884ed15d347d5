use super::figures::REPETITIONS;
use super::page::number;
use super::plots::tick;
use super::text::{BUS_MODEL, CLAIMS, THREAD};
use super::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn verdict(figures: &Figures, id: &str) -> Verdict {
    let all = judge(figures);
    all.iter().find(|found| found.id == id).unwrap().verdict
}

/// The figures of resets, with so many pages lost by the tracker when it is set up anew.
fn resets(anew: &[u32]) -> Figures {
    let line = |series: &str, samples: &[u32]| json!({"topic": "lost by resets", "series": series, "x": 1, "samples": samples});
    serde_json::from_value(json!([
        line("tracker, reset", &[60, 70, 80, 90, 65]),
        line("tracker set up anew by a hypervisor, reset", anew),
        line("owner's records, reset", &[0, 0, 0, 0, 0]),
    ]))
    .unwrap()
}

#[test]
fn other_figures_are_another_verdict() {
    let verdict = |anew: &[u32]| verdict(&resets(anew), "C7");
    assert_eq!(verdict(&[0, 0, 0, 0, 0]), Verdict::Depends);
    assert_eq!(verdict(&[5, 6, 7, 8, 9]), Verdict::Holds);
    assert_eq!(verdict(&[0, 6, 0, 8, 0]), Verdict::Undecided, "they differ");
    assert_eq!(verdict(&[0, 0, 0, 0]), Verdict::Undecided, "too few");
}

#[test]
fn without_figures_nothing_is_decided() {
    for judgement in judge(&Figures::default()) {
        assert_eq!(judgement.verdict, Verdict::Undecided, "{}", judgement.id);
    }
}

/// What stands between tags, without plots and styles.
fn words(page: &str) -> String {
    let mut text = page.to_owned();
    for tag in ["style", "svg"] {
        while let Some(start) = text.find(&format!("<{tag}")) {
            let end = format!("</{tag}>");
            let length = text[start..].find(&end).unwrap() + end.len();
            text.replace_range(start..start + length, " ");
        }
    }
    let mut inside = false;
    text.retain(|letter| {
        inside = letter == '<' || inside && letter != '>';
        !inside
    });
    text.replace('>', " ")
}

/// The numbers in a text, as they are written.
fn numbers(text: &str) -> BTreeSet<String> {
    let parts = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '.'));
    let parts = parts.map(|part| part.trim_matches('.').to_owned());
    parts
        .filter(|part| part.chars().any(|letter| letter.is_ascii_digit()))
        .collect()
}

/// How the page writes every number of a JSON file, and the numbers in its strings.
fn written(json: &Value, into: &mut BTreeSet<String>) {
    match json {
        Value::Number(value) => {
            let value = value.as_f64().unwrap();
            for text in [number(value), tick(value)] {
                into.append(&mut numbers(&text));
            }
        }
        Value::String(text) => into.append(&mut numbers(text)),
        Value::Array(values) => {
            into.insert(values.len().to_string());
            values.iter().for_each(|value| written(value, into));
        }
        Value::Object(fields) => fields.values().for_each(|value| written(value, into)),
        Value::Bool(_) | Value::Null => {}
    }
}

/// A quick run from end to end: every claim is measured, and the page is the JSON file's.
#[test]
fn a_quick_run_measures_every_claim() {
    let mut figures = measure::all(Effort::Quick, |_| ()).unwrap();
    for topic in CLAIMS.iter().flat_map(|claim| claim.topics) {
        let repetitions = figures.topic(topic).map(|figure| figure.samples.len());
        assert!(repetitions.max() >= Some(REPETITIONS), "{}", topic.name);
    }
    assert_eq!(verdict(&figures, "C9"), Verdict::Depends);
    assert_eq!(verdict(&figures, "C14"), Verdict::Holds);

    // Figures that no page can know.
    for (nth, figure) in figures.all.iter_mut().enumerate() {
        let samples = figure.samples.iter_mut().zip(1_u32..);
        samples.for_each(|(sample, round)| *sample = nth as f64 * 7.77 + f64::from(round));
    }
    let run = Run::new(Machine::this(), true, 1.0, figures);
    let json = serde_json::to_value(&run).unwrap();
    let again: Run = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(again, run);
    let page = page(&again);
    for outside in ["<script", "<link", "<img", "src=", "url(", "@import", "NaN"] {
        assert!(!page.contains(outside), "{outside}");
    }

    let mut known = numbers(&format!("{THREAD} {BUS_MODEL} claims of 2023"));
    for claim in &CLAIMS {
        let topics = claim.topics.iter();
        let axes: String = topics
            .map(|topic| format!("{} {} {} ", topic.name, topic.x, topic.y))
            .collect();
        let texts = [
            claim.id,
            claim.said,
            claim.who,
            claim.measured,
            claim.change,
        ];
        known.append(&mut numbers(&texts.join(" ")));
        known.append(&mut numbers(&axes));
    }
    written(&json, &mut known);
    let unknown: Vec<_> = numbers(&words(&page)).difference(&known).cloned().collect();
    assert!(unknown.is_empty(), "not in the JSON file: {unknown:?}");
}
