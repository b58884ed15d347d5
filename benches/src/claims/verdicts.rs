//! What the figures decide. Pure: no clock, no machine, nothing but the figures.

use super::figures::{Answer, Figure, Figures, REPETITIONS, ask, below};
use serde::Serialize;

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judgement {
    /// C1 to C14.
    pub id: &'static str,
    /// The answer.
    pub verdict: Verdict,
    /// The figures that decided, with their spread.
    pub grounds: Vec<String>,
    /// Configurations in which the mechanism that usually wins loses.
    pub loses: Vec<String>,
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

use Answer::{No, Unclear, Yes};

/// Holds where all say yes; depends where they differ.
fn together(answers: &[Answer]) -> Verdict {
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

fn show(figure: Option<&Figure>, unit: &str) -> String {
    let Some(figure) = figure else {
        return "not measured".to_owned();
    };
    let [low, high] = figure.spread().map(number);
    let (x, median) = (number(figure.x), number(figure.median()));
    format!(
        "{}, {} at {x}: {median} {unit} [{low}, {high}], {} repetitions",
        figure.topic,
        figure.series,
        figure.samples.len()
    )
}

/// A number in three digits.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e6).contains(&size) {
        format!("{value:.2e}")
    } else if size >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

/// Asks one condition of each of some figures, and keeps what was asked.
struct Court<'a> {
    figures: &'a Figures,
    grounds: Vec<String>,
    loses: Vec<String>,
}

impl<'a> Court<'a> {
    fn ask(
        &mut self,
        topic: &str,
        series: &str,
        x: f64,
        unit: &str,
        holds: impl Fn(f64) -> bool,
    ) -> Answer {
        let figure = self.figures.at(topic, series, x);
        self.grounds.push(show(figure, unit));
        ask(figure, holds)
    }

    fn inflation(&mut self) -> Verdict {
        let scattered = self.ask("inflation", "random", 0.001, "reported per written", |f| {
            f >= 7.0
        });
        let dense = self.ask("inflation", "random", 0.3, "reported per written", |f| {
            f >= 7.0
        });
        let runs = self.ask(
            "inflation",
            "runs of 16",
            0.01,
            "reported per written",
            |f| f >= 7.0,
        );
        let [bit, byte] = ["bit", "byte"].map(|s| self.figures.at("mark ns", s, 1.0));
        self.grounds
            .extend([bit, byte].map(|figure| show(figure, "ns")));
        if below(byte, bit) == Yes {
            self.loses
                .push("a mark by bits costs more than one by bytes".to_owned());
        }
        together(&[scattered, dense, runs])
    }

    fn races(&mut self) -> Verdict {
        let figures = self.figures;
        let mut plain = Vec::new();
        let mut atomic = Vec::new();
        for figure in figures
            .topic("lost")
            .filter(|f| !f.series.starts_with("mark first"))
        {
            let loses = ask(Some(figure), |lost| lost > 0.0);
            let racy = figure.series.starts_with("plain") || figure.series.ends_with("load-store");
            if loses != No {
                self.loses.push(show(Some(figure), "pages of a million"));
            }
            if racy {
                plain.push(loses)
            } else {
                atomic.push(loses)
            }
        }
        self.grounds.push(format!(
            "{} of {} pairs with a plain read and write lose pages; {} of {} without",
            plain.iter().filter(|answer| **answer != No).count(),
            plain.len(),
            atomic.iter().filter(|answer| **answer != No).count(),
            atomic.len(),
        ));
        if plain.is_empty() || atomic.is_empty() {
            return Verdict::Undecided;
        }
        let any = |answers: &[Answer]| {
            if answers.contains(&Yes) {
                Yes
            } else if answers.contains(&Unclear) {
                Unclear
            } else {
                No
            }
        };
        together(&[any(&plain), any(&atomic)])
    }

    fn compare_and_swap(&mut self) -> Verdict {
        let often = |retries: f64| retries >= 0.1;
        let seldom = self.ask(
            "CAS retries",
            "anywhere in 1 GiB",
            2.0,
            "retries a mark",
            often,
        );
        let hot = self.ask("CAS retries", "one word", 2.0, "retries a mark", often);
        for writers in [1.0, 2.0] {
            for series in ["anywhere in 1 GiB", "one word"] {
                let time = self.figures.at("CAS time", series, writers);
                self.grounds.push(show(time, "of an atomic OR's time"));
            }
        }
        together(&[seldom, hot])
    }

    /// Whether the scan loses, for every guest size and number of dirty pages up to one in a
    /// hundred.
    fn scanning(&mut self) -> Verdict {
        let figures = self.figures;
        let mut answers = Vec::new();
        for topic in ["collect", "mark and collect"] {
            for series in figures.series(topic) {
                let Some(guest) = series.strip_prefix("bitmap, ") else {
                    continue;
                };
                for way in ["records, command", "records, spinning"] {
                    let other = format!("{way}, {guest}");
                    let line = figures.line(topic, series);
                    let wins: Vec<(f64, Answer)> = line
                        .iter()
                        .map(|at| (at.x, below(figures.at(topic, &other, at.x), Some(at))))
                        .collect();
                    // The question is about few: the smallest number that was measured.
                    if topic == "collect" {
                        answers.extend(wins.iter().take(2).map(|(_, answer)| *answer));
                    }
                    let at = |wanted: Answer| {
                        let found = wins.iter().filter(|(_, answer)| *answer == wanted);
                        let found: Vec<String> = found.map(|(x, _)| number(*x)).collect();
                        if found.is_empty() {
                            "none".to_owned()
                        } else {
                            found.join(", ")
                        }
                    };
                    self.grounds.push(format!(
                        "{topic}, {guest}, {way}: records quicker at {}; bitmap quicker at {}; unclear at {} dirty pages",
                        at(Yes), at(No), at(Unclear)
                    ));
                    if wins.iter().any(|(_, answer)| *answer == Yes) {
                        self.loses.push(format!(
                            "{topic}: the bitmap of {guest} loses against {way} at {} dirty pages",
                            at(Yes)
                        ));
                    }
                    if wins.iter().any(|(_, answer)| *answer == No) {
                        self.loses.push(format!(
                            "{topic}: {way} of {guest} lose against the bitmap at {} dirty pages",
                            at(No)
                        ));
                    }
                }
            }
        }
        // One that is unclear is one where neither wins.
        answers.retain(|answer| *answer != Unclear);
        together(&answers)
    }

    fn sparse(&mut self) -> Verdict {
        let figures = self.figures;
        let mut answers = Vec::new();
        for figure in figures.line("sparse bytes", "bitmap from page 0, resident") {
            let needed = figures.at("sparse bytes", "bits of the guest's memory", figure.x);
            let needed = needed.map_or(f64::NAN, Figure::median);
            self.grounds.push(format!(
                "{}; {} needed",
                show(Some(figure), "bytes"),
                number(needed)
            ));
            answers.push(if needed.is_nan() {
                Unclear
            } else {
                ask(Some(figure), |bytes| bytes > 2.0 * needed)
            });
            let [one, other] = ["bitmap from page 0", "records of two ranges"]
                .map(|series| figures.at("sparse collect", series, figure.x));
            self.grounds
                .extend([one, other].map(|figure| show(figure, "µs")));
            if below(other, one) == Yes {
                self.loses.push(format!(
                    "collecting from a bitmap with a gap of {} GiB",
                    number(figure.x)
                ));
            }
        }
        together(&answers)
    }

    /// Whether a larger granule moves less in all, for each kind of locality.
    fn granularity(&mut self) -> Verdict {
        let figures = self.figures;
        let mut answers = Vec::new();
        for series in ["random", "zipf", "sequential"] {
            let line = figures.line("granularity", series);
            let none = line.first().copied();
            let best = line
                .iter()
                .min_by(|a, b| a.median().total_cmp(&b.median()))
                .copied();
            self.grounds
                .extend([none, best].map(|figure| show(figure, "bytes moved")));
            let answer = match (none, best) {
                (Some(none), Some(best)) if none.x == best.x => ask(Some(none), |_| false),
                _ => below(best, none),
            };
            answers.push(answer);
        }
        together(&answers)
    }

    fn resets(&mut self) -> Verdict {
        let mut answers = Vec::new();
        for x in [1.0, 2.0] {
            for (series, counts) in [
                ("tracker", true),
                ("tracker, resets trapped", true),
                ("owner's records", false),
            ] {
                let lost = self.ask("lost by resets", series, x, "pages", |lost| lost > 0.0);
                if lost == Yes {
                    let kind = if x == 1.0 {
                        "reset"
                    } else {
                        "function level reset"
                    };
                    self.loses.push(format!("{series}: pages lost by {kind}"));
                }
                if counts {
                    answers.push(lost);
                }
            }
        }
        together(&answers)
    }

    /// Whether the bitmap reports more often than records, by a tenth.
    fn again(&mut self) -> Verdict {
        let figures = self.figures;
        let mut answers = Vec::new();
        for bitmap in figures.line("reports per page", "bitmap") {
            let records = figures.at("reports per page", "records", bitmap.x);
            self.grounds
                .extend([Some(bitmap), records].map(|f| show(f, "reports")));
            let limit = records.map_or(f64::NAN, |records| records.median() * 1.1);
            let enough = records.is_some_and(|records| records.samples.len() >= REPETITIONS);
            answers.push(if enough {
                ask(Some(bitmap), |f| f > limit)
            } else {
                Unclear
            });
        }
        together(&answers)
    }

    fn nested(&mut self) -> Verdict {
        let works = |f: f64| f == 1.0;
        let mut ask = |series| self.ask("nesting", series, 1.0, "", works);
        let tracker = ask("a member's tracker, from within");
        let owner = ask("owner's commands, from within a member");
        let itself = ask("self group, a member with a queue of its own");
        let shared = ask("host's tracker while the member uses it too");
        _ = ask("host's records while the member tracks itself");
        if shared == No {
            self.loses
                .push("the host's tracker, once its guest uses the same registers".to_owned());
        }
        let not = |answer| match answer {
            Yes => No,
            No => Yes,
            Unclear => Unclear,
        };
        together(&[tracker, not(owner), not(itself), shared])
    }

    fn registers(&mut self) -> Verdict {
        self.ask("state bytes", "records, as built", 1.0, "bytes", |_| true);
        let tracker = self.ask("state bytes", "tracker registers", 1.0, "bytes", |bytes| {
            bytes > 64.0
        });
        together(&[tracker])
    }

    fn overflow(&mut self) -> Verdict {
        let figures = self.figures;
        let mut answers = Vec::new();
        for series in figures.series("overflow rate") {
            for figure in figures.line("overflow rate", series) {
                let overflows = ask(Some(figure), |rate| rate > 0.0);
                answers.push(overflows);
                if overflows == Yes {
                    let sent = figures.at("sent per written", series, figure.x);
                    self.loses.push(show(sent, "pages sent per written page"));
                }
            }
        }
        let over = answers.iter().filter(|answer| **answer == Yes).count();
        self.grounds.push(format!(
            "{over} of {} configurations overflow",
            answers.len()
        ));
        // That a bitmap cannot is no figure: it has room for every page.
        match together(&answers) {
            Verdict::Depends => Verdict::Holds,
            other => other,
        }
    }

    /// Whether a pass takes in proportion to the members, and a second queue does not help.
    fn serial(&mut self) -> Verdict {
        let figures = self.figures;
        let topic = "READ of all members";
        let one = figures.line(topic, "1 queue");
        let (Some(first), Some(last)) = (one.first(), one.last()) else {
            return Verdict::Undecided;
        };
        self.grounds
            .extend([*first, *last].map(|figure| show(Some(figure), "µs")));
        let proportion = first.median() * last.x / first.x / 2.0;
        let grows = ask(Some(last), |time| time > proportion);
        let two = figures.at(topic, "2 queues", last.x);
        self.grounds.push(show(two, "µs"));
        self.grounds
            .push(show(figures.at("READ p99", "1 queue", last.x), "µs"));
        if below(two, Some(last)) == Yes {
            self.loses.push("one queue loses against two".to_owned());
        }
        together(&[grows])
    }

    fn benign(&mut self) -> Verdict {
        let figures = self.figures;
        let mut answers = Vec::new();
        for series in ["bitmap", "records"] {
            for figure in figures.line("useless reports", series) {
                self.grounds.push(show(Some(figure), "of the reports"));
                answers.push(ask(Some(figure), |share| share < 0.05));
            }
        }
        together(&answers)
    }

    fn order(&mut self) -> Verdict {
        let first = self.ask(
            "injected harvest",
            "mark first",
            1.0,
            "of the pages lost",
            |f| f > 0.0,
        );
        let second = self.ask(
            "injected harvest",
            "data first",
            1.0,
            "of the pages lost",
            |f| f == 0.0,
        );
        for writers in [1.0, 2.0] {
            let race = self
                .figures
                .at("lost", "mark first: atomic OR / swap", writers);
            self.grounds.push(show(race, "pages of a million"));
        }
        together(&[first, second])
    }
}

/// The answers to all claims.
pub fn judge(figures: &Figures) -> Vec<Judgement> {
    type Question<'a> = fn(&mut Court<'a>) -> Verdict;
    let questions: [(&'static str, Question<'_>); 14] = [
        ("C1", Court::inflation),
        ("C2", Court::races),
        ("C3", Court::compare_and_swap),
        ("C4", Court::scanning),
        ("C5", Court::sparse),
        ("C6", Court::granularity),
        ("C7", Court::resets),
        ("C8", Court::again),
        ("C9", Court::nested),
        ("C10", Court::registers),
        ("C11", Court::overflow),
        ("C12", Court::serial),
        ("C13", Court::benign),
        ("C14", Court::order),
    ];
    questions
        .into_iter()
        .map(|(id, question)| {
            let mut court = Court {
                figures,
                grounds: Vec::new(),
                loses: Vec::new(),
            };
            let verdict = question(&mut court);
            Judgement {
                id,
                verdict,
                grounds: court.grounds,
                loses: court.loses,
            }
        })
        .collect()
}
