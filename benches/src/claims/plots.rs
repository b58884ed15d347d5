//! Plots as SVG that stands by itself.

use super::figures::{Figure, Figures, guest};
use super::topics::Topic;
use maud::{Markup, html};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 300.0;
const TOP: f64 = 24.0;
const PLANE: f64 = 230.0;
const BOTTOM: f64 = 42.0;
/// Height of a row of the legend.
const ROW: f64 = 15.0;
/// Colours of the style sheet.
const COLOURS: usize = 8;

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
            // Whole decades, or the ticks would not be round.
            low = 10_f64.powf((low.log10() + 1e-9).floor());
            high = 10_f64.powf((high.log10() - 1e-9).ceil());
        } else {
            low = low.min(0.0);
            let step = Self::step(low, high);
            high = (high / step).ceil() * step;
        }
        if low >= high {
            high = if log { low * 10.0 } else { low + 1.0 };
        }
        Self {
            low,
            high,
            log,
            from,
            to,
        }
    }

    /// A round distance of about a quarter.
    fn step(low: f64, high: f64) -> f64 {
        let rough = ((high - low) / 4.0).max(f64::MIN_POSITIVE);
        let decade = 10_f64.powf(rough.log10().floor());
        let of = |factor: f64| factor * decade;
        let rounds = [1.0, 2.0, 2.5, 5.0, 10.0].map(of);
        rounds
            .into_iter()
            .find(|round| *round >= rough)
            .unwrap_or(rough)
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
        let ticks: Vec<f64> = if self.log {
            let decades = std::iter::successors(Some(self.low), |tick| Some(tick * 10.0));
            decades
                .take_while(|tick| *tick <= self.high * 1.001)
                .collect()
        } else {
            let step = Self::step(self.low, self.high);
            let steps = std::iter::successors(Some(self.low), |tick| Some(tick + step));
            steps
                .take_while(|tick| *tick <= self.high + step / 2.0)
                .collect()
        };
        thinned(ticks)
    }

    /// From the first to the last of some places, with a tick at each.
    fn through(places: &[f64], log: bool, from: f64, to: f64) -> Self {
        match (places.first(), places.last()) {
            (Some(&low), Some(&high)) if low < high && (!log || low > 0.0) => Self {
                low,
                high,
                log,
                from,
                to,
            },
            _ => Self::new(places.iter().copied(), log, from, to),
        }
    }
}

/// No more ticks than have room for their labels.
fn thinned(ticks: Vec<f64>) -> Vec<f64> {
    let every = ticks.len().div_ceil(10).max(1);
    ticks.into_iter().step_by(every).collect()
}

/// A round number, as short as it goes.
pub fn tick(value: f64) -> String {
    for (unit, name) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        let value = value / unit;
        if value.abs() >= 0.999 && (value * 1e3).round() % 10.0 == 0.0 {
            return format!("{value:.3}")
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
                + name;
        }
    }
    // What many additions of a step have left over.
    let value = (value * 1e9).round() / 1e9;
    if value != 0.0 && value.abs() < 1e-3 {
        return format!("{value:.0e}");
    }
    format!("{value}")
}

/// The plot of a topic: medians as lines, spreads as bars; of all series, or those of one guest.
pub fn draw(topic: &Topic, figures: &Figures, of_guest: Option<&str>) -> Markup {
    let mut series = figures.series(topic);
    series.retain(|name| of_guest.is_none() || guest(name) == of_guest);
    let lines: Vec<_> = series
        .iter()
        .map(|name| figures.line(topic, name))
        .collect();
    let all = || lines.iter().flatten();
    let plane = PLANE.max(series.iter().fold(0.0, |height, _| height + ROW) - BOTTOM);
    let (right, bottom) = (WIDTH - RIGHT, TOP + plane);
    let mut places: Vec<f64> = all().map(|figure| figure.x).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let x = Axis::through(&places, topic.log_x, LEFT, right);
    let ends = all().flat_map(|figure| figure.spread());
    let y = Axis::new(ends, topic.log_y, bottom, TOP);
    let height = bottom + BOTTOM;
    let caption = match of_guest {
        Some(guest) => format!("{}, a guest of {guest}", topic.name),
        None => topic.name.to_owned(),
    };
    let rows = std::iter::successors(Some(TOP + 6.0), |at| Some(at + ROW));
    html! {
        figure {
            figcaption { (caption) }
            svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {WIDTH} {height}"))
                role="img" aria-label=(format!("{caption}: {} by {}", topic.y, topic.x)) {
                @for tick_at in thinned(places) {
                    line x1=(place(x.at(tick_at))) x2=(place(x.at(tick_at))) y1=(TOP) y2=(bottom) class="grid" {}
                    text x=(place(x.at(tick_at))) y=(bottom + 15.0) text-anchor="middle" { (tick(tick_at)) }
                }
                @for tick_at in y.ticks() {
                    line x1=(LEFT) x2=(right) y1=(place(y.at(tick_at))) y2=(place(y.at(tick_at))) class="grid" {}
                    text x=(LEFT - 6.0) y=(place(y.at(tick_at) + 4.0)) text-anchor="end" { (tick(tick_at)) }
                }
                text x=((LEFT + right) / 2.0) y=(height - 8.0) text-anchor="middle" class="axis" { (topic.x) }
                text x="4" y="12" class="axis" { (topic.y) }
                @for ((nth, (name, line)), row) in series.iter().zip(&lines).enumerate().zip(rows) {
                    g style=(ink(nth)) {
                        polyline fill="none" stroke-width="2" points=(points(line, &x, &y)) {}
                        @for figure in line {
                            @let ([low, high], at) = (figure.spread(), place(x.at(figure.x)));
                            line x1=(at) x2=(at) y1=(place(y.at(low))) y2=(place(y.at(high))) stroke-dasharray="none" {}
                            circle cx=(at) cy=(place(y.at(figure.median()))) r="3" {}
                        }
                        line x1=(right + 14.0) x2=(right + 34.0) y1=(row) y2=(row) stroke-width="2" {}
                    }
                    text x=(right + 40.0) y=(row + 4.0) { (shortened(name, of_guest)) }
                }
            }
        }
    }
}

/// Colour and, when colours are used up, dashes of a line.
fn ink(nth: usize) -> String {
    let dashes = ["none", "6 3", "2 3"][nth / COLOURS % 3];
    let colour = nth % COLOURS + 1;
    format!("stroke:var(--{colour});fill:var(--{colour});stroke-dasharray:{dashes}")
}

/// A series without the guest that its plot is of.
fn shortened<'a>(series: &'a str, of_guest: Option<&str>) -> &'a str {
    let short = of_guest.and_then(|guest| series.strip_suffix(guest));
    short.map_or(series, |short| short.trim_end_matches(", "))
}

fn place(at: f64) -> String {
    format!("{at:.1}")
}

fn points(line: &[&Figure], x: &Axis, y: &Axis) -> String {
    let point = |figure: &&Figure| {
        let (x, y) = (x.at(figure.x), y.at(figure.median()));
        format!("{},{}", place(x), place(y))
    };
    line.iter().map(point).collect::<Vec<_>>().join(" ")
}
