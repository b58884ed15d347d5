//! What marks and records would cost on a bus: a **model**, not a measurement.
//!
//! PCI Express with 64-bit addresses. A transaction layer packet carries 8 bytes of framing, sequence
//! number and LCRC, and a header of 16 bytes for a request and 12 for a completion. Payloads are
//! whole double words, at most 256 bytes. Acknowledgements and flow control are left out.

use super::figures::Figures;
use serde::Serialize;

const REQUEST: f64 = 8.0 + 16.0;
const COMPLETION: f64 = 8.0 + 12.0;
const PAYLOAD_MAX: f64 = 256.0;

/// What goes over the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Packets.
    pub packets: f64,
    /// Bytes, with headers and framing.
    pub bytes: f64,
}

/// The model's answer for one mechanism.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The mechanism.
    pub name: String,
    /// Cost of each dirty page, by dirty pages of a round.
    pub per_page: Vec<(f64, Cost)>,
}

impl Cost {
    fn times(self, factor: f64) -> Self {
        Self {
            packets: self.packets * factor,
            bytes: self.bytes * factor,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
        }
    }

    /// A posted write.
    fn write(payload: f64) -> Self {
        let packets = (payload / PAYLOAD_MAX).ceil();
        Self {
            packets,
            bytes: packets * REQUEST + payload,
        }
    }

    /// A read, or an atomic operation with `operands` bytes, that returns `payload` bytes.
    fn round_trip(operands: f64, payload: f64) -> Self {
        let packets = (payload / PAYLOAD_MAX).ceil();
        Self {
            packets: 1.0 + packets,
            bytes: REQUEST + operands + packets * COMPLETION + payload,
        }
    }
}

/// One command: the doorbell, two descriptors with the index and the entry that lead to them, its 48
/// bytes, the header of its answer, the used entry and index, and an interrupt.
fn command() -> Cost {
    let reads = Cost::round_trip(0.0, 4.0)
        .and(Cost::round_trip(0.0, 4.0))
        .and(Cost::round_trip(0.0, 32.0))
        .and(Cost::round_trip(0.0, 48.0));
    let writes = Cost::write(8.0).and(Cost::write(8.0)).and(Cost::write(4.0));
    // Doorbell and interrupt.
    reads.and(writes).and(Cost::write(4.0).times(2.0))
}

/// Records of one command, as measured here.
const BATCH: f64 = 131_071.0;

/// The cost of each dirty page for each mechanism. The retries of the compare and swap loop are the
/// measured ones of one writer.
pub fn lines(figures: &Figures) -> Vec<Line> {
    let retries = figures
        .at("CAS retries", "anywhere in 1 GiB", 1)
        .map_or(0.0, super::Figure::median);
    // Reads the word, then swaps it: 8 bytes to compare, 8 to store, 8 come back.
    let cas = Cost::round_trip(0.0, 8.0).and(Cost::round_trip(16.0, 8.0).times(1.0 + retries));
    let blind = Cost::round_trip(16.0, 8.0).times(1.0 + retries);
    let dirty: Vec<f64> = (1..=7).map(|power| 10_f64.powi(power)).collect();
    let flat = |name: &str, cost: Cost| Line {
        name: name.to_owned(),
        per_page: dirty.iter().map(|dirty| (*dirty, cost)).collect(),
    };
    let records = |name: &str, batch: f64| Line {
        name: name.to_owned(),
        per_page: dirty
            .iter()
            .map(|dirty| {
                let commands = (dirty / batch).ceil();
                let moved = Cost::write(8.0 * dirty.min(batch)).times(dirty / dirty.min(batch));
                (
                    *dirty,
                    moved.and(command().times(commands)).times(1.0 / dirty),
                )
            })
            .collect(),
    };
    vec![
        flat("whole byte, scattered pages", Cost::write(4.0)),
        flat(
            "whole byte, 8 neighbours at once",
            Cost::write(4.0).times(1.0 / 8.0),
        ),
        flat("OR by read and compare-and-swap", cas),
        flat("OR by compare-and-swap that guesses the word", blind),
        flat(
            "64 neighbours by one write (bits kept in the device)",
            Cost::write(8.0).times(1.0 / 64.0),
        ),
        records("records, answers of 1 MiB", BATCH),
        records("records, answers of 4 KiB", 512.0),
    ]
}
