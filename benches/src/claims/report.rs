//! The report: one page that needs nothing else.

use super::figures::Figures;
use super::model;
use super::plots::Plot;
use super::text::{CLAIMS, THREAD};
use super::verdicts::{Judgement, judge, number};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Serialize;
use std::fs;

/// What it was measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Name of the processor.
    pub processor: String,
    /// How many of them there are.
    pub processors: usize,
    /// Vector extension that the scan of the limits uses.
    pub vectors: String,
    /// The kernel.
    pub kernel: String,
}

/// A run, as the JSON file has it.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Where.
    pub machine: Machine,
    /// Small guests were measured, for the sake of a test.
    pub quick: bool,
    /// How long it took.
    pub seconds: f64,
    /// Everything measured.
    pub figures: Figures,
    /// What it decides.
    pub judgements: Vec<Judgement>,
    /// The bus model.
    pub bus_model: Vec<model::Line>,
}

impl Machine {
    /// This one. What the system does not say is left empty.
    pub fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let name = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let name = name
            .and_then(|line| line.split(':').nth(1))
            .unwrap_or_default();
        Self {
            processor: name.trim().to_owned(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            vectors: crate::limit::simd_name(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl Run {
    /// A run with its judgements.
    pub fn new(machine: Machine, quick: bool, seconds: f64, figures: Figures) -> Self {
        Self {
            machine,
            quick,
            seconds,
            judgements: judge(&figures),
            bus_model: model::lines(&figures),
            figures,
        }
    }
}

const fn plot(
    topic: &'static str,
    x: &'static str,
    y: &'static str,
    log_x: bool,
    log_y: bool,
) -> Plot {
    Plot {
        topic,
        x,
        y,
        log_x,
        log_y,
    }
}

const PLOTS: [Plot; 20] = [
    plot(
        "inflation",
        "density of written pages",
        "reported : written pages",
        true,
        false,
    ),
    plot("mark ns", "", "ns a mark", false, false),
    plot("lost", "writers", "lost pages of a million", false, false),
    plot(
        "spurious",
        "writers",
        "spurious pages of a million",
        false,
        false,
    ),
    plot("CAS retries", "writers", "retries a mark", false, false),
    plot("CAS time", "writers", "time : atomic OR", false, false),
    plot("collect", "dirty pages", "µs to collect", true, true),
    plot(
        "mark and collect",
        "dirty pages",
        "µs to mark and collect",
        true,
        true,
    ),
    plot("nothing written", "", "µs", false, true),
    plot("sparse bytes", "gap, GiB", "bytes", true, true),
    plot("sparse collect", "gap, GiB", "µs", true, true),
    plot(
        "granularity",
        "gra_power",
        "bytes read and sent",
        false,
        true,
    ),
    plot(
        "lost by resets",
        "1: reset, 2: function level reset",
        "lost pages",
        false,
        false,
    ),
    plot(
        "reports per page",
        "writes between two reads",
        "reports : pages",
        true,
        true,
    ),
    plot(
        "useless reports",
        "writes between two reads",
        "share of reports",
        true,
        false,
    ),
    plot("nesting", "", "1: works", false, false),
    plot("state bytes", "ranges", "bytes for a function", true, true),
    plot(
        "overflow rate",
        "writes between two reads",
        "share of reads",
        true,
        false,
    ),
    plot(
        "sent per written",
        "writes between two reads",
        "pages sent : written",
        true,
        true,
    ),
    plot("READ of all members", "members", "µs", true, true),
];

const LATENCIES: [Plot; 3] = [
    plot("READ p50", "members", "µs, median", true, true),
    plot("READ p99", "members", "µs, 99th percentile", true, true),
    plot("injected harvest", "", "share of pages lost", false, false),
];

const STYLE: &str = "body{font:15px/1.45 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
    svg{width:100%;max-width:48em;font:11px sans-serif}.grid{stroke:#ddd}.axis{font-weight:bold}\
    .v{padding:.1em .5em;border-radius:.3em;color:#fff;background:#555}.holds{background:#3a7d44}\
    .no{background:#c8553d}.depends{background:#b08a00}td,th{padding:.15em .6em;text-align:left;\
    border-bottom:1px solid #ddd}table{border-collapse:collapse}";

/// The page.
pub fn page(run: &Run) -> String {
    let judged = |id: &str| run.judgements.iter().find(|judgement| judgement.id == id);
    let Machine {
        processor,
        processors,
        vectors,
        kernel,
    } = &run.machine;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "The claims of 2023, measured" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "The claims of 2023, measured" }
                p { (processor) ", " (processors) " processors, " (vectors) ", Linux " (kernel)
                    ". " (number(run.seconds)) " s." }
                @if run.quick {
                    p { strong { "A quick run: small guests, for tests. Its figures say nothing." } }
                }
                p { "Every figure is a median of this run, with the smallest and the largest repetition in \
                     brackets. Dots are medians, bars their spread. Unless it says otherwise, claims are known \
                     from " (THREAD) "." }
                table {
                    tr { th { "" } th { "claim" } th { "verdict" } }
                    @for claim in CLAIMS {
                        tr { td { a href={ "#" (claim.id) } { (claim.id) } } td { (claim.said) }
                            td { (badge(judged(claim.id))) } }
                    }
                }
                @for claim in CLAIMS {
                    h2 id=(claim.id) { (claim.id) ". " (claim.said) " " (badge(judged(claim.id))) }
                    p { strong { "Said by " } (claim.who) "." }
                    p { strong { "Measured: " } (claim.measured) }
                    @for topic in claim.topics { (plots(&run.figures, topic)) }
                    @if let Some(judgement) = judged(claim.id) {
                        details open { summary { "Figures that decide" }
                            ul { @for ground in &judgement.grounds { li { (ground) } } } }
                        @if !judgement.loses.is_empty() {
                            p { strong { "Where the other side wins:" } }
                            ul { @for lost in &judgement.loses { li { (lost) } } }
                        }
                    }
                    p { strong { "What would change it: " } (claim.change) }
                }
                (bus(&run.bus_model))
            }
        }
    }
    .into_string()
}

fn badge(judgement: Option<&Judgement>) -> Markup {
    use super::Verdict::{Depends, DoesNotHold, Holds, Undecided};
    let verdict = judgement.map_or(Undecided, |judgement| judgement.verdict);
    let class = match verdict {
        Holds => "v holds",
        DoesNotHold => "v no",
        Depends => "v depends",
        Undecided => "v",
    };
    html! { span class=(class) { (verdict.to_string()) } }
}

/// The plots of a topic: one for each size of guest, where there are several.
fn plots(figures: &Figures, topic: &str) -> Markup {
    let Some(plot) = PLOTS
        .iter()
        .chain(&LATENCIES)
        .find(|plot| plot.topic == topic)
    else {
        return html! {};
    };
    let mut guests: Vec<String> = Vec::new();
    for series in figures.series(topic) {
        let guest = series
            .rsplit(", ")
            .next()
            .filter(|end| end.ends_with(" GiB"));
        if let Some(guest) = guest.filter(|guest| !guests.iter().any(|known| known == guest)) {
            guests.push(guest.to_owned());
        }
    }
    html! {
        @if guests.is_empty() || topic.starts_with("CAS") {
            (plot.draw(figures, |_| true))
        } @else {
            @for guest in &guests {
                h4 { "A guest of " (guest) }
                (plot.draw(figures, |series| series.ends_with(&format!(", {guest}"))))
            }
        }
    }
}

fn bus(lines: &[model::Line]) -> Markup {
    let dirty = lines
        .first()
        .map(|line| line.per_page.as_slice())
        .unwrap_or_default();
    html! {
        h2 id="bus" { "On the bus: a model, not a measurement" }
        p { "PCI Express with 64-bit addresses: 24 bytes of framing and header for each request, 20 for each \
             completion, payloads of at most 256 bytes; retries of compare-and-swap as measured above. Packets and \
             bytes for each dirty page, by dirty pages of a round. A harvest reads memory and sends nothing." }
        table {
            tr { th { "mechanism" } @for (pages, _) in dirty { th { (number(*pages)) } } }
            @for line in lines {
                tr { td { (line.name) }
                    @for (_, cost) in &line.per_page {
                        td { (number(cost.packets)) " / " (number(cost.bytes)) " B" }
                    } }
            }
        }
    }
}
