//! Plots as SVG that stands by itself.

use super::figures::Figures;
use super::verdicts::number;
use maud::{Markup, html};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 250.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 45.0;
const COLOURS: [&str; 8] = [
    "#1b6ca8", "#c8553d", "#3a7d44", "#8e5aa8", "#b08a00", "#00838f", "#6d4c41", "#ad1457",
];

/// What a plot is called, and its axes.
pub struct Plot {
    /// Topic of the figures.
    pub topic: &'static str,
    /// Of the horizontal axis, with its unit.
    pub x: &'static str,
    /// Of the vertical axis, with its unit.
    pub y: &'static str,
    /// Whether the horizontal axis is logarithmic.
    pub log_x: bool,
    /// Whether the vertical axis is.
    pub log_y: bool,
}

/// An axis, from values to places.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, log: bool, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite() && (!log || *value > 0.0)) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = if log { (1.0, 10.0) } else { (0.0, 1.0) };
        }
        if log {
            low = 10_f64.powf(low.log10().floor());
            high = 10_f64.powf(high.log10().ceil());
            if low == high {
                high *= 10.0;
            }
        } else {
            low = low.min(0.0);
            if low == high {
                high = low + 1.0;
            }
        }
        Self {
            low,
            high,
            log,
            from,
            to,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.low) / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let first = std::iter::successors(Some(self.low), |tick| Some(tick * 10.0));
            return first
                .take_while(|tick| *tick <= self.high * 1.001)
                .collect();
        }
        (0..=4)
            .map(|quarter| self.low + (self.high - self.low) * f64::from(quarter) / 4.0)
            .collect()
    }
}

impl Plot {
    /// The plot of those series that `wanted` chooses: medians as lines, spreads as bars.
    pub fn draw(&self, figures: &Figures, wanted: impl Fn(&str) -> bool) -> Markup {
        let series: Vec<&str> = figures
            .series(self.topic)
            .into_iter()
            .filter(|s| wanted(s))
            .collect();
        let lines: Vec<_> = series
            .iter()
            .map(|name| figures.line(self.topic, name))
            .collect();
        let all = || lines.iter().flatten();
        let x = Axis::new(all().map(|f| f.x), self.log_x, LEFT, WIDTH - RIGHT);
        let ends = all().flat_map(|figure| figure.spread());
        let y = Axis::new(ends, self.log_y, HEIGHT - BOTTOM, TOP);
        let colour = |number: usize| COLOURS[number % COLOURS.len()];
        let dashes = |number: usize| {
            if number < COLOURS.len() {
                "none"
            } else {
                "5 3"
            }
        };
        let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - BOTTOM);
        html! {
            svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {WIDTH} {HEIGHT}"))
                role="img" aria-label=(format!("{}: {} by {}", self.topic, self.y, self.x)) {
                @for tick in x.ticks() {
                    line x1=(x.at(tick)) x2=(x.at(tick)) y1=(TOP) y2=(bottom) class="grid" {}
                    text x=(x.at(tick)) y=(bottom + 14.0) text-anchor="middle" { (number(tick)) }
                }
                @for tick in y.ticks() {
                    line x1=(LEFT) x2=(WIDTH - RIGHT) y1=(y.at(tick)) y2=(y.at(tick)) class="grid" {}
                    text x=(LEFT - 5.0) y=(y.at(tick) + 4.0) text-anchor="end" { (number(tick)) }
                }
                text x=(middle) y=(HEIGHT - 8.0) text-anchor="middle" class="axis" { (self.x) }
                text x=(LEFT) y=(TOP - 8.0) class="axis" { (self.y) }
                @for (nth, (name, line)) in series.iter().zip(&lines).enumerate() {
                    polyline fill="none" stroke=(colour(nth)) stroke-dasharray=(dashes(nth))
                        stroke-width="2" points=(points(line, &x, &y)) {}
                    @for figure in line {
                        line x1=(x.at(figure.x)) x2=(x.at(figure.x)) stroke=(colour(nth))
                            y1=(y.at(figure.spread()[0])) y2=(y.at(figure.spread()[1])) {}
                        circle cx=(x.at(figure.x)) cy=(y.at(figure.median())) r="3" fill=(colour(nth)) {}
                    }
                    line x1=(WIDTH - RIGHT + 12.0) x2=(WIDTH - RIGHT + 30.0) y1=(row(nth)) y2=(row(nth))
                        stroke=(colour(nth)) stroke-dasharray=(dashes(nth)) stroke-width="2" {}
                    text x=(WIDTH - RIGHT + 34.0) y=(row(nth) + 4.0) { (name) }
                }
            }
        }
    }
}

fn row(number: usize) -> f64 {
    (0..number).fold(TOP + 5.0, |at, _| at + 13.0)
}

fn points(line: &[&super::Figure], x: &Axis, y: &Axis) -> String {
    let place = |f: &&super::Figure| format!("{:.1},{:.1}", x.at(f.x), y.at(f.median()));
    line.iter().map(place).collect::<Vec<_>>().join(" ")
}
