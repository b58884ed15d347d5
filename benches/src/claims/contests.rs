//! Bitmap against records, wherever both were measured: who is quicker, and by how much.

use super::figures::{Answer, Figures, guest};
use super::topics::{BOTH, COLLECT, IDLE, SPARSE_COLLECT, Topic, WRITERS};
use serde::{Deserialize, Serialize};

/// Topics in which both compete; less is better in all of them.
const TOPICS: [Topic; 5] = [COLLECT, BOTH, IDLE, SPARSE_COLLECT, WRITERS];

/// One topic's contests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contest {
    /// The topic's name.
    pub topic: String,
    /// Who wins more of the cells: bitmap or records; nobody if they win as many.
    pub favourite: Option<Side>,
    /// One row for each pair of series.
    pub rows: Vec<Row>,
}

/// A mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The tracker's.
    Bitmap,
    /// Page-write recording.
    Records,
}

/// Records of one kind against the bitmap of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Series of the records.
    pub records: String,
    /// Series of the bitmap.
    pub bitmap: String,
    /// By x.
    pub cells: Vec<Cell>,
}

/// Records over bitmap at one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Where.
    pub x: f64,
    /// Median of the ratios of all repetitions.
    pub ratio: f64,
    /// Who wins; nobody if the repetitions differ.
    pub winner: Option<Side>,
}

fn contest(figures: &Figures, topic: &Topic) -> Contest {
    let series = figures.series(topic);
    let mut rows = Vec::new();
    for bitmap in series.iter().filter(|name| name.starts_with("bitmap")) {
        let same = |name: &&&str| name.starts_with("records") && guest(name) == guest(bitmap);
        for records in series.iter().filter(same) {
            let cell = |at: &super::Figure| {
                let ratio = figures.at(topic, records, at.x)?.over(at);
                let winner = match ratio.ask(|ratio| ratio < 1.0) {
                    Answer::Yes => Some(Side::Records),
                    Answer::No => Some(Side::Bitmap),
                    Answer::Unclear => None,
                };
                Some(Cell {
                    x: at.x,
                    ratio: ratio.median(),
                    winner,
                })
            };
            let line = figures.line(topic, bitmap);
            rows.push(Row {
                records: (*records).to_owned(),
                bitmap: (*bitmap).to_owned(),
                cells: line.into_iter().filter_map(cell).collect(),
            });
        }
    }
    let wins = |side| {
        let cells = rows.iter().flat_map(|row: &Row| &row.cells);
        cells.filter(|cell| cell.winner == Some(side)).count()
    };
    let favourite = match wins(Side::Bitmap).cmp(&wins(Side::Records)) {
        std::cmp::Ordering::Greater => Some(Side::Bitmap),
        std::cmp::Ordering::Less => Some(Side::Records),
        std::cmp::Ordering::Equal => None,
    };
    Contest {
        topic: topic.name.to_owned(),
        favourite,
        rows,
    }
}

/// All contests.
pub fn contests(figures: &Figures) -> Vec<Contest> {
    TOPICS.iter().map(|topic| contest(figures, topic)).collect()
}
