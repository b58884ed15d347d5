//! What was measured, and how to ask it questions.

use super::topics::Topic;
use serde::{Deserialize, Serialize};

/// Repetitions below which nothing is judged.
pub const REPETITIONS: usize = 5;

/// One figure, in all its repetitions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The plot or table that it belongs to: the name of a [`Topic`].
    pub topic: String,
    /// What it was measured of.
    pub series: String,
    /// Where: the quantity that the topic varies.
    pub x: f64,
    /// One value for each repetition.
    pub samples: Vec<f64>,
}

/// All figures of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Figures {
    /// In the order in which they were measured.
    pub all: Vec<Figure>,
}

/// What the repetitions say of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// All of them, but for one in ten.
    Yes,
    /// None of them, but for one in ten.
    No,
    /// They differ, or there are too few.
    Unclear,
}

impl Figure {
    /// The middle sample; NaN without any.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The smallest and the largest sample; NaN without any.
    pub fn spread(&self) -> [f64; 2] {
        let sorted = self.sorted();
        [sorted.first(), sorted.last()].map(|end| end.copied().unwrap_or(f64::NAN))
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// This figure over another, repetition by repetition: both were measured in turn.
    pub fn over(&self, other: &Self) -> Self {
        let pairs = self.samples.iter().zip(&other.samples);
        Self {
            samples: pairs.map(|(one, other)| one / other).collect(),
            ..self.clone()
        }
    }

    /// Whether the samples meet a condition.
    pub fn ask(&self, holds: impl Fn(f64) -> bool) -> Answer {
        let samples = &self.samples;
        if samples.len() < REPETITIONS || samples.iter().any(|sample| !sample.is_finite()) {
            return Answer::Unclear;
        }
        let yes = samples.iter().filter(|sample| holds(**sample)).count();
        let tenth = samples.len() / 10;
        if yes + tenth >= samples.len() {
            Answer::Yes
        } else if yes <= tenth {
            Answer::No
        } else {
            Answer::Unclear
        }
    }
}

impl Figures {
    /// Adds a figure.
    pub fn add(
        &mut self,
        topic: &Topic,
        series: impl Into<String>,
        x: impl Into<f64>,
        samples: Vec<f64>,
    ) {
        self.all.push(Figure {
            topic: topic.name.to_owned(),
            series: series.into(),
            x: x.into(),
            samples,
        });
    }

    /// All figures of a topic.
    pub fn topic(&self, topic: &Topic) -> impl Iterator<Item = &Figure> {
        self.all
            .iter()
            .filter(move |figure| figure.topic == topic.name)
    }

    /// The series of a topic, in the order in which they were measured.
    pub fn series(&self, topic: &Topic) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for figure in self.topic(topic) {
            if !found.contains(&figure.series.as_str()) {
                found.push(&figure.series);
            }
        }
        found
    }

    /// The figures of one series, in ascending order of x.
    pub fn line(&self, topic: &Topic, series: &str) -> Vec<&Figure> {
        let of_series = |figure: &&Figure| figure.series == series;
        let mut line: Vec<&Figure> = self.topic(topic).filter(of_series).collect();
        line.sort_by(|a, b| a.x.total_cmp(&b.x));
        line
    }

    /// One figure.
    pub fn at(&self, topic: &Topic, series: &str, x: impl Into<f64>) -> Option<&Figure> {
        let x = x.into();
        self.topic(topic)
            .find(|figure| figure.series == series && figure.x == x)
    }
}

/// The size of guest that a series was measured with, if its name ends with one.
pub fn guest(series: &str) -> Option<&str> {
    let end = series.rsplit(", ").next()?;
    let gib = end.strip_suffix(" GiB")?;
    gib.parse::<u32>().is_ok().then_some(end)
}
