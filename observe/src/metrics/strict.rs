//! A reader of Prometheus' text format 0.0.4 that forgives nothing, and knows the conventions for
//! names. Written from the format's description alone: it judges what the library writes.

use std::collections::{BTreeMap, BTreeSet};

/// What a text tells.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Kind of each metric.
    pub kinds: BTreeMap<String, String>,
    /// Value of each series, by name and labels in their order: `a_total{x="1"}`.
    pub values: BTreeMap<String, f64>,
}

impl Told {
    /// The value of a series.
    pub(super) fn value(&self, series: &str) -> f64 {
        let value = self.values.get(series);
        *value.unwrap_or_else(|| panic!("no {series} in {:#?}", self.values))
    }

    /// All values of a metric together.
    pub(super) fn sum(&self, name: &str) -> f64 {
        let of = |series: &&String| series.split('{').next() == Some(name);
        let series: Vec<_> = self.values.keys().filter(of).collect();
        assert!(!series.is_empty(), "no series of {name}");
        series.iter().map(|series| self.values[*series]).sum()
    }
}

/// Reads a text, or says what is wrong with it.
pub(super) fn read(text: &str) -> Result<Told, String> {
    if !text.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    let mut told = Told::default();
    let mut helped = BTreeSet::new();
    let mut current: Option<(String, String)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = |what: &str| Err(format!("line {number}, {line:?}: {what}"));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let Some((name, help)) = rest.split_once(' ') else {
                return wrong("no help");
            };
            if help.trim().is_empty() || !helped.insert(name.to_owned()) {
                return wrong("empty help, or a second time");
            }
            current = None;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else {
                return wrong("no kind");
            };
            if !helped.contains(name) || told.kinds.contains_key(name) {
                return wrong("a kind without help, or a second time");
            }
            if let Err(what) = conventional(name, kind) {
                return wrong(&what);
            }
            told.kinds.insert(name.to_owned(), kind.to_owned());
            current = Some((name.to_owned(), kind.to_owned()));
        } else {
            let Some((name, kind)) = &current else {
                return wrong("a sample without a kind before it");
            };
            let Some((series, value)) = line.rsplit_once(' ') else {
                return wrong("no value");
            };
            let sample = series.split('{').next().unwrap_or_default();
            let fits = match kind.as_str() {
                "summary" => {
                    [format!("{name}_sum"), format!("{name}_count")].contains(&sample.to_owned())
                }
                _ => sample == name,
            };
            if !fits {
                return wrong("a sample of another metric");
            }
            if let Err(what) = labels(series.get(sample.len()..).unwrap_or_default()) {
                return wrong(&what);
            }
            let Ok(value) = value.parse::<f64>() else {
                return wrong("the value is no number");
            };
            if !value.is_finite() || value < 0.0 {
                return wrong("the value is negative or infinite");
            }
            if told.values.insert(series.to_owned(), value).is_some() {
                return wrong("the same series twice");
            }
        }
    }
    Ok(told)
}

fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// Prometheus, "Metric and label naming": base units, `_total` for what accumulates.
fn conventional(name: &str, kind: &str) -> Result<(), String> {
    if !is_name(name) {
        return Err("no name of a metric".to_owned());
    }
    if !["counter", "gauge", "summary"].contains(&kind) {
        return Err(format!("kind {kind}"));
    }
    if (kind == "counter") != name.ends_with("_total") {
        return Err("counters, and nothing else, end in _total".to_owned());
    }
    if !["tidemark_", "process_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
    {
        return Err("whose metric is it?".to_owned());
    }
    let odd = [
        "ms",
        "us",
        "ns",
        "milliseconds",
        "kb",
        "mb",
        "kib",
        "mib",
        "percent",
        "minutes",
    ];
    match name.split('_').find(|word| odd.contains(word)) {
        Some(unit) => Err(format!("unit {unit}: seconds and bytes are expected")),
        None => Ok(()),
    }
}

/// `{name="value",...}` or nothing.
fn labels(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let inner = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'));
    let mut rest = inner.ok_or("labels without braces")?;
    let mut seen = BTreeSet::new();
    loop {
        let (name, after) = rest.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name) || !seen.insert(name) {
            return Err(format!("label {name}"));
        }
        let mut escaped = false;
        let end = after.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let end = end.ok_or("a label's value without an end")?;
        rest = after.get(end + 1..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        rest = rest.strip_prefix(',').ok_or("no comma between labels")?;
    }
}

#[test]
fn what_is_wrong_is_refused() {
    let good = "# HELP tidemark_a_total A.\n# TYPE tidemark_a_total counter\n\
                tidemark_a_total{x=\"1\",y=\"\\\"\"} 3\n";
    assert_eq!(read(good).unwrap().sum("tidemark_a_total"), 3.0);
    let bad = [
        good.trim_end().to_owned(),
        good.replace("counter", "gauge"),
        good.replace("counter", "untyped"),
        good.replace("tidemark_a_total{", "tidemark_b_total{"),
        good.replace(" 3\n", " -3\n"),
        good.replace(" 3\n", " NaN\n"),
        good.replace(" 3\n", "\n"),
        good.replace("y=", "x="),
        good.replace("\"1\",", "\"1\""),
        good.replace("\"1\"", "1"),
        good.replace("# HELP tidemark_a_total A.\n", ""),
        good.replace("# TYPE tidemark_a_total counter\n", ""),
        good.replace("tidemark_a_total", "tidemark_a_ms_total"),
        good.replace("tidemark_a_total", "a_total"),
        good.replace("tidemark_a_total", "tidemark-a_total"),
        format!("{good}{good}"),
        format!("{good}tidemark_a_total{{x=\"1\",y=\"\\\"\"}} 4\n"),
    ];
    for text in bad {
        assert!(read(&text).is_err(), "{text}");
    }
}
