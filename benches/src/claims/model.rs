//! What marks and records would cost on a bus: a **model**, not a measurement.
//!
//! PCI Express with 64-bit addresses. A transaction layer packet carries 8 bytes of framing, sequence
//! number and LCRC, and a header of 16 bytes for a request and 12 for a completion. Payloads are
//! whole double words, at most 256 bytes. Acknowledgements and flow control are left out.

use super::figures::{Figure, Figures};
use super::topics::{BUS, BUS_PACKETS, RETRIES};

const REQUEST: f64 = 8.0 + 16.0;
const COMPLETION: f64 = 8.0 + 12.0;
const PAYLOAD_MAX: f64 = 256.0;

/// What goes over the bus.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    /// Packets.
    packets: f64,
    /// Bytes, with headers and framing.
    bytes: f64,
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

/// So many dirty pages as records, in answers of so many.
fn records(dirty: f64, batch: f64) -> Cost {
    let each = dirty.min(batch);
    let moved = Cost::write(8.0 * each).times(dirty / each);
    moved.and(command().times((dirty / batch).ceil()))
}

/// Packets and bytes of each dirty page for each mechanism. The retries of the compare and swap are
/// the measured ones of two writers whose reads and swaps are a round trip apart.
pub fn model(figures: &Figures) -> Figures {
    let retries = figures.at(&RETRIES, "anywhere in 1 GiB, 0.5 µs apart", 2);
    let swaps = 1.0 + retries.map_or(0.0, Figure::median);
    // The word, 8 bytes to compare and 8 to store go out, 8 come back.
    let swap = Cost::round_trip(16.0, 8.0).times(swaps);
    let read_and_swap = Cost::round_trip(0.0, 8.0).and(swap);
    let mut all = Figures::default();
    for power in 1..=7 {
        let dirty = 10_f64.powi(power);
        let costs = [
            ("whole byte, scattered pages", Cost::write(4.0)),
            ("whole byte, 8 neighbours", Cost::write(4.0).times(0.125)),
            ("OR by read and compare-and-swap", read_and_swap),
            ("OR by compare-and-swap, word guessed", swap),
            (
                "one write for 64 neighbours",
                Cost::write(8.0).times(1.0 / 64.0),
            ),
            (
                "records, answers of 1 MiB",
                records(dirty, BATCH).times(1.0 / dirty),
            ),
            (
                "records, answers of 4 KiB",
                records(dirty, 512.0).times(1.0 / dirty),
            ),
        ];
        for (name, cost) in costs {
            all.add(&BUS, name, dirty, vec![cost.bytes]);
            all.add(&BUS_PACKETS, name, dirty, vec![cost.packets]);
        }
    }
    all
}
