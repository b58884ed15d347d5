//! How many pages have to be dirty for the bitmap to be quicker than records.

use super::figures::{Figure, Figures, guest};
use super::topics::{COLLECT, CROSSING};

/// Dirty pages of the smallest round that is measured. Where the bitmap is quicker already there,
/// this is the crossing.
pub const FEWEST: f64 = 10.0;

/// Where the first curve of a repetition reaches the second, from above, on logarithmic scales. The
/// last place of all if it never does.
fn crossing(bitmap: &[&Figure], records: &[&Figure], repetition: usize) -> Option<f64> {
    let lead = |(bitmap, records): (&&Figure, &&Figure)| {
        let ratio = bitmap.samples.get(repetition)? / records.samples.get(repetition)?;
        Some((bitmap.x, ratio.ln()))
    };
    let leads: Vec<(f64, f64)> = bitmap
        .iter()
        .zip(records)
        .map(lead)
        .collect::<Option<_>>()?;
    // From the many to the few: noise among the few is not to hide where records stop winning.
    let Some(last_won) = leads.iter().rposition(|(_, lead)| *lead > 0.0) else {
        return leads.first().map(|(x, _)| *x);
    };
    let (x, lead) = leads[last_won];
    let Some((next, behind)) = leads.get(last_won + 1) else {
        return Some(x);
    };
    let share = lead / (lead - behind);
    Some((x.ln() + share * (next / x).ln()).exp())
}

/// Adds the crossing points to the figures that they come from: one for each repetition.
pub fn add(figures: &mut Figures) {
    let mut found = Vec::new();
    let series = figures.series(&COLLECT);
    for bitmap in series.iter().filter(|name| name.starts_with("bitmap")) {
        let Some((guest, gib)) = guest(bitmap).and_then(|guest| {
            let gib = guest.strip_suffix(" GiB")?.parse::<f64>().ok()?;
            Some((guest, gib))
        }) else {
            continue;
        };
        let of_guest = |name: &&&str| name.starts_with("records") && name.ends_with(guest);
        for records in series.iter().filter(of_guest) {
            let (one, other) = (
                figures.line(&COLLECT, bitmap),
                figures.line(&COLLECT, records),
            );
            let repetitions = one.first().map_or(0, |figure| figure.samples.len());
            let samples = (0..repetitions).filter_map(|nth| crossing(&one, &other, nth));
            let name = records.strip_suffix(guest).unwrap_or(records);
            let name = name.trim_end_matches(", ").to_owned();
            found.push((name, gib, samples.collect::<Vec<_>>()));
        }
    }
    for (name, gib, samples) in found {
        figures.add(&CROSSING, name, gib, samples);
    }
}
