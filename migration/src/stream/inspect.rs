//! What a stream in a file holds, record by record, without a guest to put it into.

use super::context::Context;
use super::framing::{Bad, HEAD_BYTES, StreamError, widen};
use super::libxc::Version;
use super::libxl::EmulatorId;
use super::reader::{Format, Item, Reader};
use super::{libxc, libxl};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};

/// Bytes of pages that are read at a time: they stay in a core's cache.
const CHUNK: usize = 256 << 10;

/// A row of the table: a header, a record, or neighbouring records of pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Where it starts.
    pub offset: u64,
    /// "libxl" or "libxc".
    pub layer: &'static str,
    /// What it is.
    pub record: String,
    /// Bytes of it, head and padding included.
    pub bytes: u64,
    /// How many records it stands for.
    pub records: u64,
    /// What is in it.
    pub detail: String,
}

/// What a whole stream holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// "libxl" or "libxc".
    pub format: &'static str,
    /// Version of the image.
    pub image_version: u32,
    /// Bytes of the stream.
    pub bytes: u64,
    /// Pages, repeats included.
    pub pages: u64,
    /// Bytes of the pages' data.
    pub page_bytes: u64,
    /// Records by name, layer first.
    pub records: BTreeMap<String, u64>,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Devices, by emulator and index, in the last epoch.
    pub devices: Vec<String>,
}

impl Totals {
    /// Bytes that are not data of pages.
    pub fn overhead(&self) -> u64 {
        self.bytes - self.page_bytes
    }
}

/// How the stream in a file starts.
///
/// # Errors
/// What the system says.
pub fn format_of(file: &mut File) -> std::io::Result<Format> {
    let mut start = Vec::new();
    file.take(8).read_to_end(&mut start)?;
    file.rewind()?;
    // Whatever else it is, the reader of the outer layer says what it expected.
    Ok(match start.as_slice() {
        [0xff, 0xff, 0xff, 0xff, ..] => Format::Libxc,
        _ => Format::Libxl,
    })
}

/// Reads a whole stream, checks every rule of the format, and tells each row.
///
/// # Errors
/// [`StreamError`]: the first rule that is broken, and where.
pub fn walk(
    from: impl Read,
    format: Format,
    mut tell: impl FnMut(&Row),
) -> Result<Totals, StreamError> {
    let mut reader = Reader::new(from, format);
    let mut totals = Totals {
        format: match format {
            Format::Libxl => "libxl",
            Format::Libxc => "libxc",
        },
        ..Totals::default()
    };
    let mut buffer = vec![0; CHUNK];
    let mut last: Option<Row> = None;
    while let Some(item) = reader.next_item()? {
        let (record, started) = (reader.record().to_owned(), reader.started());
        let detail = detail(&item, &mut totals).map_err(|bad| reader.bad(started, bad))?;
        if let Item::Pages(entries) = &item {
            totals.pages += widen(entries.len());
            totals.page_bytes += reader.data_left();
            while reader.data_left() > 0 {
                let left = usize::try_from(reader.data_left()).unwrap_or(CHUNK);
                reader.data(buffer.get_mut(..left.min(CHUNK)).unwrap_or_default())?;
            }
        }
        let layer = match item {
            Item::Stream(_) | Item::Libxl(_) => "libxl",
            Item::Skipped(layer, _) => layer.name(),
            _ => "libxc",
        };
        let bytes = reader.offset() - started;
        *totals.records.entry(record.clone()).or_default() += 1;
        match &mut last {
            Some(row) if matches!(item, Item::Pages(_)) && row.record == record => {
                row.bytes += bytes;
                row.records += 1;
            }
            _ => {
                let row = Row {
                    offset: started,
                    layer,
                    record,
                    bytes,
                    records: 1,
                    detail,
                };
                if let Some(done) = last.replace(row) {
                    tell(&done);
                }
            }
        }
    }
    if let Some(done) = last {
        tell(&done);
    }
    totals.bytes = reader.offset();
    reader.finish()?;
    Ok(totals)
}

fn detail(item: &Item, totals: &mut Totals) -> Result<String, Bad> {
    Ok(match item {
        Item::Stream(header) if header.converted => "version 2, converted".to_owned(),
        Item::Stream(_) => "version 2".to_owned(),
        Item::Image(header) => {
            totals.image_version = match header.version {
                Version::V2 => 2,
                Version::V3 => 3,
            };
            format!(
                "version {}, {:?}, of Xen {}.{}",
                totals.image_version, header.domain, header.xen_major, header.xen_minor
            )
        }
        Item::Pages(entries) => {
            let first = entries.first().map_or(0, |entry| entry.pfn);
            format!("from page {first:#x} on")
        }
        Item::Libxl(libxl::Record::EmulatorXenstoreData(emulator, options)) => {
            let keys: Vec<&str> = options.iter().map(|(key, _)| key.as_str()).collect();
            format!("{:?} {}: {}", emulator.id, emulator.index, keys.join(", "))
        }
        Item::Libxl(libxl::Record::EmulatorContext(emulator, blob)) => {
            let name = format!("{:?} {}", emulator.id, emulator.index);
            let what = what(emulator.id, blob)?;
            totals.devices.push(name.clone());
            format!("{name}: {what}")
        }
        Item::Libxl(libxl::Record::CheckpointState(control)) => format!("{control:?}"),
        Item::Libxc(libxc::Record::Checkpoint) => {
            totals.checkpoints += 1;
            totals.devices.clear();
            String::new()
        }
        Item::Skipped(_, head) => format!("unknown, {} bytes skipped", head.length),
        Item::Libxl(_) | Item::Libxc(_) => String::new(),
    })
}

/// What a device's blob is. One that starts like ours must be ours.
fn what(id: EmulatorId, blob: &[u8]) -> Result<String, Bad> {
    if id != EmulatorId::QemuUpstream || !Context::is_ours(blob) {
        return Ok(format!("{} bytes of another program", blob.len()));
    }
    let context = Context::parse(blob).map_err(|bad| Bad {
        at: bad.at + HEAD_BYTES + 8,
        ..bad
    })?;
    let sections = context.sections();
    let sections =
        sections.map(|(kind, bytes)| format!("{} of {} bytes", kind.name(), bytes.len()));
    Ok(sections.collect::<Vec<_>>().join(", "))
}
