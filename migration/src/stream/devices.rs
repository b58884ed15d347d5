//! A stream without memory: devices that move while their guest stays where it is.

use super::Order;
use super::framing::{Bad, StreamError};
use super::intake::Intake;
use super::outgoing::Outgoing;
use super::reader::{Format, Reader};
use crate::guest::DeviceRecord;
use std::io;

/// A whole stream of these devices. `description` is for whoever reads it: text in UTF-8 without NUL.
///
/// # Errors
/// `InvalidInput` for a description or an option that a stream cannot hold, or for a state that is
/// longer than the format allows.
pub fn write(description: &[u8], devices: &[DeviceRecord]) -> io::Result<Vec<u8>> {
    let mut outgoing = Outgoing::new(Vec::new());
    outgoing.open(description)?;
    devices
        .iter()
        .try_for_each(|device| outgoing.device(device))?;
    outgoing.end()?;
    Ok(outgoing.writer.into_inner())
}

/// The devices of such a stream, which may come from anywhere.
///
/// # Errors
/// [`StreamError`] names the record and its place; also if there is memory in the stream, or
/// anything after its end.
pub fn read(bytes: &[u8]) -> Result<Vec<DeviceRecord>, StreamError> {
    let mut reader = Reader::new(bytes, Format::Libxl);
    let mut intake = Intake::default();
    let mut devices = Vec::new();
    while let Some(item) = reader.next_item()? {
        let order = intake.order(item);
        match order.map_err(|bad| reader.bad(reader.started(), bad))? {
            Some(Order::Device(device)) => devices.push(device),
            Some(Order::Pages(pages)) => {
                let got = format!("{} pages of memory", pages.len());
                let bad = Bad::new(0, "devices alone", got);
                return Err(reader.bad(reader.started(), bad));
            }
            _ => {}
        }
    }
    reader.finish()?;
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Context, SectionKind};

    fn device(id: u32) -> DeviceRecord {
        DeviceRecord {
            id,
            options: vec![("name".to_owned(), format!("disk{id}"))],
            context: Context::of(SectionKind::Registers, vec![7; 13]),
        }
    }

    #[test]
    fn devices_come_back() {
        let all = [device(1), device(2)];
        assert_eq!(read(&write(b"two", &all).unwrap()).unwrap(), all);
    }

    #[test]
    fn every_cut_is_named_and_so_is_what_follows() {
        let whole = write(b"one", &[device(1)]).unwrap();
        for cut in 0..whole.len() {
            let error = read(&whole[..cut]).unwrap_err();
            let told = error.to_string();
            assert!(
                told.contains(&format!("ends at byte {cut},")),
                "{cut}: {told}"
            );
        }
        assert!(read(&[whole, vec![0]].concat()).is_err());
    }
}
