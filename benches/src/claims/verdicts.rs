//! What the figures decide. Pure: no clock, no machine, nothing but the figures.

use super::figures::{Answer, Figures};
use super::judge::{Court, Judgement, Verdict, any, not, together};
use super::topics::{
    CROSSING, GRANULARITY, INFLATION, INJECTED, LOST, NESTING, OVERFLOW, PASS, REPORTS, RESETS,
    RETRIES, SENT, SILENT, SPARSE_BYTES, STATE, USELESS,
};

/// A byte names eight pages; what is taken for eight.
const EIGHT: f64 = 7.0;
/// Retries a mark from which a compare-and-swap is no OR any more.
const OFTEN: f64 = 0.1;
/// What a mechanism has to take more than another for it to be waste.
const WASTE: f64 = 2.0;
/// A difference between two mechanisms in what they report.
const MORE: f64 = 1.1;
/// A share of reports that costs nothing to speak of.
const BENIGN: f64 = 0.05;

/// Whether eight pages are reported for one that was written, at each density and locality.
fn inflation(court: &mut Court<'_>) -> Verdict {
    let figures = court.figures.topic(&INFLATION);
    let measured = figures.filter(|figure| figure.samples.len() > 1);
    let answers: Vec<Answer> = measured
        .map(|figure| court.keep(figure, figure.ask(|pages| pages >= EIGHT)))
        .collect();
    together(&answers)
}

/// Whether pages are lost: by pairs with an access that is two, and by pairs without.
fn races(court: &mut Court<'_>) -> Verdict {
    let [mut plain, mut atomic] = [Vec::new(), Vec::new()];
    for figure in court.figures.topic(&LOST) {
        let series = figure.series.as_str();
        if series.starts_with("mark first") {
            continue;
        }
        let loses = figure.ask(|lost| lost > 0.0);
        let racy = series.starts_with("plain") || series.ends_with("load-store");
        if loses != Answer::No {
            court.keep(figure, loses);
        }
        if racy {
            plain.push(loses);
        } else {
            atomic.push(loses);
        }
    }
    together(&[any(&plain), any(&atomic)])
}

/// Whether an OR by compare-and-swap has to be tried again often, by how close
/// writers come; with any number of them.
fn compare_and_swap(court: &mut Court<'_>) -> Verdict {
    let figures = court.figures;
    let answers: Vec<Answer> = figures
        .series(&RETRIES)
        .into_iter()
        .map(|series| {
            let line = figures.line(&RETRIES, series);
            let often = line
                .into_iter()
                .map(|figure| court.keep(figure, figure.ask(|retries| retries >= OFTEN)));
            any(&often.collect::<Vec<_>>())
        })
        .collect();
    together(&answers)
}

/// Whether there is a number of dirty pages below which records are quicker, for each guest.
fn scanning(court: &mut Court<'_>) -> Verdict {
    let answers = court.ask_all(&CROSSING, |pages| pages > super::crossing::FEWEST);
    // Where the repetitions differ neither of them wins.
    let clear: Vec<Answer> = answers
        .into_iter()
        .filter(|answer| *answer != Answer::Unclear)
        .collect();
    together(&clear)
}

/// Whether the bitmap takes more memory than the guest's own pages have bits.
fn sparse(court: &mut Court<'_>) -> Verdict {
    let figures = court.figures;
    let whole = figures.line(&SPARSE_BYTES, "bitmap, all of it");
    let answers: Vec<Answer> = whole
        .into_iter()
        .map(|whole| {
            let bits = figures.at(&SPARSE_BYTES, "bits of the guest's memory", whole.x);
            court.above(Some(whole), WASTE, bits)
        })
        .collect();
    together(&answers)
}

/// Whether some larger granule moves less in all, for each kind of locality.
fn granularity(court: &mut Court<'_>) -> Verdict {
    let figures = court.figures;
    let series = figures.series(&GRANULARITY);
    let answers: Vec<Answer> = series
        .into_iter()
        .filter(|series| *series != "bitmap alone")
        .map(|series| {
            let line = figures.line(&GRANULARITY, series);
            let Some((page, larger)) = line.split_first() else {
                return Answer::Unclear;
            };
            let best = larger
                .iter()
                .min_by(|a, b| a.median().total_cmp(&b.median()));
            court.above(Some(page), 1.0, best.copied())
        })
        .collect();
    together(&answers)
}

/// Whether the tracker loses pages to each kind of reset, trapped and not.
fn resets(court: &mut Court<'_>) -> Verdict {
    let mut answers = Vec::new();
    for figure in court.figures.topic(&RESETS) {
        let lost = court.keep(figure, figure.ask(|lost| lost > 0.0));
        if figure.series.starts_with("tracker") {
            answers.push(lost);
        }
    }
    together(&answers)
}

/// Whether the bitmap reports a page more often than records do.
fn again(court: &mut Court<'_>) -> Verdict {
    let figures = court.figures;
    let bitmap = figures.line(&REPORTS, "bitmap");
    let answers: Vec<Answer> = bitmap
        .into_iter()
        .map(|bitmap| {
            let records = figures.at(&REPORTS, "records", bitmap.x);
            court.above(Some(bitmap), MORE, records)
        })
        .collect();
    together(&answers)
}

/// Whether a member can be tracked from within by registers, and cannot by commands; and whether
/// its host goes on hearing of its writes.
fn nested(court: &mut Court<'_>) -> Verdict {
    let mut works = |series| court.ask(&NESTING, series, 1, |works| works == 1.0);
    let inside = works("a member's tracker, from within");
    let owner = works("owner's commands, from within a member");
    let itself = works("self group, a member with a queue of its own");
    let host = works("host's tracker while the member uses it too");
    _ = works("host's records while the member tracks itself");
    together(&[inside, not(owner), not(itself), host])
}

/// Whether the registers of the tracker grow with what is tracked.
fn registers(court: &mut Court<'_>) -> Verdict {
    let figures = court.figures;
    for figure in figures.line(&STATE, "records, as built") {
        court.keep(figure, Answer::Unclear);
    }
    let registers = figures.line(&STATE, "tracker registers");
    let (one, many) = (registers.first().copied(), registers.last().copied());
    let grow = court.above(many, 1.0, one);
    together(&[grow])
}

/// Whether records overflow at all. That a bitmap does not is no figure: it has room for every page.
fn overflow(court: &mut Court<'_>) -> Verdict {
    let silent = any(&court.ask_all(&SILENT, |lost| lost > 0.0));
    let figures = court.figures;
    let mut answers = Vec::new();
    for figure in figures.topic(&OVERFLOW) {
        let overflows = figure.ask(|share| share > 0.0);
        answers.push(overflows);
        let sent = figures.at(&SENT, &figure.series, figure.x);
        if let (Answer::Yes, Some(sent)) = (overflows, sent) {
            court.keep(sent, overflows);
        }
    }
    match (silent, any(&answers)) {
        (Answer::No, overflows) => together(&[overflows]),
        // Pages lost in silence are a broken device, and nothing follows from that.
        _ => Verdict::Undecided,
    }
}

/// Whether the time for all members grows at least half as fast as their number.
fn serial(court: &mut Court<'_>) -> Verdict {
    let figures = court.figures;
    let line = figures.line(&PASS, "1 queue");
    let (Some(first), Some(last)) = (line.first(), line.last()) else {
        return Verdict::Undecided;
    };
    let grows = court.above(Some(last), last.x / first.x / 2.0, Some(first));
    if let Some(two) = figures.at(&PASS, "2 queues", last.x) {
        let helps = two.over(last).ask(|ratio| ratio < 1.0);
        court.keep(two, helps);
    }
    together(&[grows])
}

fn benign(court: &mut Court<'_>) -> Verdict {
    let answers = court.ask_all(&USELESS, |share| share < BENIGN);
    together(&answers)
}

/// Whether pages are lost if the mark is first, and none if the data is.
fn order(court: &mut Court<'_>) -> Verdict {
    let mark = court.ask(&INJECTED, "mark first", 1, |lost| lost > 0.0);
    let data = court.ask(&INJECTED, "data first", 1, |lost| lost == 0.0);
    for race in court.figures.line(&LOST, "mark first: atomic OR / swap") {
        court.keep(race, race.ask(|lost| lost > 0.0));
    }
    together(&[mark, data])
}

/// The answers to all claims.
pub fn judge(figures: &Figures) -> Vec<Judgement> {
    type Question = fn(&mut Court<'_>) -> Verdict;
    let questions: [Question; 14] = [
        inflation,
        races,
        compare_and_swap,
        scanning,
        sparse,
        granularity,
        resets,
        again,
        nested,
        registers,
        overflow,
        serial,
        benign,
        order,
    ];
    let judged = super::text::CLAIMS.iter().zip(questions);
    judged
        .map(|(claim, question)| {
            let mut court = Court {
                figures,
                grounds: Vec::new(),
            };
            let verdict = question(&mut court);
            Judgement {
                id: claim.id.to_owned(),
                verdict,
                grounds: court.grounds,
            }
        })
        .collect()
}
