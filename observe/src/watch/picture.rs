//! The view as a picture that stays: SVG, and a page of HTML around it.

use super::view::{Round, View};
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Rounds that a picture holds, the latest.
const ROUNDS_MAX: usize = 500;
/// Of one cell, in pixels.
const WIDTH: usize = 10;
const HEIGHT: usize = 10;
/// Left of the cells: numbers of rounds.
const LEFT: usize = 50;
/// Above the cells.
const TOP: usize = 40;

/// A heat map: memory from left to right, rounds from top to bottom. Every dirty cell is a `rect`
/// of class `cell` whose title says how many pages it stands for. It is plain XML.
pub fn svg(view: &View) -> String {
    drawing(view).into_string()
}

/// The same with the table of rounds and the queues. It is well-formed as XML too, and refers to
/// nothing outside.
pub fn html(view: &View) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                title { "tidemark watch " (view.target) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "tidemark watch " (view.target) }
                p {
                    (view.rounds_total) " rounds, " (view.pages_total) " dirty pages, "
                    (view.lost_total) " lost, " (view.suspends) " suspends, "
                    (view.requests) " requests"
                    @if !view.status.is_empty() { "; status when last suspended: " (view.status) }
                }
                @if let Some(trouble) = &view.trouble { p class="trouble" { (trouble) } }
                (drawing(view))
                (queues(view))
                (rounds(view))
            }
        }
    };
    page.into_string()
}

const STYLE: &str = "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse;\
                     margin-top:1em}td,th{padding:0.1em 0.8em;text-align:right}\
                     tr:nth-child(even){background:#f3f3f3}.trouble{color:#b00000}";

fn latest(view: &View) -> &[Round] {
    let from = view.rounds.len().saturating_sub(ROUNDS_MAX);
    view.rounds.get(from..).unwrap_or_default()
}

fn drawing(view: &View) -> Markup {
    let rounds = latest(view);
    let columns = rounds.iter().map(|round| round.cells.len()).max();
    let width = LEFT + columns.unwrap_or(0).max(40) * WIDTH + 10;
    let height = TOP + rounds.len().max(1) * HEIGHT + 10;
    html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(width) height=(height)
            viewBox=(format!("0 0 {width} {height}")) font-family="sans-serif" font-size="9" {
            title { "Dirty memory of " (view.target) " by round" }
            rect width="100%" height="100%" fill="#ffffff" {}
            text x="4" y="14" font-size="12" {
                (view.target) ": " (view.memory_pages / 256) " MiB of memory from left to right, "
                (view.rounds_total) " rounds from top to bottom"
                @if rounds.len() < view.rounds.len() { ", the latest " (rounds.len()) " shown" }
            }
            text x="4" y="30" { "round" }
            @for (row, round) in rounds.iter().enumerate() {
                @let y = TOP + row * HEIGHT;
                @if row % 5 == 0 || row + 1 == rounds.len() {
                    text x="4" y=(y + HEIGHT - 2) { (round.round) }
                }
                @for (cell, dirty) in round.cells.iter().enumerate().filter(|(_, dirty)| **dirty != 0) {
                    rect class="cell" x=(LEFT + cell * WIDTH) y=(y) width=(WIDTH) height=(HEIGHT)
                        fill=(colour(view.share(cell, *dirty))) {
                        title { "round " (round.round) ", cell " (cell) ": " (dirty) " pages" }
                    }
                }
            }
        }
    }
}

/// From pale to dark red: darker is dirtier.
fn colour(share: f64) -> String {
    let between = |from: f64, to: f64| from + (to - from) * share.clamp(0.0, 1.0);
    let channel = |from: f64, to: f64| format!("{:.0}", between(from, to));
    let (red, green, blue) = (
        channel(254.0, 127.0),
        channel(224.0, 0.0),
        channel(144.0, 0.0),
    );
    format!("rgb({red},{green},{blue})")
}

fn queues(view: &View) -> Markup {
    html! {
        @if !view.queues.is_empty() {
            table {
                tr { th { "queue" } th { "size" } th { "avail" } th { "used" } }
                @for queue in &view.queues {
                    tr {
                        td { (queue.queue) } td { (queue.size) }
                        @match queue.indices {
                            Some((avail, used)) => { td { (avail) } td { (used) } }
                            None => { td { "-" } td { "-" } }
                        }
                    }
                }
            }
        }
    }
}

fn rounds(view: &View) -> Markup {
    html! {
        table {
            tr { th { "round" } th { "pages" } th { "bytes" } th { "lost" } th { "ms" } th { "suspended" } }
            @for round in latest(view) {
                tr {
                    td { (round.round) } td { (round.pages) } td { (round.bytes) }
                    td { @match round.lost { Some(lost) => { (lost) } None => { "-" } } }
                    td { (format!("{:.1}", round.seconds * 1e3)) }
                    td { @if round.suspended { "yes" } @else { "no" } }
                }
            }
        }
    }
}
