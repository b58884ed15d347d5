use super::*;

fn figures(json: &str) -> Figures {
    serde_json::from_str(json).unwrap()
}

fn verdict(figures: &Figures, id: &str) -> Verdict {
    let all = judge(figures);
    all.iter()
        .find(|judgement| judgement.id == id)
        .unwrap()
        .verdict
}

/// The figures of resets, with so many pages lost by the tracker when resets are trapped.
fn resets(trapped: &str) -> Figures {
    let line = |series: &str, x: u32, samples: &str| {
        format!(r#"{{"topic":"lost by resets","series":"{series}","x":{x},"samples":[{samples}]}}"#)
    };
    let lines: Vec<String> = [1, 2]
        .into_iter()
        .flat_map(|x| {
            [
                line("tracker", x, "60,70,80,90,65"),
                line("tracker, resets trapped", x, trapped),
                line("owner's records", x, "0,0,0,0,0"),
            ]
        })
        .collect();
    figures(&format!("[{}]", lines.join(",")))
}

#[test]
fn other_figures_are_another_verdict() {
    assert_eq!(verdict(&resets("0,0,0,0,0"), "C7"), Verdict::Depends);
    assert_eq!(verdict(&resets("5,6,7,8,9"), "C7"), Verdict::Holds);
    assert_eq!(
        verdict(&resets("0,6,0,8,0"), "C7"),
        Verdict::Undecided,
        "they differ"
    );
    assert_eq!(
        verdict(&resets("0,0,0,0"), "C7"),
        Verdict::Undecided,
        "too few"
    );
}

#[test]
fn without_figures_nothing_is_decided() {
    for judgement in judge(&Figures::default()) {
        assert_eq!(judgement.verdict, Verdict::Undecided, "{}", judgement.id);
    }
}

/// A quick run from end to end: every claim is measured, every plot has its figures, and the
/// verdicts come from the file.
#[test]
fn a_quick_run_measures_every_claim() {
    let figures = measure::all(Effort::Quick, |_| ()).unwrap();
    for claim in text::CLAIMS {
        for topic in claim.topics {
            let repetitions = figures.topic(topic).map(|figure| figure.samples.len());
            assert!(repetitions.max() >= Some(figures::REPETITIONS), "{topic}");
        }
    }
    let run = Run::new(Machine::this(), true, 1.0, figures);
    let json = serde_json::to_value(&run).unwrap();
    let again: Figures = serde_json::from_value(json["figures"].clone()).unwrap();
    assert_eq!(judge(&again), run.judgements);
    let page = page(&run);
    assert!(page.contains("<svg") && !page.contains("NaN") && !page.contains("<script"));
    assert_eq!(verdict(&again, "C9"), Verdict::Depends);
    assert_eq!(verdict(&again, "C14"), Verdict::Holds);
}
