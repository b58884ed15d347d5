//! Streams of a guest in both framings: any bytes, and sound streams with a few bytes changed.

use crate::Plant;
use crate::input::Input;
use crate::oracle::MemoryWatch;
use migration::DeviceRecord;
use migration::stream::body::{BodyReader, BodyWriter};
use migration::stream::epoch::{EpochReader, Part};
use migration::stream::{Context, Format, Order, SectionKind};
use migration::stream::{devices, inspect};
use std::io::{self, Read};

/// What is read, in pieces, with every call counted.
struct Counted<'a> {
    rest: &'a [u8],
    piece: usize,
    calls: usize,
    most: usize,
    plant: Option<Plant>,
}

impl<'a> Counted<'a> {
    fn new(bytes: &'a [u8], piece: usize, plant: Option<Plant>) -> Self {
        Self {
            rest: bytes,
            piece,
            calls: 0,
            most: 8 * bytes.len() + 64,
            plant,
        }
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        assert!(
            self.calls <= self.most,
            "oracle steps: {} reads for {} bytes that are left",
            self.calls,
            self.rest.len()
        );
        if self.plant == Some(Plant::Livelock) && self.rest.len() % 64 == 24 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let now = into.len().min(self.piece).min(self.rest.len());
        let (now, rest) = self.rest.split_at(now);
        into[..now.len()].copy_from_slice(now);
        self.rest = rest;
        Ok(now.len())
    }
}

/// Runs the target.
pub fn run(data: &[u8], plant: Option<Plant>) {
    let mut input = Input::new(data);
    let watch = MemoryWatch::begin();
    let piece = input.below(9) + 1;
    let (format, bytes) = match input.below(4) {
        0 => (Format::Libxl, input.rest().to_vec()),
        1 => (Format::Libxc, input.rest().to_vec()),
        _ => (Format::Libxl, built(&mut input)),
    };
    let whole = told(&bytes, format, usize::MAX, plant);
    let pieces = told(&bytes, format, piece, None);
    assert_eq!(
        whole, pieces,
        "oracle soundness: the same stream in pieces of {piece} bytes is another"
    );
    if whole.is_ok() {
        let cut = &bytes[..bytes.len() - 1];
        let more = [&bytes[..], &[0]].concat();
        for (what, bytes) in [("cut", cut), ("longer", &more[..])] {
            let taken = told(bytes, format, usize::MAX, None).is_ok()
                || plant == Some(Plant::Accepts) && what == "cut";
            assert!(!taken, "oracle soundness: a {what} stream is taken");
        }
    }
    others(&bytes, plant);
    watch.end();
}

/// Every row of a stream and its totals, or the error, as text.
fn told(
    bytes: &[u8],
    format: Format,
    piece: usize,
    plant: Option<Plant>,
) -> Result<String, String> {
    let mut text = String::new();
    let from = Counted::new(bytes, piece, plant);
    let totals = inspect::walk(from, format, |row| text += &format!("{row:?}\n"));
    let totals = totals.map_err(|error| error.to_string())?;
    assert_eq!(
        totals.bytes,
        bytes.len() as u64,
        "oracle soundness: bytes of a stream that was read to its end"
    );
    Ok(text + &format!("{totals:?}"))
}

/// The readers of whole guests, of pairs and of devices, on the same bytes.
fn others(bytes: &[u8], plant: Option<Plant>) {
    let mut body = BodyReader::new(Counted::new(bytes, usize::MAX, None));
    let mut buffer = vec![0; 4096];
    let mut pages = 0;
    while let Ok(order) = body.order() {
        match order {
            Order::Pages(numbers) => {
                pages += numbers.len();
                if numbers.iter().any(|_| body.data(&mut buffer).is_err()) {
                    break;
                }
            }
            Order::End => break,
            _ => {}
        }
    }
    if plant == Some(Plant::Memory) && pages == 2 {
        std::hint::black_box(vec![1_u8; 160 << 20]);
    }
    let mut epochs = EpochReader::new(Counted::new(bytes, usize::MAX, None));
    while let Ok(part) = epochs.part() {
        if let Part::Pages(numbers) = part
            && numbers.iter().any(|_| epochs.data(&mut buffer).is_err())
        {
            break;
        }
    }
    if let Ok(records) = devices::read(bytes) {
        let again = devices::write(b"again", &records).expect("what was read can be written");
        let again = devices::read(&again).map_err(|error| error.to_string());
        assert_eq!(
            again.as_ref(),
            Ok(&records),
            "oracle soundness: devices that were written and read again"
        );
    }
    if let Ok(context) = Context::from_bytes(bytes) {
        let again = Context::from_bytes(&context.to_bytes()).map_err(|error| error.to_string());
        assert_eq!(
            again,
            Ok(context),
            "oracle soundness: a device's state that was written and read again"
        );
    }
}

/// A sound stream of a few pages and devices, then with a few bytes changed.
fn built(input: &mut Input<'_>) -> Vec<u8> {
    let mut body = BodyWriter::open(Vec::new(), b"fuzz").expect("opened");
    let pages: Vec<u64> = (0..input.below(4)).map(|_| u64::from(input.u8())).collect();
    let data = vec![input.u8(); 4096 * pages.len()];
    if !pages.is_empty() {
        body.pages(&pages, &data).expect("written");
    }
    for id in 0..input.below(3) {
        let kind = input.pick(&SectionKind::ALL);
        let bytes = input.bytes(usize::from(id == 0) * 24).to_vec();
        let mut options = Vec::new();
        if input.flag() {
            options.push(("name".to_owned(), format!("disk{id}")));
        }
        body.device(&DeviceRecord {
            id: u32::try_from(id).unwrap_or(0),
            options,
            context: Context::of(kind, bytes),
        })
        .expect("written");
    }
    let (mut bytes, _) = body.end().expect("ended");
    // The heads of records are where most can go wrong: the first few hundred bytes and the last.
    for _ in 0..input.below(4) {
        let (near, place, value) = (input.below(3), usize::from(input.u16()), input.u8());
        let len = bytes.len();
        let at = match near {
            0 => place % 256,
            1 => len.saturating_sub(1 + place % 256),
            _ => place,
        };
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= value;
        }
    }
    bytes
}
