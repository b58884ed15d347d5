//! How a verdict comes about: conditions are asked of figures, and what was asked is kept.

use super::figures::{Answer, Figure, Figures};
use super::topics::Topic;
use Answer::{No, Unclear, Yes};
use serde::{Deserialize, Serialize};

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is so, wherever it was measured.
    Holds,
    /// It is not so.
    DoesNotHold,
    /// It is so in some of the measured configurations.
    Depends,
    /// The figures are missing, too few, or differ too much.
    Undecided,
}

/// The answer to one claim, with its grounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// C1 to C14.
    pub id: String,
    /// The answer.
    pub verdict: Verdict,
    /// The figures that were looked at.
    pub grounds: Vec<Ground>,
}

/// Which figure was looked at, and what it said to the claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ground {
    /// The name of its topic.
    pub topic: String,
    /// Its series.
    pub series: String,
    /// Its place.
    pub x: f64,
    /// Whether the claim holds there.
    pub answer: Answer,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Holds => "holds",
            Self::DoesNotHold => "does not hold",
            Self::Depends => "depends",
            Self::Undecided => "undecided",
        })
    }
}

/// Holds where all say yes; depends where they differ.
pub fn together(answers: &[Answer]) -> Verdict {
    if answers.is_empty() || answers.contains(&Unclear) {
        Verdict::Undecided
    } else if !answers.contains(&No) {
        Verdict::Holds
    } else if !answers.contains(&Yes) {
        Verdict::DoesNotHold
    } else {
        Verdict::Depends
    }
}

/// Yes if one says so, no if all say no.
pub fn any(answers: &[Answer]) -> Answer {
    if answers.contains(&Yes) {
        Yes
    } else if answers.is_empty() || answers.contains(&Unclear) {
        Unclear
    } else {
        No
    }
}

/// The other answer.
pub fn not(answer: Answer) -> Answer {
    match answer {
        Yes => No,
        No => Yes,
        Unclear => Unclear,
    }
}

/// The figures, and which of them were asked.
#[derive(Debug)]
pub struct Court<'a> {
    /// All there are.
    pub figures: &'a Figures,
    /// Those that were asked.
    pub grounds: Vec<Ground>,
}

impl Court<'_> {
    /// Keeps what a figure says to the claim.
    pub fn keep(&mut self, figure: &Figure, answer: Answer) -> Answer {
        self.grounds.push(Ground {
            topic: figure.topic.clone(),
            series: figure.series.clone(),
            x: figure.x,
            answer,
        });
        answer
    }

    /// Asks one condition of one figure. One that is missing meets none and fails none.
    pub fn ask(
        &mut self,
        topic: &Topic,
        series: &str,
        x: impl Into<f64>,
        holds: impl Fn(f64) -> bool,
    ) -> Answer {
        match self.figures.at(topic, series, x) {
            Some(figure) => self.keep(figure, figure.ask(holds)),
            None => Unclear,
        }
    }

    /// Whether one figure is above another by a factor, repetition by repetition.
    pub fn above(&mut self, one: Option<&Figure>, factor: f64, other: Option<&Figure>) -> Answer {
        let (Some(one), Some(other)) = (one, other) else {
            return Unclear;
        };
        let answer = one.over(other).ask(|ratio| ratio > factor);
        self.keep(other, answer);
        self.keep(one, answer)
    }

    /// Asks one condition of every figure of a topic.
    pub fn ask_all(&mut self, topic: &Topic, holds: impl Fn(f64) -> bool) -> Vec<Answer> {
        let all = self.figures.topic(topic);
        all.map(|figure| self.keep(figure, figure.ask(&holds)))
            .collect()
    }
}
