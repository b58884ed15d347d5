//! The report: one page that needs nothing else. Every number on it is in the JSON file.

use super::contests::{Contest, Row, Side};
use super::figures::{Answer, Figure, Figures, guest};
use super::judge::{Ground, Judgement, Verdict};
use super::plots::{draw, tick};
use super::run::{Machine, Run};
use super::text::{CLAIMS, Claim, THREAD};
use super::topics::{BUS, BUS_PACKETS, Topic, named};
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("page.css");

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

/// The page of a run.
pub fn page(run: &Run) -> String {
    let judged = |claim: &Claim| run.judgements.iter().find(|found| found.id == claim.id);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "Bitmap or records: the claims of 2023, measured" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Bitmap or records: the claims of 2023, measured" }
                (machine(run))
                table {
                    tr { th { "" } th { "claim" } th { "verdict" } }
                    @for claim in &CLAIMS {
                        tr { td { a href={ "#" (claim.id) } { (claim.id) } } td { (claim.said) }
                            td { (badge(judged(claim))) } }
                    }
                }
                @for claim in &CLAIMS { (section(run, claim, judged(claim))) }
                (rivals(&run.contests))
                (bus(&run.bus_model))
            }
        }
    }
    .into_string()
}

fn machine(run: &Run) -> Markup {
    let Machine {
        processor,
        processors,
        vectors,
        kernel,
        shared_huge_pages,
        load,
    } = &run.machine;
    html! {
        p { (processor) ", " (processors) " processors, vectors " (vectors) ", Linux " (kernel) ", huge pages of shared \
            memory " (shared_huge_pages) ", load " (load) ". The run took " (number(run.seconds)) " s." }
        @if run.quick {
            p { strong { "A quick run: small guests, for tests. Its figures say nothing." } }
        }
        p { "A figure is the median of its repetitions, with the smallest and the largest in brackets; dots are \
             medians, bars their spread. A verdict " em { "holds" } " or " em { "does not hold" } " if it is so in every \
             configuration, " em { "depends" } " if configurations differ, and is " em { "undecided" } " if repetitions do. \
             Unless it says otherwise, claims are known from " (THREAD) "." }
    }
}

fn badge(judgement: Option<&Judgement>) -> Markup {
    let verdict = judgement.map_or(Verdict::Undecided, |judgement| judgement.verdict);
    let class = match verdict {
        Verdict::Holds => "badge holds",
        Verdict::DoesNotHold => "badge no",
        Verdict::Depends => "badge depends",
        Verdict::Undecided => "badge",
    };
    html! { span class=(class) { (verdict.to_string()) } }
}

fn section(run: &Run, claim: &Claim, judgement: Option<&Judgement>) -> Markup {
    html! {
        h2 id=(claim.id) { (claim.id) ". " (claim.said) " " (badge(judgement)) }
        p { strong { "Said by " } (claim.who) "." }
        p { strong { "Measured: " } (claim.measured) }
        @for topic in claim.topics { (shown(&run.figures, topic)) }
        @if let Some(judgement) = judgement {
            details { summary { "The figures that were asked" } (grounds(&run.figures, judgement)) }
        }
        p { strong { "What would change it: " } (claim.change) }
    }
}

/// A topic: as a table where nothing varies, else as a plot for each size of guest.
fn shown(figures: &Figures, topic: &Topic) -> Markup {
    let series = figures.series(topic);
    if topic.x.is_empty() {
        return html! {
            table {
                tr { th { (topic.name) } th { (topic.y) } th { "spread" } }
                @for name in series {
                    @for figure in figures.line(topic, name) {
                        tr { td { (name) } td { (number(figure.median())) } td { (spread(figure)) } }
                    }
                }
            }
        };
    }
    let mut guests: Vec<&str> = Vec::new();
    for guest in series.iter().filter_map(|name| guest(name)) {
        if !guests.contains(&guest) {
            guests.push(guest);
        }
    }
    html! {
        @if guests.is_empty() { (draw(topic, figures, None)) }
        @for guest in guests { (draw(topic, figures, Some(guest))) }
    }
}

fn spread(figure: &Figure) -> String {
    let [low, high] = figure.spread().map(number);
    format!("[{low}, {high}]")
}

fn grounds(figures: &Figures, judgement: &Judgement) -> Markup {
    let row = |ground: &Ground| {
        let topic = named(&ground.topic)?;
        let figure = figures.at(&topic, &ground.series, ground.x)?;
        let answer = match ground.answer {
            Answer::Yes => "yes",
            Answer::No => "no",
            Answer::Unclear => "–",
        };
        Some(html! {
            tr { td { (figure.series) } td { (topic.x) @if !topic.x.is_empty() { " " (number(figure.x)) } }
                td { (number(figure.median())) " " (topic.y) } td { (spread(figure)) }
                td { (figure.samples.len()) } td { (answer) } }
        })
    };
    html! {
        table {
            tr { th { "of" } th { "at" } th { "median" } th { "spread" } th { "repetitions" }
                th { "the claim holds there" } }
            @for row in judgement.grounds.iter().filter_map(row) { (row) }
        }
    }
}

/// Where the favourite of each contest does not win, and everything else beside it.
fn rivals(contests: &[Contest]) -> Markup {
    let name = |side: Option<Side>| match side {
        Some(Side::Bitmap) => "bitmaps",
        Some(Side::Records) => "records",
        None => "nobody",
    };
    let places = |row: &Row, wanted: Option<Side>| {
        let cells = row.cells.iter().filter(|cell| cell.winner == wanted);
        cells
            .map(|cell| tick(cell.x))
            .collect::<Vec<_>>()
            .join(", ")
    };
    html! {
        h2 id="rivals" { "Where the favourite loses" }
        p { "Records over bitmap, by what the axis of the topic says: below one, records are quicker. The favourite is \
             who surely wins (in every repetition) more of a table's cells; a cell is marked where the other side surely \
             wins, and fainter where the repetitions differ." }
        @for contest in contests.iter().filter(|contest| !contest.rows.is_empty()) {
            h3 { (contest.topic) ": " (name(contest.favourite)) " mostly win" }
            (ratios(contest))
            @if let Some(favourite) = contest.favourite {
                @let other = if favourite == Side::Bitmap { Side::Records } else { Side::Bitmap };
                ul {
                    @for row in &contest.rows {
                        @let (lost, open) = (places(row, Some(other)), places(row, None));
                        @if !lost.is_empty() || !open.is_empty() {
                            li { (row.records) " against " (row.bitmap)
                                @if !lost.is_empty() { "; " (name(Some(other))) " win at " (lost) }
                                @if !open.is_empty() { "; open at " (open) } }
                        }
                    }
                }
            }
        }
    }
}

fn ratios(contest: &Contest) -> Markup {
    let mut places: Vec<f64> = Vec::new();
    for cell in contest.rows.iter().flat_map(|row| &row.cells) {
        if !places.contains(&cell.x) {
            places.push(cell.x);
        }
    }
    places.sort_by(f64::total_cmp);
    let axis = named(&contest.topic).map_or("", |topic| topic.x);
    html! {
        table {
            tr { th { (axis) } @for x in &places { th { (tick(*x)) } } }
            @for row in &contest.rows {
                tr { td { (row.records) " / " (row.bitmap) }
                    @for x in &places {
                        @match row.cells.iter().find(|cell| cell.x == *x) {
                            None => td {},
                            Some(cell) => {
                                @let class = match cell.winner {
                                    None => "open",
                                    won if won == contest.favourite => "",
                                    _ => "lost",
                                };
                                td class=(class) { (number(cell.ratio)) }
                            }
                        }
                    } }
            }
        }
    }
}

fn bus(model: &Figures) -> Markup {
    html! {
        h2 id="bus" { "On the bus: a model, not a measurement" }
        p { (super::text::BUS_MODEL) }
        @for topic in [BUS, BUS_PACKETS] { (draw(&topic, model, None)) }
        table {
            tr { th { "packets, bytes for each dirty page" }
                @for figure in first(model) { th { (tick(figure.x)) } } }
            @for name in model.series(&BUS) {
                tr { td { (name) }
                    @for (bytes, packets) in model.line(&BUS, name).iter().zip(model.line(&BUS_PACKETS, name)) {
                        td { (number(packets.median())) ", " (number(bytes.median())) }
                    } }
            }
        }
    }
}

fn first(model: &Figures) -> Vec<&Figure> {
    let series = model.series(&BUS);
    series
        .first()
        .map_or(Vec::new(), |name| model.line(&BUS, name))
}
